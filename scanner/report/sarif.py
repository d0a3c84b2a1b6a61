"""SARIF 2.1.0: one result per static finding, and one per verdict that asks for attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

__all__ = ["sarif_document"]

_LEVELS = {"critical": "error", "high": "error", "medium": "warning", "low": "note", "info": "note"}
_VERDICT_LEVELS = {"flagged": "error", "error": "warning", "unsupported": "warning", "review": "warning"}


def sarif_document(results: Sequence[dict[str, Any]], version: str) -> dict[str, Any]:
    """Build the document from contract objects (`scanner.report.contract.result_object`)."""
    found: list[dict[str, Any]] = []
    rules: dict[str, dict[str, Any]] = {}
    for result in results:
        where = result["adapter_path"] or result["target"]
        place = f"{result['repo_id']}/{where}" if result["repo_id"] else where
        location = [{"physicalLocation": {"artifactLocation": {"uri": quote(place.replace("\\", "/"))}}}]
        properties = {"adapter_id": result["adapter_id"], "base_model": result["base_model"]}
        for finding in result["findings"]:
            rules.setdefault(finding["rule_id"], {"id": finding["rule_id"]})
            found.append(
                {
                    "ruleId": finding["rule_id"],
                    "level": _LEVELS[finding["severity"]],
                    "message": {"text": f"{finding['message']}: {finding['evidence']}".rstrip(": ")},
                    "locations": location,
                    "properties": properties,
                }
            )
        level = _VERDICT_LEVELS.get(result["verdict"])
        if level:
            rule = f"verdict/{result['verdict']}"
            rules.setdefault(rule, {"id": rule})
            text = "; ".join(reason["message"] for reason in result["reasons"]) or result["verdict"]
            found.append(
                {
                    "ruleId": rule,
                    "level": level,
                    "message": {"text": text},
                    "locations": location,
                    "properties": {
                        **properties,
                        "p_values": result["p_values"],
                        "q_value": result["q_value"],
                        "trigger": result["probe"]["trigger"] if result["probe"] else None,
                    },
                }
            )
    driver = {"name": "lorascope", "version": version, "rules": [rules[name] for name in sorted(rules)]}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": found}],
    }
