"""The prefix tree against the plainest thing that could be said about it: a dictionary from prefixes to slots."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from lab import audit

from forethought.backend.batch import Row, TokenBatch
from forethought.backend.kv import Context, KVPool, LayerSpec
from forethought.backend.prefix import PrefixTree, common


def new_pool(size: int) -> KVPool:
    return KVPool([LayerSpec(1, 1, 1, torch.device("cpu"))], size, torch.float32)


def write(context: Context, ids: list[int]) -> None:
    """Put ``ids`` behind ``context``; each slot's key remembers its id, its value the hash of everything up to it."""
    pool, known = context.pool, len(context.ids)
    batch = TokenBatch(pool, [Row(context, ids)])
    whole = [*context.ids, *ids]
    for i, slot in enumerate(batch.slots.tolist()):
        pool.k[0][slot], pool.v[0][slot] = ids[i], hash(tuple(whole[: known + i + 1])) % 1000003
    batch.commit()


def stands_for(pool: KVPool, slots: np.ndarray, ids: list[int]) -> bool:
    """Whether ``slots`` hold the KV of exactly ``ids``, each computed behind the ones before it."""
    keys, values = pool.k[0][slots, 0, 0].tolist(), pool.v[0][slots, 0, 0].tolist()
    return keys == ids and values == [float(np.float32(hash(tuple(ids[: i + 1])) % 1000003)) for i in range(len(ids))]


@pytest.fixture
def pool() -> KVPool:
    return new_pool(64)


@pytest.fixture
def tree(pool: KVPool) -> Iterator[PrefixTree]:
    tree = PrefixTree(pool)
    yield tree
    audit(pool, tree)


def remember(tree: PrefixTree, ids: list[int]) -> Context:
    context = tree.pool.new_context()
    write(context, ids)
    tree.insert(context.ids, context.slots)
    return context


def test_common_prefixes() -> None:
    assert [common(a, b) for a, b in (([], []), ([1], []), ([1, 2], [1, 2]), ([1, 2, 3], [1, 2]), ([1, 2, 3], [1, 4, 3]))] == [
        0, 0, 2, 2, 1,
    ]  # fmt: skip


def test_the_longest_known_prefix_is_found(tree: PrefixTree, pool: KVPool) -> None:
    remember(tree, [1, 2, 3, 4]).release()
    remember(tree, [1, 2, 5]).release()
    assert pool.cached == 5, "the prefix in common is held once"
    for ids, known in (([1, 2, 3, 4, 9], 4), ([1, 2, 3], 3), ([1, 2, 5, 5], 3), ([1, 2, 7], 2), ([2], 0), ([], 0)):
        found = tree.match(ids)
        assert len(found) == known
        assert stands_for(pool, found, ids[:known])


def test_known_slots_stay_and_duplicates_are_freed_with_their_context(tree: PrefixTree, pool: KVPool) -> None:
    first, second = remember(tree, [1, 2, 3]), remember(tree, [1, 2, 3])
    assert (tree.match([1, 2, 3]) == first.slots).all()
    assert pool.used == 6
    second.release()
    assert (pool.used, pool.cached, pool.free) == (3, 0, 61)
    first.release()
    assert (pool.used, pool.cached, pool.free) == (0, 3, 61)


def test_eviction_takes_the_longest_unused_from_their_ends(tree: PrefixTree, pool: KVPool) -> None:
    for ids in ([1, 2, 3], [4, 5, 6], [7, 8, 9]):
        remember(tree, ids).release()
    tree.match([1, 2, 3])
    assert tree.evict(2) == 2
    assert [len(tree.match(ids)) for ids in ([4, 5, 6], [7, 8, 9], [1, 2, 3])] == [1, 3, 3]
    assert tree.evict(100) == 7
    assert pool.free == 64


def test_an_edge_cut_in_two_is_as_fresh_as_it_was(tree: PrefixTree) -> None:
    for ids in ([9], [1, 2, 3], [1, 2, 4]):
        remember(tree, ids).release()
    tree.forget([1, 2, 3], 2)
    tree.forget([1, 2, 4], 2)
    assert tree.evict(1) == 1
    assert [len(tree.match(ids)) for ids in ([9], [1, 2])] == [0, 2]


