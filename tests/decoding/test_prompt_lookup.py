"""Prompt lookup: what is proposed is what a search through the whole text finds, and nothing is kept of a request.

That no token changes is shown for all decoders at once, in ``test_speculation.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from drafting import idle
from lab import Audited, Toy, scripted

import forethought as ft
from forethought.decoding.prompt_lookup import NGrams


def slow_follow(text: list[int], max_ngram: int, count: int) -> list[int]:
    """What stands behind the first place of the longest of the last n-grams that stands anywhere before."""
    for n in range(max_ngram, 0, -1):
        for end in range(n, len(text)):
            if text[end - n : end] == text[-n:]:
                return text[end : end + count]
    return []


def row(prompt: Sequence[int], output: Sequence[int] = ()) -> Any:
    return SimpleNamespace(prompt=list(prompt), output=list(output))


@pytest.mark.parametrize("max_ngram", [1, 2, 3, 5])
def test_proposals_are_those_of_a_search_through_the_text(max_ngram: int) -> None:
    """Any text over few tokens, grown by any number of tokens between proposals; any budget and depth."""
    pytest.importorskip("hypothesis")
    from hypothesis import given
    from hypothesis import strategies as st

    ids = st.lists(st.integers(0, 2), max_size=12)

    @given(st.lists(st.integers(0, 2), min_size=1, max_size=15), st.lists(st.tuples(ids, st.integers(1, 9), st.integers(0, 9))))
    def check(prompt: list[int], rounds: list[tuple[list[int], int, int]]) -> None:
        source, one = NGrams(max_ngram), row(prompt)
        for more, nodes, depth in rounds:
            one.output += more
            [tree] = source.propose([one], nodes, [depth], 0.0)
            assert tree.ids == slow_follow([*prompt, *one.output], max_ngram, min(nodes, depth))
            assert tree.parents == list(range(len(tree)))
            assert tree.scores == sorted(tree.scores, reverse=True)
        source.stop(one, True)
        assert not source._texts

    check()


def test_the_longest_match_is_followed_where_it_stood_first() -> None:
    text = [1, 2, 3, 9, 2, 3, 8, 1, 2, 3]
    for max_ngram, expected in ((1, [9, 2]), (2, [9, 2]), (3, [9, 2])):
        assert NGrams(max_ngram).propose([row(text)], 2, [5], 0.0)[0].ids == expected
    text = [5, 3, 7, 2, 3, 8, 2, 3]
    assert NGrams(1).propose([row(text)], 2, [5], 0.0)[0].ids == [7, 2], "3 stood first before 7"
    assert NGrams(2).propose([row(text)], 2, [5], 0.0)[0].ids == [8, 2], "2 3 before 8"
    assert NGrams(2).propose([row([1, 2, 3])], 2, [5], 0.0)[0].ids == [], "nothing like it before"
    assert NGrams(4).propose([row([6, 6])], 9, [9], 0.0)[0].ids == [6], "to the end of the text"


def test_rows_do_not_see_each_others_text() -> None:
    source, rows = NGrams(2), [row([1, 2, 1]), row([1, 3, 1]), row([4])]
    for _ in range(2):
        assert [tree.ids for tree in source.propose(rows, 1, [5, 5, 5], 0.0)] == [[2], [3], []]
    assert [tree.ids for tree in source.propose(rows[::-1], 1, [5, 5, 5], 0.0)] == [[], [3], [2]]


def test_repeated_text_takes_few_forwards() -> None:
    """A text that goes round: once it has come round, every draft is right."""
    circle = [7, 3, 9, 3, 5]
    toy = Toy(scripted(11, lambda ids: circle[(len(ids) - 1) % 5]), vocabulary=11)
    decoder = ft.PromptLookup(9, adaptive=False)
    with Audited(toy, decoder, kv_slots=400) as engine:
        [out] = engine.generate([1], max_tokens=107)
    assert out.token_ids == [circle[i % 5] for i in range(107)]
    assert out.cost.forwards <= 7 + 2 + 10
    assert out.cost.drafting == 0
    idle(decoder)


def test_the_prompt_is_searched_too() -> None:
    line = [8, 2, 6, 4, 1, 3, 9]
    toy = Toy(scripted(11, lambda ids: line[len(ids) - 9] if len(ids) - 9 < 7 else 0), vocabulary=11)
    with Audited(toy, ft.PromptLookup(6, adaptive=False), kv_slots=400) as engine:
        [out] = engine.generate([*line, 5, 7], max_tokens=7)
    assert out.token_ids == line
    assert (out.cost.forwards, out.cost.drafted, out.cost.accepted) == (2, 5, 5), "the first token, and what stood behind it"


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError), ("2", TypeError)]
)
def test_max_ngram_is_a_number_of_tokens(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"max_ngram={value!r}"):
        ft.PromptLookup(max_ngram=value)
