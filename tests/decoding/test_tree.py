"""Draft trees: merging keeps every path, cutting keeps the best ones whole, and what reaches the engine is a tree it can read.

The slow twin of a tree is a table from paths (tuples of tokens) to scores and sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from forethought.decoding.tree import Tree, above, best, flatten, merge
from forethought.kernels.views import TREE_LIMIT

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st

Path = tuple[int, ...]


def paths(tree: Tree) -> list[Path]:
    """Of each node: the tokens from the root to it. Fails where a parent does not come first."""
    found: list[Path] = [()]
    for j, (token, parent) in enumerate(zip(tree.ids, tree.parents, strict=True), 1):
        assert 0 <= parent < j, "parents first"
        found.append((*found[parent], token))
    return found[1:]


def table(tree: Tree) -> dict[Path, tuple[float, int]]:
    """Path -> (score, sources); fails where two nodes are the same."""
    found = dict(zip(paths(tree), zip(tree.scores, tree.sources, strict=True), strict=True))
    assert len(found) == len(tree), "no two siblings are alike"
    return found


def ancestors(path: Path) -> list[Path]:
    return [path[:n] for n in range(1, len(path) + 1)]


def effective(scores: dict[Path, float], path: Path) -> float:
    """A node cannot be reached more often than the nodes before it."""
    return min(scores[p] for p in ancestors(path))


@st.composite
def trees(draw: Any, most: int = 20, tokens: int = 3, bits: Sequence[int] = (1,), rising: bool = True) -> Tree:
    """Any tree without equal siblings; ``rising``: scores may exceed the parent's, as those of careless sources do."""
    tree, places = Tree(), {((), 0): 0}
    at: list[Path] = [()]
    for _ in range(draw(st.integers(0, most))):
        parent, token = draw(st.integers(0, len(tree))), draw(st.integers(0, tokens))
        path = (*at[parent], token)
        if (path, 1) in places:
            continue
        score = draw(st.integers(0, 16)) / 16
        if not rising and parent:
            score = min(score, tree.scores[parent - 1])
        places[path, 1] = tree.add(token, parent, score, draw(st.sampled_from(bits)))
        at.append(path)
    return tree


def chains(length: int) -> Tree:
    return Tree.chain(range(length), [0.99**i for i in range(length)])


# ---- one tree --------------------------------------------------------------------------------------------------------


def test_a_chain_is_one_path_of_its_tokens() -> None:
    tree = Tree.chain([7, 7, 5], [0.5, 0.25, 0.1], source=2)
    assert table(tree) == {(7,): (0.5, 2), (7, 7): (0.25, 2), (7, 7, 5): (0.1, 2)}
    assert tree.depths == [1, 2, 3]
    assert len(Tree()) == 0
    assert not Tree(), "an empty tree is nothing"


@given(trees())
def test_depths_are_lengths_of_paths(tree: Tree) -> None:
    assert tree.depths == [len(path) for path in paths(tree)]


# ---- merging ---------------------------------------------------------------------------------------------------------


@given(st.lists(trees(bits=(1, 2, 4, 8)), min_size=1, max_size=4))
def test_a_merged_tree_has_all_paths_and_says_whose_they_are(some: list[Tree]) -> None:
    merged = table(merge(some))
    assert merged.keys() == {path for tree in some for path in paths(tree)}
    for path, (_, sources) in merged.items():
        expected = 0
        for tree in some:
            expected |= table(tree).get(path, (0, 0))[1]
        assert sources == expected


@given(st.lists(trees(), min_size=2, max_size=4))
def test_a_merged_node_has_its_best_score_but_never_more_than_its_parents(some: list[Tree]) -> None:
    merged = merge(some)
    highest = {path: max(table(tree)[path][0] for tree in some if path in table(tree)) for path in paths(merged)}
    assert {path: score for path, (score, _) in table(merged).items()} == {p: effective(highest, p) for p in highest}
    assert merged.scores == sorted(merged.scores, reverse=True), "best first"


