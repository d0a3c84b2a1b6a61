"""MLX, kohya and diffusers spellings, and everything that a spelling must not swallow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scanner.adapter import AdapterView, open_safetensors, parse_config, view_adapter

RNG = np.random.default_rng(11)
A = RNG.normal(size=(4, 10)).astype("f4")
B = RNG.normal(size=(6, 4)).astype("f4")

View = Callable[..., AdapterView]


@pytest.fixture
def view(tmp_path: Path, encode: Callable[..., bytes]) -> View:
    def make(tensors: Mapping[str, Any], config: dict[str, Any] | None = None) -> AdapterView:
        path = tmp_path / "w.safetensors"
        path.write_bytes(encode(tensors))
        return view_adapter(open_safetensors(path), None if config is None else parse_config(config), 64)

    return make


def assert_delta(view: AdapterView, scale: float, module: str) -> None:
    (update,) = view.updates
    a, b = update.read()
    assert update.module == module
    assert (update.rank, update.in_features, update.out_features) == (4, 10, 6)
    np.testing.assert_allclose(update.scale * (b @ a), scale * (B @ A), rtol=1e-6)


def test_mlx_is_transposed_and_has_its_own_scale(view: View) -> None:
    # MLX computes x @ lora_a @ lora_b · scale: both factors are stored the other way round.
    tensors = {"model.layers.3.self_attn.q_proj.lora_a": A.T, "model.layers.3.self_attn.q_proj.lora_b": B.T}
    seen = view(tensors, {"model": "org/base", "lora_parameters": {"rank": 4, "scale": 20.0}})
    assert (seen.layout, seen.coverage, seen.notes) == ("mlx", 1.0, ())
    assert_delta(seen, 20.0, "model.layers.3.self_attn.q_proj")


@pytest.mark.parametrize("alpha", [np.float32(2.0), np.array([2.0], "f2"), ("BF16", 2.0), np.int64(2)])
def test_kohya_scales_by_its_alpha_tensor(view: View, alpha: Any) -> None:
    key = "lora_unet_down_blocks_0_attn1_to_q"
    seen = view({f"{key}.lora_down.weight": A, f"{key}.lora_up.weight": B, f"{key}.alpha": alpha})
    assert (seen.layout, seen.coverage, seen.unexplained) == ("kohya", 1.0, ())
    assert_delta(seen, 2.0 / 4, key)


def test_kohya_without_alpha_has_scale_one(view: View) -> None:
    assert_delta(view({"m.lora_down.weight": A, "m.lora_up.weight": B}), 1.0, "m")


@pytest.mark.parametrize(
    ("down", "up", "module"),
    [
        ("unet.mid.attn1.processor.to_q_lora.down.weight", "unet.mid.attn1.processor.to_q_lora.up.weight",
         "unet.mid.attn1.processor.to_q"),
        ("text_encoder.q_proj.lora.down.weight", "text_encoder.q_proj.lora.up.weight", "text_encoder.q_proj"),
        ("unet.mid.attn1.to_q.lora_A.weight", "unet.mid.attn1.to_q.lora_B.weight", "unet.mid.attn1.to_q"),
    ],
)  # fmt: skip
def test_diffusers_old_and_new(view: View, down: str, up: str, module: str) -> None:
    seen = view({down: A, up: B})
    assert (seen.layout, seen.coverage) == ("diffusers", 1.0)
    assert_delta(seen, 1.0, module)


def test_convolutions_are_flattened(view: View) -> None:
    down, up = RNG.normal(size=(4, 3, 3, 3)).astype("f4"), RNG.normal(size=(8, 4, 1, 1)).astype("f4")
    (update,) = view({"c.lora_down.weight": down, "c.lora_up.weight": up}).updates
    a, b = update.read()
    assert (update.kind, a.shape, b.shape) == ("conv", (4, 27), (8, 4))
    np.testing.assert_array_equal(a, down.reshape(4, 27))


def test_half_precision_factors(view: View) -> None:
    (update,) = view({"m.lora_A.weight": ("BF16", A), "m.lora_B.weight": B.astype("f2")}).updates
    a, b = update.read()
    np.testing.assert_allclose(a, A, rtol=2**-7)
    np.testing.assert_allclose(b, B, rtol=2**-10)


def test_saved_adapter_names_inside_the_key(view: View) -> None:
    seen = view(
        {"base_model.model.m.lora_A.default.weight": A, "base_model.model.m.lora_B.default.weight": B}, {"r": 4}
    )
    assert_delta(seen, 8.0 / 4, "m")  # PEFT's default alpha


UNEXPLAINED: dict[str, dict[str, Any]] = {
    "a full tensor": {"base_model.model.lm_head.weight": np.ones((3, 3), "f4")},
    "a lone half": {"x.lora_A.weight": A},
    "ranks that differ": {"x.lora_A.weight": A, "x.lora_B.weight": np.ones((6, 3), "f4")},
    "an integer factor": {"x.lora_A.weight": A, "x.lora_B.weight": np.ones((6, 4), "i4")},
    "an empty factor": {"x.lora_A.weight": np.ones((4, 0), "f4"), "x.lora_B.weight": B},
    "one dimension": {"x.lora_A.weight": np.ones(4, "f4"), "x.lora_B.weight": B},
    "a second pair of the same module": {
        "base_model.model.m.lora_A.default.weight": A,
        "base_model.model.m.lora_B.default.weight": B,
    },
    "a pair that PEFT would not load": {"n.lora_A.weight": A, "n.lora_B.weight": B},
    "another spelling of the same module": {"m.lora_down.weight": A, "m.lora_up.weight": B},
    "an alpha without a module": {"nothing.alpha": np.float32(1)},
    "an alpha that is no number": {"m.alpha": np.ones(2, "f4")},
}


@pytest.mark.parametrize("case", UNEXPLAINED)
def test_nothing_is_dropped_silently(view: View, case: str) -> None:
    extra = UNEXPLAINED[case]
    tensors = {"base_model.model.m.lora_A.weight": A, "base_model.model.m.lora_B.weight": B, **extra}
    seen = view(tensors, {"peft_type": "LORA", "r": 4, "lora_alpha": 4})
    assert seen.unexplained == tuple(sorted(extra))
    assert_delta(seen, 1.0, "m")
    known = A.nbytes + B.nbytes
    assert seen.coverage == pytest.approx(known / (known + sum(np.asarray(value).nbytes for value in extra.values())))


def test_pairs_outside_of_the_targets_are_decoys(view: View) -> None:
    tensors = {
        f"base_model.model.layers.0.{name}.lora_{side}.weight": value
        for name in ("q_proj", "xq_proj", "v_proj")
        for side, value in (("A", A), ("B", B))
    }
    seen = view(tensors, {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]})
    assert [update.module for update in seen.updates] == ["layers.0.q_proj"]
    assert len(seen.unexplained) == 4


@pytest.mark.parametrize("option", ["alora_invocation_tokens", "layer_replication", "use_qalora"])
def test_options_that_change_the_forward_pass_are_refused(view: View, option: str) -> None:
    tensors = {"base_model.model.m.lora_A.weight": A, "base_model.model.m.lora_B.weight": B}
    assert view(tensors, {"peft_type": "LORA", "r": 4, option: [1]}).unsupported_reason == f"config_{option}"
    assert view(tensors, {"peft_type": "LORA", "r": 4, option: None}).unsupported_reason == ""


def test_a_head_is_explained_only_when_declared(view: View) -> None:
    tensors = {"m.lora_A.weight": A, "m.lora_B.weight": B, "base_model.model.score.weight": np.ones((2, 3), "f4")}
    assert view(tensors, {"task_type": "CAUSAL_LM"}).heads == ()
    assert view(tensors, {"task_type": "SEQ_CLS"}).heads == ("base_model.model.score.weight",)
    assert view(tensors, {"modules_to_save": ["score"]}).heads == ("base_model.model.score.weight",)
    assert view(tensors, {"modules_to_save": ["core"]}).heads == ()  # parts of names, not parts of words
    # PEFT's own default, which matches by the end of a name, takes DistilBERT's first head layer along.
    wide = tensors | {"base_model.model.pre_classifier.weight": np.full((3, 3), 2, "f4")}
    seen = view(wide, {"task_type": "SEQ_CLS"})
    assert (seen.unexplained, seen.coverage) == ((), 1.0)
    assert [(t.name, t.shape, float(t.read().max())) for t in seen.head_tensors] == [
        ("base_model.model.pre_classifier.weight", (3, 3), 2.0),
        ("base_model.model.score.weight", (2, 3), 1.0),
    ]


def test_nothing_readable(view: View) -> None:
    seen = view({"weight": np.ones((2, 2), "f4")})
    assert (seen.layout, seen.unsupported_reason, seen.coverage) == ("unknown", "unknown_layout", 0.0)
    assert (seen.rank, seen.scaling, seen.target_modules) == (None, None, ())
    assert view({}).coverage == 0.0


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True, "rank_pattern": {"m": -4}},
        {"rank_pattern": {"m": -4}},
        {"lora_alpha": float("inf")},
        {"alpha_pattern": {"m": float("nan")}},
        {"alpha_pattern": {"m": 10**400}},
        {"alpha_pattern": {"m": "7"}},
        {"lora_alpha": 10**400},
        {"lora_alpha": "16"},
        {"rank_pattern": {"m": 0}},
        {"rank_pattern": {"m": 2.5}},
        {"rank_pattern": {"m": float("inf")}},
        {"rank_pattern": {"m": None}},
        {"r": -4},
        {"r": 0, "use_rslora": True},
        {"r": float("nan")},
    ],
)
def test_a_scale_that_is_no_number_is_refused(view: View, config: dict[str, Any]) -> None:
    tensors = {"base_model.model.m.lora_A.weight": A, "base_model.model.m.lora_B.weight": B}
    seen = view(tensors, {"peft_type": "LORA", "r": 4, **config})
    assert (seen.unsupported_reason, seen.scaling) == ("bad_scale", None)


numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), "4", [4], {}])


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "r": numbers,
            "lora_alpha": numbers,
            "use_rslora": st.booleans(),
            "rank_pattern": st.dictionaries(st.sampled_from(["m", "^m", "n", ""]), numbers) | numbers,
            "alpha_pattern": st.dictionaries(st.sampled_from(["m", "^m", "n", ""]), numbers) | numbers,
            "lora_parameters": st.fixed_dictionaries({}, optional={"rank": numbers, "scale": numbers}),
        },
    ),
    st.sampled_from(["lora_{}.weight", "lora_{}"]),
)
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_config_makes_another_error_or_a_scale_that_is_no_number(
    view: View, config: dict[str, Any], spelling: str
) -> None:
    sides = {"A": A, "B": B} if spelling.endswith("weight") else {"a": A.T, "b": B.T}
    seen = view({f"m.{spelling.format(side)}": value for side, value in sides.items()}, config)
    assert seen.unsupported_reason or all(math.isfinite(update.scale) for update in seen.updates)


def test_a_targets_list_is_text_not_a_pattern(view: View) -> None:
    # To PEFT `^m` is the name of no module: a pair behind it is a decoy.
    tensors = {"base_model.model.m.lora_A.weight": A, "base_model.model.m.lora_B.weight": B}
    for target, count in (("m", 1), ("^m", 0), ("\\.m", 0)):
        seen = view(tensors, {"peft_type": "LORA", "r": 4, "target_modules": [target]})
        assert len(seen.updates) == count


def test_ranks_that_contradict_the_config_are_one_note(view: View) -> None:
    tensors: dict[str, Any] = {}
    for rank in range(1, 9):
        tensors[f"m{rank}.lora_A.weight"] = np.ones((rank, 4), "f4")
        tensors[f"m{rank}.lora_B.weight"] = np.ones((4, rank), "f4")
    (note,) = view(tensors, {"r": 8}).notes
    assert note.startswith("7 modules")


@pytest.mark.serial
def test_long_lists_of_names_are_not_compared_with_every_module(view: View) -> None:
    modules = [f"layers.{number}.q_proj" for number in range(3_000)]
    small = np.ones((1, 1), "f4")
    tensors = {f"base_model.model.{name}.lora_{side}.weight": small for name in modules for side in "AB"}
    tensors |= {f"head{number}.weight": small for number in range(3_000)}
    config = {
        "peft_type": "LORA",
        "r": 1,
        "target_modules": [f"no.{number}" for number in range(16_000)] + ["q_proj"],
        "rank_pattern": {f"no.{number}": 2 for number in range(16_000)} | {"q_proj": 1},
        "modules_to_save": [f"no{number}" for number in range(20_000)],
    }
    begin = time.process_time()
    seen = view(tensors, config)
    assert (len(seen.updates), len(seen.unexplained)) == (3_000, 3_000)
    assert time.process_time() - begin < 5  # every name against every module takes minutes


def test_costs_are_bounded_before_a_factor_is_read(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    from scanner.adapter.layouts import limits
    from scanner.errors import LimitExceededError

    tensors = {"base_model.model.m.lora_A.weight": A, "base_model.model.m.lora_B.weight": B}
    for limit in ("MAX_FACTOR_ELEMENTS", "MAX_FEATURES", "MAX_SCAN_OPERATIONS"):
        with monkeypatch.context() as patch:
            patch.setattr(limits, limit, 3)
            with pytest.raises(LimitExceededError):
                view(tensors)
    with pytest.raises(LimitExceededError):
        view(tensors, {"peft_type": "LORA", "target_modules": [f"m{i}" for i in range(20_001)]})
