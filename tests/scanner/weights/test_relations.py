"""Copies, near-duplicates and merges: what is planted is found, what is close but not close enough is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.adapter import LowRankUpdate, open_weights, parse_config, read_json_object, view_adapter
from scanner.model import WeightSketch
from scanner.weights import lsh, measure_adapter, merges, relations
from scanner.weights.inner import Updates, cosine
from scanner.weights.lsh import find_candidates, miss_probability
from scanner.weights.merges import find_merges
from scanner.weights.relations import Relation, SketchTable, find_near_duplicates, interval_of

Pairs = list[tuple[Any, Any]]
MODULES = 10


def pairs_of(rng: np.random.Generator, rank: int = 4) -> Pairs:
    return [(rng.normal(size=(rank, 40)), rng.normal(size=(56, rank))) for _ in range(MODULES)]


def updates(pairs: Pairs, scale: float = 1.0) -> Updates:
    def of(a: Any, b: Any, number: int) -> LowRankUpdate:
        return LowRankUpdate(f"layers.{number}.q_proj", a.shape[0], 56, 40, scale, lambda: (a, b))

    return [of(a, b, number) for number, (a, b) in enumerate(pairs)]


def disturbed(rng: np.random.Generator, pairs: Pairs, wanted: float) -> Pairs:
    """Pairs at this cosine from the given ones, by bisection over the noise."""
    noise = pairs_of(rng, pairs[0][0].shape[0])
    low, high = 0.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        found = [(a + middle * c, b + middle * d) for (a, b), (c, d) in zip(pairs, noise, strict=True)]
        value = cosine(updates(pairs), updates(found))
        low, high = (middle, high) if value is not None and value > wanted else (low, middle)
    return found


def summed(*parts: tuple[float, Pairs]) -> Pairs:
    """A concatenated merge: its ΔW is the weighted sum of those of the parts."""
    return [
        (np.concatenate([p[m][0] for _, p in parts]), np.concatenate([w * p[m][1] for w, p in parts], axis=1))
        for m in range(MODULES)
    ]


def table_of(adapters: dict[str, Updates]) -> SketchTable:
    return SketchTable.of({name: measure_adapter(found).sketch for name, found in adapters.items()})


def by_pair(found: tuple[Relation, ...]) -> dict[tuple[str, str], Relation]:
    return {(r.adapter_id, r.other_id): r for r in found}


@pytest.fixture(scope="module")
def zoo() -> dict[str, Updates]:
    """Adapters of one base: 200 strangers before and some kin of one of them."""
    rng = np.random.default_rng(7)
    strangers = [pairs_of(rng, int(rng.integers(2, 7))) for _ in range(200)]
    one = strangers[17]
    gauge = rng.normal(size=(one[0][0].shape[0],) * 2) + 3 * np.eye(one[0][0].shape[0])
    return {
        **{f"s{i}": updates(pairs) for i, pairs in enumerate(strangers)},
        "again": updates(one),
        "gauge": updates([(gauge @ a, b @ np.linalg.inv(gauge)) for a, b in one]),
        "bf16": updates([(_cut(a), _cut(b)) for a, b in one]),
        "double": updates(one, 2.0),
        "minus": updates(one, -0.5),
        "near": updates(disturbed(rng, one, 0.983)),
        "sibling": updates(disturbed(rng, one, 0.974)),
        "cousin": updates(disturbed(rng, one, 0.9)),
        "merge": updates(summed((0.7, strangers[3]), (0.4, strangers[5]))),
        "payload": updates(summed((1.0, strangers[8]), (0.05, strangers[9]))),
        "three": updates(summed((0.5, strangers[30]), (0.5, strangers[31]), (0.5, strangers[32]))),
        "hidden": updates(disturbed(rng, summed((0.5, strangers[40]), (0.5, strangers[41])), 0.9)),
    }


def _cut(values: Any) -> Any:
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


KIN = {
    "again": "copy",
    "gauge": "copy",
    "bf16": "copy",
    "double": "scaled_copy",
    "minus": "scaled_copy",
    "near": "near_duplicate",
}


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_kin_is_found_and_nothing_else(
    zoo: dict[str, Updates], exact: bool, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lsh, "DIRECT_TARGETS", 10_000 if direct else 0)
    found = find_near_duplicates(table_of(zoo), zoo.get if exact else None)
    assert found.n_left == 0 and (found.n_exact > 0) == exact
    relations = by_pair(found.relations)
    of_one = {later: str(relations.pop((later, "s17")).kind) for later in KIN}
    assert of_one == KIN
    # The others are kin among themselves, and the merge with a small part is close to its large one.
    assert str(relations.pop(("payload", "s8")).kind) == "near_duplicate"
    assert all(later in KIN and earlier in KIN for later, earlier in relations)
    assert all(r.is_exact == exact for r in found.relations)
    assert exact or found.n_compared < len(zoo) ** 2


def test_coefficients_and_intervals(zoo: dict[str, Updates]) -> None:
    exact = by_pair(find_near_duplicates(table_of(zoo), zoo.get).relations)
    estimated = by_pair(find_near_duplicates(table_of(zoo)).relations)
    assert exact["double", "s17"].coefficient == pytest.approx(2)
    assert exact["minus", "s17"].coefficient == pytest.approx(-0.5)
    assert exact["minus", "s17"].cosine == pytest.approx(-1)
    assert exact["near", "s17"].residual == pytest.approx(math.sqrt(1 - 0.983**2), rel=1e-3)
    for pair, relation in estimated.items():
        assert relation.coefficient == pytest.approx(exact[pair].coefficient, rel=0.03)
        assert -1 <= relation.cosine_low <= relation.cosine <= relation.cosine_high <= 1
        assert exact[pair].cosine_low == exact[pair].cosine == exact[pair].cosine_high
    near = estimated["near", "s17"]
    assert near.cosine_low < 0.983 < near.cosine_high


def test_only_pairs_with_a_wanted_one(zoo: dict[str, Updates]) -> None:
    found = find_near_duplicates(table_of(zoo), wanted={"near", "s4"})
    assert found.relations and all("near" in (r.adapter_id, r.other_id) for r in found.relations)


def test_files_that_are_gone_leave_estimates(zoo: dict[str, Updates]) -> None:
    found = by_pair(find_near_duplicates(table_of(zoo), lambda i: None if i == "near" else zoo[i]).relations)
    assert not found["near", "s17"].is_exact and found["bf16", "s17"].is_exact


def test_equal_sketches_are_a_star_and_crowds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Re-uploads and siblings of one init do not cost a pair each, and what is left out is counted."""
    rng = np.random.default_rng(3)
    one = pairs_of(rng)
    clones = find_near_duplicates(table_of({f"c{i}": updates(one) for i in range(300)}))
    assert {(r.adapter_id, r.other_id) for r in clones.relations} == {(f"c{i}", "c0") for i in range(1, 300)}
    unit = (rng.normal(size=(1, 1024)) + 0.15 * rng.normal(size=(400, 1024))).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    everyone = np.ones(400, dtype=bool)
    whole = find_candidates(unit, everyone, 0.97)  # at cosines of about 0.978
    wanted = np.argwhere(np.triu(np.abs(unit @ unit.T) >= 0.97, 1))
    assert whole.n_left == 0 and whole.pairs.tolist() == wanted.tolist() and len(wanted) > 70_000
    monkeypatch.setattr(lsh, "MAX_BLOCK_PAIRS", 10_000)
    assert find_candidates(unit, everyone, 0.97).n_left > 0
    # No adapter keeps more than its closest ones.
    crowd = {f"c{i}": _sketch_of(vector) for i, vector in enumerate(unit[:100])}
    found = find_near_duplicates(SketchTable.of(crowd), threshold=0.95)
    later = [r.adapter_id for r in found.relations]
    assert max(map(later.count, later)) == relations.MAX_PER_ADAPTER and found.n_left > 0


