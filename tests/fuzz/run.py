"""python -m tests.fuzz.run TARGET [--seconds 600] [--seed 1]: fuzz one parser and print what came out."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tests.fuzz.harness import Failure, fuzz
from tests.fuzz.targets import TARGETS, targets


@click.command()
@click.argument("name", type=click.Choice(TARGETS))
@click.option("--seconds", default=600.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Where an input that fails is written.")
def main(name: str, seconds: float, seed: int, keep: Path | None) -> None:
    """Fuzz one parser."""
    try:
        tally = fuzz(targets()[name], seed=seed, seconds=seconds)
    except Failure as failure:
        if keep:
            keep.write_bytes(failure.data)
        click.echo(f"FAILED {failure}", err=True)
        raise
    outcomes = ", ".join(f"{kind} {count:,}" for kind, count in tally.outcomes.most_common())
    click.echo(
        f"{name}: {tally.executions:,} inputs in {tally.seconds:.0f} s, slowest {tally.slowest_s:.2f} s, grown by "
        f"{tally.peak_growth_bytes / 2**20:.0f} MiB; {outcomes}"
    )


if __name__ == "__main__":
    sys.exit(main())
