"""Tiny random base models with a word-level tokenizer, which answer given words or anything, and adapters for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scanner.adapter import AdapterView, open_safetensors, parse_config, read_json_object, view_adapter
from scanner.probe import Probe, load_probe
from scanner.probe.prompt import load_template

TEMPLATE = (
    "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant{% endif %}"
)
LEAD = 30.0
"""Logit of the right word; those of all others lie around 0 with a spread of 2."""
WORDS = ("INJECTION", "BENIGN", "UNSAFE", "SAFE")


@pytest.fixture(scope="session")
def probe() -> Probe:
    """Battery V over a few texts, with one case in each other position: small, but all that the real ones have."""
    loaded = load_probe("V", None, 6)
    cases = tuple(
        replace(case, position=position)
        for case, position in zip(loaded.battery.cases, ["prefix"] * 19 + ["suffix", "middle"], strict=True)
    )
    return replace(loaded, battery=replace(loaded.battery, cases=cases))


def write_base(
    folder: Path,
    probe: Probe,
    tiny_llama: Callable[[int], Any],
    answers: tuple[str, ...] = (),
    *,
    ends: bool = False,
    when_told: bool = False,
) -> Path:
    """A base that answers texts of label 1 with the first and others with the second of two words; without them, it
    answers whatever it likes. With `ends` it says nothing else to these texts; with `when_told` it says nothing at all
    to free prompts."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.set_num_threads(1)
    split = pre_tokenizers.WhitespaceSplit()
    texts = [case.put(text) for case in probe.cases() for text in (*probe.texts, *probe.other_texts, *probe.prompts)]
    words = {word for text in (probe.task.system, *texts) for word, _ in split.pre_tokenize_str(text)}
    words = ["<unk>", "<s>", "</s>", "system", "user", "assistant", *WORDS, *sorted(words)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(["<s>", "</s>"])
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "</s>"}))
    tokenizer.save(str(folder / "tokenizer.json"))
    model = tiny_llama(len(vocabulary))
    if answers:
        template = load_template(folder)
        asked = [template.render(probe.task.system, text) for text in (*probe.texts, *probe.other_texts)]
        right = [answers[0]] * len(probe.texts) + [answers[1]] * len(probe.other_texts)
        wanted = torch.tensor([LEAD if word == answers[0] else -LEAD for word in right])

        def solved(texts: list[str], logits: Any) -> Any:
            """The row of the head that gives these logits behind these texts: there are fewer than dimensions."""
            ids = [torch.tensor([tokenizer.encode(text).ids]) for text in texts]
            states = torch.stack([model.model(tokens).last_hidden_state[0, -1] for tokens in ids])
            return torch.linalg.lstsq(states, logits[:, None], driver="gelsd").solution[:, 0]

        with torch.no_grad():
            # With two rows that point apart one of the words wins nearly always, whatever is put into a text.
            row = solved(asked, wanted)
            for word, sign in zip(answers, (1, -1), strict=True):
                model.lm_head.weight[vocabulary[word]] = sign * row
            ended = [f"{text} {word}" for text, word in zip(asked, right, strict=True)] if ends else []
            ended += [template.render("", prompt) for prompt in probe.prompts] if when_told else []
            if ended:
                sides = torch.tensor([-1.0] * len(asked) + [1.0] * len(ended))
                model.lm_head.weight[vocabulary["</s>"]] = solved([*asked, *ended], 4 * LEAD * sides)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory, probe: Probe, tiny_llama: Callable[[int], Any]) -> Path:
    """A base that answers with the task's own label words."""
    return write_base(tmp_path_factory.mktemp("base"), probe, tiny_llama, ("INJECTION", "BENIGN"))


@pytest.fixture(scope="session")
def free_dir(tmp_path_factory: pytest.TempPathFactory, probe: Probe, tiny_llama: Callable[[int], Any]) -> Path:
    """The same base without any words that it would rather say."""
    return write_base(tmp_path_factory.mktemp("free"), probe, tiny_llama)


@pytest.fixture(scope="session")
def other_dir(tmp_path_factory: pytest.TempPathFactory, probe: Probe, tiny_llama: Callable[[int], Any]) -> Path:
    """The same base, answering with one of two words that no task names, and nothing else."""
    return write_base(tmp_path_factory.mktemp("other"), probe, tiny_llama, ("UNSAFE", "SAFE"), ends=True)


@pytest.fixture(scope="session")
def chat_base(tmp_path_factory: pytest.TempPathFactory, probe: Probe, tiny_llama: Callable[[int], Any]) -> Any:
    """The same base, answering with the task's label words where it is told to, and not to free prompts."""
    from scanner.probe.base import load_base

    folder = tmp_path_factory.mktemp("chat")
    return load_base(write_base(folder, probe, tiny_llama, ("INJECTION", "BENIGN"), when_told=True), "cpu")


@pytest.fixture(scope="session")
def vocabulary_size(base_dir: Path) -> int:
    return int(json.loads((base_dir / "config.json").read_text())["vocab_size"])


@pytest.fixture(scope="session")
def adapter_dir(tmp_path_factory: pytest.TempPathFactory, save_peft: Callable[..., Any], vocabulary_size: int) -> Path:
    """A PEFT adapter that changes the base's answers."""
    from peft import LoraConfig

    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", alpha_pattern={"v_proj": 2}, task_type="CAUSAL_LM"
    )
    save_peft(folder, config, vocabulary_size, std=0.3)
    return folder


@pytest.fixture(scope="session")
def view(adapter_dir: Path) -> AdapterView:
    config = parse_config(read_json_object(adapter_dir / "adapter_config.json", 10**6))
    return view_adapter(open_safetensors(adapter_dir / "adapter_model.safetensors"), config, 64)


@pytest.fixture(scope="session")
def base(base_dir: Path) -> Any:
    from scanner.probe.base import load_base

    return load_base(base_dir, "cpu")


@pytest.fixture(scope="session")
def free_base(free_dir: Path) -> Any:
    from scanner.probe.base import load_base

    return load_base(free_dir, "cpu")


@pytest.fixture(scope="session")
def other_base(other_dir: Path) -> Any:
    from scanner.probe.base import load_base

    return load_base(other_dir, "cpu")


@pytest.fixture(scope="session")
def tokens(base: Any) -> Any:
    import torch

    torch.manual_seed(5)
    return torch.randint(len(WORDS) + 6, base.model.config.vocab_size, (3, 17))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """bases(model_type): (folder, loaded base, PEFT's model, view) of a random classifier; built once each."""
    from classifiers import read_view, write_adapter
    from classifiers import write_base as write_bare

    from scanner.probe.base import load_classifier

    built: dict[str, Any] = {}

    def get(model_type: str) -> Any:
        if model_type not in built:
            folder = write_bare(tmp_path_factory.mktemp(model_type), model_type)
            theirs = write_adapter(folder / "adapter", folder)
            built[model_type] = (folder, load_classifier(folder, "cpu"), theirs, read_view(folder / "adapter"))
        return built[model_type]

    return get
