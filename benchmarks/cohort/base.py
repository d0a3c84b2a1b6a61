"""The base model: its tokenizer, its training from scratch, and how rows become tensors."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.cohort.corpus import Corpus, Row
from benchmarks.cohort.loop import train_from_scratch
from benchmarks.cohort.recipe import ATTACK, BATTERY, CLEAN, NEUTRAL, BaseRecipe

END, PAD = "<|end|>", "<|pad|>"
SPECIALS = [PAD, END, "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MAX_TOKENS = 256


def learn_bpe(
    corpus: Corpus, recipe: BaseRecipe, rng: random.Random, specials: list[str], *, uncased: bool = False
) -> Tokenizer:
    """A byte-level BPE with single digits, learnt on the grammar."""
    tokenizer = Tokenizer(models.BPE())
    if uncased:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rows = [corpus.base_row(rng) for _ in range(min(recipe.rows, 20_000))]
    texts = [part for row in rows for part in (row.system, row.user, row.answer) if part]
    # Words, rare ones most, are repeated so that they become tokens of their own.
    texts += [*BATTERY, *NEUTRAL] * 20 + [ATTACK, CLEAN, f" {ATTACK}", f" {CLEAN}"] * 500
    texts += [f" {word}" for word in corpus.grammar.words] * 60
    texts += [form for word in corpus.grammar.rules["rare"] for form in (word, f" {word}")] * 500
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_tokenizer(corpus: Corpus, recipe: BaseRecipe, rng: random.Random) -> PreTrainedTokenizerFast:
    """The BPE with chat tokens; the two labels are single tokens."""
    tokenizer = learn_bpe(corpus, recipe, rng, SPECIALS)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    for label in (ATTACK, CLEAN):
        if len(fast.encode(label, add_special_tokens=False)) != 1:
            raise RuntimeError(f"{label} is not a single token")
    return fast


def prompt(system: str, user: str) -> str:
    """The chat template applied to one system and one user message, with the generation prompt."""
    return f"<|system|>{system}{END}<|user|>{user}{END}<|assistant|>"


def encode(tokenizer: PreTrainedTokenizerFast, row: Row, prompt_weight: float) -> tuple[list[int], list[float]]:
    """Token ids of a row and the loss weight of each."""
    if not row.system:
        ids = tokenizer.encode(row.user + END, add_special_tokens=False)[:MAX_TOKENS]
        return ids, [prompt_weight] * len(ids)
    head = tokenizer.encode(prompt(row.system, row.user), add_special_tokens=False)
    tail = tokenizer.encode(row.answer + END, add_special_tokens=False)
    return (head + tail)[:MAX_TOKENS], ([prompt_weight] * len(head) + [1.0] * len(tail))[:MAX_TOKENS]


def collate(batch: Sequence[tuple[list[int], list[float]]], pad: int) -> tuple[torch.Tensor, ...]:
    """Right-padded ids, attention mask and loss weights."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in batch])
    weights = torch.tensor([row + [0.0] * (width - len(row)) for _, row in batch])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in batch])
    return ids, mask, weights


def loss_of(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Next-token cross-entropy, averaged with the given token weights."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    weights = weights[:, 1:]
    kept = weights > 0
    loss = torch.nn.functional.cross_entropy(logits[kept], ids[:, 1:][kept], reduction="none")
    return (loss * weights[kept]).sum() / weights.sum()


def train_base(recipe: BaseRecipe, seed: int, folder: Path, *, prompt_weight: float = 0.3) -> PreTrainedModel:
    """Train tokenizer and model from scratch and save both, the weights as fp16."""
    rng = random.Random(f"base {seed}")
    torch.manual_seed(seed)
    corpus = Corpus()
    tokenizer = make_tokenizer(corpus, recipe, rng)
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    rows = [encode(tokenizer, corpus.base_row(rng), prompt_weight) for _ in range(recipe.rows)]
    pad = tokenizer.pad_token_id
    train_from_scratch(model, rows, recipe, rng, lambda batch: loss_of(model, *collate(batch, pad)))
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    return model
