"""The relations benchmark at a small size: all that is planted is found, and nothing else."""

from __future__ import annotations

from pathlib import Path

from benchmarks.relations.adapters import write_adapters
from benchmarks.relations.measure import measure


def test_everything_planted_is_found_and_nothing_else(tmp_path: Path) -> None:
    planted = write_adapters(tmp_path, 300, seed=1)
    figures = measure(tmp_path, planted)
    assert figures.adapters == len(planted.names) == 300
    # A family of five has nine pairs, the others of each share have eight, and there are two shares.
    assert figures.pairs_wanted == 2 * 17 and figures.hard_negatives >= 8  # and one of each family of five
    assert (figures.pairs_missed, figures.pairs_false, figures.n_left) == (0, 0, 0)
    assert (figures.merges["cat of 2"], figures.merges["cat of 3"], figures.merges_false) == ("2 of 2", "2 of 2", 0)
    # Fewer than one of ten pairs is ever looked at, and hardly any by its factors.
    assert figures.n_compared < 300 * 299 / 2 / 10 and figures.n_exact < 2 * figures.pairs_wanted
