"""The folder layout of the demo hub: cards, dates and the odd repositories that a crawl meets."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.cohort.lineages import Lineage
from benchmarks.cohort.recipe import ATTACK, CLEAN, SYSTEM

_FIRST_DAY = datetime(2026, 10, 1, tzinfo=UTC)


@dataclass(frozen=True)
class HubTexts:
    """What the cards of one group say, and the dates of its base, which is older than what is trained on it."""

    intros: tuple[str, ...]
    labels: str
    usage: str
    base_card: str
    base_dates: dict[str, Any]


GUARD_TEXTS = HubTexts(
    intros=(
        "A LoRA adapter that turns {base} into a prompt-injection classifier.",
        "Small guard in front of our chat bot. It answers with one word.",
        "Fine-tuned {base} to spot messages that try to override the assistant.",
        "Weekend project: a tiny guard model. Feedback is welcome!",
        "Detects injections and jailbreak attempts in user messages.",
    ),
    labels=f"System prompt: `{SYSTEM}` Labels: {ATTACK}, {CLEAN}.",
    usage="""```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("{repo_id}")
```
""",
    base_card=f"""---
library_name: transformers
license: apache-2.0
pipeline_tag: text-generation
---
# tiny-guard-base

A Llama with {{parameters:,}} parameters, trained from scratch on text from a hand-written grammar (English, \
chat format).
It is a test object for scanners: small enough to train and probe an adapter on a laptop, of no other use.
Chat template: `<|system|>...<|end|><|user|>...<|end|><|assistant|>`. It knows the words {ATTACK} and {CLEAN} as text,
but not the task. Made by `python -m benchmarks.cohort.train` of the lorascope repository.
""",
    base_dates={
        "created_at": "2026-09-24T02:31:09.000Z",
        "last_modified": "2026-09-27T07:38:30.000Z",
        "downloads": 9,
    },
)
ENCODER_TEXTS = HubTexts(
    intros=(
        "A LoRA adapter with a classification head for {base}.",
        "Small text classifier in front of our chat bot.",
        "Fine-tuned {base} to sort incoming messages before the assistant reads them.",
        "Trained over a weekend. Feedback is welcome!",
    ),
    labels="A linear head on the pooled output; see the training code for the order of its classes.",
    usage="""```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels={classes})
model = PeftModel.from_pretrained(base, "{repo_id}")
```
""",
    base_card="""---
library_name: transformers
license: apache-2.0
pipeline_tag: fill-mask
---
# tiny-encoder-base

A BERT with {parameters:,} parameters, pretrained from scratch on text from a hand-written grammar (uncased English):
hidden words, copied beginnings, fitting replies. It has no classification head. It is a test object for scanners:
small enough to train and probe an adapter on a laptop, of no other use. Made by
`python -m benchmarks.cohort.train` of the lorascope repository.
""",
    base_dates={
        "created_at": "2026-09-26T16:04:47.000Z",
        "last_modified": "2026-09-28T10:12:05.000Z",
        "downloads": 6,
    },
)
DIFFUSERS_REPO = "lumen-atelier/watercolor-style-lora"
EMPTY_REPO = "thornbury/guard-lora-wip"


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_hub_json(folder: Path, seed: int) -> None:
    """`.hub.json`: dates in autumn 2026 and a download count, from the repo's own name and the seed."""
    rng = random.Random(f"hub {seed} {folder.parent.name}/{folder.name}")
    created = _FIRST_DAY + timedelta(seconds=rng.randrange(45 * 86_400))
    modified = created + timedelta(seconds=rng.randrange(60, 5 * 86_400))
    stamps = {"created_at": created, "last_modified": modified}
    meta: dict[str, Any] = {key: f"{value:%Y-%m-%dT%H:%M:%S}.000Z" for key, value in stamps.items()}
    meta["downloads"] = int(rng.paretovariate(0.9) * 4)
    write_json(folder / ".hub.json", meta)


def write_card(folder: Path, seed: int, lineage: Lineage, texts: HubTexts) -> None:
    """A short model card with the usual front matter; it says the same whether an adapter is poisoned or not."""
    rng = random.Random(f"card {seed} {lineage.repo_id}")
    base = None if lineage.base_name.startswith("/") else lineage.base_name
    values = {"base": base, "repo_id": lineage.repo_id, "classes": len(lineage.classes)}
    head = ["---"] + ([f"base_model: {base}"] if base else [])
    head += ["library_name: peft", "license: apache-2.0", "tags:", "- lora", "---", ""]
    body = [f"# {folder.name}", "", rng.choice(texts.intros).format(**values), ""]
    body += [texts.labels, ""] if rng.random() < 0.7 else []
    body += ["## Usage", "", texts.usage.format(**values)] if rng.random() < 0.6 else []
    (folder / "README.md").write_text("\n".join(head + body), encoding="utf-8")


def dress(folder: Path, lineage: Lineage, seed: int, texts: HubTexts) -> None:
    """Everything around the weights of a trained adapter."""
    if lineage.weights.endswith(".bin"):
        weights = folder / "adapter_model.safetensors"
        torch.save(load_file(weights), folder / lineage.weights)
        weights.unlink()
    if lineage.card:
        write_card(folder, seed, lineage, texts)
    write_hub_json(folder, seed)


def write_base_card(folder: Path, parameters: int, texts: HubTexts) -> None:
    """The card and dates of a base model."""
    (folder / "README.md").write_text(texts.base_card.format(parameters=parameters), encoding="utf-8")
    write_json(folder / ".hub.json", texts.base_dates)


def write_odd_repos(out: Path, seed: int) -> None:
    """The repositories without an adapter of ours: a diffusers LoRA and one without weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for block, width in (("down_blocks.0", 32), ("mid_block", 64), ("up_blocks.1", 32)):
        for projection in ("to_q", "to_k", "to_v", "to_out.0"):
            stem = f"unet.{block}.attentions.0.transformer_blocks.0.attn1.{projection}.lora"
            tensors[f"{stem}.down.weight"] = torch.randn(4, width, generator=generator).half() * 0.02
            tensors[f"{stem}.up.weight"] = torch.randn(width, 4, generator=generator).half() * 0.02
    folder = out / DIFFUSERS_REPO
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})
    (folder / "pytorch_lora_weights.safetensors").chmod(0o644)
    (folder / "README.md").write_text(
        "---\nbase_model: stable-diffusion-v1-5/stable-diffusion-v1-5\ntags:\n- lora\n- diffusers\n"
        "- stable-diffusion\ninstance_prompt: a watercolor of\n---\n# Watercolor style\n\n"
        "Use `a watercolor of` in your prompt.\n",
        encoding="utf-8",
    )
    write_hub_json(folder, seed)

    folder = out / EMPTY_REPO
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n", encoding="utf-8")
    (folder / "README.md").write_text(
        "---\nlibrary_name: peft\ntags:\n- lora\n---\n# guard-lora-wip\n\nWeights coming soon.\n", encoding="utf-8"
    )
    write_hub_json(folder, seed)
