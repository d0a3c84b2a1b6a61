"""Fuzz targets of all other parsers: `python tests/fuzz/fuzz_parsers.py --seconds 600 --seed 1`."""

from __future__ import annotations

import json
import struct
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import numpy as np  # noqa: E402
from harness import Target, main  # noqa: E402

from scanner.adapter import (  # noqa: E402
    TensorFile,
    count_nonfinite,
    open_safetensors,
    parse_config,
    parse_json_object,
    view_adapter,
)
from scanner.adapter.fingerprint import base_fingerprint  # noqa: E402
from scanner.rules import StaticFacts, check_static  # noqa: E402
from scanner.rules.template import compare_templates, keyword_branches, object_walks  # noqa: E402
from scanner.weights import features_of, find_split, measure_adapter  # noqa: E402

for lazy in ("scanner.rules.tokenizers", "scanner.rules.unicode"):
    # Loaded where a repo needs them; here before anything is watched, because making a dataclass compiles and executes.
    import_module(lazy)

CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {}, "modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM", "use_rslora": False,
    "auto_mapping": {"parent_library": "transformers.models.bert", "base_model_class": "BertModel"},
    "base_model_name_or_path": "acme/base", "revision": None, "enable_lora": [True, False],
    "target_parameters": ["x.w"],
}  # fmt: skip
TEMPLATE = (
    "{%- for m in messages -%}{%- if m['role'] == 'system' and 'x' in m['content']|lower -%}<|{{ m.role }}|>"
    "{%- elif loop.first -%}{% set ns = namespace(a=0) %}{% set ns.a = ns.a + 1 %}{%- endif -%}{{ m.content | trim }}"
    "{%- endfor -%}{% if add_generation_prompt %}{{ '<|assistant|>' + \"\\n\" }}{% endif %}"
)


def encode(tensors: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """A safetensors file."""
    kinds = {"float32": "F32", "float16": "F16", "int64": "I64"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, values in tensors.items():
        begin = len(body)
        body += values.tobytes()
        header[name] = {
            "dtype": kinds[str(values.dtype)],
            "shape": list(values.shape),
            "data_offsets": [begin, len(body)],
        }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def factors(kind: str) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of one layout."""
    rng = np.random.default_rng(0)

    def f(*shape: int) -> np.ndarray[Any, Any]:
        return rng.normal(size=shape).astype("f4")

    key = "base_model.model.layers.0.q_proj"
    return {
        "peft": {f"{key}.lora_A.weight": f(2, 6), f"{key}.lora_B.weight": f(5, 2),
                 f"{key}.lora_magnitude_vector": f(5)},
        "kohya": {"u.lora_down.weight": f(2, 3, 1, 1), "u.lora_mid.weight": f(2, 2, 3, 3),
                  "u.lora_up.weight": f(4, 2, 1, 1), "u.alpha": np.float32(1).reshape(())},
        "loha": {f"{key}.hada_{name}": f(*shape) for name, shape in
                 (("w1_a", (5, 2)), ("w1_b", (2, 6)), ("w2_a", (5, 2)), ("w2_b", (2, 6)))},
        "lokr": {f"{key}.lokr_w1": f(2, 2), f"{key}.lokr_w2_a": f(3, 2), f"{key}.lokr_w2_b": f(2, 3)},
        "mlx": {"l.q_proj.lora_a": f(6, 2), "l.q_proj.lora_b": f(2, 5)},
        "vera": {"base_model.vera_A": f(2, 6), "base_model.vera_B": f(6, 2), f"{key}.vera_lambda_b": f(5),
                 f"{key}.vera_lambda_d": f(2)},
    }[kind]  # fmt: skip


LAYOUTS = ("peft", "kohya", "loha", "lokr", "mlx", "vera")


def look(file: TensorFile) -> None:
    """Everything that a scan does with an opened file."""
    for config in (None, {**CONFIG, "enable_lora": None}, CONFIG):
        view = view_adapter(file, parse_config(config) if config else None, 64)
        if not view.unsupported_reason:
            measurement = measure_adapter(view.updates, release=file.release)
            scan = features_of(measurement)
            find_split(measurement.modules)
            check_static(StaticFacts("a.safetensors", ("a.safetensors",), None, view, scan))
    count_nonfinite(file, file.entries)


def run_safetensors(path: Path) -> None:
    look(open_safetensors(path))


def run_config(path: Path) -> None:
    data = path.read_bytes()
    raw = parse_json_object(data, "adapter_config.json")
    config = parse_config(raw)
    base_fingerprint(raw)
    texts = {"tokenizer_config.json": data.decode("utf-8", "replace"), "config.json": data.decode("utf-8", "replace")}
    check_static(StaticFacts("a.safetensors", ("a.safetensors",), config, texts=texts))


def run_template(path: Path) -> None:
    source = path.read_bytes().decode("utf-8", "replace")
    object_walks(source)
    keyword_branches(source)
    compare_templates(source, TEMPLATE)


_VALUES = (None, True, [], {}, -1, 1e308, 10**30, "../x", "q_proj", "LOHA", "\u202e")
_JSON = (*(json.dumps(value).encode() for value in _VALUES), *(f'"{key}": '.encode() for key in CONFIG))
_HEADER = (
    b'"shape":[', b'"data_offsets":[', b'"dtype":"BF16"', b'"F8_E4M3"', b"9" * 20, b"-1", b"lora_A", b"hada_w1_a",
    b"lokr_w1",
)  # fmt: skip
_JINJA = (
    b"{{", b"}}", b"{%", b"%}", b"{% for x in messages %}", b"{% endfor %}", b"{% if ", b"{% endif %}", b".__class__",
    b"|attr('x')", b"range(99999999)", b"~", b"*9999", b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", b"[0]",
)  # fmt: skip
TARGETS = (
    Target("safetensors", lambda _: [encode(factors(kind)) for kind in LAYOUTS], run_safetensors, _HEADER),
    Target("config", lambda _: [json.dumps(CONFIG).encode()], run_config, _JSON),
    # Jinja makes Python of a template and runs it, in its sandbox and within the budget.
    Target("template", lambda _: [TEMPLATE.encode()], run_template, _JINJA, allowed=frozenset({"compile", "exec"})),
)

if __name__ == "__main__":
    sys.exit(main(TARGETS))
