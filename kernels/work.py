"""The work list that the fast attention twins read: made once per model call, on the host, for all layers.

Views become items, each a tile of queries over a run of listed slots, so that one launch covers every row; a prefix
that several rows share becomes items of its own where reading it once moves fewer bytes, and few rows over long
contexts are cut along the context. Exact. Not here: arithmetic on K and V, and anything of one kernel alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .prefixes import Prefixes
from .tables import Facts, Plan, Tables, upload
from .views import Ints, Views

LEAST_RUN = 128
"""No context is cut into runs shorter than this: a block has to read some tiles to get up to speed."""
RUN_STEP = 32
"""Runs that a context is cut into are multiples of this, so that a kernel's last tile is not mostly empty."""
EVER, NEVER = np.iinfo(np.int32).max, np.iinfo(np.int32).min


class Shape(NamedTuple):
    """What attention in a layer reads and writes, for counting bytes."""

    heads: int
    kv_heads: int
    dim: int
    dim_v: int
    itemsize: int

    @property
    def slot_bytes(self) -> int:
        """K and V of one slot."""
        return self.kv_heads * (self.dim + self.dim_v) * self.itemsize

    @property
    def partial_bytes(self) -> int:
        """One query's partial result and log-sum-exp in float32, written and read."""
        return 2 * 4 * self.heads * (self.dim_v + 1)


