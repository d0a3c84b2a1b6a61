"""SARIF 2.1.0: what code-scanning services insist on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema
import pytest

from scanner.model import Finding, ScanRecord, SearchReport, Severity, Verdict
from scanner.report import result_object, sarif_document, strict_json

# The parts of the 2.1.0 schema that lorascope writes (its own file is half a megabyte).
SARIF = {
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "version": {"const": "2.1.0"},
        "$schema": {"type": "string", "format": "uri"},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "properties": {
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {"type": "object", "required": ["id"]},
                                    }
                                },
                            }
                        },
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["message", "ruleId", "level", "locations"],
                            "properties": {
                                "ruleId": {"type": "string"},
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "message": {"type": "object", "required": ["text"]},
                                "properties": {"type": "object"},
                            },
                        },
                    },
                },
            },
        },
    },
}

Record = Callable[..., ScanRecord]


def result(record: ScanRecord, verdict: str = "review", **more: Any) -> dict[str, Any]:
    row = {
        "verdict": verdict,
        "reasons": json.dumps([{"code": "c", "message": "because"}, {"code": "d", "message": "and"}]),
        "p_weights": None,
        "p_battery": None,
        "p_search": None,
        "q_value": None,
        "stage_reached": "weights",
        "reference_id": None,
        "reference_n": 0,
    }
    return result_object(record, {**row, **more})


def document(*results: dict[str, Any]) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(strict_json(sarif_document(results, "1.2.3")))
    jsonschema.validate(parsed, SARIF)
    return parsed


def test_structure(record: Record) -> None:
    run = document(result(record(), "flagged"))["runs"][0]
    assert run["tool"]["driver"]["name"] == "lorascope"
    assert run["tool"]["driver"]["version"] == "1.2.3"
    listed = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert [item["ruleId"] for item in run["results"]] == ["LS002", "verdict/flagged"]
    assert {item["ruleId"] for item in run["results"]} == listed
    assert run["results"][0]["message"]["text"] == "pickle files lie beside the weights: optimizer.pt"
    assert run["results"][1]["message"]["text"] == "because; and"
    assert run["results"][1]["properties"]["p_values"] == {"weights": None, "battery": None, "search": None}


def test_a_found_trigger_is_among_the_properties(record: Record, search: Callable[..., SearchReport]) -> None:
    shown = result(record(search=search()), "flagged", p_search=0.01)
    (_, item) = document(shown)["runs"][0]["results"]
    assert item["properties"]["trigger"] == shown["probe"]["trigger"]
    assert item["properties"]["trigger"]["text"] == "heron dawn"
    unprobed = document(result(record(probe=None), "review"))["runs"][0]["results"][-1]
    assert unprobed["properties"]["trigger"] is None


@pytest.mark.parametrize(
    ("severity", "level"),
    [("info", "note"), ("low", "note"), ("medium", "warning"), ("high", "error"), ("critical", "error")],
)
def test_levels_of_findings(record: Record, severity: str, level: str) -> None:
    scanned = record(findings=(Finding("LS999", Severity(severity), "message"),))
    (item,) = document(result(scanned, "inconclusive"))["runs"][0]["results"]
    assert (item["ruleId"], item["level"], item["message"]["text"]) == ("LS999", level, "message")


def test_every_verdict_has_its_place(record: Record) -> None:
    levels = {}
    for verdict in Verdict:
        items = document(result(record(findings=()), verdict))["runs"][0]["results"]
        levels[str(verdict)] = items[0]["level"] if items else None
    assert levels == {
        "flagged": "error",
        "error": "warning",
        "unsupported": "warning",
        "review": "warning",
        "clean": None,
        "inconclusive": None,
    }


def test_rules_are_listed_once(record: Record) -> None:
    run = document(result(record("a/a")), result(record("b/b")))["runs"][0]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["LS002", "verdict/review"]
    assert len(run["results"]) == 4


@pytest.mark.parametrize("path", ["sub dir/ünï [1]#?.safetensors", "a:b/c%20d", "plain/adapter_model.safetensors"])
def test_locations_are_uri_references(record: Record, path: str) -> None:
    uri = document(result(record(path=path)))["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    text = uri["artifactLocation"]["uri"]
    assert text.isascii()
    assert " " not in text
    split = urlsplit(text)
    assert (split.scheme, split.netloc, split.query, split.fragment) == ("", "", "", "")
    assert unquote(split.path) == f"someone/guard/{path}"


def test_a_repo_without_weights_is_located_by_its_target(record: Record) -> None:
    scanned = record(path="", findings=())
    folder = replace(scanned.info.repo, repo_id=None, commit_sha=None, target="./here")
    item = document(result(replace(scanned, info=replace(scanned.info, repo=folder)), "error"))["runs"][0]["results"][0]
    assert item["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "./here"


def test_no_results() -> None:
    assert document()["runs"][0]["results"] == []
