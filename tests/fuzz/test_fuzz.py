"""A short run of every fuzz target, a fixed number of inputs. Longer ones: `python -m tests.fuzz.run TARGET`."""

from __future__ import annotations

import pytest

from tests.fuzz.harness import Failure, Target, fuzz
from tests.fuzz.targets import TARGETS, targets

EXECUTIONS = {"safetensors": 1_000, "pickles": 1_500, "config": 1_000, "template": 40}


@pytest.mark.parametrize("name", TARGETS)
def test_short_run(name: str) -> None:
    tally = fuzz(targets()[name], seed=7, executions=EXECUTIONS[name])
    assert tally.executions == EXECUTIONS[name]
    assert tally.outcomes["accepted"] < tally.executions  # mutations do reach the checks
    assert any(kind != "accepted" for kind in tally.outcomes)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_itself_is_accepted(name: str) -> None:
    target = targets()[name]
    for data in target.corpus:
        if name != "pickles":
            target.run(data)


def test_the_harness_notices_foreign_errors() -> None:
    def broken(data: bytes) -> None:
        if len(data) % 3 == 0:
            raise KeyError("gap")

    with pytest.raises(Failure, match="KeyError"):
        fuzz(Target("broken", [b"abcdef"], broken), seed=1, executions=100)
