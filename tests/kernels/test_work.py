"""The work list, expanded, is what views say each query sees; its items are trimmed, shared and cut as counted bytes say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from forethought.kernels import work as module
from forethought.kernels.views import Views
from forethought.kernels.work import Shape, Work, work_for

CPU = torch.device("cpu")
SHAPE = Shape(heads=8, kv_heads=2, dim=64, dim_v=64, itemsize=2)
CHEAP_PARTIALS = Shape(heads=1, kv_heads=1, dim=4096, dim_v=1, itemsize=8)


def make(views: Views, window: int | None = None, tile: int = 16, splits: int = 1, shape: Shape = SHAPE, few: int = 0) -> Work:
    views.plans.clear()
    return work_for(views, window, CPU, tile=tile, splits=splits, shape=shape, few=few)


def expanded(work: Work) -> Counter[tuple[int, int]]:
    """How often each query reads each pool row, by the rule in the docstring of ``Work``, a slot at a time."""
    seen: Counter[tuple[int, int]] = Counter()
    pairs, slots = work.pairs.tolist(), work.slots.tolist()
    for pair_begin, pair_end, begin, end, base, own in work.items.tolist():
        for query, last, first, _ in pairs[pair_begin:pair_end]:
            for s in range(begin, end):
                x = base + s - begin if work.slot_positions is None else int(work.slot_positions[s])
                mine = work.tree is None or s <= own or int(work.tree[query]) >> min(s - own - 1, 63) & 1
                if first <= x <= last and mine:
                    seen[query, slots[s]] += 1
    return seen


def visible(views: Views, window: int | None, sees) -> Counter[tuple[int, int]]:
    seen: Counter[tuple[int, int]] = Counter()
    for row in range(views.rows):
        for t in range(views.query_ptr[row], views.query_ptr[row + 1]):
            for p in range(views.part_ptr[row], views.part_ptr[row + 1]):
                for i in range(views.slot_ptr[p], views.slot_ptr[p + 1]):
                    if sees(views, row, t, p, i, window):
                        seen[t, int(views.slots[i])] += 1
    return seen


def check(views: Views, work: Work, window: int | None, sees, tile: int, few: int = 0) -> None:
    """Everything that kernels rely on."""
    assert expanded(work) == visible(views, window, sees)
    items, pairs = work.items.numpy(), work.pairs.numpy()
    counts = items[:, 1] - items[:, 0]
    assert (counts >= 1).all()
    assert (counts <= tile).all()
    assert (items[:, 2] < items[:, 3]).all()
    assert work.most_pairs == counts.max(initial=0)
    assert items[:, 1].tolist() == np.cumsum(counts).tolist()
    assert len(pairs) == counts.sum()
    assert work.slot_reads == (items[:, 3] - items[:, 2]).sum()
    each = np.bincount(pairs[:, 0], minlength=views.queries)
    assert work.blind == bool((each == 0).any())
    if work.merge_ptr is None:
        assert work.merge_list is None
        assert each.max(initial=0) <= 1
    else:
        ptr, merges = work.merge_ptr.numpy(), work.merge_list.numpy()
        assert sorted(merges.tolist()) == list(range(len(pairs)))
        for query in range(views.queries):
            assert (pairs[merges[ptr[query] : ptr[query + 1]], 0] == query).all()
    reads = expanded(work)
    for (pair_begin, pair_end, begin, end, _, _), (wide, wide_end) in zip(items.tolist(), work.open.tolist(), strict=True):
        assert begin <= wide <= wide_end <= end
        for query in pairs[pair_begin:pair_end, 0].tolist():
            assert all(reads[query, int(work.slots[s])] for s in range(wide, wide_end))
    assert work.masked == bool((work.open != work.items[:, 2:4]).any())
    assert sorted(counts > few, key=bool) == (counts > few).tolist()
    assert work.few == (counts <= few).sum()
    if not work.masked:
        assert sum(expanded(work).values()) == (counts * (items[:, 3] - items[:, 2])).sum()
    if views.offsets is None:
        assert not pairs[:, 3].any()
    assert work.turned == bool(pairs[:, 3].any())


def decode(write, contexts):
    return write.views([write.Row([len(c) - 1], [write.Part(c)]) for c in contexts])


@pytest.mark.parametrize("window", [None, 1, 100, 1000])
@pytest.mark.parametrize("lengths", [(1,), (700,), (5, 130, 64, 1), (300, 300)])
def test_plain_decoding(write, rule, lengths, window):
    free = iter(range(2000))
    views = decode(write, [[next(free) for _ in range(n)] for n in lengths])
    for splits in (1, 4, 100):
        work = make(views, window, splits=splits)
        check(views, work, window, rule, 16)
        assert not work.masked
        assert work.slot_reads == sum(n if window is None else min(n, window) for n in lengths)


def test_nothing(write, rule):
    for rows in ([], [write.Row([], [write.Part([0, 1])])], [write.Row([0], [])], [write.Row([0], [write.Part([])])]):
        views = write.views(rows)
        work = make(views)
        check(views, work, None, rule, 16)
        assert len(work.items) == work.slot_reads == 0


def test_a_long_context_is_cut_evenly_and_a_short_one_is_not(write, rule):
    views = decode(write, [range(1000), range(1000, 1100)])
    work = make(views, splits=8)
    lengths = (work.items[:, 3] - work.items[:, 2]).tolist()
    assert lengths == [160] * 6 + [40] + [100]
    check(views, work, None, rule, 16)
    assert len(make(views, splits=1).items) == 2


def test_a_shared_prefix_is_read_once_when_that_moves_fewer_bytes(write, rule):
    def contexts(common):
        return [[*range(common), *range(1000 + 10 * r, 1003 + 10 * r)] for r in range(40)]

    views = decode(write, contexts(200))
    work = make(views)
    check(views, work, None, rule, 16)
    assert work.slot_reads == 3 * 200 + 40 * 3  # 40 queries are three tiles of 16
    assert work.merge_ptr is not None
    for common in range(1, 40):
        views = decode(write, contexts(common))
        shared, apart = make(views), 40 * (common + 3)
        saved = (apart - shared.slot_reads) * SHAPE.slot_bytes
        assert shared.slot_reads == apart or saved > 2 * 40 * SHAPE.partial_bytes
        if shared.slot_reads == apart:
            assert (40 - 3) * common * SHAPE.slot_bytes <= 2 * 40 * SHAPE.partial_bytes


def test_prefixes_of_prefixes(write, rule):
    """Eight rows share 300 slots, each half of them 100 more: both are read once."""
    contexts = [[*range(300), *range(1000 + r // 4 * 500, 1100 + r // 4 * 500), 3000 + r] for r in range(8)]
    views = decode(write, contexts)
    work = make(views, shape=CHEAP_PARTIALS)
    check(views, work, None, rule, 16)
    assert work.slot_reads == 300 + 2 * 100 + 8


def test_prefill_reads_what_its_tile_can_see(write, rule):
    views = write.views([write.Row(range(40), [write.Part(range(40))])])
    work = make(views, tile=16)
    check(views, work, None, rule, 16)
    assert work.slot_reads == 16 + 32 + 40
    assert work.masked
    work = make(views, 4, tile=16)
    check(views, work, 4, rule, 16)
    assert work.slot_reads == 16 + 19 + 11


def test_bytes(write):
    one = make(decode(write, [range(100)]))
    assert one.bytes_moved(SHAPE) == 100 * 2 * 128 * 2 + 8 * 2 * 128
    two = make(decode(write, [range(256)]), splits=2)
    assert len(two.items) == 2
    assert two.bytes_moved(SHAPE) == 256 * 2 * 128 * 2 + 8 * 2 * (2 * 64 + 64) + 2 * 2 * 8 * 65 * 4


def test_kept_on_the_views(write):
    views = decode(write, [range(10)])
    kwargs = {"tile": 4, "splits": 2, "shape": SHAPE}
    assert work_for(views, None, CPU, **kwargs) is work_for(views, None, CPU, **kwargs)
    assert work_for(views, 3, CPU, **kwargs) is not work_for(views, None, CPU, **kwargs)
    with pytest.raises(ValueError, match="tile=0"):
        make(views, tile=0)


def test_random_views(write, rule, calls):
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=300, deadline=None)
    @hypothesis.given(
        st.data(),
        st.sampled_from([None, 1, 3, 30]),
        st.sampled_from([1, 3, 16]),
        st.sampled_from([1, 7, 50]),
        st.booleans(),
        st.integers(0, 3),
    )
    def holds(data, window, tile, splits, cheap, few):
        views = data.draw(calls(write))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "LEAST_RUN", 4)
            patch.setattr(module, "RUN_STEP", 4)
            work = make(views, window, tile=tile, splits=splits, shape=CHEAP_PARTIALS if cheap else SHAPE, few=few)
        check(views, work, window, rule, tile, few)

    holds()
