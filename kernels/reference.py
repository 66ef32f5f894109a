"""Attention in plain torch: any device, any float type; the specification of the other twins.

A plan, made once per model call on the host, turns views into few dense groups: rows of like length padded together,
each long prefill chunk alone, and a prefix that several rows share read once. Groups over disjoint keys are merged by
log-sum-exp. Exact. Bytes a layer must move: see :func:`bytes_moved`. Not here: any tuning for one device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .rotary import Rotary
from .views import TREE_LIMIT, Ints, Views

CHUNK = TREE_LIMIT + 1
"""Rows with more queries than any tree are prefill, and get a group of their own."""
MASK_CELLS = 1 << 22
"""A long chunk is cut so that its mask has at most about so many cells."""
SHARE_SLOTS = 256
"""Reading a prefix once pays from so many slot reads saved: below, the extra launches and the merge cost more."""
PAD_SLOTS = 2048
"""Rows of unlike length are split into groups once padding wastes so many slot reads."""


@dataclass(slots=True)
class Group:
    """``E`` entries of ``n`` queries, each over ``L`` slots, dense after padding."""

    entries: int
    length: int
    slots: Tensor | slice
    """[E * L] pool rows, or a run of them when one entry's slots lie side by side."""
    queries: Tensor | None
    """[E * n] row of q of each query; None: all of q, in order."""
    mask: Tensor | None
    """[E, n, L] bool, what is visible; None: everything."""
    empty: Tensor | None
    """[E * n] bool, queries that see nothing; None: there are none."""
    turn: Tensor | None
    """[E * n] positions to turn queries by; None: none."""
    valid: Tensor | None
    """Which of the E * n results are real and not padding; None: all."""
    target: Tensor | None
    """Query of each real result; None: all of q, in order."""
    biases: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)

    def bias(self, heads: int, dtype: torch.dtype) -> Tensor | None:
        """The mask as [E, 1, n * heads, L] of 0 and -inf, for ``heads`` query heads per KV head."""
        if self.mask is None:
            return None
        if (heads, dtype) not in self.biases:
            bias = torch.zeros(self.mask.shape, dtype=dtype, device=self.mask.device).masked_fill_(~self.mask, -torch.inf)
            entries, n, length = bias.shape
            wide = bias[:, None] if n == 1 else bias[:, :, None].expand(-1, -1, heads, -1).reshape(entries, 1, n * heads, length)
            self.biases[heads, dtype] = wide
        return self.biases[heads, dtype]


Plan = list[list[Group]]
"""Layers to be merged one after the other; inside a layer no two groups have a query in common."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    views: Views,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    rotary: Rotary | None = None,
    need_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """See :func:`forethought.kernels.attention.attend`; sinks are added there."""
    plan = plan_for(views, window, q.device)
    need_lse = need_lse or len(plan) > 1
    state: tuple[Tensor, Tensor | None] | None = None
    for layer in plan:
        parts = [(group, *_run(q, k, v, group, scale, softcap, rotary, need_lse)) for group in layer]
        new = parts[0][1:] if len(parts) == 1 and parts[0][0].target is None else _scatter(q, v, parts)
        state = new if state is None else _merge(*state, *new)  # type: ignore[arg-type]
    return state if state is not None else _scatter(q, v, [])


def _run(
    q: Tensor, k: Tensor, v: Tensor, group: Group, scale: float, softcap: float | None, rotary: Rotary | None, need_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """One group: output [E * n or its valid ones, heads, dim_v] and lse [the same, heads]."""
    entries, length, kv_heads = group.entries, group.length, k.shape[1]
    rows = q if group.queries is None else q.index_select(0, group.queries)
    if group.turn is not None:
        assert rotary is not None
        rows = rotary.rotate(rows, group.turn)
    n, shared = rows.shape[0] // entries, q.shape[1] // kv_heads
    rows = rows.view(entries, n, kv_heads, shared, q.shape[2]).transpose(1, 2).reshape(entries, kv_heads, n * shared, q.shape[2])
    if isinstance(group.slots, slice):
        keys, values = k[group.slots][None].transpose(1, 2), v[group.slots][None].transpose(1, 2)
    else:
        keys = k.index_select(0, group.slots).view(entries, length, kv_heads, -1).transpose(1, 2)
        values = v.index_select(0, group.slots).view(entries, length, kv_heads, -1).transpose(1, 2)
    if softcap is None and q.device.type == "cpu" and keys.shape[-1] == values.shape[-1]:
        bias = group.bias(shared, rows.dtype)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(rows, keys, values, 0.0, False, attn_mask=bias, scale=scale)
    else:
        out, lse = _dense(rows, keys, values, group, scale, softcap, shared)
    out = out.reshape(entries, kv_heads, n, shared, -1).transpose(1, 2).reshape(entries * n, q.shape[1], -1)
    if not need_lse:
        out = out if group.empty is None else out.masked_fill(group.empty[:, None, None], 0.0)
        return (out if group.valid is None else out.index_select(0, group.valid)), None
    lse = lse.reshape(entries, kv_heads, n, shared).transpose(1, 2).reshape(entries * n, q.shape[1])
    if group.empty is not None:
        out, lse = out.masked_fill(group.empty[:, None, None], 0.0), lse.masked_fill(group.empty[:, None], -torch.inf)
    return (out, lse) if group.valid is None else (out.index_select(0, group.valid), lse.index_select(0, group.valid))


def _dense(
    q: Tensor, k: Tensor, v: Tensor, group: Group, scale: float, softcap: float | None, shared: int
) -> tuple[Tensor, Tensor]:
    """Masked softmax as written in a textbook, in float32 or better."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if (bias := group.bias(shared, wide)) is not None:
        scores = scores + bias
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    return (weights @ v.to(wide)).to(q.dtype), lse


