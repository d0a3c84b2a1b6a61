"""The dense routes, and whether the scan's answers are theirs: `python -m benchmarks.weights.dense DIR`.

(b) The paper's (its notebook 10): numpy, float32, `svd(B @ A, compute_uv=False)` for each module.
(d) PEFT's: `get_delta_weight` of a `LoraLayer`, then `torch.linalg.svdvals` (as in its notebook 17). PEFT widens bf16
    factors to float32 when it loads an adapter, so float32 is what the layer holds here too.

Reading the file is not counted for either. One module of each size is measured, and all where that fits the time; the
rest is extrapolated, and said to be.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.weights.bare import measure_folder, open_folder
from scanner.adapter import LowRankUpdate
from scanner.weights import features_of

Values = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Route = Callable[[LowRankUpdate], tuple[float, Values]]
"""Seconds, and the singular values of B·A."""
Spectra = dict[str, npt.NDArray[np.float64]]
"""The scan's own singular values of B·A, by module."""

BLOCK = 1024
"""Side of the block whose SVD bounds that of a matrix from below."""
FLOOR = 1e-4
"""Singular values above this share of the largest are compared."""


def by_size(updates: tuple[LowRankUpdate, ...]) -> list[list[LowRankUpdate]]:
    """Modules of one (out, in), the cheapest SVD first."""
    groups: dict[tuple[int, int], list[LowRankUpdate]] = defaultdict(list)
    for update in updates:
        groups[update.out_features, update.in_features].append(update)
    return sorted(groups.values(), key=lambda group: work(group[0]))


def work(update: LowRankUpdate) -> int:
    """What an SVD of ΔW grows with: longer side × shorter side²."""
    out, into = update.out_features, update.in_features
    return max(out, into) * min(out, into) ** 2


def numpy_route(update: LowRankUpdate) -> tuple[float, Values]:
    a, b = update.read()
    started = time.perf_counter()
    sigma = np.linalg.svd(b @ a, compute_uv=False)
    return time.perf_counter() - started, sigma


def peft_route(update: LowRankUpdate) -> tuple[float, Values]:
    import torch
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    a, b = update.read()
    rank, alpha = update.rank, round(update.scale * update.rank)
    base = torch.nn.Linear(update.in_features, update.out_features, bias=False, device="meta")  # ΔW needs no base
    layer = Linear(base, "default", config=LoraConfig(r=rank, lora_alpha=alpha), r=rank, lora_alpha=alpha)
    layer.lora_A["default"].weight = torch.nn.Parameter(torch.from_numpy(a.copy()))
    layer.lora_B["default"].weight = torch.nn.Parameter(torch.from_numpy(b.copy()))
    with torch.inference_mode():
        started = time.perf_counter()
        sigma = torch.linalg.svdvals(layer.get_delta_weight("default"))
        seconds = time.perf_counter() - started
    return seconds, sigma.numpy() / update.scale


def time_route(route: Route, groups: list[list[LowRankUpdate]], ours: Spectra, budget_s: float) -> dict[str, Any]:
    """Seconds for all modules, and whether they were measured or extrapolated from one module of each size.

    A size that does not fit the budget gets a bound from below: the SVD of its leading square block of side 1024 or
    less, times (shorter side / side of the block)³. An SVD takes at least the cube of the shorter side.
    """
    total = sum(len(group) for group in groups)
    one_each: list[float | None] = []
    deviations, spent, rate = [], 0.0, 0.0
    for group in groups:
        if spent and spent + rate * work(group[0]) > budget_s:
            one_each.append(None)
            continue
        seconds, sigma = route(group[0])
        one_each.append(seconds)
        deviations.append(_deviation(ours[group[0].module], sigma))
        spent, rate = spent + seconds, seconds / work(group[0])
    measured = [seconds for seconds in one_each if seconds is not None]
    found: dict[str, Any] = {"measured_modules": len(measured), "modules": total, "extrapolated": True}
    found["agreement"] = {name: max(d[name] for d in deviations) for name in deviations[0]}
    known = [(s, group) for s, group in zip(one_each, groups, strict=True) if s is not None]
    wall = sum(seconds * len(group) for seconds, group in known)
    if len(measured) == len(groups) and wall <= budget_s:
        wall = sum(route(update)[0] for group in groups for update in group)
        return found | {"wall_s": wall, "measured_modules": total, "extrapolated": False, "lower_bound": False}
    for sample, group in zip(one_each, groups, strict=True):
        if sample is None:
            wall += len(group) * _bound(route, group[0])
    return found | {"wall_s": wall, "lower_bound": len(measured) < len(groups)}


