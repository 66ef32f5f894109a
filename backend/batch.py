"""One model call: the new tokens of many rows, flat, with what each row sees and what is asked back.

A row is some new tokens behind a context: a chain or a tree, seen alone or through a view of several contexts.
Building a batch stages slots in the pool; ``commit`` says which of them stay, ``rollback`` gives them all back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..kernels.transfer import put
from ..kernels.views import Ints, Views, ancestor_bits
from .kv import Context, KVPool

Tap = Callable[[Tensor], None]
"""What is done with the residual stream [T, width] entering a layer, before that layer runs. The next call may overwrite it."""


class Part(NamedTuple):
    """Another context in a row's view. ``offset`` moves its keys, relative to the row's own; staged slots are seen too.

    ``last``: stored position of the last slot each query sees, [queries] or one for all; None: everything.
    """

    context: Context
    offset: int = 0
    last: Ints | int | None = None


@dataclass(slots=True)
class Row:
    """New tokens ``ids`` behind ``context``, which will own their KV."""

    context: Context
    ids: Sequence[int]
    parents: Sequence[int] | None = None
    """Tree: index of each token's parent, -1 for the root, which comes first. None: a chain."""
    view: Sequence[Part] = ()
    """What the row sees before its own context."""
    positions: Ints | None = None
    """[tokens] where they stand; None: right behind the context."""
    logits: Ints | None = None
    """Indices of the tokens whose logits are wanted; None: all."""


@dataclass(slots=True)
class Output:
    """What a call gives back, for the asked tokens in batch order."""

    logits: Tensor | None
    """[N, vocabulary], as the model computes them; None for a model without an LM head."""
    hidden: dict[int, Tensor] = field(default_factory=dict)
    """Asked layer -> [N, width]: the residual stream entering that layer; layer ``layers`` is the final-normed output."""
    tokens: int = 0
    """New tokens in the call, as the engine counts them."""


Stages: TypeAlias = Generator[tuple[int, Tensor], None, Output]
"""A call that stops where it is tapped: (layer, residual stream entering it)."""


def walk(stages: Stages, taps: Mapping[int, Tap], tokens: int) -> Output:
    """Go through ``stages``, of whose tokens the first ``tokens`` are the call's, with a tap at every stop."""
    while True:
        try:
            layer, x = next(stages)
        except StopIteration as end:
            output: Output = end.value
            return output
        taps[layer](x[:tokens])


