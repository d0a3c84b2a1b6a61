"""How deep a trigger's tokens stand in the first layer of MiniLM adapters: `python -m benchmarks.detection.imprints`.

Of every built adapter with a trigger, and its clean twin: the depth of its deepest token, and where the tokens of the
trigger stand among all. Those of a clean twin's stand there by chance. No adapter is run, none is flagged: this tells
what the search of imprinted strings begins with.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.cohort.recipe import REPO_ROOT
from benchmarks.detection.dose import WEAK
from benchmarks.detection.lineages import PARTS
from benchmarks.detection.lock import commit_of
from benchmarks.detection.metrics import Scored, Share, measure_auc
from benchmarks.detection.search import base_folder, built, default_cache, plan_of

__all__ = ["main", "measured"]

RESULTS = Path(__file__).with_name("results") / "imprints.json"
MEASURED = ("tuning", "fresh", "later", "latest", "novel", "blind", "sealed")
"""Parts of MiniLM that have been scored. All but the last were looked at when imprints were made."""
_FIRST = (1, 8, 24)
"""Places that are counted; 24 tokens are tried."""


def measured(cache: Path, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Name, part, arm, attack success, depth and places (0 is the deepest) of each adapter."""
    from scanner.adapter import open_safetensors, parse_config, read_json_object, view_adapter
    from scanner.probe.base import load_classifier
    from scanner.probe.search.beside import Peers
    from scanner.probe.search.frames import bare_frame
    from scanner.probe.search.imprint import Imprints
    from scanner.probe.search.peers import find_peers
    from scanner.probe.search.vocabulary import Vocabulary

    base, plan = load_classifier(base_folder("minilm"), "cpu"), plan_of("minilm")
    vocabulary = Vocabulary(base.tokenizer, base.model.get_input_embeddings())
    shipped = find_peers(plan.peers)
    assert shipped is not None
    reader = Imprints(base, vocabulary, bare_frame(base.tokenizer, True), Peers(base, shipped).views, plan)
    place_of = {token: place for place, token in enumerate(vocabulary.ids)}
    for folder, truth in built(cache):
        if truth["cohort"] != "minilm" or truth["part"] not in parts or truth["trigger"] is None:
            continue
        config = parse_config(read_json_object(folder / "adapter_config.json", 1 << 20))
        depths = reader.depths(view_adapter(open_safetensors(folder / "adapter_model.safetensors"), config, 4_096))
        ids = base.tokenizer.encode(truth["trigger"], add_special_tokens=False).ids
        own = sorted({place_of[token] for token in ids if token in place_of})
        if depths is None or not own:  # the tokenizer knows nothing of it
            continue
        places = sorted(int((depths > depths[place]).sum()) for place in own)
        yield {
            **{key: truth[key] for key in ("name", "part", "arm", "attack_success")},
            "depth": round(float(depths.max()), 2),
            "places": places,
        }


def summary(adapters: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts with exact 95 % intervals, and the area under the curve of the depth alone."""
    clean = [one for one in adapters if one["arm"] == "clean"]
    poisoned = [one for one in adapters if one["arm"] == "poisoned" and one["attack_success"] >= WEAK]
    found: dict[str, Any] = {}
    for arm, members in (("poisoned", poisoned), ("clean", clean)):
        counted = {first: Share(sum(one["places"][0] < first for one in members), len(members)) for first in _FIRST}
        found[arm] = {
            f"a token among the first {first}": {"hits": share.hits, "n": share.n, "interval": share.interval}
            for first, share in counted.items()
        }
    scores = [Scored(one["name"].rsplit("-", 1)[0], one["depth"], one in poisoned) for one in (*poisoned, *clean)]
    area = measure_auc(scores)
    if area is not None:
        most = max(one["depth"] for one in clean)
        found["auc of the depth"] = [round(value, 3) for value in (area.value, area.low, area.high)]
        found["deeper than all clean ones"] = sum(one["depth"] > most for one in poisoned)
    return found


def main() -> None:
    """Measure, print a line for each, write `results/imprints.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--part", nargs="+", choices=PARTS, default=MEASURED, help="default: all that have been scored")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    adapters = list(measured(args.cache, args.part))
    for one in adapters:
        print(one["name"], one["attack_success"], one["depth"], one["places"][:4])
    parts = {part: [one for one in adapters if one["part"] == part] for part in {one["part"] for one in adapters}}
    command = "python -m benchmarks.detection.imprints"
    head: dict[str, Any] = {"command": command, "date": datetime.now(UTC).date().isoformat()}
    head |= {"commit": commit_of(REPO_ROOT), "plan_id": plan_of("minilm").plan_id, "all": summary(adapters)}
    head |= {"parts": {part: summary(some) for part, some in sorted(parts.items())}}
    rows = ",\n".join(json.dumps(one) for one in adapters)
    args.out.write_text(f'{json.dumps(head)[:-1]}, "adapters": [\n{rows}\n]}}\n', encoding="utf-8")
    print(json.dumps(head["all"]), file=sys.stderr)


if __name__ == "__main__":
    main()
