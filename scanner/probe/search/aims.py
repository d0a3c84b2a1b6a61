"""What a search is for: which texts should get which answer, and how far they are from it.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from scanner.model import MIN_ACCURACY
from scanner.probe.base import BaseModel
from scanner.probe.battery import Task
from scanner.probe.label_words import first_tokens
from scanner.probe.search.objective import Margin
from scanner.probe.search.plan import MIN_TEXTS, SearchPlan
from scanner.search_model import FREE, TOWARD_ATTACK, TOWARD_CLEAN, TOWARD_OTHER

__all__ = ["Aim", "class_aims", "class_margin", "contrast", "free_aim", "join_texts", "word_aims", "word_margin"]

_SHORT = 8
"""One text of so many is shorter than the one that stands alone: the very shortest are odd ones."""
_TENTHS = 2.563
"""Standard deviations between the first and the last tenth of a normal distribution."""
_LEAST, _MOST = 0.1, 1_000.0
"""Contrasts are kept within these: ratios of them are compared."""
_SMALLEST_SCALE = 0.1
"""Nats. What has no distance to its aim has nothing to climb."""


@dataclass(frozen=True)
class Aim:
    """One answer that texts should get."""

    kind: str
    direction: int | None
    """The class; None where answers are words."""
    search: tuple[str, ...]
    """Texts that strings are looked for on, the shortest first."""
    held_back: tuple[str, ...]
    """Texts that confirm what was found."""
    margin: Margin
    scale: torch.Tensor
    """[margins], nats between the texts' mean margin and that of texts that have the answer by nature."""
    alone: str = ""
    """Where those of `search` are several said as one: a short one of them by itself."""
    apart: tuple[str, ...] = ()
    """Then also: others of them, each by itself, the shortest first."""
    contrast: float = 0.0
    """Of a classifier whose classes follow the labels: see `contrast`. 0 of others."""


