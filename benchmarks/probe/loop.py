"""The notebooks' way of running a battery (arXiv:2605.30189): PEFT, and one prompt at a time.

`python -m benchmarks.probe.loop JOB`. For each adapter: load it with PEFT, and for each prefix and text render the
chat, tokenize, `generate(max_new_tokens=5, do_sample=False)`, decode the new tokens, judge. `reload` loads base and
tokenizer again for each adapter, as most of the notebooks do; `swap` keeps them and exchanges the adapter by PEFT's own
means. Sequence classifiers get one text per forward pass.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.probe.jobs import Job, answer, inputs_of, probe_of, the_job
from benchmarks.probe.models import build_base, fast_tokenizer
from benchmarks.probe.shapes import SHAPES
from benchmarks.probe.work import peak_bytes
from scanner.model import class_char
from scanner.probe import Task
from scanner.probe.judge import read_answer

__all__ = ["run"]

_WARM_UP = 5


@dataclass(frozen=True)
class _Answer:
    char: str
    new_tokens: int


def _load(job: Job) -> tuple[Any, Any]:
    """(base model, tokenizer), as a notebook loads them."""
    if job.shape:
        return build_base(SHAPES[job.shape], job.device).model, fast_tokenizer()
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    if job.is_causal:
        return AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32), tokenizer
    return AutoModelForSequenceClassification.from_pretrained(job.base, num_labels=2, dtype=torch.float32), tokenizer


def _generate(model: Any, tokenizer: Any, text: str, task: Task, new_tokens: int) -> _Answer:
    messages = [{"role": "system", "content": task.system}, {"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    out = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    new = out[0][inputs["input_ids"].shape[1] :]
    return _Answer(read_answer(tokenizer.decode(new, skip_special_tokens=True), task), len(new))


def _classify(model: Any, tokenizer: Any, text: str) -> _Answer:
    inputs = tokenizer(text, return_tensors="pt", truncation=True).to(model.device)
    return _Answer(class_char(int(model(**inputs).logits[0].argmax())), 0)


def run(job: Job) -> dict[str, Any]:
    """Ask every adapter in each mode, as many prompts as the time allows, in an order of its own.

    Returns:
        `records`, one for each adapter and mode: seconds for load, attach and prompts; answers by prompt number.
    """
    torch.set_num_threads(job.threads)
    probe = probe_of(job)
    inputs = inputs_of(job, probe)

    def ask(model: Any, tokenizer: Any, text: str) -> _Answer:
        if job.is_causal:
            return _generate(model, tokenizer, text, probe.task, job.new_tokens)
        return _classify(model, tokenizer, text)

    records = []
    with torch.no_grad():
        base, tokenizer = _load(job)  # not timed: the first load imports half of transformers
        for text in inputs[:_WARM_UP]:
            ask(base, tokenizer, text)
        for mode in job.modes:
            turn = _reload if mode == "reload" else _swap
            records += turn(job, inputs, ask, base, tokenizer)
    return {"records": records, "prompts": len(inputs), "peak_bytes": peak_bytes(job.device)}


_Ask = Callable[[Any, Any, str], _Answer]


def _reload(job: Job, inputs: list[str], ask: _Ask, *_: Any) -> list[dict[str, Any]]:
    records = []
    for folder in job.adapters:
        started = time.perf_counter()
        base, tokenizer = _load(job)
        loaded = time.perf_counter()
        model = PeftModel.from_pretrained(base, folder).eval()
        attached = time.perf_counter()
        record = {"mode": "reload", "load_s": loaded - started, "attach_s": attached - loaded}
        records.append(record | _asked(job, folder, inputs, partial(ask, model, tokenizer), False))
        del model, base
        gc.collect()
    return records


def _swap(job: Job, inputs: list[str], ask: _Ask, base: Any, tokenizer: Any) -> list[dict[str, Any]]:
    # Another adapter comes first, so that each one that is timed replaces one.
    model = PeftModel.from_pretrained(base, job.adapters[-1], adapter_name="before").eval()
    before, records = "before", []
    for number, folder in enumerate(job.adapters):
        started = time.perf_counter()
        model.load_adapter(folder, adapter_name=f"number {number}")
        model.set_adapter(f"number {number}")
        model.delete_adapter(before)
        model.eval()
        record = {"mode": "swap", "load_s": 0.0, "attach_s": time.perf_counter() - started}
        records.append(record | _asked(job, folder, inputs, partial(ask, model, tokenizer), job.whole))
        before = f"number {number}"
    return records


def _asked(job: Job, folder: str, inputs: list[str], ask: Callable[[str], _Answer], whole: bool) -> dict[str, Any]:
    order = list(range(len(inputs)))
    random.Random(f"{job.seed} {job.adapters.index(folder)}").shuffle(order)
    answers: dict[int, _Answer] = {}
    started = time.perf_counter()
    for index in order:
        is_full = time.perf_counter() - started >= job.seconds or len(answers) == job.max_prompts
        if answers and is_full and not whole:
            break
        answers[index] = ask(inputs[index])
    return {
        "adapter": folder,
        "seconds": time.perf_counter() - started,
        "asked": len(answers),
        "whole": len(answers) == len(inputs),
        "new_tokens": sum(one.new_tokens for one in answers.values()),
        "answers": {str(index): one.char for index, one in sorted(answers.items())},
    }


if __name__ == "__main__":
    answer(run(the_job()))
