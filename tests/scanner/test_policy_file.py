"""Thresholds from a file: the shipped one says the defaults, a user's replaces some, a wrong one is refused."""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from scanner.calibration import Policy
from scanner.errors import UsageError
from scanner.policy_file import DEFAULTS, load_policy


def test_the_shipped_file_says_the_defaults() -> None:
    shipped = tomllib.loads(DEFAULTS.read_text(encoding="utf-8"))
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in shipped.items()} == asdict(Policy())
    assert load_policy(str(DEFAULTS)) == Policy() == load_policy()


def test_what_a_file_leaves_out_stays(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('q = 0.01\nstream_decides = true\nweight_features = ["delta_frob_mean"]\n')
    found = load_policy(str(path))
    assert (found.q, found.stream_decides, found.weight_features) == (0.01, True, ("delta_frob_mean",))
    assert found.alpha == Policy().alpha
    assert found.version != Policy().version


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q = 0.01\nQ = 3", "no threshold is called 'Q'"),
        ("q = 0", "q: Input should be greater than 0"),
        ("alpha = 1.5", "alpha: Input should be less than 1"),
        ('alpha = "small"', "alpha: Input should be a valid number"),
        ("weight_features = []", "weight_features"),
        ('weight_features = ["global_frobN_sdt"]', "no weight feature is called 'global_frobN_sdt'"),
        ("q 0.01", "is no TOML"),
        ("q = 0.01 # " + "x" * 70_000, "more than 65536 bytes"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_policy(str(path))
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the policy"):
        load_policy(str(tmp_path / "none.toml"))
