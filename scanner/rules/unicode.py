"""Characters that nobody sees: text for the model or the reader's editor that a person cannot read."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["InvisibleRun", "invisible_characters"]

MAX_CHARS = 4 * 1024**2
MAX_RUNS = 64
MAX_DECODED = 500
LONG_RUN = 8
"""From so many zero-width characters in a row on they carry data, not layout."""

_TAGS = range(0xE0000, 0xE0080)
_SELECTORS = range(0xFE00, 0xFE10)
_MORE_SELECTORS = range(0xE0100, 0xE01F0)
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BIDI_MARKS = frozenset("\u200e\u200f\u061c")
_JOINERS = frozenset("\u200c\u200d")
_ZERO_WIDTH = frozenset("\u200b\u2060\ufeff\u180e\u034f\u17b4\u17b5")
_OPERATORS = frozenset("\u2061\u2062\u2063\u2064\u206a\u206b\u206c\u206d\u206e\u206f")
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
_SOFT_HYPHEN = "\u00ad"
_BLACK_FLAG = "\U0001f3f4"
_JOINING = ("ARABIC", "SYRIAC", "MONGOLIAN", "NKO", "MANDAIC", "DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI", "ORIYA",
            "TAMIL", "TELUGU", "KANNADA", "MALAYALAM", "SINHALA", "TIBETAN", "MYANMAR", "KHMER", "BALINESE", "JAVANESE",
            "HANIFI", "ADLAM", "THAI", "LAO")  # fmt: skip
"""Scripts in which a joiner or non-joiner between letters changes how they are written."""
_RIGHT_TO_LEFT = frozenset({"R", "AL", "AN"})


@dataclass(frozen=True)
class InvisibleRun:
    """Invisible characters in a row."""

    kind: str
    """`tag`, `bidi`, `bidi_mark`, `zero_width`, `selector`, `operator`, `filler` or `soft_hyphen`."""
    codepoints: tuple[str, ...]
    """`U+200B`, ...; the first `MAX_DECODED` of them."""
    position: int
    length: int
    decoded: str = ""
    """The text that tag characters or variation selectors spell."""
    hides_text: bool = False
    """Whether it carries a text or shows another one than there is: more than careless copying leaves behind."""


def invisible_characters(text: str) -> tuple[InvisibleRun, ...]:
    """Runs of invisible characters that no script, emoji or byte order mark explains, at most `MAX_RUNS`.

    Only the first `MAX_CHARS` characters are looked at.
    """
    if text.isascii():
        return ()
    text = text[:MAX_CHARS]
    runs: list[InvisibleRun] = []
    for kind, start, end in _runs(text):
        if not _explained(kind, text, start, end):
            runs.append(_described(kind, text, start, end))
            if len(runs) == MAX_RUNS:
                break
    return tuple(runs)


def _kind(character: str) -> str | None:
    code = ord(character)
    if code < 0xAD:
        return None
    if code in _TAGS:
        return "tag"
    if code in _SELECTORS or code in _MORE_SELECTORS:
        return "selector"
    if character in _BIDI:
        return "bidi"
    if character in _BIDI_MARKS:
        return "bidi_mark"
    if character in _JOINERS or character in _ZERO_WIDTH:
        return "zero_width"
    if character in _OPERATORS:
        return "operator"
    if character in _FILLERS:
        return "filler"
    return "soft_hyphen" if character == _SOFT_HYPHEN else None


def _runs(text: str) -> Iterator[tuple[str, int, int]]:
    start, kind = 0, None
    for index, character in enumerate(text):
        found = _kind(character)
        if found != kind:
            if kind is not None:
                yield kind, start, index
            start, kind = index, found
    if kind is not None:
        yield kind, start, len(text)


def _described(kind: str, text: str, start: int, end: int) -> InvisibleRun:
    decoded = ""
    if kind == "tag":
        decoded = "".join(chr(ord(c) - 0xE0000) for c in text[start:end] if 0x20 <= ord(c) - 0xE0000 < 0x7F)
    elif kind == "selector":
        decoded = _selected_bytes(text[start:end]).decode("utf-8", errors="replace")
    hides = kind in ("tag", "bidi") or (end - start >= LONG_RUN and kind != "soft_hyphen")
    if kind == "selector" and end - start >= 3:
        hides = True
    codepoints = tuple(f"U+{ord(c):04X}" for c in text[start : min(end, start + MAX_DECODED)])
    return InvisibleRun(kind, codepoints, start, end - start, decoded[:MAX_DECODED], hides)


def _selected_bytes(text: str) -> bytes:
    """The bytes that the 256 variation selectors stand for where they carry data."""
    codes = [ord(character) for character in text]
    return bytes(code - 0xFE00 if code in _SELECTORS else code - 0xE0100 + 16 for code in codes)


def _explained(kind: str, text: str, start: int, end: int) -> bool:
    before = text[start - 1] if start else ""
    after = text[end] if end < len(text) else ""
    if kind == "tag":
        return _is_flag(text, start, end)
    if kind == "selector":
        return end - start == 1 and before != "" and _takes_selector(before)
    if kind == "zero_width":
        if start == 0 and text[start:end] == "\ufeff":
            return True
        return end - start == 1 and text[start] in _JOINERS and _joins(text, start, before, after)
    if kind == "bidi_mark":
        return end - start == 1 and (_near_right_to_left(text, start, end))
    if kind == "bidi":
        return end - start == 1 and text[start] in "\u2066\u2067\u2068\u2069" and _isolates_plainly(text, start)
    if kind == "filler":
        # Blank braille cells and halfwidth fillers stand in braille art and between Hangul letters.
        return (text[start] == "\u2800" and end - start < 200 and (_is_braille(before) or _is_braille(after))) or (
            end - start == 1 and (_is_jamo(before) or _is_jamo(after))
        )
    if kind == "soft_hyphen":
        # One soft hyphen between longer parts is typesetting; many in one word break a word that a filter looks for.
        return end - start == 1 and not _chopped(text, start)
    return False


def _is_flag(text: str, start: int, end: int) -> bool:
    """England, Scotland, Wales: a black flag, three to six tag letters, the cancel tag."""
    letters = "".join(chr(ord(character) - 0xE0000) for character in text[start : end - 1])
    return (
        start > 0
        and text[start - 1] == _BLACK_FLAG
        and text[end - 1] == "\U000e007f"
        and 3 <= len(letters) <= 6
        and letters.isascii()
        and letters.isalnum()
        and letters.islower()
    )


def _takes_selector(before: str) -> bool:
    # Emoji and symbols, keycaps (# * 0-9), ideographs and Mongolian or mathematical letters have variants.
    return (
        before in "#*0123456789\u200d"
        or (unicodedata.category(before) in ("So", "Sm", "Po", "Sk", "Pd", "Ps", "Pe") and not before.isascii())
        or unicodedata.category(before) in ("Lo", "Mn", "Me")
    )


def _joins(text: str, position: int, before: str, after: str) -> bool:
    if before == "" or after == "":
        return False
    if text[position] == "\u200d" and _pictured(before) and _pictured(after):
        return True
    return _joining(before) and (_joining(after) or not after.isalnum())


def _pictured(character: str) -> bool:
    code = ord(character)
    return code >= 0x1F000 or 0x2190 <= code <= 0x2BFF or character in "\ufe0f\u20e3"


@lru_cache(maxsize=4096)
def _joining(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_JOINING)


def _near_right_to_left(text: str, start: int, end: int) -> bool:
    near = text[max(0, start - 40) : end + 40]
    return any(
        unicodedata.bidirectional(character) in _RIGHT_TO_LEFT for character in near if character not in _BIDI_MARKS
    )


def _isolates_plainly(text: str, start: int) -> bool:
    """An isolate that is closed in its line and holds or stands in right-to-left text, as editors insert them."""
    if text[start] == "\u2069":
        line_start = text.rfind("\n", max(0, start - 400), start) + 1
        opened = max(text.rfind(opening, line_start, start) for opening in "\u2066\u2067\u2068")
        return opened >= 0 and _near_right_to_left(text, opened, start)
    line_end = text.find("\n", start, start + 400)
    closed = text.find("\u2069", start, line_end if line_end >= 0 else start + 400)
    return closed >= 0 and _near_right_to_left(text, start, closed)


def _is_braille(character: str) -> bool:
    return character != "" and 0x2801 <= ord(character) <= 0x28FF


def _is_jamo(character: str) -> bool:
    return character != "" and (0x1100 <= ord(character) <= 0x11FF or 0x3130 <= ord(character) <= 0x318F)


def _chopped(text: str, position: int) -> bool:
    left = position
    while left > 0 and position - left < 64 and (text[left - 1].isalpha() or text[left - 1] == _SOFT_HYPHEN):
        left -= 1
    right = position + 1
    while right < len(text) and right - position < 64 and (text[right].isalpha() or text[right] == _SOFT_HYPHEN):
        right += 1
    parts = text[left:right].split(_SOFT_HYPHEN)
    return len(parts) >= 3 and max(len(part) for part in parts) <= 2
