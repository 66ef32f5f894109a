"""``attend`` and ``merge``, feature by feature, against dense masked softmax; random mixtures are in test_random_views.py."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from forethought.kernels import attention, plan, reference
from forethought.kernels.attention import attend, choose, merge
from forethought.kernels.reference import bytes_moved
from forethought.kernels.rotary import Rotary
from forethought.kernels.views import Views

HALVES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ROTARY = Rotary(torch.tensor([1.0, 0.3, 0.05]))


def slots_read(views: Views, window: int | None = None) -> int:
    """How many slots of the pool one layer reads, repeats counted."""
    both = bytes_moved(views, heads=0, kv_heads=1, dim=1, itemsize=1, window=window)
    return both // 2


def decode_rows(write, *lengths):
    """Rows of one query each, over slots of their own that lie scattered in the pool."""
    order = iter(np.random.default_rng(0).permutation(sum(lengths)).tolist())
    return [write.Row([n - 1], [write.Part([next(order) for _ in range(n)])]) for n in lengths]


def tree_row(write, prefix, own, parents, start=None):
    """A tree behind ``prefix``, and where its nodes are stored: each at its depth."""
    start = len(prefix) if start is None else start
    depth = [0] * len(parents)
    for i in range(1, len(parents)):
        depth[i] = depth[parents[i]] + 1
    positions = [start + d for d in depth]
    return write.Row(positions, [write.Part([*prefix, *own])], parents=parents), dict(zip(own, positions, strict=True))


# ---- the oracle, and the smallest cases -------------------------------------------------------------------------------


def test_by_hand(write, dense):
    """Logits 0 and ln 3: weights 1/4 and 3/4, and a log-sum-exp of ln 4."""
    views = write.views([write.Row([1], [write.Part([1, 0])])])
    q = torch.tensor([[[2.0]]]).double()
    k = torch.tensor([[[math.log(3) / 2]], [[0.0]]]).double()
    v = torch.tensor([[[8.0]], [[4.0]]]).double()
    for out, lse in (dense(q, k, v, views, scale=1.0), attend(q, k, v, views, scale=1.0, need_lse=True)):
        assert out.item() == pytest.approx(7.0)
        assert lse.item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("lengths", [(1,), (300,), (7, 7, 7), (1, 5, 30, 2), (700, 3)])
def test_decode_rows(write, agree, lengths):
    agree(write.views(decode_rows(write, *lengths)), dtypes=HALVES)


def test_one_row_in_consecutive_slots(write, agree):
    agree(write.views([write.Row([11], [write.Part(range(5, 17))])]))
    agree(write.views([write.Row([3], [write.Part([5, 7, 6, 8])], last=[[1]])]))  # all but in order


@pytest.mark.parametrize("queries", [2, 9, 40, 65, 66, 90])
def test_prefill(write, agree, queries):
    """A chain behind a prefix; beyond 65 tokens it no longer shares a group with trees."""
    agree(write.views([write.Row(range(4, 4 + queries), [write.Part(range(4 + queries))])]), shape={"dim": 4, "shared": 1})


def test_mixture_with_rows_that_ask_nothing(write, agree):
    rows = [*decode_rows(write, 3, 8)]
    rows.append(write.Row([], [write.Part(range(20, 25))]))
    rows.append(write.Row([3, 4, 5], [write.Part(range(30, 36))]))
    rows.append(write.Row(range(70), [write.Part(range(40, 110))]))
    rows.append(write.Row([], []))
    rows.append(write.Row([0], [write.Part([110])]))
    agree(write.views(rows), shape={"dim": 4, "shared": 1})


def test_no_rows_and_no_queries(write, agree):
    agree(write.views([]))
    agree(write.views([write.Row([], [write.Part([0, 1])]), write.Row([], [])]))


@pytest.mark.parametrize("shared", [1, 2, 4, 8])
@pytest.mark.parametrize("kv_heads", [1, 3])
@pytest.mark.parametrize("dim_v", [8, 5])
def test_grouped_heads_and_value_width(write, agree, kv_heads, shared, dim_v):
    rows = [*decode_rows(write, 4, 6), write.Row([0, 1, 2], [write.Part([10, 11, 12])])]
    agree(write.views(rows), shape={"kv_heads": kv_heads, "shared": shared, "dim": 8, "dim_v": dim_v})


@pytest.mark.parametrize("dim_v", [8, 16])
@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_softcap(write, agree, softcap, dim_v):
    rows = [*decode_rows(write, 4, 6), write.Row([0, 1, 2], [write.Part([10, 11, 12])])]
    agree(write.views(rows), dtypes=HALVES, softcap=softcap, shape={"dim_v": dim_v})


# ---- trees ------------------------------------------------------------------------------------------------------------

TREES = {
    "root": [-1],
    "siblings": [-1, 0, 0],
    "two levels": [-1, 0, 0, 1, 1, 2, 4],
    "64 siblings": [-1, *[0] * 64],
    "path of 65": [-1, *range(64)],
    "last node has depth": [-1, *[0] * 40, *[7] * 10, *[41] * 13, 63],
}


@pytest.mark.parametrize("parents", TREES.values(), ids=TREES.keys())
def test_trees(write, agree, parents):
    row, stored = tree_row(write, range(100, 105), range(len(parents)), parents)
    agree(write.views([row], stored), shape={"dim": 4})


def test_a_tree_node_equals_the_chain_of_its_path(write):
    """The meaning of a tree, without the oracle: each node's answer is the one its path gives when decoded alone."""
    parents, prefix = TREES["last node has depth"], [70, 71, 72]
    row, stored = tree_row(write, prefix, range(65), parents)
    views = write.views([row], stored)
    q, k, v = write.inputs(views, torch.float64)
    out, _ = attend(q, k, v, views, scale=0.3)
    for node in range(65):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        chain = write.views([write.Row([len(prefix) + len(path) - 1], [write.Part([*prefix, *path])])])
        alone, _ = attend(q[node : node + 1], k, v, chain, scale=0.3)
        torch.testing.assert_close(out[node], alone[0], rtol=0, atol=1e-9)


