"""Loading a base model from a folder of pinned files: safetensors only, no remote code, a rewritten config.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanner.adapter import read_json_object
from scanner.errors import MalformedFileError, UnsupportedError
from scanner.probe.prompt import ChatTemplate, load_template

__all__ = ["BaseModel", "load_base"]

SMALL_MODEL_PARAMETERS = 20_000_000
MAX_CONFIG_DEPTH = 8
ATTENTIONS = ("sdpa", "eager")
"""Tried in this order. The config has no say: a name like `owner/repo` there means code from the Hub."""
_NEVER_WITH = ("implementation", "auto_map", "custom", "trust", "quantization", "kernel")
"""Parts of keys that choose code. An architecture whose sizes hide behind one (`conv_kernel`) keeps its defaults."""
_NEVER = {
    "attribute_map", "sub_configs", "sub_configs_defaults", "extra_files", "extra_config_files", "transformers_weights",
    "fusion_config", "distributed_config",
}  # fmt: skip
"""Keys that rename other keys, name files to load, or patch classes."""


@dataclass(frozen=True)
class BaseModel:
    """A resident base model with its tokenizer and template."""

    model: Any
    """transformers.PreTrainedModel in eval mode."""
    tokenizer: Any
    """tokenizers.Tokenizer."""
    template: ChatTemplate
    device: str
    dtype: str
    end_tokens: frozenset[int]
    """Token ids after which an answer is over."""


def load_base(folder: Path, device: str) -> BaseModel:
    """Load a causal language model.

    Args:
        folder: config.json, safetensors weights, tokenizer.json, tokenizer_config.json.
        device: `auto` (CUDA when there is one), `cpu`, `cuda` or `cuda:N`.

    Returns:
        float32 on the CPU, bfloat16 (float16 on cards without it) on CUDA.

    Raises:
        UnsupportedError: an architecture that transformers does not ship, quantised weights, no tokenizer.json.
        MalformedFileError: config.json is not a JSON object, or the weights do not fit it.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    raw = _rewritten(read_json_object(folder / "config.json", 4 * 1024**2))
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UnsupportedError(f"base architecture {str(model_type)[:60]!r} is unknown", "base_architecture")
    config = CONFIG_MAPPING[model_type].from_dict(raw)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedError(f"base architecture {model_type!r} is no causal language model", "base_architecture")
    tokenizer_path = folder / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise UnsupportedError("the base has no tokenizer.json", "base_tokenizer")
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if where == "cpu":
        dtype = torch.float32
    else:
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = _loaded(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], folder, config, dtype)
    model.to(where).eval().requires_grad_(False)
    if where == "cpu" and sum(p.numel() for p in model.parameters()) < SMALL_MODEL_PARAMETERS:
        # Its matrices are too small to share out: on two busy cores a second thread made a battery nine times slower.
        torch.set_num_threads(1)
    return BaseModel(
        model=model,
        tokenizer=Tokenizer.from_file(str(tokenizer_path)),
        template=load_template(folder),
        device=str(next(model.parameters()).device),
        dtype=str(dtype).removeprefix("torch."),
        end_tokens=_end_tokens(model),
    )


def _rewritten(value: Any, depth: int = 1) -> Any:
    """A config without the keys that choose code, at every level.

    Raises:
        UnsupportedError: there is a quantization_config.
        MalformedFileError: nested deeper than `MAX_CONFIG_DEPTH`.
    """
    if not isinstance(value, dict | list):
        return value
    if depth > MAX_CONFIG_DEPTH:
        raise MalformedFileError(f"config.json is nested deeper than {MAX_CONFIG_DEPTH} levels")
    if isinstance(value, list):
        return [_rewritten(item, depth + 1) for item in value]
    if "quantization_config" in value:
        raise UnsupportedError("the base's weights are quantised", "base_quantised")
    return {name: _rewritten(item, depth + 1) for name, item in value.items() if not _chooses_code(name)}


def _chooses_code(name: str) -> bool:
    return name.startswith("_") or name in _NEVER or any(part in name.lower() for part in _NEVER_WITH)


def _loaded(model_class: Any, folder: Path, config: Any, dtype: Any) -> Any:
    """The model with the first of `ATTENTIONS` that its architecture accepts."""
    for attention in ATTENTIONS:
        try:
            model, info = model_class.from_pretrained(
                folder,
                output_loading_info=True,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
            missing = sorted(info["missing_keys"])
            if missing:
                # transformers fills them with random numbers and only warns: that would be another model.
                raise MalformedFileError(f"the base's weights lack {len(missing)} tensors: {missing[0][:120]}")
            return model
        except ImportError as error:
            message = f"the base's architecture needs a package that is not here: {_first_line(error)}"
            raise UnsupportedError(message, "base_architecture") from error
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            # An architecture refuses an attention when it is built, before a weight is read.
            if isinstance(error, ValueError) and attention != ATTENTIONS[-1]:
                continue
            raise MalformedFileError(f"the base's weights cannot be loaded: {_first_line(error)}") from error
    raise AssertionError("ATTENTIONS is empty")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _end_tokens(model: Any) -> frozenset[int]:
    found: set[int] = set()
    for config in (model.config, getattr(model, "generation_config", None)):
        value = getattr(config, "eos_token_id", None)
        found.update(value if isinstance(value, list) else [value] if value is not None else [])
    return frozenset(token for token in found if isinstance(token, int))
