"""VeRA: one random pair of factors for all modules, scaled by two vectors for each."""

from __future__ import annotations

from collections.abc import Mapping

from scanner.adapter.layouts import limits
from scanner.adapter.layouts.build import Built, Source, are_floats
from scanner.adapter.layouts.slots import Group
from scanner.adapter.lowrank import FloatArray, LowRankUpdate

__all__ = ["build_vera", "input_widths"]

_READERS = frozenset(
    ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1", "q_lin", "k_lin", "v_lin", "lin1", "query", "value")
)  # fmt: skip
"""Modules that read the residual stream: their inputs are the hidden size."""
_WRITERS = {
    "o_proj": "attention", "out_proj": "attention", "out_lin": "attention",
    "down_proj": "inner", "fc2": "inner", "lin2": "inner",
}  # fmt: skip
"""Modules that write to it, by what they read: their outputs are the hidden size."""
_OUTPUTS = {
    "q_proj": "attention", "q_lin": "attention",
    "gate_proj": "inner", "up_proj": "inner", "fc1": "inner", "lin1": "inner",
}  # fmt: skip
"""Modules whose outputs are what a writer of the same layer reads."""


def input_widths(outputs: Mapping[str, int], widest: int) -> dict[str, int]:
    """Inputs of each module, which the file does not tell: the shared A is as wide as the widest module.

    They follow from the other modules' outputs where those are adapted, too. One width that nothing tells must be the
    widest, if no other one is. A module whose width stays open is left out.

    Args:
        outputs: module -> length of its λ_b.
        widest: columns of the shared A.
    """
    by_kind: dict[str, str] = {}
    known: dict[str, set[int]] = {}
    for module, size in outputs.items():
        name = module.rsplit(".", 1)[-1]
        by_kind[module] = "hidden" if name in _READERS else _WRITERS.get(name, name)
        if name in _WRITERS:
            known.setdefault("hidden", set()).add(size)
        if name in _OUTPUTS:
            known.setdefault(_OUTPUTS[name], set()).add(size)
    needed = set(by_kind.values())
    widths = {kind: next(iter(sizes)) for kind, sizes in known.items() if kind in needed and len(sizes) == 1}
    missing = needed - set(widths)
    if len(missing) == 1 and widest not in widths.values():
        widths[missing.pop()] = widest
    return {module: widths[kind] for module, kind in by_kind.items() if widths.get(kind, widest + 1) <= widest}


def build_vera(group: Group, source: Source) -> Built | None:
    """ΔW = diag(b)·B·diag(d)·A with B and A shared by all modules and cut to this one's size (arXiv:2310.11454,
    equation 2). Without the shared pair in the file there is nothing to read: it comes from a random generator then.
    """
    shared_a, shared_b = (source.file.entries.get(f"base_model.vera_{side}") for side in "AB")
    d, b = group.parts.get("d"), group.parts.get("b")
    if shared_a is None or shared_b is None or d is None or b is None or not are_floats(shared_a, shared_b, d, b):
        return None
    if any(len(e.shape) != 2 for e in (shared_a, shared_b)) or any(len(e.shape) != 1 for e in (d, b)):
        return None
    rank, out_features = d.shape[0], b.shape[0]
    in_features = input_widths(source.vera_outputs, shared_a.shape[1]).get(group.module)
    if in_features is None or shared_a.shape[0] != rank or shared_b.shape[1] != rank:
        return None
    if out_features > shared_b.shape[0]:
        return None
    limits.check_factors(group.module, rank, in_features, out_features, source.max_rank)

    def read() -> tuple[FloatArray, FloatArray]:
        down = source.floats(shared_a)[:, :in_features] * source.floats(d)[:, None]
        return down, source.floats(shared_b)[:out_features] * source.floats(b)[:, None]

    update = LowRankUpdate(group.module, rank, out_features, in_features, 1.0, read)
    return Built((update,), (d, b, shared_a, shared_b))
