"""Prefixes that several rows of a call share, and whether to read one once: by counted bytes, not by a length.

Rows share what lists the same pool slots from its start on, part by part; a prefix may branch, and each branch be shared in its
turn. Host work, once a call, on what :mod:`~forethought.kernels.work` makes items of.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .views import Ints, Views

if TYPE_CHECKING:
    from .work import Shape

SPLITS = 8
"""How often a prefix may branch: combs of many rows end there."""


class Run(NamedTuple):
    """Slots that several entries list alike."""

    entries: Ints
    begin: int
    """Slot indices from, to: where they lie in the first entry's part."""
    end: int


class Prefixes:
    """Entry ``e`` is ``part[e]`` of ``row[e]``; its slots from index ``begin[e]`` to ``own[e]``, the row's own new ones, may be
    shared. ``begin`` moves behind what is.

    ``tile``: most queries of one item. ``shape`` weighs bytes saved against partial results added.
    """

    def __init__(
        self, views: Views, window: int | None, tile: int, shape: Shape, *, row: Ints, part: Ints, begin: Ints, own: Ints
    ) -> None:
        self.views, self.window, self.tile, self.shape = views, window, tile, shape
        self.row, self.part, self.begin, self.own = row, part, begin, own
        self.counts = np.diff(views.query_ptr)
        self.found: list[Run] = []

    @cached_property
    def stored(self) -> Ints:
        return self.views.stored_positions()

    def find(self) -> list[Run]:
        """Runs worth reading once, cut off the entries."""
        ordinal = self.part - self.views.part_ptr[self.row]
        for i in range(int(ordinal.max(initial=-1)) + 1):
            self._look(np.flatnonzero(ordinal == i), 0, SPLITS)
        return self.found

    def _look(self, index: Ints, depth: int, splits: int) -> None:
        """Look for what the entries at ``index``, alike in ``depth`` slots, share beyond. ``splits`` ends combs of many rows."""
        slots, start = self.views.slots, self.views.slot_ptr[self.part]
        most = self.own - start  # own new tokens are no prefix
        index = index[most[index] > depth]
        clusters: dict[int, list[int]] = {}
        for e, slot in zip(index.tolist(), slots[start[index] + depth].tolist(), strict=True):
            clusters.setdefault(slot, []).append(e)
        for members in clusters.values():
            if len(members) > 1:
                cluster = np.array(members)
                begins, limit = start[cluster], int(most[cluster].min())
                leader = slots[begins[0] + depth : begins[0] + limit]
                common = limit
                for b in begins[1:].tolist():
                    same = slots[b + depth : b + common] == leader[: common - depth]
                    if not same.all():
                        common = depth + int(same.argmin())
                # What lies before is read by each, or by all, already.
                from_ = int((self.begin[cluster] - begins).max())
                if self._worth(cluster, int(begins[0]), from_, common):
                    self.found.append(Run(cluster, int(begins[0]) + from_, int(begins[0]) + common))
                    self.begin[cluster] = begins + common
                if splits:
                    self._look(cluster, common, splits - 1)

    def _worth(self, cluster: Ints, start: int, begin: int, end: int) -> bool:
        """Whether reading a shared run once saves more bytes than the partial results it adds."""
        count = self.counts[self.row[cluster]]
        total = int(count.sum())
        length = end - begin
        if self.window is not None:
            offset = 0 if self.views.offsets is None else self.views.offsets[self.part[cluster]]
            earliest = self.views.positions[self.views.query_ptr[self.row[cluster]]] - offset
            length = int((self.stored[start + begin : start + end] > earliest.min() - self.window).sum())
        reads = int((-(-count // self.tile)).sum()) - -(-total // self.tile)
        partials = total * (2 if begin == 0 else 1)
        return reads * length * self.shape.slot_bytes > partials * self.shape.partial_bytes
