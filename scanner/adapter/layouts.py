"""From tensor names to low-rank updates: PEFT, diffusers (old and new), kohya and MLX spellings.

Each layout is one regular expression over tensor names with a group for the module and one for the side. Names that
no expression explains stay unexplained; nothing is dropped silently.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scanner.adapter.config import AdapterConfig
from scanner.adapter.lowrank import AdapterView, FloatArray, FullTensor, LowRankUpdate
from scanner.adapter.names import LITERAL, NameIndex
from scanner.adapter.safetensors import SafetensorsFile, TensorEntry
from scanner.errors import LimitExceededError

__all__ = ["PEFT_PREFIX", "view_adapter"]

PEFT_PREFIX = "base_model.model."
DEFAULT_HEADS = {"SEQ_CLS": ("classifier", "pre_classifier", "score"), "TOKEN_CLS": ("classifier", "score")}
"""What PEFT saves whole without being told. It matches by the end of a name, so `classifier` takes DistilBERT's
`pre_classifier` along."""
_OTHER_FORWARDS = ("alora_invocation_tokens", "layer_replication", "use_qalora", "arrow_config", "use_bdlora")
"""LoRA options that make the adapted layer compute something else than W·x + s·B·A·x, or change the base's layers."""
MAX_FEATURES = 2_000_000
"""Inputs or outputs of one module. The widest real ones are vocabularies, of about 256,000 words."""
MAX_FACTOR_ELEMENTS = 2**26
"""One factor as float64 is half a gigabyte then: rank 512 over a vocabulary of 128,000 still fits."""
MAX_HEAD_ELEMENTS = 2**26
"""One full tensor of a head, as it is read for a probe: 1,000 classes over a width of 65,536."""
MAX_SCAN_OPERATIONS = 5 * 10**12
"""Allows rank 256 on every linear layer of a 70B model, which needs a fifth of it, and rank 1,024 on a 7B one. Two
cores do 1 to 4 billion a second, the more the higher the rank: half an hour at the limit."""
PEFT_DEFAULT_ALPHA = 8.0  # peft.LoraConfig.lora_alpha


@dataclass(frozen=True)
class _Spelling:
    layout: str
    pattern: re.Pattern[str]
    down: str
    """Value of the `side` group that names A."""
    transposed: bool = False
    kind: str = "linear"


