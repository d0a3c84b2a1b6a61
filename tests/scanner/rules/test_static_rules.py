"""Every static rule: its samples, the cases between them, and bounds on what it may say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scanner.rules as rules_package
from scanner.adapter import AdapterView, LowRankUpdate, parse_config
from scanner.model import Finding, ModuleFeatures, Severity, WeightScan
from scanner.rules import RULES, Hit, Rule, StaticFacts, check_static
from scanner.rules.check import MAX_FINDINGS_PER_RULE, MAX_TEXT
from scanner.rules.owners import copy_of, look_alike
from scanner.rules.registry import rule_plugins
from scanner.rules.samples import plain

UPDATE = LowRankUpdate("m", 4, 2, 2, 1.0, lambda: None)  # type: ignore[arg-type, return-value]  # never read here
WEIGHTS = "adapter_model.safetensors"


def facts(
    path: str = WEIGHTS, siblings: tuple[str, ...] = (), config: dict[str, Any] | None = None, **more: Any
) -> StaticFacts:
    return StaticFacts(path, siblings or (path,), parse_config(config) if config is not None else None, **more)


def ids(given_facts: StaticFacts) -> list[tuple[str, Severity]]:
    return [(finding.rule_id, finding.severity) for finding in check_static(given_facts)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_samples(rule: Rule) -> None:
    def own(given_facts: StaticFacts) -> list[Finding]:
        return [finding for finding in check_static(given_facts) if finding.rule_id == rule.id]

    found = own(rule.hostile())
    assert found
    assert found[0].severity == rule.severity
    assert found[0].message
    assert own(rule.benign()) == []


def test_the_plain_sample_raises_nothing() -> None:
    assert check_static(plain()) == ()


def test_every_rule_file_is_listed() -> None:
    folder = Path(rules_package.__file__).parent
    assert [f"{rule.id.lower()}_" for rule in RULES] == sorted(path.name[:6] for path in folder.glob("ls[0-9]*.py"))


def test_rules_are_complete_and_in_order() -> None:
    assert [rule.id for rule in RULES] == sorted({rule.id for rule in RULES})
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.meaning.endswith(".")
        assert rule.remediation.endswith(".")
        assert rule.name == rule.name.lower()


CASES: dict[str, tuple[StaticFacts, list[tuple[str, Severity]]]] = {
    "pickles beside": (facts(siblings=(WEIGHTS, "optimizer.pt")), [("LS002", Severity.LOW)]),
    "code": (facts(siblings=(WEIGHTS, "x/modeling_a.py")), [("LS003", Severity.MEDIUM)]),
    "an endpoint's handler": (facts(siblings=(WEIGHTS, "handler.py")), [("LS003", Severity.MEDIUM)]),
    "compiled code": (facts(siblings=(WEIGHTS, "a/kernel.so")), [("LS003", Severity.MEDIUM)]),
    "a training script": (facts(siblings=(WEIGHTS, "train.py")), [("LS003", Severity.LOW)]),
    "no mapping": (facts(config={"auto_mapping": None}), []),
    "look-alike library": (facts(config={"auto_mapping": {"parent_library": "peftx"}}), [("LS004", Severity.HIGH)]),
    "library is no text": (facts(config={"auto_mapping": {"parent_library": [1]}}), [("LS004", Severity.HIGH)]),
    "class is no name": (
        facts(config={"auto_mapping": {"parent_library": "transformers", "base_model_class": "__import__"}}),
        [("LS004", Severity.HIGH)],
    ),
    "megatron without its config": (facts(config={"megatron_core": "evil"}), [("LS013", Severity.MEDIUM)]),
    "megatron is no text": (facts(config={"megatron_core": ["x"], "megatron_config": 1}), [("LS013", Severity.HIGH)]),
    "base is a hub id": (facts(config={"base_model_name_or_path": "org/base-1.5B"}), []),
    "base is a legacy id": (facts(config={"base_model_name_or_path": "gpt2"}), []),
    "base climbs": (facts(config={"base_model_name_or_path": "../base"}), [("LS005", Severity.LOW)]),
    "a branch": (facts(config={"revision": "dev"}), [("LS014", Severity.LOW)]),
    "a commit": (facts(config={"revision": "a" * 40}), [("LS014", Severity.INFO)]),
    "a copy of a well-known base": (
        facts(config={"base_model_name_or_path": "acme/Llama-3.1-8B"}),
        [("LS015", Severity.LOW)],
    ),
    "Cyrillic owner": (
        facts(config={"base_model_name_or_path": "mеta-llama/Llama-3.1-8B"}),
        [("LS015", Severity.HIGH), ("LS005", Severity.LOW)],
    ),
    "another file": (
        facts(config={"peft_type": "PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "x.bin"}),
        [("LS016", Severity.MEDIUM)],
    ),
    "the base is rewritten": (
        facts(config={"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"}),
        [("LS016", Severity.LOW)],
    ),
    "an archive": (facts(siblings=(WEIGHTS, "data.tar.gz")), [("LS017", Severity.LOW)]),
    "a shell script": (facts(siblings=(WEIGHTS, "run.sh")), [("LS017", Severity.LOW)]),
    "nested auto_map": (
        facts(texts={"sub/config.json": '{"text_config": {"auto_map": {"AutoConfig": "x--y.Z"}}}'}),
        [("LS012", Severity.HIGH)],
    ),
    "trust is off": (facts(texts={"config.json": '{"trust_remote_code": false}'}), []),
    "no JSON": (facts(texts={"config.json": "{"}), []),
    "unreadable layout is no rule's business": (facts(view=AdapterView("unknown", (), unexplained=("w",))), []),
    "heads": (facts(config={"task_type": "CAUSAL_LM", "modules_to_save": ["lm_head"]}), [("LS024", Severity.MEDIUM)]),
    "an unknown PEFT type": (facts(config={"peft_type": "XYZ"}), [("LS029", Severity.LOW)]),
    "MLX may write what it likes": (facts(config={"model": "org/base", "iters": 5}), []),
    "safetensors called bin": (
        facts("adapter_model.bin", format="safetensors"),
        [("LS001", Severity.MEDIUM), ("LS032", Severity.LOW)],
    ),
    "two formats at once": (facts(has_zip_tail=True), [("LS032", Severity.HIGH)]),
    "empty repo": (facts(""), []),
}


@pytest.mark.parametrize("name", CASES)
def test_between_the_samples(name: str) -> None:
    given_facts, wanted = CASES[name]
    assert ids(given_facts) == wanted


def scanned(energies: list[float], rank: int = 8, outputs: int = 512, name: str = "layers.{}.q_proj") -> WeightScan:
    return WeightScan(
        {},
        tuple(
            ModuleFeatures(
                name.format(n),
                rank,
                outputs,
                64,
                {"frobN": 1.0, "delta_frob": 1.0, "row_top8_energy": e, "top1_energy": e},
            )
            for n, e in enumerate(energies)
        ),
        "weights",
    )


def test_one_concentrated_module_needs_siblings_and_half_of_its_update() -> None:
    assert ids(facts(weights=scanned([0.05] * 11 + [0.9]))) == [("LS034", Severity.MEDIUM)]
    assert ids(facts(weights=scanned([0.05] * 5 + [0.9]))) == []  # too few to compare with
    assert ids(facts(weights=scanned([0.05] * 11 + [0.4]))) == []  # an outlier, but spread over many rows
    assert ids(facts(weights=scanned([0.9] * 12, outputs=16))) == [("LS028", Severity.MEDIUM)]  # few outputs at all


def test_rank_one_everywhere_is_no_surprise_where_the_rank_is_one() -> None:
    assert ids(facts(weights=scanned([1.0] * 12, rank=1, outputs=32))) == []


@pytest.mark.parametrize(
    ("owner", "known"),
    [
        ("meta-Ilama", "meta-llama"), ("Qvven", "Qwen"), ("mistralai-official", "mistralai"),
        ("mistral-ai", "mistralai"), ("microsofft", "microsoft"), ("deepseekai", "deepseek-ai"),
        ("googie", "google"), ("rnicrosoft", "microsoft"),
    ],
)  # fmt: skip
def test_look_alike_owners(owner: str, known: str) -> None:
    assert look_alike(owner) == known


@pytest.mark.parametrize(
    "owner",
    [
        "meta-llama",
        "Qwen",
        "qwen",
        "acme",
        "unsloth",
        "fastino",
        "NovaSearch",
        "ai4bharat",
        "cyberagent",
        "bert",
        "Qwen2-fans",
    ],
)
def test_other_owners_are_left_alone(owner: str) -> None:
    assert look_alike(owner) is None


def test_copies_of_well_known_models() -> None:
    assert copy_of("acme/Qwen2.5-7B") == "Qwen"
    assert copy_of("Qwen/Qwen2.5-7B") is None
    assert copy_of("acme/support-bot") is None
    assert copy_of("gpt2") is None


def test_severest_first() -> None:
    found = ids(
        facts(
            "adapter_model.bin",
            ("adapter_model.bin", "b.pkl", "modeling_x.py"),
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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)
FIELDS = (
    "auto_mapping", "base_model_name_or_path", "megatron_core", "megatron_config", "revision", "corda_config",
    "peft_type", "modules_to_save", "init_lora_weights", "task_type", "r", "lora_alpha",
    "tokenizer_name_or_path", "auto_map",
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(FIELDS), json_values | st.dictionaries(st.just("parent_library"), json_values)),
    st.lists(st.text(max_size=12), max_size=4),
    st.dictionaries(
        st.sampled_from(["README.md", "config.json", "chat_template.jinja", "tokenizer_config.json"]), st.text()
    ),
)
@settings(deadline=None)
def test_no_config_no_name_and_no_text_breaks_a_rule(
    config: dict[str, Any], names: list[str], texts: dict[str, str]
) -> None:
    check_static(facts(siblings=tuple(names), config=config, texts=texts))


def make_rule(check: Callable[[StaticFacts], Any], rule_id: str = "ACME001") -> Rule:
    from scanner.rules import Confidence

    return replace(RULES[0], id=rule_id, name="acme", check=check, confidence=Confidence.LOW)


@pytest.fixture
def install(install_plugins: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Install a package with these rules."""

    def install(**values: str) -> None:
        install_plugins("lorascope.rules", **values)
        rule_plugins.cache_clear()

    yield install
    rule_plugins.cache_clear()


ACME = make_rule(lambda facts: [Hit("acme speaks", facts.path, Severity.HIGH)])
TAKEN = make_rule(lambda _: [], "LS001")


def test_rules_of_other_packages(install: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    here = __name__
    install(good=f"{here}:ACME", taken=f"{here}:TAKEN", gone="no_such_module:RULE", odd=f"{here}:WEIGHTS")
    with caplog.at_level(logging.WARNING):
        plugins = rule_plugins()
    assert [rule.id for rule in plugins] == ["ACME001"]
    warnings = "\n".join(record.getMessage() for record in caplog.records)
    assert all(name in warnings for name in ("LS001", "gone", "odd"))
    assert [(f.rule_id, f.severity) for f in check_static(facts(), plugins)] == [("ACME001", Severity.HIGH)]


def test_a_broken_rule_of_another_package_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: StaticFacts) -> Any:
        raise RuntimeError("boom")

    with caplog.at_level(logging.WARNING):
        found = check_static(facts(siblings=(WEIGHTS, "run.sh")), (make_rule(broken),))
    assert [finding.rule_id for finding in found] == ["LS017"]
    assert "ACME001" in caplog.text
    assert "boom" in caplog.text
