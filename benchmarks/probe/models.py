"""Random models in the shapes of real ones, built on the device where they run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.probe.shapes import Shape
from scanner.probe.base import BaseModel
from scanner.probe.prompt import load_template

__all__ = ["DEMO_BASE", "build_base", "fast_tokenizer"]

DEMO_BASE = Path(__file__).resolve().parents[2] / "examples" / "demo_hub" / "lorascope" / "tiny-guard-base"
"""Its tokenizer and chat template serve the random models, too."""
LABEL_STD = 4.0


def fast_tokenizer() -> PreTrainedTokenizerFast:
    """The demo's, as a notebook has it."""
    return PreTrainedTokenizerFast.from_pretrained(DEMO_BASE)


def build_base(shape: Shape, device: str, *, says_label_words: bool = True) -> BaseModel:
    """A random model, the same in each process on one kind of device: float32 on the CPU, bfloat16 elsewhere.

    With `says_label_words` the rows of the two label words in its output layer are so large that one of them is nearly
    always the likeliest token, as it is for an adapter that was trained to answer with them. Which of the two says
    nothing.
    """
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(device):
        config = CONFIG_MAPPING[shape.model_type](**shape.config)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.eval().requires_grad_(False)
    tokenizer = Tokenizer.from_file(str(DEMO_BASE / "tokenizer.json"))
    rows = model.get_output_embeddings().weight
    if says_label_words:
        attack, clean = (tokenizer.token_to_id(word) for word in ("INJECTION", "BENIGN"))
        direction = torch.from_numpy(np.random.default_rng(0).normal(0, LABEL_STD, shape.hidden)).to(rows)
        rows[attack], rows[clean] = direction, -direction
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        template=load_template(DEMO_BASE),
        device=str(rows.device),
        dtype=str(rows.dtype).removeprefix("torch."),
        end_tokens=frozenset(),
    )