_SPELLINGS = (
    _Spelling("peft", re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[\w-]+)?\.weight"), "A"),
    _Spelling("peft", re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(?:\.[\w-]+)?"), "A", kind="embedding"),
    _Spelling("diffusers", re.compile(r"(?P<module>.+)[._]lora\.(?P<side>down|up)\.weight"), "down"),
    _Spelling("kohya", re.compile(r"(?P<module>.+)[._]lora_(?P<side>down|up)\.weight"), "down"),
    _Spelling("mlx", re.compile(r"(?P<module>.+)\.lora_(?P<side>[ab])"), "a", transposed=True),
)


def view_adapter(file: SafetensorsFile, config: AdapterConfig | None, max_rank: int) -> AdapterView:
    """Explain every tensor of a weight file.

    Args:
        file: the opened weights.
        config: the adapter's config, None for layouts that have none.
        max_rank: ranks above it are refused.

    Returns:
        The view; `unsupported_reason` is set when nothing can be read or the PEFT type is not plain LoRA.

    Raises:
        LimitExceededError: a rank above `max_rank`, a factor that is too wide or too large, more operations than a
            scan may take, or a config with too many names.
    """
    known = _Config.of(config)
    pairs: dict[tuple[str, str], dict[str, TensorEntry]] = {}
    spellings: dict[tuple[str, str], _Spelling] = {}
    others: list[TensorEntry] = []
    for entry in file:
        for spelling in _SPELLINGS:
            match = spelling.pattern.fullmatch(entry.name)
            if match:
                if spelling.layout == "peft" and not known.peft_loads(match["module"]):
                    others.append(entry)  # a decoy: probing with it would be probing another adapter
                    break
                module = match["module"].removeprefix(PEFT_PREFIX)
                key = (module, spelling.kind)
                side = "A" if match["side"] == spelling.down else "B"
                # A second tensor for the same side would be a decoy: the first stays, the second is unexplained.
                if side in pairs.get(key, {}) or spellings.get(key, spelling) is not spelling:
                    others.append(entry)
                else:
                    spellings[key] = spelling
                    pairs.setdefault(key, {})[side] = entry
                break
        else:
            others.append(entry)
    alphas = {e.name.removesuffix(".alpha"): e for e in others if e.name.endswith(".alpha") and math.prod(e.shape) == 1}
    updates: list[LowRankUpdate] = []
    mismatches: list[tuple[float, int]] = []
    explained = 0
    used_alphas: set[str] = set()
    for key, sides in pairs.items():
        alpha_entry = alphas.get(key[0])
        alpha = file.scalar(alpha_entry.name) if alpha_entry else None
        update = _update(file, key[0], sides, spellings[key], known, alpha, max_rank, mismatches)
        if update is None:
            others.extend(sides.values())
            continue
        updates.append(update)
        explained += sum(entry.size_bytes for entry in sides.values())
        if alpha_entry:
            used_alphas.add(alpha_entry.name)
            explained += alpha_entry.size_bytes
    cost = sum((u.in_features + u.out_features) * u.rank**2 + u.rank**3 for u in updates)
    if cost > MAX_SCAN_OPERATIONS:
        raise LimitExceededError("operations that the weight scan needs", MAX_SCAN_OPERATIONS, cost)
    heads = [e for e in others if known.is_head(e.name)]
    head_names = {e.name for e in heads}
    explained += sum(e.size_bytes for e in heads)
    unexplained = [e for e in others if e.name not in head_names and e.name not in used_alphas]
    total = sum(entry.size_bytes for entry in file)
    layout = spellings[next(iter(pairs))].layout if updates else "unknown"
    if layout == "peft" and config is None:
        layout = "diffusers"  # lora_A / lora_B names without an adapter_config.json
    return AdapterView(
        layout=layout,
        updates=tuple(updates),
        heads=tuple(sorted(head_names)),
        head_tensors=tuple(_full_tensor(file, entry) for entry in sorted(heads, key=lambda e: e.name)),
        unexplained=tuple(sorted(e.name for e in unexplained)),
        coverage=explained / total if total else 0.0,
        unsupported_reason=_unsupported(updates, config),
        notes=_rank_notes(mismatches),
    )


def _full_tensor(file: SafetensorsFile, entry: TensorEntry) -> FullTensor:
    def read() -> npt.NDArray[np.float32]:
        if (elements := math.prod(entry.shape)) > MAX_HEAD_ELEMENTS:
            raise LimitExceededError(f"numbers in {entry.name[:120]}", MAX_HEAD_ELEMENTS, elements)
        return file.floats(entry.name).astype(np.float32)

    return FullTensor(entry.name, entry.shape, read)


def _rank_notes(mismatches: list[tuple[float, int]]) -> tuple[str, ...]:
    if not mismatches:
        return ()
    declared, found = mismatches[0]
    return (f"{len(mismatches)} modules have another rank than declared, the first {found} instead of {declared:g}",)


def _unsupported(updates: list[LowRankUpdate], config: AdapterConfig | None) -> str:
    peft_type = config.peft_type.upper() if config and config.peft_type else None
    if peft_type not in (None, "LORA"):
        return f"peft_type_{re.sub(r'[^a-z0-9]+', '_', str(peft_type).lower())[:40]}"
    if config and not all(LITERAL.fullmatch(key) for key in (*config.rank_pattern, *config.alpha_pattern)):
        return "pattern_regex"  # the scales, and with them ΔW, would be a guess
    for option in _OTHER_FORWARDS if config else ():
        if config and config.raw.get(option):
            return f"config_{option}"
    if not all(math.isfinite(update.scale) for update in updates):
        return "bad_scale"
    return "" if updates else "unknown_layout"


@dataclass(frozen=True)
class _Config:
    """A config with its names indexed once: a stranger's lists are long, and so are the lists of modules."""

    config: AdapterConfig | None
    ranks: NameIndex[float]
    alphas: NameIndex[float]
    targets: NameIndex[bool] | None
    """None where the targets cannot be checked: a text is a regular expression from a stranger, not run here."""
    heads: frozenset[str]
    """Modules that the config saves whole."""

    @classmethod
    def of(cls, config: AdapterConfig | None) -> _Config:
        targets = config.raw.get("target_modules") if config and config.peft_type else None
        names: list[str] | None = None
        if config and isinstance(targets, list) and all(isinstance(target, str) for target in targets):
            parameters = config.raw.get("target_parameters")
            inner = parameters if isinstance(parameters, list) else []
            names = [*targets, *(str(name).rpartition(".")[0] for name in inner)]
        return cls(
            config,
            NameIndex(config.rank_pattern if config else {}),
            NameIndex(config.alpha_pattern if config else {}),
            NameIndex(((name, True) for name in names), literal=True) if names is not None else None,
            frozenset((*config.modules_to_save, *DEFAULT_HEADS.get((config.task_type or "").upper(), ())))
            if config
            else frozenset(),
        )

    def peft_loads(self, module: str) -> bool:
        """Whether PEFT would load a pair for this module name; it skips others silently."""
        if self.config is None or self.config.peft_type is None:
            return True
        if not module.startswith(PEFT_PREFIX):
            return False
        # A second parameter of one module nests as `module.base_layer`.
        name = module.removeprefix(PEFT_PREFIX).replace(".base_layer", "")
        return self.targets is None or self.targets.find(name) is not None

    def is_head(self, tensor: str) -> bool:
        """Whether a full tensor belongs to a declared head."""
        return bool(self.heads) and not self.heads.isdisjoint(tensor.removeprefix(PEFT_PREFIX).split(".")[:-1])


def _update(
    file: SafetensorsFile,
    module: str,
    sides: dict[str, TensorEntry],
    spelling: _Spelling,
    known: _Config,
    alpha_tensor: float | None,
    max_rank: int,
    mismatches: list[tuple[float, int]],
) -> LowRankUpdate | None:
    """One pair, or None when its halves do not fit together."""
    a, b = sides.get("A"), sides.get("B")
    if a is None or b is None or len(a.shape) < 2 or len(b.shape) < 2:
        return None
    if spelling.transposed:
        (in_features, rank), (rank_b, out_features) = a.shape[:2], b.shape[:2]
        if len(a.shape) != 2 or len(b.shape) != 2:
            return None
    else:
        rank, in_features = a.shape[0], math.prod(a.shape[1:])
        out_features, rank_b = b.shape[0], math.prod(b.shape[1:])
    if rank != rank_b or 0 in (rank, in_features, out_features):
        return None
    if rank > max_rank:
        raise LimitExceededError(f"rank of {module[:120]}", max_rank, rank)
    if (widest := max(in_features, out_features)) > MAX_FEATURES:
        raise LimitExceededError(f"features of {module[:120]}", MAX_FEATURES, widest)
    if (elements := rank * widest) > MAX_FACTOR_ELEMENTS:
        raise LimitExceededError(f"numbers in a factor of {module[:120]}", MAX_FACTOR_ELEMENTS, elements)
    if {a.dtype, b.dtype} - {"F64", "F32", "F16", "BF16"}:
        return None

    def read(a: TensorEntry = a, b: TensorEntry = b) -> tuple[FloatArray, FloatArray]:
        first, second = file.floats(a.name), file.floats(b.name)
        if spelling.transposed:
            return first.T, second.T
        return first.reshape(rank, in_features), second.reshape(out_features, rank)

    kind = "conv" if len(a.shape) > 2 or len(b.shape) > 2 else spelling.kind
    scale = _scale(module, rank, spelling, known, alpha_tensor, mismatches)
    return LowRankUpdate(module, rank, out_features, in_features, scale, read, kind)


def _scale(
    module: str,
    rank: int,
    spelling: _Spelling,
    known: _Config,
    alpha_tensor: float | None,
    mismatches: list[tuple[float, int]],
) -> float:
    """s of ΔW = s·B·A: MLX's own scale, or α/r, or α/√r for rsLoRA; 1 where the file says nothing."""
    config = known.config
    if config is None:
        return 1.0 if alpha_tensor is None else alpha_tensor / rank
    if spelling.layout == "mlx" and config.mlx_scale is not None:  # PEFT does not know the field
        return config.mlx_scale
    declared = known.ranks.find(module)
    if declared is None:
        declared = float(config.rank or rank)
        if config.rank is None and config.raw.get("r") is not None:
            return math.nan  # no rank at all: refused as a whole by `_unsupported`, as are the others below
    alpha = known.alphas.find(module)
    if alpha is None:
        alpha = config.alpha
    if alpha is None:
        alpha = PEFT_DEFAULT_ALPHA if config.raw.get("lora_alpha") is None else math.nan
    if not (declared > 0 and declared.is_integer() and math.isfinite(alpha)):
        return math.nan
    if declared != rank:
        mismatches.append((declared, rank))
    return alpha / math.sqrt(declared) if config.use_rslora else alpha / declared