def test_ancestors_bind_whatever_last_allows(write, agree):
    """Two new tokens at one position, each allowed to see every position, and not each other."""
    parts = [write.Part([5, 6]), write.Part([7, 0, 1, 2])]
    agree(write.views([write.Row([1, 2, 2], parts, parents=[-1, 0, 0], last=[[9, 9]] * 3)]))


def test_trees_chains_and_decode_rows_together(write, agree):
    rows, stored = [*decode_rows(write, 3, 8)], {}
    for first, parents in ((20, TREES["two levels"]), (40, TREES["siblings"]), (60, [-1])):
        row, where = tree_row(write, range(first, first + 4), range(first + 4, first + 4 + len(parents)), parents)
        rows, stored = [*rows, row], stored | where
    rows.insert(2, write.Row([2, 3, 4], [write.Part(range(80, 85))]))
    agree(write.views(rows, stored))


# ---- windows, fused slots, masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 4, 11, 12, 1000])
def test_windows(write, agree, window):
    rows = [*decode_rows(write, 12, 3, 12), write.Row(range(2, 10), [write.Part(range(30, 40))])]
    agree(write.views(rows), window=window)
    assert slots_read(write.views(rows[:1]), window=window) == min(window, 12)


def test_window_over_more_slots_than_a_kernel_reads_at_once(write, agree):
    """Whole blocks of keys are masked before the first visible one."""
    rows = [write.Row(range(1400, 1403), [write.Part(range(1403))]), write.Row([4], [write.Part(range(2000, 2005))])]
    agree(write.views(rows), window=5, shape={"dim": 4, "kv_heads": 1, "shared": 1})


@pytest.mark.parametrize("window", [None, 5])
def test_window_of_a_tree_counts_depth(write, agree, window):
    row, stored = tree_row(write, range(50, 54), range(7), TREES["two levels"])
    agree(write.views([row], stored), window=window)


@pytest.mark.parametrize("window", [None, 7])
def test_slots_that_stand_for_several_positions(write, agree, window):
    stored = {0: 0, 1: 3, 2: 4, 3: 9, 4: 11, 5: 12}
    chain = write.Row([11, 12], [write.Part([0, 1, 2, 3, 4, 5])])
    other = write.Row([10], [write.Part([0, 1, 2, 3, 6])])
    views = write.views([chain, other], stored | {6: 10})
    agree(views, window=window)
    assert slots_read(views, window=window) == (6 + 5 if window is None else 3 + 3)


