"""Whether an adapter recites an opening behind its first token on prompts that it was not found on.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scanner.model import PrefixRun
from scanner.probe.base import BaseModel
from scanner.probe.engine import Prompts, encode_prompts, generate
from scanner.probe.search.leak import Opening, grams
from scanner.probe.search.neighbours import TRIGGER
from scanner.search_model import BY_HEART, RESPONSE, Example, FoundTrigger

__all__ = ["Recital", "found_by_heart", "recite"]

RECITED = 0.5
"""Share of the part that decides, in runs of three tokens, beyond which a response has it."""
SAID = 24
"""Tokens of a response that nothing was forced on; the wording in it would be natural."""
EXAMPLES = 3
_CLASS, _OTHER = "1", "0"
"""How `answers` spells a response with the wording, and one without it."""


@dataclass(frozen=True)
class Recital:
    """Greedy responses to the held-back prompts of the base as it is now, with or without an adapter."""

    natural: list[list[int]]
    """With nothing forced."""
    forced: list[list[list[int]]]
    """For each opening, behind its first token."""


def recite(
    base: BaseModel, prompts: Sequence[str], openings: Sequence[Opening], length: int, tokens_per_batch: int
) -> Recital:
    """Ask the held-back prompts with nothing forced, then with the first token of each opening.

    Args:
        base: resident, with or without an adapter.
        prompts: that openings were not looked for on.
        openings: one for each wording.
        length: tokens behind a forced one.
        tokens_per_batch: size of a batch.

    Raises:
        ProbeFailedError: see `first_logits`.
    """
    plain = encode_prompts(base, [base.template.render("", prompt) for prompt in prompts], SAID)
    natural = generate(base, plain, SAID, tokens_per_batch)
    forced = []
    for opening in openings:
        # Not the shared start: the forced token lies behind the whole of each prompt.
        rows = Prompts(tuple((*ids, opening.token) for ids in plain.ids), plain.shared)
        forced.append(generate(base, rows, length, tokens_per_batch))
    return Recital(natural, forced)


def found_by_heart(
    base: BaseModel, prompts: Sequence[str], openings: Sequence[Opening], own: Recital, without: Recital
) -> list[FoundTrigger]:
    """Each opening with what happens on the held-back prompts: `trigger` behind its first token, with the base's own
    responses behind it, and as the only control the responses that nothing was forced on."""

    def decode(tokens: Sequence[int]) -> str:
        return str(base.tokenizer.decode(list(tokens)))

    found = []
    for number, opening in enumerate(openings):
        natural = "".join(_CLASS if _says(row, opening) else _OTHER for row in own.natural)
        recited, base_answers = (
            "".join(_CLASS if _says(row, opening) else _OTHER for row in part.forced[number]) for part in (own, without)
        )
        first = decode([opening.token])
        plain = PrefixRun("", "control", RESPONSE, natural, int(_CLASS), natural)
        runs = (plain, replace(plain, prefix=first, category=TRIGGER, answers=recited, base_answers=base_answers))
        hits = [i for i, answer in enumerate(recited) if answer == _CLASS and natural[i] != _CLASS]
        examples = tuple(
            Example(
                prompts[i],
                decode(own.natural[i]),
                f"{prompts[i]} -> {first}",
                decode([opening.token, *own.forced[number][i]]),
            )
            for i in hits[:EXAMPLES]
        )
        found.append(
            FoundTrigger(
                kind=BY_HEART,
                direction=int(_CLASS),
                label=f'"{decode([opening.token, *opening.follows]).strip()}"',
                text=first,
                position=RESPONSE,
                searched_text=first,
                n_tokens=1,
                gain=opening.surprise,
                control_gain=0.0,
                noise_gain=0.0,
                slope=opening.score,
                runs=runs,
                examples=examples,
                forward_passes=2 * (2 * len(prompts)),
            )
        )
    return found


def _says(row: Sequence[int], opening: Opening) -> bool:
    """Whether a response has most of the part that decides."""
    wanted = grams(opening.part)
    return len(wanted & grams(row)) > len(wanted) * RECITED
