"""From tensor names to the one view: PEFT's methods, diffusers (old and new), kohya and LyCORIS, MLX, and plugins.

Every tensor is explained by one place, or named as unexplained; nothing is dropped silently.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from scanner.adapter.config import AdapterConfig, parse_config
from scanner.adapter.jsonfile import parse_json_object
from scanner.adapter.layouts import limits
from scanner.adapter.layouts.build import Built, Source, full_tensor
from scanner.adapter.layouts.declared import Declared
from scanner.adapter.layouts.lora import build_lora
from scanner.adapter.layouts.products import build_adalora, build_loha, build_lokr
from scanner.adapter.layouts.slots import PEFT_PREFIX, Group, find_slot
from scanner.adapter.layouts.types import SUPPORTED_TYPES
from scanner.adapter.layouts.vera import build_vera
from scanner.adapter.lowrank import AdapterView, Companion, LowRankUpdate, Role
from scanner.adapter.names import LITERAL
from scanner.adapter.plugins import Layout
from scanner.adapter.safetensors import TensorEntry
from scanner.adapter.tensors import TensorFile
from scanner.errors import MalformedFileError

__all__ = ["view_adapter"]

_BUILDERS: dict[str, Callable[[Group, Source], Built | None]] = {
    "lora": build_lora,
    "embedding": build_lora,
    "adalora": build_adalora,
    "loha": build_loha,
    "lokr": build_lokr,
    "vera": build_vera,
}
_OTHER_FORWARDS = ("alora_invocation_tokens", "layer_replication", "use_qalora", "arrow_config", "use_bdlora")
"""LoRA options that make the adapted layer compute something else than W·x + s·B·A·x, or change the base's layers."""
MAX_PARTS = 16
"""Models of one pipeline that the file's own metadata may describe."""
_BY_ALPHA = re.compile(r"(?P<module>.+)\.(?P<part>alpha|dora_scale|m)")
"""Parts whose names are common words: they count only beside a group's factors."""


def view_adapter(
    file: TensorFile, config: AdapterConfig | None, max_rank: int, plugins: Sequence[Layout] = ()
) -> AdapterView:
    """Explain every tensor of a weight file.

    Args:
        file: the opened weights.
        config: the adapter's config, None for layouts that have none.
        max_rank: ranks above it are refused.
        plugins: layouts of other packages, asked for what no built-in one explains.

    Returns:
        The view; `unsupported_reason` is set when nothing can be read or the PEFT type is none of `SUPPORTED_TYPES`.

    Raises:
        LimitExceededError: a rank above `max_rank`, a factor that is too wide or too large, more operations than a
            scan may take, or a config with too many names.
    """
    declared = Declared.of(config)
    groups, others = _grouped(file, declared)
    by_module: dict[str, list[Group]] = {}
    for group in groups:
        by_module.setdefault(group.module, []).append(group)
    others = list(_with_scales(others, by_module))
    inside = _declared_inside(file) if config is None else {}
    outputs = {g.module: g.parts["b"].shape[0] for g in groups if g.family == "vera" and _is_vector(g.parts.get("b"))}
    source = Source(file, declared, max_rank, outputs)

    updates: list[LowRankUpdate] = []
    companions: list[tuple[Role, str, TensorEntry]] = []
    mismatches: list[tuple[float, int]] = []
    explained: dict[str, TensorEntry] = {}
    layout = "unknown"
    for group in groups:
        own = inside.get(group.module.split(".", 1)[0])
        built = _BUILDERS[group.family](group, replace(source, declared=own) if own else source)
        if built is None:
            others.extend(group.parts.values())
            continue
        if not updates:
            layout = _layout_name(group, config)
        updates.extend(built.updates)
        used = {entry.name: entry for entry in (*built.used, *(entry for _, entry in built.companions))}
        explained.update(used)
        companions.extend((role, group.module, entry) for role, entry in built.companions)
        mismatches.extend([built.mismatch] if built.mismatch else [])
        others.extend(entry for entry in group.parts.values() if entry.name not in used)
    limits.check_operations(sum(update.operations for update in updates))
    remaining = [entry for entry in others if entry.name not in explained]
    for layout_plugin in plugins if remaining else ():
        reading = layout_plugin.read(file, tuple(entry.name for entry in remaining), config)
        if reading is None:
            continue
        for update in reading.updates:
            limits.check_factors(update.module, update.rank, update.in_features, update.out_features, max_rank)
        layout = layout_plugin.name if not updates else layout
        updates.extend(reading.updates)
        explained.update({name: file.entries[name] for name in reading.explained if name in file.entries})
        remaining = [entry for entry in remaining if entry.name not in explained]
    adapted = set(by_module)
    heads: list[TensorEntry] = []
    unexplained: list[TensorEntry] = []
    for entry in remaining:
        role, module = _role(entry.name, adapted, declared)
        if declared.is_head(entry.name):
            heads.append(entry)
        elif role is not None:
            companions.append((role, module, entry))
        else:
            unexplained.append(entry)
    total = sum(entry.size_bytes for entry in file)
    lost = sum(entry.size_bytes for entry in unexplained)
    heads.sort(key=lambda entry: entry.name)
    unexplained.sort(key=lambda entry: entry.name)
    view = AdapterView(
        layout=layout,
        updates=tuple(updates),
        heads=tuple(entry.name for entry in heads),
        head_tensors=tuple(full_tensor(file, entry) for entry in heads),
        companions=tuple(Companion(role, module, full_tensor(file, entry)) for role, module, entry in companions),
        unexplained=tuple(entry.name for entry in unexplained),
        unexplained_tensors=tuple(full_tensor(file, entry) for entry in unexplained),
        coverage=(total - lost) / total if total else 0.0,
        total_bytes=total,
        notes=_rank_notes(mismatches),
    )
    return replace(view, unsupported_reason=_unsupported(view, config, declared))