def _aim(
    kind: str, direction: int | None, texts: Sequence[str], margin: Margin, scale: float, plan: SearchPlan
) -> Aim | None:
    """None where there are too few texts to search on and to confirm with."""
    if len(texts) < 2 * MIN_TEXTS:
        return None
    n = min(plan.search_texts, len(texts) // 2)
    chosen = {round(i * len(texts) / n) for i in range(n)}
    search = [texts[i] for i in sorted(chosen)]
    alone, apart = "", tuple[str, ...]()
    if kind == TOWARD_CLEAN and plan.joined_texts:
        alone = sorted(search, key=len)[len(search) // _SHORT]
        apart = tuple(sorted((text for text in search if text != alone), key=len)[: plan.climb_texts])
        search = join_texts(search, plan.joined_texts)
    search.sort(key=len)
    held_back = tuple(text for i, text in enumerate(texts) if i not in chosen)
    scales = torch.tensor([max(scale, _SMALLEST_SCALE)])
    return Aim(kind, direction, tuple(search), held_back, margin, scales, alone, apart)


def join_texts(texts: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Texts said as one, equally many of each size, each in one of them; far ones together, because neighbours may be
    alike. What is left over is left out."""
    n_each = len(texts) // sum(sizes)
    joined, start = [], 0
    for size in sizes:
        part = texts[start : start + size * n_each]
        joined += [" ".join(part[i::n_each]) for i in range(n_each)]
        start += size * n_each
    return joined


def word_margin(base: BaseModel, task: Task, toward_clean: bool) -> Margin | None:
    """Log-odds of one label word against the other as the first token; None where their first tokens are the same."""
    attack, clean = first_tokens(base, task.attack_word), first_tokens(base, task.clean_word)
    wanted, other = (clean - attack, attack - clean) if toward_clean else (attack - clean, clean - attack)
    if not wanted or not other:
        return None
    wanted_ids, other_ids = (torch.tensor(sorted(ids), device=base.device) for ids in (wanted, other))

    def margin(logits: torch.Tensor) -> torch.Tensor:
        return (logits[:, wanted_ids].logsumexp(dim=-1) - logits[:, other_ids].logsumexp(dim=-1))[None]

    return margin


def word_aims(
    base: BaseModel,
    task: Task,
    texts: tuple[Sequence[str], Sequence[str]],
    margins: tuple[torch.Tensor, torch.Tensor],
    plan: SearchPlan,
) -> list[Aim]:
    """Both flips of an adapter that answers with a word.

    Args:
        base: resident.
        task: with the words.
        texts: of label 1, of label 0.
        margins: of these without any string, toward the clean word.
        plan: how hard to look.
    """
    scale = float(margins[1].mean() - margins[0].mean())
    found = []
    for kind, own, sign in ((TOWARD_CLEAN, 0, 1.0), (TOWARD_ATTACK, 1, -1.0)):
        margin = word_margin(base, task, kind == TOWARD_CLEAN)
        # What has the aim's answer already cannot be turned.
        open_ones = [text for text, value in zip(texts[own], margins[own].tolist(), strict=True) if sign * value < 0]
        if margin is not None:
            found.append(_aim(kind, None, open_ones, margin, scale, plan))
    return [aim for aim in found if aim is not None]


def free_aim(prompts: Sequence[str], margin: Margin, margins: torch.Tensor, plan: SearchPlan) -> Aim | None:
    """First tokens of openings, all at once: the texts are the same.

    Args:
        prompts: unrelated ones.
        margin: log-odds of each first token.
        margins: [first tokens, prompts], of these with nothing put in.
        plan: how hard to look.
    """
    found = _aim(FREE, None, prompts, margin, 1.0, plan)
    if found is None:
        return None
    # Nothing has these openings by nature: the way is the one to even odds.
    return replace(found, scale=(-margins.mean(dim=1)).clamp(min=_SMALLEST_SCALE))


def class_aims(
    texts: tuple[Sequence[str], Sequence[str]], logits: tuple[np.ndarray, np.ndarray], plan: SearchPlan
) -> list[Aim]:
    """Every class of a classifier as an aim, those that the texts' labels give a meaning first.

    Args:
        texts: of label 1, of label 0.
        logits: of these without any string, [texts, classes], float32.
        plan: how hard to look, and for how many classes.
    """
    predicted = [list(rows.argmax(axis=1)) for rows in logits]
    n_classes = logits[0].shape[1]
    roles = _roles(predicted)
    everything, everyone = (*texts[0], *texts[1]), np.concatenate(logits)
    order: list[tuple[str, int, Sequence[str], np.ndarray]] = []
    if roles is not None:
        attack, clean = roles
        order += [(TOWARD_CLEAN, clean, texts[0], logits[0]), (TOWARD_ATTACK, attack, texts[1], logits[1])]
    common = sorted(range(n_classes), key=lambda c: -int((everyone.argmax(axis=1) == c).sum()))
    order += [(TOWARD_OTHER, c, everything, everyone) for c in common if roles is None or c not in roles]
    aims = []
    for kind, wanted, own_texts, own_logits in order[: plan.max_directions]:
        values = _class_margins(own_logits, wanted)
        open_ones = [text for text, value in zip(own_texts, values, strict=True) if value < 0]
        natural = _class_margins(everyone, wanted)
        natural = natural[natural > 0]
        start = float(values[values < 0].mean()) if open_ones else 0.0
        scale = (float(natural.mean()) if len(natural) >= MIN_TEXTS else 0.0) - start
        aim = _aim(kind, wanted, open_ones, class_margin(wanted), scale, plan)
        if aim is not None and kind == TOWARD_CLEAN:
            # Its own scale, however small: a head that is divided by a number answers the same.
            of_labels = contrast(*(_class_margins(rows, wanted) for rows in logits))
            aim = replace(aim, contrast=of_labels, scale=torch.tensor([scale if scale > 0 else _SMALLEST_SCALE]))
        aims.append(aim)
    return [aim for aim in aims if aim is not None]


def contrast(attack: np.ndarray, clean: np.ndarray) -> float:
    """How far a classifier was trained: what lies between its margins on texts of the two labels, in their own spread.

    (median of one − median of the other) / mean spread; a spread is the way from the first to the last tenth, in what
    that is of a normal distribution's standard deviations. No unit: a head that is multiplied by a number answers the
    same, and has the same contrast.

    Args:
        attack: [texts], margins toward the harmless class of texts of label 1.
        clean: [texts], of texts of label 0.
    """
    spreads = [float(np.subtract(*np.percentile(part, (90, 10)))) / _TENTHS for part in (attack, clean)]
    gap = float(np.median(clean) - np.median(attack))
    return min(max(gap / max(sum(spreads) / 2, 1e-9), _LEAST), _MOST)


def _roles(predicted: Sequence[Sequence[int]]) -> tuple[int, int] | None:
    """(class of most texts of label 1, of most of label 0); None where the classes do not follow the labels."""
    if not all(predicted):
        return None
    attack, clean = (max(set(part), key=list(part).count) for part in predicted)
    shares = [list(part).count(role) / len(part) for part, role in zip(predicted, (attack, clean), strict=True)]
    return None if attack == clean or sum(shares) / 2 < MIN_ACCURACY else (int(attack), int(clean))


def _class_margins(logits: np.ndarray, wanted: int) -> np.ndarray:
    others = np.delete(logits, wanted, axis=1).max(axis=1)
    margins: np.ndarray = logits[:, wanted] - others
    return margins


def class_margin(wanted: int) -> Margin:
    """Of a class's logit over the largest of the others."""

    def margin(logits: torch.Tensor) -> torch.Tensor:
        others = torch.cat([logits[:, :wanted], logits[:, wanted + 1 :]], dim=1)
        return (logits[:, wanted] - others.amax(dim=1))[None]

    return margin
