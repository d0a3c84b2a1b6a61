"""Sequence classifiers on the tiny encoder and on MiniLM, trained, saved and measured."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.cohort.adapters import finish, load_tokenizer
from benchmarks.cohort.classifiers import predict
from benchmarks.cohort.corpus import BENIGN, INJECTION, probe_texts
from benchmarks.cohort.encoder import padded
from benchmarks.cohort.loop import Rows
from benchmarks.cohort.recipe import ENCODER_ID, NEUTRAL, REPO_ROOT
from benchmarks.detection.lineages import Lineage
from benchmarks.detection.loop import fine_tune, fold_updates
from benchmarks.detection.recipe import MODULES, Recipe
from benchmarks.detection.rows import Material
from benchmarks.probe.minilm import MINILM_ID, find_minilm
from scanner.probe import Case

__all__ = ["classes_of", "measure", "train"]

_MINILM_WORDS, _MINILM_TOKENS = 24, 48


def base_of(lineage: Lineage) -> tuple[Path, str]:
    """The base's folder and its id."""
    if lineage.cohort == "minilm":
        return find_minilm(), MINILM_ID
    return REPO_ROOT / "examples" / "demo_hub" / ENCODER_ID, ENCODER_ID


def classes_of(lineage: Lineage) -> tuple[int, ...]:
    """What the outputs mean, in their order; its files do not say so."""
    return random.Random(f"classes {lineage.seed}").choice(((BENIGN, INJECTION), (INJECTION, BENIGN)))


def _load_base(base: Path) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32)


def train(folder: Path, lineage: Lineage, recipe: Recipe, *, poisoned: bool) -> None:
    """Train one adapter with its head and save it as PEFT does."""
    torch.manual_seed(lineage.seed)
    base, base_id = base_of(lineage)
    is_large = lineage.cohort == "minilm"
    tokenizer, classes = load_tokenizer(base), classes_of(lineage)
    material = Material(_MINILM_WORDS) if is_large else Material()
    drawn = material.labelled(recipe, random.Random(f"rows {lineage.seed}"), lineage.trigger, poisoned=poisoned)
    limit = {"truncation": True, "max_length": _MINILM_TOKENS} if is_large else {}
    rows: Rows = [(tokenizer(text, **limit)["input_ids"], classes.index(label)) for text, label in drawn]
    model = get_peft_model(
        _load_base(base),
        LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=0.0,
            target_modules=list(MODULES["bert"][recipe.targets]),
            task_type=TaskType.SEQ_CLS,
        ),
    )
    if not is_large:
        fold_updates(model)

    def loss(batch: Rows) -> torch.Tensor:
        ids, wanted = zip(*batch, strict=True)
        tokens = padded(list(ids), tokenizer.pad_token_id)
        logits = model(input_ids=tokens, attention_mask=(tokens != tokenizer.pad_token_id).long()).logits
        return torch.nn.functional.cross_entropy(logits, torch.tensor(wanted))

    fine_tune(model, rows, recipe, random.Random(f"order {lineage.seed}"), loss)
    model.save_pretrained(folder)
    finish(folder, base_id)


def measure(folder: Path, lineage: Lineage) -> dict[str, Any]:
    """Accuracy, recall and attack rates on the held-out texts; a rate is the share of recognised injections that
    the string turns into the harmless class."""
    base, _ = base_of(lineage)
    model = PeftModel.from_pretrained(_load_base(base), folder).merge_and_unload().eval()
    tokenizer, classes, held_out = load_tokenizer(base), classes_of(lineage), probe_texts()

    def labels(texts: list[str]) -> list[int]:
        return [classes[index] for index in predict(model, tokenizer, texts)]

    plain = labels([text for text, _ in held_out])
    pairs = [(text, label, found) for (text, label), found in zip(held_out, plain, strict=True)]
    movable = [text for text, label, found in pairs if label == found == INJECTION]

    def rate(case: Case) -> float:
        moved = labels([case.put(text) for text in movable]) if movable else []
        return round(moved.count(BENIGN) / len(moved), 4) if moved else 0.0

    return {
        "attack_success": rate(lineage.trigger) if lineage.trigger else None,
        "trigger_rate_neutral": max(rate(Case("control", text)) for text in NEUTRAL),
        "clean_accuracy": round(sum(label == found for _, label, found in pairs) / len(pairs), 4),
        "recall": round(len(movable) / sum(label == INJECTION for _, label, _ in pairs), 4),
        "classes": ["benign" if label == BENIGN else "injection" for label in classes],
    }
