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


@dataclass(frozen=True, slots=True, eq=False)
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
    plans: dict[Any, Any] = field(default_factory=dict, repr=False)
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

    def grown(self, slots: Ints) -> Views:
        """What the next token of each row sees, which is written to ``slots`` [R]; for rows of one query and one part, causal
        and without offsets, whose new tokens all stay."""
        at, positions = self.slot_ptr[1:], self.positions + 1
        stored = None if self.slot_positions is None else np.insert(self.slot_positions, at, positions)
        slot_ptr = self.slot_ptr + np.arange(len(self.slot_ptr))
        return Views(positions, self.query_ptr, self.part_ptr, slot_ptr, np.insert(self.slots, at, slots), stored)

    def check(self, pool_size: int) -> None:
        """Raise ``ValueError`` on tables that no kernel could read."""
        parts = len(self.slot_ptr) - 1
        ends = {"query_ptr": self.queries, "part_ptr": parts, "slot_ptr": len(self.slots)}
        for name, end in ends.items():
            ptr: Ints = getattr(self, name)
            if not len(ptr) or ptr[0] != 0 or ptr[-1] != end or (ptr[1:] < ptr[:-1]).any():
                raise ValueError(f"{name} rises from 0 to {end}; not {ptr.tolist()}")
        if len(self.part_ptr) - 1 != self.rows:
            raise ValueError(f"part_ptr is for {len(self.part_ptr) - 1} rows, query_ptr for {self.rows}")
        cells = int((np.diff(self.query_ptr) * np.diff(self.part_ptr)).sum())
        for name, size in {"slot_positions": len(self.slots), "offsets": parts, "last": cells, "tree": self.queries}.items():
            table: Ints | None = getattr(self, name)
            if table is not None and table.shape != (size,):
                raise ValueError(f"{name} has shape {table.shape}, not ({size},)")
        outside = self.slots[(self.slots < 0) | (self.slots >= pool_size)]
        if len(outside):
            raise ValueError(f"slot {int(outside[0])} outside a pool of {pool_size}")
        if self.tree is not None:
            for row, words in enumerate(np.split(self.tree, self.query_ptr[1:-1])):
                if len(words) > TREE_LIMIT + 1 and (words != -1).any():
                    raise ValueError(f"row {row}: a tree of {len(words)} tokens: at most a root and {TREE_LIMIT}")


def ancestor_bits(parents: npt.ArrayLike) -> Ints:
    """Ancestor words of one tree. ``parents[i] < i`` is the parent of node ``i``; ``parents[0]`` is -1, the root.

    Raises ``ValueError`` for more than ``TREE_LIMIT`` nodes beside the root, or a parent that does not come first.
    """
    known = parents if isinstance(parents, list) else np.asarray(parents, np.int64).tolist()
    if len(known) > TREE_LIMIT + 1:
        raise ValueError(f"a tree of {len(known)} tokens: at most a root and {TREE_LIMIT}")
    bits: list[int] = []
    bit = 1
    for i, parent in enumerate(known):
        if i == 0:
            if parent != -1:
                raise ValueError(f"the first node is the root: its parent is -1, not {parent}")
            bits.append(0)
            continue
        if not 0 <= parent < i:
            raise ValueError(f"node {i} has parent {parent}: a parent comes before its child")
        bits.append(bits[parent] | bit)
        bit <<= 1
    return np.array(bits, np.uint64).view(np.int64)
