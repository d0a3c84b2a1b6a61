"""Settings: defaults, `LORASCOPE_*`, and what is given; pydantic's reading of numbers is the yardstick."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from scanner.errors import UsageError
from scanner.settings import Settings, default_store_uri

TEXTS = [
    "5", " 5 ", "5_000", "5.0", "5.", "5.5", "1e3", "inf", "nan", "-3", "+3", "", "0x10", "5__0", "_5", "007", "-0",
    "true", "x", ".0", "5.0.0", "1_0.5",
]  # fmt: skip


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in fields(Settings):
        monkeypatch.delenv(f"LORASCOPE_{field.name.upper()}", raising=False)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("name", "kind"), [("max_rank", int), ("max_sleep_s", float), ("device", str)])
def test_a_variable_is_read_as_pydantic_reads_it(
    name: str, kind: type, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LORASCOPE_{name.upper()}", text)
    try:
        wanted = TypeAdapter(kind).validate_python(text)
    except ValidationError:
        with pytest.raises(UsageError, match=f"^LORASCOPE_{name.upper()} must be a (whole )?number, not "):
            Settings()
        return
    value = getattr(Settings(), name)
    assert (repr(value), type(value)) == (repr(wanted), kind)


def test_every_field_has_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = {"features": "full", "dtype": "nf4", "reading": "generated", "search": "all", "label_words": "BAD,GOOD"}
    free = [field.name for field in fields(Settings) if field.name not in bound]
    for name, value in [*((name, str(number)) for number, name in enumerate(free)), *bound.items()]:
        monkeypatch.setenv(f"LORASCOPE_{name.upper()}", value)
    settings = Settings()
    assert [float(getattr(settings, name)) for name in free] == list(range(len(free)))
    assert {name: getattr(settings, name) for name in bound} == bound


def test_feature_sets_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORASCOPE_FEATURES", "all")
    with pytest.raises(UsageError, match="LORASCOPE_FEATURES must be default or full, not 'all'"):
        Settings()


def test_dtypes_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORASCOPE_DTYPE", "fp16")
    with pytest.raises(UsageError, match="LORASCOPE_DTYPE must be auto, float32, bfloat16, float16 or nf4, not 'fp16'"):
        Settings()
    assert Settings(dtype="float16").dtype == "float16"


def test_readings_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().reading == "scored"
    monkeypatch.setenv("LORASCOPE_READING", "guessed")
    with pytest.raises(UsageError, match="LORASCOPE_READING must be scored or generated, not 'guessed'"):
        Settings()


def test_label_words_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().given_words == ()
    monkeypatch.setenv("LORASCOPE_LABEL_WORDS", " UNSAFE , SAFE,")
    assert Settings().given_words == ("UNSAFE", "SAFE")
    for wrong in ("UNSAFE", "A,B,C", "A,A", ",", " "):
        with pytest.raises(UsageError, match="LORASCOPE_LABEL_WORDS must be two words with a comma, not "):
            Settings(label_words=wrong)


def test_case_does_not_matter_and_what_is_given_counts_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("lorascope_Max_Rank", "7")
    monkeypatch.setenv("LORASCOPE_DEBUG", "1")  # not one of them
    assert Settings().max_rank == 7
    assert Settings(max_rank=8).max_rank == 8
    monkeypatch.setenv("lorascope_Max_Rank", "seven")
    assert Settings(max_rank=8).max_rank == 8
    assert replace(Settings(max_rank=8), batch_size=3).max_rank == 8


def test_all_wrong_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORASCOPE_MAX_RANK", "many")
    monkeypatch.setenv("LORASCOPE_MAX_SLEEP_S", "long")
    with pytest.raises(UsageError) as caught:
        Settings()
    assert caught.value.message == (
        "LORASCOPE_MAX_RANK must be a whole number, not 'many'; LORASCOPE_MAX_SLEEP_S must be a number, not 'long'"
    )


def test_it_is_a_value() -> None:
    settings = Settings(max_rank=8)
    assert settings == Settings(max_rank=8) != Settings()
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(FrozenInstanceError):
        settings.max_rank = 9  # type: ignore[misc]
    with pytest.raises(TypeError, match="max_rnak"):
        Settings(max_rnak=8)


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORASCOPE_STORE", "s3://bucket/prefix")
    assert default_store_uri() == "s3://bucket/prefix"
    monkeypatch.setenv("LORASCOPE_STORE", "relative")
    monkeypatch.chdir(tmp_path)
    assert default_store_uri() == str(tmp_path / "relative")
    monkeypatch.delenv("LORASCOPE_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_store_uri() == str(tmp_path / "lorascope" / "store")
