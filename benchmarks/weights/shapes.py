"""Which adapters are measured: the shapes of real models, ranks and dtypes, and how large the files are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

__all__ = ["DEFAULT", "DTYPES", "MAX_FILE_BYTES", "RANKS", "SHAPES", "SMALL", "TARGET", "Case", "Shape", "select"]

RANKS = (8, 16, 64, 256)
DTYPES = {"fp32": 4, "bf16": 2}
"""Bytes of a value."""
MAX_FILE_BYTES = 4 * 10**9
"""A larger case is left out and reported as left out."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, from its public config.json. Every layer has the same seven projections."""

    name: str
    base_model: str
    layers: int
    hidden: int
    """hidden_size; also what q_proj gives and o_proj takes in all of these models."""
    mlp: int
    """intermediate_size."""
    kv: int
    """num_key_value_heads × head_dim."""

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Name within a layer to (out, in)."""
        return {
            "mlp.down_proj": (self.hidden, self.mlp),
            "mlp.gate_proj": (self.mlp, self.hidden),
            "mlp.up_proj": (self.mlp, self.hidden),
            "self_attn.k_proj": (self.kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.v_proj": (self.kv, self.hidden),
        }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", 24, 896, 4864, 128),
        Shape("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B", 28, 1536, 8960, 256),
        Shape("qwen2.5-7b", "Qwen/Qwen2.5-7B", 28, 3584, 18944, 512),
        Shape("llama-3-8b", "meta-llama/Meta-Llama-3-8B", 32, 4096, 14336, 1024),
        Shape("llama-3-70b", "meta-llama/Meta-Llama-3-70B", 80, 8192, 28672, 1024),
    )
}


@dataclass(frozen=True)
class Case:
    """One adapter to generate."""

    shape: Shape
    rank: int
    dtype: str
    """A key of DTYPES."""

    @property
    def name(self) -> str:
        return f"{self.shape.name} r={self.rank} {self.dtype}"

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Module name to (out, in), sorted by name as a safetensors file is."""
        names = {
            f"model.layers.{layer}.{projection}": size
            for layer in range(self.shape.layers)
            for projection, size in self.shape.projections.items()
        }
        return dict(sorted(names.items()))

    @property
    def parameters(self) -> int:
        return self.rank * sum(out + into for out, into in self.modules.values())

    @property
    def tensor_bytes(self) -> int:
        """Of the file without its header."""
        return self.parameters * DTYPES[self.dtype]


def _cases(shape: str, ranks: Iterable[int], dtypes: Iterable[str]) -> list[Case]:
    return [Case(SHAPES[shape], rank, dtype) for rank, dtype in product(ranks, dtypes)]


TARGET = Case(SHAPES["qwen2.5-1.5b"], 16, "fp32")
"""74 MB: the adapter of the stated speed targets."""
DEFAULT = (
    *_cases("qwen2.5-0.5b", (16,), DTYPES),
    *_cases("qwen2.5-0.5b", (256,), ("bf16",)),
    *_cases("qwen2.5-1.5b", (8, 16, 64), ("fp32",)),
    *_cases("qwen2.5-1.5b", (16,), ("bf16",)),
    *_cases("qwen2.5-7b", (16,), DTYPES),
    *_cases("llama-3-8b", (16,), ("bf16",)),
    *_cases("llama-3-70b", (16, 64), ("bf16",)),
)
"""17 files of together 3.8 GB. The whole matrix (`--rank 8 16 64 256`) has 40 cases, of which 38 fit MAX_FILE_BYTES."""
_TINY = Shape("tiny", "acme/tiny", 2, 96, 256, 32)
SMALL = (Case(_TINY, 4, "bf16"), Case(_TINY, 8, "fp32"))


def select(shapes: list[str] | None, ranks: list[int] | None, dtypes: list[str] | None) -> list[Case]:
    """The product of what is named; what is not named is not restricted. Nothing named: DEFAULT."""
    if not (shapes or ranks or dtypes):
        return list(DEFAULT)
    named = product(shapes or SHAPES, ranks or RANKS, dtypes or DTYPES)
    return [Case(SHAPES[shape], rank, dtype) for shape, rank, dtype in named]
