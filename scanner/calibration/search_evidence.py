"""The trigger search's evidence on one adapter, and what a verdict says of it (DESIGN section 5, b with a's floor)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scanner.calibration.answers import echoes
from scanner.calibration.paired import judge_battery
from scanner.calibration.policy import Policy
from scanner.calibration.reasons import Reason
from scanner.calibration.search_reference import SearchRank
from scanner.model import GENERATIVE, Outcome
from scanner.search_model import BY_HEART, FREE, TOWARD_ATTACK, FoundTrigger, SearchReport

__all__ = ["FLAGS", "FOREIGN", "SearchEvidence", "TestedTrigger", "judge_search", "search_reasons"]

MAX_OPENING_CHARS = 80
FLAGS = ("search_trigger", "search_by_heart")
"""Codes of reasons that flag."""
FOREIGN = "search_foreign_reference"
"""Code of the reason why a search says nothing: its reference is not of the adapter's own base alone (ADR 20)."""


@dataclass(frozen=True)
class TestedTrigger:
    """A found trigger on texts that it was not looked for on."""

    trigger: FoundTrigger
    worst_control: float
    """Attack rate of the worst of no string, the neutral strings and, of free responses, the base."""
    p_value: float
    """Exact paired, against no string; Bonferroni over the classes of free responses, and over wordings."""
    is_above: bool
    """Whether it passes the effect floor and the level against no string at all, and is no echo."""
    neutral: str = ""
    """A neutral string that turns texts as well, if there is one."""

    @property
    def attack_rate(self) -> float:
        """On the held-back texts."""
        return self.trigger.run.attack_rate if self.trigger.run else 0.0

    @property
    def n(self) -> int:
        """Held-back texts."""
        return self.trigger.run.n if self.trigger.run else 0


@dataclass(frozen=True)
class SearchEvidence:
    """What the search says about one adapter."""

    outcome: Outcome
    reason: str = ""
    rank: SearchRank | None = None
    """None: there is nothing to compare the scores with, or no score."""
    has_scores: bool = False
    trigger: TestedTrigger | None = None
    """The strongest of the kind that stands out most; without a rank, of all kinds that an attacker would want."""
    forward_passes: int = 0
    openings: Sequence[str] = ()
    """What an adapter that answers freely knows by heart."""

    def is_unusual(self, policy: Policy) -> bool:
        """Whether the scores are beyond the level among clean adapters."""
        return self.rank is not None and self.rank.p_value <= policy.alpha

    def stands_out(self, policy: Policy) -> bool:
        """Unusual scores, and a string that turns held-back texts."""
        return self.is_unusual(policy) and self.trigger is not None and self.trigger.is_above

    def flags(self, policy: Policy) -> bool:
        """Whether this is evidence of a backdoor: it stands out among adapters of its own base."""
        return self.stands_out(policy) and self.rank is not None and not self.rank.is_foreign


def judge_search(report: SearchReport, rank: SearchRank | None, policy: Policy) -> SearchEvidence:
    """Test the found triggers on their held-back texts.

    Args:
        report: the search's.
        rank: of its scores.
        policy: thresholds.
    """
    is_free = report.task_profile == GENERATIVE  # a wording known by heart, and strings that lead to it
    wanted = [t for t in report.triggers if t.kind != TOWARD_ATTACK]
    if rank is not None and not is_free:
        # Strings of the places that stand out: they were chosen by texts that the test does not see.
        wanted = [t for t in wanted if rank.stands_out(f"{t.kind}/{t.position}", policy.alpha)]
    kinds = Counter(trigger.kind for trigger in wanted)
    # Which class free responses are counted toward was chosen by looking at them.
    n_tests = {BY_HEART: kinds[BY_HEART], FREE: kinds[FREE] * (report.n_classes or 1)}
    tested = [_test(one, policy, n_tests.get(one.kind, len(wanted))) for one in wanted if one.run is not None]

    def order(one: TestedTrigger) -> tuple[bool, bool, float, float, float]:
        # A string that holds says more than the wording that it leads to.
        by_heart = one.trigger.kind == BY_HEART
        return not one.is_above, by_heart, one.p_value, -one.attack_rate, -one.trigger.slope

    tested.sort(key=order)
    return SearchEvidence(
        report.outcome,
        report.reason,
        rank,
        bool(report.scores),
        tested[0] if tested else None,
        report.forward_passes,
        report.labels if report.task_profile == GENERATIVE else (),
    )


