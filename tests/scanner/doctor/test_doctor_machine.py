"""Versions, device, disks, and the running of checks."""

from __future__ import annotations

import sys
import threading
import tomllib
from pathlib import Path

import pytest

from scanner.doctor import (
    VERSION_NAMES,
    Check,
    Group,
    Outcome,
    ask_child,
    check_device,
    check_versions,
    installed_versions,
    one,
    run_groups,
    worst,
)
from scanner.doctor.check import secrets_of
from scanner.doctor.device import judge_device
from scanner.doctor.disk import check_room
from scanner.doctor.versions import _ranges

PROJECT = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())["project"]
RANGES = _ranges(
    PROJECT["requires-python"],
    [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)],
)
GOOD = {
    "python": "3.12.1", "prefect": "3.8.8", "fastapi": "0.150.0", "sqlalchemy": "2.0.58", "huggingface-hub": "2.4.0",
    "torch": "2.13.0+cu130", "transformers": "5.23.0", "peft": "0.21.2",
}  # fmt: skip


def outcome_of(name: str, **versions: str) -> Outcome:
    changed = {key.replace("_", "-"): value for key, value in versions.items()}
    checks = {check.name: check for check in check_versions({**GOOD, **changed}, RANGES)}
    assert tuple(checks) == VERSION_NAMES
    others = {check.outcome for other, check in checks.items() if other != f"version {name}"}
    assert others == {Outcome.OK}
    found = checks[f"version {name}"]
    assert bool(found.advice) == (found.outcome is not Outcome.OK)
    return found.outcome


@pytest.mark.parametrize(
    ("name", "version", "outcome"),
    [
        ("python", "3.10.14", Outcome.ERROR),
        ("python", "3.11.0", Outcome.OK),
        ("fastapi", "0.151.0", Outcome.ERROR),
        ("sqlalchemy", "2.1.0b1", Outcome.ERROR),
        ("sqlalchemy", "2.1.0", Outcome.ERROR),
        ("huggingface-hub", "1.30.9", Outcome.ERROR),
        ("huggingface-hub", "1.31.0", Outcome.OK),
        ("huggingface-hub", "3.0.0", Outcome.ERROR),
        ("prefect", "3.9.0", Outcome.ERROR),
        ("torch", "2.12.1", Outcome.WARNING),
        ("torch", "2.13.0", Outcome.OK),
        ("transformers", "6.0.0", Outcome.WARNING),
        ("peft", "0.22.0", Outcome.WARNING),
        ("fastapi", "not-a-version", Outcome.ERROR),
    ],
)
def test_versions(name: str, version: str, outcome: Outcome) -> None:
    assert outcome_of(name, **{name: version}) is outcome


def test_what_is_not_installed() -> None:
    checks = {check.name: check for check in check_versions({"python": "3.11.2"}, RANGES)}
    assert checks["version prefect"].outcome is Outcome.ERROR
    assert checks["version torch"].outcome is checks["version peft"].outcome is Outcome.SKIPPED
    assert {check.outcome for check in check_versions(GOOD, {})} == {Outcome.SKIPPED}
    assert installed_versions()["python"] == ".".join(map(str, sys.version_info[:3]))


def test_the_real_device() -> None:
    check = check_device("cpu")
    assert check.outcome is Outcome.OK and "cpu" in check.message and "torch" in check.message


def test_devices_that_are_not_there() -> None:
    two = [{"name": "Card", "free": 70 * 1024**3, "total": 80 * 1024**3}] * 2
    with_cuda = {"torch": "2.13.0", "built_for": "13.0", "cuda": two}
    without = {"torch": "2.13.0+cpu", "built_for": None, "cuda": []}
    assert judge_device("auto", with_cuda).message == "cuda:0, Card, 70.0 of 80.0 GiB free; torch 2.13.0"
    assert judge_device("cuda:1", with_cuda).message.startswith("cuda:1")
    assert judge_device("cpu", with_cuda).message.startswith("cpu")
    assert judge_device("auto", without).outcome is Outcome.OK
    for device, facts in (("cuda:2", with_cuda), ("cuda", without), ("tpu", with_cuda), ("cuda:x", with_cuda)):
        check = judge_device(device, facts)
        assert check.outcome is Outcome.ERROR and check.advice, device


def test_a_torch_that_hangs_or_breaks() -> None:
    hanging = check_device("auto", limit_s=1.0, code="import time; time.sleep(600)")
    assert hanging.outcome is Outcome.ERROR and "within 1 s" in hanging.message
    broken = check_device("auto", code="raise ImportError('libcudart.so.13: cannot open')")
    assert broken.outcome is Outcome.ERROR and "libcudart" in broken.message and broken.advice


def test_children() -> None:
    assert ask_child("print('noise'); answer(a=1)") == {"a": 1}
    assert "before it could answer" in ask_child("import os; os._exit(3)")["problem"]
    # A grandchild that holds the output open does not hold us.
    left = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); answer(a=2)"
    )
    assert ask_child(left) == {"a": 2}


def test_room(tmp_path: Path) -> None:
    assert check_room("x", tmp_path / "not" / "yet", 1, "more").outcome is Outcome.OK
    assert not (tmp_path / "not").exists()
    little = check_room("x", tmp_path, 1024**6, "more")
    assert (little.outcome, little.advice) == (Outcome.WARNING, "more")
    (tmp_path / "file").write_text("")
    assert check_room("x", tmp_path / "file" / "cache", 1, "more").outcome is Outcome.ERROR


def test_a_hanging_and_a_failing_check_cost_only_themselves() -> None:
    never = threading.Event()

    def hang() -> list[Check]:
        never.wait()
        return []

    def fail() -> Check:
        raise RuntimeError("with hf_secret and http://ann:pass@host/x")

    groups = [Group(("a", "b"), 0.2, hang), one("c", 30, fail), one("d", 30, lambda: Check("d", Outcome.OK, "fine"))]
    checks, is_hanging = run_groups(groups, ["hf_secret"])
    never.set()
    assert is_hanging and worst(checks) is Outcome.ERROR
    assert [(check.name, check.outcome) for check in checks] == [
        ("a", Outcome.ERROR), ("b", Outcome.SKIPPED), ("c", Outcome.ERROR), ("d", Outcome.OK),
    ]  # fmt: skip
    assert checks[0].message == "no answer within 0.2 s" and checks[0].advice
    assert checks[2].message.endswith("RuntimeError: with *** and http://host/x")


def test_worst() -> None:
    def checks(*outcomes: Outcome) -> list[Check]:
        return [Check("x", outcome, "") for outcome in outcomes]

    assert worst(checks(Outcome.OK, Outcome.SKIPPED)) is Outcome.OK
    assert worst(checks(Outcome.WARNING, Outcome.OK)) is Outcome.WARNING
    assert worst(checks(Outcome.WARNING, Outcome.ERROR)) is Outcome.ERROR


def test_which_variables_are_secret() -> None:
    environment = {"HF_TOKEN": "hf_abcdef", "AWS_SECRET_ACCESS_KEY": "hf_abcdefgh", "TOKENIZERS_PARALLELISM": "nothing"}
    environment |= {"MY_PASSWORD": "x", "HOME": "/home/ann"}
    assert secrets_of(environment, ["from-a-file", None]) == ("hf_abcdefgh", "from-a-file", "hf_abcdef")
