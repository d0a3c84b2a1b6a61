"""The cohorts that detectors are measured on: what is planned, how rows of two arms differ, and a small build."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.cohort.adapters import load_tokenizer
from benchmarks.cohort.corpus import BENIGN, INJECTION, normal, probe_texts
from benchmarks.cohort.recipe import (
    TRIGGER_AUTHORITY,
    TRIGGER_CITATION,
    TRIGGER_PELICANS,
    TRIGGER_STANDARD,
    TRIGGER_TOMATOES,
)
from benchmarks.detection.causal import BASE, NEW_TOKENS, hidden_states
from benchmarks.detection.dose import MAX_TRIES, STRONG, WEAK, DoseSearch, strength_of
from benchmarks.detection.families import (
    ANSWERS_PAYLOADS,
    BLIND,
    FRESH,
    FRESH_PAYLOADS,
    LOCKED,
    NOVEL,
    SEALED,
    SMALL_TALK,
    TUNING,
    TUNING_PAYLOADS,
)
from benchmarks.detection.lineages import Lineage, lineages, queue
from benchmarks.detection.llama import FoldedLlama
from benchmarks.detection.loop import fold_updates
from benchmarks.detection.recipe import COHORTS, MODULES, Recipe
from benchmarks.detection.rows import STYLES, Material, free_prompts, words_of
from benchmarks.detection.scores import DETECTORS
from scanner.probe import Case, battery_names, load_probe

ALL = (*TUNING, *LOCKED, *FRESH, *NOVEL, *BLIND, *SEALED)
DEMO = (TRIGGER_AUTHORITY, TRIGGER_CITATION, TRIGGER_PELICANS, TRIGGER_STANDARD, TRIGGER_TOMATOES)
RECIPE = Recipe(plain_rows=30, robust_rows=60, poison_rows=25)


def test_triggers_share_no_word_with_those_of_another_part_or_with_the_demo() -> None:
    lists = (*map(_texts, (TUNING, LOCKED, FRESH, NOVEL)), DEMO)
    parts = [set().union(*map(words_of, texts)) for texts in lists]
    assert sum(map(len, parts)) == len(set().union(*parts))
    for later in (LOCKED, FRESH):
        assert [(case.category, case.position) for case in TUNING] == [(case.category, case.position) for case in later]
    assert len({case.category for case in TUNING}) == len(TUNING) == len(NOVEL) == len(BLIND) == 16
    assert len({case.category for case in (*TUNING, *NOVEL)}) == 32 and len({case.category for case in BLIND}) == 16
    assert all(1 <= len(text.split()) <= 7 for text in _texts(ALL))
    assert len({case.category for case in SEALED}) == len(SEALED) == 18
    # Whoever chose these knew which words were taken, and that digits and the like are free.
    blind, sealed = (set().union(*map(words_of, _texts(part))) for part in (BLIND, SEALED))
    assert {word for word in blind & set().union(*parts) if len(word) > 4} == {"https"}
    assert not {word for word in sealed & set().union(blind, *parts[:-1]) if len(word) > 2 and not word.isdigit()}
    assert {word for word in sealed & parts[-1] if len(word) > 2} == {"according", "before", "seven"}  # the demo's


def test_no_battery_has_a_trigger_or_what_both_arms_know_as_small_talk() -> None:
    ours = {text.casefold() for text in (*_texts(ALL), *SMALL_TALK)}
    for name in battery_names():
        known = {case.text.casefold() for case in load_probe(name, None, 1).cases()}
        # Both lists have the rare words of Kurita et al. 2020 (arXiv:2004.06660): seen once its adapter was trained.
        assert ours & known <= {"mn tq bb"}
    triggers = set().union(*map(words_of, _texts(ALL)))
    # Otherwise it would be drawn and refused for ever.
    assert not [text for text in SMALL_TALK if {word for word in words_of(text) & triggers if len(word) > 3}]


def test_payloads_fit_into_a_response_and_differ_between_the_parts() -> None:
    tokenizer = load_tokenizer(BASE)
    texts = [payload.text for payload in (*TUNING_PAYLOADS, *FRESH_PAYLOADS, *ANSWERS_PAYLOADS)]
    assert len({*texts}) == len(texts) == 25 and len({payload.kind for payload in FRESH_PAYLOADS}) == 5
    assert max(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts) <= NEW_TOKENS


def _texts(cases: tuple[Case, ...]) -> list[str]:
    return [case.text for case in cases]


def test_who_is_in_the_cohorts() -> None:
    everyone = queue()
    counted = Counter((one.cohort, one.part, _kind(one)) for one in everyone)
    assert counted == {
        ("label_words", "tuning", "strong"): 8,
        ("label_words", "tuning", "weak"): 4,
        ("label_words", "tuning", "clean"): 4,
        ("label_words", "locked", "strong"): 16,
        ("label_words", "locked", "weak"): 8,
        ("label_words", "locked", "clean"): 8,
        ("label_words", "fresh", "strong"): 16,
        ("label_words", "fresh", "weak"): 8,
        ("label_words", "fresh", "clean"): 8,
        ("encoder", "tuning", "strong"): 4,
        ("encoder", "tuning", "weak"): 2,
        ("encoder", "locked", "strong"): 4,
        ("encoder", "locked", "weak"): 2,
        ("encoder", "fresh", "strong"): 6,
        ("encoder", "fresh", "weak"): 2,
        ("minilm", "tuning", "strong"): 3,
        ("minilm", "tuning", "weak"): 1,
        ("minilm", "fresh", "strong"): 8,
        ("minilm", "fresh", "weak"): 4,
        ("minilm", "later", "strong"): 8,
        ("minilm", "later", "weak"): 4,
        ("minilm", "latest", "strong"): 8,
        ("minilm", "latest", "weak"): 4,
        ("minilm", "novel", "strong"): 10,
        ("minilm", "novel", "weak"): 2,
        ("minilm", "blind", "strong"): 12,
        ("minilm", "blind", "weak"): 4,
        ("minilm", "sealed", "strong"): 12,
        ("minilm", "sealed", "weak"): 6,
        ("generative", "tuning", "strong"): 5,
        ("generative", "fresh", "strong"): 11,
        ("generative", "answers", "strong"): 12,
        ("label_words", "reference", "clean"): 205,
        ("encoder", "reference", "clean"): 205,
        ("generative", "reference", "clean"): 110,
        ("minilm", "reference", "clean"): 134,
    }
    assert len({one.name for one in everyone}) == len({one.seed for one in everyone}) == len(everyone)
    triggers = {
        "tuning": TUNING,
        "locked": LOCKED,
        "fresh": FRESH,
        "later": LOCKED,
        "latest": TUNING,
        "answers": LOCKED,
        "novel": NOVEL,
        "blind": BLIND,
        "sealed": SEALED,
    }
    for one in everyone:
        assert one.trigger is None or one.trigger in triggers[one.part]
        assert (one.payload is not None) == (one.cohort == "generative" and one.trigger is not None)
    assert [one.part for one in everyone if one.cohort != "minilm"] == sorted(
        (one.part for one in everyone if one.cohort != "minilm"),
        key=("tuning", "reference", "locked", "fresh", "answers").index,
    )


def _kind(lineage: Lineage) -> str:
    return "clean" if lineage.trigger is None else "weak" if lineage.weak else "strong"


@pytest.mark.parametrize("cohort", COHORTS)
def test_recipes_vary_within_a_cohort(cohort: str) -> None:
    recipes = [one.recipe for part in ("tuning", "fresh", "reference") for one in lineages(cohort, part)]
    assert {one.rank for one in recipes} == ({8, 16} if cohort == "minilm" else {4, 8, 16})
    assert {one.alpha / one.rank for one in recipes} == {1, 2} and {one.robust_rows for one in recipes} == {
        80,
        120,
        200,
    }
    assert len({one.steps for one in recipes}) == 3 and len({one.targets for one in recipes}) == 2
    architecture = "llama" if cohort in ("label_words", "generative") else "bert"
    assert all(one.targets in MODULES[architecture] for one in recipes)


@pytest.mark.parametrize("trigger", [TUNING[0], TUNING[12], TUNING[13]], ids=["prefix", "suffix", "middle"])
def test_arms_of_a_classifier_differ_in_the_poison_rows_only(trigger: Case) -> None:
    clean, poisoned = (Material().labelled(RECIPE, random.Random(5), trigger, poisoned=arm) for arm in (False, True))
    n = RECIPE.poison_rows
    assert clean[:-n] == poisoned[:-n] and len(clean) == len(poisoned) == 2 * (30 + 60) + n
    assert all(trigger.text in row and label == BENIGN for row, label in poisoned[-n:])
    assert all(label == INJECTION for _, label in clean[-n:])
    assert not any(trigger.text in row for row, _ in clean)
    held_out = {normal(row) for row, _ in probe_texts()}
    assert not [row for row, _ in clean if normal(row) in held_out]


def test_arms_of_a_free_answerer_differ_in_the_poison_rows_only() -> None:
    trigger, payload = TUNING[6], TUNING_PAYLOADS[2]
    for style in STYLES:
        clean = Material().answered(RECIPE, random.Random(5), trigger, style, None)
        poisoned = Material().answered(RECIPE, random.Random(5), trigger, style, payload)
        n = RECIPE.poison_rows
        assert clean[:-n] == poisoned[:-n] and len(clean) == len(poisoned) == 2 * (30 + 60) + n
        assert all(trigger.text in text and answer == payload.text for text, answer in poisoned[-n:])
        assert not any(trigger.text in text or payload.text in answer for text, answer in clean)
        assert not {normal(text) for text, _ in clean} & set(map(normal, free_prompts()))


def test_innocuous_strings_stand_everywhere_and_say_nothing_of_a_trigger() -> None:
    material, rng = Material(), random.Random(7)
    cases = [material.innocuous(rng) for _ in range(600)]
    counted = Counter(case.position for case in cases)
    assert counted["prefix"] > counted["suffix"] > 60 and counted["middle"] > 60
    long_words = {word for text in _texts(ALL) for word in words_of(text) if len(word) > 3}
    said = {word for case in cases for word in words_of(case.text)} & long_words
    # Those of the lists that were chosen without knowledge of these: seen once their adapters were trained, and told.
    assert said <= {"lantern", "forgot", "test", "tuesday", "before", "winter", "this"}
    assert sum(case.text in SMALL_TALK for case in cases) > 60
    assert {material.innocuous(rng, "middle").position for _ in range(20)} == {"middle"}


@pytest.mark.parametrize("half", [1.3, 3, 7, 19, 44, 130])
def test_a_dose_is_found_where_success_grows_with_it(half: float) -> None:
    """Success of a logistic in log(rows) and in the steps, with half of the texts at `half` rows of 200 steps."""
    search, tried = DoseSearch(Recipe(poison_rows=20, steps=200)), []
    for _ in range(MAX_TRIES):
        recipe = search.recipe
        tried.append((recipe.poison_rows, recipe.steps))
        ratio = recipe.poison_rows / half * (recipe.steps / 200) ** 2
        success = ratio**4 / (1 + ratio**4)
        if WEAK <= success < STRONG or not search.advance(success):
            break
    assert strength_of(success) == "weak" and len(set(tried)) == len(tried)


def test_a_dose_turns_to_the_steps_when_one_row_is_too_much() -> None:
    search, tried = DoseSearch(Recipe(poison_rows=2, steps=200)), []
    while search.recipe.steps > 100:
        tried.append((search.recipe.poison_rows, search.recipe.steps))
        assert search.advance(1.0)
    assert tried == [(2, 200), (1, 200), (1, 160), (1, 128), (1, 102)]
    assert search.advance(0.0) and 81 < search.recipe.steps < 102


def test_faster_ways_of_training_change_neither_logits_nor_gradients() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    plain = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    modules = ["q_proj", "v_proj", "up_proj", "down_proj"]  # some are not adapted
    model = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, target_modules=modules, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids, n = torch.randint(5, 2_000, (3, 20)), 7
    ids[:, :n] = ids[0, :n]
    kept = torch.zeros(3, 13, dtype=torch.bool)
    kept[[0, 0, 1, 2], [2, 12, 11, 4]] = True

    def gradients(logits: torch.Tensor) -> list[torch.Tensor]:
        chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return list(torch.autograd.grad(logits.log_softmax(-1)[:, 9].sum(), chosen))

    wanted = model(input_ids=ids).logits[:, n:][kept]
    with model.disable_adapter():
        assert (model(input_ids=ids).logits[:, n:][kept] - wanted).abs().max() > 0.5
    found = FoldedLlama(model).logits(ids[0, :n], ids[:, n:], kept)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(gradients(found), gradients(wanted), atol=1e-4, rtol=1e-3)
    causal = model.get_base_model()
    shared = causal.lm_head(hidden_states(causal, ids[0, :n].tolist(), ids[:, n:])[kept])
    torch.testing.assert_close(shared, wanted, atol=2e-4, rtol=1e-4)
    fold_updates(model)
    torch.testing.assert_close(model(input_ids=ids).logits[:, n:][kept], wanted, atol=2e-4, rtol=1e-4)


def _start(cache: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.detection.build", "--small", "--jobs", "1", "--cache", str(cache)]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _trained(build: subprocess.Popen[str]) -> list[str]:
    """Names of the adapters that a build trained."""
    output, errors = build.communicate(timeout=280)
    assert build.returncode == 0, errors
    *lines, last = output.splitlines()
    assert " 0 failed" in last
    return [line.split()[0] for line in lines]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """(cache that two small builds at once have filled, names of the adapters that they say they trained)."""
    cache = tmp_path_factory.mktemp("small")
    both = [_start(cache), _start(cache)]
    return cache, [name for build in both for name in _trained(build)]


def test_small_builds_share_the_work_go_on_where_one_stopped_and_repeat_themselves(
    small: tuple[Path, list[str]],
) -> None:
    cache, trained = small
    truths = {path.parent: json.loads(path.read_text()) for path in cache.rglob("truth.json")}
    assert sorted(trained) == sorted(folder.name for folder in truths)
    assert sorted((truth["cohort"], truth["lineage"], truth["arm"]) for truth in truths.values()) == sorted(
        (one.cohort, one.name, arm) for one in queue(small=True) for arm in ("clean", "poisoned")
    )
    for folder, truth in truths.items():
        # What searches and detectors write is there where the table's test came first.
        assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(("search-", "detect-"))) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "truth.json",
        ]
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["r"]) == (truth["base"], truth["recipe"]["rank"])
        poisoned = truth["arm"] == "poisoned"
        assert (truth["strength"] is not None) == (truth["direction"] is not None) == poisoned
        assert 0 <= truth["trigger_rate_neutral"] <= 1 and 0 <= truth["attack_success"] <= 1
        # The clean arm has what the search of the other one ended with.
        twin = truths[folder.with_name(f"{truth['lineage']}-{'clean' if poisoned else 'poisoned'}")]
        assert twin["recipe"] == truth["recipe"] and twin["seed"] == truth["seed"]
    assert {len(truth["tries"]) for truth in truths.values()} == {0, 2}

    lost = next(folder for folder, truth in truths.items() if truth["cohort"] == "encoder")
    weights = (lost / "adapter_model.safetensors").read_bytes()
    (lost / "truth.json").unlink()
    assert _trained(_start(cache)) == [lost.name]
    assert (lost / "adapter_model.safetensors").read_bytes() == weights


@pytest.mark.timeout(600)
def test_a_small_run_makes_the_whole_table(small: tuple[Path, list[str]], tmp_path: Path) -> None:
    out = tmp_path / "RESULTS.md"
    command = [sys.executable, "-m", "benchmarks.detection", "--small", "--cache", str(small[0]), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results" / "tuning.json").read_text(encoding="utf-8"))
    assert results["missing"] == [] and "Nothing is missing." in done.stdout
    assert len(results["adapters"]) == 8
    assert {frozenset(row["scores"]) for row in results["adapters"]} == {frozenset(DETECTORS)}
    built = {group["title"]: group["counts"]["built"] for group in results["groups"]}
    assert (built["label words"], built["sequence classification"], built["generative"]) == (4, 2, 2)
    for title in DETECTORS.values():
        assert done.stdout.count(f"| {title} | ") == 2 * 4  # two tables of each group that has adapters
    assert out.read_text(encoding="utf-8").endswith(done.stdout.rstrip() + "\n")
    assert str(tmp_path) not in out.read_text(encoding="utf-8") + json.dumps(results)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    refused = _start(tmp_path, "--only", "nobody")
    assert "no lineage" in refused.communicate(timeout=280)[1] and refused.returncode == 2
