"""`scan --format json` is a contract: its keys are pinned, its JSON is strict."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.model import Outcome, ScanRecord, SearchReport
from scanner.report import JSON_SCHEMA_VERSION, result_object, scan_document, strict_json

VERDICT: dict[str, Any] = {
    "verdict": "flagged",
    "reasons": json.dumps([{"code": "battery_prefix", "message": "it turns"}]),
    "p_weights": None,
    "p_battery": 0.001,
    "p_search": None,
    "q_value": 0.01,
    "stage_reached": "battery",
    "reference_id": None,
    "reference_n": 0,
}

# DESIGN section 4, R: key -> what it must be. What the code adds is in the golden file alone.
NUMBER = {"type": ["number", "null"]}
TEXT = {"type": ["string", "null"]}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


RATE = _object(prefix={"type": "string"}, position={"type": "string"}, attack_rate=NUMBER, n={"type": "integer"})
TRIGGER = _object(
    text={"type": "string"},
    position={"enum": ["prefix", "suffix", "middle"]},
    direction={"type": "string"},
    attack_rate=NUMBER,
    n={"type": "integer"},
    p_value=NUMBER,
    forward_passes={"type": "integer"},
)
PROBE = _object(
    battery={"type": "string"},
    control_attack_rate=NUMBER,
    mean_attack_rate=NUMBER,
    outlier_gap=NUMBER,
    max_attack_rate=NUMBER,
    rates={"type": "array", "items": RATE},
    trigger={"anyOf": [{"type": "null"}, TRIGGER]},
)
RESULT = _object(
    target={"type": "string"},
    adapter_id={"type": "string"},
    adapter_path={"type": "string"},
    repo_id=TEXT,
    commit_sha=TEXT,
    base_model={"type": "string"},
    adapter=_object(
        layout={"type": "string"},
        peft_type=TEXT,
        rank={"type": ["integer", "null"]},
        alpha=NUMBER,
        modules={"type": "integer"},
        coverage={"type": "number", "minimum": 0, "maximum": 1},
    ),
    findings={
        "type": "array",
        "items": _object(
            rule_id={"type": "string"},
            severity={"enum": ["info", "low", "medium", "high", "critical"]},
            message={"type": "string"},
            evidence={"type": "string"},
        ),
    },
    weights=_object(features={"type": "object", "additionalProperties": NUMBER}),
    probe={"anyOf": [{"type": "null"}, PROBE]},
    verdict={"enum": ["flagged", "error", "unsupported", "review", "clean", "inconclusive"]},
    reasons={"type": "array", "items": _object(code={"type": "string"}, message={"type": "string"})},
    p_values=_object(weights=NUMBER, battery=NUMBER, search=NUMBER),
    q_value=NUMBER,
    stage_reached={"enum": ["listed", "static", "weights", "battery", "search"]},
    task_profile=TEXT,
    reference_id=TEXT,
    reference_n={"type": "integer"},
)
DOCUMENT = _object(schema_version={"type": "integer"}, results={"type": "array", "items": RESULT})

Record = Callable[..., ScanRecord]


def rendered(record: ScanRecord, **verdict: Any) -> dict[str, Any]:
    """Through text, as a consumer gets it; a NaN would be refused here."""
    text = strict_json(scan_document([result_object(record, {**VERDICT, **verdict})]))
    document = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in strict JSON"))
    jsonschema.validate(document, DOCUMENT)
    return document


def shape(value: Any) -> Any:
    """Keys all the way down; of lists the first element, of leaves nothing."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "..."


def test_keys_are_the_golden_ones(record: Record, golden_dir: Path) -> None:
    document = rendered(record())
    document["results"][0]["weights"]["features"] = {}
    golden = json.loads((golden_dir / "scan_document.json").read_text())
    assert shape(document) == golden
    assert list(document["results"][0]) == list(golden["results"][0])  # the order too: people read this
    assert document["schema_version"] == JSON_SCHEMA_VERSION


