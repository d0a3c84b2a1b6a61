"""Every supported PEFT method: ΔW is PEFT's own `get_delta_weight`, over ranks, shapes, dtypes and options."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scanner.adapter import AdapterView, open_safetensors, parse_config, read_json_object, view_adapter
from scanner.weights import scan_weights

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns about what these configs do on purpose

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SLOW = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Block(torch.nn.Module):
    """Linear, convolutional and embedding layers of odd sizes."""

    def __init__(self, width: int, inner: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(17, width)
        self.q_proj = torch.nn.Linear(width, width)
        self.up_proj = torch.nn.Linear(width, inner)
        self.down_proj = torch.nn.Linear(inner, width)
        self.conv = torch.nn.Conv2d(channels, 2 * channels, kernel)
        self.conv1 = torch.nn.Conv2d(channels, channels + 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Experts(torch.nn.Module):
    """Stacked experts, as mixtures keep them: one 3-D parameter."""

    def __init__(self, experts: int, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up = torch.nn.Parameter(torch.zeros(experts, width, inner))
        self.down = torch.nn.Parameter(torch.zeros(experts, inner, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_and_read(folder: Path, model: torch.nn.Module, config: Any, dtype: str, seed: int) -> tuple[Any, AdapterView]:
    from peft import get_peft_model

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if any(mark in name for mark in ("lora_", "hada_", "lokr_", "vera_lambda")):
                    parameter.normal_(std=0.5)
                    # Storage precision: what the file holds is what PEFT computes with.
                    parameter.copy_(parameter.to(DTYPES[dtype]).to(torch.float32))
            for name, buffer in peft_model.named_buffers():
                if "vera_" in name:
                    buffer.copy_(buffer.to(DTYPES[dtype]).to(torch.float32))
        peft_model.save_pretrained(folder)
    if dtype != "float32":
        from safetensors.torch import load_file, save_file

        path = folder / "adapter_model.safetensors"
        save_file({k: v.to(DTYPES[dtype]) for k, v in load_file(path).items()}, path)
    read = parse_config(read_json_object(folder / "adapter_config.json", 10**6))
    return peft_model, view_adapter(open_safetensors(folder / "adapter_model.safetensors"), read, 4096)


def assert_same_delta(peft_model: Any, view: AdapterView, count: int) -> None:
    """Relative error of every module's ΔW at most 1e-5."""
    assert view.unsupported_reason == ""
    assert (view.unexplained, view.coverage) == ((), 1.0)
    assert len(view.updates) == count
    for update in view.updates:
        a, b = update.read()
        assert (a.shape, b.shape) == ((update.rank, update.in_features), (update.out_features, update.rank))
        ours = update.scale * (b.astype(np.float64) @ a.astype(np.float64))
        layer = peft_model.base_model.model.get_submodule(update.module)
        theirs = layer.get_delta_weight("default").detach().double().numpy()
        if update.kind == "embedding" or getattr(layer, "fan_in_fan_out", False):
            theirs = theirs.T
        theirs = theirs.reshape(update.out_features, update.in_features)
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
        if update.spectrum:
            sigma, dense = update.spectrum(), np.linalg.svd(b.astype(np.float64) @ a.astype(np.float64))[1]
            np.testing.assert_allclose(sigma[: dense.size], dense[: sigma.size], atol=1e-6 * dense[0])
    scan = scan_weights(view.updates)
    assert scan.features["delta_frob_total"] is not None


sizes = st.tuples(st.integers(2, 24), st.integers(2, 24), st.integers(1, 4), st.sampled_from([1, 3]))
common = {"dtype": st.sampled_from(sorted(DTYPES)), "seed": st.integers(0, 99), "sizes": sizes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@SLOW
@given(rank=st.integers(1, 9), alpha=st.integers(1, 40), rslora=st.booleans(), dora=st.booleans(), **common)
def test_lora(folder: Path, sizes: Any, rank: int, alpha: int, rslora: bool, dora: bool, dtype: str, seed: int) -> None:
    from peft import LoraConfig

    targets = ["q_proj", "up_proj", "down_proj", "conv", "conv1", "embed"]
    config = LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rslora, use_dora=dora, target_modules=targets)
    model, view = save_and_read(folder, Block(*sizes), config, dtype, seed)
    assert_same_delta(model, view, 6)


