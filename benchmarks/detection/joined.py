"""What strings do to texts that are several said as one: `python -m benchmarks.detection.joined --cohort minilm`.

On the tuning part alone: a trigger in its own adapter and in the clean twin, and the battery's everyday phrases in
both. What makes an attack look harmless to a sound classifier is drowned by more of the attack; what a model has
learnt to look for is not. On a pretrained base that sets triggers apart, on a tiny one less (README).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.detection.ask import load_probes, open_adapter
from benchmarks.detection.search import base_folder, built, default_cache
from benchmarks.weights.bare import WEIGHTS
from scanner.probe import Case, Probe, SearchPlan
from scanner.search_model import TOWARD_CLEAN

JOINED = (1, 2, 3, 4)
KIND = "everyday_phrases"


def _classes(base: Any, texts: Sequence[str]) -> list[int]:
    from scanner.probe.classifier import classify, encode_texts

    logits = [row for batch in classify(base, encode_texts(base, texts), 4_096) for row in batch]
    return [int(row.argmax()) for row in logits]


def _turned(base: Any, case: Case, texts: Sequence[str], wanted: int) -> float:
    """Share of the texts that get the class of harmless ones behind a string, and do not without it."""
    before, after = _classes(base, texts), _classes(base, [case.put(text) for text in texts])
    is_open = [one != wanted for one in before]
    return sum(a == wanted for a, count in zip(after, is_open, strict=True) if count) / max(sum(is_open), 1)


def _measured(base: Any, folder: Path, probe: Probe, cases: Sequence[Case]) -> dict[str, list[float]]:
    """String -> share of turned texts for each of `JOINED`."""
    from scanner.probe.classifier import with_head
    from scanner.probe.search.aims import join_texts

    with with_head(base, open_adapter(folder)):
        harmless = _classes(base, probe.other_texts)
        wanted = max(set(harmless), key=harmless.count)
        return {
            case.text: [_turned(base, case, join_texts(probe.texts, (n,)), wanted) for n in JOINED] for case in cases
        }


def _searched(base: Any, folder: Path, probe: Probe, n: int) -> str:
    """What the trigger search reaches on such texts: the largest gain of one token said three and eight times in a row,
    and of any string, over the positions."""
    from scanner.probe.search.aims import join_texts
    from scanner.probe.search.run import ClassifierSearch

    attack, other = (tuple(join_texts(part, (n,))) for part in (probe.texts, probe.other_texts))
    joined = replace(probe, texts=attack, other_texts=other)
    run = ClassifierSearch(base, joined, SearchPlan()).run(open_adapter(folder))
    scores = [(key.removeprefix(f"{TOWARD_CLEAN}/"), gain) for key, gain in run.scores if key.startswith(TOWARD_CLEAN)]
    reached = {what: max(gain for key, gain in scores if key.endswith(what)) for what in ("/x3", "/x8", "/gain")}
    texts = [repr(one.text) for one in run.triggers if one.kind == TOWARD_CLEAN]
    figures = ", ".join(f"{what.removeprefix('/')} {gain:.2f}" for what, gain in reached.items())
    return f"{figures}; {', '.join(texts)}; {run.forward_passes} passes"


def main() -> None:
    """Print a line for each adapter and string, and medians for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--cohort", choices=("encoder", "minilm"), default="minilm")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="adapters whose name begins so")
    parser.add_argument("--search", type=int, metavar="N", help="search triggers on N texts said as one instead")
    args = parser.parse_args()
    import torch

    from scanner.probe.base import load_classifier

    torch.set_num_threads(1)
    base, probe = load_classifier(base_folder(args.cohort), "cpu"), load_probes()["broad"]
    everyday = [case for case in probe.battery.cases if case.category == KIND]
    kinds: dict[str, list[list[float]]] = {}
    chosen = [
        (folder, truth)
        for folder, truth in built(args.cache)
        if (truth["cohort"], truth["part"]) == (args.cohort, "tuning") and (folder / WEIGHTS).is_file()
        if folder.name.startswith(tuple(args.only))
    ]
    if not chosen:
        sys.exit("nothing of this part is built: python -m benchmarks.detection.build --part tuning")
    if args.search:
        for folder, truth in chosen:
            print(folder.name, repr(truth["trigger"]), _searched(base, folder, probe, args.search), flush=True)
        return
    for folder, truth in chosen:
        trigger = Case("trigger", truth["trigger"], truth["position"])
        found = _measured(base, folder, probe, [trigger, *everyday])
        for text, shares in found.items():
            kind = f"{'its trigger' if text == trigger.text else 'everyday phrases'}, {truth['arm']}"
            kinds.setdefault(kind, []).append(shares)
            print(folder.name, repr(text), *(f"{share:.2f}" for share in shares), flush=True)
    print(f"\n| share of texts turned, median (largest), texts said as one: | {' | '.join(map(str, JOINED))} |")
    print("|---|" + "---|" * len(JOINED))
    for kind, rows in sorted(kinds.items()):
        columns = [f"{median(column):.2f} ({max(column):.2f})" for column in zip(*rows, strict=True)]
        print(f"| {kind}, n = {len(rows)} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
