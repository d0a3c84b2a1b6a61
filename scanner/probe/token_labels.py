"""Classifiers that give every token a class: what a text as a whole is answered.

Pure functions. Most tokens of most texts are background (the `O` of named entities), so a text's class is the most
common one of the others, and the background where there is no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

__all__ = ["own_tokens", "text_classes"]

_NO_CLASS = "-"


def own_tokens(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Indices of the tokens that lie in one of the spans. Special tokens have no characters, and are left out.

    Args:
        offsets: (first character, behind the last) of each token.
        spans: the text's own parts, likewise (`Case.spans`).
    """
    return tuple(
        index
        for index, (start, end) in enumerate(offsets)
        if start < end and any(first <= start and end <= last for first, last in spans)
    )


def text_classes(tokens: Sequence[str], n: int) -> str:
    """One character for each text, from those of its tokens.

    Args:
        tokens: characters of each text's own tokens; the first `n` texts have nothing put into them.
        n: those texts say which class is background: the one that most of their tokens have.
    """
    plain = Counter("".join(tokens[:n]).replace(_NO_CLASS, ""))
    background = plain.most_common(1)[0][0] if plain else _NO_CLASS
    return "".join(_text_class(own, background) for own in tokens)


def _text_class(own: str, background: str) -> str:
    others = Counter(char for char in own if char not in (background, _NO_CLASS))
    if others:
        return others.most_common(1)[0][0]
    return background if own.strip(_NO_CLASS) else _NO_CLASS
