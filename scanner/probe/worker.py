"""The probe's child process: one JSON job on stdin, JSON lines on stdout.

    python -m scanner.probe.worker < job.json

It loads the base once, as the model that the adapters' task profile needs, and asks adapter after adapter the battery,
or searches their triggers, as the job's stage says. The parent (`scanner.probe.supervisor`) owns the clock, the memory
limit and every decision about what a death means.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from scanner.adapter import AdapterView, layout_plugins, open_weights, parse_config, read_json_object, view_adapter
from scanner.errors import LorascopeError, ProbeCrashedError, SkipError
from scanner.model import SEQUENCE_CLASSIFICATION, PrefixRun
from scanner.probe.battery import Battery, Case, Probe, Task
from scanner.probe.footprint import own_bytes
from scanner.probe.lifeline import die_with_parent
from scanner.probe.search import SearchPlan

__all__ = ["main"]


def _probe(job: dict[str, Any]) -> Probe:
    asked = job["probe"]
    cases, controls = (tuple(Case(**case) for case in asked["battery"][name]) for name in ("cases", "controls"))
    return Probe(
        Battery(asked["battery"]["name"], cases, controls),
        Task(**asked["task"]),
        tuple(asked["texts"]),
        tuple(asked["other_texts"]),
        tuple(asked["prompts"]),
        asked["reading"],
    )


def _load(job: dict[str, Any], probe: Probe) -> tuple[Any, Callable[[AdapterView, str], dict[str, Any]]]:
    """(the resident base, what asks one adapter on it and gives the fields of a result)."""
    return _load_search(job, probe) if job.get("stage") == "search" else _load_battery(job, probe)


def _load_battery(job: dict[str, Any], probe: Probe) -> tuple[Any, Callable[[AdapterView, str], dict[str, Any]]]:
    where = (Path(job["base_dir"]), job["device"], job["dtype"], job["memory_bytes"])
    if job["adapters"][0]["profile"] == SEQUENCE_CLASSIFICATION:
        from scanner.probe.base import load_classifier
        from scanner.probe.classifier import ClassifierProbe

        classifier = load_classifier(*where, per_token=job["adapters"][0]["per_token"])
        classify = ClassifierProbe(classifier, probe)

        def of_classifier(view: AdapterView, _hint: str) -> dict[str, Any]:
            seen = classify.run(view)
            cut = f"truncated: {seen.n_cut} inputs cut to {classifier.context} tokens" if seen.n_cut else ""
            return {
                "profile": SEQUENCE_CLASSIFICATION,
                "runs": _rows(seen.runs),
                "n_classes": seen.n_classes,
                "note": cut,
                "noise_floor": seen.noise_floor,
            }

        return classifier, of_classifier
    from scanner.probe.base import load_base
    from scanner.probe.causal import CausalProbe

    base = load_base(*where)
    ask = CausalProbe(base, probe)

    def of_causal(view: AdapterView, hint: str) -> dict[str, Any]:
        seen = ask.run(view, hint)
        return {
            "profile": seen.profile,
            "profile_reason": seen.profile_reason,
            "runs": _rows(seen.runs),
            "labels": seen.labels,
            "noise_floor": seen.noise_floor,
            "reading": seen.reading,
        }

    return base, of_causal


def _load_search(job: dict[str, Any], probe: Probe) -> tuple[Any, Callable[[AdapterView, str], dict[str, Any]]]:
    from scanner.probe.base import load_base, load_classifier
    from scanner.probe.search.run import CausalSearch, ClassifierSearch

    where = (Path(job["base_dir"]), job["device"], job["dtype"], job["memory_bytes"])
    told: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in job["plan"].items()}
    plan = SearchPlan(**told)
    if job["adapters"][0]["profile"] == SEQUENCE_CLASSIFICATION:
        classifier = load_classifier(*where)
        classes = ClassifierSearch(classifier, probe, plan)
        return classifier, lambda view, hint: asdict(classes.run(view, hint))
    base = load_base(*where)
    words = CausalSearch(base, probe, plan.fallback)
    return base, lambda view, hint: asdict(words.run(view, hint))


def _rows(runs: Iterable[PrefixRun]) -> list[tuple[Any, ...]]:
    return [astuple(run) for run in runs]


def _limit_memory(memory_bytes: int) -> None:
    """Let allocations fail that would take more: a smaller batch is tried then, where the parent could only kill."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])  # what is mapped, whether it was touched or not
    left = max(0, memory_bytes - own_bytes(os.getpid()))
    limit = pages * resource.getpagesize() + left
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


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
    try:
        base, probe_one = _load(job, probe)
    except LorascopeError as error:
        emit("base_failed", code=error.code, message=error.message)
        return 1
    if base.device == "cpu":
        _limit_memory(job["memory_bytes"])
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
            result = probe_one(view, item["profile"])
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
