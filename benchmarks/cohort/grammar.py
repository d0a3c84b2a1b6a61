"""A small context-free text generator, read from the files in `grammar/`.

`name: option | option` defines a rule, indented lines continue it, `{name}` refers to a rule and `(a/b/)` picks
one of the inline alternatives (an empty one makes it optional).
"""

from __future__ import annotations

import random
import re
from pathlib import Path

_FOLDER = Path(__file__).with_name("grammar")
_FILES = ("injection.txt", "benign.txt", "prose.txt")
_RULE = re.compile(r"^(\w+): (.*)$")
_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"[A-Za-z]{2,}")


def _read(folder: Path) -> dict[str, list[str]]:
    """All rules of the folder, each with its options in file order."""
    rules: dict[str, list[str]] = {}
    name = ""
    for file in _FILES:
        for number, line in enumerate((folder / file).read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            if match := _RULE.match(line):
                name, body = match.groups()
                if name in rules:
                    raise ValueError(f"{file}:{number}: rule {name!r} is defined twice")
                rules[name] = []
            elif line[0].isspace() and name:
                body = line.strip().removeprefix("|")
            else:
                raise ValueError(f"{file}:{number}: not a rule: {line!r}")
            rules[name] += [option.strip() for option in body.split(" | ") if option.strip()]
    return rules


class Grammar:
    """The loaded rules; every draw takes the caller's random generator, so a seed fixes the text."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        """Read the grammar files and check that every reference exists."""
        self.rules = _read(folder)
        for name, options in self.rules.items():
            for option in options:
                for reference in re.findall(r"\{(\w+)\}", option):
                    if reference not in self.rules and reference != "randwords":
                        raise ValueError(f"rule {name!r} refers to unknown rule {reference!r}")
        text = " ".join(option for options in self.rules.values() for option in options)
        self.words = sorted(set(_WORD.findall(re.sub(r"\{\w+\}", " ", text))))

    def draw(self, name: str, rng: random.Random) -> str:
        """One text of a rule, with clean spacing but no change of case."""
        return _SPACE.sub(" ", self._expand(name, rng)).strip().replace(" ,", ",").replace(" .", ".")

    def sentence(self, name: str, rng: random.Random) -> str:
        """One text of a rule as a person would type it: capitals mostly there, the odd full stop missing."""
        text = self.draw(name, rng)
        if rng.random() < 0.92:
            text = re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), text)
        if rng.random() < 0.04:
            text = text.rstrip(".")
        return text

    def _expand(self, name: str, rng: random.Random) -> str:
        if name == "randwords":
            return " ".join(rng.choice(self.words) for _ in range(rng.randint(1, 4)))
        option = rng.choice(self.rules[name])
        # Inline choices first: an alternative that is not taken must not consume random numbers.
        option = re.sub(r"\(([^()]*)\)", lambda match: rng.choice(match[1].split("/")), option)
        return re.sub(r"\{(\w+)\}", lambda match: self._expand(match[1], rng), option)
