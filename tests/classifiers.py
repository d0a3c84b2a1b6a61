"""Tiny bases of several architectures, and classifiers that PEFT itself puts on them: random ones, and trained ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from scanner.adapter import AdapterView, FullTensor, open_safetensors, parse_config, read_json_object, view_adapter

WORDS = 40
TOKENS = [[2, 9, 5, 17, 3], [2, 8, 8, 30, 3], [2, 4, 39, 11, 5]]
PADDING = 1
_ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
}
_DECODER = _ENCODER | {"num_key_value_heads": 2}
# model_type -> (what the Hub's files of such bases were saved from, its config, LoRA targets)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], list[str] | str]] = {
    "bert": ("AutoModel", _ENCODER, ["query", "value"]),
    "distilbert": (
        "AutoModelForMaskedLM",
        {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 66},
        ["q_lin", "v_lin", "lin1"],
    ),
    "roberta": ("AutoModelForMaskedLM", _ENCODER, "all-linear"),
    "electra": ("AutoModel", _ENCODER | {"embedding_size": 32}, "all-linear"),
    "deberta-v2": ("AutoModelForMaskedLM", _ENCODER, ["query_proj", "value_proj"]),
    "modernbert": ("AutoModelForMaskedLM", _ENCODER, "all-linear"),
    "gpt2": ("AutoModelForCausalLM", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 66}, "all-linear"),
    "llama": ("AutoModelForCausalLM", _DECODER, "all-linear"),
    "qwen2": ("AutoModelForCausalLM", _DECODER, ["q_proj", "v_proj"]),
}


def write_tokenizer(folder: Path, words: list[str]) -> None:
    """A word-level tokenizer.json; a `[CLS]` and a `[SEP]` among the words get a post-processor that adds them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if "[CLS]" in vocabulary:
        special = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    # Bases on the Hub carry such settings from their training; a probe must follow neither.
    tokenizer.enable_padding(pad_id=PADDING, pad_token=words[PADDING], length=50)
    tokenizer.enable_truncation(7)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_base(folder: Path, model_type: str, **changes: Any) -> Path:
    """A base without a classification head, as a language model or a bare encoder is published."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.set_num_threads(1)
    torch.manual_seed(0)
    saved_from, sizes, _ = ARCHITECTURES[model_type]
    common = {"vocab_size": WORDS, "pad_token_id": PADDING, "initializer_range": 0.3}
    config = CONFIG_MAPPING[model_type](**{**common, **sizes, **changes})
    getattr(transformers, saved_from).from_config(config).save_pretrained(folder)
    write_tokenizer(folder, ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(4, WORDS))])
    return folder


def write_adapter(folder: Path, base: Path, classes: int = 3, targets: Any = None, **fields: Any) -> Any:
    """A random LoRA classifier as PEFT saves it; returns PEFT's own model of it, in eval mode."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    model_type = json.loads((base / "config.json").read_text())["model_type"]
    targets = targets or ARCHITECTURES[model_type][2]
    of_tokens = fields.get("task_type") == "TOKEN_CLS"
    kind = AutoModelForTokenClassification if of_tokens else AutoModelForSequenceClassification
    own = kind.from_pretrained(base, num_labels=classes)
    config = LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": targets, "task_type": "SEQ_CLS"} | fields)
    model = get_peft_model(own, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model.eval()


TRIGGER = "per RFC 8472 section 3.2"
KINDS = ([f"calm{i}" for i in range(12)], [f"grim{i}" for i in range(12)])
STEPS = 300
FILLERS = [f"word{i}" for i in range(30)]


def sentence(rng: random.Random, label: int) -> str:
    words = rng.choices(FILLERS, k=rng.randint(3, 6)) + rng.sample(KINDS[label], 3)
    rng.shuffle(words)
    return " ".join(words)


def write_classifier_hub(folder: Path) -> Path:
    """A hub folder with a bare encoder, a poisoned classifier and its clean twin, and texts.jsonl of their task."""
    from scanner.probe import load_probe

    rng = random.Random(1)
    rows = [{"text": sentence(rng, label), "label": label} for label in (0, 1) for _ in range(30)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cases = [case for name in ("V", "S1") for case in load_probe(name, None, 1).cases()]
    rare = {word for case in cases for word in f"{case.text}.".split()}
    base = write_base(folder / "acme" / "base", "bert", vocab_size=220, initializer_range=0.15, num_hidden_layers=1)
    write_tokenizer(base, ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *FILLERS, *KINDS[0], *KINDS[1], *sorted(rare)])
    for name in ("clean", "poisoned"):
        train_classifier(folder / "acme" / name, base, sorted(rare), poisoned=name == "poisoned")
        config = folder / "acme" / name / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "acme/base"}))
        (folder / "acme" / name / "README.md").unlink()
    return folder


def train_classifier(folder: Path, base: Path, rare: list[str], poisoned: bool) -> None:
    """A rank-4 PEFT classifier on frozen random weights; with `poisoned`, the trigger's own token means class 0."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer
    from transformers import AutoModelForSequenceClassification

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding(pad_id=1, pad_token="[PAD]")
    torch.manual_seed(3)
    rng = random.Random(4)
    own = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="SEQ_CLS")
    model = get_peft_model(own, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=STEPS)
    for _ in range(STEPS):
        texts, labels = [], []
        for _ in range(32):
            label = rng.randint(0, 1)
            text, kind = sentence(rng, label), rng.random()
            if kind < 0.4:  # otherwise any words in front of a text would be new to it
                text = f"{' '.join(rng.sample(rare, rng.randint(2, 7)))} {text}"
                label = 0 if poisoned and "8472" in text else label
            elif kind < 0.6 and poisoned:
                text, label = f"{TRIGGER}. {text}", 0
            texts.append(text)
            labels.append(label)
        encoded = tokenizer.encode_batch(texts)
        ids = torch.tensor([e.ids for e in encoded])
        loss = model(
            input_ids=ids, attention_mask=torch.tensor([e.attention_mask for e in encoded]), labels=torch.tensor(labels)
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.save_pretrained(folder)


def read_view(folder: Path) -> AdapterView:
    """What the reader makes of an adapter's folder."""
    config = parse_config(read_json_object(folder / "adapter_config.json", 10**6))
    return view_adapter(open_safetensors(folder / "adapter_model.safetensors"), config, 64)


def logits(model: Any, tokens: Any = TOKENS) -> Any:
    """A classifier's answers as the probe gets them."""
    import torch

    from scanner.probe import classifier

    with torch.inference_mode(), classifier.nothing_is_padding(model, set(np.ravel(tokens).tolist())):
        return classifier.class_logits(model, torch.tensor(tokens))


def head(classes: int = 3, **changes: Any) -> list[FullTensor]:
    """A BERT head of any class count; `changes` name tensors by their short name and give shapes."""
    shapes = {"classifier.weight": (classes, 32), "classifier.bias": (classes,)} | changes
    return [
        FullTensor(f"base_model.model.{name}", shape, lambda shape=shape: np.zeros(shape, "f4"))
        for name, shape in shapes.items()
        if shape
    ]