@SLOW
@given(rank=st.integers(1, 6), alpha=st.integers(1, 40), effective=st.booleans(), **common)
def test_loha(folder: Path, sizes: Any, rank: int, alpha: int, effective: bool, dtype: str, seed: int) -> None:
    from peft import LoHaConfig

    targets = ["q_proj", "up_proj", "down_proj", "conv", "conv1"]
    config = LoHaConfig(r=rank, alpha=alpha, use_effective_conv2d=effective, target_modules=targets)
    model, view = save_and_read(folder, Block(*sizes), config, dtype, seed)
    assert_same_delta(model, view, 5)
    assert (view.layout, view.rank) == ("peft", rank)


@SLOW
@given(
    rank=st.integers(1, 6),
    alpha=st.integers(1, 40),
    effective=st.booleans(),
    both=st.booleans(),
    factor=st.sampled_from([-1, 2, 4]),
    **common,
)
def test_lokr(
    folder: Path, sizes: Any, rank: int, alpha: int, effective: bool, both: bool, factor: int, dtype: str, seed: int
) -> None:
    from peft import LoKrConfig

    config = LoKrConfig(
        r=rank,
        alpha=alpha,
        use_effective_conv2d=effective,
        decompose_both=both,
        decompose_factor=factor,
        target_modules=["q_proj", "up_proj", "down_proj", "conv", "conv1"],
    )
    model, view = save_and_read(folder, Block(*sizes), config, dtype, seed)
    assert_same_delta(model, view, 5)


@SLOW
@given(rank=st.integers(1, 9), alpha=st.integers(1, 40), **common)
def test_adalora(folder: Path, sizes: Any, rank: int, alpha: int, dtype: str, seed: int) -> None:
    from peft import AdaLoraConfig

    config = AdaLoraConfig(
        init_r=rank, target_r=rank, lora_alpha=alpha, total_step=10, target_modules=["q_proj", "up_proj", "down_proj"]
    )
    model, view = save_and_read(folder, Block(*sizes), config, dtype, seed)
    assert_same_delta(model, view, 3)


@SLOW
@given(
    rank=st.integers(1, 9),
    targets=st.sampled_from([["q_proj"], ["q_proj", "up_proj"], ["down_proj"], ["q_proj", "up_proj", "down_proj"]]),
    **common,
)
def test_vera(folder: Path, sizes: Any, rank: int, targets: list[str], dtype: str, seed: int) -> None:
    from peft import VeraConfig

    model, view = save_and_read(folder, Block(*sizes), VeraConfig(r=rank, target_modules=targets), dtype, seed)
    assert_same_delta(model, view, len(targets))


@SLOW
@given(
    rank=st.integers(1, 5),
    experts=st.integers(2, 6),
    alpha=st.integers(1, 40),
    dtype=st.sampled_from(sorted(DTYPES)),
    seed=st.integers(0, 99),
)
def test_stacked_experts(folder: Path, rank: int, experts: int, alpha: int, dtype: str, seed: int) -> None:
    from peft import LoraConfig

    holder = torch.nn.Module()
    holder.experts = Experts(experts, 8, 12)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=[], target_parameters=["experts.gate_up", "experts.down"]
    )
    model, view = save_and_read(folder, holder, config, dtype, seed)
    assert (view.coverage, view.unexplained, view.rank) == (1.0, (), rank)
    assert len(view.updates) == 2 * experts
    layers = {name: layer for name, layer in model.base_model.model.named_modules() if hasattr(layer, "lora_A")}
    assert set(layers) == {"experts", "experts.base_layer"}
    for update in view.updates:
        name, _, number = update.module.partition("#")
        theirs = layers[name].get_delta_weight("default")[int(number)].detach().double().numpy()
        a, b = update.read()
        ours = update.scale * (b.astype(np.float64) @ a.astype(np.float64))
        theirs = theirs if theirs.shape == ours.shape and np.allclose(theirs, ours, rtol=1e-3) else theirs.T
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def test_vera_without_its_shared_pair_says_so(folder: Path) -> None:
    from peft import VeraConfig

    config = VeraConfig(r=3, target_modules=["q_proj"], save_projection=False)
    _, view = save_and_read(folder, Block(8, 8, 2, 1), config, "float32", 0)
    assert view.unsupported_reason == "vera_projection_not_saved"
    assert view.updates == ()


