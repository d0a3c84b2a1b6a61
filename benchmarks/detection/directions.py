"""What the gradients of clean classifiers share: `python -m benchmarks.detection.directions`.

Takes the first members of MiniLM's reference, which no rank holds afterwards, and of each the mean gradient toward the
class of harmless texts in the places of random strings, without any text. What it keeps are the leading right singular
vectors of these gradients' scores over the vocabulary, each of length 1, and the mean of these scores. Vectors leave
the cache, and nothing else.

Needs `build --part reference --only minilm-reference-00 minilm-reference-01 minilm-reference-02`.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detection.adapters import BASES
from benchmarks.detection.ask import open_adapter
from benchmarks.detection.search import TEXTS, base_folder, built, default_cache
from benchmarks.weights.bare import WEIGHTS
from scanner.adapter import AdapterView
from scanner.probe import Probe, load_probe
from scanner.probe.search.directions import SHIPPED_DIRECTIONS, vocabulary_id
from scanner.probe.search.plan import SIEVE
from scanner.search_model import TOWARD_CLEAN

__all__ = ["gave_directions", "gradient_toward_clean", "shared", "usual"]

COHORT, MEMBERS, DIRECTIONS = "minilm", 24, 4
_DIGITS = 6
"""Significant ones."""


def gave_directions(name: str) -> bool:
    """Whether an adapter is one of those that the directions come from: its scores would be too small."""
    head, _, number = name.removesuffix("-clean").rpartition("-")
    return head == f"{COHORT}-reference" and int(number) < MEMBERS


def gradient_toward_clean(base: Any, vocabulary: Any, probe: Probe, view: AdapterView) -> np.ndarray[Any, Any]:
    """An adapter's mean gradient: [dimensions], float64.

    Raises:
        RuntimeError: its classes do not follow the labels.
    """
    from scanner.probe.classifier import classify, encode_texts, with_head
    from scanner.probe.search.aims import class_aims
    from scanner.probe.search.frames import Frames, bare_frame
    from scanner.probe.search.objective import ClassifierObjective
    from scanner.probe.search.sieve import mean_gradient

    texts = (probe.texts, probe.other_texts)
    with with_head(base, view):
        attack, other = (np.concatenate(classify(base, encode_texts(base, part), 4_096)) for part in texts)
        aim = class_aims(texts, (attack, other), SIEVE)[0]
        if aim.kind != TOWARD_CLEAN:
            raise RuntimeError("an adapter whose classes do not follow the labels has no such gradient")
        frames = Frames(base.tokenizer, aim.search, SIEVE.positions[0], lambda text: text, True)
        objective = ClassifierObjective(base, frames, aim.margin, 4_096)
        found: np.ndarray[Any, Any] = mean_gradient(
            objective, vocabulary, bare_frame(base.tokenizer, True), SIEVE
        ).numpy()
        return found


def shared(gradients: np.ndarray[Any, Any], metric: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    """The n leading directions of some gradients.

    Args:
        gradients: [adapters, dimensions], float64.
        metric: M, [dimensions, dimensions], float64; of full rank.
        n: directions.

    Returns:
        [n, dimensions], float64: w with wᵢᵀ M wⱼ = δᵢⱼ.
    """
    root = np.linalg.cholesky(metric)
    scores = gradients @ root
    scores /= np.linalg.norm(scores, axis=1, keepdims=True)
    leading = np.linalg.svd(scores, full_matrices=False)[2][:n]
    found: np.ndarray[Any, Any] = np.linalg.solve(root.T, leading.T).T
    return found


def usual(gradients: np.ndarray[Any, Any], metric: np.ndarray[Any, Any], n_tokens: int) -> np.ndarray[Any, Any]:
    """[dimensions], float64: the mean of gradients, each with first-order scores of variance 1 over so many tokens.

    Arguments as of `shared`.
    """
    variances = np.einsum("ij,jk,ik->i", gradients, metric, gradients) / n_tokens
    found: np.ndarray[Any, Any] = (gradients / np.sqrt(variances)[:, None]).mean(axis=0)
    return found


def _rounded(row: np.ndarray[Any, Any]) -> list[float]:
    return [float(f"{x:.{_DIGITS}g}") for x in row]


def _write(path: Path, head: Mapping[str, Any], rows: Sequence[Sequence[float]]) -> None:
    """One line for each direction."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(list(row)) for row in rows)
    path.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")


def main() -> None:
    """Gradients of the members, directions, one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--out", type=Path, default=SHIPPED_DIRECTIONS)
    args = parser.parse_args()
    import peft
    import torch
    import transformers

    from scanner.probe.base import load_classifier
    from scanner.probe.search.sieve import token_metric
    from scanner.probe.search.vocabulary import Vocabulary

    members = [f for f, _ in built(args.cache) if gave_directions(f.name) and (f / WEIGHTS).is_file()]
    if len(members) < MEMBERS:
        sys.exit(f"{len(members)} of {MEMBERS} members are built")
    base = load_classifier(base_folder(COHORT), "cpu")
    vocabulary, probe = Vocabulary(base.tokenizer, base.model.get_input_embeddings()), load_probe("broad", None, TEXTS)
    gradients = []
    for folder in members:
        gradients.append(gradient_toward_clean(base, vocabulary, probe, open_adapter(folder)))
        print(folder.name, flush=True)
    together, metric = np.stack(gradients), token_metric(vocabulary).numpy()
    rows = [_rounded(row) for row in shared(together, metric, DIRECTIONS)]
    head: dict[str, Any] = {
        "base_model": BASES[COHORT],
        "vocabulary_id": vocabulary_id(vocabulary.ids, vocabulary.words),
        "date": datetime.now(UTC).date().isoformat(),
        "made_with": {
            "command": "python -m benchmarks.detection.directions",
            "members": [folder.name for folder in members],
            "python": platform.python_version(),
            **{package.__name__: package.__version__ for package in (torch, transformers, peft)},
        },
    }
    head["usual"] = _rounded(usual(together, metric, len(vocabulary.ids)))
    path = args.out / f"{BASES[COHORT].replace('/', '--')}.json"
    _write(path, head, rows)
    print(f"{path.name}: {DIRECTIONS} directions from {len(members)} adapters")


if __name__ == "__main__":
    main()
