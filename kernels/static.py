"""Work lists at fixed addresses and of fixed sizes, so that a launch recorded once reads new tables when it is replayed.

One arena on the device holds what one decode step reads from the host: its tokens, and the work list of each window. It
is filled by one copy (two, where stored positions are listed). Entries beyond a step's own are items without pairs, which
kernels pass over, and queries without pairs, whose output is 0. Not here: recording, and the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .tables import Facts, Plan
from .views import Ints, Views
from .work import Shape, Tiling, Work, plan_for, work_key


class Form(NamedTuple):
    """What kernels are launched with: steps of one form can share a recording."""

    masked: bool
    """Some query does not see a slot of its item; stored positions and tree words are read."""
    large: bool
    """Some item has more queries than ``few``."""


class Region(NamedTuple):
    """Where a table lies in the arena, in int32."""

    begin: int
    shape: tuple[int, ...]

    def of(self, arena: Tensor) -> Tensor:
        return arena[self.begin : self.begin + int(np.prod(self.shape))].view(self.shape)


class _Tables(NamedTuple):
    """Of one window: regions of the tables of a work list, and how many of its items may have few queries."""

    window: int | None
    tiling: Tiling
    items: Region
    open: Region
    pairs: Region
    merge_ptr: Region
    merge_list: Region
    few: int


class StaticWork:
    """The tables of steps of up to ``queries`` new tokens, of layers of one ``shape`` and several ``windows``.

    ``slots``: most slots that the rows of a step may list together. ``arena``: that of other tables, no smaller, of which only
    one at a time is filled and read.
    """

    def __init__(
        self, queries: int, slots: int, windows: Iterable[int | None], shape: Shape, tiling: Tiling, device: torch.device,
        arena: Arena | None = None,
    ) -> None:  # fmt: skip
        self.queries, self.shape, self.most_slots = queries, shape, slots
        self._end = 0
        self.tokens = self._region(2 * 4, queries)
        """[4, T] int64 ids, positions, slots and ancestor words."""
        self._ids_end = 2 * queries
        self.tables = [self._lay_out(window, tiling) for window in dict.fromkeys(windows)]
        self._slots, self._positions = self._region(slots), self._region(slots)
        self.arena = Arena(self._end, device) if arena is None else arena
        if len(self.arena.there) < self._end:
            raise ValueError(f"tables of {self._end} words for an arena of {len(self.arena.there)}")
        self.ids, self.positions, self.new_slots, self.tree = self._tokens(self.arena.there).unbind()

    def _region(self, *shape: int) -> Region:
        found = Region(self._end, shape)
        self._end += -(-int(np.prod(shape)) // 4) * 4  # every table begins at 16 bytes
        return found

    def _lay_out(self, window: int | None, tiling: Tiling) -> _Tables:
        few = 0 if tiling.few == 0 else tiling.splits + 2 * self.queries
        items = few + tiling.splits + 2 * self.queries
        pairs = 4 * self.queries + min(tiling.tile, self.queries) * tiling.splits
        return _Tables(
            window, tiling, self._region(items, 6), self._region(items, 2), self._region(pairs, 4),
            self._region(self.queries + 1), self._region(pairs), few,
        )  # fmt: skip

    def _tokens(self, arena: Tensor) -> Tensor:
        return self.tokens.of(arena).view(-1).view(torch.int64).view(4, self.queries)

    def views(self, form: Form) -> Views:
        """Views of ``queries`` queries whose work lists are these tables; of what is visible they say nothing."""
        each, nothing = np.arange(self.queries + 1), np.zeros(self.queries + 1, np.int64)
        views = Views(each[:-1], each, each, nothing, nothing[:0])
        for table in self.tables:
            large = table.items.shape[0] - table.few if form.large or not table.few else 0
            count = table.few + large
            views.plans[work_key(table.window, self.arena.there.device, table.tiling, self.shape)] = Work(
                items=table.items.of(self.arena.there)[:count],
                pairs=table.pairs.of(self.arena.there),
                slots=self._slots.of(self.arena.there),
                slot_positions=self._positions.of(self.arena.there) if form.masked else None,
                tree=self.tree if form.masked else None,
                merge_ptr=table.merge_ptr.of(self.arena.there),
                merge_list=table.merge_list.of(self.arena.there),
                open=table.open.of(self.arena.there)[:count],
                most_pairs=min(self.queries, table.tiling.tile if large else table.tiling.few),
                few=table.few,
                masked=form.masked,
                turned=False,
                blind=False,
                slot_reads=0,
            )
        return views

    def fill(self, ids: Ints | None, positions: Ints, slots: Ints, dump: int, views: Views) -> Form | None:
        """Put a step's tokens and what they see on the device; the form to replay it in. None, changing nothing: it does not
        fit. Tokens beyond those given write to slot ``dump``. ``ids`` None: :meth:`tell` says them."""
        if len(positions) > self.queries or len(views.slots) > self.most_slots:
            return None
        plans = [plan_for(views, table.window, table.tiling, self.shape) for table in self.tables]
        if not all(self._fits(table, plan) for table, plan in zip(self.tables, plans, strict=True)):
            return None
        form = Form(
            any(plan.facts.masked or plan.tree is not None for plan in plans),
            any(plan.facts.few < len(plan.tables.items) for plan in plans),
        )
        host, self.arena.holds = self.arena.next_host(), None
        flat = host.array
        tokens = self._tokens(host.tensor).numpy()
        for row, values, padding in zip(tokens, (ids, positions, slots, views.tree), (0, 0, dump, -1), strict=True):
            row[:] = padding
            if values is not None:
                row[: len(values)] = values
        for table, plan in zip(self.tables, plans, strict=True):
            self._put(flat, table, plan, len(positions))
        count = len(views.slots)
        flat[self._slots.begin : self._slots.begin + count] = views.slots
        host.send(self.arena.there, self._ids_end if ids is None else 0, self._slots.begin + count)
        if form.masked:
            flat[self._positions.begin : self._positions.begin + count] = views.stored_positions()
            host.send(self.arena.there, self._positions.begin, self._positions.begin + count)
        host.sent()
        self.arena.holds = views, form
        return form

    def held(self, views: Views) -> Form | None:
        """The form of the step that sees ``views``, if its tables are the ones on the device."""
        there = self.arena.holds
        return there[1] if there is not None and there[0] is views else None

    def tell(self, ids: Ints) -> None:
        """Put the token ids of the step that was filled in last, without them, on the device."""
        host = self.arena.host
        host.wait()
        self._tokens(host.tensor).numpy()[0, : len(ids)] = ids
        host.send(self.arena.there, 0, self._ids_end)
        host.sent()

    def clear(self, dump: int) -> None:
        """A step of no tokens: all write to slot ``dump`` and see nothing."""
        host, self.arena.holds = self.arena.next_host(), None
        host.array[: self._slots.begin] = 0
        self._tokens(host.tensor)[2:] = torch.tensor([[dump], [-1]])
        host.send(self.arena.there, 0, self._slots.begin)
        host.sent()

    @staticmethod
    def _fits(table: _Tables, plan: Plan) -> bool:
        facts: Facts = plan.facts
        items, few = len(plan.tables.items), facts.few
        large = table.items.shape[0] - table.few
        return not facts.turned and few <= table.few and items - few <= large and len(plan.tables.pairs) <= table.pairs.shape[0]

    def _put(self, flat: np.ndarray, table: _Tables, plan: Plan, queries: int) -> None:
        few, tables = plan.facts.few, plan.tables
        for region, found in ((table.items, tables.items), (table.open, tables.open)):
            whole = _within(flat, region)
            whole[:] = 0
            whole[:few] = found[:few]
            whole[table.few : table.few + len(found) - few] = found[few:]
        _within(flat, table.pairs)[: len(tables.pairs)] = tables.pairs
        ptr = _within(flat, table.merge_ptr)
        query = tables.pairs[:, 0]
        if tables.merge_ptr is None:
            ptr[0] = 0
            np.cumsum(np.bincount(query, minlength=queries), out=ptr[1 : queries + 1])
        else:
            ptr[: queries + 1] = tables.merge_ptr
        ptr[queries + 1 :] = ptr[queries]
        order = np.argsort(query, kind="stable") if tables.merge_list is None else tables.merge_list
        _within(flat, table.merge_list)[: len(order)] = order


def _within(flat: np.ndarray, region: Region) -> np.ndarray:
    return flat[region.begin : region.begin + int(np.prod(region.shape))].reshape(region.shape)


class Arena:
    """Memory for tables: ``size`` words on the device, and twice on the host, pinned for CUDA."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.there = torch.zeros(size, dtype=torch.int32, device=device)
        self.host, self._other = _Host(size, device), _Host(size, device)
        """The one filled last, and the one before."""
        self.holds: tuple[Views, Form] | None = None
        """The step whose tables are there, and its form."""

    def next_host(self) -> _Host:
        """The one to fill next, whose copy is done."""
        self.host, self._other = self._other, self.host
        self.host.wait()
        return self.host


class _Host:
    """Where the arena is written before it is copied, not again before the copy is done."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._device, cuda = device, device.type == "cuda"
        self.tensor = torch.zeros(size, dtype=torch.int32, pin_memory=cuda)
        self.array = self.tensor.numpy()
        self._event = torch.cuda.Event() if cuda else None

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def send(self, arena: Tensor, begin: int, end: int) -> None:
        arena[begin:end].copy_(self.tensor[begin:end], non_blocking=True)

    def sent(self) -> None:
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._device))