def _sketch_of(vector: Any) -> WeightSketch:
    return WeightSketch(tuple(vector.tolist()), 1.0, 1024.0, "sketch-1")


def test_hashing_misses_as_seldom_as_it_says() -> None:
    """At a cosine where misses are frequent enough to be counted."""
    rng = np.random.default_rng(11)
    value, n = 0.92, 1500
    first, noise = rng.normal(size=(2, n, 1024))
    noise -= first * (np.sum(first * noise, axis=1) / np.sum(first * first, axis=1))[:, None]
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    unit = np.concatenate([first, value * first + math.sqrt(1 - value**2) * noise]).astype(np.float32)
    found = find_candidates(unit, np.ones(2 * n, dtype=bool), 0.9)
    missed = n - len(found.pairs)
    expected = n * miss_probability(value)
    assert 30 < expected < n / 10 and abs(missed - expected) < 5 * math.sqrt(expected)
    assert miss_probability(0.98) < 1e-6 and miss_probability(0.97) < 1e-4
    # Nearly all pairs of strangers are never compared.
    assert found.n_compared < 1e-3 * (2 * n) ** 2


@pytest.mark.parametrize("exact", [False, True])
def test_merges_are_found_with_their_weights(zoo: dict[str, Updates], exact: bool) -> None:
    found = find_merges(table_of(zoo), list(zoo), zoo.get if exact else None)
    assert found.n_left == 0
    weights: dict[str, dict[str, float]] = {}
    for relation in found.relations:
        assert relation.kind == "merge_part" and relation.is_exact == exact
        assert relation.residual < 1e-3
        weights.setdefault(relation.adapter_id, {})[relation.other_id] = relation.coefficient
    assert weights == {
        "merge": {"s3": pytest.approx(0.7, rel=1e-3), "s5": pytest.approx(0.4, rel=1e-3)},
        "payload": {"s8": pytest.approx(1, rel=1e-3), "s9": pytest.approx(0.05, rel=1e-3)},
        "three": {f"s{i}": pytest.approx(0.5, rel=1e-3) for i in (30, 31, 32)},
    }


