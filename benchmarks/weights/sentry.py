"""AdapterSentry from PyPI in a virtual environment of its own: it never shares packages with what it is compared to."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

__all__ = ["VERSION", "Sentry", "cached_sentry", "find_sentry", "frobenius_norms"]

VERSION = "2.0.2"


@dataclass(frozen=True)
class Sentry:
    """An installed AdapterSentry."""

    program: Path
    version: str
    numpy: str
    python: str

    def scan(self, weights: Path, *options: str) -> list[str]:
        """The command that scans one file."""
        return [str(self.program), "scan", str(weights), *options]


def cached_sentry() -> Path:
    """Where `find_sentry` installs the program: a folder of the user's cache."""
    return Path(platformdirs.user_cache_dir("lorascope")) / f"adaptersentry-{VERSION}" / "bin" / "adaptersentry"


def find_sentry(program: Path | None) -> Sentry:
    """The given program, or the cached one, which is installed where it is missing.

    Raises:
        RuntimeError: it cannot be installed, or is another version than the one that is compared.
    """
    if program is None:
        program = cached_sentry()
        if not program.exists():
            _install(program.parents[1])
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    if said != VERSION:
        raise RuntimeError(f"AdapterSentry {said} was found, the comparison is with {VERSION}")
    ask = "import numpy, platform; print(numpy.__version__, platform.python_version())"
    answer = subprocess.run([program.with_name("python"), "-c", ask], capture_output=True, text=True, check=True)
    numpy, python = answer.stdout.split()
    return Sentry(program, said, numpy, python)


def _install(folder: Path) -> None:
    print(f"installing adaptersentry {VERSION} from PyPI", file=sys.stderr)
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", f"adaptersentry=={VERSION}"],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"AdapterSentry could not be installed: {done.stderr[-1000:]}")


def frobenius_norms(report: str) -> tuple[dict[str, float], float]:
    """‖ΔW‖_F of each module (`layers.N.name`), and the seconds its own clock gives, from a `full-json` report.

    Its `log_rms` is ln(‖ΔW‖_F / √(out·in)) with ΔW = α/r · B·A.
    """
    found: dict[str, Any] = json.loads(report)
    if found["status"] != "ok" or found["coverage"]["n_modules"] != found["coverage"]["n_modules_analyzed"]:
        raise RuntimeError(f"AdapterSentry did not analyse everything: {found['coverage']}")
    norms = {}
    for module in found["modules"]:
        (rank_a, into), (out, rank_b) = module["shape_a"], module["shape_b"]
        if rank_a != rank_b:
            raise RuntimeError(f"AdapterSentry paired factors of ranks {rank_a} and {rank_b}")
        name = f"layers.{module['layer']}.{module['module']}"
        norms[name] = math.exp(module["features"]["log_rms"]) * math.sqrt(out * into)
    return norms, found["scan"]["wall_time_ms"] / 1000
