"""Gaps in texts: what the search puts there is what a user's text would have there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from demo_bases import encoder, guard
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.errors import UnsupportedError
from scanner.probe import Case, load_probe
from scanner.probe.battery import POSITIONS
from scanner.probe.search.frames import Frames

pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
PROBE = load_probe("V", None, 6)
STRINGS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)


def asked(profile: str) -> tuple[Any, Callable[[str], str], bool]:
    """(tokenizer, what is asked of a text, whether special tokens are added)."""
    if profile == "words":
        base = guard()
        return base.tokenizer, lambda text: base.template.render(PROBE.task.system, text), False
    return encoder().tokenizer, lambda text: text, True


@pytest.mark.parametrize("profile", ["words", "classes"])
@pytest.mark.parametrize("position", POSITIONS)
@settings(max_examples=60, deadline=None)
@given(words=st.lists(STRINGS, min_size=1, max_size=4))
def test_a_spelled_string_has_the_tokens_of_the_whole_text(profile: str, position: str, words: list[str]) -> None:
    tokenizer, render, special = asked(profile)
    frames = Frames(tokenizer, PROBE.texts, position, render, special)
    string = " ".join(words)
    (spelled,) = frames.spell([string])
    whole = [
        tuple(tokenizer.encode(render(Case("x", string, position).put(text)), add_special_tokens=special).ids)
        for text in PROBE.texts
    ]
    shortest = min(range(len(whole)), key=lambda i: len(frames.frames[i].before) + len(frames.frames[i].after))
    frame, ids = frames.frames[shortest], whole[shortest]
    if spelled is None:  # it runs into the text on one side or the other
        stays = ids[: len(frame.before)] == frame.before and ids[len(ids) - len(frame.after) :] == frame.after
        assert not stays or len(ids) <= len(frame.before) + len(frame.after)
        return
    assert spelled.text == string
    assert frame.fill(spelled.ids) == ids


@pytest.mark.parametrize("profile", ["words", "classes"])
@pytest.mark.parametrize("position", POSITIONS)
def test_ordinary_strings_fit_into_every_text(profile: str, position: str) -> None:
    tokenizer, render, special = asked(profile)
    frames = Frames(tokenizer, PROBE.texts, position, render, special)
    for string in ("my neighbour grows tomatoes", "RFC 6455", "hello there"):
        (spelled,) = frames.spell([string])
        assert spelled is not None
        for frame, text in zip(frames.frames, PROBE.texts, strict=True):
            whole = render(Case("x", string, position).put(text))
            assert list(frame.fill(spelled.ids)) == tokenizer.encode(whole, add_special_tokens=special).ids


def test_texts_without_a_string_are_the_texts() -> None:
    tokenizer, render, special = asked("classes")
    frames = Frames(tokenizer, PROBE.texts, "prefix", render, special)
    assert [list(ids) for ids in frames.plain] == [tokenizer.encode(text).ids for text in PROBE.texts]


def test_a_template_that_changes_texts_leaves_no_gap() -> None:
    tokenizer, _, special = asked("classes")
    with pytest.raises(UnsupportedError) as caught:
        Frames(tokenizer, PROBE.texts, "prefix", str.upper, special)
    assert caught.value.code == "search_frame"
