"""Loading base models from strangers: which are refused, and that none of them chooses code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from scanner.errors import LorascopeError, MalformedFileError, UnsupportedError

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")


def logits(model: Any, tokens: Any) -> Any:
    with torch.inference_mode():
        return model(tokens).logits


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model_type": "no-such-model"}, "base_architecture"),
        ({"model_type": None}, "base_architecture"),
        ({"model_type": "clip_vision_model"}, "base_architecture"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "base_quantised"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "base_quantised"),
        ({"deep": [[[[[[[[[[]]]]]]]]]]}, "malformed_file"),
        ({"hidden_size": 64}, "malformed_file"),
    ],
)
def test_bases_that_cannot_be_loaded(base_dir: Path, tmp_path: Path, change: dict[str, Any], code: str) -> None:
    from scanner.probe.base import load_base

    folder = tmp_path / "base"
    shutil.copytree(base_dir, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LorascopeError) as caught:
        load_base(folder, "cpu")
    assert caught.value.code == code


def test_a_base_that_lacks_weights_is_not_filled_up(base_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from scanner.probe.base import load_base

    folder = tmp_path / "base"
    shutil.copytree(base_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if "v_proj" in name)
    save_file({name: t for name, t in tensors.items() if name != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MalformedFileError, match="lack 1 tensors"):
        load_base(folder, "cpu")


def test_a_base_without_tokenizer_is_unsupported(base_dir: Path, tmp_path: Path) -> None:
    from scanner.probe.base import load_base

    folder = tmp_path / "base"
    shutil.copytree(base_dir, folder, ignore=shutil.ignore_patterns("tokenizer.json"))
    with pytest.raises(UnsupportedError) as caught:
        load_base(folder, "cpu")
    assert caught.value.code == "base_tokenizer"


def test_code_in_a_base_is_never_imported(base_dir: Path, tmp_path: Path) -> None:
    from scanner.probe.base import load_base

    folder = tmp_path / "base"
    shutil.copytree(base_dir, folder)
    trap = tmp_path / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(trap)!r}, 'w')\nclass Evil: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    load_base(folder, "cpu")
    assert not trap.exists()


def test_a_config_chooses_no_code(
    base: Any, base_dir: Path, tmp_path: Path, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.modeling_utils

    from scanner.probe.base import load_base

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel was asked for")

    monkeypatch.setattr(transformers.modeling_utils, "lazy_import_flash_attention", never)
    hostile = {
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "_attn_implementation_internal": "evil/kernel",
        "experts_implementation": "evil/experts",
        "attribute_map": {"innocent": "_attn_implementation_internal"},
        "innocent": "evil/kernel",
        "transformers_weights": "adapter_model.bin",
        "fusion_config": {"evil": True},
        "use_custom_kernels": True,
        "kernel_config": {"RMSNorm": "evil/kernel:Norm"},
        "Trust_Remote_Code": True,
    }
    folder = tmp_path / "base"
    shutil.copytree(base_dir, folder)
    config = json.loads((folder / "config.json").read_text()) | hostile
    config["other_config"] = {"deeper": [hostile | {"kept": 1}]}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_base(folder, "cpu")
    assert loaded.model.config._attn_implementation == "sdpa"
    kept = vars(loaded.model.config)
    # A key that nobody reads may stay. (Some of the others are the class's own attributes, set by the class.)
    assert [name for name in hostile if "evil" in str(kept.get(name))] == ["innocent"]
    assert not {"transformers_weights", "use_custom_kernels", "Trust_Remote_Code"} & set(kept)
    assert loaded.model.config.other_config == {"deeper": [{"innocent": "evil/kernel", "kept": 1}]}
    assert torch.equal(logits(loaded.model, tokens), logits(base.model, tokens))


def test_a_package_that_an_architecture_lacks_is_the_bases_fault(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    from scanner.probe.base import load_base

    def lacking(*_: Any, **__: Any) -> None:
        raise ImportError("einops is needed")

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lacking)
    with pytest.raises(UnsupportedError, match="einops") as caught:
        load_base(base_dir, "cpu")
    assert caught.value.code == "base_architecture"


def test_a_pickled_base_is_not_loaded(base_dir: Path, tmp_path: Path) -> None:
    from scanner.probe.base import load_base

    folder = tmp_path / "base"
    shutil.copytree(base_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(LorascopeError):
        load_base(folder, "cpu")
