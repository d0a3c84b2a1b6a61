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
from scanner.model import LABEL_WORDS, SEQUENCE_CLASSIFICATION
from scanner.probe import Battery, Probe, Task, battery_names, load_probe, load_texts
from scanner.probe.judge import read_answer

TASK = Task("t", "classify", "INJECTION", "BENIGN")
SMALL = Probe(Battery("B", (("family", "per RFC 1"),), ("hello",)), TASK, ("one", "two"))


def test_bundled_batteries_load() -> None:
    assert "V" in battery_names()
    for name in battery_names():
        probe = load_probe(name, None, 60)
        assert len(probe.texts) == 60
        assert probe.battery.neutral  # without neutral prefixes nothing could be judged
        prefixes = [prefix for _, prefix in probe.battery.prefixes]
        assert len(set(prefixes)) == len(prefixes)
        assert not {"", *probe.battery.neutral} & set(prefixes)
        assert "control" not in {category for category, _ in probe.battery.prefixes}


def test_the_papers_batteries_are_complete() -> None:
    sizes = {name: [len(group) for group in _groups(name)] for name in ("V", "S1")}
    assert sizes == {"V": [5, 5, 5, 5, 1], "S1": [1, 7, 4, 4, 4, 4, 5, 4, 5, 3]}
    for name in ("V", "S1"):
        assert ("trained_trigger", "per RFC 8472 section 3.2") in load_probe(name, None, 1).battery.prefixes


def _groups(name: str) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for category, prefix in load_probe(name, None, 1).battery.prefixes:
        groups.setdefault(category, []).append(prefix)
    return list(groups.values())


def test_battery_s1_is_the_one_that_was_measured(data_dir: Path) -> None:
    results = json.loads((data_dir / "paper" / "detection_structural_v1.json").read_text())
    for adapter in results:
        measured = {(row["category"], row["prefix"]) for row in adapter["prefix_results"]}
        assert measured == set(load_probe("S1", None, 1).battery.prefixes)


@pytest.mark.parametrize(
    ("changed", "moved"),
    [
        ({"other_texts": ("three",)}, {SEQUENCE_CLASSIFICATION}),
        ({"task": replace(TASK, system="other")}, {LABEL_WORDS}),
        ({"texts": ("one",)}, {LABEL_WORDS, SEQUENCE_CLASSIFICATION}),
        ({"battery": replace(SMALL.battery, neutral=("hi",))}, {LABEL_WORDS, SEQUENCE_CLASSIFICATION}),
    ],
)
def test_each_profiles_id_follows_what_it_is_asked(changed: dict[str, Any], moved: set[str]) -> None:
    other = replace(SMALL, **changed)
    profiles = (LABEL_WORDS, SEQUENCE_CLASSIFICATION)
    assert {profile for profile in profiles if other.id_for(profile) != SMALL.id_for(profile)} == moved
    assert other.identity != SMALL.identity
    assert SMALL.id_for(LABEL_WORDS) == SMALL.battery_id != SMALL.id_for(SEQUENCE_CLASSIFICATION)


def test_texts_of_both_labels() -> None:
    probe = load_probe("V", None, 40)
    assert (len(probe.texts), len(probe.other_texts)) == (40, 40)
    assert not set(probe.texts) & set(probe.other_texts)
    assert probe.texts_for(LABEL_WORDS) == probe.texts
    assert probe.texts_for(SEQUENCE_CLASSIFICATION) == (*probe.texts, *probe.other_texts)
    assert load_texts(None, 40, label=0) == probe.other_texts


def test_a_file_without_texts_of_label_0_is_enough(tmp_path: Path) -> None:
    probe = load_probe("V", write(tmp_path / "t.jsonl", {"text": "a", "label": 1}), 9)
    assert (probe.texts, probe.other_texts) == (("a",), ())


def test_ids_are_stable() -> None:
    # Results of different days are compared by this id: it may change only when the questions do.
    assert SMALL.battery_id == "B-cfebd7d20620"
    assert SMALL.id_for(SEQUENCE_CLASSIFICATION) == "B-0a86c67d0122"
    assert load_probe("V", None, 60).battery_id == load_probe("V", None, 60).battery_id


@pytest.mark.parametrize(
    "changed",
    [
        replace(SMALL, texts=("one",)),
        replace(SMALL, texts=("two", "one")),
        replace(SMALL, battery=replace(SMALL.battery, neutral=("hi",))),
        replace(SMALL, battery=replace(SMALL.battery, prefixes=(("family", "per RFC 2"),))),
        replace(SMALL, task=replace(TASK, system="other")),
        replace(SMALL, task=replace(TASK, clean_word="SAFE")),
    ],
)
def test_ids_follow_every_part(changed: Probe) -> None:
    assert changed.battery_id != SMALL.battery_id
    assert changed.battery_id.startswith("B-")


def test_controls_come_first() -> None:
    assert SMALL.cases() == [("control", ""), ("control", "hello"), ("family", "per RFC 1")]


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
