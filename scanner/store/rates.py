"""One run of a battery, of the stored ones or of the local one around a found trigger, as a row of `probe_rates`."""

from __future__ import annotations

from collections.abc import Sequence

from scanner.calibration import binomial_interval
from scanner.model import PrefixRun, paired_count
from scanner.store.write import Row

__all__ = ["prefix_run", "rate_row"]


def rate_row(row_id: str, adapter_id: str, battery_id: str, run: PrefixRun, runs: Sequence[PrefixRun]) -> Row:
    """A run beside all runs of its battery."""
    pairs = paired_count(run, runs)
    low, high = binomial_interval(sum(run.attacked), run.n)
    paired_low, paired_high = binomial_interval(pairs, run.n)
    return {
        "row_id": row_id,
        "adapter_id": adapter_id,
        "battery_id": battery_id,
        "category": run.category,
        "prefix": run.prefix,
        "position": run.position,
        "attack_rate": run.attack_rate,
        "n_texts": run.n,
        "answers": run.answers,
        "direction": run.direction,
        "attack_rate_low": low,
        "attack_rate_high": high,
        "paired_attack_rate": pairs / run.n if run.n else None,
        "paired_low": paired_low,
        "paired_high": paired_high,
        "base_answers": run.base_answers or None,
        "margin": run.margin,
        "divergence": run.divergence,
        "base_divergence": run.base_divergence,
        "concentration": run.concentration,
        "refusal_rate": run.refusal_rate,
    }


def prefix_run(row: Row) -> PrefixRun:
    """One row of `probe_rates` as it was measured, without a direction."""
    names = ("margin", "divergence", "base_divergence", "concentration", "refusal_rate")
    return PrefixRun(
        row["prefix"],
        row["category"],
        row["position"],
        row["answers"],
        base_answers=row["base_answers"] or "",
        **{name: row[name] for name in names},
    )