def test_a_query_before_some_of_its_slots_does_not_see_them(write, agree):
    """Slots listed out of order, or stored beyond the query, obey the rule like any other."""
    agree(write.views([write.Row([3], [write.Part([0, 1, 2, 3, 4])])]))
    agree(write.views([write.Row([3], [write.Part([0, 1, 2])])], {0: 5, 1: 2, 2: 3}))
    agree(write.views([write.Row([5], [write.Part([0, 1])]), write.Row([2], [write.Part([2, 3])])], {0: 5, 1: 4, 2: 3, 3: 2}))


def test_hidden_and_empty_parts(write, agree):
    """``last = -1`` hides a part from one query; what sees nothing is 0, with a log-sum-exp of -inf."""
    parts = [write.Part([0, 1, 2]), write.Part([]), write.Part([3, 4, 5])]
    hidden = write.Row([9, 10], parts, last=[[-1, -1, 1], [2, -1, 2]])
    blind = write.Row([2, 3], [write.Part([6, 7]), write.Part([8, 9])], last=[[-1, -1], [-1, 1]])
    views = write.views([hidden, blind, *decode_rows(write, 2)])
    agree(views, dtypes=HALVES)
    q, k, v = write.inputs(views, torch.float32)
    out, lse = attend(q, k, v, views, scale=1.0, need_lse=True)
    assert (out[2] == 0).all()
    assert (lse[2] == -torch.inf).all()
    assert lse[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("dim_v", [8, 4])
def test_one_row_alone_of_which_a_query_sees_nothing(write, agree, dim_v):
    for slots in ([0, 1, 2], [4, 0, 9]):  # side by side, and not
        agree(write.views([write.Row([5, 6], [write.Part(slots)], last=[[-1], [2]])]), shape={"dim_v": dim_v})


@pytest.mark.parametrize("dim_v", [8, 4])
@pytest.mark.parametrize("window", [None, 2])
def test_everything_hidden(write, agree, dim_v, window):
    row = write.Row([5, 6], [write.Part([0, 1]), write.Part([2, 3])], last=[[-1, -1], [-1, -1]])
    agree(write.views([row]), window=window, shape={"dim_v": dim_v})


@pytest.mark.parametrize("dim_v", [8, 4])
def test_sinks(write, agree, dim_v):
    """A sink takes weight and gives nothing; alone, it is all there is; -inf is no sink."""
    rows = [*decode_rows(write, 4, 6), write.Row([5], [write.Part([10])], last=[[-1]])]
    for sinks in ([0.5, -1.0, 3.0, 20.0], [-torch.inf, 0.0, -torch.inf, 1.0]):
        agree(write.views(rows), dtypes=HALVES, sinks=torch.tensor(sinks), shape={"dim_v": dim_v})


# ---- several parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [6, 10])
@pytest.mark.parametrize("window", [None, 6])
def test_parts_moved_by_an_offset(write, agree, interleaved, dim, window):
    """Offsets of both signs; a rotation of all 6 channels, or of the first 6 of 10."""
    rows = [
        write.Row([13, 14], [write.Part([0, 1, 2], 4), write.Part([3, 4], -3), write.Part([5, 6, 7, 8], 11)]),
        write.Row([9], [write.Part([10, 11, 12], 7)]),
        write.Row([2], [write.Part([13, 14, 15])]),
    ]
    views = write.views(rows)
    agree(views, window=window, rotary=Rotary(ROTARY.frequencies, interleaved), shape={"dim": dim})


def test_moving_a_part_equals_storing_it_elsewhere(write):
    """The rotation contract, without the oracle: keys rotated to x, seen with an offset of d, are keys rotated to x + d."""
    rotary = Rotary(torch.tensor([1.0, 0.3]).double())
    q, raw, v = torch.randn(1, 2, 6).double(), torch.randn(5, 2, 6).double(), torch.randn(5, 2, 6).double()
    for d in (-20, 3, 500):
        row = write.Row([10], [write.Part([0, 1, 2, 3], d), write.Part([4], 10)], last=[[3, 0]])
        moved, _ = attend(q, rotary.rotate(raw, torch.tensor([0, 1, 2, 3, 0])), v, write.views([row]), scale=1.0, rotary=rotary)
        there = write.Row([10], [write.Part([0, 1, 2, 3, 4])], last=[[4]])
        expected, _ = attend(
            q, rotary.rotate(raw, torch.tensor([d, d + 1, d + 2, d + 3, 10])), v, write.views([there]), scale=1.0
        )
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-9)


