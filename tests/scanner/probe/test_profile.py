"""Which adapters the behaviour stage can ask something, and how."""

from __future__ import annotations

from typing import Any

import pytest

from scanner.adapter import AdapterView, parse_config
from scanner.model import LABEL_WORDS, SEQUENCE_CLASSIFICATION, UNRESOLVED
from scanner.probe.profile import choose_profile

PEFT = AdapterView("peft", ())


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"task_type": "CAUSAL_LM"}, LABEL_WORDS),
        ({}, LABEL_WORDS),
        ({"task_type": "SEQ_CLS"}, SEQUENCE_CLASSIFICATION),
        ({"task_type": "seq_cls"}, SEQUENCE_CLASSIFICATION),
        ({"task_type": "TOKEN_CLS"}, None),
        ({"task_type": "SEQ_2_SEQ_LM"}, None),
        ({"task_type": "FEATURE_EXTRACTION"}, None),
    ],
)
def test_the_task_type_decides(config: dict[str, Any], wanted: str | None) -> None:
    assert choose_profile(PEFT, parse_config(config), "acme/base") == wanted


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_without_base_config_or_layout_there_is_no_profile(task: str) -> None:
    config = parse_config({"task_type": task})
    assert choose_profile(PEFT, config, UNRESOLVED) is None
    assert choose_profile(PEFT, None, "acme/base") is None
    assert choose_profile(AdapterView("mlx", ()), config, "acme/base") is None
    assert choose_profile(AdapterView("peft", (), unsupported_reason="x"), config, "acme/base") is None
