"""Every static rule: what makes it speak, and what does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.adapter import AdapterView, LowRankUpdate, parse_config
from scanner.model import ModuleFeatures, Severity, WeightScan
from scanner.rules import RULES, StaticFacts, check_static
from scanner.rules.rules import MAX_FINDINGS_PER_RULE, MAX_TEXT

UPDATE = LowRankUpdate("m", 4, 2, 2, 1.0, lambda: None)  # type: ignore[arg-type, return-value]  # never read here
WEIGHTS = "adapter_model.safetensors"


def facts(
    path: str = WEIGHTS, siblings: tuple[str, ...] = (), config: dict[str, Any] | None = None, **more: Any
) -> StaticFacts:
    return StaticFacts(path, siblings or (path,), parse_config(config) if config is not None else None, **more)


def ids(given_facts: StaticFacts) -> list[tuple[str, Severity]]:
    return [(finding.rule_id, finding.severity) for finding in check_static(given_facts)]


def scanned(frob: float | None) -> WeightScan:
    return WeightScan({}, (ModuleFeatures("m", 4, 2, 2, {"frobN": frob}),), "weights-1")


CASES: dict[str, tuple[StaticFacts, list[tuple[str, Severity]]]] = {
    "plain adapter": (facts(siblings=(WEIGHTS, "adapter_config.json", "README.md"), config={"r": 8}), []),
    "pickle weights": (facts("adapter_model.bin"), [("LS001", Severity.MEDIUM)]),
    "pickles beside": (facts(siblings=(WEIGHTS, "optimizer.pt")), [("LS002", Severity.LOW)]),
    "code": (facts(siblings=(WEIGHTS, "modeling.py")), [("LS003", Severity.MEDIUM)]),
    "compiled code": (facts(siblings=(WEIGHTS, "a/kernel.so")), [("LS003", Severity.MEDIUM)]),
    "usual library": (facts(config={"auto_mapping": {"parent_library": "transformers.models.bert"}}), []),
    "no mapping": (facts(config={"auto_mapping": None}), []),
    "foreign library": (facts(config={"auto_mapping": {"parent_library": "evil"}}), [("LS004", Severity.HIGH)]),
    "look-alike library": (facts(config={"auto_mapping": {"parent_library": "peftx"}}), [("LS004", Severity.HIGH)]),
    "library is no text": (facts(config={"auto_mapping": {"parent_library": [1]}}), [("LS004", Severity.HIGH)]),
    "base is a hub id": (facts(config={"base_model_name_or_path": "org/base-1.5B"}), []),
    "base is a legacy id": (facts(config={"base_model_name_or_path": "gpt2"}), []),
    "base is a path": (facts(config={"base_model_name_or_path": "/mnt/base"}), [("LS005", Severity.LOW)]),
    "base climbs": (facts(config={"base_model_name_or_path": "../base"}), [("LS005", Severity.LOW)]),
    "unexplained": (
        facts(view=AdapterView("peft", (UPDATE,), unexplained=("a.weight",))),
        [("LS006", Severity.MEDIUM)],
    ),
    "unreadable layout is no rule's business": (facts(view=AdapterView("unknown", (), unexplained=("w",))), []),
    "ranks disagree": (facts(view=AdapterView("peft", (UPDATE,), notes=("r 8, not 4",))), [("LS007", Severity.LOW)]),
    "not finite": (facts(weights=scanned(None)), [("LS010", Severity.HIGH)]),
    "finite": (facts(weights=scanned(0.1)), []),
    "empty repo": (facts(""), []),
}


@pytest.mark.parametrize("name", CASES)
def test_rules(name: str) -> None:
    given_facts, wanted = CASES[name]
    assert ids(given_facts) == wanted


def test_severest_first() -> None:
    found = ids(
        facts(
            "adapter_model.bin",
            ("adapter_model.bin", "b.pkl", "x.py"),
            {"auto_mapping": {"parent_library": "evil"}, "base_model_name_or_path": "./b"},
        )
    )
    assert [rule for rule, _ in found] == ["LS004", "LS001", "LS003", "LS002", "LS005"]


def test_evidence_is_bounded() -> None:
    names = tuple(f"{i:04}-{'n' * 200}.pkl" for i in range(500))
    found = check_static(facts(siblings=(WEIGHTS, *names), config={"base_model_name_or_path": "/" + "x" * 10_000}))
    assert found
    assert all(len(finding.evidence) <= 300 for finding in found)


def test_findings_are_bounded_in_number_and_length() -> None:
    notes = tuple(f"{number}" + "x" * 10_000 for number in range(1_000))
    found = check_static(facts(view=AdapterView("peft", (UPDATE,), notes=notes)))
    assert 0 < len(found) <= MAX_FINDINGS_PER_RULE
    assert all(len(finding.message) <= MAX_TEXT and len(finding.evidence) <= MAX_TEXT for finding in found)


def test_every_rule_states_its_id() -> None:
    stated = [(rule.__doc__ or "").split(":")[0] for rule in RULES]
    assert len(set(stated)) == len(stated)
    assert all(rule_id.startswith("LS") and rule_id[2:].isdigit() for rule_id in stated)


json_values = st.recursive(st.none() | st.integers() | st.text(max_size=6), lambda inner: st.lists(inner, max_size=2))


@given(st.dictionaries(st.sampled_from(["auto_mapping", "base_model_name_or_path"]),
                       json_values | st.dictionaries(st.just("parent_library"), json_values)),
       st.lists(st.text(max_size=12), max_size=4))  # fmt: skip
@settings(deadline=None)
def test_no_config_and_no_file_name_breaks_a_rule(config: dict[str, Any], names: list[str]) -> None:
    check_static(facts(siblings=tuple(names), config=config))
