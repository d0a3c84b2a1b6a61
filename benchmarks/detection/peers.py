"""The clean classifiers that ship as peers of MiniLM's: `python -m benchmarks.detection.peers`.

They are members of the part `reference`, small ones that were trained from barely to fully, and no rank of a search
holds them afterwards. Their files ship as PEFT wrote them.

Needs `build --part reference --only` with their names.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detection.adapters import BASES
from benchmarks.detection.ask import open_adapter
from benchmarks.detection.search import TEXTS, base_folder, built, default_cache
from scanner.adapter import CONFIG_NAME, AdapterView
from scanner.probe import Probe, load_probe
from scanner.probe.search.peers import FACTS, SHIPPED_PEERS, WEIGHTS
from scanner.probe.search.plan import SIEVE
from scanner.search_model import TOWARD_CLEAN

__all__ = ["is_peer", "peer_facts"]

COHORT = "minilm"
PEERS = tuple(
    f"{COHORT}-reference-{number:03d}-clean" for number in (25, 28, 30, 33, 34, 36, 38, 39, 41, 42, 44, 52, 53, 54)
)
"""From barely to fully trained: scales of 0.9 to 7.2 nats, contrasts of 4 to 58."""
_DIGITS = 4


def is_peer(name: str) -> bool:
    """Whether an adapter is one of them: what is bred against it would move it no more than itself."""
    return name in PEERS


def peer_facts(base: Any, probe: Probe, view: AdapterView) -> dict[str, Any]:
    """Its class of harmless texts, its scale and its contrast.

    Raises:
        RuntimeError: its classes do not follow the labels.
    """
    from scanner.probe.classifier import classify, encode_texts, with_head
    from scanner.probe.search.aims import class_aims

    texts = (probe.texts, probe.other_texts)
    with with_head(base, view):
        attack, other = (np.concatenate(classify(base, encode_texts(base, part), 4_096)) for part in texts)
    aim = next((aim for aim in class_aims(texts, (attack, other), SIEVE) if aim.kind == TOWARD_CLEAN), None)
    if aim is None:
        raise RuntimeError("an adapter whose classes do not follow the labels is no peer")
    scale, contrast = (round(float(one), _DIGITS) for one in (aim.scale[0], aim.contrast))
    return {"clean_class": aim.direction, "scale": scale, "contrast": contrast}


def main() -> None:
    """Copy their files, and write what was measured of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--out", type=Path, default=SHIPPED_PEERS)
    args = parser.parse_args()
    import peft
    import torch
    import transformers

    from scanner.probe.base import load_classifier

    folders = {folder.name: folder for folder, _ in built(args.cache) if is_peer(folder.name)}
    if missing := sorted(set(PEERS) - set(folders)):
        sys.exit(f"not built: {', '.join(missing)}")
    base, probe = load_classifier(base_folder(COHORT), "cpu"), load_probe("broad", None, TEXTS)
    out: Path = args.out / BASES[COHORT].replace("/", "--")
    shutil.rmtree(out, ignore_errors=True)
    facts = {}
    for name, folder in sorted(folders.items()):
        facts[name] = peer_facts(base, probe, open_adapter(folder))
        (out / name).mkdir(parents=True, exist_ok=True)
        for file in (CONFIG_NAME, WEIGHTS):
            shutil.copyfile(folder / file, out / name / file)
    versions = {package.__name__: package.__version__ for package in (torch, transformers, peft)}
    command = "python -m benchmarks.detection.peers"
    made_with = {"command": command, "probe": probe.identity, "python": platform.python_version(), **versions}
    head = {"date": datetime.now(UTC).date().isoformat(), "made_with": made_with, "members": facts}
    (out / FACTS).write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")
    print(f"{out.name}: {len(facts)} peers")


if __name__ == "__main__":
    main()
