"""Products and attention whose result for a token is the same bits whatever is computed beside it.

A CPU's products choose their blocking by the number of rows, and its attention adds up in an order that depends on how many
keys are read, so that a token's last bits depend on its company. Here every product is of ``ROWS`` rows, the last ones filled
up with zeros, and every token attends alone, over its own keys in order of position, filled up to whole ``KEYS`` that it does
not see. So nothing depends on the batch, the slots, the cut of a prompt, or the tree that a token was drafted in. What
is promised holds for one dtype, device, number of threads and build of torch; that a row of a fixed-size product does not depend
on the other rows or its place is no promise of torch's: :func:`holds` tries it. For a CPU and views of one part. The cost is
products of few rows, and keys gathered once a token for trees. The specification is plain attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .reference import _flash
from .views import TREE_LIMIT, Ints, Views

ROWS = 16
"""Rows of every product."""
KEYS = 128
"""Keys are read in whole multiples of so many."""
BYTES = 1 << 25
"""K (or V) of rows that attend in one call is gathered in pieces of about so many bytes."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight + bias`` of x [T, in] and weight [in, out]: [T, out]."""
    tokens = x.shape[0]
    out = x.new_empty(-(-tokens // ROWS) * ROWS, weight.shape[1])
    for first in range(0, tokens, ROWS):
        tile = x[first : first + ROWS]
        if len(tile) < ROWS:
            tile = torch.cat((tile, x.new_zeros(ROWS - len(tile), x.shape[1])))
        torch.mm(tile.contiguous(), weight, out=out[first : first + ROWS])
    return out[:tokens] if bias is None else out[:tokens] + bias


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens that attend in one call: ``queries`` [n], pool rows of their keys [E * L], E being n or 1, bias [n, 1, 1, L]."""

    queries: Tensor
    slots: Tensor
    length: int
    bias: Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, views: Views, *, scale: float, window: int | None = None) -> Tensor:
    """As :func:`forethought.kernels.attention.attend`, without its log-sum-exp: [T, heads, dim_v].

    Raises ``ValueError`` for views of several parts, and heads of V unlike those of K.
    """
    (_, heads, dim), kv_heads = q.shape, k.shape[1]
    if v.shape[2] != dim:
        raise ValueError(f"batch-invariant attention needs V's heads ({v.shape[2]}) as long as K's ({dim})")
    key = ("invariant", window, q.dtype, k.shape[1:])
    if key not in views.plans:
        views.plans[key] = _plan(views, window, q.dtype, k.shape[1] * dim * k.itemsize)
    out = torch.empty_like(q)
    for piece in views.plans[key]:
        n, length = len(piece.queries), piece.length
        rows = q.index_select(0, piece.queries).view(n, kv_heads, heads // kv_heads, dim)
        keys, values = (
            pool.index_select(0, piece.slots).view(-1, length, kv_heads, dim).transpose(1, 2).expand(n, -1, -1, -1)
            for pool in (k, v)
        )
        found = _flash(rows, keys, values, 0.0, False, attn_mask=piece.bias, scale=scale)[0]
        out[piece.queries] = found.reshape(n, heads, dim)
    return out


def _plan(views: Views, window: int | None, dtype: torch.dtype, slot_bytes: int) -> list[_Piece]:
    """Chains of several tokens by row, their keys gathered once; every other token with keys of its own."""
    if views.offsets is not None or views.last is not None or len(views.part_ptr) != len(views.slot_ptr):
        raise ValueError("batch-invariant attention reads views of one part, causal and without offsets")
    stored, pieces = views.stored_positions(), list[_Piece]()
    alone: dict[int, list[tuple[int, Ints, Ints]]] = {}
    for r in range(views.rows):
        first, end = int(views.query_ptr[r]), int(views.query_ptr[r + 1])
        start, stop = int(views.slot_ptr[r]), int(views.slot_ptr[r + 1])
        slots, places, n = views.slots[start:stop], stored[start:stop], end - first
        chain = views.tree is None or bool((views.tree[first:end] == -1).all())
        if chain and n > 1 and bool((places[1:] > places[:-1]).all()):
            positions = views.positions[first:end]
            step = max(1, BYTES // max(1, _whole(len(slots)) * dtype.itemsize))
            for at in range(0, n, step):
                queries = np.arange(first + at, min(first + at + step, end))
                pieces.append(_piece(queries, [slots], [places], positions[at : at + step], window, dtype))
            continue
        for t in range(first, end):
            seen = places <= views.positions[t]
            own = seen[len(seen) - n :]
            if not chain and views.tree is not None:
                word = int(views.tree[t])
                own[1:] &= np.array([bool(word >> j & 1) for j in range(min(n - 1, TREE_LIMIT))], bool)
            index = np.flatnonzero(seen)
            index = index[np.argsort(places[index], kind="stable")]
            alone.setdefault(_whole(len(index)), []).append((t, slots[index], places[index]))
    for length, tokens in alone.items():
        step = max(1, BYTES // (length * slot_bytes))
        for at in range(0, len(tokens), step):
            some = tokens[at : at + step]
            queries = np.array([t for t, _, _ in some])
            pieces.append(
                _piece(queries, [s for _, s, _ in some], [p for _, _, p in some], views.positions[queries], window, dtype)
            )
    return pieces


def _whole(keys: int) -> int:
    return -(-keys // KEYS) * KEYS


def _piece(
    queries: Ints, slots: list[Ints], places: list[Ints], positions: Ints, window: int | None, dtype: torch.dtype
) -> _Piece:
    """Filled up with each list's first slot, which is the row's own, at a position nobody sees."""
    length = _whole(max(map(len, slots)))
    beyond = np.iinfo(np.int64).max
    index = np.stack([np.concatenate((s, np.full(length - len(s), s[0]))) for s in slots])
    stored = np.stack([np.concatenate((p, np.full(length - len(p), beyond))) for p in places])
    seen = stored <= positions[:, None]
    if window is not None:
        seen &= positions[:, None] - stored < window
    bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(torch.from_numpy(~seen), -torch.inf)
    return _Piece(torch.from_numpy(queries), torch.from_numpy(index.reshape(-1)), length, bias[:, None, None])


@cache
def holds(dtype: torch.dtype, threads: int) -> bool:
    """Whether a row of a product of ``ROWS`` rows is the same bits at any place and beside any others, tried here."""
    assert threads == torch.get_num_threads()
    made = torch.Generator().manual_seed(0)
    for width, height in ((576, 1536), (1536, 576), (128, 512)):
        x, weight = (torch.randn(shape, generator=made).to(dtype) for shape in ((3 * ROWS, width), (height, width)))
        for matrix in (weight.t(), weight.t().contiguous()):
            one = product(x[:1], matrix)[0]
            for at in range(ROWS):
                mixed = torch.cat((x[3 : 3 + at], x[:1], x[at + 3 :]))
                if not torch.equal(product(mixed, matrix)[at], one):
                    return False
    return True


def depends(dtype: torch.dtype) -> bool:
    """Whether a row of a plain product on the CPU can differ by what is computed beside it: tried at a few sizes."""
    made = torch.Generator().manual_seed(0)
    for width, height in ((576, 960), (576, 3072), (1536, 576)):
        x, weight = (torch.randn(shape, generator=made).to(dtype) for shape in ((200, width), (height, width)))
        whole = x @ weight.t()
        if any(not torch.equal(x[:n] @ weight.t(), whole[:n]) for n in (1, 2, 3, 8, 17, 33, 64, 128)):
            return True
    return False
