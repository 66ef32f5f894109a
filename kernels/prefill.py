"""Prefill at compute speed: long plain chains by torch's own attention, over K and V gathered side by side.

Exact. A chain of many queries behind a prefix is what flash attention is made for; its causal mask is aligned to the lower
right. Cost: K and V of the row's slots are read and written once more, a layer at a time. Whether it runs, and from how many
queries on, the tuning of the device says. Not here: trees, windows that hide something, softcap, sinks, rotated parts, a
log-sum-exp: those stay with the twin. Infinities and NaN of a row may reach all its queries, and those alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from .transfer import put
from .views import Ints, Views

WIDEST = 256
"""Largest head size that flash attention takes."""


class Chain(NamedTuple):
    """Queries from, to, and the pool slots [S] they and what is before them lie in."""

    begin: int
    end: int
    slots: Tensor


class Split(NamedTuple):
    """The rows of a call: long plain chains, and all others with the queries [N] they own."""

    chains: list[Chain]
    rest: Views | None
    queries: Tensor | None


def refuses(dtype: torch.dtype, dim: int, dim_v: int) -> str | None:
    """Why flash attention cannot run on heads of these sizes; None: it can."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"dtype {str(dtype)[6:]}: float16 or bfloat16"
    if dim != dim_v or dim % 8 or not 0 < dim <= WIDEST:
        return f"head sizes {dim} and {dim_v}: equal, multiples of 8 up to {WIDEST}"
    return None


def split(views: Views, window: int | None, least: int, device: torch.device) -> Split | None:
    """Rows that are plain chains of at least ``least`` queries, and the rest; None: there are none. Kept on ``views``."""
    key = ("prefill", window, least, device)
    if key not in views.plans:
        views.plans[key] = _split(views, window, least, device)
    found: Split | None = views.plans[key]
    return found


def attend(
    q: Tensor, k: Tensor, v: Tensor, found: Split, scale: float, others: Callable[[Tensor, Views], Tensor]
) -> Tensor:
    """Output [T, heads, dim_v] of all queries ``q`` [T, heads, dim]; ``others`` computes the rest."""
    out = q.new_empty(*q.shape[:2], v.shape[2])
    for begin, end, slots in found.chains:
        keys, values = (x.index_select(0, slots).transpose(0, 1)[None] for x in (k, v))
        out[begin:end] = _causal(q[begin:end].transpose(0, 1)[None], keys, values, scale)[0].transpose(0, 1)
    if found.rest is not None and found.queries is not None:
        out.index_copy_(0, found.queries, others(q.index_select(0, found.queries), found.rest))
    return out


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of the last queries of a text, [1, heads, queries, dim], to all of it, [1, kv_heads, length, dim]."""
    if q.is_cuda:  # asked for by name: torch's own choice may be cuDNN, which makes a plan for every length
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        result: Tensor = flash(q, k, v, 0.0, is_causal=True, return_debug_mask=False, scale=scale)[0]
        return result
    bias, grouped = causal_lower_right(q.shape[2], k.shape[2]), q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=grouped)


def _split(views: Views, window: int | None, least: int, device: torch.device) -> Split | None:
    long = [row for row in np.flatnonzero(np.diff(views.query_ptr) >= least).tolist() if _plain(views, row, window)]
    if not long:
        return None
    chains = []
    for row in long:
        part = views.part_ptr[row]
        slots = views.slots[views.slot_ptr[part] : views.slot_ptr[part + 1]]
        chains.append(Chain(int(views.query_ptr[row]), int(views.query_ptr[row + 1]), put(slots, device)))
    rest = np.setdiff1d(np.arange(views.rows), long)
    if not len(rest):
        return Split(chains, None, None)
    queries, _ = _of(views.query_ptr, rest)
    return Split(chains, _only(views, rest), put(queries, device))


def _plain(views: Views, row: int, window: int | None) -> bool:
    """Whether each query of the row sees what lies before it in one part, whose end the row's own tokens are, and no more."""
    begin, end, part = views.query_ptr[row], views.query_ptr[row + 1], views.part_ptr[row]
    if views.last is not None or views.part_ptr[row + 1] != part + 1:
        return False
    if views.offsets is not None and views.offsets[part]:
        return False
    first, stop = views.slot_ptr[part], views.slot_ptr[part + 1]
    length = stop - first
    if window is not None and window < length:
        return False
    if views.slot_positions is not None and (views.slot_positions[first:stop] != np.arange(length)).any():
        return False
    if views.tree is not None and (views.tree[begin:end] != -1).any():
        return False
    return bool((views.positions[begin:end] == np.arange(length - (end - begin), length)).all())


def _only(views: Views, rows: Ints) -> Views:
    """``views`` of these rows alone. No view has said what is last."""
    queries, query_ptr = _of(views.query_ptr, rows)
    parts, part_ptr = _of(views.part_ptr, rows)
    slots, slot_ptr = _of(views.slot_ptr, parts)

    def pick(table: Ints | None, index: Ints) -> Ints | None:
        return None if table is None else table[index]

    return Views(
        positions=views.positions[queries], query_ptr=query_ptr, part_ptr=part_ptr, slot_ptr=slot_ptr, slots=views.slots[slots],
        slot_positions=pick(views.slot_positions, slots), offsets=pick(views.offsets, parts), tree=pick(views.tree, queries),
    )  # fmt: skip


def _of(ptr: Ints, which: Ints) -> tuple[Ints, Ints]:
    """What entries ``which`` of ``ptr`` own, end to end, and their own ptr."""
    counts = ptr[which + 1] - ptr[which]
    ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    index: Ints = np.arange(ends[-1]) + np.repeat(ptr[which] - ends[:-1], counts)
    return index, ends
