"""A short run of every fuzz target, and proof that the harness sees what it looks for."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import fuzz_parsers
import fuzz_pickles
import harness
import pytest
from harness import Target, mutate, run
from pickle_bombs import BOMBS

from scanner.adapter.pickles import inspect_pickle
from scanner.adapter.pickles_machine import MAX_OPCODES
from scanner.errors import MalformedFileError

TARGETS = (*fuzz_pickles.TARGETS, *fuzz_parsers.TARGETS)
INPUTS = {"template": 60}
"""Of one run, where it is not `DEFAULT_INPUTS`: a template is rendered on some forty chats."""
DEFAULT_INPUTS = 1_500


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_short_run_finds_nothing(target: Target, seed: int) -> None:
    inputs = INPUTS.get(target.name, DEFAULT_INPUTS)
    outcome = run(target, seed=seed, inputs=inputs)
    assert outcome.failures == []
    assert outcome.inputs == inputs
    if target.name in INPUTS:
        assert outcome.results["read"] and outcome.results["MalformedFileError"]
        return
    # Both ends are reached: files that are read, and files that are refused.
    assert outcome.results["read"] > 20
    if target.name == "pickle-open":
        assert outcome.results["MalformedFileError"] > 20 and outcome.results["UnsupportedError"] > 20


@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_bombs_are_bounded(bomb: str) -> None:
    """In memory, and in opcodes; how long they take is measured, not asserted: see `pickle_bombs`."""
    target = Target("bomb", lambda marker: [b"\x80\x04}.", BOMBS[bomb]], inspect_pickle)
    outcome = run(target, seed=0, inputs=2)
    assert [failure for failure in outcome.failures if " took " not in failure] == []
    assert outcome.results == {"read": 2}


def test_the_opcodes_of_all_members_count_together(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(BOMBS["many members"])
    problem = next(p for p in inspect_pickle(path).problems if p.code == "limit_exceeded")
    assert f"{MAX_OPCODES + 1:,}" in problem.message and f"{MAX_OPCODES:,}" in problem.message


def _target(read) -> Target:  # type: ignore[no-untyped-def]
    return Target("self-test", lambda marker: [b"abc", str(marker).encode()], read)


def test_the_harness_sees_foreign_exceptions_runs_and_payloads(tmp_path: Path) -> None:
    def foreign(path: Path) -> None:
        raise KeyError("x")

    def own(path: Path) -> None:
        raise MalformedFileError("x")

    def runs(path: Path) -> None:
        eval("1 + 1")  # noqa: S307

    def leaves(path: Path) -> None:
        (path.parent / "it_ran").touch()

    assert run(_target(own), seed=0, inputs=5).failures == []
    for read, word in ((foreign, "KeyError"), (runs, "exec"), (leaves, "payload")):
        outcome = run(_target(read), seed=0, inputs=2)
        assert len(outcome.failures) == 2 and word in outcome.failures[0]


def test_the_harness_sees_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "MAX_SECONDS", 0.01)
    outcome = run(_target(lambda path: time.sleep(0.05)), seed=0, inputs=2)
    assert "took" in outcome.failures[0]
    monkeypatch.setattr(harness, "MAX_SECONDS", 60.0)
    monkeypatch.setattr(harness, "MAX_GROWTH_BYTES", 50 * 2**20)

    def large(path: Path) -> None:
        if path.stat().st_size > 3:
            len(os.urandom(100 * 2**20))

    assert "memory grew" in run(_target(large), seed=0, inputs=3).failures[-1]


def test_the_same_seed_gives_the_same_inputs() -> None:
    import random

    corpus = [b"abcdefgh" * 50, b"\x00" * 90]
    first = [mutate(random.Random(7), corpus[0], corpus, (b"TOKEN",)) for _ in range(2)]
    assert first[0] == first[1]
    many = {mutate(random.Random(seed), corpus[0], corpus, (b"TOKEN",)) for seed in range(200)}
    assert len(many) > 150


def test_main_reports_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError

    assert harness.main([_target(lambda path: None)], ["--seconds", "0.05"]) == 0
    assert harness.main([_target(broken)], ["--seconds", "0.05", "--seed", "3"]) == 1
    printed = capsys.readouterr().out
    assert "of seed 3" in printed and "ZeroDivisionError" in printed
    assert "pickle" not in sys.argv
