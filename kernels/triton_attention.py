"""The Triton twin of attention: launches ``triton_kernels.py`` over the work list of the views.

Exact, with float32 sums: float32 by full-precision products, float16 and bfloat16 on tensor cores. Rows of a tile are
queries times the heads that share a KV head, padded to 16. Bytes it moves: ``Work.bytes_moved``. Not here: tuning.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from .rotary import Rotary
from .triton_kernels import attend_items, merge_pairs
from .tuning import Config, Tuning, tuning_for
from .views import Views
from .work import Shape, Tiling, Work, work_for

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDEST = 256
"""Largest head size."""
INTERPRETED = not isinstance(attend_items, triton.JITFunction)
"""Whether Triton's interpreter runs the kernels, on the CPU: TRITON_INTERPRET=1 when triton was first imported."""
MERGED_AT_ONCE = 8
"""Partial results that the merge reads in one go."""
FUSED: dict[str, Any] = {"enable_fp_fusion": True}
"""Said, because versions of Triton differ in what they take for granted."""


def refuses(device: torch.device, dtype: torch.dtype | None = None, dim: int = 1, dim_v: int = 1) -> str | None:
    """Why this twin cannot run there on heads of these sizes; None: it can."""
    if device.type == "cpu" and not INTERPRETED:
        return "tensors on a CPU need Triton's interpreter: set TRITON_INTERPRET=1 before anything imports triton"
    if device.type not in ("cpu", "cuda"):
        return f"device {device}: it runs on cuda"
    if device.type == "cuda" and not INTERPRETED and (lacking := _lacking()) is not None:
        return f"Triton compiles what launches its kernels, and there is no {lacking}"
    if device.type == "cuda" and (have := torch.cuda.get_device_capability(device)) < (8, 0):
        return f"compute capability {have[0]}.{have[1]}: at least 8.0"
    if dtype is not None and dtype not in DTYPES:
        return f"dtype {str(dtype)[6:]}: one of {', '.join(str(d)[6:] for d in DTYPES)}"
    if dtype == torch.bfloat16 and INTERPRETED:
        return "dtype bfloat16: Triton's interpreter has none"
    for size in (dim, dim_v):
        if not 1 <= size <= WIDEST:
            return f"head size {size}: 1 to {WIDEST}"
    return None


@cache
def _lacking() -> str | None:
    """What Triton does not find here to compile with; None: nothing."""
    if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang")))):
        return "C compiler (CC, gcc, clang)"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return None if header.exists() else str(header)


@cache
def _machine(device: torch.device) -> tuple[Tuning, int]:
    """Launch configurations, and how many multiprocessors there are."""
    if device.type == "cpu":
        return Tuning("interpreter", (0, 0), False, tuple(Config(64, n, 16, 32, 4, 1, 4) for n in (2, 4))), 1
    about = torch.cuda.get_device_properties(device)
    return tuning_for(about.name, (about.major, about.minor)), about.multi_processor_count


def _configs(shape: Shape, device: torch.device, queries: int) -> tuple[Config, Config]:
    """How items of few queries, and all others, are launched in a call of so many."""
    tuning, wide, group = _machine(device)[0], max(shape.dim, shape.dim_v), shape.heads // shape.kv_heads
    return tuning.nearest(wide, shape.itemsize, group), tuning.nearest(wide, shape.itemsize, group * queries)