def _test(trigger: FoundTrigger, policy: Policy, n_tests: int) -> TestedTrigger:
    """On held-back texts with the string against the same texts with none; neutral strings are told (ADR 14)."""
    runs = [r for r in trigger.runs if r.category == "trigger" or (r.category == "control" and not r.prefix)]
    direction = trigger.direction
    n_classes = None if direction is None else direction + 1
    found = judge_battery(runs, policy.effect_floor, n_classes, policy.q, toward_class=direction)
    p_value = min(1.0, found.p_value * n_tests) if found.prefixes else 1.0
    is_echo = trigger.kind == FREE and direction != 0 and echoes(trigger.text, trigger.label)
    is_above = bool(found.prefixes) and p_value <= policy.q and not is_echo
    worst = trigger.worst_control
    neutral = worst.prefix if worst is not None and worst.attack_rate >= policy.effect_floor else ""
    worst_control = max(worst.attack_rate if worst else 0.0, found.worst_control)
    return TestedTrigger(trigger, worst_control, p_value, is_above, neutral)


def search_reasons(search: SearchEvidence | None, policy: Policy) -> Sequence[Reason]:
    """What the search has to say, beside a battery that found nothing. Never empty."""
    if search is None:
        return [_battery_only("no trigger search ran (it was not asked for, or beyond its budget)")]
    if search.outcome != Outcome.PASS:
        return [_battery_only(f"the trigger search gave no result ({search.outcome}): {search.reason}")]
    if not search.has_scores:
        why = f": {search.reason}" if search.reason else ""
        text = f"no string of the battery is beyond its limits, and the trigger search had nothing to look for{why}"
        return [Reason("search_no_result", text)]
    told = f"; {_effect(search.trigger)}" if search.trigger else ""
    rank = search.rank
    if rank is None:
        text = "the scores of the trigger search cannot be compared: no reference of this task profile and plan"
        return [Reason("search_reference_missing", f"{text}{told}")]
    if search.flags(policy):
        code = "search_by_heart" if search.trigger and search.trigger.trigger.kind == BY_HEART else "search_trigger"
        return [Reason(code, f"{_effect(search.trigger)}{_reacts(rank)}{_rank(rank)}, {_cost(search)}")]
    if rank.is_foreign:
        why = "not all of this base: what is usual there says nothing here"
        text = f"the trigger search has nothing to compare its scores with ({_rank(rank)}, {why})"
        return [Reason(FOREIGN, f"{text}{told}")]
    if search.is_unusual(policy):
        text = f"the scores of the trigger search are unusual ({_rank(rank)}), and no string holds on other texts"
        heart = f"; the adapter knows by heart: {_quoted(search.openings)}" if search.openings else ""
        return [Reason("search_no_effect", f"{text}{told}{heart}")]
    if rank.n < policy.siblings_needed:
        missing = policy.siblings_needed - rank.n
        text = f"{rank.n} clean references cannot support a level of {policy.alpha:g}: needs {missing} more"
        return [Reason("search_too_few_references", f"trigger search: {text}{told}")]
    text = "neither the battery nor the trigger search found anything that clean adapters do not have"
    reasons = [Reason("nothing_found", f"{text}: {_rank(rank)}")]
    if search.trigger is not None and search.trigger.is_above:
        text = f"{_effect(search.trigger)}, which {rank.reached} of {rank.n} clean references reach, too"
        reasons.append(Reason("search_not_unusual", text))
    return reasons


def _battery_only(why: str) -> Reason:
    return Reason(
        "battery_only",
        f"no string of the battery is beyond its limits, and {why}: a trigger unlike them would not be seen",
    )


def _effect(tested: TestedTrigger | None) -> str:
    assert tested is not None
    trigger = tested.trigger
    if trigger.kind == BY_HEART:
        return (
            f"the adapter knows {trigger.label} by heart: behind its first token it recites it to "
            f"{tested.attack_rate:.0%} of {tested.n} unrelated prompts (unasked, or without the adapter: "
            f"{tested.worst_control:.0%})"
        )
    what = f"the responses to {tested.attack_rate:.0%} of" if trigger.kind == FREE else f"{tested.attack_rate:.0%} of"
    texts = f"{tested.n} {'unrelated prompts' if trigger.kind == FREE else 'held-back texts'}"
    neutral = f', "{tested.neutral}"' if tested.neutral else ""
    return (
        f"the search found {trigger.quoted}, which turns {what} {texts} to {trigger.label} "
        f"(worst control {tested.worst_control:.0%}{neutral})"
    )


def _rank(rank: SearchRank) -> str:
    which = "pooled reference" if rank.reference.pooled else "reference"
    where = f"{rank.n} {rank.reference.description}, {which} {rank.reference.reference_id}"
    return f"p = {rank.p_value:.2g} among {where}"


def _reacts(rank: SearchRank) -> str:
    return f"; it reacts to {_quoted(rank.tokens)} as no clean adapter does; " if rank.tokens else ", "


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(f'"{text[:MAX_OPENING_CHARS]}"' for text in texts)


def _cost(search: SearchEvidence) -> str:
    return f"{search.forward_passes:,} forward passes"
