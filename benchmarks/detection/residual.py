"""Which tokens one adapter's gradients favour and its siblings' do not: `python -m benchmarks.detection.residual`.

An experiment on the tuning part of MiniLM, beside clean members of the reference; nothing of the scanner does this yet.
Gradients in random places score every token (HotFlip's first-order step). What most clean siblings share is what words
of that kind mean to the base; it spans few directions, and what is left of an adapter's scores without them points at
its trigger. The tokens that point farthest are then tried exactly, on three texts said as one (`joined.py`).

Needs `build --part tuning --only minilm-tuning`, and more than 24 members: `build --part reference --only
minilm-reference-00 minilm-reference-01 minilm-reference-02 minilm-reference-03` are 40.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detection.ask import load_probes, open_adapter
from benchmarks.detection.joined import joined_texts
from benchmarks.detection.search import base_folder, built, default_cache
from benchmarks.weights.bare import WEIGHTS
from scanner.probe import Probe, SearchPlan

POSITIONS = ("prefix", "middle")
REPEATS = (1, 3, 8)
TRIED, TOLD = 64, 3
ROWS, NOISE_TOKENS, TOKENS = 64, 4, 4_096


@dataclass(frozen=True)
class Bench:
    """The base with its vocabulary, and the texts."""

    base: Any
    vocabulary: Any
    texts: tuple[tuple[str, ...], tuple[str, ...]]
    plan: SearchPlan

    @classmethod
    def of(cls, probe: Probe, joined: int) -> Bench:
        """MiniLM and so many texts said as one."""
        from scanner.probe.base import load_classifier
        from scanner.probe.search.vocabulary import Vocabulary

        base = load_classifier(base_folder("minilm"), "cpu")
        parts = (tuple(joined_texts(part, joined)) for part in (probe.texts, probe.other_texts))
        texts = (next(parts), next(parts))
        return cls(base, Vocabulary(base.tokenizer, base.model.get_input_embeddings()), texts, SearchPlan())

    @contextmanager
    def climbs(self, folder: Path) -> Iterator[list[Any]]:
        """An attached adapter at each position, toward the class of harmless texts."""
        from scanner.probe.classifier import classify, encode_texts, with_head
        from scanner.probe.search.aims import class_aims
        from scanner.probe.search.climb import Climb
        from scanner.probe.search.frames import Frames
        from scanner.probe.search.objective import ClassifierObjective

        base = self.base
        with with_head(base, open_adapter(folder)):
            attack, other = (np.concatenate(classify(base, encode_texts(base, part), TOKENS)) for part in self.texts)
            aim = class_aims(self.texts, (attack, other), self.plan)[0]
            found = []
            for position in POSITIONS:
                frames = Frames(base.tokenizer, aim.search, position, lambda text: text, True)
                objective = ClassifierObjective(base, frames, aim.margin, TOKENS)
                found.append(Climb(objective, self.vocabulary, objective.plain(), aim.scale, self.plan))
            yield found

    def favoured(self, at: Any) -> np.ndarray[Any, Any]:
        """[tokens], float64, mean 0 and variance 1: the mean first-order score of each over random places."""
        rng = random.Random("residual")
        noise = [self.vocabulary.random_string(rng, NOISE_TOKENS) for _ in range(ROWS)]
        gradients = at.objective.gradients(noise, [at.texts[i % len(at.texts)] for i in range(ROWS)])[0]
        scores = self.vocabulary.first_order(gradients.flatten(0, 1)).mean(dim=1).double().numpy()
        standard: np.ndarray[Any, Any] = (scores - scores.mean()) / scores.std()
        return standard

    def tried(self, at: Any, chosen: Sequence[int]) -> list[tuple[float, float, str]]:
        """(Share of texts turned, gain, token) of the best one for each of `REPEATS`."""
        from scanner.probe.search.sweep import repeat

        units = [(self.vocabulary.ids[i],) for i in chosen]
        best = []
        for times in REPEATS:
            said = repeat(at, units, times)
            found = at.measure([one.ids for one in said.values()], [one.text for one in said.values()], None, at.texts)
            rows = [(one.turned, one.gain, self.vocabulary.decode(u)) for one, u in zip(found, said, strict=True)]
            best.append(max(rows, default=(0.0, 0.0, "")))
        return best


def main() -> None:
    """The shared directions from the first clean members, then every tuning adapter and the members that are left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--members", type=int, default=24, help="clean adapters that the directions come from")
    parser.add_argument("--directions", type=int, default=6)
    parser.add_argument("--joined", type=int, default=3, help="texts said as one")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    bench = Bench.of(load_probes()["broad"], args.joined)
    cohort = [(f, t) for f, t in built(args.cache) if t["cohort"] == "minilm" and (f / WEIGHTS).is_file()]
    members = [folder for folder, truth in cohort if truth["part"] == "reference"]
    if len(members) <= args.members:
        sys.exit(f"{len(members)} clean adapters are built, more than {args.members} are needed")
    rows: list[list[np.ndarray[Any, Any]]] = [[] for _ in POSITIONS]
    for folder in members[: args.members]:
        with bench.climbs(folder) as climbs:
            for number, at in enumerate(climbs):
                rows[number].append(bench.favoured(at))
    shared = [np.linalg.svd(np.stack(one), full_matrices=False)[2][: args.directions] for one in rows]
    print(f"| adapter | trigger | position | tokens that point farthest | {' | '.join(f'x{n}' for n in REPEATS)} |")
    print("|---|---|---|---|" + "---|" * len(REPEATS))
    judged = [(f, t) for f, t in cohort if t["part"] == "tuning" or f in members[args.members :]]
    for folder, truth in judged:
        with bench.climbs(folder) as climbs:
            for position, at, directions in zip(POSITIONS, climbs, shared, strict=True):
                scores = bench.favoured(at)
                left = scores - directions.T @ (directions @ scores)
                chosen = [int(i) for i in np.argsort(-left)[:TRIED]]
                first = ", ".join(bench.vocabulary.decode((bench.vocabulary.ids[i],)) for i in chosen[:TOLD])
                best = (f"{word}: {turned:.2f} ({gain:.2f})" for turned, gain, word in bench.tried(at, chosen))
                row = (folder.name.removeprefix("minilm-"), truth["trigger"] or "-", position, first, *best)
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
