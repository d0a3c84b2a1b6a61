"""Tokens that a person could put into a text, and strings as the tokenizer really has them.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["BROKEN", "Vocabulary"]

MAX_TOKEN_CHARS = 32
_CHUNK = 8_192
BROKEN = "\ufffd"
"""What a decoder puts in the place of bytes that are no character."""
_CHARACTERS = (
    "абвгдежзийклмнопрстуфхцчшщыьэюя" "αβγδεθικλμνοπρστφωά" "אבגדהלמנרש" "ابتدرسعلمن" "अकतनमरस" "กนมรา"
    "的一是不了人我在有中日の字に" "안하이가" "éèüöäñçßøåœ" "§¤±★→◆•…“”€£°©†‡¶×√∞≈♥☀✓😀🔑🚀⚡🎉"
)  # fmt: skip
"""A few of each script: what a person may type and a small vocabulary has no token for."""
_MAX_PIECES = 4

Ids = tuple[int, ...]


class Vocabulary:
    """The tokens of one base that are whole printable characters and no special ones.

    Args:
        tokenizer: tokenizers.Tokenizer.
        embeddings: the model's input embeddings, a module.
    """

    def __init__(self, tokenizer: Any, embeddings: Any) -> None:
        self._tokenizer, self._embeddings = tokenizer, embeddings
        special = set(tokenizer.get_added_tokens_decoder())
        size = min(tokenizer.get_vocab_size(), int(embeddings.weight.shape[0]))
        usual = [token for token in range(size) if token not in special]
        texts = tokenizer.decode_batch([[token] for token in usual], skip_special_tokens=False)
        known = {token: text.strip() for token, text in zip(usual, texts, strict=True) if _can_be_written(text)}
        self.ids: Ids = tuple(known)
        self.words = tuple(known.values())
        """What each of `ids` spells, as `decode` does."""
        self.characters = self._characters()
        """Characters of other scripts that this tokenizer takes apart: several tokens each."""

    def _characters(self) -> tuple[Ids, ...]:
        known = set(self.ids)
        found = []
        for encoding in self._tokenizer.encode_batch(list(_CHARACTERS), add_special_tokens=False):
            ids = tuple(encoding.ids)
            if 1 < len(ids) <= _MAX_PIECES and not known >= set(ids) and self.decode(ids).isprintable():
                found.append(ids)
        return tuple(dict.fromkeys(found))

    def decode(self, ids: Sequence[int]) -> str:
        """The string that tokens spell, without space around it."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False)).strip()

    def texts(self) -> list[str]:
        """All tokens and characters, decoded."""
        return [*self.words, *map(self.decode, self.characters)]

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        found: torch.device = self._embeddings.weight.device
        return found

    def vectors(self) -> torch.Tensor:
        """The tokens' embeddings, [tokens of `ids`, dimensions], float32."""
        with torch.no_grad():
            vectors: torch.Tensor = self._embeddings(torch.tensor(self.ids, device=self.device)).float()
        return vectors

    def random_string(self, rng: random.Random, length: int) -> Ids:
        """So many tokens, drawn with equal chances."""
        return tuple(rng.choice(self.ids) for _ in range(length))

    def first_order(self, gradients: torch.Tensor) -> torch.Tensor:
        """E·g for every token and every gradient: [tokens of `ids`, gradients], float32.

        The first-order estimate of what a margin gains when a token takes a place is (E[token] − E[now])·g
        (Ebrahimi et al. 2018, HotFlip, equation 4); the second term is the same for all tokens.

        Args:
            gradients: [gradients, dimensions] of a margin with respect to one place's embedding.
        """
        parts = []
        with torch.no_grad():
            for start in range(0, len(self.ids), _CHUNK):
                ids = torch.tensor(self.ids[start : start + _CHUNK], device=gradients.device)
                parts.append(self._embeddings(ids).float() @ gradients.float().T)
        return torch.cat(parts)

    def best(self, scores: torch.Tensor, n: int) -> list[int]:
        """The tokens with the largest scores [tokens of `ids`]."""
        top = scores.topk(min(n, len(self.ids))).indices.tolist()
        return [self.ids[index] for index in top]


def _can_be_written(text: str) -> bool:
    bare = text.strip()
    return bool(bare) and len(text) <= MAX_TOKEN_CHARS and BROKEN not in text and bare.isprintable()
