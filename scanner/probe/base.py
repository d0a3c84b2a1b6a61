"""Loading a base model from a folder of pinned files: safetensors only, no remote code, a rewritten config.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanner.adapter import read_json_object
from scanner.errors import MalformedFileError, UnsupportedError, UsageError
from scanner.model import MAX_CLASSES
from scanner.probe.footprint import WEIGHT_BYTES, measure_base, refuse_too_large
from scanner.probe.prompt import ChatTemplate, load_template

__all__ = [
    "CONFIG_FAULTS",
    "BaseModel",
    "ClassifierBase",
    "first_line",
    "is_head",
    "load_base",
    "load_classifier",
    "refuse_foreign_tokens",
]

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
NF4_BLOCK = 64
"""Weights that share a scale."""
NF4_ROWS = 32
"""Rows that are packed together on some processors."""
CONFIG_FAULTS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""What numbers and names that do not fit together make a framework raise."""


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
    """`float32`, `bfloat16`, `float16` or `nf4`."""
    end_tokens: frozenset[int]
    """Token ids after which an answer is over."""


@dataclass(frozen=True)
class ClassifierBase:
    """A resident sequence classifier. Its head is the adapters' business: most bases have none."""

    model: Any
    """transformers.PreTrainedModel in eval mode."""
    tokenizer: Any
    """tokenizers.Tokenizer that cuts a text to `context`."""
    device: str
    dtype: str
    """As of `BaseModel`. The head is never quantised: in `nf4` it is bfloat16."""
    missing: frozenset[str]
    """Head parameters that the base's file lacks, filled with random numbers: every adapter must bring them."""
    class_layer: str
    """The linear module that gives one number for each class."""
    context: int | None
    """Tokens that the base takes; None where its architecture has no limit."""
    per_token: bool = False
    """Whether every token gets a class, and not the text as a whole."""


@dataclass(frozen=True)
class _Target:
    """Where a model goes; device and dtype are no longer `auto`."""

    device: str
    dtype: str
    memory_bytes: int | None


def load_base(folder: Path, device: str, dtype: str = "auto", memory_bytes: int | None = None) -> BaseModel:
    """Load a causal language model.

    Args:
        folder: config.json, safetensors weights, tokenizer.json, tokenizer_config.json.
        device: `auto` (CUDA when there is one), `cpu`, `cuda` or `cuda:N`.
        dtype: `auto` (float32 on the CPU; on CUDA bfloat16, float16 on cards without it), `float32`, `bfloat16`,
            `float16`, or `nf4`: linear layers but the head in 4 bits (arXiv:2305.14314), the rest in bfloat16.
        memory_bytes: what this process may have resident; None for no limit. It counts on the CPU only.

    Raises:
        BaseTooLargeError: it would not fit the memory that is free. Nothing has been loaded.
        UnsupportedError: an architecture that transformers does not ship, quantised weights, no tokenizer.json, or
            `bitsandbytes_missing` for nf4 without the extra.
        MalformedFileError: config.json is not a JSON object, or the weights break their format or do not fit it.
        UsageError: an unknown dtype.
    """
    raw = _rewritten(read_json_object(folder / "config.json", 4 * 1024**2))
    target = _target(device, dtype, memory_bytes)
    model, missing = _load(folder, raw, target, "CAUSAL_LM")
    _refuse_missing(missing)
    return BaseModel(
        model=model,
        tokenizer=_tokenizer(folder),
        template=load_template(folder),
        device=str(next(model.parameters()).device),
        dtype=target.dtype,
        end_tokens=_end_tokens(model),
    )


