"""Tiny random bases of several architectures, and classifiers that PEFT itself puts on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = 40
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
    import json

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    model_type = json.loads((base / "config.json").read_text())["model_type"]
    targets = targets or ARCHITECTURES[model_type][2]
    own = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
    config = LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": targets, "task_type": "SEQ_CLS"} | fields)
    model = get_peft_model(own, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model.eval()
