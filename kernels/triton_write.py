"""The Triton twin of :func:`forethought.kernels.write.write`: one launch, a few heads of one token a block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .triton_attention import FUSED, power
from .triton_kernels import write_tokens

if TYPE_CHECKING:
    from .write import Norms

HEADS_AT_ONCE = 4


def write(
    qkv: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, k: Tensor, v: Tensor, norms: Norms | None, interleaved: bool
) -> Tensor:
    """Arguments as of :func:`forethought.kernels.write.write`."""
    (tokens, every, dim), kv_heads, width = qkv.shape, k.shape[1], cos.shape[-1]
    heads = every - 2 * kv_heads
    for name, x in {"qkv": qkv, "cos": cos, "sin": sin, "k": k, "v": v}.items():
        if x.numel() and x.stride(-1) != 1:
            raise ValueError(f"impl='triton': the last dimension of {name} must be dense, not strides {x.stride()}")
    if v.shape[1:] != k.shape[1:] or k.shape[2] != dim or width % 2 or width > dim:
        shapes = f"qkv {tuple(qkv.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, cos {tuple(cos.shape)}"
        raise ValueError(f"shapes do not fit: {shapes}")
    q = torch.empty(tokens, heads, dim, dtype=qkv.dtype, device=qkv.device)
    if tokens:
        with torch.cuda.device_of(qkv):
            write_tokens[(tokens, -(-every // HEADS_AT_ONCE))](
                qkv, cos, sin, slots, q, k, v, *((None, None) if norms is None else norms[:2]), *qkv.stride()[:2],
                cos.stride(0), sin.stride(0), *k.stride()[:2], *v.stride()[:2], 0.0 if norms is None else norms.eps,
                HEADS=heads, KV_HEADS=kv_heads, DIM=dim, WIDE=power(dim), WIDTH=width, AT_ONCE=HEADS_AT_ONCE,
                NORMED=norms is not None, INTERLEAVED=interleaved, num_warps=HEADS_AT_ONCE, **FUSED)  # fmt: skip
    return q