def load_classifier(
    folder: Path, device: str, dtype: str = "auto", memory_bytes: int | None = None, *, per_token: bool = False
) -> ClassifierBase:
    """Load a base as its architecture's classifier of whole texts, or of tokens. Else as of `load_base`.

    Raises:
        UnsupportedError: also for a number of classes out of 2 to 1,000, or a head that is not linear.
        MalformedFileError: also for a base that cannot classify a text at all.
    """
    raw = _rewritten(read_json_object(folder / "config.json", 4 * 1024**2))
    raw["num_labels"] = _number_of_labels(raw)
    target = _target(device, dtype, memory_bytes)
    model, missing = _load(folder, raw, target, "TOKEN_CLASSIFICATION" if per_token else "SEQUENCE_CLASSIFICATION")
    _refuse_missing([name for name in missing if not is_head(model, name)])
    tokenizer = _tokenizer(folder)
    context = _context(model)
    if context is not None:
        if context <= tokenizer.num_special_tokens_to_add(is_pair=False):
            raise MalformedFileError(f"the base takes {context} tokens, too few for any text")
        tokenizer.enable_truncation(max_length=context)
    return ClassifierBase(
        model=model,
        tokenizer=tokenizer,
        device=str(next(model.parameters()).device),
        dtype=target.dtype,
        missing=frozenset(missing),
        class_layer=_class_layer(model, tokenizer.encode("a").ids or [0]),
        context=context,
        per_token=per_token,
    )


def is_head(model: Any, parameter: str) -> bool:
    """Whether a parameter lies outside of the base model proper, or is its pooler, which language models lack too."""
    return not parameter.startswith(f"{model.base_model_prefix}.") or "pooler" in parameter.split(".")


def _target(device: str, dtype: str, memory_bytes: int | None) -> _Target:
    import torch

    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if where != "cpu" and not torch.cuda.is_available():
        raise UnsupportedError(f"{where} is asked for, and torch {torch.__version__} finds no CUDA device", "no_cuda")
    if where == "cuda":
        where = f"cuda:{torch.cuda.current_device()}"
    if dtype == "auto":
        dtype = "float32" if where == "cpu" else "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if dtype not in WEIGHT_BYTES:
        raise UsageError(f"a base's dtype is auto, {', '.join(WEIGHT_BYTES)}, not {dtype[:100]!r}")
    if dtype == "nf4":
        _require_bitsandbytes()
    return _Target(where, dtype, memory_bytes)


def _require_bitsandbytes() -> None:
    from transformers.utils import is_accelerate_available, is_bitsandbytes_available

    if not (is_bitsandbytes_available() and is_accelerate_available()):
        message = 'dtype nf4 needs bitsandbytes and accelerate: pip install "lorascope[4bit]"'
        raise UnsupportedError(message, "bitsandbytes_missing")


def _load(folder: Path, raw: dict[str, Any], target: _Target, task: str) -> tuple[Any, list[str]]:
    """(the model in eval mode on its device, names of the parameters that its file lacks)."""
    import torch
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    mapping = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UnsupportedError(f"base architecture {str(model_type)[:60]!r} is unknown", "base_architecture")
    try:
        config = CONFIG_MAPPING[model_type].from_dict(raw)
    except CONFIG_FAULTS as error:
        raise MalformedFileError(f"config.json is no {model_type} config: {first_line(error)}") from error
    if type(config) not in mapping:
        raise UnsupportedError(f"base architecture {model_type!r} is not made for {task}", "base_architecture")
    weight_bytes = measure_base(folder, target.dtype, with_language_head=task == "CAUSAL_LM")
    refuse_too_large(weight_bytes, target.dtype, target.device, target.memory_bytes)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, missing = _loaded(mapping[type(config)], folder, config, target)
    model.to(target.device).eval().requires_grad_(False)
    if target.device == "cpu" and sum(p.numel() for p in model.parameters()) < SMALL_MODEL_PARAMETERS:
        # Its matrices are too small to share out: on two busy cores a second thread made a battery nine times slower.
        torch.set_num_threads(1)
    return model, missing


def _refuse_missing(missing: list[str]) -> None:
    if missing:
        # transformers fills them with random numbers and only warns: that would be another model.
        raise MalformedFileError(f"the base's weights lack {len(missing)} tensors: {missing[0][:120]}")


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedError("the base has no tokenizer.json", "base_tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise MalformedFileError(f"the base's tokenizer.json cannot be read: {first_line(error)}") from error
    # Both may be stored in the file: padding would change answers, a cut would hide the end of a prompt.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _number_of_labels(raw: dict[str, Any]) -> int:
    """Classes of the base's own head: transformers builds as many names as a config asks for."""
    names = raw.get("id2label")
    number = len(names) if isinstance(names, dict) else raw.get("num_labels", 2)
    if type(number) is not int or not 1 <= number <= MAX_CLASSES:
        raise UnsupportedError(f"the base's config has {str(number)[:40]} classes", "base_architecture")
    return number


def _context(model: Any) -> int | None:
    """Tokens that fit: RoBERTa and its kin number positions from behind the padding's own."""
    import torch

    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings) - first
    return context if type(context) is int and context > 0 else None  # XLNet says -1


