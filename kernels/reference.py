"""Attention in plain torch: any device, any float type; the specification of the other twins.

One dense call per group of the plan (:mod:`forethought.kernels.plan`); groups over disjoint keys are merged by log-sum-exp.
Exact. Bytes a layer must move: see :func:`bytes_moved`. Not here: who sees what, sinks, any tuning beyond a CPU's cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .groups import Grid, Group, rooms
from .merge import blend, merge
from .plan import plan_for
from .rotary import Rotary
from .views import Views

BLOCK_BYTES = 1 << 21
"""On a CPU, K (and V) of a group is gathered in pieces of so many bytes a thread, which stay in its cache until they are used."""


_flash = torch._scaled_dot_product_flash_attention_for_cpu


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
    if not need_lse and len(plan) == 1 and len(plan[0]) == 1 and plan[0][0].lone:
        return _lone(q, k, v, plan[0][0], scale, softcap), None
    every = need_lse or len(plan) > 1
    state: tuple[Tensor, Tensor | None] | None = None
    for i, layer in enumerate(plan):
        parts = [(group, *_run(q, k, v, group, scale, softcap, rotary, every)) for group in layer]
        new = parts[0][1:] if len(parts) == 1 and parts[0][0].target is None else _scatter(q, v, parts)
        if state is None:
            state = new
        elif need_lse or i + 1 < len(plan):
            state = merge(*state, *new)  # type: ignore[arg-type]
        else:
            state = blend(*state, *new), None  # type: ignore[arg-type]
    return state if state is not None else _scatter(q, v, [])


def _lone(q: Tensor, k: Tensor, v: Tensor, group: Group, scale: float, softcap: float | None) -> Tensor:
    """One row alone, plain or with a draft or a piece of its prompt: as :func:`_run`, in fewer calls and copies."""
    (n, heads, dim), kv_heads = q.shape, k.shape[1]
    share = heads // kv_heads
    bias = group.bias(n, q.dtype)
    if n == 1:
        keys, values = _read(q, k, v, group, 1)
        return _softmax(q.view(kv_heads, 1, share, dim), keys, values, bias, scale, softcap)[0].view(1, heads, -1)
    # KV heads for entries, and each one's keys for all heads that share it: nothing is copied.
    keys, values = _read(q, k, v, group, share)
    out, _ = _softmax(q.view(n, kv_heads, share, dim).permute(1, 2, 0, 3), keys, values, bias, scale, softcap)
    return out.permute(2, 0, 1, 3).reshape(n, heads, -1)


def _read(q: Tensor, k: Tensor, v: Tensor, group: Group, share: int) -> tuple[Tensor, Tensor]:
    """Keys and values of a lone entry [kv_heads, share, L, dim], where they lie if they lie evenly."""
    slots, length = group.slots, group.length
    if isinstance(slots, Grid):
        return _side_by_side(k, slots, length, share), _side_by_side(v, slots, length, share)
    room_k, room_v = _rooms_for(q, k, v, length)
    keys, values = _gather(k, slots, length, room_k), _gather(v, slots, length, room_v)
    return keys.transpose(0, 1).expand(-1, share, -1, -1), values.transpose(0, 1).expand(-1, share, -1, -1)


def _side_by_side(pool: Tensor, grid: Grid, length: int, share: int) -> Tensor:
    (slot, head, one), (_, heads, dim) = pool.stride(), pool.shape
    strides = (head, 0, grid.step * slot, one)
    return pool.as_strided((heads, share, length, dim), strides, pool.storage_offset() + grid.first * slot)


def _run(
    q: Tensor, k: Tensor, v: Tensor, group: Group, scale: float, softcap: float | None, rotary: Rotary | None, need_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """One group: output [E * n or its valid ones, heads, dim_v] and lse [the same, heads]."""
    rows = q if group.queries is None else q.index_select(0, group.queries)
    if group.turn is not None:
        assert rotary is not None
        rows = rotary.rotate(rows, group.turn)
    n = rows.shape[0] // group.entries
    out, lse = _pieces(_fold(rows, n, k.shape[1]), k, v, group, scale, softcap)
    return _finish(_unfold(out, n), group, 0.0), _finish(_unfold(lse, n), group, -torch.inf) if need_lse else None


def _fold(rows: Tensor, n: int, kv_heads: int) -> Tensor:
    """[E * n, heads, dim] as [E, kv_heads, n * (heads / kv_heads), dim]: heads that share keys are more queries to a kernel."""
    queries, heads, dim = rows.shape
    if n == 1:
        return rows.view(queries, kv_heads, -1, dim)
    return rows.view(-1, n, kv_heads, heads // kv_heads, dim).transpose(1, 2).flatten(2, 3)


def _unfold(folded: Tensor, n: int) -> Tensor:
    """The way back, for results with or without a last dimension: [E * n, heads, ...]."""
    if n == 1:
        return folded.flatten(1, 2)
    return folded.unflatten(2, (n, -1)).transpose(1, 2).flatten(2, 3).flatten(0, 1)  # type: ignore[no-any-return]


def _finish(result: Tensor, group: Group, nothing: float) -> Tensor:
    """``nothing`` where a query sees nothing (kernels differ in what they say of it), and padding left out."""
    if group.empty is not None:
        result = result.masked_fill(group.empty.view(-1, *[1] * (result.dim() - 1)), nothing)
    return result if group.valid is None else result.index_select(0, group.valid)


def _pieces(rows: Tensor, k: Tensor, v: Tensor, group: Group, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Gather what a group reads and attend to it: all at once, or as many entries at a time as a CPU's cache holds."""
    length, slots, bias = group.length, group.slots, group.bias(rows.shape[2], rows.dtype)
    if isinstance(slots, Grid):
        return _softmax(rows, _in_place(k, group), _in_place(v, group), bias, scale, softcap)
    step = group.entries
    if rows.device.type == "cpu":
        step = min(step, max(1, BLOCK_BYTES * torch.get_num_threads() // (length * k.shape[1] * k.shape[2] * k.itemsize)))
    room_k, room_v = _rooms_for(rows, k, v, step * length)
    if step == group.entries:
        return _softmax(rows, _gather(k, slots, length, room_k), _gather(v, slots, length, room_v), bias, scale, softcap)
    results: list[tuple[Tensor, Tensor]] = []
    for some, index in zip(rows.split(step), slots.split(step * length), strict=True):
        first = len(results) * step
        keys, values = _gather(k, index, length, room_k), _gather(v, index, length, room_v)
        results.append(_softmax(some, keys, values, None if bias is None else bias[first : first + step], scale, softcap))
    return torch.cat([out for out, _ in results]), torch.cat([lse for _, lse in results])


def _rooms_for(q: Tensor, k: Tensor, v: Tensor, slots: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Where to gather ``slots`` slots of K and V: over earlier ones on a CPU, but not what autograd may still need."""
    return rooms(k, v, slots) if q.is_cpu and not torch.is_grad_enabled() else (None, None)


def _in_place(pool: Tensor, group: Group) -> Tensor:
    """[E, kv_heads, L, dim] the slots of a grid, where they lie."""
    (slot, head, one), (_, heads, dim), (first, apart, step) = pool.stride(), pool.shape, group.slots
    shape, strides = (group.entries, heads, group.length, dim), (apart * slot, head, step * slot, one)
    return pool.as_strided(shape, strides, pool.storage_offset() + first * slot)


def _gather(pool: Tensor, index: Tensor, length: int, room: Tensor | None) -> Tensor:
    """[entries, kv_heads, length, dim] the pool's slots at ``index`` [entries * length], in ``room`` if there is one."""
    if room is None:
        found = pool.index_select(0, index)
    else:
        found = torch.index_select(pool, 0, index, out=room if len(room) == len(index) else room[: len(index)])
    return found.view(-1, length, pool.shape[1], pool.shape[2]).transpose(1, 2)


def _softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Masked softmax attention of [E, kv_heads, rows, dim] over [E, kv_heads, L, dim], and its log-sum-exp.

    Undefined for what sees nothing.
    """
    if softcap is None and q.device.type == "cpu" and k.shape[-1] == v.shape[-1]:
        # What scaled_dot_product_attention runs on a CPU, but this also tells the log-sum-exp.
        return _flash(q, k, v, 0.0, False, attn_mask=bias, scale=scale)
    wide = _wide(q)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp()
    return (weights @ v.to(wide)).to(q.dtype), lse


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _scatter(q: Tensor, v: Tensor, parts: list[tuple[Group, Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
    out = q.new_zeros(q.shape[0], q.shape[1], v.shape[2])
    lse = torch.full(q.shape[:2], -torch.inf, dtype=_wide(q), device=q.device)
    for group, part, part_lse in parts:
        target = slice(None) if group.target is None else group.target
        out[target] = part
        if part_lse is not None:
            lse[target] = part_lse
    return out, lse


def bytes_moved(views: Views, *, heads: int, kv_heads: int, dim: int, itemsize: int, window: int | None = None) -> int:
    """Bytes one layer must move: each planned slot read once (K and V), queries read and outputs written once."""
    plan = plan_for(views, window, torch.device("cpu"))
    slots = sum(group.entries * group.length for layer in plan for group in layer)
    return itemsize * dim * (2 * kv_heads * slots + 2 * heads * views.queries)
