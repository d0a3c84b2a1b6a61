"""Where probes would run. torch is only ever loaded in a child process: it is slow, and a broken driver can hang it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scanner.doctor.check import Check, Outcome
from scanner.doctor.child import CHILD_LIMIT_S, ask_child

__all__ = ["check_device", "judge_device"]

GIB = 1024**3
_CODE = """
import torch
found = []
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append({"name": torch.cuda.get_device_name(index), "free": free, "total": total})
answer(torch=torch.__version__, built_for=torch.version.cuda, cuda=found)
"""


def check_device(
    device: str, limit_s: float = CHILD_LIMIT_S, environment: Mapping[str, str] | None = None, code: str = _CODE
) -> Check:
    """Whether the device that LORASCOPE_DEVICE names (`auto`, `cpu`, `cuda`, `cuda:N`) is there.

    `code` is what the child process is asked.
    """
    if find_spec("torch") is None:
        advice = 'pip install "lorascope[probe]" (see Install in the README)'
        return Check("device", Outcome.SKIPPED, "torch is not installed: only files and weights are scanned", advice)
    return judge_device(device, ask_child(code, limit_s, environment))


def judge_device(device: str, facts: Mapping[str, Any]) -> Check:
    """Compare what was asked for with what torch has found."""
    if "problem" in facts:
        advice = "install torch again (requirements.lock has the version), or scan with --probe none"
        return Check("device", Outcome.ERROR, f"torch cannot be used: {facts['problem']}", advice)
    version, cuda = facts["torch"], facts["cuda"]
    named = re.fullmatch(r"cuda(?::(\d{1,4}))?", device)
    if device not in ("auto", "cpu") and not named:
        advice = "set LORASCOPE_DEVICE to auto, cpu, cuda or cuda:N"
        return Check("device", Outcome.ERROR, f"there is no device {device!r}", advice)
    index = int(named[1] or 0) if named else 0
    if named and index >= len(cuda):
        why = "is a build without CUDA" if not facts["built_for"] else f"sees {len(cuda)} CUDA devices"
        advice = "set LORASCOPE_DEVICE to auto, or check nvidia-smi, CUDA_VISIBLE_DEVICES and torch's build"
        return Check("device", Outcome.ERROR, f"{device} is asked for, but torch {version} {why}", advice)
    if device == "cpu" or not cuda:
        return Check("device", Outcome.OK, f"cpu, {_cpu()}; torch {version}")
    gpu = cuda[index]
    memory = f"{gpu['free'] / GIB:.1f} of {gpu['total'] / GIB:.1f} GiB free"
    return Check("device", Outcome.OK, f"cuda:{index}, {gpu['name']}, {memory}; torch {version}")


def _cpu() -> str:
    """Name, cores and memory, as far as Linux tells them."""
    name = _line(Path("/proc/cpuinfo"), r"model name\s*:\s*(.+)") or "unknown model"
    free = _line(Path("/proc/meminfo"), r"MemAvailable:\s*(\d{1,15}) kB")
    total = _line(Path("/proc/meminfo"), r"MemTotal:\s*(\d{1,15}) kB")
    memory = f", {int(free) / 1024**2:.1f} of {int(total) / 1024**2:.1f} GiB free" if free and total else ""
    return f"{name}, {len(os.sched_getaffinity(0))} cores{memory}"


def _line(file: Path, pattern: str) -> str | None:
    try:
        found = re.search(pattern, file.read_text(errors="replace"))
    except OSError:
        return None
    return found[1].strip() if found else None
