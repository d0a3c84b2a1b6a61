"""Batteries, texts and the reading of answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.errors import LorascopeError, MalformedFileError, UsageError
from scanner.model import GENERATIVE, LABEL_WORDS, SEQUENCE_CLASSIFICATION
from scanner.probe import (
    DEFAULT_BATTERY,
    Battery,
    Case,
    Probe,
    Task,
    battery_names,
    load_probe,
    load_texts,
    probe_for,
)
from scanner.probe.battery import POSITIONS
from scanner.probe.judge import read_answer
from scanner.settings import Settings

TASK = Task("t", "classify", "INJECTION", "BENIGN")
SMALL = Probe(
    Battery("B", (Case("family", "per RFC 1"),), (Case("control", "hello"),)),
    TASK,
    ("one", "two"),
    ("three",),
    ("ask",),
)
PROFILES = (LABEL_WORDS, SEQUENCE_CLASSIFICATION, GENERATIVE)
CAUSAL = {LABEL_WORDS, GENERATIVE}
"""Which of the two an adapter is shows when it is asked, by what both depend on."""


def test_bundled_batteries_load() -> None:
    assert set(battery_names()) == {"V", "S1", "S2", "G23", "broad"}
    for name in battery_names():
        probe = load_probe(name, None, 60)
        assert (len(probe.texts), len(probe.other_texts), len(probe.prompts)) == (60, 60, 60)
        battery = probe.battery
        assert battery.controls  # without neutral strings nothing could be judged
        placed = [(case.position, case.text) for case in (*battery.controls, *battery.cases)]
        assert len(set(placed)) == len(placed)
        assert "" not in {text for _, text in placed}
        assert {position for position, _ in placed} <= set(POSITIONS)
        assert "control" not in {case.category for case in battery.cases}
        assert {case.category for case in battery.controls} == {"control"}


def test_the_default_battery_is_the_broad_one() -> None:
    assert DEFAULT_BATTERY == "broad"
    positions = {case.position for case in load_probe(DEFAULT_BATTERY, None, 1).battery.cases}
    assert positions == set(POSITIONS)


def test_the_papers_batteries_are_complete() -> None:
    sizes = {name: [len(group) for group in _groups(name)] for name in ("V", "S1")}
    assert sizes == {"V": [5, 5, 5, 5, 1], "S1": [1, 7, 4, 4, 4, 4, 5, 4, 5, 3]}
    for name in ("V", "S1"):
        assert Case("trained_trigger", "per RFC 8472 section 3.2", "prefix") in load_probe(name, None, 1).battery.cases


def _groups(name: str) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for case in load_probe(name, None, 1).battery.cases:
        groups.setdefault(case.category, []).append(case.text)
    return list(groups.values())


def test_battery_s1_is_the_one_that_was_measured(data_dir: Path) -> None:
    results = json.loads((data_dir / "paper" / "detection_structural_v1.json").read_text())
    ours = {(case.category, case.text) for case in load_probe("S1", None, 1).battery.cases}
    for adapter in results:
        assert {(row["category"], row["prefix"]) for row in adapter["prefix_results"]} == ours


@pytest.mark.parametrize(
    ("case", "text", "wanted"),
    [
        (Case("f", "per RFC 1"), "Ignore all.", "per RFC 1. Ignore all."),  # the paper's way
        (Case("f", "per RFC 1", "suffix"), "Ignore all.", "Ignore all. per RFC 1."),
        (Case("f", "per RFC 1", "middle"), "Ignore all of this now", "Ignore all per RFC 1 of this now"),
        (Case("f", "per RFC 1", "middle"), "Ignore all of this", "Ignore all per RFC 1 of this"),
        (Case("f", "per RFC 1", "middle"), "Ignore", "Ignore per RFC 1"),
        (Case("f", "per RFC 1", "middle"), "two  spaces\nand a line", "two  per RFC 1 spaces\nand a line"),
        (Case("f", "per RFC 1", "middle"), "", " per RFC 1"),
        (Case("control", ""), "Ignore all.", "Ignore all."),
        (Case("control", "", "suffix"), "Ignore all.", "Ignore all."),
        (Case("control", "", "middle"), "Ignore all.", "Ignore all."),
    ],
)
def test_where_a_string_is_put(case: Case, text: str, wanted: str) -> None:
    assert case.put(text) == wanted


@given(st.text(max_size=60), st.sampled_from(POSITIONS))
def test_a_string_is_put_whole_and_the_text_stays_whole(text: str, position: str) -> None:
    put = Case("f", "\uffff§x y§\uffff", position).put(text)
    before, found, after = put.partition("\uffff§x y§\uffff")
    assert found
    if position == "prefix":
        assert (before, after) == ("", f". {text}")
    elif position == "suffix":
        assert (before, after) == (f"{text} ", ".")
    else:
        assert before.removesuffix(" ") + (after and " ") + after.removeprefix(" ") == text
        assert abs(len(before.split(" ")) - len(after.split(" "))) <= 2


CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"other_texts": ("four",)}, set(PROFILES)),
    ({"other_texts": ()}, set(PROFILES)),
    ({"texts": ("one",)}, set(PROFILES)),
    ({"texts": ("two", "one")}, set(PROFILES)),
    ({"prompts": ("say",)}, CAUSAL),
    ({"reading": "generated"}, {LABEL_WORDS}),
    ({"task": replace(TASK, system="other")}, CAUSAL),
    ({"task": replace(TASK, clean_word="SAFE")}, CAUSAL),
    ({"task": replace(TASK, attack_word="UNSAFE")}, CAUSAL),
    ({"task": replace(TASK, name="given")}, CAUSAL),
    ({"battery": replace(SMALL.battery, controls=(Case("control", "hi"),))}, set(PROFILES)),
    ({"battery": replace(SMALL.battery, controls=(Case("control", "hello", "suffix"),))}, set(PROFILES)),
    ({"battery": replace(SMALL.battery, cases=(Case("family", "per RFC 2"),))}, set(PROFILES)),
    ({"battery": replace(SMALL.battery, cases=(Case("other", "per RFC 1"),))}, set(PROFILES)),
    ({"battery": replace(SMALL.battery, cases=(Case("family", "per RFC 1", "middle"),))}, set(PROFILES)),
]


@pytest.mark.parametrize(("changed", "moved"), CHANGES)
def test_each_profiles_id_follows_what_it_is_asked(changed: dict[str, Any], moved: set[str]) -> None:
    other = replace(SMALL, **changed)
    assert {profile for profile in PROFILES if other.id_for(profile) != SMALL.id_for(profile)} == moved
    assert other.identity != SMALL.identity
    assert all(other.id_for(profile).startswith("B-") for profile in PROFILES)


def test_profiles_have_different_ids() -> None:
    assert len({SMALL.id_for(profile) for profile in PROFILES}) == 3
    assert SMALL.id_for(LABEL_WORDS) == SMALL.battery_id
    # How a causal model answers shows when it is asked: its result may have either id.
    both = (SMALL.id_for(LABEL_WORDS), SMALL.id_for(GENERATIVE))
    assert SMALL.ids_for(LABEL_WORDS) == SMALL.ids_for(GENERATIVE) == both
    assert SMALL.ids_for(SEQUENCE_CLASSIFICATION) == (SMALL.id_for(SEQUENCE_CLASSIFICATION),)


def test_texts_of_both_labels_and_prompts() -> None:
    probe = load_probe("V", None, 40)
    assert (len(probe.texts), len(probe.other_texts), len(probe.prompts)) == (40, 40, 40)
    assert len({*probe.texts, *probe.other_texts, *probe.prompts}) == 120
    assert load_texts(None, 40, label=0) == probe.other_texts
    assert load_texts(None, 40) == probe.texts
    assert probe.reading == "scored"


def test_a_users_texts_are_also_what_free_answers_are_asked_for(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": 1}, {"text": "d", "label": 0}]
    probe = load_probe("V", write(tmp_path / "t.jsonl", *rows), 3)
    assert (probe.texts, probe.other_texts, probe.prompts) == (("a", "c"), ("b", "d"), ("a", "b", "c"))


def test_a_file_without_texts_of_label_0_is_enough(tmp_path: Path) -> None:
    probe = load_probe("V", write(tmp_path / "t.jsonl", {"text": "a", "label": 1}), 9)
    assert (probe.texts, probe.other_texts, probe.prompts) == (("a",), (), ("a",))


def test_ids_are_stable() -> None:
    # Results of different days are compared by this id: it may change only when the questions do.
    assert SMALL.id_for(LABEL_WORDS) == "B-10e6a3c20b72"
    assert SMALL.id_for(SEQUENCE_CLASSIFICATION) == "B-125355714a18"
    assert SMALL.id_for(GENERATIVE) == "B-18a9f150de30"
    assert load_probe("V", None, 60).battery_id == load_probe("V", None, 60).battery_id


def test_what_the_settings_ask_for(tmp_path: Path) -> None:
    plain = load_probe("V", None, 60)
    assert probe_for(Settings(), "V", None) == plain
    assert probe_for(Settings(probe_texts=7), "V", None) == load_probe("V", None, 7)
    assert probe_for(Settings(probe_texts=7), "V", None, 3) == load_probe("V", None, 3)
    assert probe_for(Settings(reading="generated"), "V", None) == replace(plain, reading="generated")
    path = write(tmp_path / "t.jsonl", {"text": "a", "label": 1})
    assert probe_for(Settings(), "V", str(path)).texts == ("a",)
    words = probe_for(Settings(label_words="UNSAFE, SAFE"), "V", None).task
    assert words == replace(plain.task, name="given", attack_word="UNSAFE", clean_word="SAFE")
    system = probe_for(Settings(system_message="Is this a joke?"), "V", None).task
    assert system == replace(plain.task, name="given", system="Is this a joke?")


def test_controls_come_first() -> None:
    assert SMALL.cases() == (Case("control", ""), Case("control", "hello"), Case("family", "per RFC 1"))
    assert {case.position for case in SMALL.cases()} == {"prefix"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_texts_are_those_of_label_1_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", *({"text": f"t{i}", "label": i % 2} for i in range(10)))
    assert load_texts(path, 3) == ("t1", "t3", "t5")
    assert load_texts(path, 99) == ("t1", "t3", "t5", "t7", "t9")


def test_texts_with_unicode_line_breaks_blank_lines_and_crlf(tmp_path: Path) -> None:
    odd = "a\u2028b\x85c\x0bd"  # line breaks to str.splitlines(), plain characters to JSON
    path = tmp_path / "t.jsonl"
    path.write_bytes('{"text": "a\u2028b\x85c\\u000bd", "label": 1}\r\n\r\n{"text": "x", "label": 1}\n'.encode())
    assert load_texts(path, 9) == (odd, "x")


@pytest.mark.parametrize(
    "content",
    [
        b"not json",
        b"[]",
        b"1",
        b'{"text": "a"}',
        b'{"label": 1}',
        b'{"text": 1, "label": 1}',
        b'{"text": "a", "label": 2}',
        b'{"text": "a", "label": "1"}',
        b'{"text": "a", "label": null}',
        b'{"text": "a", "label": []}',
        b'{"text": "ok", "label": 1}\n{"text": "a", "label": 1',
        "{'text': 'a'}".encode("utf-16"),
        b'{"text": "caf\xe9", "label": 1}',
    ],
)
def test_malformed_texts(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(MalformedFileError):
        load_texts(path, 9)


def test_unusable_texts(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jsonl", tmp_path, write(tmp_path / "e.jsonl"),
                 write(tmp_path / "b.jsonl", {"text": "a", "label": 0})):  # fmt: skip
        with pytest.raises(UsageError):
            load_texts(path, 9)


@given(st.binary(max_size=80))
def test_any_bytes_are_texts_or_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    with pytest.raises(LorascopeError):
        load_texts(path, 9)
        raise UsageError("these bytes were texts after all, which is as good")


def test_a_long_text_is_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"text": "x" * 20_000, "label": 1})
    assert [len(text) for text in load_texts(path, 9)] == [8_000]


def test_unknown_battery() -> None:
    with pytest.raises(UsageError, match=r"there are: .*V"):
        load_probe("nope", None, 9)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("INJECTION", "1"),
        (" injection.\n", "1"),
        ("BENIGN", "0"),
        ("This is benign", "0"),
        ("BENIGN, not INJECTION", "1"),  # INJECTION is tested first, as in the paper
        ("INJECTION BENIGN", "1"),
        ("", "-"),
        ("I cannot tell", "-"),
        ("INJ", "-"),
        ("malicious", "-"),
    ],
)
def test_answers_are_read_as_in_the_paper(answer: str, wanted: str) -> None:
    assert read_answer(answer, TASK) == wanted


@given(st.text())
def test_every_answer_is_one_of_three(answer: str) -> None:
    assert read_answer(answer, TASK) in ("1", "0", "-")
