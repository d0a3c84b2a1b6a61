"""Builds the cohorts into a cache folder: `python -m benchmarks.detection.build --jobs 2`.

One folder per adapter with PEFT's two files and `truth.json`. A build that was stopped goes on where it was, and two at
once share the lineages.
"""

from __future__ import annotations

import argparse
import fcntl
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from benchmarks.detection.adapters import build, folder_of, is_done
from benchmarks.detection.lineages import PARTS, Lineage, queue

__all__ = ["default_cache", "main"]


def default_cache() -> Path:
    """In the user's cache: hundreds of adapters are no part of a checkout."""
    return Path(platformdirs.user_cache_dir("lorascope")) / "detection"


def _prepare() -> None:
    """One thread for each worker, and no bars or warnings between the lines of progress."""
    import warnings

    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@contextmanager
def _alone_with(cache: Path, lineage: Lineage) -> Iterator[None]:
    """Wait until no other build has this lineage in hand."""
    folder = folder_of(cache, lineage, "clean").parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{lineage.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_lineage(cache: Path, lineage: Lineage) -> None:
    parent = multiprocessing.parent_process()
    with _alone_with(cache, lineage):
        for arm in lineage.arms:
            if is_done(cache, lineage, arm) or not (parent and parent.is_alive()):
                continue
            started = time.monotonic()
            truth = build(cache, lineage, arm)
            print(f"{_described(truth)} {time.monotonic() - started:.1f} s", flush=True)


def _described(truth: dict[str, Any]) -> str:
    shown = {key: truth[key] for key in ("strength", "attack_success", "trigger_rate_neutral", "clean_accuracy")}
    figures = [f"{key}={value}" for key, value in shown.items() if value is not None]
    tries = [f"tries={len(truth['tries'])}"] if truth["tries"] else []
    return " ".join([truth["name"], *figures, *tries])


def _chosen(arguments: argparse.Namespace) -> Sequence[Lineage]:
    lineages = [one for one in queue(small=arguments.small) if arguments.part in (None, one.part)]
    if not arguments.only:
        return lineages
    return [one for one in lineages if any(one.name.startswith(name) for name in arguments.only)]


def main() -> None:
    """Parse the arguments, share the lineages out to workers in the order of the queue, and report what failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection.build", description=__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="lineages whose name begins so")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--jobs", type=int, default=2, help="worker processes, one thread each")
    parser.add_argument("--small", action="store_true", help="four lineages of a few steps: does everything work?")
    arguments = parser.parse_args()
    lineages = _chosen(arguments)
    if not lineages:
        parser.error("no lineage is called so")
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they start
    started, failed = time.monotonic(), 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context, initializer=_prepare) as pool:
        futures = {pool.submit(_build_lineage, arguments.cache, lineage): lineage for lineage in lineages}
        for future in as_completed(futures):
            if error := future.exception():
                failed += 1
                print(
                    f"{futures[future].name} failed:", *traceback.format_exception(error), file=sys.stderr, flush=True
                )
    print(f"{len(lineages) - failed} lineages done, {failed} failed, {time.monotonic() - started:.0f} s", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
