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

from .attention import choose

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
    if impl == "torch" or (impl == "auto" and qkv.device.type == "cpu"):
        return _torch(qkv, cos, sin, slots, k, v, norms, interleaved)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: one of {', '.join(IMPLEMENTATIONS)}")
    if impl == "auto" and not _to_be_had(qkv.device, qkv.dtype):
        return _torch(qkv, cos, sin, slots, k, v, norms, interleaved)
    choose("triton", qkv.device)
    from .triton_write import write as fused

    return fused(qkv, cos, sin, slots, k, v, norms, interleaved)


@cache
def _to_be_had(device: torch.device, dtype: torch.dtype) -> bool:
    try:
        choose("triton", device)
    except ValueError:
        return False
    return dtype in (torch.float16, torch.bfloat16, torch.float32)


def _torch(
    qkv: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, k: Tensor, v: Tensor, norms: Norms | None, interleaved: bool
) -> Tensor:
    turned, width = qkv.shape[1] - v.shape[1], cos.shape[-1]
    heads = turned - k.shape[1]
    qk = qkv[:, :turned]
    if norms is not None:
        qk = torch.cat((rms(qk[:, :heads], norms.q, norms.eps), rms(qk[:, heads:], norms.k, norms.eps)), 1)
    if width == qkv.shape[2] and not interleaved:
        qk = torch.addcmul(qk * cos, qk.roll(width // 2, -1), sin)
    else:
        part = qk[..., :width]
        partner = part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if interleaved else part.roll(width // 2, -1)
        qk = torch.cat((torch.addcmul(part * cos, partner, sin), qk[..., width:]), -1)
    k.index_copy_(0, slots, qk[:, heads:])
    v.index_copy_(0, slots, qkv[:, turned:])
    return qk[:, :heads]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension (arXiv 1910.07467)."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return F.rms_norm(x, weight.shape, weight, eps)
    # The library's takes eight passes on a CPU, this one four.
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x * torch.addcmul(_scalar(eps), length, length, value=1 / x.shape[-1]).rsqrt_()).mul_(weight)


@cache
def _scalar(value: float) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value)