def test_what_is_in_use_is_not_evicted(tree: PrefixTree, pool: KVPool) -> None:
    running = remember(tree, [1, 2, 3])
    remember(tree, [1, 2, 3, 4, 5]).release()
    assert tree.evict(10) == 2
    assert len(tree.match([1, 2, 3])) == 3
    running.release()
    assert tree.evict(10) == 3


def test_an_idle_copy_in_front_of_a_running_one_can_be_evicted(tree: PrefixTree, pool: KVPool) -> None:
    """The second context computed [1, 2] by itself, so the tree's [1, 2] is idle while its [3] is in use."""
    first, second = remember(tree, [1, 2]), remember(tree, [1, 2, 3])
    first.release()
    assert (pool.used, pool.cached) == (3, 2)
    assert tree.evict(1) >= 1
    assert pool.used == 3
    audit(pool, tree)
    second.release()
    assert tree.evict(64) + pool.free >= 3
    tree.clear()
    assert pool.free == 64


def test_what_is_forgotten_is_not_found_and_what_is_in_front_stays(tree: PrefixTree, pool: KVPool) -> None:
    running = remember(tree, [1, 2, 3, 4])
    remember(tree, [1, 2, 3, 9]).release()
    remember(tree, [1, 5]).release()
    tree.forget([1, 2, 3, 4], 2)
    assert [len(tree.match(ids)) for ids in ([1, 2, 3, 4], [1, 2, 3, 9], [1, 5])] == [2, 2, 2]
    tree.forget([1, 2, 7], 2)
    tree.forget([8], 0)
    assert len(tree.match([1, 2])) == 2, "nothing is known there"
    tree.forget([1, 2], 0)
    assert pool.cached == 0
    assert pool.used == 4
    running.release()
    assert pool.free == 64


def test_any_order_of_use_leaks_nothing_and_finds_only_what_is_so() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    operations = st.lists(
        st.one_of(
            st.tuples(st.just("run"), st.lists(st.integers(0, 2), min_size=1, max_size=9), st.booleans()),
            st.tuples(st.just("insert"), st.integers(0, 9)),
            st.tuples(st.just("release"), st.integers(0, 9)),
            st.tuples(st.just("fork"), st.integers(0, 9), st.integers(0, 9)),
            st.tuples(st.just("evict"), st.integers(1, 40)),
            st.tuples(st.just("clear")),
            st.tuples(st.just("forget"), st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(0, 8)),
        ),
        max_size=40,
    )

    @hypothesis.settings(max_examples=150)
    @hypothesis.given(operations)
    def check(script: list[tuple]) -> None:
        pool = new_pool(40)
        tree, live = PrefixTree(pool), list[Context]()
        for what, *args in script:
            if what == "run":
                ids, adopt = args
                found = tree.match(ids)
                assert stands_for(pool, found, ids[: len(found)]), "a match is a true prefix"
                context = pool.new_context()
                if adopt:
                    context.adopt(ids[: len(found)], found)
                new = ids[len(context.ids) :]
                if pool.free < len(new):
                    before, needed = pool.cached, len(new) - pool.free
                    assert tree.evict(needed) >= min(needed, before), "every cached slot can be had"
                if new and pool.free >= len(new):
                    write(context, new)
                live.append(context)
            elif what == "clear":
                tree.clear()
            elif what == "forget":
                ids, keep = args
                before = len(tree.match(ids))
                tree.forget(ids, keep)
                assert len(tree.match(ids)) == min(before, keep)
            elif what == "evict":
                cached = pool.cached
                freed = tree.evict(*args)
                assert freed >= min(args[0], cached)
                assert pool.cached == cached - freed
            elif args[0] < len(live):
                context = live[args[0]]
                if what == "insert" and context.ids:
                    tree.insert(context.ids, context.slots)
                    found = tree.match(context.ids)
                    assert len(found) == len(context.ids), "what was put in is found"
                elif what == "fork":
                    twin = context.fork()
                    twin.truncate(min(args[1], len(twin.ids)))
                    live.append(twin)
                elif what == "release":
                    live.pop(args[0]).release()
            audit(pool, tree)
            assert pool.used == len({int(s) for c in live for s in c.slots})
            for context in live:
                assert stands_for(pool, context.slots, context.ids), "nobody's KV was overwritten"
        for context in live:
            context.release()
        tree.clear()
        assert pool.free == pool.size

    check()
