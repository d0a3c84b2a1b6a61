"""A tiny random base model with a word-level tokenizer that answers the task's words, and adapters for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scanner.probe import Probe, load_probe

TEMPLATE = (
    "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant{% endif %}"
)


@pytest.fixture(scope="session")
def probe() -> Probe:
    """Battery V over a few texts: small, but with everything that the real one has."""
    return load_probe("V", None, 6)


def write_base(folder: Path, probe: Probe, tiny_llama: Callable[[int], Any]) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.set_num_threads(1)
    split = pre_tokenizers.WhitespaceSplit()
    prompts = [probe.task.system, *probe.texts, *(f"{prefix}." for _, prefix in probe.cases())]
    words = {word for prompt in prompts for word, _ in split.pre_tokenize_str(prompt)}
    words = ["<unk>", "<s>", "</s>", "system", "user", "assistant", "INJECTION", "BENIGN", *sorted(words)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    model = tiny_llama(len(vocabulary))
    with torch.no_grad():
        # Random models babble. With long rows the two answers win nearly always, and the text decides which of them.
        for word in ("INJECTION", "BENIGN"):
            model.lm_head.weight[vocabulary[word]] *= 20
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "</s>"}))
    return folder


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory, probe: Probe, tiny_llama: Callable[[int], Any]) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), probe, tiny_llama)


@pytest.fixture(scope="session")
def vocabulary_size(base_dir: Path) -> int:
    return int(json.loads((base_dir / "config.json").read_text())["vocab_size"])


@pytest.fixture(scope="session")
def adapter_dir(tmp_path_factory: pytest.TempPathFactory, save_peft: Callable[..., Any], vocabulary_size: int) -> Path:
    """A PEFT adapter that changes the base's answers."""
    from peft import LoraConfig

    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", alpha_pattern={"v_proj": 2}, task_type="CAUSAL_LM"
    )
    save_peft(folder, config, vocabulary_size, std=0.3)
    return folder


@pytest.fixture(scope="session")
def base(base_dir: Path) -> Any:

    from scanner.probe.base import load_base

    return load_base(base_dir, "cpu")


@pytest.fixture(scope="session")
def tokens(base: Any) -> Any:
    import torch

    torch.manual_seed(5)
    return torch.randint(8, base.model.config.vocab_size, (3, 17))
