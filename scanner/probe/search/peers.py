"""Clean classifiers of a base that ship with lorascope: what turns them as well is no evidence against an adapter.

Words of some kind mean the harmless class to every classifier of a base, and they mean it the more the less a
classifier was trained. So an adapter is compared with peers that were trained about as far as it was. They come from
this project (`benchmarks/detection/peers.py`), in PEFT's own files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scanner.adapter import CONFIG_NAME

__all__ = ["FACTS", "SHIPPED_PEERS", "WEIGHTS", "ShippedPeer", "ShippedPeers", "find_peers", "load_peers"]

SHIPPED_PEERS = Path(__file__).parent.parent / "data" / "peers"
"""`BASE/NAME/` with PEFT's two files, and `BASE/peers.json` with what was measured of them."""
WEIGHTS = "adapter_model.safetensors"
FACTS = "peers.json"


@dataclass(frozen=True)
class ShippedPeer:
    """One clean classifier."""

    folder: Path
    clean_class: int
    """What it says of harmless texts; the other of its two classes is the attack's."""
    scale: float
    """Nats between its mean margins on attacks and on harmless texts."""
    contrast: float
    """How far it was trained; see `scanner.probe.search.aims.contrast`."""


@dataclass(frozen=True)
class ShippedPeers:
    """Of one base."""

    base_model: str
    peers_id: str
    members: tuple[ShippedPeer, ...]
    """By name."""


def load_peers(base_model: str) -> ShippedPeers | None:
    """The shipped ones of a base; None without any."""
    return next((one for one in _shipped() if one.base_model == base_model), None)


def find_peers(peers_id: str) -> ShippedPeers | None:
    """The shipped ones of an id; None without any."""
    return next((one for one in _shipped() if one.peers_id == peers_id), None)


@cache
def _shipped() -> tuple[ShippedPeers, ...]:
    return tuple(_read(folder) for folder in sorted(SHIPPED_PEERS.iterdir()) if folder.is_dir())


def _read(folder: Path) -> ShippedPeers:
    text = (folder / FACTS).read_text(encoding="utf-8")
    facts: dict[str, dict[str, Any]] = json.loads(text)["members"]
    members = tuple(ShippedPeer(folder / name, **one) for name, one in sorted(facts.items()))
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for member in members:
        for name in (CONFIG_NAME, WEIGHTS):
            digest.update(hashlib.sha256((member.folder / name).read_bytes()).digest())
    return ShippedPeers(folder.name.replace("--", "/"), digest.hexdigest()[:8], members)
