"""How the plain-torch twin walks the slots of some views: made once per model call, on the host, for all layers.

Views become few dense groups: rows of like length padded together, each long prefill chunk alone, and a prefix that
several rows share read once. Groups over disjoint keys are merged by log-sum-exp. The visibility rule of
:class:`~forethought.kernels.views.Views` turns into masks here. Exact. Not here: any arithmetic on K and V.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .groups import Grid, Group
from .views import TREE_LIMIT, Ints, Views

Bools = npt.NDArray[np.bool_]

CHUNK = TREE_LIMIT + 1
"""Rows with more queries than any tree are prefill, and get a group of their own."""
MASK_CELLS = 1 << 22
"""A long chunk is cut so that its mask has at most about so many cells."""
SHARE_SLOTS = 256
"""Reading a prefix once pays from so many slot reads saved: below, the extra launches and the merge cost more."""
PAD_SLOTS = 512
"""Rows of unlike length are split into groups once padding wastes so many slot reads."""


_WORDS = np.left_shift(1, np.arange(TREE_LIMIT), dtype=np.int64)
"""The bit of each drafted token in its descendants' words."""


Plan = list[list[Group]]
"""Layers to be merged one after the other; inside a layer no two groups have a query in common."""


def plan_for(views: Views, window: int | None, device: torch.device) -> Plan:
    """The plan of ``views``, made on first use and kept on them."""
    key = ("torch", window, device)
    plan: Plan | None = views.plans.get(key)
    if plan is None:
        plan = views.plans[key] = (
            _plain(views, window, device) or _drafted(views, window, device) or _Planner(views, window, device).plan()
        )
    return plan


def _plain(views: Views, window: int | None, device: torch.device) -> Plan | None:
    """The plan of what is called most by far, a step of plain decoding, at a fraction of the planner's cost; else None.

    That is one causal query a row: of one row, or of rows of one length that share a prefix and nothing else, as samples do.
    """
    rows, listed = len(views.positions), len(views.slots)
    if not rows or listed % rows or len(views.query_ptr) != rows + 1 or len(views.slot_ptr) != rows + 1:
        return None
    if not (views.slot_positions is views.offsets is views.last is views.tree is None):
        return None
    length, position = listed // rows, int(views.positions[0] if rows == 1 else views.positions.min())
    if not length or length > position + 1:
        return None
    if rows == 1:
        first = 0 if window is None else max(0, position - window + 1)
        return None if first >= length else [[_lone(views.slots[first:], device)]]
    each = np.arange(rows + 1)
    if window is not None or (views.query_ptr != each).any() or (views.slot_ptr != length * each).any():
        return None
    table = views.slots.reshape(rows, length)
    same = (table == table[0]).all(0)
    common = int(same.argmin())
    if same[common] or len(set(table[:, common].tolist())) < rows:
        return None
    if common * (rows - 1) < SHARE_SLOTS:
        return [[Group(rows, length, _pool_rows(table, device))]]
    shared, own = _pool_rows(table[:1, :common], device), _pool_rows(table[:, common:], device)
    return [[Group(1, common, shared)], [Group(rows, length - common, own)]]


def _drafted(views: Views, window: int | None, device: torch.device) -> Plan | None:
    """The plan of one row with a draft, chain or tree, behind a context it sees all of: the mask is written down at once."""
    queries, listed = len(views.positions), len(views.slots)
    known = listed - queries
    if not 1 < queries <= CHUNK or known < 0 or len(views.query_ptr) != 2 or len(views.slot_ptr) != 2:
        return None
    if window is not None or views.offsets is not None or views.last is not None:
        return None
    first, stored = int(views.positions[0]), views.slot_positions
    if stored is None:
        if first != known or int(views.positions[-1]) != listed - 1:
            return None
    elif (stored[known:] != views.positions).any() or (known and int(views.positions.min()) < int(stored[:known].max())):
        return None
    mask = np.ones((1, queries, listed), np.bool_)
    own = mask[0, :, known:]
    np.less_equal(views.positions, views.positions[:, None], out=own)
    if views.tree is not None:
        own[:, 1:] &= (views.tree[:, None] & _WORDS[: queries - 1]) != 0
    return [[_lone(views.slots, device, torch.from_numpy(mask).to(device))]]


