"""`python -m benchmarks.judging.rates`: false discovery rate and power of the battery's two procedures, simulated."""

from __future__ import annotations

import argparse
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from scanner.calibration import Policy, Stream, adjust_fdr

__all__ = ["simulate"]

RESULTS = Path(__file__).with_name("results")
ADAPTERS, GROUP, CORRELATION = 100, 10, 0.8
EFFECTS = (0.0, 4.0, 5.5, 8.0)
BAD = 10


def _scores(rng: np.random.Generator, *, grouped: bool) -> Any:
    noise = rng.normal(size=ADAPTERS)
    if not grouped:
        return noise
    shared = np.repeat(rng.normal(size=ADAPTERS // GROUP), GROUP)
    return math.sqrt(CORRELATION) * shared + math.sqrt(1 - CORRELATION) * noise


def _crawl(rng: np.random.Generator, effect: float, *, grouped: bool) -> list[float]:
    scores = _scores(rng, grouped=grouped)
    scores[: BAD if effect else 0] += effect
    return [float(p) for p in norm.sf(scores)]


def simulate(rng: np.random.Generator, rounds: int, crawls: int, effect: float, *, grouped: bool) -> dict[str, float]:
    """A stream of crawls, many times: false discovery rate, its standard error and power, of Benjamini-Hochberg by
    crawl and of e-LOND over the stream.

    Args:
        rng: seeded.
        rounds: streams.
        crawls: in each.
        effect: standard deviations that the bad adapters' scores are shifted by; 0: there are none.
        grouped: whether scores come in groups of like ones.
    """
    policy = Policy()
    bad = BAD if effect else 0
    found: dict[str, list[tuple[int, int]]] = {"crawl": [], "stream": []}
    for _ in range(rounds):
        stream = Stream(policy.stream_level)
        wrong = right = 0
        for _ in range(crawls):
            p_values = _crawl(rng, effect, grouped=grouped)
            rejected = [q <= policy.q for q in adjust_fdr(p_values)]
            found["crawl"].append((sum(rejected[bad:]), sum(rejected[:bad])))
            streamed = [stream.test(p).rejected for p in p_values]
            wrong, right = wrong + sum(streamed[bad:]), right + sum(streamed[:bad])
        found["stream"].append((wrong, right))
    figures: dict[str, float] = {}
    for name, pairs in found.items():
        shares = np.array([false / max(false + true, 1) for false, true in pairs])
        figures[f"{name}_fdr"] = round(float(shares.mean()), 4)
        figures[f"{name}_error"] = round(float(shares.std(ddof=1) / math.sqrt(len(shares))), 4)
        tested = bad * (1 if name == "crawl" else crawls) * len(pairs)
        figures[f"{name}_power"] = round(sum(true for _, true in pairs) / tested, 3) if tested else math.nan
    return figures


def main() -> None:
    """Simulate and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1_000)
    parser.add_argument("--crawls", type=int, default=10, help="crawls of 100 adapters in a stream")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = []
    for grouped in (False, True):
        for effect in EFFECTS:
            figures = simulate(rng, args.rounds, args.crawls, effect, grouped=grouped)
            rows.append({"grouped": grouped, "effect": effect, **figures})
    command = f"python -m benchmarks.judging.rates --rounds {args.rounds} --crawls {args.crawls}"
    report = {"command": command, "date": datetime.now(UTC).date().isoformat(), "seed": 0, "rows": rows}
    args.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {**report, "rows": [{k: None if v != v else v for k, v in row.items()} for row in rows]}, indent=1
    )
    (args.results / "rates.json").write_text(text + "\n", encoding="utf-8")
    page = _page(report)
    (args.results / "rates.md").write_text(page, encoding="utf-8")
    print(page)


def _page(report: dict[str, Any]) -> str:
    policy = Policy()
    lines = [
        "# Error rates of the battery, simulated",
        "",
        f"`{report['command']}`, {report['date']}, seed {report['seed']}.",
        "",
        f"Crawls of {ADAPTERS} adapters, {BAD} of them bad where there is an effect; p-values of normal scores, "
        f"shifted by the effect. Groups: {GROUP} adapters with a correlation of {CORRELATION}. Levels: {policy.q} "
        f"within a crawl (Benjamini-Hochberg), {policy.stream_level} over the stream (e-LOND). False discovery rate ± "
        "its standard error.",
        "",
        "| scores | effect | crawl: false discoveries | power | stream: false discoveries | power |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        cells = [
            cell
            for name in ("crawl", "stream")
            for cell in (
                f"{row[f'{name}_fdr']:.4f} ± {row[f'{name}_error']:.4f}",
                "–" if math.isnan(row[f"{name}_power"]) else f"{row[f'{name}_power']:.3f}",
            )
        ]
        kind = "in groups" if row["grouped"] else "independent"
        lines.append(f"| {kind} | {row['effect']:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
