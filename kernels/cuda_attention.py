"""The CUDA C++ twin of attention: ``csrc/attention.cu``, called on the current stream by pointers.

Reads the work list that the Triton twin reads too (:mod:`~forethought.kernels.work`). For compute capability 8.0 and
later; float16, bfloat16 and float32; heads whose sizes are multiples of 16 bytes, up to 256 numbers. Exact: products
of two-byte types on tensor cores with float32 sums, float32 by plain arithmetic. A NaN or infinity reaches the queries
that see its slot, and no others. Bytes it moves: in the source's head.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from .cuda_build import WIDTHS, cuda_library, nvcc
from .rotary import Rotary
from .views import Views
from .work import Shape, Tiling, Work, work_for

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ROWS = 64
"""Most rows (queries x heads that share a KV head) that one block takes."""
FEW = 16
"""Items of at most so many rows have a kernel of their own, whose warps share the rows and divide the keys."""

_HINTS = {1: " (does a block need more shared memory than this device has?)", 35: " (the driver is older than the CUDA of nvcc)"}
_POINTERS = "q k v out lse partial partial_lse items pairs slots positions tree merge_ptr merge_list sinks frequencies"
_STRIDES = "q_token q_head k_slot k_head v_slot v_head"
_INTS = "items_count few most_pairs queries heads kv_heads dim dim_v turning interleaved"


class Call(ctypes.Structure):
    """What the kernels are told; ``struct Call`` in the source says what each means."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
        *((name, ctypes.c_int64) for name in _STRIDES.split()),
        *((name, ctypes.c_int) for name in _INTS.split()),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
    ]


def refuses(device: torch.device, dtype: torch.dtype | None = None, dim: int = 0, dim_v: int = 0) -> str | None:
    """Why this twin cannot run there on heads of these sizes; None: it can. Without a dtype, sizes are not looked at."""
    if device.type != "cuda":
        return f"it runs on a CUDA device, not on {device}"
    if (have := torch.cuda.get_device_capability(device)) < (8, 0):
        return f"compute capability {have[0]}.{have[1]}: at least 8.0"
    try:
        nvcc()
    except RuntimeError as error:
        return str(error)
    return None if dtype is None else refuses_heads(dtype, dim, dim_v)


def refuses_heads(dtype: torch.dtype, dim: int, dim_v: int) -> str | None:
    """Why heads of ``dim`` (K) and ``dim_v`` (V) numbers are not supported; None: they are."""
    if dtype not in DTYPES:
        return f"dtype {str(dtype)[6:]}: one of {', '.join(str(d)[6:] for d in DTYPES)}"
    step = 16 // dtype.itemsize
    for size in (dim, dim_v):
        if size % step or not 0 < size <= WIDTHS[-1]:
            return f"head size {size}: multiples of {step} (16 bytes) up to {WIDTHS[-1]}"
    return None


def width_for(dim: int, dim_v: int) -> int:
    """The smallest width with room for heads of ``dim`` (K) and ``dim_v`` (V); what is over is zeros in shared memory alone."""
    return next(width for width in WIDTHS if max(dim, dim_v) <= width)


