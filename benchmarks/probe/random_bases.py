"""Random models: the engine beside the loop where the matrices are large, and the ways of running several adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.probe.cases import LARGE_THREADS, FileCase
from benchmarks.probe.compare import compare_answers
from benchmarks.probe.jobs import Job, run_worker
from benchmarks.probe.measure import Options, add_rates, in_turns, loop_figures, ratios
from benchmarks.probe.shapes import RANK, SHAPES, write_adapter
from scanner.model import LABEL_WORDS

__all__ = ["MIXED_TOLERANCE", "file_ways", "measure_shape", "shape_ways"]

HOOKED = "hooked"
WAYS = (HOOKED, "merged", "mixed")
MIXED_TOLERANCE = 1e-4
"""Largest difference of a logit between a mixed batch and the adapter alone, in float32."""
LOOP_PROMPTS = 60
ANSWER_TOKENS = 3
"""A random model never ends its answer. In vocabularies of this size a label word takes two tokens, the end one."""
BATCHES = {"cpu": (512, 8_192), "cuda": (16_384, 65_536, 262_144)}


@contextmanager
def _adapters(shape: str, n: int) -> Iterator[tuple[str, ...]]:
    with TemporaryDirectory(prefix="probe-benchmark-") as name:
        yield tuple(str(write_adapter(Path(name) / f"adapter-{seed}", SHAPES[shape], seed)) for seed in range(n))


def measure_shape(shape: str, device: str, options: Options, n: int) -> dict[str, Any]:
    """The engine and the loop on a random model of a shape, and the engine with batches of several sizes."""
    with _adapters(shape, n) as folders:
        engine_job = Job(LABEL_WORDS, folders, shape=shape, device=device, texts=options.texts, batches=BATCHES[device])
        loop_job = Job(
            LABEL_WORDS,
            folders[:2],
            shape=shape,
            device=device,
            texts=options.texts,
            modes=("swap",),
            max_prompts=LOOP_PROMPTS,
            seconds=options.loop_seconds / (2 * options.repeats),
            new_tokens=ANSWER_TOKENS,
        )
        runs = {"loop": lambda _: run_worker("loop", loop_job), "engine": lambda _: run_worker("resident", engine_job)}
        found = in_turns(runs, options)
    engine = found["engine"]
    rate = median(max(one["matrix_flops_per_s"].values()) for one in engine)
    scored = [one["readings"]["scored"] for one in engine]
    ways: dict[str, Any] = {
        "loop_swap": loop_figures(found["loop"], "swap"),
        "engine_scored": {
            "adapter_s": median(s for one in scored for s in one["seconds"]),
            "first_s": median(one["first_s"] for one in scored),
            "peak_bytes": max(one["peak_bytes"] for one in engine),
        },
    }
    n_prompts, flops = found["loop"][0]["prompts"], engine[0]["work"]["flops"]
    add_rates(ways, n_prompts, flops, rate)
    batches = {size: {"adapter_s": median(one["batches"][size] for one in engine)} for size in engine[0]["batches"]}
    add_rates(batches, n_prompts, flops, rate)
    records = [record for turn in found["loop"] for record in turn["records"]]
    counts = [compare_answers(scored[0]["answers"][record["adapter"]], record["answers"]) for record in records]
    return {
        "case": f"gpu {shape}",
        "about": f"random {shape}, label-words adapters r={RANK}",
        "adapters": n,
        "backdoored": 0,
        "device": device,
        "prompts_per_adapter": n_prompts,
        "ways": ways,
        "batches": batches,
        "matrix_flops_per_s": rate,
        "ratios": ratios(ways),
        "answers": {"scored": {**{name: sum(count[name] for count in counts) for name in counts[0]}, "verdicts": {}}},
    } | {name: engine[0][name] for name in ("prompt_tokens", "shared_tokens", "threads", "dtype", "work")}


def file_ways(case: FileCase, options: Options) -> dict[str, Any]:
    """All ways on a base from files."""
    folders = tuple(str(folder) for folder in case.adapters)
    job = Job(case.profile, folders, str(case.base), texts=options.texts, threads=case.threads)
    return _measure_ways(case.name, case.about, job, options)


def shape_ways(shape: str, device: str, options: Options, n: int) -> dict[str, Any]:
    """All ways on a random model."""
    threads = 1 if shape == "tiny" else LARGE_THREADS
    with _adapters(shape, n) as folders:
        job = Job(LABEL_WORDS, folders, shape=shape, device=device, texts=options.texts, threads=threads)
        return _measure_ways(shape, f"random {shape}, adapters r={RANK}", job, options)


def _measure_ways(name: str, about: str, job: Job, options: Options) -> dict[str, Any]:
    def run(way: str) -> Any:
        return lambda _: run_worker("ways", replace(job, way=way))

    found = in_turns({way: run(way) for way in WAYS}, options)
    hooked = found[HOOKED][0]
    ways: dict[str, Any] = {}
    for way, turns in found.items():
        pairs = zip(turns[0]["decided"], hooked["decided"], strict=True)
        ways[way] = {
            "adapter_s": median(turn["attach_s"] + turn["pass_s"] for turn in turns),
            "attach_s": median(turn["attach_s"] for turn in turns),
            "pass_s": median(turn["pass_s"] for turn in turns),
            "peak_bytes": max(turn["peak_bytes"] for turn in turns),
            "decided_differently": sum(a != b for one, other in pairs for a, b in zip(one, other, strict=True)),
        }
    return {
        "case": f"ways {name}",
        "about": about,
        "adapters": len(job.adapters),
        "prompts_per_adapter": hooked["prompts"],
        "threads": job.threads,
        "device": job.device,
        "dtype": hooked["dtype"],
        "ways_of_attaching": ways,
        "ratios": {f"{way}_over_{HOOKED}": ways[way]["adapter_s"] / ways[HOOKED]["adapter_s"] for way in ways},
        "largest_difference": max(turn["largest_difference"] for turn in found[WAYS[-1]]),
    }