class Tiling(NamedTuple):
    """How a twin wants its items, see :func:`work_for`."""

    tile: int
    splits: int
    few: int


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Items of attention over the slots of some views, in tables on the device (int32 where not said otherwise).

    A pair is one query of one item; pair ``p`` sees slot index ``s`` of its item, stored at position ``x``, when
    ``first <= x <= last`` and, with a tree, ``s <= own_begin`` or bit ``s - own_begin - 1`` (at most 63) of ``tree[query]`` is
    set. Expanded, the items give what ``Views`` says each query sees, every slot once.
    """

    items: Tensor
    """[I, 6]: pairs from, to; slot indices from, to; position of the first where there are no ``slot_positions``; the
    index of the row's first new token, past the item's slots where it holds none."""
    pairs: Tensor
    """[N, 4]: query; last and first visible stored position; rotation of the query."""
    slots: Tensor
    """[S] pool rows."""
    slot_positions: Tensor | None
    """[S] stored positions; None: consecutive in each item."""
    tree: Tensor | None
    """[T] int64 ancestor bits; None: no item holds a new token that some query must not see."""
    merge_ptr: Tensor | None
    """[T + 1] into ``merge_list``; None: no query has more than one pair, and results need no merging."""
    merge_list: Tensor | None
    """[N] the pairs of each query."""
    most_pairs: int
    """Pairs of the largest item."""
    few: int
    """So many items come first that have no more pairs than asked for by ``few``."""
    open: Tensor
    """[I, 2]: slot indices from, to, all of which all queries of the item see."""
    masked: bool
    """Whether any query does not see a slot of its item, so that ``open`` is not everything."""
    turned: bool
    """Whether any query must be rotated."""
    blind: bool
    """Whether some query has no pair: without a merge, its result must be filled in beforehand."""
    slot_reads: int
    """Slots of all items together: how often K and V of a slot are read."""

    def bytes_moved(self, shape: Shape) -> int:
        """Bytes one layer moves: K and V once an item, queries once a pair, partial results there and back, outputs once."""
        pairs, queries = len(self.pairs), len(self.merge_ptr) - 1 if self.merge_ptr is not None else len(self.pairs)
        partials = 0 if self.merge_ptr is None else pairs * shape.partial_bytes
        activations = shape.heads * shape.itemsize * (pairs * shape.dim + queries * shape.dim_v)
        return self.slot_reads * shape.slot_bytes + partials + activations


def work_for(
    views: Views, window: int | None, device: torch.device, *, tile: int, splits: int, shape: Shape, few: int = 0
) -> Work:
    """The work list of ``views``, made on first use and kept on them.

    ``tile``: most queries of one item. ``splits``: how many items to aim for, by cutting long contexts. ``shape`` weighs
    what a shared prefix saves against the partial results it costs. Items of at most ``few`` queries come first, for kernels
    that treat them differently.
    """
    key = work_key(window, device, Tiling(tile, splits, few), shape)
    work: Work | None = views.plans.get(key)
    if work is None:
        plan = plan_for(views, window, Tiling(tile, splits, few), shape)
        work = views.plans[key] = Work(**upload(plan.tree, plan.tables, device), **plan.facts._asdict())
    return work


def work_key(window: int | None, device: torch.device, tiling: Tiling, shape: Shape) -> tuple[Any, ...]:
    """Under what the work list is kept on views."""
    return ("work", window, device, *tiling, shape)


def plan_for(views: Views, window: int | None, tiling: Tiling, shape: Shape) -> Plan:
    """What :func:`work_for` puts on the device, still on the host."""
    return _Builder(views, window, tiling.tile, tiling.splits, shape, tiling.few).build()


@dataclass(slots=True)
class _Asks:
    """Queries as they are asked of runs of slots: ask ``a`` belongs to one tile of one run."""

    query: Ints
    last: Ints
    first: Ints | None
    turn: Ints | None


@dataclass(slots=True)
class _Tiles:
    """Tiles of asks over runs: asks from, to; slot indices from, to; index of position 0 of the part; first new token."""

    ask: Ints
    ask_end: Ints
    begin: Ints
    end: Ints
    origin: Ints
    own: Ints

    def __getitem__(self, index: Ints | np.ndarray) -> _Tiles:
        columns = (self.ask, self.ask_end, self.begin, self.end, self.origin, self.own)
        return _Tiles(*(column[index] for column in columns))


class _Builder:
    def __init__(self, views: Views, window: int | None, tile: int, splits: int, shape: Shape, few: int) -> None:
        if tile < 1 or splits < 1:
            raise ValueError(f"tile={tile}, splits={splits}: at least 1")
        self.views, self.window, self.tile, self.splits, self.shape, self.few = views, window, tile, splits, shape, few

    def build(self) -> Plan:
        plain = self._plain()
        asks, tiles = plain or self._general()
        return self._tables(asks, self._cut(tiles), open_wide=plain is not None)

    # ---- decoding, and nothing else: at a fraction of the cost -------------------------------------------------------

    def _plain(self) -> tuple[_Asks, _Tiles] | None:
        """One causal query a row, each over a context of its own."""
        views, rows = self.views, len(self.views.positions)
        if not rows or len(views.query_ptr) != rows + 1 or len(views.slot_ptr) != rows + 1 or len(views.part_ptr) != rows + 1:
            return None
        if not (views.slot_positions is views.offsets is views.last is views.tree is None):
            return None
        each, start = np.arange(rows + 1), views.slot_ptr[:-1]
        if (views.query_ptr != each).any() or (views.part_ptr != each).any():
            return None
        end = np.minimum(views.slot_ptr[1:], start + views.positions + 1)
        begin, first = start, None
        if self.window is not None:
            first = views.positions - (self.window - 1)
            begin = start + np.maximum(first, 0)
        if (begin >= end).any() or len(set(views.slots[start].tolist())) < rows:
            return None
        asks = _Asks(each[:-1], views.positions, first, None)
        return asks, _Tiles(each[:-1], each[1:], begin, end, start, views.slot_ptr[1:] - 1)

    # ---- everything --------------------------------------------------------------------------------------------------

    @cached_property
    def stored(self) -> Ints:
        return self.views.stored_positions()

    @cached_property
    def counts(self) -> Ints:
        """[R] queries of each row."""
        return np.diff(self.views.query_ptr)

    def _general(self) -> tuple[_Asks, _Tiles]:
        views = self.views
        parts = np.diff(views.part_ptr)
        row = np.repeat(np.arange(views.rows), parts)
        used = np.flatnonzero((self.counts[row] > 0) & (np.diff(views.slot_ptr) > 0))
        self.row, self.part = row[used], used
        start, end = views.slot_ptr[used], views.slot_ptr[used + 1]
        own = np.where(used == views.part_ptr[self.row + 1] - 1, end - self.counts[self.row], end)
        begin = start.copy()
        shared = Prefixes(views, self.window, self.tile, self.shape, row=self.row, part=used, begin=begin, own=own).find()
        # Bunches: each entry's queries over what is left of it, and the queries of several entries over what they share.
        whole = np.arange(len(used))
        members = np.concatenate([whole, *(run.entries for run in shared)])
        bunch = np.concatenate([whole, *(np.full(len(run.entries), len(used) + i) for i, run in enumerate(shared))])
        begin = np.concatenate([begin, np.array([run.begin for run in shared], np.int64)])
        end = np.concatenate([end, np.array([run.end for run in shared], np.int64)])
        own = np.concatenate([own, np.full(len(shared), len(views.slots))])
        origin = np.concatenate([start, np.array([start[run.entries[0]] for run in shared], np.int64)])
        count = self.counts[self.row[members]]
        member = np.repeat(members, count)
        token = _ramps(count)
        asks = self._asks(member, token)
        sizes = np.bincount(np.repeat(bunch, count), minlength=len(begin)).astype(np.int64)
        pieces = -(-sizes // self.tile)
        of = np.repeat(np.arange(len(begin)), pieces)
        step = _ramps(pieces) * self.tile
        first_ask = (np.cumsum(sizes) - sizes)[of] + step
        last_ask = first_ask + np.minimum(self.tile, sizes[of] - step)
        tiles = _Tiles(first_ask, last_ask, begin[of], end[of], origin[of], own[of])
        return asks, self._trim(asks, tiles)

    def _asks(self, member: Ints, token: Ints) -> _Asks:
        views, row, part = self.views, self.row[member], self.part[member]
        query = views.query_ptr[row] + token
        position = views.positions[query]
        turn = None
        if views.offsets is not None:
            offset = views.offsets[part]
            position = position - offset
            turn = -offset if offset.any() else None
        last = position
        if views.last is not None:
            parts = np.diff(views.part_ptr)
            cells = self.counts * parts
            last = views.last[(np.cumsum(cells) - cells)[row] + token * parts[row] + part - views.part_ptr[row]]
        first = None if self.window is None else position - (self.window - 1)
        return _Asks(query, last, first, turn)

    def _trim(self, asks: _Asks, tiles: _Tiles) -> _Tiles:
        """Without leading and trailing slots that no query of a tile sees, and without tiles of which nothing is left."""
        if not len(tiles.ask):
            return tiles
        newest = np.maximum.reduceat(asks.last, tiles.ask)
        oldest = None if asks.first is None else np.minimum.reduceat(asks.first, tiles.ask)
        if self.views.slot_positions is None:
            tiles.end = np.minimum(tiles.end, tiles.origin + newest + 1)
            if oldest is not None:
                tiles.begin = np.maximum(tiles.begin, tiles.origin + oldest)
        else:
            tiles.end = np.minimum(tiles.end, self._find(self._falling, tiles, newest, "right"))
            if oldest is not None:
                tiles.begin = np.maximum(tiles.begin, self._find(self._rising, tiles, oldest, "left"))
        return tiles[np.flatnonzero(tiles.begin < tiles.end)]

    @cached_property
    def _apart(self) -> tuple[int, Ints, Ints]:
        """A number beyond all positions, the part of each listed slot, and positions lifted by it times the part."""
        apart = int(self.stored.max(initial=0)) + 2
        part = np.repeat(np.arange(len(self.views.slot_ptr) - 1), np.diff(self.views.slot_ptr))
        return apart, part, self.stored + part * apart

    @cached_property
    def _rising(self) -> Ints:
        """The running maximum of positions in each part: what lies before where it reaches x is older than x."""
        return np.maximum.accumulate(self._apart[2])

    @cached_property
    def _falling(self) -> Ints:
        """The running minimum from behind: what lies behind where it passes x is newer than x."""
        return np.minimum.accumulate(self._apart[2][::-1])[::-1]

    def _find(self, extremes: Ints, tiles: _Tiles, position: Ints, side: Literal["left", "right"]) -> Ints:
        """The slot index where the running ``extremes`` of each tile's part reach, or pass ("right"), ``position``."""
        apart, part, _ = self._apart
        return np.searchsorted(extremes, part[tiles.begin] * apart + np.clip(position, -1, apart - 1), side=side)

    # ---- tables ------------------------------------------------------------------------------------------------------

    def _cut(self, tiles: _Tiles) -> _Tiles:
        """Long runs cut, so that about ``splits`` items share the reading evenly."""
        length = tiles.end - tiles.begin
        if not len(length):
            return tiles
        run = max(LEAST_RUN, -(-int(length.sum()) // self.splits))
        if int(length.max()) < 1.5 * run:
            return tiles
        pieces = np.maximum(1, (length + run // 2) // run)
        step = -(-length // (pieces * RUN_STEP)) * RUN_STEP
        pieces = -(-length // step)
        of = np.repeat(np.arange(len(length)), pieces)
        out = tiles[of]
        out.begin = out.begin + _ramps(pieces) * step[of]
        out.end = np.minimum(out.begin + step[of], out.end)
        return out

    def _tables(self, asks: _Asks, tiles: _Tiles, *, open_wide: bool) -> Plan:
        views, count = self.views, tiles.ask_end - tiles.ask
        most, few = int(count.max(initial=0)), len(count)
        if most > self.few:
            order = np.argsort(count > self.few, kind="stable")
            few = int((count <= self.few).sum())
            if 0 < few < len(count):
                tiles, count = tiles[order], count[order]
        pair_end = np.cumsum(count)
        items = np.empty((len(count), 6), np.int32)
        items[:, 0], items[:, 1] = pair_end - count, pair_end
        items[:, 2], items[:, 3] = tiles.begin, tiles.end
        items[:, 4], items[:, 5] = tiles.begin - tiles.origin, tiles.own
        ask = tiles.ask if most <= 1 else np.repeat(tiles.ask, count) + _ramps(count)
        query, last = asks.query[ask], asks.last[ask]
        first = None if asks.first is None else asks.first[ask]
        turn = None if asks.turn is None else asks.turn[ask]
        pairs = np.empty((len(ask), 4), np.int32)
        pairs[:, 0], pairs[:, 1] = query, np.clip(last, -1, EVER)
        pairs[:, 2] = NEVER if first is None else np.maximum(first, NEVER)
        pairs[:, 3] = 0 if turn is None else turn
        tree, wide = (None, items[:, 2:4]) if open_wide else self._open(tiles, pair_end - count, last, first)
        ptr = merges = None
        each = np.bincount(query, minlength=views.queries)
        if each.max(initial=0) > 1:
            ptr = np.zeros(views.queries + 1, np.int32)
            np.cumsum(each, out=ptr[1:])
            merges = np.argsort(query, kind="stable")
        tables = Tables(items, pairs, views.slots, wide, views.slot_positions, ptr, merges)
        facts = Facts(
            most_pairs=most,
            few=few,
            masked=not open_wide and bool((wide != items[:, 2:4]).any()),
            turned=turn is not None and bool(turn.any()),
            blind=bool(each.min(initial=1) == 0),
            slot_reads=int((tiles.end - tiles.begin).sum()),
        )
        return Plan(tree, tables, facts)

    def _open(self, tiles: _Tiles, pair: Ints, last: Ints, first: Ints | None) -> tuple[Ints | None, Ints]:
        """The tree words, if any matter; and per item from where to where all its queries see all."""
        views, begin, end = self.views, tiles.begin, tiles.end
        if not len(begin):
            return None, np.empty((0, 2), np.int64)
        tree = None
        if views.tree is not None and (views.tree != -1).any() and (end > tiles.own + 1).any():
            tree = views.tree
            end = np.minimum(end, tiles.own + 1)
        newest = np.minimum.reduceat(last, pair)
        oldest = None if first is None else np.maximum.reduceat(first, pair)
        if views.slot_positions is None:
            end = np.minimum(end, tiles.origin + newest + 1)
            begin = begin if oldest is None else np.maximum(begin, tiles.origin + oldest)
        else:
            end = np.minimum(end, self._find(self._rising, tiles, newest, "right"))
            begin = begin if oldest is None else np.maximum(begin, self._find(self._falling, tiles, oldest, "left"))
        begin = np.minimum(begin, tiles.end)
        return tree, np.stack((begin, np.maximum(begin, end)), 1)


def _ramps(counts: Ints) -> Ints:
    """0, 1, … for each count, end to end."""
    ends = np.cumsum(counts)
    ramps: Ints = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)
    return ramps