def tiling(shape: Shape, device: torch.device, queries: int) -> Tiling:
    """How the work list of a call of so many queries is cut. Builds the library on first use."""
    library, group = _library(width_for(shape.dim, shape.dim_v), _index(device)), shape.heads // shape.kv_heads
    return Tiling(max(1, ROWS // group), -(-_blocks(library, device, shape.itemsize) // shape.kv_heads), FEW // group)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


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

    Arguments as of :func:`forethought.kernels.attention.attend`, on one CUDA device. Only launches: nothing here waits for
    the device, and a CUDA graph can capture it once the library is loaded and the work list made (by a first call).
    Raises ``ValueError`` for what is not supported, ``RuntimeError`` without nvcc, for a failed build or an old driver.
    """
    (_, heads, dim), kv_heads, dim_v = q.shape, k.shape[1], v.shape[2]
    if (why := refuses(q.device, q.dtype, dim, dim_v)) is not None:
        raise ValueError(f"impl='cuda': {why}")
    library = _library(width_for(dim, dim_v), _index(q.device))
    shape = Shape(heads, kv_heads, dim, dim_v, q.element_size())
    tile, splits, few = tiling(shape, q.device, len(views.positions))
    work = work_for(views, window, q.device, tile=tile, splits=splits, shape=shape, few=few)
    stream = torch.cuda.current_stream(q.device).cuda_stream
    with torch.cuda.device(q.device):
        out, lse = launch(library, q, k, v, work, scale=scale, softcap=softcap, sinks=sinks, rotary=rotary, stream=stream)
    return out, lse if need_lse else None


def launch(
    library: ctypes.CDLL,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    work: Work,
    *,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    rotary: Rotary | None,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """:func:`attend` by the functions of ``library``."""
    (queries, heads, dim), kv_heads, dim_v = q.shape, k.shape[1], v.shape[2]
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"q is {q.dtype} on {q.device}, but {name} is {x.dtype} on {x.device}")
        if x is not q and not _fits(x):
            raise ValueError(f"impl='cuda' reads 16 bytes at once, but {name} begins at {x.data_ptr()} with strides {x.stride()}")
    q = q if _fits(q) else q.clone(memory_format=torch.contiguous_format)
    out = q.new_empty(queries, heads, dim_v)
    lse = q.new_empty(queries, heads, dtype=torch.float32)
    sinks = None if sinks is None else sinks.to(q.device, torch.float32).contiguous()
    partial = partial_lse = None
    if work.merge_ptr is not None:
        partial = lse.new_empty(len(work.pairs), heads, dim_v)
        partial_lse = lse.new_empty(len(work.pairs), heads)
    elif work.blind:
        out.zero_()
        lse.copy_(sinks.expand_as(lse)) if sinks is not None else lse.fill_(-torch.inf)
    frequencies = None if rotary is None else _frequencies(rotary, q.device)
    if frequencies is not None and 2 * len(frequencies) > dim:
        raise ValueError(f"a rotation of {2 * len(frequencies)} channels for heads of {dim}")
    call = Call(
        *map(_pointer, (q, k, v, out, lse, partial, partial_lse, work.items, work.pairs, work.slots, work.slot_positions)),
        *map(_pointer, (work.tree, work.merge_ptr, work.merge_list, sinks, frequencies)),
        *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2]),
        *(len(work.items), work.few, work.most_pairs, queries, heads, kv_heads, dim, dim_v),
        *(0, 0) if rotary is None else (len(rotary.frequencies), rotary.interleaved),
        *(scale, softcap or 0.0),
    )
    function: Callable[..., int] = getattr(library, f"forethought_attend_{str(q.dtype)[6:]}")
    _check(library, function(ctypes.byref(call), ctypes.c_void_p(stream)))
    return out, lse


def _fits(x: Tensor) -> bool:
    """Whether every head of ``x`` [rows, heads, dim] is dense and begins at a multiple of 16 bytes."""
    steps = (n * x.itemsize for n, size in zip(x.stride()[:2], x.shape[:2], strict=True) if size > 1)
    return x.numel() == 0 or (x.stride(2) == 1 and x.data_ptr() % 16 == 0 and not any(step % 16 for step in steps))


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _frequencies(rotary: Rotary, device: torch.device) -> Tensor:
    """The frequencies in float32 on ``device``; moved there once."""
    frequencies = rotary.frequencies
    if frequencies.device == device and frequencies.dtype == torch.float32:
        return frequencies
    key = (id(frequencies), device)
    if len(_moved) > 64:  # of models long gone
        _moved.clear()
    if key not in _moved or _moved[key][0] is not frequencies:
        _moved[key] = frequencies, frequencies.to(device, torch.float32)
    return _moved[key][1]


_moved: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
_lock = threading.Lock()


def _library(width: int, index: int) -> ctypes.CDLL:
    with _lock:
        return _prepared(width, index)


@functools.cache
def _blocks(library: ctypes.CDLL, device: torch.device, itemsize: int) -> int:
    """How many blocks of few rows the device holds at once: contexts are cut so that so many are at work."""
    with torch.cuda.device(device):
        blocks: int = library.forethought_blocks(itemsize)
    return max(blocks, 1)


@functools.cache
def _prepared(width: int, index: int) -> ctypes.CDLL:
    library = cuda_library(width, "sm_{}{}".format(*torch.cuda.get_device_capability(index)))
    with torch.cuda.device(index):
        prepare(library)
    return library


def prepare(library: ctypes.CDLL) -> None:
    """Make a loaded library ready on the current device, and see that both sides mean the same ``Call``."""
    library.forethought_error.restype = ctypes.c_char_p
    if library.forethought_call_bytes() != ctypes.sizeof(Call):
        raise RuntimeError(f"struct Call has {library.forethought_call_bytes()} bytes in C++, {ctypes.sizeof(Call)} in Python")
    _check(library, library.forethought_prepare())


def _check(library: ctypes.CDLL, error: int) -> None:
    if error:
        hint = _HINTS.get(error, "")
        raise RuntimeError(f"impl='cuda': CUDA error {error}: {library.forethought_error(error).decode()}{hint}")