def tiling(shape: Shape, device: torch.device, queries: int) -> Tiling:
    """How the work list of a call of so many queries is cut."""
    (small, large), group = _configs(shape, device, queries), shape.heads // shape.kv_heads
    splits = -(-_machine(device)[1] * small.blocks_per_sm // shape.kv_heads)
    return Tiling(max(1, large.rows // group), splits, max(1, small.rows // group))


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
) -> tuple[Tensor, Tensor | None]:
    """Output [T, heads, dim_v] in q's dtype and, with ``need_lse``, log-sum-exp [T, heads] in float32, sinks included.

    Arguments as of :func:`forethought.kernels.attention.attend`. Only launches: nothing here waits for the device, and a CUDA
    graph can capture it once kernels are compiled and the work list is made (by a first call). ``ValueError`` for what is not
    supported. A NaN or infinity in V reaches the queries that see it, and those alone; some find NaN in every channel.
    """
    (_, heads, dim), kv_heads, dim_v = q.shape, k.shape[1], v.shape[2]
    if (why := refuses(q.device, q.dtype, dim, dim_v)) is not None:
        raise ValueError(f"impl='triton': {why}")
    for name, x in {"k": k, "v": v}.items():
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"q is {q.dtype} on {q.device}, but {name} is {x.dtype} on {x.device}")
        if x.numel() and x.stride(2) != 1:
            raise ValueError(f"impl='triton': heads of {name} must be dense, not strides {x.stride()}")
    if q.numel() and q.stride(2) != 1:
        q = q.contiguous()
    group, shape = heads // kv_heads, Shape(heads, kv_heads, dim, dim_v, q.element_size())
    small, large = _configs(shape, q.device, len(views.positions))
    tile, splits, few = tiling(shape, q.device, len(views.positions))
    work = work_for(views, window, q.device, tile=tile, splits=splits, shape=shape, few=few)

    lse = q.new_empty(q.shape[:2], dtype=torch.float32) if need_lse else None
    out = q.new_empty(*q.shape[:2], dim_v)
    part, part_lse = out, lse
    if work.merge_ptr is not None:
        part = q.new_empty(len(work.pairs), heads, dim_v, dtype=torch.float32)
        part_lse = part.new_empty(part.shape[:2])
    elif work.blind:
        out.zero_()
        if lse is not None:
            lse.copy_(sinks.expand_as(lse)) if sinks is not None else lse.fill_(-torch.inf)
    cos, sin = _angles(views, work, rotary) if work.turned and rotary is not None else (None, None)
    if cos is not None and 2 * cos.shape[1] > dim:
        raise ValueError(f"a rotation of {2 * cos.shape[1]} channels for heads of {dim}")
    partial = work.merge_ptr is not None
    options: dict[str, Any] = {
        "HEADS": heads, "KV_HEADS": kv_heads, "DIM": dim, "DIM_V": dim_v, "WIDE": power(dim), "WIDE_V": power(dim_v),
        "MASKED": work.masked, "STORED": work.masked and work.slot_positions is not None, "TREE": work.tree is not None,
        "SOFTCAP": softcap is not None, "PARTIAL": partial, "SINKS": sinks is not None and not partial,
        "LSE": part_lse is not None, "TURNED": cos is not None, "HALF": 0 if cos is None else cos.shape[1],
        "INTERLEAVED": cos is not None and rotary is not None and rotary.interleaved,
    }  # fmt: skip
    with torch.cuda.device_of(q):  # where Triton launches
        for config, begin, end, queries in ((small, 0, work.few, few), (large, work.few, len(work.items), work.most_pairs)):
            if begin < end:
                grid = ((end - begin) * kv_heads, -(-min(queries, work.most_pairs) * group // config.rows))
                attend_items[grid](
                    q, k, v, part, part_lse, work.items, work.open, work.pairs, work.slots, work.slot_positions, work.tree,
                    cos, sin, sinks, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], begin, scale, softcap or 0.0, **options,
                    ROWS=config.rows, BLOCK=config.block, num_warps=config.warps, num_stages=config.stages, **FUSED)  # fmt: skip
        if partial and len(views.positions):
            merge_pairs[(len(views.positions), heads)](
                part, part_lse, out, lse, work.merge_ptr, work.merge_list, sinks, HEADS=heads, DIM_V=dim_v, WIDE_V=power(dim_v),
                BLOCK=MERGED_AT_ONCE, SINKS=sinks is not None, LSE=lse is not None, **FUSED)  # fmt: skip
    return out, lse


def power(size: int) -> int:
    """The next power of two, at least 16: tensor cores take no less."""
    return max(16, 1 << (size - 1).bit_length())


def _angles(views: Views, work: Work, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """cos and sin [pairs, width / 2] of each pair's rotation, float32; kept on the views, for all layers that turn alike."""
    key = ("angles", id(work), id(rotary.frequencies))
    found = views.plans.get(key)
    if found is None:
        there = Rotary(_moved(rotary.frequencies, work.pairs.device), rotary.interleaved)
        cos, sin = there.cos_sin(work.pairs[:, 3])
        found = views.plans[key] = (rotary, work, cos.float().contiguous(), sin.float().contiguous())
    return found[2], found[3]


_elsewhere: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}


def _moved(frequencies: Tensor, device: torch.device) -> Tensor:
    """``frequencies`` on the device; moved there once, because a copy from pageable memory waits for the device."""
    if frequencies.device == device:
        return frequencies
    key = (id(frequencies), device)
    if key not in _elsewhere:
        _elsewhere[key] = frequencies, frequencies.to(device)
    return _elsewhere[key][1]
