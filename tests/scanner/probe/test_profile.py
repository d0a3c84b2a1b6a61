"""Which adapters the behaviour stage can ask something, and how."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.adapter import AdapterView, parse_config
from scanner.model import GENERATIVE, LABEL_WORDS, NOT_APPLICABLE, SEQUENCE_CLASSIFICATION
from scanner.probe.profile import choose_profile

PEFT = AdapterView("peft", ())
LLAMA = {"architectures": ["LlamaForCausalLM"]}
CLASSIFIES = "---\npipeline_tag: text-classification\n---\n# A guard"


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"task_type": "CAUSAL_LM"}, GENERATIVE),
        ({"task_type": "causal_lm"}, GENERATIVE),
        ({}, GENERATIVE),
        ({"task_type": ""}, GENERATIVE),
        ({"task_type": "SEQ_CLS"}, SEQUENCE_CLASSIFICATION),
        ({"task_type": "seq_cls"}, SEQUENCE_CLASSIFICATION),
        ({"task_type": "TOKEN_CLS"}, SEQUENCE_CLASSIFICATION),
        ({"task_type": "SEQ_2_SEQ_LM"}, NOT_APPLICABLE),
        ({"task_type": "QUESTION_ANS"}, NOT_APPLICABLE),
        ({"task_type": "FEATURE_EXTRACTION"}, NOT_APPLICABLE),
    ],
)
def test_the_task_type_decides(config: dict[str, Any], wanted: str) -> None:
    profile = choose_profile(PEFT, parse_config(config))
    assert profile.name == wanted
    assert (config.get("task_type") or "no task_type").upper() in profile.reason.upper()


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (AdapterView("mlx", ()), "layout mlx: its module names are not the base's"),
        (AdapterView("kohya", ()), "layout kohya: an image model answers no text"),
        (AdapterView("diffusers", ()), "layout diffusers: an image model answers no text"),
        (AdapterView("peft", (), unsupported_reason="x"), "updates of this kind are not applied: x"),
    ],
)
def test_what_cannot_be_applied_is_not_asked(task: str, view: AdapterView, reason: str) -> None:
    profile = choose_profile(view, parse_config({"task_type": task}), CLASSIFIES, LLAMA)
    assert (profile.name, profile.reason) == (NOT_APPLICABLE, reason)


def test_without_a_config_nobody_knows_what_it_is_for() -> None:
    profile = choose_profile(PEFT, None, CLASSIFIES, LLAMA)
    assert (profile.name, profile.reason) == (NOT_APPLICABLE, "no adapter_config.json says what it is for")


@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [
        ("LlamaForCausalLM", GENERATIVE),
        ("GPT2LMHeadModel", GENERATIVE),
        ("BertModel", NOT_APPLICABLE),
        ("T5ForConditionalGeneration", NOT_APPLICABLE),
        ("UNet2DConditionModel", NOT_APPLICABLE),
        ("", GENERATIVE),
    ],
)
def test_without_a_task_type_the_base_decides(architecture: str, wanted: str) -> None:
    base = {"architectures": [architecture] if architecture else []}
    profile = choose_profile(PEFT, parse_config({}), "", base)
    assert profile.name == wanted
    assert architecture in profile.reason
    assert choose_profile(PEFT, parse_config({"task_type": "CAUSAL_LM"}), "", base).name == GENERATIVE


@pytest.mark.parametrize(
    ("card", "wanted"),
    [
        (CLASSIFIES, LABEL_WORDS),
        (CLASSIFIES.replace("text-classification", '"zero-shot-classification"'), LABEL_WORDS),
        (CLASSIFIES.replace("text-classification", "token-classification"), LABEL_WORDS),
        (CLASSIFIES.replace("text-classification", "text-generation"), GENERATIVE),
        (f"{CLASSIFIES[3:]}", GENERATIVE),  # no front matter
        ("# pipeline_tag: text-classification", GENERATIVE),
        ("---\nx_pipeline_tag: text-classification\n---\n", GENERATIVE),
        ("---\n" + "x: y\n" * 5_000 + "pipeline_tag: text-classification\n---\n", GENERATIVE),  # too far down
        ("", GENERATIVE),
    ],
)
def test_a_card_may_call_it_a_classifier(card: str, wanted: str) -> None:
    assert choose_profile(PEFT, parse_config({"task_type": "CAUSAL_LM"}), card, LLAMA).name == wanted
    assert choose_profile(PEFT, parse_config({}), card).name == wanted
    # What has a head is asked through it, whatever the card says.
    assert choose_profile(PEFT, parse_config({"task_type": "SEQ_CLS"}), card).name == SEQUENCE_CLASSIFICATION


@given(
    st.text(max_size=50),
    st.text(max_size=50),
    st.dictionaries(st.just("architectures"), st.one_of(st.none(), st.lists(st.one_of(st.integers(), st.text())))),
)
def test_whatever_strangers_write_there_is_a_profile_with_a_short_reason(
    task: str, card: str, base: dict[str, Any]
) -> None:
    profile = choose_profile(PEFT, parse_config({"task_type": task}), f"---\n{card}", base)
    assert profile.name in (GENERATIVE, LABEL_WORDS, SEQUENCE_CLASSIFICATION, NOT_APPLICABLE)
    assert 0 < len(profile.reason) < 200
