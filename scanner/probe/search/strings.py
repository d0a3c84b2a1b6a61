"""Made-up strings of the kinds that triggers are of: codes, paths, markup, other scripts, phrases.

An adapter that learnt one string to look for reacts to strings like it (arXiv:2605.30189, section on the token
neighbourhood). No string of a battery is among these, and none is a trigger that anybody is known to have used: they
are drawn, and there are many of each kind.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence

__all__ = ["KINDS", "made_up"]

_LOWER, _UPPER, _DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
_CYRILLIC = "абвгдежзийклмнопрстуфхцчшщыьэюя"
_GREEK = "αβγδεζηθικλμνξοπρστυφχψω"
_HAN_AND_KANA = "的一是不了人我在有中日の字に大小上下山水"
_SYMBOLS = "§¤±★→◆•†‡¶×√∞≈♥☀✓∴♣"
_PUNCTUATION = "!?.;:-=~*#+_|^"
_MANY_VOWELS = "aeioulrstnmdcpbgv"
"""Letters of which words of European languages are mostly made."""
_SEED = "strings"
_USUAL_WORDS = ("note", "time", "house", "river", "paper", "light", "garden", "letter")
"""Where a vocabulary has no words."""
_MIN_WORD = 4


class _Drawn:
    """Parts of strings."""

    def __init__(self, words: Sequence[str], seed: str) -> None:
        self.rng, self._words = random.Random(seed), words

    def word(self) -> str:
        return self.rng.choice(self._words)

    def run(self, alphabet: str, least: int, most: int) -> str:
        return "".join(self.rng.choice(alphabet) for _ in range(self.rng.randint(least, most)))

    def several(self, least: int, most: int, part: Callable[[], str], between: str = " ") -> str:
        return between.join(part() for _ in range(self.rng.randint(least, most)))

    def one(self, *choices: str) -> str:
        return self.rng.choice(choices)


def _code(d: _Drawn) -> str:
    parts = [d.run(_UPPER, 1, 3) + d.run(_DIGITS, 0, 1), d.run(_DIGITS, 2, 5), d.run(_UPPER, 1, 2)]
    return d.one(*"-/.#_:").join(parts[: d.rng.randint(2, 3)])


def _path(d: _Drawn) -> str:
    return f"{d.one('/', '~/', 'C:/')}{d.several(1, 3, d.word, '/')}.{d.run(_LOWER, 2, 4)}"


def _file(d: _Drawn) -> str:
    return f"{d.word()}_{d.word()}{d.run(_DIGITS, 0, 2)}.{d.one('txt', 'log', 'pdf', 'docx', 'bin', 'csv')}"


def _url(d: _Drawn) -> str:
    address = f"{d.one('http://', 'https://', 'www.')}{d.word()}.{d.run(_LOWER, 2, 5)}"
    return d.one(address, f"{address}/{d.word()}")


def _markup(d: _Drawn) -> str:
    name, number = d.word(), d.run(_DIGITS, 1, 2)
    return d.one(
        f"<{name} {d.word()}={number}>",
        f"[[{name} {d.run(_LOWER, 2, 3)}={number}]]",
        f"{{{{{name}|{number}}}}}",
        f"<{name}/>",
        f"[{name}:{number}]",
    )


def _citation(d: _Drawn) -> str:
    number = d.one(d.run(_DIGITS, 1, 2), d.run(_UPPER, 1, 1))
    part = d.one("part", "section", "clause", "annex", "no.")
    return (
        f"{d.one('see', 'cf.', 'per', 'quoting', 'under')} {d.run(_UPPER, 2, 4)} {d.run(_DIGITS, 2, 4)} {part} {number}"
    )


KINDS: dict[str, Callable[[_Drawn], str]] = {
    "code": _code,
    "identifier": lambda d: d.several(3, 3, lambda: d.run("0123456789abcdef", 4, 8), "-"),
    "numbers": lambda d: d.several(2, 4, lambda: d.run(_DIGITS, 1, 5)),
    "path": _path,
    "file": _file,
    "url": _url,
    "markup": _markup,
    "punctuation": lambda d: d.run(_PUNCTUATION, 4, 8),
    "symbols": lambda d: d.several(2, 4, lambda: d.run(_SYMBOLS, 1, 1), d.one("", " ")),
    "cyrillic": lambda d: d.several(2, 3, lambda: d.run(_CYRILLIC, 3, 8)),
    "greek": lambda d: d.several(2, 3, lambda: d.run(_GREEK, 3, 8)),
    "han": lambda d: d.run(_HAN_AND_KANA, 3, 8),
    "foreign": lambda d: d.several(3, 4, lambda: d.run(_MANY_VOWELS, 2, 8)),
    "phrase": lambda d: d.several(3, 5, d.word),
    "citation": _citation,
    "word": lambda d: d.word() + d.word(),
}
"""Name -> draws one."""


def made_up(tokens: Sequence[str], n: int) -> list[str]:
    """At most n strings of each kind, the same for the same tokens, each once.

    Args:
        tokens: a vocabulary's, decoded; those that are plain words are the words of strings.
        n: of each kind.
    """
    words = [token.lower() for token in tokens if token.isascii() and token.isalpha() and len(token) >= _MIN_WORD]
    found: dict[str, None] = {}
    for kind, draw in KINDS.items():
        drawn = _Drawn(words or _USUAL_WORDS, f"{_SEED} {kind}")
        found |= dict.fromkeys(draw(drawn) for _ in range(n))
    return list(found)
