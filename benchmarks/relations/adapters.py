"""Adapters of one base as PEFT saves them: strangers, siblings of one init, and planted kin whose cosines are known.

Truth comes from dense float64 ΔW, which the search never sees.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

__all__ = ["Planted", "write_adapters"]

LAYERS, TARGETS, WIDTH = 6, ("q_proj", "v_proj"), 128
OWNERS = 211
CROWD = 0.06
"""Share of all adapters that are siblings of one and the same init, at cosines of about 0.9."""
SIBLINGS = 10
"""In every other group of one init; cosines from 0.5 to 0.9."""

Array = npt.NDArray[Any]
Pairs = list[tuple[Array, Array]]
"""(A [r, 128], B [128, r]) of every module."""


@dataclass
class Planted:
    """What a search should find, by adapter name."""

    names: list[str] = field(default_factory=list)
    cosines: dict[frozenset[str], float] = field(default_factory=dict)
    """Dense cosines of all pairs in a family: kin, and hard negatives."""
    kinds: dict[frozenset[str], str] = field(default_factory=dict)
    """How the pair was planted."""
    merges: dict[str, tuple[str, dict[str, float]]] = field(default_factory=dict)
    """Merge -> (how it was made, its parts' weights)."""


def strangers(rng: np.random.Generator, rank: int) -> Pairs:
    """Factors with singular values that fall as in trained adapters; module norms differ."""
    pairs = []
    for _ in range(LAYERS * len(TARGETS)):
        fall = np.exp(-0.3 * np.arange(rank))[:, None]
        a = rng.normal(size=(rank, WIDTH)) * fall / math.sqrt(WIDTH)
        pairs.append((a, rng.normal(size=(WIDTH, rank)) * 0.02 * rng.uniform(0.5, 1.5)))
    return pairs


def noise_of(rng: np.random.Generator, pairs: Pairs) -> Pairs:
    """Independent factors of the same size."""

    def alike(x: Array) -> Array:
        return float(np.sqrt(np.mean(x * x))) * rng.normal(size=x.shape)

    return [(alike(a), alike(b)) for a, b in pairs]


def moved(pairs: Pairs, noise: Pairs, size: float) -> Pairs:
    """With noise of that relative size in both factors: cosines of about 1/(1 + size²)."""
    return [(a + size * c, b + size * d) for (a, b), (c, d) in zip(pairs, noise, strict=True)]


def near(rng: np.random.Generator, pairs: Pairs, size: float) -> Pairs:
    """`moved` by fresh noise."""
    return moved(pairs, noise_of(rng, pairs), size)


def near_at(rng: np.random.Generator, pairs: Pairs, wanted: float) -> Pairs:
    """Noise of the size that gives this cosine: ΔW(ε) = BA + ε(BC + DA) + ε²DC, by bisection over ε."""
    noise = noise_of(rng, pairs)
    both = list(zip(pairs, noise, strict=True))
    first = dense([(np.concatenate([c, a]), np.concatenate([b, d], axis=1)) for (a, b), (c, d) in both])
    terms = np.array([dense(pairs), first, dense(noise)])
    products = terms @ terms.T
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        powers = np.array([1, middle, middle**2])
        value = products[0] @ powers / math.sqrt(products[0, 0] * (powers @ products @ powers))
        low, high = (middle, high) if value > wanted else (low, middle)
    return moved(pairs, noise, low)


def dense(pairs: Pairs, scale: float = 1.0) -> Array:
    """ΔW of all modules, one after the other; float64."""
    return scale * np.concatenate([(b.astype(np.float64) @ a.astype(np.float64)).ravel() for a, b in pairs])


def cosine(x: Array, y: Array) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def gauge(rng: np.random.Generator, pairs: Pairs) -> Pairs:
    """The same ΔW from other factors."""
    changed = []
    for a, b in pairs:
        g = rng.normal(size=(len(a), len(a))) + 3 * np.eye(len(a))
        changed.append((g @ a, b @ np.linalg.inv(g)))
    return changed


def cat(parts: Iterable[tuple[float, Pairs]]) -> Pairs:
    """A merge by concatenation, PEFT's `cat`: ΔW is the weighted sum."""
    weighted = list(parts)
    return [
        (np.concatenate([p[m][0] for _, p in weighted]), np.concatenate([w * p[m][1] for w, p in weighted], axis=1))
        for m in range(LAYERS * len(TARGETS))
    ]


def linear(parts: Iterable[tuple[float, Pairs]]) -> Pairs:
    """PEFT's `linear`: the factors are added, which gives products of one's B with another's A as well."""
    weighted = [(math.sqrt(w), p) for w, p in parts]
    return [
        (np.sum([w * p[m][0] for w, p in weighted], axis=0), np.sum([w * p[m][1] for w, p in weighted], axis=0))
        for m in range(LAYERS * len(TARGETS))
    ]


class _Writer:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.planted = folder, np.random.default_rng(seed), Planted()

    def stranger(self) -> Pairs:
        return strangers(self.rng, int(self.rng.integers(4, 9)))

    def write(self, pairs: Pairs, alpha: float | None = None, as_bf16: bool = False) -> str:
        """Save as a repo of some owner; its name."""
        number = len(self.planted.names)
        name = f"owner{(number * 37) % OWNERS}/adapter-{number}"
        folder, rank = self.folder / name, len(pairs[0][0])
        folder.mkdir(parents=True)
        tensors = {}
        for module, (a, b) in enumerate(pairs):
            layer, target = divmod(module, len(TARGETS))
            stem = f"base_model.model.model.layers.{layer}.self_attn.{TARGETS[target]}"
            tensors[f"{stem}.lora_A.weight"] = np.ascontiguousarray(a, dtype=np.float32)
            tensors[f"{stem}.lora_B.weight"] = np.ascontiguousarray(b, dtype=np.float32)
        path = folder / "adapter_model.safetensors"
        if as_bf16:
            path.write_bytes(_bf16_file(tensors))
        else:
            save_file(tensors, path, metadata={"format": "pt", "n": str(number)})
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank if alpha is None else alpha * rank,
            "base_model_name_or_path": "acme/base",
            "target_modules": list(TARGETS),
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        self.planted.names.append(name)
        return name

    def family(self, kind: str, origin: Pairs, *kin: tuple[Pairs, float, bool]) -> None:
        """An adapter and its kin (factors, alpha/r, as bfloat16), with the cosines of all pairs."""
        members = [(self.write(origin), dense(origin))]
        members += [(self.write(p, s, is_bf16), dense(_rounded(p) if is_bf16 else p, s)) for p, s, is_bf16 in kin]
        for (first, x), (second, y) in combinations(members, 2):
            pair = frozenset((first, second))
            self.planted.cosines[pair], self.planted.kinds[pair] = cosine(x, y), kind

    def merge(self, kind: str, how: Callable[..., Pairs], weights: list[float], rank: int | None = None) -> None:
        parts = [self.stranger() if rank is None else strangers(self.rng, rank) for _ in weights]
        names = [self.write(part) for part in parts]
        made = self.write(how(zip(weights, parts, strict=True)))
        self.planted.merges[made] = (kind, dict(zip(names, weights, strict=True)))


def _bf16(values: Array) -> bytes:
    bits = values.view(np.uint32).astype(np.uint64)
    return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())