def _lone(slots: Ints, device: torch.device, mask: Tensor | None = None) -> Group:
    """A row that sees all of ``slots``, or what ``mask`` shows."""
    first, length = int(slots[0]), len(slots)
    if int(slots[-1]) - first == length - 1 and np.count_nonzero(slots[1:] > slots[:-1]) == length - 1:
        return Group(1, length, Grid(first, 1, 1), mask=mask)
    return Group(1, length, _pool_rows(slots[None], device), mask=mask)


def _pool_rows(table: Ints, device: torch.device) -> Tensor | Grid:
    """The slots [E, L] of a group, as a grid where they are one: one sequence alone, or several that have grown in step."""
    (entries, length), first = table.shape, int(table[0, 0])
    apart = int(table[1, 0]) - first if entries > 1 else 1
    step = int(table[0, 1]) - first if length > 1 else 1
    if apart > 0 and step > 0 and int(table[-1, -1]) == first + apart * (entries - 1) + step * (length - 1):
        line = first + step * np.arange(length)
        if (table == (line if entries == 1 else line + apart * np.arange(entries)[:, None])).all():
            return Grid(first, apart, step)
    return torch.from_numpy(np.ascontiguousarray(table.reshape(-1))).to(device)


@dataclass(slots=True)
class _Entries:
    """Runs of listed slots as single rows see them: ``length`` slots from ``start`` on, in part ``part`` of row ``row``."""

    row: Ints
    part: Ints
    start: Ints
    length: Ints

    def __getitem__(self, index: Ints | Bools | slice) -> _Entries:
        return _Entries(self.row[index], self.part[index], self.start[index], self.length[index])

    def skip(self, count: Ints | int, index: Ints | slice = slice(None)) -> None:
        """Drop the first ``count`` slots of the entries at ``index``."""
        self.start[index] += count
        self.length[index] -= count


