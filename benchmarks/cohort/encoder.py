"""The second base: a small BERT, its tokenizer and its pretraining by masked words, copies and fitting replies."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import processors
from transformers import BertConfig, BertForPreTraining, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.cohort.base import learn_bpe
from benchmarks.cohort.corpus import Corpus, Pair
from benchmarks.cohort.loop import Rows, train_from_scratch
from benchmarks.cohort.recipe import EncoderRecipe

SPECIALS = PAD, UNKNOWN, START, SEPARATOR, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
MAX_TOKENS = 192
IGNORED = -100  # what torch's cross-entropy leaves out


def make_tokenizer(corpus: Corpus, recipe: EncoderRecipe, rng: random.Random) -> PreTrainedTokenizerFast:
    """An uncased byte-level BPE whose post-processor adds the special tokens, as BERT's does."""
    tokenizer = learn_bpe(corpus, recipe, rng, list(SPECIALS), uncased=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {SEPARATOR}",
        pair=f"{START} $A {SEPARATOR} $B:1 {SEPARATOR}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, SEPARATOR)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=START,
        sep_token=SEPARATOR,
        mask_token=MASK,
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def masked(tokenizer: PreTrainedTokenizerFast, pair: Pair, rng: random.Random) -> tuple[list[int], ...]:
    """Ids, segments, targets and the pair's label: 15 % of the words hidden as in BERT, or the whole second segment."""
    coded = tokenizer(*filter(None, (pair.first, pair.second)), truncation=True, max_length=MAX_TOKENS)
    ids, segments = coded["input_ids"], coded["token_type_ids"]
    specials = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    targets = [IGNORED] * len(ids)
    for i, token in enumerate(ids):
        if token in specials or not (segments[i] == 1 if pair.hidden else rng.random() < 0.15):
            continue
        targets[i] = token
        kind = 0.0 if pair.hidden else rng.random()
        ids[i] = tokenizer.mask_token_id if kind < 0.8 else rng.randrange(len(tokenizer)) if kind < 0.9 else token
    return ids, segments, targets, [IGNORED if pair.fits is None else pair.fits]


def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    """Right-padded rows."""
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def _loss(model: BertForPreTraining, batch: Rows, pad: int) -> torch.Tensor:
    """Cross-entropy of the hidden words plus that of "does the reply fit the message"."""
    ids, segments, targets, fits = zip(*batch, strict=True)
    tokens, wanted = padded(list(ids), pad), padded(list(targets), IGNORED)
    out = model.bert(tokens, attention_mask=(tokens != pad).long(), token_type_ids=padded(list(segments), 0))
    chosen = wanted != IGNORED
    words = model.cls.predictions(out.last_hidden_state[chosen])  # logits of the hidden words only: the rest is waste
    loss = torch.nn.functional.cross_entropy(words, wanted[chosen])
    answers = torch.tensor(fits)[:, 0]
    if bool((answers != IGNORED).any()):
        loss = loss + torch.nn.functional.cross_entropy(model.cls.seq_relationship(out.pooler_output), answers)
    return loss


def train_encoder(recipe: EncoderRecipe, seed: int, folder: Path) -> PreTrainedModel:
    """Train tokenizer and model from scratch and save both, the weights as fp16. There is no classification head."""
    rng = random.Random(f"encoder {seed}")
    torch.manual_seed(seed)
    corpus = Corpus()
    tokenizer = make_tokenizer(corpus, recipe, rng)
    model = BertForPreTraining(
        BertConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=MAX_TOKENS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    rows: Rows = [masked(tokenizer, corpus.pair(rng), rng) for _ in range(recipe.rows)]
    train_from_scratch(model, rows, recipe, rng, lambda batch: _loss(model, batch, tokenizer.pad_token_id))
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
