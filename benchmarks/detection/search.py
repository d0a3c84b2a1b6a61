"""Search the built adapters: `python -m benchmarks.detection.search --jobs 2`, resumable as the build is.

Beside each adapter's `truth.json` comes `PLAN_ID.json`: scores, triggers with their local batteries, forward passes and
processor time. What lies there is not searched again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import platformdirs

from benchmarks.cohort.recipe import BASE_ID, ENCODER_ID, REPO_ROOT
from benchmarks.detection.adapters import BASES
from benchmarks.detection.lineages import PARTS
from benchmarks.weights.bare import WEIGHTS
from scanner.probe import SearchPlan, load_probe, plan_for

__all__ = [
    "PROFILES",
    "SMALL_PLAN",
    "SMALL_TEXTS",
    "TEXTS",
    "base_folder",
    "built",
    "default_cache",
    "found_of",
    "plan_id_of",
    "plan_of",
    "read_truth",
]

TEXTS = 60
SMALL_TEXTS = {"label_words": 8, "generative": 8, "encoder": 16, "minilm": 16}
"""With fewer than 16 there is no search: free answers would take most of the time."""
SMALL_PLAN = SearchPlan(
    positions=("prefix",),
    search_texts=4,
    climb_texts=2,
    first_texts=1,
    gradient_texts=1,
    noise_rows=4,
    pool=8,
    attack_pool=4,
    beam=1,
    proposals=2,
    pool_proposals=1,
    keep=2,
    max_tokens=2,
    wordings=1,
    random_strings=1,
    forced_tokens=32,
    refrain_strings=1,
)
"""Finds nothing, in a second: does everything work?"""
PROFILES = {
    "label_words": "label-words",
    "encoder": "sequence-classification",
    "minilm": "sequence-classification",
    "generative": "generative",
}
_searches: dict[str, Any] = {}


def default_cache() -> Path:
    """Where adapters lie when nobody says."""
    return Path(platformdirs.user_cache_dir("lorascope")) / "detection"


def built(cache: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder, truth) of every adapter that is done."""
    for path in sorted(cache.glob("*/*/truth.json")):
        yield path.parent, json.loads(path.read_text(encoding="utf-8"))


def read_truth(folder: Path) -> dict[str, Any] | None:
    """What is known about an adapter; None where it is not built."""
    path = folder / "truth.json"
    truth: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return truth


def plan_of(cohort: str, *, small: bool = False) -> SearchPlan:
    """How hard to look on adapters of a cohort."""
    return SMALL_PLAN if small else plan_for(BASES[cohort])


def plan_id_of(cohort: str, *, small: bool = False) -> str:
    """The id that scores of a cohort have."""
    return plan_of(cohort, small=small).id_for(PROFILES[cohort])


def found_of(folder: Path, plan_id: str) -> dict[str, Any] | None:
    """What the search found on an adapter, with its `plan_id`; None where it has not looked yet."""
    path = folder / f"{plan_id}.json"
    # The plan that was used may be another one, and tells so; searches of before there was a choice do not.
    return {"plan_id": plan_id, **json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else None


def base_folder(cohort: str) -> Path:
    """Where a cohort's base lies; MiniLM is fetched once."""
    if cohort == "minilm":
        from benchmarks.probe.minilm import find_minilm

        return find_minilm()
    return REPO_ROOT / "examples" / "demo_hub" / (ENCODER_ID if cohort == "encoder" else BASE_ID)


def _search_of(cohort: str, small: bool) -> Any:
    """The resident search of a cohort's base; one at a time."""
    if cohort not in _searches:
        from scanner.probe.base import load_base, load_classifier
        from scanner.probe.search.run import CausalSearch, ClassifierSearch

        _searches.clear()
        probe, folder = load_probe("broad", None, SMALL_TEXTS[cohort] if small else TEXTS), base_folder(cohort)
        is_causal = PROFILES[cohort] != "sequence-classification"
        base: Any = load_base(folder, "cpu") if is_causal else load_classifier(folder, "cpu")
        kind: Any = CausalSearch if is_causal else ClassifierSearch
        _searches[cohort] = kind(base, probe, plan_of(cohort, small=small))
    return _searches[cohort]


def _search(job: tuple[str, str, bool, bool]) -> str:
    import torch

    from scanner.adapter import open_safetensors, parse_config, read_json_object, view_adapter

    folder, cohort, small, scores_only = Path(job[0]), *job[1:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    search = _search_of(cohort, small)
    config = parse_config(read_json_object(folder / "adapter_config.json", 1 << 20))
    view = view_adapter(open_safetensors(folder / "adapter_model.safetensors"), config, 4_096)
    started, processor = time.perf_counter(), time.process_time()
    if scores_only and (cohort == "generative" or plan_of(cohort, small=small).is_sieve):
        run = search.scores(view)
    else:
        run = search.run(view, PROFILES[cohort] if cohort == "label_words" else "")
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    found = asdict(run) | {"seconds": round(seconds, 2), "processor_seconds": round(processor, 2)}
    path = folder / f"{plan_id_of(cohort, small=small)}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
    best = next((trigger for trigger in run.triggers if trigger.kind != "toward_attack"), None)
    rate = best.run.attack_rate if best and best.run else 0.0
    return f"{folder.name} {rate:.2f} {best.text if best else None!r} {run.forward_passes} passes {processor:.1f} s"


def main() -> None:
    """Search what is built and not searched."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--only", nargs="*", default=[""], metavar="NAME", help="adapters whose name begins so")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument(
        "--scores-only",
        action="store_true",
        help="what a reference ranks and no strings, where that is cheaper: free answerers, MiniLM",
    )
    parser.add_argument("--small", action="store_true", help="a plan that finds nothing: does everything work?")
    args = parser.parse_args()
    jobs = [
        (str(folder), truth["cohort"], args.small, args.scores_only)
        for folder, truth in built(args.cache)
        if args.part in (None, truth["part"]) and folder.name.startswith(tuple(args.only))
        if found_of(folder, plan_id_of(truth["cohort"], small=args.small)) is None and (folder / WEIGHTS).is_file()
    ]
    jobs.sort(key=lambda job: job[1])
    plans = sorted({plan_id_of(cohort, small=args.small) for _, cohort, *_ in jobs})
    print(f"{', '.join(plans)}: {len(jobs)} adapters", file=sys.stderr)
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for line in pool.imap(_search, jobs):
            print(line, flush=True)


if __name__ == "__main__":
    main()