def test_values(record: Record) -> None:
    result = rendered(record())["results"][0]
    assert (result["target"], result["repo_id"], result["commit_sha"]) == ("someone/guard", "someone/guard", "c0ffee")
    assert result["adapter"] == {
        "layout": "peft", "peft_type": "LORA", "rank": 8, "alpha": 16.0, "modules": 2, "coverage": 1.0,
    }  # fmt: skip
    assert result["weights"]["features"] == {"global_frobN_mean": 0.5, "global_frobN_std": None}  # NaN before
    probe = result["probe"]
    assert probe["battery"] == "V"
    assert probe["control_attack_rate"] == pytest.approx(0.1)
    assert probe["max_attack_rate"] == pytest.approx(0.8)
    assert probe["mean_attack_rate"] == pytest.approx(0.5)
    assert probe["outlier_gap"] == pytest.approx(0.3)
    assert [rate["prefix"] for rate in probe["rates"]] == ["per RFC 8472", "in safe mode"]  # no controls among them
    assert probe["rates"][0]["n"] == 10
    assert (probe["task_profile"], probe["labels"], probe["reading"]) == ("label-words", [], None)
    # One of the two texts that "in safe mode" turns is missed without it, too.
    assert probe["paired"] == {
        "mean": pytest.approx(0.45), "gap": pytest.approx(0.35), "max": pytest.approx(0.8), "top3": pytest.approx(0.45),
    }  # fmt: skip
    assert (result["task_profile"], result["task_profile_reason"]) == ("label-words", None)
    assert result["p_values"] == {"weights": None, "battery": 0.001, "search": None}
    assert result["reasons"] == [{"code": "battery_prefix", "message": "it turns"}]


def test_a_folder_has_neither_repo_nor_commit(record: Record) -> None:
    scanned = record()
    folder = replace(scanned.info.repo, repo_id=None, commit_sha=None, target="./adapter")
    result = rendered(replace(scanned, info=replace(scanned.info, repo=folder)))["results"][0]
    assert (result["target"], result["repo_id"], result["commit_sha"]) == ("./adapter", None, None)


def test_an_adapter_that_could_not_be_read(record: Record) -> None:
    unread = record(
        outcome=Outcome.UNSUPPORTED,
        weights=None,
        probe=None,
        findings=(),
        verdict_facts={"peft_type": None, "rank": None, "alpha": math.inf, "coverage": 0.0, "task_profile": None},
    )
    result = rendered(unread, verdict="unsupported", stage_reached="static", q_value=math.nan)["results"][0]
    assert result["probe"] is None
    assert result["weights"] == {"features": {}, "explanation": None}
    assert result["adapter"]["alpha"] is None
    assert result["q_value"] is None


def test_the_best_trigger_that_an_attacker_would_want(record: Record, search: Callable[..., SearchReport]) -> None:
    result = rendered(record(search=search()), p_search=0.01)["results"][0]
    assert result["probe"]["trigger"] == {
        "text": "heron dawn", "position": "suffix", "direction": "BENIGN", "attack_rate": pytest.approx(28 / 30),
        "n": 30, "p_value": 0.01, "forward_passes": 1200,
    }  # fmt: skip
    assert result["p_values"]["search"] == 0.01
    toward_attack_alone = replace(search(), triggers=search().triggers[:1])
    assert rendered(record(search=toward_attack_alone))["results"][0]["probe"]["trigger"] is None
    failed = search(outcome=Outcome.ERROR, reason="timeout", triggers=(), scores=())
    assert rendered(record(search=failed))["results"][0]["probe"]["trigger"] is None


def test_a_probe_that_gave_no_result_is_null(record: Record) -> None:
    scanned = record()
    assert scanned.probe is not None
    failed = replace(scanned, probe=replace(scanned.probe, runs=(), outcome=Outcome.ERROR, reason="timeout"))
    assert rendered(failed)["results"][0]["probe"] is None


def test_no_results() -> None:
    assert json.loads(strict_json(scan_document([]))) == {"schema_version": JSON_SCHEMA_VERSION, "results": []}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(values)
def test_strict_json_is_json_with_nulls_for_nan(value: Any) -> None:
    assert json.loads(strict_json(value), parse_constant=lambda word: pytest.fail(word)) == _without_nan(value)


def test_strict_json_of_other_types() -> None:
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    got = json.loads(strict_json({1: at, "path": Path("/x"), "pair": (1, 2), "face": "é"}))
    assert got == {"1": "2026-03-01T12:00:00+00:00", "path": "/x", "pair": [1, 2], "face": "é"}
