"""The tables of ``Views``: ancestor words, default positions, and what ``check`` refuses."""

from __future__ import annotations

import numpy as np
import pytest

from forethought.kernels.views import Views, ancestor_bits


def views(**change):
    """Two rows, of two queries and of one, with one and two parts."""
    tables = {
        "positions": [2, 3, 9],
        "query_ptr": [0, 2, 3],
        "part_ptr": [0, 1, 3],
        "slot_ptr": [0, 4, 6, 7],
        "slots": [3, 1, 4, 5, 9, 2, 6],
    }
    return Views(**{name: table if table is None else np.array(table, np.int64) for name, table in (tables | change).items()})


def test_sizes():
    assert (views().rows, views().queries) == (2, 3)


def test_slots_are_stored_at_their_index_unless_told_otherwise():
    assert views().stored_positions().tolist() == [0, 1, 2, 3, 0, 1, 0]
    assert views(slot_positions=[7, 8, 9, 9, 1, 2, 5]).stored_positions().tolist() == [7, 8, 9, 9, 1, 2, 5]


def test_check_accepts():
    views().check(10)
    views(slot_positions=range(7), offsets=[0, 5, -2], last=range(4), tree=[0, 1, -1]).check(10)
    Views(*(np.array(x, np.int64) for x in ([], [0], [0], [0], []))).check(0)


@pytest.mark.parametrize(
    ("change", "pool", "message"),
    [
        ({}, 9, "slot 9 outside a pool of 9"),
        ({"slots": [3, 1, -4, 5, 9, 2, 6]}, 10, "slot -4 outside"),
        ({"slots": [3, 1, 4]}, 10, r"slot_ptr rises from 0 to 3; not \[0, 4, 6, 7\]"),
        ({"query_ptr": [0, 2, 4]}, 10, r"query_ptr rises from 0 to 3; not \[0, 2, 4\]"),
        ({"query_ptr": [1, 2, 3]}, 10, "query_ptr rises"),
        ({"query_ptr": []}, 10, "query_ptr rises"),
        ({"slot_ptr": [0, 6, 4, 7]}, 10, "slot_ptr rises"),
        ({"part_ptr": [0, 1, 2]}, 10, "part_ptr rises from 0 to 3"),
        ({"part_ptr": [0, 1, 2, 3]}, 10, "part_ptr is for 3 rows, query_ptr for 2"),
        ({"slot_positions": [0, 1]}, 10, r"slot_positions has shape \(2,\), not \(7,\)"),
        ({"offsets": [0, 1]}, 10, r"offsets has shape \(2,\), not \(3,\)"),
        ({"last": [0, 1, 2]}, 10, r"last has shape \(3,\), not \(4,\)"),
        ({"tree": [0, 1, 2, 3]}, 10, r"tree has shape \(4,\), not \(3,\)"),
    ],
)
def test_check_names_what_is_wrong(change, pool, message):
    with pytest.raises(ValueError, match=message):
        views(**change).check(pool)


def test_a_long_chain_is_no_tree():
    """66 tokens in a row are fine beside a tree in another; 66 in one tree are not."""
    long = {"positions": range(67), "query_ptr": [0, 66, 67], "part_ptr": [0, 1, 2], "slot_ptr": [0, 66, 67], "slots": range(67)}
    views(**long, tree=[-1] * 66 + [0]).check(67)
    with pytest.raises(ValueError, match="row 0: a tree of 66 tokens: at most a root and 64"):
        views(**long, tree=[0] * 66 + [-1]).check(67)


def test_ancestor_bits_by_hand():
    """Bit j - 1 is token j: an ancestor or the token itself. The root needs no bit."""
    assert ancestor_bits([-1]).tolist() == [0]
    assert ancestor_bits([-1, 0, 0, 1, 3]).tolist() == [0, 0b1, 0b10, 0b101, 0b1101]


@pytest.mark.parametrize("seed", range(20))
def test_ancestor_bits_are_the_paths_to_the_root(seed):
    rng = np.random.default_rng(seed)
    parents = [-1, *(int(rng.integers(max(0, i - 1 - seed), i)) for i in range(1, 65))]
    for node, word in enumerate(ancestor_bits(parents).tolist()):
        path, at = set(), node
        while at > 0:
            path.add(at)
            at = parents[at]
        assert {j for j in range(1, 65) if word >> (j - 1) & 1} == path


def test_the_64th_token_has_the_sign_bit():
    words = ancestor_bits([-1, *range(64)])
    assert words.dtype == np.int64
    assert words[64] == -1
    assert words[63] == 2**63 - 1
    assert ancestor_bits([-1] + [0] * 64)[64] == -(2**63)


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([-1] + [0] * 65, "a tree of 66 tokens"),
        ([0, 0], "its parent is -1, not 0"),
        ([-1, 1], "node 1 has parent 1"),
        ([-1, 0, 5], "node 2 has parent 5"),
        ([-1, -1], "node 1 has parent -1"),
    ],
)
def test_ancestor_bits_refuses(parents, message):
    with pytest.raises(ValueError, match=message):
        ancestor_bits(parents)
