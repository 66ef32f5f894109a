"""What happens to new tokens between their projections and attention: norms of q and k, rotation, the write to the pool.

Exact. The torch version is the specification; the Triton one is a single launch that reads the projections once,
computes in float32 and rounds once. Not here: the projections, and tables of angles.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import refused

IMPLEMENTATIONS = ("auto", "torch", "triton")


class Norms(NamedTuple):
    """RMS norms over the heads of q and k: weights [dim], and what is added to the mean square."""

    q: Tensor
    k: Tensor
    eps: float


def write(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    norms: Norms | None = None,
    interleaved: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Queries [T, heads, dim], normed and rotated; keys, likewise, and values are written to the pool.

    qkv [T, heads + 2 * kv_heads, dim]; k, v [slots, kv_heads, dim] the pool, ``slots`` [T] int64 where in it, each once.
    cos, sin [T, 1, width] in qkv's dtype: of each channel up to the first ``width``, sin with the sign of what it is
    multiplied into: channel ``i`` becomes ``x[i] * cos[i] + x[partner] * sin[i]``. Partners are half of ``width`` apart, or,
    ``interleaved``, neighbours. "auto" runs Triton on CUDA where it is to be had, else torch. ``ValueError`` as of ``attend``.
    """
    if impl != "torch" and not (impl == "auto" and qkv.is_cpu) and _fused(impl, qkv.device, qkv.dtype):
        from .triton_write import write as fused

        return fused(qkv, cos, sin, slots, k, v, norms, interleaved)
    kv_heads, width = v.size(1), cos.size(-1)
    turned = qkv.size(1) - kv_heads
    heads = turned - kv_heads
    qk = qkv.narrow(1, 0, turned)
    if norms is not None:
        q_norm, k_norm, eps = norms
        qk = torch.cat((rms(qk.narrow(1, 0, heads), q_norm, eps), rms(qk.narrow(1, heads, kv_heads), k_norm, eps)), 1)
    if width == qkv.size(2) and not interleaved:
        qk = torch.addcmul(qk * cos, qk.roll(width // 2, -1), sin)
    else:
        part = qk[..., :width]
        partner = part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if interleaved else part.roll(width // 2, -1)
        qk = torch.cat((torch.addcmul(part * cos, partner, sin), qk[..., width:]), -1)
    k.index_copy_(0, slots, qk.narrow(1, heads, kv_heads))
    v.index_copy_(0, slots, qkv.narrow(1, turned, kv_heads))
    return qk.narrow(1, 0, heads)


@cache
def _fused(impl: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the Triton version runs; if it was asked for by name and cannot, the reason is raised."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: one of {', '.join(IMPLEMENTATIONS)}")
    if (why := refused("triton", device, dtype)) is not None and impl == "triton":
        raise ValueError(f"impl={impl!r}: {why}")
    return why is None


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension (arXiv 1910.07467)."""
    if x.dtype != torch.float32 or not x.is_cpu:
        return F.rms_norm(x, weight.shape, weight, eps)
    # The library's takes eight passes on a CPU, this one four.
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x * torch.addcmul(_scalar(eps), length, length, value=1 / x.shape[-1]).rsqrt_()).mul_(weight)


@cache
def _scalar(value: float) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value)