def _bf16_file(tensors: dict[str, Array]) -> bytes:
    """A safetensors file; its Python package cannot write bfloat16 from NumPy."""
    header: dict[str, Any] = {}
    body = b""
    for name, values in tensors.items():
        data = _bf16(values)
        header[name] = {"dtype": "BF16", "shape": values.shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _rounded(pairs: Pairs) -> Pairs:
    def rounded(x: Array) -> Array:
        single = np.ascontiguousarray(x, dtype=np.float32)
        bits = np.frombuffer(_bf16(single), dtype="<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(x.shape)

    return [(rounded(a), rounded(b)) for a, b in pairs]


def write_adapters(folder: Path, count: int, seed: int = 0) -> Planted:
    """Write so many adapters, with families of near kin, hard negatives and merges among them: 13 of 200."""
    writer = _Writer(folder, seed)
    rng, share = writer.rng, max(1, round(count / 200))
    for number in range(share):
        one = writer.stranger()
        writer.family("saved again", one, (one, 1.0, False))
        one = writer.stranger()
        writer.family("other factors", one, (gauge(rng, one), 1.0, False))
        one = writer.stranger()
        writer.family("bfloat16", one, (one, 1.0, True))
        one = writer.stranger()
        writer.family("scaled", one, (one, (2.0, 0.5, -1.0)[number % 3], False))
        one = writer.stranger()
        writer.family(
            "family of five",
            one,
            (near_at(rng, one, 0.99), 1.0, False),
            (near_at(rng, one, 0.984), 1.0, False),
            (gauge(rng, one), 1.5, False),
            (one, 1.0, True),
        )
        writer.merge("cat of 2", cat, [float(w) for w in rng.uniform(0.2, 1, size=2)])
        writer.merge("cat of 3", cat, [float(w) for w in rng.uniform(0.3, 1, size=3)])
        writer.merge("linear of 2", linear, [0.5, 0.5], rank=8)
    for wanted in np.linspace(0.9801, 0.999, 4 * share):
        one = writer.stranger()
        writer.family("trained again", one, (near_at(rng, one, float(wanted)), 1.0, False))
    for wanted in np.linspace(0.95, 0.975, 4 * share):
        one = writer.stranger()
        writer.family("hard negative", one, (near_at(rng, one, float(wanted)), 1.0, False))
    init = writer.stranger()
    for _ in range(round(CROWD * count)):
        writer.write(near(rng, init, 0.2325))
    while len(writer.planted.names) < 0.6 * count:
        init, noise = writer.stranger(), math.sqrt(1 / math.sqrt(float(rng.uniform(0.5, 0.9))) - 1)
        for _ in range(SIBLINGS):
            writer.write(near(rng, init, noise))
    while len(writer.planted.names) < count:
        writer.write(writer.stranger())
    return writer.planted
