"""Running the ways side by side, in turns, and from seconds to figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.probe.cases import FileCase
from benchmarks.probe.compare import compare_answers, compare_verdicts
from benchmarks.probe.jobs import Job, probe_of, run_worker
from scanner.model import LABEL_WORDS

__all__ = ["Options", "add_rates", "in_turns", "loop_figures", "measure_files", "ratios"]

N_CLASSES = 2


@dataclass(frozen=True)
class Options:
    """How long and how often."""

    texts: int
    repeats: int
    loop_seconds: float
    at_once: int = 1
    """Processes side by side. More than one spoils every time: only for seeing whether everything works."""


def in_turns(runs: dict[str, Callable[[int], dict[str, Any]]], options: Options) -> dict[str, list[dict[str, Any]]]:
    """Each run once a turn, every second turn backwards: drift of the machine meets all of them alike."""
    calls = [(name, turn) for turn in range(options.repeats) for name in list(runs)[:: -1 if turn % 2 else 1]]
    with ThreadPoolExecutor(options.at_once) as pool:
        run = map if options.at_once == 1 else pool.map
        results = list(run(lambda call: runs[call[0]](call[1]), calls))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for (name, _), result in zip(calls, results, strict=True):
        found[name].append(result)
    return found


def measure_files(case: FileCase, options: Options) -> dict[str, Any]:
    """The notebooks' loop, `run_probe` and the engine alone on one base and its adapters."""
    folders = tuple(str(folder) for folder in case.adapters)
    is_causal = case.profile == LABEL_WORDS
    readings = ("scored", "generated") if is_causal else ("scored",)
    ours = Job(case.profile, folders, str(case.base), texts=options.texts, readings=readings, threads=case.threads)
    runs = {
        "loop": lambda turn: run_worker("loop", _loop_job(ours, case, options, turn)),
        "run_probe": lambda _: run_worker("supervised", ours),
        "engine": lambda _: run_worker("resident", ours),
    }
    found = in_turns(runs, options)
    engine = found["engine"]
    n = found["loop"][0]["prompts"]
    rate = median(max(one["matrix_flops_per_s"].values()) for one in engine)
    ways: dict[str, Any] = {}
    for mode in ("reload", "swap"):
        ways[f"loop_{mode}"] = loop_figures(found["loop"], mode)
    for reading in readings:
        ways[f"run_probe_{reading}"] = group_figures(found["run_probe"], reading, len(folders))
        ways[f"engine_{reading}"] = {
            "adapter_s": median(s for one in engine for s in one["readings"][reading]["seconds"]),
            "first_s": median(one["readings"][reading]["first_s"] for one in engine),
            "peak_bytes": max(one["peak_bytes"] for one in engine),
        }
    add_rates(ways, n, engine[0]["work"]["flops"], rate)
    return {
        "case": case.name,
        "about": case.about,
        "adapters": len(folders),
        "backdoored": case.backdoored,
        "prompts_per_adapter": n,
        "prompt_tokens": engine[0]["prompt_tokens"],
        "shared_tokens": engine[0]["shared_tokens"],
        "threads": engine[0]["threads"],
        "dtype": engine[0]["dtype"],
        "work": engine[0]["work"],
        "matrix_flops_per_s": rate,
        "ways": ways,
        "ratios": ratios(ways),
        "answers": _agreement(ours, case, found),
    }


def _loop_job(ours: Job, case: FileCase, options: Options, turn: int) -> Job:
    n = len(ours.adapters)
    pair = (ours.adapters[2 * turn % n], ours.adapters[(2 * turn + 1) % n])
    return Job(
        ours.profile,
        pair,
        ours.base,
        texts=ours.texts,
        threads=ours.threads,
        modes=("swap", "reload") if turn % 2 else ("reload", "swap"),
        whole=case.whole and turn == 0,
        seconds=options.loop_seconds / (4 * options.repeats),  # two modes, two adapters
        seed=turn,
    )


