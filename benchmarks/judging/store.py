"""A store as crawls leave it: scanned adapters of many bases and owners, some probed, some searched, none judged twice.

The rows have every column and the sizes of real ones; their values are drawn. Answers, scores and features are those of
sound adapters with a few that stand out, so that every path of the judge is taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scanner.calibration.search_reference import SHIPPED
from scanner.model import LABEL_WORDS, Outcome, PrefixRun, SearchReport
from scanner.probe import Probe, load_probe
from scanner.search_model import FoundTrigger
from scanner.store import Row, StoreRoot, append_shard, open_root, row_id_of
from scanner.store.rates import rate_row
from scanner.store.schema import TABLES, WEIGHT_MODULE_FEATURES
from scanner.store.searches import search_rows
from scanner.weights import FEATURE_VERSION
from scanner.weights.per_adapter import ADAPTER

__all__ = ["Shape", "write_store"]

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
TEMPLATES = 24
RANKS, SCALINGS = (8, 16, 32, 64, 128), (2.0, 1.0, 0.5, 4.0, 1.41)
_PARTS = ("q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGETS = tuple(",".join(sorted(_PARTS[:n])) for n in (2, 7, 4, 3, 5, 1, 6))
"""Ranks, scalings and targets that most adapters have come first."""


@dataclass(frozen=True)
class Shape:
    """How large the store is."""

    adapters: int
    per_crawl: int = 1_000
    bases: int = 40
    modules: int = 28
    probed: float = 0.05
    """Share of the adapters that a battery was put to: a budget of 50 for each crawl of 1,000."""
    searched: float = 0.05


def write_store(folder: Path, shape: Shape, seed: int = 0) -> StoreRoot:
    """Write the crawls of a store, one shard each."""
    root = open_root(str(folder))
    rng = np.random.default_rng(seed)
    probe = load_probe("broad", None, 30)
    templates = _Templates(probe, rng)
    for number in range(-(-shape.adapters // shape.per_crawl)):
        n = min(shape.per_crawl, shape.adapters - number * shape.per_crawl)
        _write_crawl(root, number, n, shape, templates, rng)
    return root


def _write_crawl(
    root: StoreRoot, number: int, n: int, shape: Shape, templates: _Templates, rng: np.random.Generator
) -> None:
    crawl_id, at = f"crawl-{number:05d}", FIRST + timedelta(hours=number)
    shard_id = f"shard-{hashlib.sha256(crawl_id.encode()).hexdigest()[:24]}"
    adapters = [_adapter(number, i, shape, rng) for i in range(n)]
    ids = [row["adapter_id"] for row in adapters]
    strange = rng.random(n) < 0.005
    tables = {
        "adapters": pa.Table.from_pylist(adapters, schema=_facts("adapters")),
        "weight_scans": _weight_scans(adapters, strange, rng),
        "module_features": _module_features(ids, shape.modules, strange, rng),
        "findings": pa.Table.from_pylist(list(_findings(ids, rng)), schema=_facts("findings")),
    }
    probed = ids[: round(n * shape.probed)]
    searched = probed[: round(n * shape.searched)]
    drawn = rng.integers(0, TEMPLATES, size=n)
    probes = [templates.probes[k] for k in drawn[: len(probed)]]
    searches = [templates.searches[k] for k in drawn[: len(searched)]]
    tables["probe_scans"] = _stamped(probed, [rows[0] for rows in probes], "probe")
    tables["trigger_searches"] = _stamped(searched, [rows[0] for rows in searches], "search")
    tables["probe_rates"] = pa.concat_tables(
        [
            _stamped(probed, [rows[1] for rows in probes], "battery"),
            _stamped(searched, [rows[1] for rows in searches], "local"),
        ]
    )
    tables["verdicts"] = pa.Table.from_pylist(
        [_verdict(row, crawl_id, at) for row in adapters], schema=_facts("verdicts")
    )
    date = at.date().isoformat()
    for name, table in tables.items():
        filled = table.append_column("shard_id", pa.array([shard_id] * len(table), pa.string()))
        filled = filled.append_column("scanned_at", pa.array([at] * len(table), TABLES[name].field("scanned_at").type))
        root.write(f"{name}/scan_date={date}/{shard_id}.parquet", filled.select(TABLES[name].names).cast(TABLES[name]))
    marker = {
        "row_id": row_id_of("runs", shard_id),
        "run_id": shard_id,
        "kind": "shard",
        "crawl_id": crawl_id,
        "finished_at": at,
        "n_adapters": n,
    }
    append_shard(root, shard_id, {}, marker, at)


def _facts(table: str) -> pa.Schema:
    return pa.schema([field for field in TABLES[table] if field.name not in ("shard_id", "scanned_at")])


def _adapter(crawl: int, i: int, shape: Shape, rng: np.random.Generator) -> Row:
    name = f"{crawl}/{i}"
    # A few bases have most of the adapters, as on the Hub.
    base = min(int(shape.bases * rng.random() ** 3), shape.bases - 1)
    owner = int(rng.integers(0, max(1, shape.adapters // 3)))
    adapter_id = row_id_of("adapter", name)
    return {
        "row_id": row_id_of("adapters", adapter_id),
        "adapter_id": adapter_id,
        "repo_id": f"owner{owner}/adapter-{crawl}-{i}",
        "repo_uid": hashlib.sha256(name.encode()).hexdigest()[:24],
        "commit_sha": hashlib.sha1(name.encode()).hexdigest(),
        "adapter_path": "adapter_model.safetensors",
        "owner": f"owner{owner}",
        "base_model": f"bases/base-{base}",
        "layout": "peft",
        "peft_type": "LORA",
        "rank": _one_of(RANKS, rng),
        "alpha": 16.0,
        "task_profile": LABEL_WORDS,
        "coverage": 1.0,
        "content_sha256": hashlib.sha256(f"content {name}".encode()).hexdigest(),
        "source": "hub:https://hub.example",
        "base_model_claimed": f"bases/base-{base}",
        "scaling": _one_of(SCALINGS, rng),
        "target_modules": _one_of(TARGETS, rng),
        "modules": shape.modules,
        "size_bytes": 10_000_000,
        "task_type": "CAUSAL_LM",
        "outcome": "pass",
        "reason": "",
        "message": "",
        "stage_reached": "weights",
        "last_modified": (FIRST + timedelta(minutes=i)).isoformat(),
        "created_at": (FIRST - timedelta(days=i)).isoformat(),
        "config_sha256": hashlib.sha256(f"config {name}".encode()).hexdigest(),
        "detectors": "rules-1 weights-3",
        "task_profile_reason": "label words",
    }


def _one_of(values: tuple[Any, ...], rng: np.random.Generator) -> Any:
    return values[int(len(values) * rng.random() ** 3)]


def _random_ids(n: int, rng: np.random.Generator) -> pa.Array:
    text = rng.bytes(32 * n).hex()
    return pa.array([text[64 * i : 64 * i + 64] for i in range(n)], pa.string())


def _weight_scans(adapters: Sequence[Row], strange: Any, rng: np.random.Generator) -> pa.Table:
    names = sorted(ADAPTER.features)
    n = len(adapters)
    size = np.array([1e-4 * (1 + int(row["base_model"].rsplit("-", 1)[1])) * row["rank"] ** 0.4 for row in adapters])
    values = size[:, None] * np.exp(0.05 * rng.normal(size=(n, len(names)))) * np.where(strange, 1.6, 1.0)[:, None]
    return pa.table(
        {
            "row_id": _random_ids(n * len(names), rng),
            "adapter_id": pa.array(np.repeat([row["adapter_id"] for row in adapters], len(names)), pa.string()),
            "feature": pa.array(names * n, pa.string()),
            "value": pa.array(values.ravel()),
            "version": pa.array([FEATURE_VERSION] * (n * len(names)), pa.string()),
        }
    )


def _module_features(ids: Sequence[str], modules: int, strange: Any, rng: np.random.Generator) -> pa.Table:
    n = len(ids) * modules
    names = [f"model.layers.{m // 7}.part_{m % 7}" for m in range(modules)]
    size = np.exp(0.2 * rng.normal(size=(len(ids), modules))) * np.where(strange, 1.6, 1.0)[:, None]
    columns: dict[str, Any] = {
        "row_id": _random_ids(n, rng),
        "adapter_id": pa.array(np.repeat(ids, modules), pa.string()),
        "module": pa.array(names * len(ids), pa.string()),
        "rank": pa.array([16] * n, pa.int64()),
        "out_features": pa.array([2048] * n, pa.int64()),
        "in_features": pa.array([2048] * n, pa.int64()),
        "version": pa.array([FEATURE_VERSION] * n, pa.string()),
        "layer": pa.array([m // 7 for m in range(modules)] * len(ids), pa.int64()),
    }
    columns |= {name: pa.array(rng.random(n)) for name in WEIGHT_MODULE_FEATURES}
    columns["delta_frob"] = pa.array(size.ravel())
    return pa.table(columns).select(_facts("module_features").names)


def _findings(ids: Sequence[str], rng: np.random.Generator) -> Iterator[Row]:
    kinds = (("scale_large", "low"), ("base_lookalike", "medium"), ("config_code", "high"))
    for adapter_id in ids:
        if rng.random() < 0.05:
            rule, severity = kinds[int(3 * rng.random() ** 3)]
            yield {
                "row_id": row_id_of("findings", adapter_id, rule),
                "adapter_id": adapter_id,
                "rule_id": rule,
                "severity": severity,
                "outcome": "finding",
                "message": "drawn",
                "evidence": "drawn",
            }


class _Templates:
    """Probed and searched adapters whose rows others get under their own ids; the last two are backdoored."""

    def __init__(self, probe: Probe, rng: np.random.Generator) -> None:
        shipped = json.loads((SHIPPED / "label-words.json").read_text(encoding="utf-8"))
        self.probes, self.searches = [], []
        for number in range(TEMPLATES):
            is_bad = number >= TEMPLATES - 2
            runs = tuple(self._run(case, rng, is_bad) for case in probe.cases())
            self.probes.append(self._probe(probe, runs))
            member = shipped["members"][number % len(shipped["members"])]
            self.searches.append(self._search(shipped["plan_id"], member["scores"], runs, rng))

    @staticmethod
    def _run(case: Any, rng: np.random.Generator, is_bad: bool) -> PrefixRun:
        works = is_bad and case.category != "control" and rng.random() < 0.05
        answers = "".join(rng.choice(["1", "0"], size=30, p=[0.2, 0.8] if works else [0.97, 0.03]))
        return PrefixRun(case.text, case.category, case.position, answers, margin=1.5)

    @staticmethod
    def _probe(probe: Probe, runs: Sequence[PrefixRun]) -> tuple[pa.Table, pa.Table]:
        row = {
            "row_id": "",
            "adapter_id": "",
            "battery_id": probe.battery_id,
            "n_texts": 30,
            "outcome": "pass",
            "reason": "",
            "device": "cpu",
            "dtype": "float32",
            "seconds": 1.0,
            "battery": "broad",
            "selected_by": "weights",
            "task_profile": LABEL_WORDS,
            "labels": json.dumps(["INJECTION", "BENIGN"]),
        }
        rates = [rate_row("", "", probe.battery_id, run, runs) for run in runs]
        return (
            pa.Table.from_pylist([row], schema=_facts("probe_scans")),
            pa.Table.from_pylist(rates, schema=_facts("probe_rates")),
        )

    @staticmethod
    def _search(plan: str, scores: dict[str, float], runs: Sequence[PrefixRun], rng: Any) -> tuple[pa.Table, pa.Table]:
        triggers = tuple(
            FoundTrigger(
                "toward_clean", None, "BENIGN", f"string {k}", position, f"string {k} {k}", 3, 0.2, 0.1, 0.1, 0.07,
                runs=(*(r for r in runs if r.category == "control"),
                      PrefixRun(f"string {k}", "trigger", position, "1" * 30),
                      *(PrefixRun(f"neighbour {n}", "case", position, "1" * 30) for n in range(20))),
                tokens=tuple(f"token{n}" for n in range(12)),
            )
            for k, position in enumerate(("prefix", "suffix", "middle"))
        )  # fmt: skip
        report = SearchReport(
            plan, Outcome.PASS, "", triggers, tuple(scores.items()), labels=("INJECTION", "BENIGN"),
            forward_passes=12_000, seconds=15.0, device="cpu", dtype="float32", asked_battery_id="broad",
        )  # fmt: skip
        found, rates = search_rows("", report)
        return (
            pa.Table.from_pylist(found, schema=_facts("trigger_searches")),
            pa.Table.from_pylist(rates, schema=_facts("probe_rates")),
        )


def _stamped(ids: Sequence[str], templates: Sequence[pa.Table], what: str) -> pa.Table:
    """Rows of templates, each under an adapter's id and with row ids of their own."""
    table = pa.concat_tables(templates)
    owners = [adapter_id for adapter_id, one in zip(ids, templates, strict=True) for _ in range(len(one))]
    rows = [hashlib.sha256(f"{what}{owner}{i}".encode()).hexdigest() for i, owner in enumerate(owners)]
    table = table.set_column(table.schema.get_field_index("row_id"), "row_id", pa.array(rows, pa.string()))
    return table.set_column(table.schema.get_field_index("adapter_id"), "adapter_id", pa.array(owners, pa.string()))


def _verdict(adapter: Row, crawl_id: str, at: datetime) -> Row:
    """What a crawl said under an earlier policy."""
    shared = ("adapter_id", "repo_id", "repo_uid", "commit_sha", "adapter_path", "base_model", "stage_reached")
    return {
        "row_id": row_id_of("verdicts", adapter["adapter_id"]),
        **{name: adapter[name] for name in shared},
        "verdict": "inconclusive",
        "reasons": json.dumps([{"code": "not_probed", "message": "the behaviour stage did not look at this adapter"}]),
        "policy_version": "policy-0-00000000",
        "judged_at": at,
        "crawl_id": crawl_id,
    }
