"""The flat form of a call: what is staged, who sees what, what a commit keeps, and that a bad call leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from forethought.backend.batch import Ahead, Part, Row, TokenBatch
from forethought.backend.kv import Context, KVPool, LayerSpec, PoolFull
from forethought.kernels.rotary import Rotary


@pytest.fixture
def pool() -> KVPool:
    return KVPool([LayerSpec(1, 2, 2, torch.device("cpu"))], 40, torch.float32)


def filled(pool: KVPool, n: int) -> Context:
    context = pool.new_context()
    TokenBatch(pool, [Row(context, list(range(n)))]).commit()
    return context


def test_rows_lie_end_to_end(pool: KVPool) -> None:
    first, second, third = filled(pool, 3), pool.new_context(), filled(pool, 2)
    batch = TokenBatch(pool, [Row(first, [7]), Row(second, [4, 5, 6]), Row(third, [8, 9], logits=np.array([1]))])
    assert batch.ids.tolist() == [7, 4, 5, 6, 8, 9]
    assert batch.positions.tolist() == [3, 0, 1, 2, 2, 3]
    assert batch.row_ptr.tolist() == [0, 1, 4, 6]
    assert batch.wanted is not None
    assert batch.wanted.tolist() == [0, 1, 2, 3, 5]
    assert (batch.slots == np.concatenate([c.staged[c.size :] for c in (first, second, third)])).all()
    views = batch.views
    assert views.slot_ptr.tolist() == [0, 4, 7, 11]
    assert (views.slots == np.concatenate([c.staged for c in (first, second, third)])).all()
    assert (views.slot_positions, views.offsets, views.last, views.tree) == (None, None, None, None)
    views.check(pool.size)
    ids, positions, slots = batch.tensors(torch.device("cpu"))
    assert (ids.tolist(), positions.tolist(), slots.tolist()) == (
        batch.ids.tolist(),
        batch.positions.tolist(),
        batch.slots.tolist(),
    )
    batch.commit()
    assert [c.ids for c in (first, second, third)] == [[0, 1, 2, 7], [4, 5, 6], [0, 1, 8, 9]]
    assert pool.used == 11
    assert TokenBatch(pool, [Row(first, [1]), Row(second, [2])]).wanted is None


def test_single_tokens_take_the_short_way_to_the_same_tables(pool: KVPool) -> None:
    """A batch of one token a row is built without per-row arrays."""
    contexts = [filled(pool, n) for n in (3, 1, 5)]
    short = TokenBatch(pool, [Row(c, [9]) for c in contexts])
    table = short.positions, np.diff(short.views.slot_ptr), short.row_ptr
    short.rollback()
    other = pool.new_context()
    long = TokenBatch(pool, [*(Row(c, [9]) for c in contexts), Row(other, [1, 2])])
    assert table[0].tolist() == long.positions[:3].tolist() == [3, 1, 5]
    assert table[1].tolist() == np.diff(long.views.slot_ptr)[:3].tolist() == [4, 2, 6]
    assert table[2].tolist() == long.row_ptr[:4].tolist()
    long.rollback()
    placed = TokenBatch(pool, [Row(c, [9], positions=np.array([20 + i])) for i, c in enumerate(contexts)])
    assert placed.positions.tolist() == [20, 21, 22]
    assert placed.views.stored_positions().tolist() == [0, 1, 2, 20, 0, 21, 0, 1, 2, 3, 4, 22]


@pytest.mark.parametrize("compact", [True, False])
def test_a_tree(pool: KVPool, compact: bool) -> None:
    pool.compact = compact
    for i, tensor in enumerate((*pool.k, *pool.v)):
        tensor.copy_((100 * i + torch.arange(pool.size)).view(-1, 1, 1).expand(tensor.shape))
    context, neighbour = filled(pool, 4), filled(pool, 1)
    batch = TokenBatch(pool, [Row(neighbour, [1]), Row(context, [10, 11, 12, 13, 14], parents=[-1, 0, 0, 2, 1])])
    assert batch.positions.tolist() == [1, 4, 5, 5, 6, 6]
    assert batch.views.tree is not None
    assert batch.views.tree.tolist() == [-1, 0b0000, 0b0001, 0b0010, 0b0110, 0b1001]
    staged = context.staged.copy()
    batch.commit([None, np.array([0, 2, 3])])
    assert context.ids == [0, 1, 2, 3, 10, 12, 13]
    held = [*staged[:4], staged[4], staged[6], staged[7]]
    assert context.slots.tolist() == (staged[:7].tolist() if compact else held)
    for i, tensor in enumerate((*pool.k, *pool.v)):
        assert tensor[context.slots, 0, 0].tolist() == [100 * i + slot for slot in held], "as it was computed, wherever it is"
    assert context.stored_positions().tolist() == list(range(7))
    assert context.plain
    assert pool.used == 7 + 2


def test_nothing_need_be_kept(pool: KVPool) -> None:
    context = filled(pool, 2)
    batch = TokenBatch(pool, [Row(context, [5, 6])])
    batch.commit([np.array([], np.int64)])
    assert (context.ids, context.plain, pool.used) == ([0, 1], True, 2)


def test_a_view_of_several_contexts(pool: KVPool) -> None:
    one, two, own = filled(pool, 3), filled(pool, 2), pool.new_context()
    rows = [
        Row(own, [8, 9], view=[Part(one, 4), Part(two, last=0)], positions=np.array([7, 8])),
        Row(one, [5]),
    ]
    batch = TokenBatch(pool, rows)
    views = batch.views
    views.check(pool.size)
    assert views.part_ptr.tolist() == [0, 3, 4]
    assert np.diff(views.slot_ptr).tolist() == [4, 2, 2, 4], "a part shows what its context stages in this very call"
    assert views.offsets is not None
    assert views.offsets.tolist() == [4, 0, 0, 0]
    assert views.slot_positions is not None
    assert views.slot_positions.tolist() == [0, 1, 2, 3, 0, 1, 7, 8, 0, 1, 2, 3]
    everything = np.iinfo(np.int64).max
    assert views.last is not None
    assert views.last.tolist() == [everything, 0, 7, everything, 0, 8, 3]
    batch.commit()
    assert (own.plain, one.plain) == (False, True)


def test_embeddings_spoil_the_rows_they_are_in(pool: KVPool) -> None:
    contexts = [pool.new_context() for _ in range(3)]
    batch = TokenBatch(pool, [Row(c, [1, 2]) for c in contexts], embeddings=(torch.tensor([2, 3]), torch.zeros(2, 8)))
    batch.commit()
    assert [c.plain for c in contexts] == [True, False, True]


def test_rollback_gives_everything_back(pool: KVPool) -> None:
    context, empty = filled(pool, 3), pool.new_context()
    batch = TokenBatch(pool, [Row(context, [1, 2], parents=[-1, 0]), Row(empty, [5])])
    assert pool.used == 6
    batch.rollback()
    batch.rollback()
    assert (pool.used, context.ids, context.pending, len(empty)) == (3, [0, 1, 2], 0, 0)
    TokenBatch(pool, [Row(context, [7])]).commit()
    assert context.stored_positions().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda pool, c: [], ValueError, "without new tokens"),
        (lambda pool, c: [Row(c, [1]), Row(pool.new_context(), [])], ValueError, "without new tokens"),
        (lambda pool, c: [Row(pool.new_context(), list(range(38)))], PoolFull, "38 slots asked, 37 free"),
        (lambda pool, c: [Row(pool.new_context(), [1, 2]), Row(c, [1]), Row(c, [2])], ValueError, "one row of a call"),
        (lambda pool, c: [Row(pool.new_context(), [1]), Row(c, [1]), Row(c, [2])], ValueError, "one row of a call"),
        (lambda pool, c: [Row(c, [1, 2, 3], parents=[-1, 2, 0])], ValueError, "node 1 has parent 2"),
        (lambda pool, c: [Row(c, [1, 2, 3], parents=[0, 0, 1])], ValueError, "root"),
        (lambda pool, c: [Row(c, [1, 2, 3], parents=[-1, 0])], ValueError, "2 parents for 3 tokens"),
        (
            lambda pool, c: [Row(pool.new_context(), [9]), Row(c, [1, 2], positions=np.array([3]))],
            ValueError,
            "1 positions for 2 tokens",
        ),
        (lambda pool, c: [Row(c, [1], positions=np.array([3, 4]))], ValueError, "2 positions for 1 tokens"),
        (lambda pool, c: [Row(c, [1] * 66, parents=[-1] + [0] * 65)], ValueError, "at most a root and 64"),
        (
            lambda pool, c: [Row(c, [1, 2, 3], view=[Part(pool.new_context(), last=np.array([1, 2]))])],
            ValueError,
            "2 last visible",
        ),
        (lambda pool, c: [Row(c, [1]), Row(foreign(), [1])], ValueError, "another pool"),
        (lambda pool, c: [Row(c, [1], view=[Part(foreign())])], ValueError, "another pool"),
    ],
)
def test_a_bad_call_leaves_no_trace(build: Any, error: type[Exception], message: str, pool: KVPool) -> None:
    context = filled(pool, 3)
    with pytest.raises(error, match=message):
        TokenBatch(pool, build(pool, context))
    assert (pool.used, context.pending) == (3, 0)
    TokenBatch(pool, [Row(context, [1])]).commit()
    assert (pool.used, context.ids) == (4, [0, 1, 2, 1])


def foreign() -> Context:
    return KVPool([LayerSpec(1, 2, 2, torch.device("cpu"))], 40, torch.float32).new_context()


def test_a_call_under_way_is_not_disturbed(pool: KVPool) -> None:
    context = filled(pool, 3)
    under_way = TokenBatch(pool, [Row(context, [7, 8])])
    with pytest.raises(ValueError, match="one row of a call"):
        TokenBatch(pool, [Row(pool.new_context(), [1]), Row(context, [2])])
    under_way.commit()
    assert (context.ids, pool.used) == ([0, 1, 2, 7, 8], 5)


# ---- calls made ahead ------------------------------------------------------------------------------------------------

Contexts = list[Context]
SPARE = 0
"""A slot that is used when the call is made ahead."""


def again(pool: KVPool, c: Context) -> None:
    """The same ids, size and positions, in other slots."""
    ids = list(c.ids)
    held = pool.upcoming(1)
    c.release()
    pool.allocate(1)
    TokenBatch(pool, [Row(c, ids)]).commit()
    pool.release(held)


def replaced(pool: KVPool, c: Context) -> None:
    """Its last token, by another in the slot of somebody else, who took its own."""
    c.truncate(c.size - 1)
    pool.allocate(1)
    pool.release(np.array([SPARE]))
    TokenBatch(pool, [Row(c, [8])]).commit()


def copied(pool: KVPool, c: Context) -> None:
    """Moved by nothing, out of slots that others hold too."""
    c.fork()
    c.rebase(0)


def grown(pool: KVPool, c: Context) -> None:
    """By a token in another slot than it would have had, which is free again."""
    held = pool.allocate(3)
    TokenBatch(pool, [Row(c, [4])]).commit()
    pool.release(held)


EVENTS: dict[str, Callable[[KVPool, Contexts], list[Row] | None]] = {
    "nothing": lambda pool, c: None,
    "other ids": lambda pool, c: [Row(x, [1 + i]) for i, x in enumerate(c)],
    "one fewer": lambda pool, c: [Row(x, [9]) for x in c[1:]],
    "one more": lambda pool, c: [Row(x, [9]) for x in (*c, filled(pool, 2))],
    "another order": lambda pool, c: [Row(x, [9]) for x in c[::-1]],
    "another context": lambda pool, c: [Row(x, [9]) for x in (c[0].fork(), *c[1:])],
    "two tokens": lambda pool, c: [Row(c[0], [9, 9]), *(Row(x, [9]) for x in c[1:])],
    "a root": lambda pool, c: [Row(c[0], [9], [-1]), *(Row(x, [9]) for x in c[1:])],
    "a view": lambda pool, c: [Row(c[0], [9], view=[Part(filled(pool, 2))]), *(Row(x, [9]) for x in c[1:])],
    "positions": lambda pool, c: [Row(c[0], [9], positions=np.array([50])), *(Row(x, [9]) for x in c[1:])],
    "a slot taken": lambda pool, c: pool.allocate(1) and None,
    "slots in another order": lambda pool, c: [filled(pool, 1), filled(pool, 1)][0].release(),
    "come and gone": lambda pool, c: filled(pool, 1).release(),
    "longer": lambda pool, c: TokenBatch(pool, [Row(c[1], [4])]).commit(),
    "longer, elsewhere": lambda pool, c: grown(pool, c[1]),
    "shorter": lambda pool, c: c[1].truncate(c[1].size - 1) and None,
    "again": lambda pool, c: again(pool, c[1]),
    "replaced": lambda pool, c: replaced(pool, c[1]),
    "copied": lambda pool, c: copied(pool, c[1]),
    "moved": lambda pool, c: c[1].rebase(7),
}
AS_FORESEEN = {"nothing", "other ids", "come and gone"}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("scattered", [False, True])
def test_a_call_made_ahead_is_used_only_where_it_is_the_same(event: str, scattered: bool) -> None:
    """Whatever happens between two calls, the second says what it would say had nothing been made ready."""
    pool = KVPool([LayerSpec(1, 2, 2, torch.device("cpu"), Rotary(torch.ones(1)))], 90, torch.float32)
    assert pool.allocate(1) == SPARE
    contexts = [filled(pool, n) for n in (3, 6, 2)]
    if scattered:  # stored elsewhere than at 0, 1, 2, …
        contexts[0].rebase(20)
    first = TokenBatch(pool, [Row(c, [7]) for c in contexts])
    free = pool.free
    ahead = Ahead.of(first)
    assert ahead is not None
    assert pool.free == free
    first.commit()
    rows = EVENTS[event](pool, contexts) or [Row(c, [9]) for c in contexts]
    wanted = TokenBatch(*deepcopy((pool, rows)))
    found = TokenBatch(pool, rows, ahead=ahead)
    assert (found.views is ahead.views) == (event in AS_FORESEEN)
    for a, b in ((found, wanted), (found.views, wanted.views)):
        for name in ("ids", "positions", "row_ptr", "wanted") if a is found else a.__dataclass_fields__:
            x, y = getattr(a, name), getattr(b, name)
            assert np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y, name
    assert found.slots.tolist() == wanted.slots.tolist()
    found.views.check(pool.size)


def test_a_call_after_one_of_which_not_all_stayed(pool: KVPool) -> None:
    contexts = [filled(pool, n) for n in (3, 2)]
    first = TokenBatch(pool, [Row(c, [7]) for c in contexts])
    ahead = Ahead.of(first)
    first.commit([[], [0]])
    pool.allocate(1)  # what was given back: the next slots are those foreseen
    batch = TokenBatch(pool, [Row(c, [9]) for c in contexts], ahead=ahead)
    assert batch.views.slot_ptr.tolist() == [0, 4, 8]


@pytest.mark.parametrize("end", [TokenBatch.rollback, lambda batch: batch.commit([[]] * len(batch.rows))])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_call_after_one_that_was_made_again(end: Callable[[TokenBatch], None], elsewhere: bool, pool: KVPool) -> None:
    """Slots given back come out in another order, positions need not be the same: sizes and free slots tell neither."""
    contexts = [filled(pool, 3)] if elsewhere else [filled(pool, 3), filled(pool, 2)]
    first = TokenBatch(pool, [Row(c, [7]) for c in contexts])
    ahead = Ahead.of(first)
    end(first)
    TokenBatch(pool, [Row(c, [7], positions=np.array([50]) if elsewhere else None) for c in contexts]).commit()
    rows = [Row(c, [9]) for c in contexts]
    wanted = TokenBatch(*deepcopy((pool, rows)))
    found = TokenBatch(pool, rows, ahead=ahead)
    assert found.positions.tolist() == wanted.positions.tolist()
    assert found.views.slots.tolist() == wanted.views.slots.tolist()


def test_what_nothing_is_made_ready_for(pool: KVPool) -> None:
    first, second = filled(pool, 3), filled(pool, 4)
    for rows in (
        [Row(first, [1, 2])],
        [Row(first, [1]), Row(second, [1, 2])],
        [Row(first, [1], view=[Part(second)])],
        [Row(first, [1], positions=np.array([9]))],
    ):
        batch = TokenBatch(pool, rows)
        assert Ahead.of(batch) is None
        batch.rollback()
    pool.allocate(pool.free - 2)
    assert Ahead.of(TokenBatch(pool, [Row(first, [1])])) is not None
    assert Ahead.of(TokenBatch(pool, [Row(second, [1])])) is None, "the pool is full"