def _class_layer(model: Any, tokens: list[int]) -> str:
    """The last linear module of the head that runs: names differ by architecture, the order does not."""
    import torch

    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and is_head(model, f"{name}.weight")
    ]
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([tokens], device=next(model.parameters()).device))
    except (RuntimeError, *CONFIG_FAULTS) as error:
        raise MalformedFileError(f"the base cannot classify a text: {first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not ran or model.get_submodule(ran[-1]).out_features != model.config.num_labels:
        raise UnsupportedError("the base's classifier does not end in a linear layer", "base_architecture")
    return ran[-1]


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


def _loaded(model_class: Any, folder: Path, config: Any, target: _Target) -> tuple[Any, list[str]]:
    """The model with the first of `ATTENTIONS` that its architecture accepts, and the parameters that it lacks."""
    import torch

    is_nf4 = target.dtype == "nf4"
    for attention in ATTENTIONS:
        try:
            options: dict[str, Any] = {"dtype": torch.bfloat16 if is_nf4 else getattr(torch, target.dtype)}
            if is_nf4:
                # Quantised where it will stay, tensor by tensor: it need not fit in full precision.
                options["quantization_config"] = _nf4(model_class, config, target.device)
                options["device_map"] = {"": target.device}
            model, info = model_class.from_pretrained(
                folder,
                output_loading_info=True,
                config=config,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                **options,
            )
            return model, sorted(info["missing_keys"])
        except ImportError as error:
            message = f"the base's architecture needs a package that is not here: {first_line(error)}"
            raise UnsupportedError(message, "base_architecture") from error
        except (OSError, RuntimeError, *CONFIG_FAULTS) as error:
            # An architecture refuses an attention when it is built, before a weight is read.
            if isinstance(error, ValueError) and attention != ATTENTIONS[-1]:
                continue
            raise MalformedFileError(f"the base's weights cannot be loaded: {first_line(error)}") from error
    raise AssertionError("ATTENTIONS is empty")


def _nf4(model_class: Any, config: Any, device: str) -> Any:
    """The usual setup of QLoRA (arXiv:2305.14314), without the head: adapters bring its weights in full.

    On the CPU, layers whose rows are not whole blocks stay in bfloat16 too: bitsandbytes 0.50.2 gives such rows the
    scales of other blocks there (relative error 0.2 to 0.4 instead of 0.09), and the base would be another model.
    On processors with AVX512-BF16 it repacks 32 rows at a time, and stops at other numbers of rows.
    """
    import torch
    from transformers import BitsAndBytesConfig
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):  # names and shapes, no memory
        skeleton = model_class(copy.deepcopy(config))
    kept = []
    for name, module in skeleton.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            shape = module.weight.shape
            rows, columns = reversed(shape) if isinstance(module, Conv1D) else shape
            is_odd = columns % NF4_BLOCK or rows % NF4_ROWS
            if is_head(skeleton, f"{name}.weight") or (device == "cpu" and is_odd):
                kept.append(name)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=kept,
    )


def refuse_foreign_tokens(model: Any, ids: Iterable[Iterable[int]]) -> None:
    """Raise UnsupportedError for a token that a model has no row for: looking it up fails."""
    largest, rows = max(map(max, ids)), model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise UnsupportedError(f"the tokenizer gives token {largest}, the base has {rows}", "base_tokenizer")


def first_line(error: Exception) -> str:
    """What a reason has room for of a framework's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _end_tokens(model: Any) -> frozenset[int]:
    found: set[int] = set()
    for config in (model.config, getattr(model, "generation_config", None)):
        value = getattr(config, "eos_token_id", None)
        found.update(value if isinstance(value, list) else [value] if value is not None else [])
    return frozenset(token for token in found if isinstance(token, int))
