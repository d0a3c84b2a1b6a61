"""lorascope's engine alone, on a base that is resident: `python -m benchmarks.probe.resident JOB`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.probe.jobs import Job, answer, inputs_of, open_view, probe_of, the_job
from benchmarks.probe.models import build_base
from benchmarks.probe.shapes import SHAPES
from benchmarks.probe.work import Work, causal_work, classifier_work, matrix_rate, peak_bytes
from scanner.adapter import AdapterView
from scanner.model import LABEL_WORDS
from scanner.probe.attach import attached
from scanner.probe.base import BaseModel, load_base, load_classifier
from scanner.probe.causal import CausalProbe
from scanner.probe.classifier import ClassifierProbe, encode_texts
from scanner.probe.label_words import FoundWords, LabelWordPrompts, run_label_words

__all__ = ["run"]


def run(job: Job) -> dict[str, Any]:
    """Probe the first adapter once as a warm-up, then each of them `rounds` times, for each reading."""
    torch.set_num_threads(job.threads)
    found = _causal(job) if job.is_causal else _classifier(job)
    found["peak_bytes"] = peak_bytes(job.device)  # before the matrices that follow
    rates = matrix_rate(job.device, getattr(torch, found["dtype"]))
    return found | {"matrix_flops_per_s": rates, "threads": torch.get_num_threads()}


def _causal(job: Job) -> dict[str, Any]:
    base = build_base(SHAPES[job.shape], job.device) if job.shape else load_base(Path(job.base), job.device)
    readings = {}
    for reading in job.readings:
        engine = CausalProbe(base, probe_of(job, reading))

        def ask(view: AdapterView, engine: CausalProbe = engine) -> list[str]:
            seen = engine.run(view)
            if seen.profile != LABEL_WORDS:
                raise RuntimeError(f"asked as {seen.profile}: {seen.profile_reason}")
            return [run.answers for run in seen.runs]

        readings[reading] = _timed(job, ask)
    prompts = LabelWordPrompts(base, probe_of(job)).battery()
    work: Work = causal_work(base, prompts)
    about = {
        "prompt_tokens": sum(map(len, prompts.ids)) / len(prompts.ids),
        "shared_tokens": prompts.shared,
        "dtype": base.dtype,
        "work": asdict(work),
    }
    return {"readings": readings, "batches": _batches(job, base)} | about


def _batches(job: Job, base: BaseModel) -> dict[str, float]:
    """Seconds per adapter with batches of given sizes, without the search for its label words."""
    probe = probe_of(job)
    prompts = LabelWordPrompts(base, probe)
    found = {}
    for size in job.batches:
        took = []
        for folder in (job.adapters[0], *job.adapters):
            started = time.perf_counter()
            with attached(base.model, open_view(folder)):
                run_label_words(base, prompts, probe, FoundWords(probe.task, ""), 0.0, size)
            took.append(time.perf_counter() - started)
        found[str(size)] = sorted(took[1:])[len(took[1:]) // 2]
    return found


def _classifier(job: Job) -> dict[str, Any]:
    base = load_classifier(Path(job.base), job.device)
    probe = probe_of(job)
    engine = ClassifierProbe(base, probe)
    readings = {"scored": _timed(job, lambda view: [run.answers for run in engine.run(view).runs])}
    lengths = [len(ids) for ids in encode_texts(base, inputs_of(job, probe)).ids]
    about = {
        "prompt_tokens": sum(lengths) / len(lengths),
        "shared_tokens": 0,
        "dtype": base.dtype,
        "work": asdict(classifier_work(base, lengths)),
    }
    return {"readings": readings, "batches": {}} | about


def _timed(job: Job, ask: Any) -> dict[str, Any]:
    """The answers to the battery by adapter, and the time of each adapter with reading and attaching it."""
    answers, seconds = {}, []
    started = time.perf_counter()
    ask(open_view(job.adapters[0]))
    first_s = time.perf_counter() - started
    for _ in range(job.rounds):
        for folder in job.adapters:
            started = time.perf_counter()
            answers[folder] = ask(open_view(folder))
            seconds.append(time.perf_counter() - started)
    return {"first_s": first_s, "seconds": seconds, "answers": answers}


if __name__ == "__main__":
    answer(run(the_job()))