def _bound(route: Route, update: LowRankUpdate) -> float:
    side = min(BLOCK, update.out_features, update.in_features)

    def read() -> tuple[Values, Values]:
        a, b = update.read()
        return a[:, :side], b[:side]

    block = LowRankUpdate("block", update.rank, side, side, update.scale, read)
    return min(route(block)[0] for _ in range(3)) * (min(update.out_features, update.in_features) / side) ** 3


def _deviation(ours: npt.NDArray[np.float64], sigma: Values) -> dict[str, float]:
    """Of our singular values from those of a float32 SVD, whose own error is a few 1e-7 of the largest value."""
    dense = sigma[: len(ours)].astype(np.float64)
    return {
        "sigma_over_largest": float(np.abs(ours - dense).max() / dense[0]),
        "norm": abs(float(np.linalg.norm(ours) / np.linalg.norm(dense)) - 1),
    }


def check(
    groups: list[list[LowRankUpdate]],
    ours: Spectra,
    features: dict[str, dict[str, float | None]],
    budget_s: float,
) -> dict[str, Any]:
    """Relative errors against a float64 dense SVD, for one module of each size that fits the budget (at least one)."""
    worst: dict[str, float] = defaultdict(float)
    checked: list[str] = []
    spent, rate = 0.0, 0.0
    for group in groups:
        update = group[len(group) // 2]  # another one than is timed
        if checked and spent + rate * work(update) > budget_s:
            continue
        started = time.perf_counter()
        a, b = update.read()
        product = b.astype(np.float64) @ a.astype(np.float64)
        sigma: npt.NDArray[np.float64] = np.linalg.svd(product, compute_uv=False)[: update.rank].astype(np.float64)
        spent += time.perf_counter() - started
        rate = (time.perf_counter() - started) / work(update)
        large = sigma > FLOOR * sigma[0]
        worst["sigma"] = max(worst["sigma"], float(np.abs(ours[update.module] / sigma - 1)[large].max()))
        for name, wanted in dense_features(product, sigma, update.scale).items():
            value = features[update.module].get(name)
            if name in features[update.module]:
                error = abs(value / wanted - 1) if value is not None else float("inf")
                worst[name] = max(worst[name], error)
        checked.append(update.module)
    return {"modules": checked, "relative_errors": dict(worst)}


def dense_features(product: npt.NDArray[np.float64], sigma: npt.NDArray[np.float64], scale: float) -> dict[str, float]:
    """The scan's features of one module by their definitions, from the dense float64 B·A."""
    energy = float((sigma**2).sum())
    rows = np.sort((product**2).sum(axis=1))
    return {
        "frobN": float(np.sqrt(energy / product.size)),
        "delta_frob": abs(scale) * float(np.sqrt(energy)),
        "stable_rank": energy / float(sigma[0]) ** 2,
        "top1_energy": float(sigma[0]) ** 2 / energy,
        "row_top8_energy": float(rows[-8:].sum() / rows.sum()),
    }


def main() -> None:
    """Print the times of both routes (where asked for) and the errors against float64."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--route-seconds", type=float, default=0, help="0: no times, only the check")
    parser.add_argument("--check-seconds", type=float, default=4)
    args = parser.parse_args()
    groups = by_size(open_folder(args.folder)[1].updates)
    measurement = measure_folder(args.folder)
    ours = {module.module: module.sigma for module in measurement.modules}
    features = {module.module: module.features for module in features_of(measurement).modules}
    found: dict[str, Any] = {"check": check(groups, ours, features, args.check_seconds)}
    if args.route_seconds:
        found["numpy"] = time_route(numpy_route, groups, ours, args.route_seconds)
        found["peft"] = time_route(peft_route, groups, ours, args.route_seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