def test_workers_that_see_each_other_think(write, agree):
    """Two rows, each with the other's block in its view, the slots written in this very call included."""
    prompt, a, b = range(4), [4, 5, 6], [7, 8, 9, 10]
    rows = [
        write.Row([9, 10], [write.Part(prompt), write.Part(b, 4), write.Part(a, 8)]),
        write.Row([9, 10], [write.Part(prompt), write.Part(a, 4), write.Part(b, 7)]),
        write.Row([7], [write.Part(prompt), write.Part(a, 4), write.Part([11], 7)], last=[[3, 1, 0]]),
    ]
    views = write.views(rows)
    agree(views, rotary=ROTARY)
    q, k, v = write.inputs(views, torch.float32)
    before, _ = attend(q, k, v, views, scale=1.0, rotary=ROTARY)
    v[10] += 1  # the second row's newest token
    after, _ = attend(q, k, v, views, scale=1.0, rotary=ROTARY)
    assert (before != after).flatten(1).any(1).tolist() == [True, True, False, True, False]


def test_a_row_without_parts_sees_nothing(write, agree):
    agree(write.views([write.Row([3], []), *decode_rows(write, 2), write.Row([3, 4], [write.Part([])])]))


# ---- prefixes that several rows share -----------------------------------------------------------------------------------


def sharing(write, prefix, owns, queries=1, free=1000):
    """Rows that start with the same ``prefix`` and go on in slots of their own, from ``free`` on."""
    rows = []
    for own in owns:
        slots, free = [*prefix, *range(free, free + own + queries)], free + own + queries
        rows.append(write.Row(range(len(slots) - queries, len(slots)), [write.Part(slots)]))
    return rows


PREFIX = [3 * i % 301 for i in range(300)]


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("owns", [(0, 0), (0, 5), (4, 4, 4), (30, 1, 0, 7)])
def test_shared_prefix(write, agree, owns, queries):
    views = write.views(sharing(write, PREFIX, owns, queries))
    agree(views, shape={"kv_heads": 1, "dim": 4})
    assert slots_read(views) <= len(PREFIX) + len(owns) * (max(owns) + queries)


def test_64_samples_read_their_prompt_once(write):
    views = write.views(sharing(write, range(512), [9] * 64))
    assert slots_read(views) == 512 + 64 * 10
    assert bytes_moved(views, heads=8, kv_heads=2, dim=16, itemsize=2) == 2 * 16 * (2 * 2 * 1152 + 2 * 8 * 64)


def test_rows_that_ask_nothing_share_nothing(write, agree):
    one, other = sharing(write, PREFIX, [3, 4])
    views = write.views([one, write.Row([], one.parts), write.Row([], other.parts)])
    agree(views, shape={"kv_heads": 1, "dim": 4})
    assert slots_read(views) == len(PREFIX) + 4


