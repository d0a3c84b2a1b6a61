"""Every parser of a stranger's bytes, with valid inputs made here."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from scanner.adapter import (
    count_nonfinite,
    open_safetensors,
    open_weights,
    parse_config,
    parse_json_object,
    view_adapter,
)
from scanner.adapter.fingerprint import base_fingerprint
from scanner.adapter.pickles import inspect_pickle
from scanner.adapter.tensors import TensorFile
from scanner.rules import StaticFacts, check_static
from scanner.rules.template import compare_templates, keyword_branches, object_walks
from scanner.weights import find_split, scan_weights
from tests.fuzz.harness import Target

__all__ = ["TARGETS"]

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


def on_file(run: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A target of paths as one of bytes; the file lies in memory where the system has such a folder."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))

    def on_bytes(data: bytes) -> object:
        path = folder / "input.bin"
        path.write_bytes(data)
        return run(path)

    return on_bytes


def look(file: TensorFile) -> None:
    """Everything that a scan does with an opened file."""
    for config in (None, {**CONFIG, "enable_lora": None}, CONFIG):
        view = view_adapter(file, parse_config(config) if config else None, 64)
        if not view.unsupported_reason:
            scan = scan_weights(view.updates)
            find_split(view.updates)
            check_static(StaticFacts("a.safetensors", ("a.safetensors",), None, view, scan))
    count_nonfinite(file, file.entries)


def run_safetensors(path: Path) -> None:
    look(open_safetensors(path))


def run_weights(path: Path) -> None:
    inspect_pickle(path)
    look(open_weights([path], "adapter_model.bin"))


def run_config(data: bytes) -> None:
    raw = parse_json_object(data, "adapter_config.json")
    config = parse_config(raw)
    base_fingerprint(raw)
    texts = {"tokenizer_config.json": data.decode("utf-8", "replace"), "config.json": data.decode("utf-8", "replace")}
    check_static(StaticFacts("a.safetensors", ("a.safetensors",), config, texts=texts))


def run_template(data: bytes) -> None:
    source = data.decode("utf-8", "replace")
    object_walks(source)
    keyword_branches(source)
    compare_templates(source, TEMPLATE)


def torch_files() -> list[bytes]:
    """What torch.save writes, in both of its formats."""
    import torch

    made = []
    for as_zip in (True, False):
        for kind in ("peft", "loha"):
            buffer = io.BytesIO()
            tensors = {name: torch.from_numpy(values.copy()) for name, values in factors(kind).items()}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.save(OrderedDict(tensors), buffer, _use_new_zipfile_serialization=as_zip)
            made.append(buffer.getvalue())
    return made


def deflated(data: bytes) -> bytes:
    """The same archive, compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    return buffer.getvalue()


OPCODES = tuple(bytes([code]) for code in (*b"(.012NRabd}el]ost)uQcPiIJKMLFGSTUBCVXghjpqr", *range(0x80, 0x99)))
WORDS = (
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"cos\nsystem\n",
    b"PK\x03\x04",
    b"PK\x05\x06",
)


@cache
def targets() -> dict[str, Target]:
    """All targets by name."""
    plain = [pickle.dumps({"a": [1, 2.5, (None, True), {"b": b"x"}], "c": {3}}, protocol) for protocol in range(6)]
    torch = torch_files()
    config = json.dumps(CONFIG).encode()
    tokens = [
        json.dumps(value).encode()
        for value in (None, True, [], {}, -1, 1e308, 10**30, "../x", "q_proj", "LOHA", "\u202e")
    ]
    keys = tuple(f'"{key}": '.encode() for key in CONFIG)
    jinja = (
        b"{{", b"}}", b"{%", b"%}", b"{% for x in messages %}", b"{% endfor %}", b"{% if ", b"{% endif %}",
        b".__class__",
        b"|attr('x')", b"range(99999999)", b"~", b"*9999", b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", b"[0]",
    )  # fmt: skip
    shapes = (
        b'"shape":[',
        b'"data_offsets":[',
        b'"dtype":"BF16"',
        b'"F8_E4M3"',
        b"9" * 20,
        b"-1",
        b"lora_A",
        b"hada_w1_a",
        b"lokr_w1",
    )
    return {
        "safetensors": Target(
            "safetensors", [encode(factors(kind)) for kind in LAYOUTS], on_file(run_safetensors), shapes
        ),
        "pickles": Target("pickles", [*plain, *torch, deflated(torch[0])], on_file(run_weights), (*OPCODES, *WORDS)),
        "config": Target("config", [config], run_config, (*tokens, *keys)),
        "template": Target("template", [TEMPLATE.encode()], run_template, jinja),
    }


TARGETS = ("safetensors", "pickles", "config", "template")