class NewTokens(NamedTuple):
    """What a model computes with: ids, positions and pool slots [T] on the device, what they see, the pool's layers; and
    where logits [T, vocabulary] are to go, if that is given."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    views: Views
    k: Sequence[Tensor]
    v: Sequence[Tensor]
    logits: Tensor | None = None
    invariant: bool = False
    """Whether a token's results may not depend on the others: see ``kernels/invariant.py``."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """The call that follows another in plain decoding, one token more behind each context, before these tokens are known.

    Nothing of the pool is taken for it, so it may simply be forgotten.
    """

    contexts: list[Context]
    edits: list[int]
    """Theirs, when this was made."""
    slots: Ints
    """[R] those that the pool would give next."""
    views: Views

    @classmethod
    def of(cls, batch: TokenBatch) -> Ahead | None:
        """What follows ``batch``, which is under way, if all of it stays; None if it is not plain decoding, or the pool is
        full."""
        rows, pool = batch.rows, batch.pool
        if pool.free < len(rows) or not all(map(_plain, rows)):
            return None
        contexts, slots = [row.context for row in rows], pool.upcoming(len(rows))
        return cls(contexts, [context.edits for context in contexts], slots, batch.views.grown(slots))

    def fits(self, rows: Sequence[Row], slots: Ints) -> bool:
        """Whether it is the call of ``rows``, given ``slots``."""
        if len(rows) != len(self.contexts) or len(slots) != len(rows) or (slots != self.slots).any():
            return False
        sizes = np.diff(self.views.slot_ptr).tolist()
        return all(
            row.context is context and context.edits == edits and context.size + 1 == size and _plain(row)
            for row, context, edits, size in zip(rows, self.contexts, self.edits, sizes, strict=True)
        )


class TokenBatch:
    """The flat form of some rows. All rows must live on one pool; the pool must have a free slot for each new token.

    ``embeddings``: (token index [M], vectors [M, width]) that replace table look-ups. ``hidden``: layers wanted in the output.
    ``taps``: layer -> what is called with the residual stream [T, width] entering that layer, before later layers run.
    ``ahead``: what was made of this call beforehand, of use if it fits. ``invariant``: no bit of a token's results depends on
    the other rows, for models that do not refuse it (:meth:`~.model.Model.refuses_invariance`).
    """

    def __init__(
        self,
        pool: KVPool,
        rows: Sequence[Row],
        *,
        embeddings: tuple[Tensor, Tensor] | None = None,
        hidden: Sequence[int] = (),
        taps: Mapping[int, Tap] | None = None,
        ahead: Ahead | None = None,
        invariant: bool = False,
    ) -> None:
        _check(pool, rows)
        self.invariant = invariant
        self.pool, self.rows, self.embeddings, self.hidden, self.taps = pool, rows, embeddings, tuple(hidden), dict(taps or {})
        trees = {r: ancestor_bits(row.parents) for r, row in enumerate(rows) if row.parents is not None}
        flat: list[int] = []
        ptr = [0]
        for row in rows:
            flat += row.ids
            ptr.append(len(flat))
        self.ids: Ints = np.array(flat, np.int64)
        self.row_ptr: Ints = np.array(ptr)
        self.slots = pool.allocate(len(flat))
        if ahead is not None and ahead.fits(rows, self.slots):
            for r, row in enumerate(rows):
                row.context.stage(self.slots[r : r + 1])
            self.positions, self.views = ahead.views.positions, ahead.views
        else:
            self.positions = self._stage()
            self.views = self._views(trees)
        self.wanted = self._wanted()

    @property
    def counts(self) -> Ints:
        """[R] tokens of each row."""
        return np.diff(self.row_ptr)

    def _stage(self) -> Ints:
        """Give every row its slots; return the query positions."""
        if len(self.rows) == len(self.slots):
            starts = []
            for r, row in enumerate(self.rows):
                starts.append(row.context.next_position if row.positions is None else int(row.positions[0]))
                row.context.stage(self.slots[r : r + 1], row.positions)
            return np.array(starts)
        pieces = []
        for r, row in enumerate(self.rows):
            start, stop = self.row_ptr[r], self.row_ptr[r + 1]
            given = row.positions
            if row.parents is not None and given is None:
                depth = [0] * len(row.ids)
                for i, parent in enumerate(row.parents):
                    depth[i] = 0 if parent < 0 else depth[parent] + 1
                given = row.context.next_position + np.array(depth)
            positions = row.context.next_position + np.arange(stop - start) if given is None else np.asarray(given)
            row.context.stage(self.slots[start:stop], given)
            pieces.append(positions)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _views(self, trees: dict[int, Ints]) -> Views:
        rows = self.rows
        tree = None
        if trees:
            tree = np.full(len(self.slots), -1, np.int64)
            for r, bits in trees.items():
                tree[self.row_ptr[r] : self.row_ptr[r + 1]] = bits
        if any(row.view for row in rows):
            return self._many_parts(tree)
        if len(rows) == 1:
            slots = rows[0].context.staged.copy()
            slot_ptr = np.array([0, len(slots)])
        else:
            slots = np.concatenate([row.context.staged for row in rows])
            slot_ptr = np.array(list(accumulate((row.context.size + row.context.pending for row in rows), initial=0)))
        stored = None
        if not all(row.context.in_order for row in rows):
            stored = np.concatenate([row.context.stored_positions() for row in rows])
        one_each = np.arange(len(rows) + 1)
        return Views(self.positions, self.row_ptr, one_each, slot_ptr, slots, stored, tree=tree)

    def _many_parts(self, tree: Ints | None) -> Views:
        slots, stored, offsets, last, part_ptr = [], [], [], [], [0]
        for r, row in enumerate(self.rows):
            own = self.positions[self.row_ptr[r] : self.row_ptr[r + 1]]
            parts = [*row.view, Part(row.context, 0, own)]
            limits = []
            for part in parts:
                slots.append(part.context.staged)
                stored.append(part.context.stored_positions())
                offsets.append(part.offset)
                limit = np.iinfo(np.int64).max if part.last is None else part.last
                limits.append(np.broadcast_to(limit, own.shape))
            last.append(np.stack(limits, 1).reshape(-1))
            part_ptr.append(part_ptr[-1] + len(parts))
        slot_ptr = np.concatenate(([0], np.cumsum([len(s) for s in slots])))
        return Views(
            self.positions, self.row_ptr, np.array(part_ptr), slot_ptr, np.concatenate(slots), np.concatenate(stored),
            np.array(offsets), np.concatenate(last), tree,
        )  # fmt: skip

    def _wanted(self) -> Ints | None:
        """Flat indices of the tokens whose logits are wanted; None: all."""
        if all(row.logits is None for row in self.rows):
            return None
        pieces = [
            self.row_ptr[r] + (np.arange(len(row.ids)) if row.logits is None else row.logits) for r, row in enumerate(self.rows)
        ]
        return np.concatenate(pieces)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """ids, positions and slots, each [T], on ``device``."""
        return tuple(put(a, device) for a in (self.ids, self.positions, self.slots))  # type: ignore[return-value]

    def commit(self, kept: Sequence[Sequence[int] | None] | None = None) -> None:
        """Per row, which of its new tokens stay in the context (a path, in order; None: all); the other slots are freed."""
        overridden = self._overridden()
        for r, row in enumerate(self.rows):
            keep = None if kept is None else kept[r]
            ids = row.ids if keep is None else [row.ids[i] for i in keep]
            row.context.commit(ids, keep)
            if row.view or r in overridden:
                row.context.plain = False

    def _overridden(self) -> set[int]:
        """Rows with a replaced embedding: their KV is not a function of their ids."""
        if self.embeddings is None:
            return set()
        tokens = self.embeddings[0].cpu().numpy()
        return set((np.searchsorted(self.row_ptr, tokens, side="right") - 1).tolist())

    def rollback(self) -> None:
        """Give back every slot this batch staged."""
        for row in self.rows:
            if row.context.pending:
                row.context.rollback()


def _plain(row: Row) -> bool:
    """Whether it is one token right behind its context, and sees no other."""
    return len(row.ids) == 1 and row.parents is None and row.positions is None and not row.view


def _check(pool: KVPool, rows: Sequence[Row]) -> None:
    """Refuse what could not be staged whole, before anything is."""
    if not rows:
        raise ValueError("a call without new tokens")
    seen = set()
    for row in rows:
        context, count = row.context, len(row.ids)
        if not count:
            raise ValueError("a row without new tokens")
        if context.pending or id(context) in seen:
            raise ValueError("a context takes new tokens from one row of a call at a time")
        seen.add(id(context))
        if context.pool is not pool:
            raise ValueError("a context of another pool")
        if row.positions is not None and len(row.positions) != count:
            raise ValueError(f"{len(row.positions)} positions for {count} tokens")
        if row.parents is not None and len(row.parents) != count:
            raise ValueError(f"{len(row.parents)} parents for {count} tokens")
        for part in row.view:
            if part.context.pool is not pool:
                raise ValueError("a context of another pool")
            if part.last is not None and np.size(part.last) not in (1, count):
                raise ValueError(f"a part with {np.size(part.last)} last visible positions for {count} tokens")
