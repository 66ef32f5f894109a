"""What each query row of one model call may see: flat, device-free tables that every attention kernel reads.

The visibility rule lives here, in one place, as the docstring of :class:`Views`. This module holds no maths
and no policy: the caller says what is visible, a kernel's plan says how to walk it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

TREE_LIMIT = 64
"""Tree nodes a row may have beside its root: one 64-bit word of ancestors."""


@dataclass(frozen=True, slots=True)
class Views:
    """What ``T`` query tokens, in ``R`` rows, see of a pool of KV slots.

    Row ``r`` owns queries ``query_ptr[r]:query_ptr[r+1]`` and sees parts ``part_ptr[r]:part_ptr[r+1]``;
    part ``p`` is the ordered slots ``slots[slot_ptr[p]:slot_ptr[p+1]]``. The row's own new tokens are the last
    slots of its last part, in query order, and are written before anything is read.

    Query ``t`` of row ``r`` sees slot ``s`` (stored at position ``x``) of part ``p`` when all of these hold:

    - ``x <= last[t, p]`` (default: ``positions[t] - offsets[p]``, i.e. causal);
    - ``s`` is not one of the row's own new tokens ``j >= 1``, or bit ``j - 1`` of ``tree[t]`` is set
      (bits: ancestors and itself; -1, for chains, sets them all; token 0, the root, is always an ancestor);
    - without a window, always; else ``positions[t] - (x + offsets[p]) < window``.

    A part's offset moves its keys by that many positions; kernels rotate the query by ``-offset`` instead.
    """

    positions: Ints
    """[T] position of each query."""
    query_ptr: Ints
    """[R + 1]"""
    part_ptr: Ints
    """[R + 1]"""
    slot_ptr: Ints
    """[P + 1]"""
    slots: Ints
    """[S] slot ids, the parts end to end."""
    slot_positions: Ints | None = None
    """[S] position each slot is stored at; None: 0, 1, 2, … in every part."""
    offsets: Ints | None = None
    """[P] rotation offset of each part; None: all zero."""
    last: Ints | None = None
    """[sum over rows of queries x parts], row by row, query-major: last visible stored position; -1 hides the part."""
    tree: Ints | None = None
    """[T] ancestor bits; None: every row is a chain."""
    plans: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """Kernels keep here what they derive from the tables, once for all layers."""

    @property
    def rows(self) -> int:
        return len(self.query_ptr) - 1

    @property
    def queries(self) -> int:
        return len(self.positions)

    def stored_positions(self) -> Ints:
        """[S] position each slot is stored at."""
        if self.slot_positions is not None:
            return self.slot_positions
        starts = np.repeat(self.slot_ptr[:-1], np.diff(self.slot_ptr))
        return np.arange(len(self.slots)) - starts

    def last_visible(self) -> Ints:
        """``last`` with its default filled in."""
        if self.last is not None:
            return self.last
        queries, parts = np.diff(self.query_ptr), np.diff(self.part_ptr)
        offsets = np.zeros(len(self.slot_ptr) - 1, np.int64) if self.offsets is None else self.offsets
        if (parts == 1).all():
            return self.positions - np.repeat(offsets, queries)
        rows = [
            (self.positions[self.query_ptr[r] : self.query_ptr[r + 1], None] - offsets[None, self.part_ptr[r] : self.part_ptr[r + 1]])
            for r in range(self.rows)
        ]
        return np.concatenate([row.reshape(-1) for row in rows])

    def check(self, pool_size: int) -> None:
        """Raise ``ValueError`` on tables that no kernel could read."""
        if len(self.slots) and (self.slots.min() < 0 or self.slots.max() >= pool_size):
            raise ValueError(f"slot {int(self.slots.min())}..{int(self.slots.max())} outside a pool of {pool_size}")
        if self.query_ptr[-1] != self.queries or self.slot_ptr[-1] != len(self.slots) or self.part_ptr[-1] != len(self.slot_ptr) - 1:
            raise ValueError("row pointers do not end where the tables end")
        if self.tree is not None:
            widths = [int(n) for n, t in zip(np.diff(self.query_ptr), self.query_ptr, strict=False) if (self.tree[t : t + n] != -1).any()]
            if widths and max(widths) > TREE_LIMIT + 1:
                raise ValueError(f"a tree of {max(widths)} tokens: at most a root and {TREE_LIMIT}")


def ancestor_bits(parents: npt.ArrayLike) -> Ints:
    """Ancestor words of one tree. ``parents[i] < i`` is the parent of node ``i``; ``parents[0]`` is -1, the root.

    Raises ``ValueError`` for more than ``TREE_LIMIT`` nodes beside the root, or a parent that does not come first.
    """
    parents = np.asarray(parents, np.int64)
    if len(parents) > TREE_LIMIT + 1:
        raise ValueError(f"a tree of {len(parents)} tokens: at most a root and {TREE_LIMIT}")
    bits = [0] * len(parents)
    for i, parent in enumerate(parents.tolist()):
        if i == 0:
            if parent != -1:
                raise ValueError(f"the first node is the root: its parent is -1, not {parent}")
            continue
        if not 0 <= parent < i:
            raise ValueError(f"node {i} has parent {parent}: a parent comes before its child")
        bits[i] = bits[parent] | 1 << (i - 1)
    return np.array([b - (1 << 64) if b >> 63 else b for b in bits], np.int64)
