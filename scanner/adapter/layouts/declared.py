"""What a config declares of modules, indexed once: a stranger's lists are long, and so are the lists of modules."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scanner.adapter.config import AdapterConfig
from scanner.adapter.layouts.slots import PEFT_PREFIX
from scanner.adapter.names import NameIndex

__all__ = ["DEFAULT_HEADS", "Declared"]

DEFAULT_HEADS = {"SEQ_CLS": ("classifier", "pre_classifier", "score"), "TOKEN_CLS": ("classifier", "score")}
"""What PEFT saves whole without being told. It matches by the end of a name, so `classifier` takes DistilBERT's
`pre_classifier` along."""
PEFT_DEFAULT_ALPHA = 8.0  # of peft.LoraConfig.lora_alpha, and of alpha of LoHaConfig and LoKrConfig
PEFT_DEFAULT_INIT_R = 12  # peft.AdaLoraConfig.init_r
MAX_PARTS = 16
"""Parts of a fused matrix."""
_FAMILIES = {
    "LORA": ("lora", "embedding"),
    "ADALORA": ("adalora",),
    "LOHA": ("loha",),
    "LOKR": ("lokr",),
    "VERA": ("vera",),
}


@dataclass(frozen=True)
class Declared:
    """A config with its names indexed."""

    config: AdapterConfig | None
    ranks: NameIndex[float]
    alphas: NameIndex[float]
    targets: NameIndex[bool] | None
    """None where the targets cannot be checked: a text is a regular expression from a stranger, not run here."""
    parameters: NameIndex[bool]
    """Modules whose parameters (not weights of linear layers) are adapted: experts stacked in one tensor."""
    heads: frozenset[str]
    """Modules that the config saves whole."""
    biases: bool
    """Whether biases are trained and saved."""
    token_rows: bool
    """Whether rows of the embedding are."""

    @classmethod
    def of(cls, config: AdapterConfig | None) -> Declared:
        """Index a config.

        Raises:
            LimitExceededError: more names than `NameIndex` takes.
        """
        raw = config.raw if config else {}
        targets = raw.get("target_modules") if config and config.peft_type else None
        parameters = raw.get("target_parameters")
        parents = [str(name).rpartition(".")[0] for name in parameters] if isinstance(parameters, list) else []
        names: list[str] | None = None
        if isinstance(targets, list) and all(isinstance(target, str) for target in targets):
            names = [*targets, *parents]
        by_rank = config is not None and config.family != "ADALORA"  # its pattern is a mask for each module
        saved = (*config.modules_to_save, *DEFAULT_HEADS.get((config.task_type or "").upper(), ())) if config else ()
        return cls(
            config,
            NameIndex(config.rank_pattern if config and by_rank else {}),
            NameIndex(config.alpha_pattern if config else {}),
            NameIndex(((name, True) for name in names), literal=True) if names is not None else None,
            NameIndex(((name, True) for name in parents), literal=True),
            frozenset(saved),
            raw.get("bias") in ("all", "lora_only"),
            bool(raw.get("trainable_token_indices")),
        )

    def reads(self, family: str) -> bool:
        """Whether the config's PEFT type has tensors of this family; PEFT skips others silently."""
        if self.config is None or self.config.family is None:
            return True
        return family in _FAMILIES.get(self.config.family, ())

    def peft_loads(self, module: str) -> bool:
        """Whether PEFT would load tensors for this module name; it skips others silently."""
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

    def experts(self, module: str, rank: int) -> int:
        """Experts that a stacked parameter's pair of `rank` rows holds: its rank is r·E (peft `ParamWrapper`)."""
        if self.parameters.find(module.replace(".base_layer", "")) is None:
            return 1
        own = self.rank_of(module, rank)
        return int(rank // own) if own > 0 and own.is_integer() and rank % own == 0 else 1

    def fused_parts(self) -> tuple[bool, ...]:
        """Which parts of a fused matrix old PEFT versions adapt; empty where the config does not say so."""
        parts = self.config.raw.get("enable_lora") if self.config else None
        if not isinstance(parts, list) or not 0 < len(parts) <= MAX_PARTS or not any(parts):
            return ()
        return tuple(parts) if all(isinstance(part, bool) for part in parts) else ()

    def rank_of(self, module: str, found: int) -> float:
        """The declared rank of a module; NaN where it is no number, `found` where nothing is declared."""
        assert self.config is not None
        declared = self.ranks.find(module)
        if declared is None:
            declared = float(self.config.rank or found)
            if self.config.rank is None and self.config.raw.get("r") is not None:
                return math.nan
        return declared if declared > 0 and declared.is_integer() else math.nan

    def scale_of(self, module: str, rank: float) -> float:
        """s of ΔW = s·B·A: α/r, or α/√r for rsLoRA (arXiv:2312.03732); NaN where a number is none."""
        assert self.config is not None
        alpha = self.alphas.find(module)
        if alpha is None:
            alpha = self.config.alpha
        if alpha is None:
            alpha = PEFT_DEFAULT_ALPHA if self.config.raw.get(self.config.alpha_field) is None else math.nan
        if not (math.isfinite(rank) and math.isfinite(alpha)):
            return math.nan
        return alpha / math.sqrt(rank) if self.config.use_rslora else alpha / rank

    def adalora_scale(self, rank: int) -> float:
        """AdaLoRA's factor: α (the rank where α is not positive) over the rank before pruning (peft `SVDLinear`)."""
        assert self.config is not None
        init_r = self.config.raw.get("init_r", PEFT_DEFAULT_INIT_R)
        alpha = self.config.alpha if self.config.raw.get("lora_alpha") is not None else PEFT_DEFAULT_ALPHA
        if alpha is None or not isinstance(init_r, int) or not 0 < init_r < 2**31 or not math.isfinite(alpha):
            return math.nan
        return (alpha if alpha > 0 else float(rank)) / (init_r + 1e-5)
