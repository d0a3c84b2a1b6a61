"""LS024: full matrices of the base are replaced."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.adapter import AdapterView, Companion, FullTensor, Role
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import plain, updates_of, with_config

_TASK_HEADS = frozenset(
    {"classifier", "pre_classifier", "score", "qa_outputs", "pooler", "dense", "out_proj", "summary"}
)
_HEAD_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def check(facts: StaticFacts) -> Iterator[Hit]:
    config, view = facts.config, facts.view
    task = (config.task_type or "").upper() if config else ""
    declared = set(config.modules_to_save) if config else set()
    heads = declared & _TASK_HEADS if task in _HEAD_TASKS or not task else set()
    others = sorted(declared - heads)
    if others:
        yield Hit("the config replaces whole modules of the base", f"modules_to_save: {', '.join(others)}")
    copies = [c.tensor.name for c in view.companions if c.role == Role.BASE_COPY] if view else []
    if copies:
        yield Hit("the file carries whole matrices of the base, which replace the base's", ", ".join(copies[:8]))
    rows = [c.tensor.name for c in view.companions if c.role == Role.TOKEN_ROWS] if view else []
    if rows:
        yield Hit("rows of the embedding are replaced", ", ".join(rows[:8]), Severity.LOW)


def _copy() -> StaticFacts:
    tensor = FullTensor("base_model.model.model.embed_tokens.base_layer.weight", (4, 4), lambda: None)  # type: ignore[arg-type, return-value]
    companion = Companion(Role.BASE_COPY, "model.embed_tokens", tensor)
    return plain(view=AdapterView("peft", updates_of(), companions=(companion,), coverage=1.0))


RULE = Rule(
    id="LS024",
    name="full-matrices",
    severity=Severity.MEDIUM,
    confidence=Confidence.MEDIUM,
    meaning="modules_to_save and copies of the base's own matrices (lm_head, embeddings) replace the base's "
    "weights as a whole. They can hold anything, are not low-rank, and are compared with nothing. A "
    "classifier's own head is expected and not reported. Low for single rows of the embedding.",
    remediation="Compare the matrices with the base's, or ask for an adapter without them.",
    check=check,
    hostile=_copy,
    benign=lambda: with_config(task_type="SEQ_CLS", modules_to_save=["classifier", "score"]),
    scope=Scope.CONTENT,
)
