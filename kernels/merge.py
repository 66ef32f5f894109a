"""The exact merge of attention over disjoint sets of keys, by their log-sum-exps (online softmax, arXiv 1805.02867)."""

from __future__ import annotations

import torch
from torch import Tensor


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys, from the two partial results.

    out [..., dim_v], lse [...] natural log-sum-exp. Exact; a side with lse -inf has weight zero; both -inf give 0 and -inf.
    """
    return blend(out_a, lse_a, out_b, lse_b), torch.logaddexp(lse_a, lse_b)


def blend(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Tensor:
    """The output of :func:`merge` alone."""
    # Both -inf: their difference is NaN, and then side b weighs nothing.
    weight = (lse_b - lse_a).nan_to_num_(nan=-torch.inf).sigmoid_().unsqueeze(-1)
    return torch.lerp(out_a.to(lse_a.dtype), out_b.to(lse_a.dtype), weight).to(out_a.dtype)
