"""Attention of flat query rows over the slots of their views, and the exact merge of partial results.

The one operation that plain decoding, prefill, tree verification, shared prefixes and several-part views all call.
This module is the seam: it validates, picks an implementation and finishes (sinks); the walk over slots is the twins'.
Exact. Not here: projections, rotation of new tokens, writing K and V.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .merge import merge
from .rotary import Rotary
from .views import Views

__all__ = ["IMPLEMENTATIONS", "attend", "choose", "merge"]

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
    ``window``: how many positions back a query sees, its own included. ``sinks`` [heads]: logits that take weight, give nothing.
    ``rotary`` turns queries for parts with an offset; without it such parts are refused.

    Returns the output [T, heads, dim_v] in q's dtype and, with ``need_lse``, the natural log-sum-exp [T, heads] in float32
    (float64 for float64), sinks included. A query that sees nothing has output 0 and lse -inf (the sink's, with sinks).
    For inference: no gradient flows through an lse, so none is right where groups or sinks are merged.
    """
    try:
        (queries, heads, dim), (slots, kv_heads, dim_k), (slots_v, kv_heads_v, _) = q.shape, k.shape, v.shape
    except ValueError:
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        raise ValueError(f"q, k, v are [tokens or slots, heads, dim], not {shapes}") from None
    if heads % kv_heads or kv_heads != kv_heads_v or slots != slots_v or dim != dim_k:
        raise ValueError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if queries != len(views.positions):
        raise ValueError(f"{queries} query rows for views of {views.queries}")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: at least 1")
    if views.offsets is not None and rotary is None and views.offsets.any():
        raise ValueError("a part has a rotation offset, but this model has no rotary embedding to turn queries by")
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"sinks {tuple(sinks.shape)} for {heads} query heads")
    if impl not in IMPLEMENTATIONS:
        choose(impl)
    with_lse = need_lse or sinks is not None
    out, lse = reference.attend(q, k, v, views, scale=scale, window=window, softcap=softcap, rotary=rotary, need_lse=with_lse)
    if sinks is not None:
        assert lse is not None
        out, lse = merge(out, lse, torch.zeros_like(out), sinks.to(lse.dtype).expand_as(lse))
    return out, lse if need_lse else None
