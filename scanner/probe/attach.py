"""Low-rank updates on a resident base, and off it again without residue.

Imported only inside the probe worker (it needs torch). Updates come from our own reading of the factors: nothing of the
uploaded config reaches a framework's loader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from scanner.adapter import AdapterView, LowRankUpdate
from scanner.errors import UnsupportedError

__all__ = ["HOOKED", "MERGED", "applied", "attached", "best_way", "hooked", "merged"]

HOOKED = "hooked"
MERGED = "merged"
MERGE_LIMIT_BYTES = 1024**3
"""Merging keeps the original weights beside the merged ones; larger ones than this would not fit twice everywhere."""


@contextmanager
def attached(model: Any, view: AdapterView, way: str | None = None) -> Iterator[None]:
    """Apply an adapter's low-rank updates for the duration of the block.

    Args:
        model: transformers.PreTrainedModel.
        view: the adapter.
        way: `merged` or `hooked`; None: `best_way`.

    Raises:
        UnsupportedError: tensors that this engine would have to ignore, or see `hooked`. An adapter is probed whole or
            not at all.
    """
    if view.unexplained or view.heads or view.companions:
        names = (*view.unexplained, *view.heads, *(companion.tensor.name for companion in view.companions))
        raise UnsupportedError(f"{len(names)} full tensors are not applied by the probe: {names[0]}", "full_tensors")
    with applied(model, view.updates, way):
        yield


def applied(model: Any, updates: Sequence[LowRankUpdate], way: str | None = None) -> AbstractContextManager[None]:
    """Low-rank updates alone, in a way of one's own or the best one. Arguments and errors as of `attached`."""
    return (merged if (way or best_way(model, updates)) == MERGED else hooked)(model, updates)


def best_way(model: Any, updates: Sequence[LowRankUpdate]) -> str:
    """The faster way to run an adapter that changes no result (docs/adr/0010).

    Merging costs a pass over the weights and then nothing. In half precision it would round the update away, 4-bit
    weights cannot take it, and large ones would not fit twice: there the update stays beside the weight.
    """
    size_bytes = 0
    for update in updates:
        weight = _linear(model, update).weight
        if weight.dtype != torch.float32:
            return HOOKED
        size_bytes += weight.numel() * weight.element_size()
    return MERGED if size_bytes <= MERGE_LIMIT_BYTES else HOOKED


@contextmanager
def hooked(model: Any, updates: Sequence[LowRankUpdate]) -> Iterator[None]:
    """Add updates to the outputs of a model's modules.

    The factors stay float32 on the CPU, as PEFT's LoRA layers have them; on CUDA they take the base's type, in which
    matrix products are many times faster there. The product is added to the module's output.

    Raises:
        UnsupportedError: a module that the model does not have or that is not linear, or shapes that do not fit.
    """
    handles = []
    try:
        for update in updates:
            module = _linear(model, update)
            device = module.weight.device
            dtype = torch.float32
            if device.type != "cpu" and module.weight.is_floating_point():
                dtype = module.weight.dtype
            down, up = _factors(update, device)
            handles.append(module.register_forward_hook(_hook(down.to(dtype), up.to(dtype))))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def merged(model: Any, updates: Sequence[LowRankUpdate]) -> Iterator[None]:
    """Put W + ΔW in the place of the weights. The originals are kept aside and put back, so nothing is subtracted.

    Raises:
        UnsupportedError: see `hooked`.
    """
    replaced: list[tuple[Any, Any]] = []
    try:
        for update in updates:
            module = _linear(model, update)
            old = module.weight
            down, up = _factors(update, old.device)
            delta = down.T @ up.T if isinstance(module, Conv1D) else up @ down
            replaced.append((module, old))
            module.weight = torch.nn.Parameter((old.float() + delta).to(old.dtype), requires_grad=False)
        yield
    finally:
        for module, old in reversed(replaced):  # a module may be the target of two updates
            module.weight = old


def _linear(model: Any, update: LowRankUpdate) -> Any:
    """The module of an update, after a look at its kind and shape."""
    if update.kind != "linear":
        raise UnsupportedError(f"{update.kind} updates are not applied by the probe", f"{update.kind}_update")
    try:
        module = model.get_submodule(update.module)
    except AttributeError as error:
        raise UnsupportedError(f"the base has no module {update.module[:120]}", "base_mismatch") from error
    if isinstance(module, Conv1D):  # GPT-2 keeps its linear weights transposed
        shape = tuple(module.weight.shape)[::-1]
    elif isinstance(module, torch.nn.Linear):
        shape = (module.out_features, module.in_features)  # 4-bit layers pack their weight: its own shape says nothing
    else:
        kind = type(module).__name__
        raise UnsupportedError(f"{update.module[:120]} is no linear layer in the base: {kind}", "module_kind")
    if shape != (update.out_features, update.in_features):
        wanted = (update.out_features, update.in_features)
        raise UnsupportedError(f"{update.module} is {shape} in the base, the adapter has {wanted}", "base_mismatch")
    return module


def _factors(update: LowRankUpdate, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(A [r, in], s·B [out, r]), float32."""
    a, b = update.read()
    down = torch.from_numpy(a.astype("float32")).to(device)
    return down, torch.from_numpy(b.astype("float32")).to(device) * update.scale


def _hook(down: torch.Tensor, up: torch.Tensor) -> Any:
    def add_update(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        delta = (inputs[0].to(down.dtype) @ down.T) @ up.T
        return output + delta.to(output.dtype)

    return add_update
