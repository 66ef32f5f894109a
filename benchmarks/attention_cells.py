"""What ``attention.py`` measures: calls of attention as views, over pools whose slots lie as after some use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from forethought.kernels.rotary import Rotary
from forethought.kernels.views import Views, ancestor_bits

RUN = 64
"""Slots lie in runs of so many, scattered over the pool, as in one that has been in use."""


class Heads(NamedTuple):
    heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype


QWEN3 = Heads(32, 8, 128, torch.bfloat16)
SMALL = Heads(4, 2, 16, torch.float32)


@dataclass(frozen=True)
class Cell:
    """One thing to measure: ``batch`` rows of ``queries`` over views of ``context`` slots each."""

    name: str
    batch: int
    queries: int
    context: int
    views: Views
    rotary: Rotary | None = None

    @property
    def slots(self) -> int:
        """Size of the pool: every slot is listed."""
        return int(self.views.slots.max()) + 1

    def bytes(self, heads: Heads) -> int:
        """What must be moved at least."""
        per_slot, per_query = 2 * heads.kv_heads * heads.dim, 2 * heads.heads * heads.dim
        return heads.dtype.itemsize * (self.slots * per_slot + self.batch * self.queries * per_query)

    def flops(self, heads: Heads) -> int | None:
        """Of the products a prefill cannot do without; None for cells that memory alone bounds."""
        if self.name != "prefill":
            return None
        seen = self.queries * (self.context - self.queries) + self.queries * (self.queries + 1) // 2
        return 4 * self.batch * heads.heads * heads.dim * seen


def pool(count: int) -> np.ndarray:
    """``count`` slots in runs, the runs in random order."""
    runs = np.array_split(np.arange(count), max(1, count // RUN))
    order = np.random.default_rng(0).permutation(len(runs))
    return np.concatenate([runs[i] for i in order])


def decode(batch: int, context: int, shared: int = 0, name: str = "decode") -> Cell:
    order = pool(shared + batch * (context - shared))
    own = order[shared:].reshape(batch, context - shared)
    slots = np.concatenate((np.tile(order[:shared], (batch, 1)), own), 1).reshape(-1)
    each = np.arange(batch + 1)
    views = Views(np.full(batch, context - 1), query_ptr=each, part_ptr=each, slot_ptr=each * context, slots=slots)
    return Cell(name, batch, 1, context, views)


def tree(nodes: int, context: int) -> Cell:
    rng = np.random.default_rng(nodes)
    parents = [-1, *(int(rng.integers(max(0, i - 4), i)) for i in range(1, nodes))]
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    stored = np.concatenate((np.arange(context), context + np.array(depths)))
    ends = np.array([0, nodes]), np.array([0, 1]), np.array([0, context + nodes])
    views = Views(stored[context:], *ends, pool(context + nodes), stored, tree=ancestor_bits(parents))
    return Cell("tree", 1, nodes, context + nodes, views)


def parts(count: int, length: int, heads: Heads) -> Cell:
    """Each of ``count`` workers sees all parts, its own behind the others."""
    slots = pool(count * length).reshape(count, length)
    order = [[*(p for p in range(count) if p != worker), worker] for worker in range(count)]
    each, total = np.arange(count + 1), count * length
    offsets = np.tile(np.arange(count) * length, count)
    last = np.full((count, count), length - 1)
    views = Views(
        positions=np.full(count, total - 1), query_ptr=each, part_ptr=each * count,
        slot_ptr=np.arange(count * count + 1) * length, slots=slots[np.array(order)].reshape(-1),
        offsets=offsets, last=last.reshape(-1),
    )  # fmt: skip
    rotary = Rotary(1e6 ** -(torch.arange(0, heads.dim, 2) / heads.dim))
    return Cell("parts", count, 1, total, views, rotary)


def prefill(queries: int, before: int) -> Cell:
    context = before + queries
    ends = np.array([0, queries]), np.array([0, 1]), np.array([0, context])
    return Cell("prefill", 1, queries, context, Views(np.arange(before, context), *ends, pool(context)))


def cells(names: Sequence[str], heads: Heads, quick: bool) -> Iterator[Cell]:
    contexts, batches = ((8, 40), (1, 3)) if quick else ((128, 2048, 16384), (1, 8, 64))
    chunks = (6,) if quick else (512, 2048)
    every: dict[str, Callable[[], Iterator[Cell]]] = {
        "decode": lambda: (decode(batch, context) for context in contexts for batch in batches),
        "tree": lambda: (tree(n, 32 if quick else 4096) for n in ((1, 4) if quick else (1, 16, 64))),
        "prefix": lambda: iter([decode(4, 40, 32, "prefix") if quick else decode(64, 2112, 2048, "prefix")]),
        "parts": lambda: (parts(n, 8 if quick else 1024, heads) for n in (2, 4)),
        "prefill": lambda: (prefill(n, before) for before in ((0, 20) if quick else (2048, 16384)) for n in chunks),
    }
    for name in names:
        yield from every[name]()
