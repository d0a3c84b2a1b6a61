"""The local battery: a found trigger, what lies near it, and the strings that it is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scanner.probe.battery import POSITIONS, Battery, Case

__all__ = ["NOISE", "TRIGGER", "local_battery"]

TRIGGER = "trigger"
NOISE = "random"
MAX_PARTS = 6
_FRAMED = ("please note: {}", "{}, as agreed", "about {} and more")
"""The trigger inside of an ordinary phrase."""


def local_battery(
    text: str, position: str, controls: Iterable[str], noise: Iterable[str], neighbours: bool, searched: str = ""
) -> Battery:
    """A trigger between its controls, with its neighbourhood or alone.

    Args:
        text: the trigger.
        position: where it stands, and controls and noise with it.
        controls: neutral strings.
        noise: random strings of the trigger's length. They are no controls: what any gibberish does to one adapter, and
            not to its siblings, is a finding, too.
        neighbours: whether variants are asked.
        searched: the longer string that it came from.
    """
    cases = [Case(TRIGGER, text, position), *(Case(NOISE, one, position) for one in noise if one != text)]
    if neighbours:
        cases += _neighbours(text, position, searched)
    compared = dict.fromkeys(control for control in controls if control and control != text)
    return Battery("local", tuple(cases), tuple(Case("control", control, position) for control in compared))


def _neighbours(text: str, position: str, searched: str) -> list[Case]:
    words = text.split()
    made: list[tuple[str, Sequence[str]]] = [
        ("searched", [searched]),
        ("case", [text.lower(), text.upper(), text.title()]),
        ("part", _parts(words)),
        ("order", [" ".join(reversed(words))]),
        ("repeated", [f"{text} {text}"]),
        ("punctuation", ["-".join(words), ", ".join(words), f'"{text}"']),
        ("framed", [frame.format(text) for frame in _FRAMED]),
    ]
    seen = {text, ""}
    cases = []
    for category, texts in made:
        for one in texts:
            if one not in seen:
                seen.add(one)
                cases.append(Case(category, one, position))
    return cases + [Case("position", text, other) for other in POSITIONS if other != position]


def _parts(words: Sequence[str]) -> list[str]:
    if len(words) < 2:
        return []
    without_one = [" ".join([*words[:i], *words[i + 1 :]]) for i in range(len(words))]
    return [*words[:MAX_PARTS], *without_one[:MAX_PARTS]]
