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
_NEVER = ("auto_map", "custom_pipelines", "trust_remote_code", "_name_or_path", "quantization_config")


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

    raw = read_json_object(folder / "config.json", 4 * 1024**2)
    if "quantization_config" in raw:
        raise UnsupportedError("the base's weights are quantised", "base_quantised")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UnsupportedError(f"base architecture {str(model_type)[:60]!r} is unknown", "base_architecture")
    config = CONFIG_MAPPING[model_type].from_dict({k: v for k, v in raw.items() if k not in _NEVER})
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
    try:
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise MalformedFileError(f"the base's weights cannot be loaded: {str(error).splitlines()[0][:200]}") from error
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


def _end_tokens(model: Any) -> frozenset[int]:
    found: set[int] = set()
    for config in (model.config, getattr(model, "generation_config", None)):
        value = getattr(config, "eos_token_id", None)
        found.update(value if isinstance(value, list) else [value] if value is not None else [])
    return frozenset(token for token in found if isinstance(token, int))
