"""Attention of flat query rows over the slots of their views, and the exact merge of partial results.

The one operation that plain decoding, prefill, tree verification, shared prefixes and several-part views all call.
This module is the seam: it validates, picks an implementation and finishes (sinks); the walk over slots is the twins'.
Exact. Not here: projections, rotation of new tokens, writing K and V.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .rotary import Rotary
from .views import Views

IMPLEMENTATIONS = ("auto", "torch")


def choose(impl: str = "auto") -> tuple[str, str]:
    """The implementation that ``impl`` runs and why. Raises ``ValueError`` for one that does not exist."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: one of {', '.join(IMPLEMENTATIONS)}")
    return ("torch", "the only implementation so far") if impl == "auto" else (impl, "asked for")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    views: Views,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    rotary: Rotary | None = None,
    need_lse: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention of ``q`` over what ``views`` lets each row see.

    q [T, heads, dim] already rotated to its own position; k [slots, kv_heads, dim], v [slots, kv_heads, dim_v] the pool.
    ``scale`` multiplies the scores (YaRN's factor goes here), then ``softcap * tanh(scores / softcap)``.
    ``window``: how many positions back a query sees, its own included. ``sinks`` [heads]: logits that take weight and give nothing.
    ``rotary`` turns queries for parts with an offset; without it such parts are refused.

    Returns the output [T, heads, dim_v] in q's dtype and, with ``need_lse``, the natural log-sum-exp [T, heads] in float32
    (float64 for float64), sinks included. A query that sees nothing has output 0 and lse -inf (the sink's, with sinks).
    """
    if q.dim() != 3 or k.dim() != 3 or v.dim() != 3:
        raise ValueError(f"q, k and v are [tokens or slots, heads, dim], not {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    if q.shape[1] % k.shape[1] or k.shape[:2] != v.shape[:2] or q.shape[2] != k.shape[2]:
        raise ValueError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if q.shape[0] != views.queries:
        raise ValueError(f"{q.shape[0]} query rows for views of {views.queries}")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: at least 1")
    if rotary is None and views.offsets is not None and views.offsets.any():
        raise ValueError("a part has a rotation offset, but this model has no rotary embedding to turn queries by")
    choose(impl)
    with_lse = need_lse or sinks is not None
    out, lse = reference.attend(q, k, v, views, scale=scale, window=window, softcap=softcap, rotary=rotary, need_lse=with_lse)
    if sinks is not None:
        assert lse is not None
        total = torch.logaddexp(lse, sinks.to(lse.dtype).expand_as(lse))
        out = out * (lse - total).exp().unsqueeze(-1).to(out.dtype)
        lse = total
    return out, lse if need_lse else None


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys, from the two partial results.

    out [..., dim_v], lse [...] natural log-sum-exp. Exact; a side with lse -inf has weight zero; both -inf give 0 and -inf.
    """
    weight = torch.where(lse_b == -torch.inf, 0.0, torch.sigmoid(lse_b - lse_a)).unsqueeze(-1)
    out = torch.lerp(out_a.to(lse_a.dtype), out_b.to(lse_a.dtype), weight).to(out_a.dtype)
    return out, torch.logaddexp(lse_a, lse_b)
