"""The paper's trie: what it counts, against counting by hand; what it does better than the code it is known by."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from forethought.decoding.tree import Tree
from forethought.decoding.trie import QUERY, Trie


def paths(tree: Tree) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.ids, tree.parents, strict=True):
        found.append((*found[parent], token))
    return found[1:]


def counts(index: Trie) -> Counter[tuple[int, ...]]:
    """Of each path from a root, how often it was seen."""
    stack = [((token,), node) for token, node in index.forest.roots.items()]
    found: Counter[tuple[int, ...]] = Counter()
    while stack:
        path, node = stack.pop()
        found[path] = node.count
        stack += [((*path, token), child) for token, child in node.children.items()]
    return found


@pytest.mark.parametrize("branch", [1, 3, 12])
def test_counts_are_those_of_all_windows(branch: int) -> None:
    rng = random.Random(branch)
    index = Trie(branch=branch)
    expected: Counter[tuple[int, ...]] = Counter()
    for _ in range(20):
        text = [rng.randrange(4) for _ in range(rng.randint(1, 30))]
        index.observe(text)
        expected.update(tuple(text[i:j]) for i in range(len(text)) for j in range(i + 1, min(len(text), i + QUERY + branch) + 1))
    assert counts(index) == expected
    assert index.nodes == len(expected)


def test_scores_are_shares_of_what_was_seen() -> None:
    index = Trie()
    for text in ([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6, 7], [1, 2, 3, 4]):
        index.observe(text)
    tree = index.draft([1, 2], 8)
    assert dict(zip(paths(tree), tree.scores, strict=True)) == pytest.approx(
        {(3,): 0.75, (3, 4): 0.5, (3, 5): 0.25, (6,): 0.25, (6, 7): 0.25}
    )


def test_one_token_where_two_lead_to_too_little() -> None:
    index = Trie(branch=3)
    index.observe([1, 2, 3])
    index.observe([9, 2, 4, 5, 6])
    assert set(paths(index.draft([1, 2], 8))) == {(3,), (4,), (4, 5), (4, 5, 6)}
    index.observe([1, 2, 7, 8])
    assert set(paths(index.draft([1, 2], 3))) == {(3,), (7,), (7, 8)}


# ---- where the known code goes wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [4, 16, 64])
def test_many_old_outputs_do_not_push_the_prompt_out(budget: int) -> None:
    index = Trie()
    for i in range(200):
        index.observe([8, 9, 100 + i, 7])
        index.observe([8, 9, 99, 98, 97, 96, 95])
    drafted = paths(index.draft([8, 9, 50, 51, 52, 53, 8, 9], budget))
    assert len(drafted) == budget
    assert sum(path[0] == 50 for path in drafted) >= min(budget // 4, 4)
    assert any(path[0] != 50 for path in drafted)


@pytest.mark.parametrize("budget", [1, 2, 8])
def test_the_prompt_weighs_more_than_old_outputs_at_any_budget(budget: int) -> None:
    index = Trie()
    for _ in range(3):
        index.observe([8, 9, 60])
    assert paths(index.draft([8, 9, 50, 8, 9], budget))[0] == (50,)


def test_what_stands_behind_an_end_token_is_retrieved() -> None:
    end = 2
    prompt = [10, 11, end, 20, 21, 22, end, 30, 31, 32, 33, end, 30, 31]
    assert paths(Trie().draft(prompt, 2))[-1] == (32, 33)
    assert paths(Trie().draft([*prompt[:-2], 20], 3))[-1] == (21, 22, end)


def test_token_0_is_a_token() -> None:
    assert paths(Trie().draft([0, 7, 0, 8, 5, 0, 7], 2)) == [(0,), (0, 8)]
    assert (0, 0) in paths(Trie().draft([0, 0, 0, 1, 0], 8))


def test_the_budget_is_each_lines_own() -> None:
    index = Trie()
    index.observe([1, 2, *range(100, 130)])
    for i in range(30):
        index.observe([1, 2, 50 + i])
    lines = [index.open([1, 2]) for _ in range(4)]
    assert [len(line.draft(16)) for line in lines] == [16] * 4


@pytest.mark.parametrize("branch", [1, 5, 12])
def test_as_deep_as_texts_are_inserted_they_are_retrieved(branch: int) -> None:
    index = Trie(branch=branch)
    index.observe(range(40))
    for context in ([3, 4], [99, 4]):
        assert index.draft(context, 30).ids == list(range(5, 5 + branch))
    line = index.open(range(100, 140))
    line.extend([103, 104])
    assert line.draft(30).ids == list(range(105, 105 + branch))


def test_a_closed_line_leaves_no_node() -> None:
    index = Trie()
    index.observe([1, 2, 3])
    before = counts(index)
    line = index.open(list(range(300)))
    line.extend([1, 2])
    line.draft(16)
    line.close(remember=False)
    assert counts(index) == before


# ---- squeezing -------------------------------------------------------------------------------------------------------


def test_squeezing_keeps_what_was_seen_more_than_once() -> None:
    index = Trie(branch=2, squeeze=10)
    for _ in range(4):
        index.observe([1, 2, 3])
    assert counts(index)[1, 2, 3] == 4
    for i in range(8):
        index.observe([1, 50 + i])
    found = counts(index)
    assert found[1, 2, 3] == 2
    assert index.forest.sizes[1] == 3
    assert sum(path[0] == 1 for path in found) == index.forest.sizes[1]
    assert paths(index.draft([1, 2], 1)) == [(3,)]


def test_texts_can_be_forgotten_after_squeezing() -> None:
    rng = random.Random(0)
    index = Trie(capacity=200, branch=4, squeeze=20)
    for _ in range(200):
        index.observe([rng.randrange(4) for _ in range(10)])
        assert index.nodes == len(counts(index))
        assert min(counts(index).values()) >= 1
        assert set(index.forest.sizes) == set(index.forest.roots)
    assert index.tokens == 200


@pytest.mark.parametrize("bad", [{"branch": 0}, {"squeeze": 0}])
def test_bad_limits_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Trie(**bad)