def test_vera_widths_that_nothing_tells_are_left_open(folder: Path) -> None:
    from peft import VeraConfig

    model = torch.nn.ModuleDict({"abc": torch.nn.Linear(5, 7), "xyz": torch.nn.Linear(9, 7)})
    _, view = save_and_read(folder, model, VeraConfig(r=3, target_modules=["abc", "xyz"]), "float32", 0)
    assert view.updates == ()
    assert view.unsupported_reason


def test_pruned_adalora(folder: Path) -> None:
    # After training, PEFT drops the pruned ranks; the divisor stays the rank that training began with.
    from peft import AdaLoraConfig, PeftModel

    config = AdaLoraConfig(init_r=6, target_r=3, lora_alpha=32, total_step=10, target_modules=["q_proj"])
    kept = [True, False, True, True, False, False]
    config.rank_pattern = {"q_proj.lora_E": kept}
    _, view = save_and_read(folder, Block(8, 8, 2, 1), config, "float32", 0)
    loaded = PeftModel.from_pretrained(Block(8, 8, 2, 1), folder)
    assert view.rank == sum(kept)
    assert_same_delta(loaded, view, 1)


@pytest.mark.parametrize(
    "name", ["IA3Config", "OFTConfig", "BOFTConfig", "HRAConfig", "FourierFTConfig", "VBLoRAConfig", "DeloraConfig"]
)
def test_other_methods_are_named(folder: Path, name: str) -> None:
    import peft

    options = {
        "IA3Config": {"feedforward_modules": []},
        "FourierFTConfig": {"n_frequency": 4},
        "OFTConfig": {"r": 2, "oft_block_size": 0},
        "BOFTConfig": {"boft_block_size": 4},
        "VBLoRAConfig": {"r": 2, "num_vectors": 4, "vector_length": 4, "topk": 2},
    }.get(name, {"r": 4})
    config = getattr(peft, name)(target_modules=["q_proj"], **options)
    _, view = save_and_read(folder, Block(8, 8, 2, 1), config, "float32", 0)
    assert view.unsupported_reason == f"peft_type_{config.peft_type.value.lower()}"
    assert (view.updates, view.coverage) == ((), 0.0)
    assert view.unexplained


@pytest.mark.parametrize("enabled", [[True, False, True], [True, True, True], [False, True]])
def test_parts_of_a_fused_matrix(tmp_path: Path, encode: Any, enabled: list[bool]) -> None:
    # PEFT before 0.4 (and loralib): a grouped convolution over the enabled parts, the others padded with zeros.
    rank, width, height, count = 3, 10, 8, sum(enabled)
    rng = np.random.default_rng(1)
    a = rng.normal(size=(rank * count, width)).astype("f4")
    b = rng.normal(size=(height * count, rank, 1)).astype("f4")
    grouped = torch.nn.functional.conv1d(torch.from_numpy(a)[None], torch.from_numpy(b), groups=count)[0].numpy()
    wanted = np.zeros((len(enabled), height, width), dtype="f4")
    wanted[np.array(enabled)] = grouped.reshape(count, height, width)
    path = tmp_path / "w.safetensors"
    key = "base_model.model.h.0.query_key_value"
    path.write_bytes(encode({f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}))
    config = parse_config({"peft_type": "LORA", "r": rank, "lora_alpha": 6, "enable_lora": enabled})
    view = view_adapter(open_safetensors(path), config, 64)
    assert (view.rank, view.coverage, view.notes) == (rank, 1.0, ())
    (update,) = view.updates
    down, up = update.read()
    np.testing.assert_allclose(update.scale * (up @ down), 2.0 * wanted.reshape(-1, width), rtol=1e-5, atol=1e-6)
