"""Small JSON files from strangers."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scanner.adapter import parse_config, read_json_object
from scanner.errors import LimitExceededError, MalformedFileError

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
quiet = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(st.dictionaries(st.text(), anything, max_size=5), st.booleans())
@quiet
def test_valid_objects_round_trip(tmp_path: Path, value: dict[str, object], escaped: bool) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value, ensure_ascii=escaped), encoding="utf-8")
    assert read_json_object(path, 10**6) == value


@given(st.binary(max_size=60))
@quiet
def test_any_bytes_are_an_object_or_malformed(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "b.json"
    path.write_bytes(data)
    with suppress(MalformedFileError):
        assert isinstance(read_json_object(path, 10**6), dict)


@pytest.mark.parametrize(
    "text",
    [
        '{"r": 8, "r": 9}',
        '{"a": {"b": 1, "b": 2}}',
        "[]",
        "1",
        "null",
        "",
        "{",
        '{"a": 1} {"b": 2}',
        '{"a":' * 100_000,
        '{"name": "\\ud800"}',
        '{"names": ["\\uDFFF"]}',
    ],
)
def test_malformed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(MalformedFileError):
        read_json_object(path, 10**7)


def test_whole_surrogate_pairs_are_text(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text('{"face": "\\ud83d\\ude00"}')
    assert read_json_object(path, 100) == {"face": "\N{GRINNING FACE}"}


def test_size_is_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    path.write_text("x" * 101)  # not even JSON: the size decides first
    with pytest.raises(LimitExceededError) as caught:
        read_json_object(path, 100)
    assert (caught.value.limit, caught.value.actual) == (100, 101)


CONFIG_FIELDS = [
    "peft_type", "base_model_name_or_path", "model", "task_type", "r", "lora_alpha", "use_rslora", "use_dora",
    "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_parameters",
]  # fmt: skip


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(CONFIG_FIELDS, anything)))
@quiet
def test_any_config_is_parsed_without_an_exception(raw: dict[str, object]) -> None:
    config = parse_config(raw)
    assert config.rank is None or 0 < config.rank < 2**31
    assert all(isinstance(item, str) for item in config.modules_to_save)
    assert all(isinstance(number, float) for number in (*config.rank_pattern.values(), *config.alpha_pattern.values()))


def test_config_fields() -> None:
    config = parse_config({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "use_rslora": 1, "rank_pattern": {"q": 4}})
    assert (config.peft_type, config.rank, config.alpha, config.rank_pattern) == ("LORA", 8, 16.0, {"q": 4.0})
    assert config.use_rslora is True  # PEFT tests the field's truth, so any true value switches it on


def test_config_of_wrong_types_counts_as_absent() -> None:
    config = parse_config({"peft_type": 7, "r": "8", "lora_alpha": "16", "modules_to_save": "lm_head", "r_pattern": []})
    assert (config.peft_type, config.rank, config.alpha, config.modules_to_save) == (None, None, None, ())


def test_mlx_config() -> None:
    config = parse_config({"model": "org/base", "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0}})
    assert (config.base_model, config.rank, config.mlx_scale) == ("org/base", 8, 20.0)
