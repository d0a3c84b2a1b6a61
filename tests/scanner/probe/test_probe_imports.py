"""What the probe may import: its workers run where only torch is installed, its callers where torch is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Refuse())
import {module}
loaded = {heavy} & {{name.split(".")[0] for name in sys.modules}}
assert not loaded, loaded
"""
STORE_SIDE = {"prefect", "pyarrow", "duckdb", "pydantic", "huggingface_hub", "fastapi"}
SLOW = {"duckdb", "scipy", "pydantic", "rich", "email", "asyncio"}
"""Each would be a twentieth or more of the CPU time of a small scan."""
CHILD_ONLY = ("attach", "causal", "classifier", "engine", "generative", "label_words", "memory", "noise")
"""They import transformers, which needs the Hub's client."""
MODEL_SIDE = {"torch", "transformers", "peft", "safetensors"}


@pytest.mark.parametrize(
    ("module", "blocked", "heavy"),
    [
        ("scanner.probe", STORE_SIDE | MODEL_SIDE, {"scipy"}),
        ("scanner.probe.worker", STORE_SIDE | MODEL_SIDE, set()),
        ("scanner.probe.profile", STORE_SIDE | MODEL_SIDE, {"scipy"}),
        ("scanner.probe.collapse", STORE_SIDE | MODEL_SIDE, {"scipy"}),
        ("scanner.probe.judge", STORE_SIDE | MODEL_SIDE, {"scipy"}),
        ("scanner.probe.footprint", STORE_SIDE | MODEL_SIDE, {"scipy"}),
        *((f"scanner.probe.{name}", STORE_SIDE - {"huggingface_hub"}, set()) for name in CHILD_ONLY),
        ("scanner.probe.base", STORE_SIDE, {"torch"}),
        ("scanner.weights", STORE_SIDE | MODEL_SIDE, {"scipy"}),
        ("scanner.calibration", STORE_SIDE | MODEL_SIDE, set()),
        ("scanner.pipeline.scan", {"prefect"} | MODEL_SIDE, {"huggingface_hub", *SLOW}),
        ("scanner.report", {"prefect"} | MODEL_SIDE, set()),
    ],
)
def test_imports(module: str, blocked: set[str], heavy: set[str]) -> None:
    code = BLOCKED.format(module=module, blocked=blocked, heavy=heavy or "set()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