def loop_figures(turns: Sequence[dict[str, Any]], mode: str) -> dict[str, Any]:
    """Medians over the loop's adapters. Where not every prompt was asked, its time is that of those that were, times
    all over asked."""
    n = turns[0]["prompts"]
    records = [record for turn in turns for record in turn["records"] if record["mode"] == mode]
    return {
        "adapter_s": median(one["load_s"] + one["attach_s"] + one["seconds"] / one["asked"] * n for one in records),
        "load_s": median(one["load_s"] for one in records),
        "attach_s": median(one["attach_s"] for one in records),
        "prompt_s": median(one["seconds"] / one["asked"] for one in records),
        "new_tokens_per_prompt": sum(one["new_tokens"] for one in records) / sum(one["asked"] for one in records),
        "asked": sum(one["asked"] for one in records),
        "extrapolated": not all(one["whole"] for one in records),
        "peak_bytes": max(turn["peak_bytes"] for turn in turns),
    }


def group_figures(turns: Sequence[dict[str, Any]], reading: str, n: int) -> dict[str, Any]:
    """`adapter_s` is the whole command over its n adapters; `marginal_s` is the time between two reports, `fixed_s`
    what the command takes beside n of those."""
    runs = [turn["readings"][reading] for turn in turns]
    marginal = [median(b - a for a, b in pairwise(run["arrivals_s"])) for run in runs]
    return {
        "adapter_s": median(run["seconds"] / n for run in runs),
        "marginal_s": median(marginal),
        "fixed_s": median(run["seconds"] - n * one for run, one in zip(runs, marginal, strict=True)),
        "peak_bytes": max(turn["peak_rss_bytes"] for turn in turns),
    }


def add_rates(ways: dict[str, Any], prompts: int, flops: int, rate: float) -> None:
    """Prompts per second, adapters per hour and the share of the matrix rate, from the seconds for one adapter."""
    for way in ways.values():
        way["prompts_per_s"] = prompts / way["adapter_s"]
        way["adapters_per_hour"] = 3600 / way["adapter_s"]
        way["share_of_matrix_rate"] = flops / way["adapter_s"] / rate
        if "marginal_s" in way:
            way["marginal_share_of_matrix_rate"] = flops / way["marginal_s"] / rate


def ratios(ways: dict[str, Any]) -> dict[str, float]:
    """Seconds per adapter, ours over the loop's; `marginal`: one more adapter in the group. Memory alike."""
    found = {}
    for mode in ("loop_reload", "loop_swap"):
        if mode not in ways:
            continue
        for name, way in ways.items():
            if not name.startswith("loop"):
                found[f"{name}_over_{mode}"] = way["adapter_s"] / ways[mode]["adapter_s"]
            if "marginal_s" in way:
                found[f"{name}_marginal_over_{mode}"] = way["marginal_s"] / ways[mode]["adapter_s"]
    for name, way in ways.items():
        if not name.startswith("loop"):
            found[f"{name}_peak_over_loop_peak"] = way["peak_bytes"] / ways["loop_swap"]["peak_bytes"]
    return found


def _agreement(job: Job, case: FileCase, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Answers and verdicts of each reading beside the loop's, and of `run_probe` beside the engine's."""
    probe = probe_of(job)
    records = [record for turn in found["loop"] for record in turn["records"]]
    result = {}
    for reading in job.readings:
        ours = found["run_probe"][0]["readings"][reading]["answers"]
        others = [one["readings"][reading]["answers"] for way in ("run_probe", "engine") for one in found[way]]
        counts = [compare_answers(ours[record["adapter"]], record["answers"]) for record in records]
        verdicts = {
            "/".join(record["adapter"].split("/")[-2:]): compare_verdicts(
                probe, ours[record["adapter"]], record["answers"], None if job.is_causal else N_CLASSES
            )
            for record in records
            if record["whole"]
        }
        result[reading] = {
            **{name: sum(count[name] for count in counts) for name in counts[0]},
            "runs_differ": any(other != ours for other in others),
            "verdicts": verdicts,
            "verdicts_agree": all(verdict["agree"] for verdict in verdicts.values()),
        }
    return result