def _grouped(file: TensorFile, declared: Declared) -> tuple[list[Group], list[TensorEntry]]:
    """(the factors by module and method, all other tensors)."""
    groups: dict[tuple[str, str], Group] = {}
    others: list[TensorEntry] = []
    for entry in file:
        slot = find_slot(entry.name)
        if slot is None or not declared.reads(slot.family):
            others.append(entry)
            continue
        if slot.layout == "peft" and not declared.peft_loads(slot.module):
            others.append(entry)  # a decoy: probing with it would be probing another adapter
            continue
        module = slot.module.removeprefix(PEFT_PREFIX)
        group = groups.setdefault((module, slot.family), Group(slot.layout, slot.family, module))
        # A second tensor for the same part would be a decoy: the first stays, the second is unexplained.
        if slot.part in group.parts or group.layout != slot.layout:
            others.append(entry)
        else:
            group.parts[slot.part] = entry
    for group in [g for g in groups.values() if g.family == "lora" and set(g.parts) == {"magnitude"}]:
        # DoRA spells the magnitude of an embedding like that of a linear layer.
        if embedding := groups.get((group.module, "embedding")):
            embedding.parts |= group.parts
            del groups[group.module, "lora"]
    return list(groups.values()), others


def _with_scales(others: Iterable[TensorEntry], by_module: dict[str, list[Group]]) -> Iterable[TensorEntry]:
    """Hand alphas and magnitudes to the groups that they stand beside; what is left over."""
    for entry in others:
        match = _BY_ALPHA.fullmatch(entry.name)
        groups = by_module.get(match["module"].removeprefix(PEFT_PREFIX), []) if match else []
        part = match["part"] if match else ""
        wanted = [g for g in groups if part not in g.parts and _takes(g, part, entry)]
        if wanted:
            wanted[0].parts[part] = entry
        else:
            yield entry


def _takes(group: Group, part: str, entry: TensorEntry) -> bool:
    if part == "alpha":
        return math.prod(entry.shape) == 1
    if part == "m":
        return group.layout == "mlx"
    return group.layout == "kohya"


def _is_vector(entry: TensorEntry | None) -> bool:
    return entry is not None and len(entry.shape) == 1


def _layout_name(group: Group, config: AdapterConfig | None) -> str:
    if group.layout != "peft" or (config and config.peft_type):
        return group.layout
    if group.family in ("loha", "lokr"):
        return "kohya"  # LyCORIS, the library behind kohya's other methods
    # lora_A / lora_B names without an adapter_config.json.
    return "diffusers" if config is None else "peft"


def _role(name: str, adapted: set[str], declared: Declared) -> tuple[Role | None, str]:
    """What a tensor that is no factor is for, and whose it is."""
    module, _, last = name.removeprefix(PEFT_PREFIX).rpartition(".")
    if last == "trainable_tokens_delta" and declared.token_rows:
        return Role.TOKEN_ROWS, module.removesuffix(".token_adapter")
    owner = module.removesuffix(".base_layer")
    if owner != module and owner in adapted and last in ("weight", "bias"):
        return Role.BASE_COPY, owner
    if last == "bias" and declared.biases:
        return Role.BIAS, module.removesuffix(".base_layer")
    return None, ""


def _rank_notes(mismatches: list[tuple[float, int]]) -> tuple[str, ...]:
    if not mismatches:
        return ()
    declared, found = mismatches[0]
    return (f"{len(mismatches)} modules have another rank than declared, the first {found} instead of {declared:g}",)


def _unsupported(view: AdapterView, config: AdapterConfig | None, declared: Declared) -> str:
    family = config.family if config else None
    if family not in (None, *SUPPORTED_TYPES) and not view.updates:
        return f"peft_type_{re.sub(r'[^a-z0-9]+', '_', str(family).lower())[:40]}"
    patterns = (*config.rank_pattern, *config.alpha_pattern) if config and family != "ADALORA" else ()
    if not all(LITERAL.fullmatch(key) for key in patterns):
        return "pattern_regex"  # the scales, and with them ΔW, would be a guess
    for option in _OTHER_FORWARDS if config else ():
        if config and config.raw.get(option):
            return f"config_{option}"
    if not all(math.isfinite(update.scale) for update in view.updates):
        return "bad_scale"
    if not view.updates and family == "VERA" and any(".vera_lambda_" in name for name in view.unexplained):
        return "vera_projection_not_saved"
    return "" if view.updates else "unknown_layout"


def _declared_inside(file: TensorFile) -> dict[str, Declared]:
    """Ranks and alphas that diffusers (0.34 and later) writes into the file itself, for each part of the pipeline:
    `unet.r`, `transformer.lora_alpha`. Files without them scale by 1."""
    text = file.metadata.get("lora_adapter_metadata")
    if not text:
        return {}
    try:
        raw = parse_json_object(text.encode(), "lora_adapter_metadata")
    except MalformedFileError:
        return {}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in raw.items():
        part, dot, field = key.partition(".")
        if dot and len(parts) <= MAX_PARTS:
            parts.setdefault(part, {})[field] = value
    return {part: Declared.of(parse_config(fields)) for part, fields in parts.items()}
