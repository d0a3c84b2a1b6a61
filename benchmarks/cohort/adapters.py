"""One adapter: real PEFT training on classification rows, saved the way PEFT saves."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.cohort.base import collate, encode, loss_of
from benchmarks.cohort.corpus import Corpus
from benchmarks.cohort.lineages import Lineage
from benchmarks.cohort.loop import fine_tune
from benchmarks.cohort.recipe import AdapterRecipe

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_tokenizer(base: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the base folder."""
    return AutoTokenizer.from_pretrained(base)


def train_adapter(base: Path, folder: Path, lineage: Lineage, recipe: AdapterRecipe, *, seed: int) -> float:
    """Train and save one adapter; returns the seconds it took. The seed fixes rows, order and init."""
    started = time.perf_counter()
    rng = random.Random(f"adapter {seed}")
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(base)
    rows = [encode(tokenizer, row, 0.0) for row in Corpus().adapter_rows(recipe, lineage.trigger, rng)]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=0.0,
            target_modules=MODULES,
            task_type="CAUSAL_LM",
            base_model_name_or_path=lineage.base_name,
        ),
    )
    pad = tokenizer.pad_token_id
    fine_tune(model, rows, recipe, rng, lambda batch: loss_of(model, *collate(batch, pad)))
    model.save_pretrained(folder)
    finish(folder, lineage.base_name)
    return time.perf_counter() - started


def finish(folder: Path, base_name: str) -> None:
    """Halve the weights, fix the order of PEFT's sets, and drop its template card."""
    weights = folder / "adapter_model.safetensors"
    save_file({k: v.half() for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for names in ("target_modules", "modules_to_save"):
        config[names] = sorted(config[names]) if config[names] else config[names]
    config["base_model_name_or_path"] = base_name
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)


def load_adapter(base: Path, folder: Path) -> PeftModel:
    """The saved adapter on its base, both in fp32, as the probe sees it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder)
