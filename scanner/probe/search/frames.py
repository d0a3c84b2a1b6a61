"""Texts with a gap where a string is put, as token ids.

Imported only inside the probe worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scanner.errors import UnsupportedError
from scanner.probe.battery import Case

__all__ = ["Frame", "Frames", "Spelled", "bare_frame"]

Ids = tuple[int, ...]
_PLACEHOLDER = "hello"


@dataclass(frozen=True)
class Frame:
    """One text's tokens before and after the gap."""

    before: Ids
    after: Ids

    def fill(self, ids: Sequence[int]) -> Ids:
        """The whole sequence with a string in the gap."""
        return (*self.before, *ids, *self.after)


@dataclass(frozen=True)
class Spelled:
    """A string and the tokens that it has inside a text."""

    text: str
    ids: Ids


class Frames:
    """The frames of some texts at one position.

    Args:
        tokenizer: tokenizers.Tokenizer.
        texts: without anything put in.
        position: prefix, suffix or middle.
        render: what is asked of a text: a chat prompt, or the text itself.
        special: whether the tokenizer adds its special tokens.

    Raises:
        UnsupportedError: `search_frame` where a plain word in the text is not found again among its tokens.
    """

    def __init__(
        self, tokenizer: Any, texts: Sequence[str], position: str, render: Callable[[str], str], special: bool
    ) -> None:
        self._tokenizer, self._texts, self.position = tokenizer, tuple(texts), position
        self._render, self._special = render, special
        case = Case("search", _PLACEHOLDER, position)
        found = []
        for text in texts:
            whole = render(case.put(text))
            start = whole.rfind(case.put(text)) + _offset(case, text)
            encoding = tokenizer.encode(whole, add_special_tokens=special)
            end = start + len(_PLACEHOLDER)
            # Special tokens have the offsets (0, 0).
            inside = [i for i, (a, b) in enumerate(encoding.offsets) if a < end and b > start and b > a]
            if whole[start:end] != _PLACEHOLDER or not inside:
                raise UnsupportedError("a string cannot be found again in the tokens of its text", "search_frame")
            found.append(Frame(tuple(encoding.ids[: inside[0]]), tuple(encoding.ids[inside[-1] + 1 :])))
        self.frames = tuple(found)
        plain = tokenizer.encode_batch([render(text) for text in texts], add_special_tokens=special)
        self.plain = tuple(tuple(encoding.ids) for encoding in plain)
        """The texts with nothing put into them."""
        # Strings are spelled inside of the shortest text: what is next to the gap is alike in all of them.
        self._model = min(range(len(texts)), key=lambda i: len(self.frames[i].before) + len(self.frames[i].after))

    def spell(self, texts: Sequence[str]) -> list[Spelled | None]:
        """Strings with the tokens that they have once they are inside a text; None where they run into it."""
        frame, inside = self.frames[self._model], self._texts[self._model]
        wholes = [self._render(Case("search", text, self.position).put(inside)) for text in texts]
        spelled: list[Spelled | None] = []
        for text, encoding in zip(
            texts, self._tokenizer.encode_batch(wholes, add_special_tokens=self._special), strict=True
        ):
            ids = tuple(encoding.ids)
            first, last = len(frame.before), len(ids) - len(frame.after)
            fits = first < last and ids[:first] == frame.before and ids[last:] == frame.after
            spelled.append(Spelled(text, ids[first:last]) if fits and text else None)
        return spelled


def bare_frame(tokenizer: Any, special: bool) -> Frame:
    """The frame of no text at all: what the tokenizer puts around anything.

    Raises:
        UnsupportedError: as of `Frames`.
    """
    encoding = tokenizer.encode(_PLACEHOLDER, add_special_tokens=special)
    inside = [i for i, (a, b) in enumerate(encoding.offsets) if b > a]
    if not inside:
        raise UnsupportedError("a string cannot be found again among its own tokens", "search_frame")
    return Frame(tuple(encoding.ids[: inside[0]]), tuple(encoding.ids[inside[-1] + 1 :]))


def _offset(case: Case, text: str) -> int:
    """Where a case's string begins in what `put` makes of a text."""
    if case.position == "prefix":
        return 0
    if case.position == "suffix":
        return len(text) + 1
    return case.spans(text)[0][1] + 1