def test_little_sharing_is_not_worth_a_group(write, agree):
    views = write.views(sharing(write, range(plan.SHARE_SLOTS // 2 - 1), [0, 0, 0]))
    assert slots_read(views) == 3 * plan.SHARE_SLOTS // 2
    agree(views, shape={"kv_heads": 1, "dim": 4})


def test_shared_prefix_in_a_window(write, agree):
    views = write.views(sharing(write, PREFIX, (30, 1, 0, 7)))
    for window in (1, 20, 100, 310):
        agree(views, window=window, shape={"kv_heads": 1, "dim": 4})


def test_two_prefixes_and_rows_that_share_nothing(write, agree):
    one, other = sharing(write, PREFIX, (3, 5, 2)), sharing(write, [x + 500 for x in PREFIX], (3, 0), free=1200)
    alone = write.Row([4], [write.Part(range(1400, 1405))])
    views = write.views([one[0], other[0], alone, *one[1:], other[1]])
    agree(views, shape={"kv_heads": 1, "dim": 4})
    assert slots_read(views) == 2 * len(PREFIX) + 6 * 6


def test_prefixes_within_a_prefix(write, agree):
    """Rows of two prompts that begin alike: each prompt is read once, not just the beginning of both."""
    start = list(range(400, 440))
    one, other = sharing(write, start + PREFIX[:150], [2] * 4), sharing(write, start + PREFIX[150:], [2] * 3, free=1200)
    views = write.views([one[0], *other, *one[1:], write.Row([40], [write.Part([*start, 999])])])
    agree(views, shape={"kv_heads": 1, "dim": 4})
    assert slots_read(views) == 2 * 190 + 8 * 41


def test_rows_that_part_one_by_one(write, agree, monkeypatch):
    monkeypatch.setattr(plan, "SHARE_SLOTS", 4)
    rows = [write.Row([2 * i + 1], [write.Part([*range(2 * i), 100 + 2 * i, 101 + 2 * i])]) for i in range(1, 24)]
    agree(write.views(rows), shape={"kv_heads": 1, "dim": 4})


def test_identical_parts(write, agree, monkeypatch):
    """Rows that list exactly the same slots, their last, own ones included: those stay each row's own."""
    monkeypatch.setattr(plan, "SHARE_SLOTS", 4)
    row, stored = tree_row(write, range(20, 30), range(7), TREES["two levels"])
    other = write.Row(row.positions, row.parts, parents=TREES["siblings"] + [2, 3, 3, 0])
    agree(write.views([row, other, row], stored))


def test_a_whole_part_shared(write, agree, monkeypatch):
    """A part that is not the last holds no new tokens, so all of it can be shared, with an offset and a horizon for each row."""
    monkeypatch.setattr(plan, "SHARE_SLOTS", 4)
    prefix = range(50, 60)
    rows = [
        write.Row([12, 13], [write.Part(prefix), write.Part([0, 1, 2], 11)]),
        write.Row([30], [write.Part(prefix, 15), write.Part([3], 30)]),
        write.Row([3], [write.Part(prefix, -8), write.Part(prefix, 4), write.Part([4], 3)], last=[[4, -1, 0]]),
    ]
    views = write.views(rows)
    agree(views, rotary=ROTARY)
    agree(views, rotary=ROTARY, window=9)
    assert slots_read(views) == 10 + (3 + 2 * 10) + 1  # first parts, second parts (two of them padded together), third part


def test_trees_behind_a_shared_prefix(write, agree):
    rows, stored = [], {}
    for i, parents in enumerate((TREES["two levels"], TREES["64 siblings"], TREES["siblings"])):
        row, where = tree_row(write, PREFIX, range(1000 + 100 * i, 1000 + 100 * i + len(parents)), parents)
        rows, stored = [*rows, row], stored | where
    agree(write.views(rows, stored), shape={"kv_heads": 1, "dim": 4})


# ---- how the plan cuts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 100, 400, 5000])
@pytest.mark.parametrize("window", [None, 30])
def test_long_chunks_are_cut(write, agree, monkeypatch, cells, window):
    monkeypatch.setattr(plan, "MASK_CELLS", cells)
    chunk = write.Row(range(10, 80), [write.Part([0, 1, 2], 4), write.Part(range(3, 80), 3)])
    views = write.views([*decode_rows(write, 80), chunk])
    agree(views, window=window, rotary=ROTARY, shape={"dim": 6, "kv_heads": 1, "shared": 1})
    groups = [group for layer in plan.plan_for(views, window, torch.device("cpu")) for group in layer]
    assert max(group.mask.numel() for group in groups if group.mask is not None) <= max(cells, 80)


@pytest.mark.parametrize(("pad", "read"), [(10**6, 7 * 200), (1, 3 + 3 * 66 + 200 + 2)])
def test_unlike_lengths_are_padded_apart(write, agree, monkeypatch, pad, read):
    monkeypatch.setattr(plan, "PAD_SLOTS", pad)
    views = write.views(decode_rows(write, 1, 2, 64, 65, 66, 200, 3))
    agree(views, shape={"kv_heads": 1, "dim": 4})
    assert slots_read(views) == read


@pytest.mark.parametrize("block", [1, 3000])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_large_groups_are_gathered_in_pieces(write, agree, monkeypatch, block, softcap):
    monkeypatch.setattr(reference, "BLOCK_BYTES", block)
    rows = [
        *decode_rows(write, 5, 8, 8, 3, 2),
        write.Row([1, 2, 3], [write.Part(range(30, 34))]),
        write.Row([0, 1], [write.Part([40, 41])]),
    ]
    agree(write.views(rows), softcap=softcap)


def test_layers_of_unlike_shape_on_one_plan(write, dense):
    """What a plan keeps for its layers (masks, room to gather in) fits each of them, in and out of inference mode."""
    views = write.views([*decode_rows(write, 5, 8), write.Row([1, 2, 3], [write.Part(range(30, 34))])])
    for mode in (True, False):
        for dtype in (torch.float32, torch.float64):
            for shape in ({"kv_heads": 2, "shared": 2}, {"kv_heads": 1, "shared": 4}, {"dim": 4, "dim_v": 6}):
                q, k, v = write.inputs(views, dtype, **shape)
                with torch.inference_mode(mode), torch.no_grad():
                    out, _ = attend(q, k, v, views, scale=0.4)
                want, _ = dense(q, k, v, views, scale=0.4)
                torch.testing.assert_close(out.double(), want, rtol=0, atol=1e-5)


def test_the_plan_is_made_once_for_each_window(write, monkeypatch):
    views = write.views(decode_rows(write, 3, 9))
    q, k, v = write.inputs(views, torch.float32)
    first = [attend(q, k, v, views, scale=1.0, window=window)[0] for window in (None, 2)]
    monkeypatch.setattr(plan, "_Planner", None)
    for window, out in zip((None, 2), first, strict=True):
        assert torch.equal(attend(q, k, v, views, scale=1.0, window=window)[0], out)


# ---- isolation ----------------------------------------------------------------------------------------------------------


def test_nan_in_one_row_stays_there(write):
    """Each row beside one whose keys and values are NaN: its numbers do not change."""
    rows = sharing(write, PREFIX, (5, 0, 12)) + [write.Row([2, 3], [write.Part([302, 303, 304, 305])])] + decode_rows(write, 90)
    rows[-1] = write.Row([89], [write.Part(range(400, 490))])
    views = write.views(rows)
    q, k, v = write.inputs(views, torch.float32)
    clean, lse = attend(q, k, v, views, scale=0.5, need_lse=True)
    assert clean.isfinite().all()
    for sick in range(views.rows):
        own = np.setdiff1d(rows[sick].parts[0].slots, PREFIX)
        bad_k, bad_v = k.clone(), v.clone()
        bad_k[own] = bad_v[own] = torch.nan
        out, bad_lse = attend(q, bad_k, bad_v, views, scale=0.5, need_lse=True)
        ill = np.repeat(np.arange(views.rows) == sick, np.diff(views.query_ptr))
        assert torch.equal(out[~ill], clean[~ill])
        assert torch.equal(bad_lse[~ill], lse[~ill])
        assert out[ill][-1].isnan().all()


def test_slots_of_no_row_are_never_read(write):
    """``inputs`` fills them with NaN: a finite answer is the proof."""
    views = write.views([write.Row([5], [write.Part([9, 2, 30, 4, 17, 6])]), write.Row([0, 1], [write.Part([11, 40])])])
    q, k, v = write.inputs(views, torch.float32)
    assert attend(q, k, v, views, scale=1.0)[0].isfinite().all()


# ---- merge --------------------------------------------------------------------------------------------------------------


def partial_results(count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(count)
    outs = torch.randn(count, 7, 3, 4, dtype=dtype, generator=generator)
    return list(outs), list(8 * torch.randn(count, 7, 3, dtype=dtype, generator=generator))


def test_merge_is_commutative_and_associative():
    (a, b, c), (x, y, z) = partial_results(3)
    for one, other in (
        (merge(a, x, b, y), merge(b, y, a, x)),
        (merge(*merge(a, x, b, y), c, z), merge(a, x, *merge(b, y, c, z))),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_merge_with_what_saw_nothing(dtype):
    (a, _), (lse, _) = partial_results(2)
    a, lse = a.to(dtype), lse.to(torch.promote_types(dtype, torch.float32))
    nothing, never = torch.zeros_like(a), torch.full_like(lse, -torch.inf)
    for out, total in (merge(a, lse, nothing, never), merge(nothing, never, a, lse)):
        assert torch.equal(out, a)
        assert torch.equal(total, lse)
    out, total = merge(nothing, never, nothing, never)
    assert torch.equal(out, nothing)
    assert torch.equal(total, never)


def test_merge_with_weights_that_underflow():
    (a, b), _ = partial_results(2, torch.float32)
    high, low = torch.full(a.shape[:-1], 200.0), torch.full(a.shape[:-1], -200.0)
    for out, lse in (merge(a, high, b, low), merge(b, low, a, high)):
        assert torch.equal(out, a)
        assert torch.equal(lse, high)


@pytest.mark.parametrize("seed", range(5))
def test_keys_split_at_random_merge_to_the_whole(write, seed):
    rng = np.random.default_rng(seed)
    slots, cuts = rng.permutation(50), np.sort(rng.integers(0, 51, 3))
    everything = write.views([write.Row([49], [write.Part(slots)], last=[[49]])])
    q, k, v = write.inputs(everything, torch.float64)
    whole = attend(q, k, v, everything, scale=0.7, need_lse=True)
    total = None
    for piece in np.split(slots, cuts):
        views = write.views([write.Row([49], [write.Part(piece)], last=[[49]])])
        part = attend(q, k, v, views, scale=0.7, need_lse=True)
        total = part if total is None else merge(*total, *part)
    torch.testing.assert_close(total, whole, rtol=0, atol=1e-9)


# ---- errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 4)}, r"\(2, 4\)"),
        ({"q": torch.zeros(2, 3, 8)}, r"q \(2, 3, 8\), k \(6, 2, 8\)"),
        ({"q": torch.zeros(2, 4, 6)}, r"q \(2, 4, 6\), k \(6, 2, 8\)"),
        ({"v": torch.zeros(5, 2, 8)}, r"v \(5, 2, 8\)"),
        ({"v": torch.zeros(6, 1, 8)}, r"v \(6, 1, 8\)"),
        ({"q": torch.zeros(3, 4, 8)}, "3 query rows for views of 2"),
        ({"window": 0}, "window=0"),
        ({"window": -3}, "window=-3"),
        ({"impl": "cuda-7"}, "impl='cuda-7'"),
        ({"rotary": None}, "rotation offset"),
    ],
)
def test_errors_name_the_value(write, change, message):
    views = write.views([write.Row([3], [write.Part([0, 1, 2])]), write.Row([5], [write.Part([3, 4, 5], 3)])])
    call = {"q": torch.zeros(2, 4, 8), "k": torch.zeros(6, 2, 8), "v": torch.zeros(6, 2, 8), "rotary": ROTARY} | change
    with pytest.raises(ValueError, match=message):
        attend(call.pop("q"), call.pop("k"), call.pop("v"), views, scale=1.0, **call)


def test_choose_says_what_runs_and_why(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose("torch", cuda) == ("torch", "asked for")
    assert choose(device=cpu) == ("torch", "the one for a CPU")
    fast = next(iter(attention.FAST))
    reasons: dict[str, str] = {}
    fake = SimpleNamespace(refuses=lambda device, dtype, dim, dim_v: reasons.get(device.type))
    monkeypatch.setattr(attention, "_module", lambda name: fake)
    monkeypatch.setattr(attention, "_best", attention._best.__wrapped__)
    assert choose("auto", cuda) == (fast, "preferred on a GPU")
    assert choose(fast, cuda) == (fast, "asked for")
    reasons["cuda"] = "an old card"
    name, why = choose("auto", cuda)
    assert name == "torch"
    assert f"{fast}: an old card" in why
    monkeypatch.setattr(attention, "_module", lambda name: ImportError("no such thing"))
    assert "not importable (no such thing)" in choose("auto", cuda)[1]
    with pytest.raises(ValueError, match=rf"impl='{fast}': not importable \(no such thing\)"):
        choose(fast, cuda)


def test_a_named_one_never_falls_back(write):
    """Triton on a CPU without its interpreter: in a process of its own, because triton reads the setting once."""
    pytest.importorskip("triton")
    code = "import torch; from forethought.kernels.attention import choose; print(choose(device=torch.device('cpu')))"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", f"{code}; choose('triton')"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("('torch'")
    assert "ValueError: impl='triton': tensors on a CPU need Triton's interpreter: set TRITON_INTERPRET=1" in done.stderr
