"""Shipped peers beside a resident base, each attached to a copy that shares its weights.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch

from scanner.adapter import CONFIG_NAME, AdapterView, open_safetensors, parse_config, read_json_object, view_adapter
from scanner.probe.base import ClassifierBase
from scanner.probe.classifier import with_head
from scanner.probe.search.aims import class_margin
from scanner.probe.search.climb import Climb
from scanner.probe.search.frames import Frames
from scanner.probe.search.objective import ClassifierObjective
from scanner.probe.search.peers import WEIGHTS, ShippedPeer, ShippedPeers

__all__ = ["Peers"]

_MAX_CONFIG_BYTES, _MAX_RANK = 1 << 20, 4_096


@dataclass(frozen=True)
class _Peer:
    """One that stays attached."""

    base: ClassifierBase
    shipped: ShippedPeer


class Peers:
    """The peers of one base. Each is attached when it is first asked, and stays.

    Args:
        base: resident, with nothing attached: a copy takes over what its base has.
        shipped: of this base.

    Raises:
        UnsupportedError: they do not fit the base; see `with_head`.
    """

    def __init__(self, base: ClassifierBase, shipped: ShippedPeers) -> None:
        self._bare, self._shipped = _copied(base), shipped.members
        self._attached = ExitStack()
        """Holds them: what is not held is detached."""
        self._known: dict[Path, _Peer] = {}
        for one in self._shipped[:1]:
            self._peer(one)

    @property
    def views(self) -> list[AdapterView]:
        """All of them, as a scan reads them."""
        return [_view(one.folder) for one in self._shipped]

    def _peer(self, shipped: ShippedPeer) -> _Peer:
        if shipped.folder not in self._known:
            base = _copied(self._bare)
            self._attached.enter_context(with_head(base, _view(shipped.folder)))
            self._known[shipped.folder] = _Peer(base, shipped)
        return self._known[shipped.folder]

    def beside(self, at: Climb, contrast: float, n: int, tokens_per_batch: int) -> list[Climb]:
        """The n that were trained most nearly as far as an adapter, on its texts.

        Args:
            at: of the adapter, toward the harmless class.
            contrast: of its aim.
            n: peers; those whose contrasts are nearest to it, as ratios.
            tokens_per_batch: size of a batch.

        Raises:
            ProbeFailedError: see `Objective`.
        """
        near = sorted(self._shipped, key=lambda one: abs(math.log(one.contrast / contrast)))
        return [_climb(self._peer(one), at, tokens_per_batch) for one in near[:n]]


def _copied(base: ClassifierBase) -> ClassifierBase:
    """A copy of the modules, not of the weights: only what a peer changes becomes its own."""
    shared = chain(base.model.parameters(), base.model.buffers())
    return replace(base, model=copy.deepcopy(base.model, {id(tensor): tensor for tensor in shared}))


def _climb(peer: _Peer, at: Climb, tokens: int) -> Climb:
    frames: Frames = at.objective.frames
    objective = ClassifierObjective(peer.base, frames, class_margin(peer.shipped.clean_class), tokens)
    return Climb(objective, at.vocabulary, objective.plain(), torch.tensor([peer.shipped.scale]), at.plan)


def _view(folder: Path) -> AdapterView:
    config = parse_config(read_json_object(folder / CONFIG_NAME, _MAX_CONFIG_BYTES))
    return view_adapter(open_safetensors(folder / WEIGHTS), config, _MAX_RANK)