@given(trees(), trees(), st.integers(0, 8), st.integers(0, 8))
def test_weights_scale_the_scores_of_a_whole_source(a: Tree, b: Tree, x: int, y: int) -> None:
    weighted = table(merge([a, b], [x / 8, y / 8]))
    by_hand = [Tree(t.ids, t.parents, [s * w / 8 for s in t.scores], t.sources) for t, w in ((a, x), (b, y))]
    assert weighted == table(merge(by_hand))
    assert {p: s for p, (s, _) in table(merge([a], [x / 8])).items()} == {
        p: effective({q: s * x / 8 for q, (s, _) in table(a).items()}, p) for p in table(a)
    }


@given(trees())
def test_merging_a_tree_with_itself_or_with_nothing_changes_nothing(tree: Tree) -> None:
    once = table(merge([tree, Tree()]))
    assert table(merge([tree, tree])) == once
    assert once.keys() == table(tree).keys()
    assert len(merge([])) == len(merge([Tree(), Tree()])) == 0


# ---- cutting ---------------------------------------------------------------------------------------------------------


@given(trees(), st.integers(-1, 25), st.none() | st.integers(0, 6))
def test_the_best_nodes_are_a_tree_within_budget_and_depth(tree: Tree, count: int, depth: int | None) -> None:
    cut, whole = best(tree, count, depth), table(tree)
    scores = {path: score for path, (score, _) in whole.items()}
    allowed = [path for path in whole if depth is None or len(path) <= depth]
    assert len(cut) == min(max(count, 0), len(allowed)), "no more than may be, and no fewer"
    found = table(cut)
    assert all(found[path] == (effective(scores, path), whole[path][1]) for path in found)
    assert cut.scores == sorted(cut.scores, reverse=True), "best first"
    assert all(cut.scores[j] <= cut.scores[p - 1] for j, p in enumerate(cut.parents) if p)
    dropped = [effective(scores, path) for path in allowed if path not in found]
    assert max(dropped, default=0) <= min(cut.scores, default=2), "nothing better was left out"


@given(trees(rising=False), st.lists(st.integers(0, 20), min_size=2, max_size=4))
def test_cutting_in_steps_is_cutting_once(tree: Tree, counts: list[int]) -> None:
    stepwise = tree
    for count in sorted(counts, reverse=True):
        stepwise = best(stepwise, count)
    assert table(stepwise) == table(best(tree, min(counts)))


def test_what_was_proposed_first_stays_among_equals() -> None:
    tree = Tree([3, 1, 2, 9], [0, 0, 0, 1], [0.5, 0.5, 0.5, 0.5])
    tree.sources = [1] * 4
    assert [paths(best(tree, n)) for n in (1, 2, 3)] == [[(3,)], [(3,), (1,)], [(3,), (1,), (2,)]]


@given(trees(rising=False), st.integers(-1, 17))
def test_above_keeps_what_scores_more(tree: Tree, sixteenths: int) -> None:
    limit = sixteenths / 16
    assert table(above(tree, limit)) == {p: (s, b) for p, (s, b) in table(tree).items() if s > limit}


@pytest.mark.parametrize("length", [TREE_LIMIT, TREE_LIMIT + 1, 200])
def test_only_a_chain_may_be_longer_than_the_kernels_limit(length: int) -> None:
    whole = chains(length)
    assert paths(best(whole, length)) == paths(whole)
    assert len(merge([whole, chains(length - 3)])) == length, "two chains that agree are one"
    forked = merge([whole, Tree.chain([length, 1], [0.01, 0.01])])
    assert len(forked) == min(length + 2, TREE_LIMIT)
    assert paths(forked)[: TREE_LIMIT - 2] == paths(whole)[: TREE_LIMIT - 2]
    late = Tree.chain([*range(length - 1), length + 7], [0.99**i for i in range(length)])
    assert len(merge([whole, late])) == min(length + 1, TREE_LIMIT), "wherever the branch is"


# ---- for the engine --------------------------------------------------------------------------------------------------


@given(st.lists(trees(most=6), max_size=5))
def test_the_engines_draft_is_the_trees_end_to_end(some: list[Tree]) -> None:
    draft = flatten(some)
    if not any(len(tree) for tree in some):
        assert draft is None
        return
    assert draft is not None
    ids, parents, ends = draft.lists()
    assert draft.lists() == (ids, parents, ends)
    assert (len(ends), ends[0]) == (len(some) + 1, 0)
    for tree, (begin, end) in zip(some, pairwise(ends), strict=True):
        assert (ids[begin:end], parents[begin:end]) == (tree.ids, tree.parents)