def test_a_part_that_comes_after_its_merge(zoo: dict[str, Updates]) -> None:
    """X = (T − 0.4·Y) / 0.7: the sum is still called the merge."""
    table = table_of({name: found for name, found in zoo.items() if name != "s3"} | {"s3": zoo["s3"]})
    found = find_merges(table, ["s3"]).relations
    assert {(r.adapter_id, r.other_id) for r in found} == {("merge", "s3"), ("merge", "s5")}


def test_targets_beyond_the_limit_are_counted(zoo: dict[str, Updates], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merges, "MAX_PRODUCTS", 20 * len(zoo))
    assert find_merges(table_of(zoo), list(zoo)).n_left == len(zoo) - 20


def test_what_has_no_sketch_has_no_relations() -> None:
    a, b = np.ones((1, 4)), np.zeros((4, 1))
    nothing = measure_adapter([LowRankUpdate("m", 1, 4, 4, 1.0, lambda: (a, b))]).sketch
    old = WeightSketch((1.0,) * 1024, 32.0, 500.0, "sketch-0")
    table = SketchTable.of({"zero": nothing, "zero too": nothing, "old": old})
    assert table.ids == ()
    assert find_near_duplicates(table).relations == () and find_merges(table, ["zero"]).relations == ()


def test_interval_holds_what_it_says() -> None:
    """Of 2,000 Gaussian sketches at one cosine about 95 % of intervals hold it."""
    rng = np.random.default_rng(5)
    x, noise = rng.normal(size=(2, 2000, 300))
    y = 0.97 * x + math.sqrt(1 - 0.97**2) * noise
    found = np.sum(x * y, axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    inside = [low <= 0.97 <= high for low, high in (interval_of(float(c), 300) for c in found)]
    assert 0.93 < np.mean(inside) < 0.97


@pytest.mark.parametrize("combination", ["cat", "svd", "linear"])
def test_merges_that_peft_makes(combination: str, tmp_path: Path, save_peft: Callable[..., Any]) -> None:
    """`cat` and `svd` at full rank are sums of ΔW; `linear` adds the factors, which is another matrix."""
    from peft import LoraConfig

    def config() -> Any:
        return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"])

    model = save_peft(tmp_path / "one", config(), seed=1)
    save_peft(tmp_path / "two", config(), seed=2)
    save_peft(tmp_path / "stranger", config(), seed=3)
    model.load_adapter(str(tmp_path / "two"), "two")
    model.add_weighted_adapter(["default", "two"], [0.75, 0.5], "merged", combination_type=combination, svd_rank=8)
    model.save_pretrained(tmp_path / "merged", selected_adapters=["merged"])
    folders = {name: tmp_path / name for name in ("one", "two", "stranger")} | {"merged": tmp_path / "merged/merged"}
    adapters = {name: _read(folder) for name, folder in folders.items()}
    table = table_of(adapters)
    for load in (None, adapters.get):
        found = find_merges(table, ["merged"], load).relations
        weights = {(r.adapter_id, r.other_id): r.coefficient for r in found}
        if combination == "linear":
            assert weights == {}
            continue
        assert weights == {
            ("merged", "one"): pytest.approx(0.75, rel=1e-2),
            ("merged", "two"): pytest.approx(0.5, rel=1e-2),
        }
        assert all(r.residual < 1e-3 for r in found)


def test_trained_adapters_of_one_recipe_are_strangers_with_the_stated_error() -> None:
    """The bundled label-word classifiers: trained on one base with one recipe, from seeds of their own."""
    hub = Path(__file__).parents[3] / "examples" / "demo_hub"
    adapters = {}
    for path in sorted(hub.glob("*/*/adapter_config.json")):
        config = read_json_object(path, 2**20)
        if config.get("task_type") == "CAUSAL_LM" and (path.parent / "adapter_model.safetensors").exists():
            adapters[str(path.parent)] = _read(path.parent)
    adapters = {name: found for name, found in adapters.items() if measure_adapter(found).sketch.effective_size}
    assert len(adapters) > 20
    table = table_of(adapters)
    assert find_near_duplicates(table, adapters.get).relations == ()
    assert find_merges(table, table.ids, adapters.get).relations == ()
    unit = table.unit()
    errors = []
    for i, j in combinations(range(6), 2):
        exact = cosine(adapters[table.ids[i]], adapters[table.ids[j]])
        assert exact is not None
        size = min(table.sizes[i], table.sizes[j])
        errors.append((math.atanh(float(unit[i] @ unit[j])) - math.atanh(exact)) * math.sqrt(size))
    assert np.std(errors) < 1.2 and max(map(abs, errors)) < 4


def _read(folder: Path) -> Updates:
    path = folder / "adapter_model.safetensors"
    config = parse_config(read_json_object(folder / "adapter_config.json", 2**20))
    return view_adapter(open_weights([path], path.name), config, 256).updates
