"""Which finds a trigger's tokens with fewer forward passes, gradients or the whole vocabulary?

`python -m benchmarks.detection.pools` asks the poisoned label-words adapters of the tuning part and prints for each the
best rank of a token of its trigger among all tokens: by gradients in the places of random strings, by what each token
does alone on one text or two, and by what it does said several times in a row on one text, as the search takes them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.detection.search import TEXTS, base_folder, default_cache
from scanner.adapter import open_safetensors, parse_config, read_json_object, view_adapter
from scanner.probe import SearchPlan, load_probe

if TYPE_CHECKING:
    import torch

__all__ = ["WAYS"]

RESULTS = Path(__file__).with_name("results") / "pools.json"
WAYS = ("gradients", "sweep of one text", "sweep of two texts", "repeated on one text")
_POOLS = (1, 8, 32, 128)


def _true_tokens(tokenizer: Any, trigger: str, known: set[int]) -> set[int]:
    """Tokens of the trigger that say something by themselves: no single letters."""
    ids = {i for lead in ("", " ") for i in tokenizer.encode(lead + trigger, add_special_tokens=False).ids}
    spelled = {i: str(tokenizer.decode([i])).strip() for i in ids & known}
    return {i for i, text in spelled.items() if len(text) > 1 or not text.isalpha()}


def _ranks(folder: Path, truth: dict[str, Any], base: Any, vocabulary: Any, plan: SearchPlan) -> dict[str, int] | None:
    """Way -> rank of the best true token, from 0; None where the vocabulary has none that can be written."""
    import torch

    from scanner.probe.attach import attached
    from scanner.probe.search.aims import word_margin
    from scanner.probe.search.climb import Climb
    from scanner.probe.search.frames import Frames
    from scanner.probe.search.objective import CausalObjective
    from scanner.probe.search.sweep import repeat

    probe = load_probe("broad", None, TEXTS)
    places = {token: place for place, token in enumerate(vocabulary.ids)}
    wanted = [places[token] for token in _true_tokens(base.tokenizer, truth["trigger"], set(places))]
    if not wanted:
        return None
    texts = sorted(probe.texts[:: TEXTS // plan.search_texts], key=len)[: plan.climb_texts]
    frames = Frames(
        base.tokenizer, texts, truth["position"], lambda text: base.template.render(probe.task.system, text), False
    )
    margin = word_margin(base, probe.task, toward_clean=True)
    assert margin is not None
    objective = CausalObjective(base, frames, margin, 8_192)
    config = parse_config(read_json_object(folder / "adapter_config.json", 1 << 20))
    rng = random.Random(plan.plan_id)
    noise = [vocabulary.random_string(rng, plan.noise_tokens) for _ in range(plan.noise_rows)]
    with attached(base.model, view_adapter(open_safetensors(folder / "adapter_model.safetensors"), config, 4_096)):
        alone = objective.margins([(token,) for token in vocabulary.ids], [0, 1])[0]
        climb = Climb(objective, vocabulary, objective.plain(), torch.ones(1), plan)
        said = repeat(climb, [(token,) for token in vocabulary.ids], plan.sweep_repeats)
        gains = objective.margins([one.ids for one in said.values()], [0])[0, :, 0]
        gradients = objective.gradients(noise, [i % len(texts) for i in range(len(noise))])[0]
    scores = vocabulary.first_order(gradients.flatten(0, 1))
    scores = (scores - scores.mean(dim=0)) / scores.std(dim=0).clamp(min=1e-12)
    of_row = scores.reshape(len(scores), plan.noise_rows, plan.noise_tokens).amax(dim=2).mean(dim=1)

    in_a_row = torch.full((len(vocabulary.ids),), -math.inf)
    in_a_row[[places[unit[0]] for unit in said]] = gains

    def best(values: torch.Tensor) -> int:
        return min(int((values > values[place]).sum()) for place in wanted)

    ranked = (of_row, alone[:, 0], alone.mean(dim=1), in_a_row)
    return dict(zip(WAYS, map(best, ranked), strict=True))


def summary(rows: Sequence[dict[str, int]], passes: dict[str, int]) -> str:
    """A line for each way: its cost, and for how many adapters a true token is among the first few."""
    lines = []
    for way in WAYS:
        found = [sum(row[way] < pool for row in rows) for pool in _POOLS]
        told = ", ".join(f"{n} of {len(rows)} in the first {pool}" for n, pool in zip(found, _POOLS, strict=True))
        lines.append(f"{way}: {passes[way]:,} forward passes; {told}")
    return "\n".join(lines)


def main() -> None:
    """Ask all of them and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    import torch

    from benchmarks.machine import machine
    from scanner.probe.base import load_base
    from scanner.probe.search.vocabulary import Vocabulary

    torch.set_num_threads(1)
    plan, base = SearchPlan(), load_base(base_folder("label_words"), "cpu")
    vocabulary = Vocabulary(base.tokenizer, base.model.get_input_embeddings())
    adapters: dict[str, dict[str, int] | None] = {}
    for path in sorted(args.cache.glob("label_words-*/label_words-tuning-*-poisoned/truth.json")):
        truth = json.loads(path.read_text(encoding="utf-8"))
        adapters[truth["name"]] = _ranks(path.parent, truth, base, vocabulary, plan)
        print(truth["name"], truth["trigger"], adapters[truth["name"]], flush=True)
    n = len(vocabulary.ids)
    passes = dict(zip(WAYS, (3 * plan.noise_rows, n, 2 * n, n), strict=True))
    told = summary([row for row in adapters.values() if row is not None], passes)
    print(told)
    report = {
        "command": "python -m benchmarks.detection.pools",
        "machine": machine(),
        "plan_id": plan.plan_id,
        "forward_passes": passes,
        "ranks": adapters,
        "summary": told.split("\n"),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
