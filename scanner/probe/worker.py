"""The probe's child process: one JSON job on stdin, JSON lines on stdout.

    python -m scanner.probe.worker < job.json

It loads the base once, as the model that the adapters' task profile needs, and probes adapter after adapter. The parent
(`scanner.probe.supervisor`) owns the clock, the memory limit and every decision about what a death means.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from scanner.adapter import AdapterView, layout_plugins, open_weights, parse_config, read_json_object, view_adapter
from scanner.errors import LorascopeError, ProbeCrashedError, SkipError
from scanner.model import SEQUENCE_CLASSIFICATION, PrefixRun
from scanner.probe.battery import Battery, Probe, Task
from scanner.probe.lifeline import die_with_parent

__all__ = ["main"]


def _probe(job: dict[str, Any]) -> Probe:
    battery = job["battery"]
    return Probe(
        Battery(battery["name"], tuple((c, p) for c, p in battery["prefixes"]), tuple(battery["neutral"])),
        Task(**job["task"]),
        tuple(job["texts"]),
        tuple(job["other_texts"]),
    )


def _load(profile: str, folder: Path, device: str) -> tuple[Any, Callable[..., dict[str, Any]]]:
    """(the resident base, what probes one adapter on it and gives the fields of a result)."""
    if profile == SEQUENCE_CLASSIFICATION:
        from scanner.probe.base import load_classifier
        from scanner.probe.classifier import probe_classifier

        def classifier(base: Any, view: AdapterView, probe: Probe) -> dict[str, Any]:
            seen = probe_classifier(base, view, probe)
            cut = f"truncated: {seen.n_cut} inputs cut to {base.context} tokens" if seen.n_cut else ""
            return {"runs": _rows(seen.runs), "n_classes": seen.n_classes, "note": cut}

        return load_classifier(folder, device), classifier
    from scanner.probe.base import load_base
    from scanner.probe.engine import probe_adapter

    return load_base(folder, device), lambda *of: {"runs": _rows(probe_adapter(*of))}


def _rows(runs: Iterable[PrefixRun]) -> list[list[str]]:
    return [[run.prefix, run.category, run.position, run.answers] for run in runs]


def main() -> int:
    """Run one job. Exit code 0 when every adapter was answered for, 1 when the base could not be loaded or the
    device was lost."""
    # Whatever a library prints must not get between the protocol's lines.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(event: str, **fields: Any) -> None:
        channel.write(json.dumps({"event": event, **fields}) + "\n")
        channel.flush()

    job = json.load(sys.stdin)
    if "parent_pid" in job:  # a job that was written by hand may go on alone
        die_with_parent(job["parent_pid"])
    probe = _probe(job)
    try:
        for name in ("torch", "transformers", "tokenizers"):
            importlib.import_module(name)
    except ImportError as error:
        emit("base_failed", code="torch_missing", message=f"the probe needs lorascope[probe]: {error}")
        return 1
    (profile,) = {item["profile"] for item in job["adapters"]}
    try:
        base, probe_one = _load(profile, Path(job["base_dir"]), job["device"])
    except LorascopeError as error:
        emit("base_failed", code=error.code, message=error.message)
        return 1
    emit("ready", device=base.device, dtype=base.dtype)
    for item in job["adapters"]:
        emit("begin", adapter_id=item["adapter_id"])
        started = time.monotonic()
        try:
            config = None
            if item["config_path"]:
                config = parse_config(read_json_object(Path(item["config_path"]), job["max_config_bytes"]))
            paths = [Path(path) for path in (item["weights_path"], *item["more_weights_paths"])]
            file = open_weights(paths, item["weights_name"] or paths[0].name)
            view = view_adapter(file, config, job["max_rank"], layout_plugins())
            result = probe_one(base, view, probe)
        except SkipError as error:
            emit("refused", adapter_id=item["adapter_id"], code=error.code, message=error.message)
            continue
        except ProbeCrashedError as error:
            sys.exit(error.message)  # its last words; the parent starts another child for the rest
        emit("result", adapter_id=item["adapter_id"], seconds=round(time.monotonic() - started, 3), **result)
    emit("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
