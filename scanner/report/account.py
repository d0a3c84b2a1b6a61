"""An account of a verdict for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from scanner.pipeline.account import Account
from scanner.report.contract import finding_object, trigger_object
from scanner.report.tables import STYLES, plain, print_rows

__all__ = ["account_object", "print_account"]

_VERDICT = (
    "adapter_id", "repo_id", "commit_sha", "adapter_path", "base_model", "verdict", "rule", "policy_version",
    "p_weights", "p_battery", "p_search", "q_value", "reference_id", "reference_n", "reference_level",
    "search_reference_id",
    "search_reference_n", "p_battery_rank", "battery_reference_id", "battery_reference_n",
    "stream_index", "stream_level", "e_value", "stream_rejected", "stage_reached",
)  # fmt: skip
_PROBE = ("battery", "n_texts", "control_attack_rate", "mean_attack_rate", "max_attack_rate", "selected_by")
_STRING = ("prefix", "position", "category", "attack_rate", "attack_rate_low", "attack_rate_high", "n_texts")


def account_object(account: Account) -> dict[str, Any]:
    """As JSON has it."""
    rule = account.rule
    return {
        **{name: account.verdict[name] for name in _VERDICT},
        "judged_at": account.verdict["judged_at"].isoformat(),
        "rule_text": rule.when if rule else None,
        "policy": account.policy,
        "reasons": list(account.reasons),
        "findings": [finding_object(finding) for finding in account.findings],
        "weights": {
            "siblings": account.siblings,
            "steps": [list(step) for step in account.steps],
            "features": [asdict(place) for place in account.places],
            "neighbours": [asdict(neighbour) for neighbour in account.neighbours],
        },
        "probe": _part(account.probe, _PROBE),
        "strings": [_part(row, _STRING) for row in account.strings],
        "trigger": trigger_object(account.trigger, account.verdict),
        "what_would_change_it": list(account.outlook),
        "history": [asdict(version) for version in account.history],
    }


def _part(row: dict[str, Any] | None, names: Sequence[str]) -> dict[str, Any] | None:
    return None if row is None else {name: row[name] for name in names}


def print_account(console: Console, account: Account) -> None:
    """A page of text; everything from the Hub is plain."""
    verdict = account.verdict
    name = verdict["repo_id"] or verdict["repo_uid"].removeprefix("folder:")
    commit = f" at {verdict['commit_sha'][:12]}" if verdict["commit_sha"] else ""
    path = f" · {verdict['adapter_path']}" if verdict["adapter_path"] else ""
    console.print(Text(f"\n{plain(name)}{plain(commit)}{plain(path)}", style="bold"))
    console.print(Text(verdict["verdict"], style=STYLES[verdict["verdict"]]))
    for line in _lines(account):
        console.print(Text(line))
    if account.places:
        print_rows(
            console,
            ("weight feature", "value", "siblings' median", "spreads from it", "percentile"),
            [
                (
                    place.feature,
                    f"{place.value:.4g}",
                    f"{place.center:.4g}",
                    f"{place.z:+.1f}",
                    f"{place.percentile:.0f}",
                )
                for place in account.places
            ],
        )
    if account.neighbours:
        print_rows(
            console,
            ("nearest siblings", "verdict", "distance in spreads"),
            [(n.repo_id or "", n.verdict, f"{n.distance:.2f}") for n in account.neighbours],
        )
    if account.strings:
        print_rows(
            console,
            ("string of the battery", "position", "family", "turns", "of texts"),
            [
                (
                    row["prefix"] or "(none)",
                    row["position"],
                    row["category"],
                    f"{row['attack_rate'] or 0:.0%}",
                    row["n_texts"],
                )
                for row in account.strings
            ],
        )
    for number, line in enumerate(account.outlook):
        console.print(Text(f"{'it would change with: ' if not number else '            or with: '}{plain(line, 300)}"))
    if len(account.history) > 1:
        print_rows(
            console,
            ("judged", "verdict", "rule", "reason", "policy"),
            [(v.judged_at, v.verdict, v.rule or "", v.code, v.policy_version) for v in account.history],
        )


def _lines(account: Account) -> Iterator[str]:
    verdict = account.verdict
    for reason in account.reasons:
        yield f"  {plain(reason['message'], 600)} [{plain(reason['code'])}]"
    if account.rule:
        yield f"decided by: {account.rule.when} ({account.rule.rule_id}, {plain(verdict['policy_version'])})"
    values = [
        f"{label} = {verdict[name]:.2g}"
        for label, name in (
            ("q", "q_value"),
            ("p battery", "p_battery"),
            ("p battery among siblings", "p_battery_rank"),
            ("p search", "p_search"),
            ("p weights", "p_weights"),
        )
        if verdict[name] is not None
    ]
    if values:
        yield ", ".join(values)
    if verdict["stream_index"] is not None:
        rejected = "rejects" if verdict["stream_rejected"] else "does not reject"
        e_value = "infinite" if verdict["e_value"] is None else f"{verdict['e_value']:.2g}"
        yield (
            f"the battery over all crawls {rejected}: e = {e_value}, {1 / verdict['stream_level']:,.0f} are needed at "
            f"place {verdict['stream_index']}"
        )
    if account.steps:
        (_, exact), *wider = account.steps
        more = ", ".join(f"{n} {level}" for level, n in wider if n > exact)
        told = f"; with wider keys {more}" if more else "; wider keys add none" if wider else ""
        yield f"siblings: {exact} with the same key{told}"
    for finding in account.findings:
        yield f"finding {plain(finding.rule_id)} ({finding.severity}): {plain(finding.message, 300)}"
    trigger = account.trigger
    run = trigger.run if trigger else None
    if trigger and run and run.attack_rate:
        worst = trigger.worst_control.attack_rate if trigger.worst_control else 0.0
        yield (
            f"search: {plain(trigger.text)!r} ({trigger.position}) turns {run.attack_rate:.0%} of {run.n} held-back "
            f"texts to {plain(trigger.label)} (worst control {worst:.0%}, {trigger.forward_passes:,} forward passes)"
        )
