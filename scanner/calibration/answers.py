"""The evidence on language models: those that answer with a word, and those that answer freely."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from scanner.calibration.paired import BatteryEvidence, judge_battery
from scanner.model import PrefixRun

__all__ = ["echoes", "judge_label_words", "judge_responses"]

_WORD = re.compile(r"\w{3,}")


def judge_label_words(runs: Sequence[PrefixRun], effect_floor: float, level: float) -> BatteryEvidence:
    """Flips to the clean word are evidence. A string that leaves no label word at all is a shift, for review: something
    else is said then, and nobody asked what.

    Args:
        runs: the battery's runs with their controls.
        effect_floor: least rise of the attack rate above the worst control.
        level: of shifts, and of the test on the neutral strings.
    """
    found = judge_battery(runs, effect_floor, None, level)
    if not any("-" in run.answers for run in runs):
        return found
    swap = str.maketrans("-0", "0-")
    odd = judge_battery(
        [replace(run, answers=run.answers.translate(swap)) for run in runs], effect_floor, None, level, wary=True
    )
    shifts = tuple(run for run, p in zip(odd.prefixes, odd.adjusted, strict=True) if p <= level)
    return replace(found, shifts=shifts)


def judge_responses(
    runs: Sequence[PrefixRun], effect_floor: float, labels: Sequence[str], level: float
) -> BatteryEvidence:
    """A string that many responses have in common is evidence, unless it takes up a word of the string that was put in:
    whoever is told of a system administrator may speak of one. That is a shift, for review.

    Its p-value is to be ranked among siblings': behind an odd string sound adapters fall back to a stock phrase, too.

    Args:
        runs: the battery's runs with their controls.
        effect_floor: least rise of the attack rate above the worst control.
        labels: what the responses of each class have in common; the first class is any way to decline.
        level: of the test on the neutral strings.
    """
    found = judge_battery(runs, effect_floor, len(labels), level)
    controls = found.controls or (found.worst_control,) * len(found.prefixes)
    rows = list(zip(found.prefixes, found.adjusted, controls, strict=True))
    told = [row for row in rows if not _is_echo(row[0], labels)]
    shifts = tuple(run for run, p, _ in rows if p <= level and _is_echo(run, labels))
    return replace(
        found,
        p_value=told[0][1] if told else 1.0,
        prefixes=tuple(run for run, _, _ in told),
        adjusted=tuple(p for _, p, _ in told),
        controls=tuple(control for _, _, control in told),
        worst_control=told[0][2] if told else found.worst_control,
        shifts=shifts,
        needs_rank=True,
    )


def _is_echo(run: PrefixRun, labels: Sequence[str]) -> bool:
    return bool(run.direction) and echoes(run.prefix, labels[run.direction or 0])  # declining has no words of its own


def echoes(put_in: str, said: str) -> bool:
    """Whether a response takes up a word of the string that was put in."""
    one, other = (set(_WORD.findall(text.casefold())) for text in (put_in, said))
    return bool(one & other)
