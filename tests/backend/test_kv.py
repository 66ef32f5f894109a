"""The pool's books: random work against a plain model of who counts on what, and the edges of each operation."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch

from forethought.backend.kv import Context, KVPool, LayerSpec, PoolFull
from forethought.kernels.rotary import Rotary

CPU = torch.device("cpu")
TABLE = Rotary(torch.tensor([1.0, 0.1]))


def new_pool(size: int = 16, *, rotary: Rotary | None = TABLE) -> KVPool:
    return KVPool([LayerSpec(1, 4, 2, CPU, rotary), LayerSpec(2, 6, 3, CPU, rotary)], size, torch.float32)


def grow(context: Context, ids: list[int], **commit: object) -> None:
    context.stage(context.pool.allocate(commit.pop("slots", len(ids))))  # type: ignore[call-overload]
    context.commit(ids, **commit)  # type: ignore[arg-type]


# ---- random work --------------------------------------------------------------------------------------------------


class Books:
    """A pool under random work, beside the plainest possible account of it.

    Contexts are lists of (token ids of a slot, mark, position); the mark is written into the slot's K and V when it is
    filled, so that a slot that changes hands or content behind a context's back is seen.
    """

    def __init__(self, choose: random.Random, size: int) -> None:
        self.choose, self.pool = choose, new_pool(size)
        self.contexts: list[tuple[Context, list[tuple[tuple[int, ...], float, int]]]] = []
        self.held = dict[int, float]()
        self.mark = 0.0

    def step(self) -> None:
        names = (
            "grow",
            "grow",
            "tree",
            "fused",
            "fork",
            "truncate",
            "truncate",
            "rollback",
            "release",
            "hold",
            "drop",
            "adopt",
            "rebase",
        )
        getattr(self, self.choose.choice(names))()
        self.check()

    def pick(self) -> tuple[Context, list[tuple[tuple[int, ...], float, int]]]:
        if not self.contexts or (len(self.contexts) < 6 and self.choose.random() < 0.3):
            self.contexts.append((self.pool.new_context(), []))
        return self.choose.choice(self.contexts)

    def staged(self, context: Context, n: int, positions: np.ndarray | None = None) -> np.ndarray | None:
        """``n`` slots behind ``context``, filled; None, and nothing changed, where there are not so many."""
        free = self.pool.free
        try:
            slots = self.pool.allocate(n)
        except PoolFull:
            assert n > free == self.pool.free
            return None
        for slot in slots.tolist():
            self.mark += 1
            for layer in (*self.pool.k, *self.pool.v):
                layer[slot] = self.mark
        context.stage(slots, positions)
        return slots

    def marks(self, slots: np.ndarray) -> list[float]:
        """What V holds there (K may have been turned)."""
        return [float(self.pool.v[0][s, 0, 0]) for s in slots.tolist()]

    def grow(self) -> None:
        context, account = self.pick()
        start, n = context.next_position, self.choose.randint(1, 4)
        if (slots := self.staged(context, n)) is not None:
            ids = [self.choose.randint(0, 9) for _ in range(n)]
            context.commit(ids)
            account.extend(((i,), mark, start + j) for j, (i, mark) in enumerate(zip(ids, self.marks(slots), strict=True)))

    def tree(self) -> None:
        """Staged with positions of its own, of which a path is kept."""
        context, account = self.pick()
        n = self.choose.randint(1, 6)
        kept = sorted(self.choose.sample(range(n), self.choose.randint(0, n)))
        start = context.next_position
        positions = np.full(n, start + 50)
        positions[kept] = np.arange(start, start + len(kept))
        if (slots := self.staged(context, n, positions)) is not None:
            ids = [self.choose.randint(0, 9) for _ in kept]
            marks = self.marks(slots[kept])
            context.commit(ids, np.array(kept, np.int64))
            account.extend(((i,), mark, start + j) for j, (i, mark) in enumerate(zip(ids, marks, strict=True)))

    def fused(self) -> None:
        context, account = self.pick()
        spans = [self.choose.randint(0, 3) for _ in range(self.choose.randint(1, 3))]
        start = context.next_position
        if (slots := self.staged(context, len(spans))) is not None:
            tokens = [tuple(self.choose.randint(0, 9) for _ in range(span)) for span in spans]
            context.commit([i for own in tokens for i in own], spans=spans)
            account.extend((own, mark, start + j) for j, (own, mark) in enumerate(zip(tokens, self.marks(slots), strict=True)))

    def fork(self) -> None:
        context, account = self.pick()
        if len(self.contexts) < 8:
            self.contexts.append((context.fork(), list(account)))

    def truncate(self) -> None:
        context, account = self.pick()
        keep, again = self.choose.randint(0, len(context)), list[int]()
        kept = 0
        for size, (ids, _, _) in enumerate(account):
            if kept + len(ids) > keep:
                again = list(ids[: keep - kept])
                del account[size:]
                break
            kept += len(ids)
        assert context.truncate(keep) == again

    def rollback(self) -> None:
        context, _ = self.pick()
        positions = context.next_position + 3 + np.arange(2) if self.choose.random() < 0.3 else None
        if self.staged(context, 2, positions) is not None:
            context.rollback()

    def release(self) -> None:
        context, account = self.pick()
        if self.choose.random() < 0.5:
            self.staged(context, 1)
        context.release()
        account.clear()

    def hold(self) -> None:
        context, _ = self.pick()
        new = [s for s in context.slots.tolist() if s not in self.held][: self.choose.randint(0, 3)]
        self.pool.hold(np.array(new, np.int64))
        self.held |= dict(zip(new, self.marks(np.array(new, np.int64)), strict=True))

    def drop(self) -> None:
        slots = self.choose.sample(sorted(self.held), min(len(self.held), self.choose.randint(0, 3)))
        free = self.pool.free
        assert self.pool.drop(np.array(slots, np.int64)) == self.pool.free - free
        for slot in slots:
            del self.held[slot]

    def adopt(self) -> None:
        if self.held and len(self.contexts) < 8:
            slots = self.choose.sample(sorted(self.held), self.choose.randint(1, min(3, len(self.held))))
            context, ids = self.pool.new_context(), [1] * len(slots)
            context.adopt(ids, np.array(slots))
            self.contexts.append((context, [((1,), self.held[slot], j) for j, slot in enumerate(slots)]))

    def rebase(self) -> None:
        context, account = self.pick()
        offset, before = self.choose.randint(0, 3), context.slots.copy()
        shared = int(self.pool.shared(context.slots).sum())
        try:
            context.rebase(offset)
        except PoolFull:
            assert shared > self.pool.free
            assert (context.slots == before).all()
            return
        account[:] = [(ids, mark, position + offset) for ids, mark, position in account]

    def check(self) -> None:
        pool = self.pool
        counts = Counter(s for context, _ in self.contexts for s in context.slots.tolist())
        assert (pool.used, pool.cached) == (len(counts), len(self.held.keys() - counts.keys()))
        assert pool.used + pool.cached + pool.free == pool.size
        everything = np.arange(pool.size)
        assert pool.idle_mask(everything).tolist() == [s not in counts for s in range(pool.size)]
        assert pool.shared(everything).tolist() == [counts[s] > 1 or s in self.held for s in range(pool.size)]
        for context, account in self.contexts:
            assert (context.size, context.pending) == (len(account), 0)
            assert context.ids == [i for ids, _, _ in account for i in ids]
            assert context.stored_positions().tolist() == [position for _, _, position in account]
            assert context.next_position == (account[-1][2] + 1 if account else 0)
            assert self.marks(context.slots) == [mark for _, mark, _ in account]
            if context.plain:
                assert [(len(ids), position) for ids, _, position in account] == [(1, j) for j in range(len(account))]

    def close(self) -> None:
        for context, _ in self.contexts:
            context.release()
        self.pool.drop(np.array(sorted(self.held), np.int64))
        assert (self.pool.used, self.pool.cached, self.pool.free) == (0, 0, self.pool.size)
        assert sorted(self.pool.allocate(self.pool.size).tolist()) == list(range(self.pool.size)), (
            "a slot is listed twice, or lost"
        )


def work(steps: int, seed: int) -> None:
    choose = random.Random(seed)
    for _ in range(steps // 500):
        books = Books(choose, choose.choice([1, 5, 24, 60]))
        for _ in range(500):
            books.step()
        books.close()


@pytest.mark.parametrize("seed", range(2))
def test_the_books_balance(seed: int) -> None:
    work(5_000, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 14))
def test_the_books_balance_for_long(seed: int) -> None:
    work(25_000, seed)


def test_the_books_balance_hypothesis() -> None:
    """The same work, its choices made (and, for a failure, made few) by hypothesis."""
    hypothesis = pytest.importorskip("hypothesis")
    some = hypothesis.strategies

    @hypothesis.given(some.randoms(use_true_random=False), some.sampled_from([1, 4, 30]), some.integers(1, 40))
    @hypothesis.settings(max_examples=60)
    def check(choose: random.Random, size: int, steps: int) -> None:
        books = Books(choose, size)
        for _ in range(steps):
            books.step()
        books.close()

    check()


# ---- edges --------------------------------------------------------------------------------------------------------


def test_a_slot_is_as_large_as_its_layers() -> None:
    pool = new_pool(3)
    assert [tuple(t.shape) for t in (*pool.k, *pool.v)] == [(3, 1, 4), (3, 2, 6), (3, 1, 2), (3, 2, 3)]
    assert pool.slot_bytes == 4 * (4 + 2 + 2 * (6 + 3))
    with pytest.raises(ValueError, match="kv_slots=0: at least 1"):
        new_pool(0)


def test_a_full_pool_says_how_full_and_changes_nothing() -> None:
    pool = new_pool(4)
    kept = pool.allocate(1)
    cached = pool.allocate(1)
    pool.hold(cached)
    pool.release(cached)
    with pytest.raises(PoolFull, match=r"3 slots asked, 2 free of 4 \(1 used, 1 cached\)"):
        pool.allocate(3)
    assert (pool.used, pool.cached, pool.free) == (1, 1, 2)
    pool.release(kept)


def test_fresh_slots_lie_side_by_side() -> None:
    """A run of slots is read without a gather."""
    pool = new_pool(8)
    assert pool.allocate(5).tolist() == [0, 1, 2, 3, 4]
    assert pool.allocate(3).tolist() == [5, 6, 7]
    pool.release(np.array([2, 3, 4]))
    assert pool.allocate(3).tolist() == [2, 3, 4]


def test_mistakes_with_counts_are_refused() -> None:
    pool = new_pool()
    slots = pool.allocate(3)
    pool.release(slots[:1])
    with pytest.raises(ValueError, match=r"slots \[0\] released more often than taken"):
        pool.release(slots)
    assert pool.used == 2
    pool.hold(slots[1:])
    with pytest.raises(ValueError, match="held already"):
        pool.hold(slots[2:])
    pool.release(slots[1:])
    assert (pool.used, pool.cached) == (0, 2)


def test_one_call_at_a_time() -> None:
    pool = new_pool()
    context = pool.new_context()
    context.stage(pool.allocate(2))
    more = pool.allocate(1)
    with pytest.raises(ValueError, match="one row of a call at a time"):
        context.stage(more)
    pool.release(more)
    with pytest.raises(ValueError, match="3 token ids for 2 kept slots"):
        context.commit([1, 2, 3])
    with pytest.raises(ValueError, match=r"2 token ids for 2 kept slots of spans \[1, 2\]"):
        context.commit([1, 2], spans=[1, 2])
    context.commit([1, 2])
    assert context.ids == [1, 2]


def test_truncating_inside_a_fused_slot() -> None:
    pool = new_pool()
    context = pool.new_context()
    grow(context, [1, 2])
    assert context.plain
    grow(context, [3, 4, 5, 6], slots=2, spans=[3, 1])
    assert not context.plain
    assert (len(context), context.size, context.next_position) == (6, 4, 4)
    assert context.truncate(6) == []
    assert context.truncate(5) == []
    assert (context.ids, context.size) == ([1, 2, 3, 4, 5], 3)
    twin = context.fork()
    assert context.truncate(4) == [3, 4], "its slot is dropped whole"
    assert (context.ids, context.size, pool.used) == ([1, 2], 2, 3)
    assert twin.truncate(2) == []
    assert (twin.size, pool.used) == (2, 2)
    with pytest.raises(ValueError, match="cannot keep 3 of 2"):
        context.truncate(3)
    grow(context, [3, 4])
    assert (context.ids, context.size) == ([1, 2, 3, 4], 4)


def test_slots_that_stand_for_nothing_go_with_what_follows_them() -> None:
    """A slot of span 0 (KV without text of its own) stays while everything before it stays."""
    pool = new_pool()
    context = pool.new_context()
    grow(context, [1, 2, 3], slots=4, spans=[1, 1, 0, 1])
    assert context.truncate(2) == []
    assert (context.ids, context.size) == ([1, 2], 3)
    assert context.truncate(1) == []
    assert (context.ids, context.size) == ([1], 1)


def test_positions_of_its_own() -> None:
    pool = new_pool()
    context = pool.new_context()
    grow(context, [1, 2])
    context.stage(pool.allocate(3), np.array([5, 6, 7]))
    assert context.stored_positions().tolist() == [0, 1, 5, 6, 7]
    context.commit([3, 4, 5])
    assert (context.next_position, context.plain) == (8, False)
    grow(context, [6])
    assert context.stored_positions().tolist() == [0, 1, 5, 6, 7, 8]


def test_rebase_turns_keys_and_nothing_else() -> None:
    pool = new_pool()
    context = pool.new_context()
    grow(context, [1, 2, 3])
    for layer in (*pool.k, *pool.v):
        layer.copy_(torch.randn_like(layer))
    keys, values = [k[:3].clone() for k in pool.k], [v[:3].clone() for v in pool.v]
    pool.hold(context.slots[:1].copy())
    context.rebase(4)
    moved = torch.from_numpy(context.slots)
    assert moved.tolist()[1:] == [1, 2], "in place where nobody else looks"
    assert moved.tolist()[0] != 0
    for k, v, key, value in zip(pool.k, pool.v, keys, values, strict=True):
        torch.testing.assert_close(k[moved], TABLE.rotate(key, torch.tensor([4, 4, 4])))
        assert torch.equal(v[moved], value)
        assert torch.equal(k[0], key[0])
    assert (pool.used, pool.cached) == (3, 1)
    context.rebase(-4)
    assert context.stored_positions().tolist() == [0, 1, 2]
    for k, key in zip(pool.k, keys, strict=True):
        torch.testing.assert_close(k[torch.from_numpy(context.slots)], key)


def test_keys_without_rotation_stay_where_they_are() -> None:
    pool = new_pool(rotary=None)
    context = pool.new_context()
    grow(context, [1])
    with pytest.raises(ValueError, match="no rotary position"):
        context.rebase(1)
    assert (context.slots.tolist(), pool.used) == ([0], 1)
