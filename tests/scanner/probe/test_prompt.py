"""Chat templates: ordinary ones render as transformers renders them, hostile ones get nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scanner.errors import UnsupportedError
from scanner.probe.prompt import MAX_PROMPT_CHARS, ChatTemplate, load_template

CHATML = (
    "{% for message in messages %}\n"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}\n{{ '<|im_start|>assistant\\n' }}\n{% endif %}"
)

HOSTILE = {
    "class walk": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ ().__class__.__base__.__subclasses__() }}",
    "globals of a function": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "globals of a class": "{{ cycler.__init__.__globals__ }}",
    "attr filter": "{{ (''|attr('__class__')).__mro__ }}",
    "format string": "{{ '{0.__class__.__mro__[1].x}'.format('').y }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "changes its input": "{{ messages.append(1) }}",
    "own exception": "{{ raise_exception('only base64 today') }}",
    "endless range": "{% for i in range(10 ** 12) %}x{% endfor %}",
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
    "one huge string": "{{ 'x' * 30000000 }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "too deep to compile": "".join(f"{{% for a{i} in [1] %}}" for i in range(40)) + "x" + "{% endfor %}" * 40,
    "parentheses": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "syntax": "{% for %}",
    "unknown tag": "{% exec 'x' %}",
    "undefined": "{{ nothing.at.all }}",
    "division": "{{ 1 / 0 }}",
    "key error": "{{ {}['x']['y'] }}",
    "wrong types": "{{ messages + 1 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_unsupported(name: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        ChatTemplate(HOSTILE[name], {}).render("system", "user")
    assert caught.value.code == "chat_template"


def test_output_just_below_the_limit_is_fine() -> None:
    assert len(ChatTemplate(f"{{{{ 'x' * {MAX_PROMPT_CHARS} }}}}", {}).render("s", "u")) == MAX_PROMPT_CHARS


def test_renders_as_transformers_does() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "system", "content": " be brief "}, {"role": "user", "content": "a <b> & ünïcode {{ x }}"}]
    theirs, _ = render_jinja_template([messages], chat_template=CHATML, add_generation_prompt=True)
    assert ChatTemplate(CHATML, {}).render(" be brief ", "a <b> & ünïcode {{ x }}") == theirs[0]


@pytest.mark.parametrize(
    "arguments",
    ["", "(indent=4)", "(ensure_ascii=true)", "(separators=(',', ':'), sort_keys=true)", "(false, 2, none, true)"],
)
def test_tojson_takes_what_transformers_takes(arguments: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = "{{ messages[0] | tojson" + arguments + " }}"
    theirs, _ = render_jinja_template([[{"role": "system", "content": "a <b> ü"}]], chat_template=source)
    assert ChatTemplate(source, {}).render("a <b> ü", "text") == theirs[0]


def test_texts_are_data_not_templates() -> None:
    shown = ChatTemplate("{{ messages[1]['content'] }}", {}).render("s", "{{ 7 * 7 }}{% raise %}")
    assert shown == "{{ 7 * 7 }}{% raise %}"


def test_a_template_without_a_system_role_gets_the_instruction_before_the_text() -> None:
    source = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "[{{ messages[0]['content'] }}]"
    )
    assert ChatTemplate(source, {}).render("Classify.", "text") == "[Classify.\n\ntext]"


def test_without_an_instruction_there_is_no_system_message() -> None:
    listed = ChatTemplate("{% for m in messages %}{{ m['role'] }}={{ m['content'] }};{% endfor %}", {})
    assert listed.render("", "text") == "user=text;"
    assert listed.render("s", "text") == "system=s;user=text;"
    plain = load_template(Path("no/such/folder"))
    assert plain.render("", "text") == "text\n\nAnswer:"


def test_a_template_that_fails_without_an_instruction_is_unsupported() -> None:
    with pytest.raises(UnsupportedError) as caught:
        ChatTemplate("{{ messages[1]['content'] + 1 }}", {}).render("", "text")
    assert caught.value.code == "chat_template"


def test_special_tokens() -> None:
    assert ChatTemplate("{{ bos_token }}{{ messages[1].content }}", {"bos_token": "<s>"}).render("s", "u") == "<s>u"


def write_config(folder: Path, **fields: object) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def test_load_template_sources(tmp_path: Path) -> None:
    assert load_template(tmp_path).render("sys", "text") == "sys\n\ntext\n\nAnswer:"  # none at all
    write_config(tmp_path, chat_template="C{{ bos_token }}", bos_token={"content": "<s>", "lstrip": False})
    assert load_template(tmp_path).render("s", "u") == "C<s>"
    write_config(tmp_path, chat_template=[{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}])
    assert load_template(tmp_path).render("s", "u") == "D"
    write_config(tmp_path, chat_template=17, bos_token=[])
    assert load_template(tmp_path).render("s", "u").endswith("Answer:")
    (tmp_path / "chat_template.jinja").write_text("J")
    assert load_template(tmp_path).render("s", "u") == "J"


def test_a_huge_template_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError):
        load_template(write_config(tmp_path, chat_template="x" * (1024**2 + 1)))