def _scatter(q: Tensor, v: Tensor, parts: list[tuple[Group, Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
    out = q.new_zeros(q.shape[0], q.shape[1], v.shape[2])
    lse = torch.full(q.shape[:2], -torch.inf, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    for group, part, part_lse in parts:
        target = slice(None) if group.target is None else group.target
        out[target] = part
        if part_lse is not None:
            lse[target] = part_lse
    return out, lse


def _merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    from .attention import merge

    return merge(out_a, lse_a, out_b, lse_b)


# ---- the plan -----------------------------------------------------------------------------------------------------


def plan_for(views: Views, window: int | None, device: torch.device) -> Plan:
    """The plan of ``views``, made on first use and kept on them."""
    key = ("torch", window, device)
    if key not in views.plans:
        views.plans[key] = _Planner(views, window, device).plan()
    plan: Plan = views.plans[key]
    return plan


def bytes_moved(views: Views, *, heads: int, kv_heads: int, dim: int, itemsize: int, window: int | None = None) -> int:
    """Bytes one layer must move: each planned slot read once (K and V), queries read and outputs written once."""
    plan = plan_for(views, window, torch.device("cpu"))
    slots = sum(group.entries * group.length for layer in plan for group in layer)
    return itemsize * dim * (2 * kv_heads * slots + 2 * heads * views.queries)


class _Planner:
    """Turns views into groups. An entry is one part as seen by one row."""

    def __init__(self, views: Views, window: int | None, device: torch.device) -> None:
        self.views, self.window, self.device = views, window, device
        self.queries, self.parts = np.diff(views.query_ptr), np.diff(views.part_ptr)
        self.stored = views.stored_positions() if views.slot_positions is not None or window is not None or len(self.parts) else views.slots
        self.last = views.last_visible()
        self.last_ptr = np.concatenate(([0], np.cumsum(self.queries * self.parts)))

    def plan(self) -> Plan:
        plan: Plan = []
        for ordinal in range(int(self.parts.max(initial=0))):
            rows = np.flatnonzero((self.parts > ordinal) & (self.queries > 0))
            part = self.views.part_ptr[rows] + ordinal
            start, stop = self.views.slot_ptr[part], self.views.slot_ptr[part + 1]
            kept = stop > start
            rows, part, start, length = rows[kept], part[kept], start[kept], (stop - start)[kept]
            small = self.queries[rows] <= CHUNK
            shared: list[Group] = []
            if small.sum() > 1:
                start, length, shared = self._share(rows, part, ordinal, start, length, small)
            rest = [self._group(rows[i], part[i], ordinal, start[i], length[i]) for i in self._buckets(rows, length, small)]
            for e in np.flatnonzero(~small):
                rest.extend(self._chunk(rows[e], part[e], ordinal, start[e], length[e]))
            plan += [layer for layer in (shared, rest) if layer]
        return plan

    def _share(
        self, rows: Ints, part: Ints, ordinal: int, start: Ints, length: Ints, small: np.ndarray
    ) -> tuple[Ints, Ints, list[Group]]:
        """Groups for prefixes worth reading once, and what is left of each entry."""
        slots = self.views.slots
        clusters: dict[int, list[int]] = {}
        for e, first in enumerate(slots[start].tolist()):
            if small[e]:
                clusters.setdefault(first, []).append(e)
        groups = []
        for members in clusters.values():
            if len(members) < 2:
                continue
            m = np.array(members)
            own = np.where(self.parts[rows[m]] == ordinal + 1, self.queries[rows[m]], 0)
            common = int((length[m] - own).min())
            if common * (len(m) - 1) < SHARE_SLOTS:
                continue
            same = (slots[start[m][:, None] + np.arange(common)] == slots[start[m[0]] : start[m[0]] + common]).all(0)
            common = common if same.all() else int(same.argmin())
            if common * (len(m) - 1) < SHARE_SLOTS:
                continue
            groups.append(self._group(rows[m], part[m], ordinal, start[m[:1]], np.array([common])))
            start, length = start.copy(), length.copy()
            start[m] += common
            length[m] -= common
        return start, length, groups

    def _buckets(self, rows: Ints, length: Ints, small: np.ndarray) -> Iterator[np.ndarray]:
        """Index arrays of entries to pad together."""
        index = np.flatnonzero(small & (length > 0))
        if not len(index):
            return
        queries = self.queries[rows[index]]
        for width in (1, 8, CHUNK):
            fits = index[(queries <= width) & (queries > {1: 0, 8: 1, CHUNK: 8}[width])]
            if not len(fits):
                continue
            sizes = length[fits]
            if len(fits) * sizes.max() - sizes.sum() < PAD_SLOTS:
                yield fits
                continue
            power = np.ceil(np.log2(np.maximum(sizes, 64))).astype(np.int64)
            for p in np.unique(power):
                yield fits[power == p]

    def _chunk(self, row: int, part: int, ordinal: int, start: int, length: int) -> Iterator[Group]:
        """A long row, cut so that no mask gets too large."""
        total = int(self.queries[row])
        step = max(1, MASK_CELLS // int(length))
        for first in range(0, total, step):
            yield self._group(
                np.array([row]), np.array([part]), ordinal, np.array([start]), np.array([length]), first, min(total - first, step)
            )

    def _group(
        self, rows: Ints, part: Ints, ordinal: int, start: Ints, length: Ints, first: int = 0, take: int | None = None
    ) -> Group:
        """One group. A single ``start`` for several rows: their shared prefix, all queries in one entry."""
        views, together = self.views, len(start) < len(rows)
        queries = self.queries[rows] if take is None else np.array([take])
        n, long = int(queries.max()), int(length.max())
        row, token, real = _ragged(queries, n, together)
        query = views.query_ptr[rows][row] + first + token
        row_id = rows[row]
        last = self.last[self.last_ptr[row_id] + (first + token) * self.parts[row_id] + ordinal]
        offset = None if views.offsets is None else views.offsets[part][row]
        own = self.parts[rows[0]] == ordinal + 1 and not together
        column = np.arange(long)
        index = start[:, None] + (np.minimum(column, length[:, None] - 1) if len(length) > 1 else column)
        if n == 1 and own and self.window is None and views.last is None and views.tree is None and offset is None:
            visible = None if len(length) == 1 or (length == long).all() else (column < length[:, None])[:, None, :]
        else:
            where = self.stored[index][:, None, :]
            shape = (len(start), -1)
            visible = (column < length[:, None])[:, None, :] & (where <= last.reshape(shape)[:, :, None])
            if self.window is not None:
                local = views.positions[query] - (0 if offset is None else offset)
                visible &= local.reshape(shape)[:, :, None] - where < self.window
            if views.tree is not None and not together:
                mine = self.parts[rows] == ordinal + 1
                new = column - (length - np.where(mine, self.queries[rows], 0))[:, None]
                bits = views.tree[query].reshape(shape)[:, :, None] >> np.clip(new - 1, 0, 63)[:, None, :]
                visible &= (new < 1)[:, None, :] | (bits & 1).astype(bool) | ~mine[:, None, None]
            if visible.all():
                visible = None
        blind = None if visible is None else ~visible.any(-1).reshape(-1)
        table = views.slots[index]
        run = len(table) == 1 and (np.diff(table[0]) == 1).all()
        whole = len(query) == views.queries and bool((query == np.arange(len(query))).all()) and real is None
        target = None if whole else query if real is None else query[real]
        return Group(
            entries=len(start),
            length=long,
            slots=slice(int(table[0, 0]), int(table[0, 0]) + long) if run else self._tensor(table.reshape(-1)),
            queries=None if whole else self._tensor(query),
            mask=None if visible is None else self._tensor(visible),
            empty=None if blind is None or not blind.any() else self._tensor(blind),
            turn=None if offset is None or not offset.any() else self._tensor(-offset),
            valid=None if real is None else self._tensor(real),
            target=None if target is None else self._tensor(target),
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _ragged(counts: Ints, n: int, together: bool) -> tuple[Ints, Ints, Ints | None]:
    """Row and token of each query of a group: end to end, or padded to ``n`` a row with the real ones' index."""
    if together or (counts == n).all():
        row = np.repeat(np.arange(len(counts)), counts)
        return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts), None
    row, column = np.repeat(np.arange(len(counts)), n), np.tile(np.arange(n), len(counts))
    real = np.flatnonzero(column < counts[row])
    return row, np.minimum(column, counts[row] - 1), real
