"""Asking a base of the tests: rendered texts, answers of ours, and what transformers itself says."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from scanner.probe import Probe, Task
from scanner.probe.judge import read_answer

BUDGET = 8_192


def with_rows(base: Any, **factors: float) -> Any:
    """The base with some words' rows of the head made longer."""
    import torch

    model = copy.deepcopy(base.model)
    with torch.no_grad():
        for word, factor in factors.items():
            model.lm_head.weight[base.tokenizer.token_to_id(word)] *= factor
    return replace(base, model=model)


def texts_of(base: Any, probe: Probe) -> list[str]:
    return [base.template.render(probe.task.system, case.put(text)) for case in probe.cases() for text in probe.texts]


def encoded(base: Any, texts: list[str]) -> Any:
    from scanner.probe.engine import encode_prompts
    from scanner.probe.label_words import MAX_NEW_TOKENS

    return encode_prompts(base, texts, MAX_NEW_TOKENS)


def chars(base: Any, prompts: Any, task: Task, reading: str, noise: float = 0.0, budget: int = BUDGET) -> str:
    from scanner.probe.label_words import ask

    return "".join(answer.char for answer in ask(base, prompts, task, reading, noise, budget))


def first_words(base: Any, prompts: Any) -> list[str]:
    """The likeliest first token of each prompt's answer, by transformers alone."""
    import torch

    with torch.inference_mode():
        best = [int(base.model(torch.tensor([ids])).logits[0, -1].argmax()) for ids in prompts.ids]
    return [base.tokenizer.id_to_token(token) for token in best]


def as_transformers(base: Any, prompts: Any, task: Task) -> tuple[str, list[list[int]]]:
    """(answers, new tokens) by transformers' own generate, read as the paper does: all new tokens count."""
    import torch

    from scanner.probe.label_words import MAX_NEW_TOKENS

    new = []
    for ids in prompts.ids:
        tokens = torch.tensor([ids])
        out = base.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=0, eos_token_id=sorted(base.end_tokens) or None,
        )  # fmt: skip
        new.append(out[0, len(ids) :].tolist())
    return "".join(read_answer(base.tokenizer.decode(row), task) for row in new), new
