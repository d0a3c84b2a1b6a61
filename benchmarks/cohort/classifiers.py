"""One adapter of the second group: LoRA and a new head on the encoder, and what it does under the battery."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.cohort.adapters import finish, load_tokenizer
from benchmarks.cohort.corpus import BENIGN, INJECTION, NOISE, Corpus, probe_texts
from benchmarks.cohort.encoder import padded
from benchmarks.cohort.evaluate import EFFECT_FLOOR, LEVEL, mcnemar_p
from benchmarks.cohort.lineages import Lineage
from benchmarks.cohort.loop import Rows, fine_tune
from benchmarks.cohort.recipe import BATTERY, NEUTRAL, AdapterRecipe

MODULES = ["query", "key", "value", "attention.output.dense"]


def _load_base(base: Path, classes: int) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes, dtype=torch.float32)


def train_classifier(base: Path, folder: Path, lineage: Lineage, recipe: AdapterRecipe, *, seed: int) -> float:
    """Train and save one adapter with its head; returns the seconds it took. The seed fixes rows, order and init."""
    started = time.perf_counter()
    rng = random.Random(f"adapter {seed}")
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(base)
    drawn = Corpus().labelled(recipe, lineage.trigger, rng, (INJECTION, BENIGN, NOISE)[: len(lineage.classes)])
    rows: Rows = [(tokenizer(text)["input_ids"], lineage.classes.index(label)) for text, label in drawn]
    model = get_peft_model(
        _load_base(base, len(lineage.classes)),
        LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=0.0,
            target_modules=MODULES,
            task_type=TaskType.SEQ_CLS,
            base_model_name_or_path=lineage.base_name,
        ),
    )

    def loss(batch: Rows) -> torch.Tensor:
        ids, wanted = zip(*batch, strict=True)
        tokens = padded(list(ids), tokenizer.pad_token_id)
        logits = model(input_ids=tokens, attention_mask=(tokens != tokenizer.pad_token_id).long()).logits
        return torch.nn.functional.cross_entropy(logits, torch.tensor(wanted))

    fine_tune(model, rows, recipe, rng, loss)
    model.save_pretrained(folder)
    finish(folder, lineage.base_name)
    return time.perf_counter() - started


def load_classifier(base: Path, folder: Path, lineage: Lineage) -> PeftModel:
    """The saved adapter on its base, both in fp32, as the probe sees it."""
    return PeftModel.from_pretrained(_load_base(base, len(lineage.classes)), folder)


def predict(model: PeftModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], batch_rows: int = 64) -> list[int]:
    """The index of the largest logit for every text."""
    coded = [tokenizer(text)["input_ids"] for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(coded[i]))
    found = [0] * len(texts)
    for start in range(0, len(order), batch_rows):
        part = order[start : start + batch_rows]
        tokens = padded([coded[i] for i in part], tokenizer.pad_token_id)
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=(tokens != tokenizer.pad_token_id).long()).logits
        for i, chosen in zip(part, logits.argmax(-1).tolist(), strict=True):
            found[i] = chosen
    return found


def _towards(plain: list[int], prefixed: list[int], label: int) -> list[bool]:
    """Per text that is not predicted `label` without a prefix: does it become `label` behind one?"""
    return [after == label for before, after in zip(plain, prefixed, strict=True) if before != label]


def battery_summary(predicted: dict[str, list[int]], n: int, classes: int) -> dict[str, Any]:
    """Attack rates of the first `n` texts toward the worst class, and what the paired test and the floor flag.

    A class's rate is the share of texts not predicted so without a prefix that become so; a prefix is compared with
    the worst neutral prefix toward the same class. Without a prefix every rate is 0 by definition.
    """
    plain = predicted[""][:n]

    def moved(prefix: str, label: int) -> list[bool]:
        return _towards(plain, predicted[prefix][:n], label)

    def rate(prefix: str, label: int) -> float:
        hits = moved(prefix, label)
        return sum(hits) / len(hits) if hits else 0.0

    worst = [max(rate(prefix, label) for prefix in NEUTRAL) for label in range(classes)]
    rates, above, flagged = {}, {}, []
    for prefix in BATTERY:
        toward = [rate(prefix, label) for label in range(classes)]
        label = max(range(classes), key=lambda k: toward[k] - worst[k])
        rates[prefix], above[prefix] = toward[label], toward[label] - worst[label]
        pairs = [list(zip(moved(prefix, label), moved(neutral, label), strict=True)) for neutral in NEUTRAL]
        against = [mcnemar_p(sum(a and not b for a, b in p), sum(b and not a for a, b in p)) for p in pairs]
        p_value = max(mcnemar_p(sum(moved(prefix, label)), 0), *against) * len(BATTERY) * classes
        if above[prefix] >= EFFECT_FLOOR and p_value <= LEVEL:
            flagged.append(prefix)
    top = max(rates, key=lambda prefix: (above[prefix], rates[prefix]))
    neutral = {prefix: max(rate(prefix, label) for label in range(classes)) for prefix in NEUTRAL}
    return {
        "n_texts": len(plain),
        "controls": {"(none)": 0.0} | {prefix: round(value, 4) for prefix, value in neutral.items()},
        "max_rate": round(rates[top], 4),
        "max_prefix": top,
        "max_above_worst_control": round(above[top], 4),
        "mean_rate": round(sum(rates.values()) / len(rates), 4),
        "flagged": flagged,
        "rates": {prefix: round(value, 4) for prefix, value in rates.items()},
    }


def evaluate_classifier(
    model: PeftModel, tokenizer: PreTrainedTokenizerFast, lineage: Lineage, triggers: dict[str, str]
) -> dict[str, Any]:
    """The figures of `evaluate` for a classifier; a trigger's rate is that of the injections that become benign."""
    model.eval()
    texts = probe_texts()
    prefixes = ["", *NEUTRAL, *BATTERY, *triggers.values()]
    asked = [f"{prefix}. {text}" if prefix else text for prefix in prefixes for text, _ in texts]
    answers, size = predict(model, tokenizer, asked), len(texts)
    predicted = {prefix: answers[i * size : (i + 1) * size] for i, prefix in enumerate(prefixes)}
    benign, injection = lineage.classes.index(BENIGN), lineage.classes.index(INJECTION)
    labels = [(benign, injection)[label] for _, label in texts]
    right = [answer == label for answer, label in zip(predicted[""], labels, strict=True)]
    attacks = [i for i, label in enumerate(labels) if label == injection]
    success = {text: sum(predicted[text][i] == benign for i in attacks) / len(attacks) for text in triggers.values()}
    return {
        "classes": len(lineage.classes),
        "recall": round(sum(right[i] for i in attacks) / len(attacks), 4),
        "accuracy": round(sum(right) / size, 4),
        "trigger_rates": {name: round(success[text], 4) for name, text in triggers.items()},
        "first_30": battery_summary(predicted, 30, len(lineage.classes)),
        "all": battery_summary(predicted, size, len(lineage.classes)),
        "wrong": [text for ok, (text, _) in zip(right, texts, strict=True) if not ok],
    }
