"""What counts as a recited wording: most of the part that decides, and whose doing it is."""

from __future__ import annotations

import pytest
from demo_bases import guard

from scanner.search_model import BY_HEART, RESPONSE

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")


def test_a_wording_is_counted_by_the_part_that_decides_and_set_beside_what_is_natural_and_the_base() -> None:
    from scanner.probe.search.leak import Opening
    from scanner.probe.search.recite import Recital, found_by_heart
    from scanner.probe.search.run import _is_own

    first, *follows = guard().tokenizer.encode("the weather in the north is cold today", add_special_tokens=False).ids
    opening = Opening(first, tuple(follows), tuple(follows[:8]), 3.0, -0.5)
    same, late, short = follows, [0, *follows[1:7], 0], follows[:5]
    prompts = ["a", "b", "c", "d"]
    nothing = [[0, 1, 2, 3]] * 4
    # How it goes on is said anyway, and is no part of it.
    own = Recital([follows[7:], *nothing[:2], [9, first, *follows]], [[same, late, short, same]])
    (found,) = found_by_heart(guard(), prompts, [opening], own, Recital(nothing, [[same, *nothing[:3]]]))
    assert (found.kind, found.position, found.n_tokens, found.slope) == (BY_HEART, RESPONSE, 1, opening.score)
    assert found.label == '"the weather in the north is cold today"'
    plain, forced = found.runs
    assert (plain.prefix, plain.answers) == ("", "0001")  # one says it unasked
    assert (forced.answers, forced.base_answers) == ("1101", "1000")
    assert (forced.n, forced.attack_rate) == (3, pytest.approx(2 / 3))
    assert [example.text for example in found.examples] == ["a", "b"]
    assert not _is_own(found)  # 2 of 3, and 1 of 3 without the adapter
    (own_alone,) = found_by_heart(guard(), prompts, [opening], own, Recital(nothing, [nothing]))
    assert _is_own(own_alone)
