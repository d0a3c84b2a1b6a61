"""adapter_config.json, read defensively: unknown fields are tolerated, wrong types are not guessed at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["AdapterConfig", "parse_config"]


@dataclass(frozen=True)
class AdapterConfig:
    """The fields that lorascope uses, typed; `raw` has all of them for the static rules."""

    raw: dict[str, Any]
    peft_type: str | None
    base_model: str | None
    task_type: str | None
    rank: int | None
    alpha: float | None
    use_rslora: bool
    use_dora: bool
    fan_in_fan_out: bool
    rank_pattern: dict[str, float]
    alpha_pattern: dict[str, float]
    modules_to_save: tuple[str, ...]
    mlx_scale: float | None
    """MLX writes the scale itself, under lora_parameters."""
    alpha_field: str = "lora_alpha"
    """LoHa and LoKr call it `alpha`."""

    @property
    def family(self) -> str | None:
        """The PEFT type in capitals."""
        return self.peft_type.upper() if self.peft_type else None


def parse_config(raw: dict[str, Any]) -> AdapterConfig:
    """Pick the known fields; a field of the wrong type counts as absent (the static rules report it)."""
    mlx = raw.get("lora_parameters")
    mlx = mlx if isinstance(mlx, dict) else {}
    saved = raw.get("modules_to_save")
    peft_type = _text(raw.get("peft_type"))
    alpha_field = "alpha" if (peft_type or "").upper() in ("LOHA", "LOKR") else "lora_alpha"
    return AdapterConfig(
        raw=raw,
        peft_type=peft_type,
        base_model=_text(raw.get("base_model_name_or_path")) or _text(raw.get("model")),
        task_type=_text(raw.get("task_type")),
        rank=_natural(raw.get("r")) or _natural(mlx.get("rank")),
        alpha=_number(raw.get(alpha_field)),
        # PEFT asks for truth, not for a boolean: 1 switches these on as well.
        use_rslora=bool(raw.get("use_rslora")),
        use_dora=bool(raw.get("use_dora")),
        fan_in_fan_out=raw.get("fan_in_fan_out") is True,
        rank_pattern=_numbers(raw.get("rank_pattern")),
        alpha_pattern=_numbers(raw.get("alpha_pattern")),
        modules_to_save=tuple(item for item in saved if isinstance(item, str)) if isinstance(saved, list) else (),
        mlx_scale=_number(mlx.get("scale")),
        alpha_field=alpha_field,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float):  # true is 1 to PEFT's arithmetic, and so it is here
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _natural(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 2**31 else None


def _numbers(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        return {}
    # NaN where there is no number: an entry that is left out would hand its module to the config's general value.
    pairs = ((key, _number(item)) for key, item in value.items())
    return {key: math.nan if number is None else number for key, number in pairs}