class _Planner:
    """Turns views into groups."""

    def __init__(self, views: Views, window: int | None, device: torch.device) -> None:
        self.views, self.window, self.device = views, window, device
        self.queries = views.query_ptr[1:] - views.query_ptr[:-1]
        self.parts = views.part_ptr[1:] - views.part_ptr[:-1]

    @cached_property
    def stored(self) -> Ints:
        return self.views.stored_positions()

    @cached_property
    def last_ptr(self) -> Ints:
        return np.cumsum(self.queries * self.parts) - self.queries * self.parts

    @cached_property
    def earliest(self) -> Ints:
        """[R] position of the first query of each row."""
        asked = np.flatnonzero(self.queries)
        earliest = np.zeros_like(self.queries)
        earliest[asked] = np.minimum.reduceat(self.views.positions, self.views.query_ptr[asked])
        return earliest

    def plan(self) -> Plan:
        plan: Plan = []
        for ordinal in range(int(self.parts.max(initial=0))):
            entries = self._entries(ordinal)
            shared = self._share(entries)
            entries = self._trim(entries)
            rest = [self._group(entries[index]) for index in self._buckets(entries)]
            for e in np.flatnonzero(self.queries[entries.row] > CHUNK):
                rest.extend(self._chunk(entries[e : e + 1]))
            plan += [layer for layer in (shared, rest) if layer]
        return plan

    def _entries(self, ordinal: int) -> _Entries:
        """The ``ordinal``-th part of every row that has one and asks something."""
        row = np.flatnonzero((self.parts > ordinal) & (self.queries > 0))
        part = self.views.part_ptr[row] + ordinal
        start = self.views.slot_ptr[part]
        return _Entries(row, part, start, self.views.slot_ptr[part + 1] - start)

    def _trim(self, entries: _Entries) -> _Entries:
        """Without the slots behind the window, and without entries of which nothing is left."""
        entries = entries[entries.length > 0]
        if self.window is not None and len(entries.row):
            entries.skip(self._passed(entries, self.window))
            entries = entries[entries.length > 0]
        return entries

    def _passed(self, entries: _Entries, window: int) -> Ints:
        """How many of each entry's first slots lie behind the window of all its queries."""
        earliest = self.earliest[entries.row] - (0 if self.views.offsets is None else self.views.offsets[entries.part])
        behind = self.stored[_columns(entries)] <= earliest[:, None] - window
        return np.where(behind.all(1), entries.length, behind.argmin(1))

    def _share(self, entries: _Entries) -> list[Group]:
        """Groups for the prefixes worth reading once; they are cut off ``entries``."""
        short = np.flatnonzero(self.queries[entries.row] <= CHUNK)
        most = entries.length - self.queries[entries.row] * self._is_last(entries)  # own new tokens are no prefix
        groups = []
        for index, common in self._prefixes(entries, most, short):
            members = entries[index]
            members.length[:] = common
            if self.window is not None:
                members.skip(self._passed(members, self.window).min())
            if members.length[0] * (len(index) - 1) >= SHARE_SLOTS:
                groups.append(self._group(members, together=True))
                entries.skip(common, index)
        return groups

    def _prefixes(self, entries: _Entries, most: Ints, index: Ints, depth: int = 0, splits: int = 8) -> list[tuple[Ints, int]]:
        """Disjoint sets of entries and the length of the prefix each set shares: those that save most slot reads.

        The entries at ``index`` share ``depth`` slots already; none may share more than its ``most``. Rows that part from
        the others one by one, as in a comb, would be looked at in as many rounds as there are rows: ``splits`` ends that.
        """
        slots, found = self.views.slots, []
        index = index[most[index] > depth]
        clusters: dict[int, list[int]] = {}
        for e, slot in zip(index.tolist(), slots[entries.start[index] + depth].tolist(), strict=True):
            clusters.setdefault(slot, []).append(e)
        for members in clusters.values():
            if len(members) > 1:
                cluster = np.array(members)
                start, limit = entries.start[cluster], int(most[cluster].min())
                same = (slots[start[:, None] + np.arange(depth, limit)] == slots[start[0] + depth : start[0] + limit]).all(0)
                common = limit if same.all() else depth + int(same.argmin())
                deeper = self._prefixes(entries, most, cluster, common, splits - 1) if splits else []
                found += max([(cluster, common)], deeper, key=_saved)
        return found

    def _buckets(self, entries: _Entries) -> Iterator[Ints]:
        """Index arrays of entries to pad together."""
        queries = self.queries[entries.row]
        for above, width in ((0, 1), (1, 8), (8, CHUNK)):
            fits = np.flatnonzero((queries > above) & (queries <= width))
            if not len(fits):
                continue
            yield from _alike(fits, entries.length[fits])

    def _chunk(self, entry: _Entries) -> Iterator[Group]:
        """A long row, cut so that no mask gets too large."""
        total = int(self.queries[entry.row[0]])
        step = max(1, MASK_CELLS // int(entry.length[0]))
        for first in range(0, total, step):
            yield self._group(entry, first=first, take=min(total - first, step))

    def _group(self, entries: _Entries, *, together: bool = False, first: int = 0, take: int | None = None) -> Group:
        """One group. ``together``: the entries are one prefix, so their queries all go in one entry."""
        views = self.views
        member, token, real = _ragged(self.queries[entries.row] if take is None else np.array([take]), together)
        token += first
        query = views.query_ptr[entries.row][member] + token
        runs = entries[:1] if together else entries
        # Own new tokens are never in a shared prefix, so there is no ancestor to ask for.
        tree = None if together or views.tree is None else views.tree[query]
        visible = self._visible(runs, entries[member], query, token, tree)
        blind = None if visible is None else ~visible.any(-1).reshape(-1)
        whole = len(query) == views.queries and real is None
        offset = None if views.offsets is None else views.offsets[entries.part][member]
        return Group(
            entries=len(runs.row),
            length=int(runs.length.max()),
            slots=self._slots(runs),
            queries=None if whole else self._tensor(query),
            mask=None if visible is None else self._tensor(visible),
            empty=None if blind is None or not blind.any() else self._tensor(blind),
            turn=None if offset is None or not offset.any() else self._tensor(-offset),
            valid=None if real is None else self._tensor(real),
            target=None if whole else self._tensor(query if real is None else query[real]),
        )

    def _slots(self, runs: _Entries) -> Tensor | Grid:
        """[E * L] pool rows of the entries, each padded with its own last one: what pads must be no other row's."""
        return _pool_rows(self.views.slots[_columns(runs)], self.device)

    def _visible(self, runs: _Entries, asking: _Entries, query: Ints, token: Ints, tree: Ints | None) -> Bools | None:
        """[E, n, L] what each query sees of its entry, padding left out; None: everything.

        Of each query [E * n]: its entry ``asking``, number ``query``, number within its row ``token``, ancestors ``tree``.
        """
        views, shape = self.views, (len(runs.row), -1, 1)
        offset = 0 if views.offsets is None else views.offsets[asking.part]
        position = (views.positions[query] - offset).reshape(shape)
        last = position if views.last is None else self._last(asking, token).reshape(shape)
        listed = (np.arange(runs.length.max()) < runs.length[:, None])[:, None]
        if (tree is None or (tree == -1).all()) and self._sees_all(runs, position, last):
            return None if listed.all() else listed.repeat(position.shape[1], 1)
        stored = self.stored[_columns(runs)][:, None]
        visible = listed & (stored <= last)
        if self.window is not None:
            visible &= position - stored < self.window
        if tree is not None:
            visible &= self._ancestors(runs, tree.reshape(shape))
        return None if visible.all() else visible

    def _sees_all(self, runs: _Entries, position: Ints, last: Ints) -> bool:
        """Whether the oldest and the newest slot of each entry, and so all others, are in sight of all its queries."""
        if self.views.slot_positions is None:
            oldest = runs.start - self.views.slot_ptr[runs.part]
            newest = oldest + runs.length - 1
        else:
            stored = self.stored[_columns(runs)]
            oldest, newest = stored.min(1), stored.max(1)
        if (newest[:, None, None] > last).any():
            return False
        return self.window is None or bool((position - oldest[:, None, None] < self.window).all())

    def _last(self, asking: _Entries, token: Ints) -> Ints:
        """[E * n] last visible stored position of each query."""
        assert self.views.last is not None
        ordinal = asking.part - self.views.part_ptr[asking.row]
        return self.views.last[self.last_ptr[asking.row] + token * self.parts[asking.row] + ordinal]

    def _ancestors(self, runs: _Entries, tree: Ints) -> Bools:
        """[E, n, L] which slots are not a row's own new tokens, or are ancestors by ``tree`` [E, n, 1]."""
        own = self.queries[runs.row] * self._is_last(runs)
        new = (np.arange(runs.length.max()) - (runs.length - own)[:, None])[:, None]
        mine: Bools = (new < 1) | (tree >> np.clip(new - 1, 0, 63) & 1).astype(bool)
        return mine

    def _is_last(self, entries: _Entries) -> Bools:
        """[E] whether the part is the last of its row, which ends with the row's own new tokens."""
        last: Bools = entries.part == self.views.part_ptr[entries.row + 1] - 1
        return last

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _alike(index: Ints, sizes: Ints) -> Iterator[Ints]:
    """``index`` cut, longest first, wherever padding to the longest would cost more than a group."""
    order = np.argsort(-sizes, kind="stable")
    first, longest, waste = 0, int(sizes[order[0]]), 0
    for at, size in enumerate(sizes[order].tolist()):
        waste += longest - size
        if waste > PAD_SLOTS:
            yield np.sort(index[order[first:at]])
            first, longest, waste = at, size, 0
    yield np.sort(index[order[first:]])


def _columns(runs: _Entries) -> Ints:
    """[E, L] where each listed slot of the entries is in the tables; past an entry's end, its last one again."""
    columns: Ints = runs.start[:, None] + np.minimum(np.arange(runs.length.max()), runs.length[:, None] - 1)
    return columns


def _saved(prefixes: Iterable[tuple[Ints, int]]) -> int:
    return sum(common * (len(index) - 1) for index, common in prefixes)


def _ragged(counts: Ints, together: bool) -> tuple[Ints, Ints, Ints | None]:
    """Row and token of each query of a group: end to end, or padded to the same number a row with the real ones' index."""
    rows, n = np.arange(len(counts)), counts.max()
    if together or (counts == n).all():
        row = rows if n == 1 else np.repeat(rows, counts)
        return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts), None
    row, column = np.repeat(rows, n), np.tile(np.arange(n), len(counts))
    real = np.flatnonzero(column < counts[row])
    return row, np.minimum(column, counts[row] - 1), real
