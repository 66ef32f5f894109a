"""Attention of flat query rows over the slots of their views, and the exact merge of partial results.

The one operation that plain decoding, prefill, tree verification, shared prefixes and several-part views all call.
This module is the seam: it validates, picks an implementation and finishes (sinks); the walk over slots is the twins'.
Exact. Not here: projections, rotation of new tokens, writing K and V.
"""

from __future__ import annotations

from functools import cache, partial
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from . import prefill, reference
from .merge import merge
from .rotary import Rotary
from .tuning import Tuning, tuning_for
from .views import Views

__all__ = ["IMPLEMENTATIONS", "attend", "choose", "merge"]

IMPLEMENTATIONS = ("auto", "torch", "triton", "cuda")
FAST = {"triton": "triton_attention", "cuda": "cuda_attention"}
"""Implementations beside plain torch, the one that ``auto`` prefers first, and their modules. Each has ``attend``, and
``refuses``, which says why it cannot run somewhere."""


def choose(impl: str = "auto", device: torch.device | None = None) -> tuple[str, str]:
    """The implementation that ``impl`` runs on ``device`` and why. ``device`` None: CUDA where there is one, else the CPU.

    Raises ``ValueError`` for one that does not exist, or that cannot run there.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: one of {', '.join(IMPLEMENTATIONS)}")
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if impl == "torch":
        return impl, "asked for"
    if impl != "auto":
        if (why := refused(impl, device)) is not None:
            raise ValueError(f"impl={impl!r}: {why}")
        return impl, "asked for"
    return _best(device, None, 1, 1)


@cache
def _best(device: torch.device, dtype: torch.dtype | None, dim: int, dim_v: int) -> tuple[str, str]:
    """What ``auto`` runs there on heads of these sizes, and why."""
    if device.type == "cpu":
        return "torch", "the one for a CPU"
    refusals: list[str] = []
    for name in FAST:
        if (why := refused(name, device, dtype, dim, dim_v)) is None:
            return name, "; ".join(["preferred on a GPU", *refusals])
        refusals.append(f"{name}: {why}")
    return "torch", "; ".join(refusals)


def fast_twin(impl: str, device: torch.device, dtype: torch.dtype, dim: int, dim_v: int) -> ModuleType | None:
    """The module whose ``attend`` runs there for ``impl``; None where plain torch does."""
    name = impl if impl != "auto" else _best(device, dtype, dim, dim_v)[0]
    if name == "torch":
        return None
    choose(name, device)
    found = _module(name)
    return None if isinstance(found, ImportError) else found


def refused(name: str, device: torch.device, dtype: torch.dtype | None = None, dim: int = 1, dim_v: int = 1) -> str | None:
    """Why the implementation ``name`` cannot run there on heads of these sizes; None: it can."""
    module = _module(name)
    if isinstance(module, ImportError):
        return f"not importable ({module})"
    why: str | None = module.refuses(device, dtype, dim, dim_v)
    return why


@cache
def _module(name: str) -> ModuleType | ImportError:
    """An implementation, or why there is none: what it needs may not be installed."""
    try:
        return import_module(f".{FAST[name]}", __package__)
    except ImportError as error:
        return error


def device_tuning(device: torch.device) -> Tuning:
    """The tuning that a GPU's kernels run by."""
    about = torch.cuda.get_device_properties(device)
    return tuning_for(about.name, (about.major, about.minor))


@cache
def flash_from(device: torch.device, dtype: torch.dtype, dim: int, dim_v: int) -> int | None:
    """From how many queries on "auto" leaves a plain chain on a GPU to torch's own attention; None: never."""
    if device.type != "cuda" or prefill.refuses(dtype, dim, dim_v) is not None:
        return None
    tuning = device_tuning(device)
    return tuning.prefill_queries if tuning.prefill == "sdpa" else None


def _alone(
    twin: ModuleType, k: Tensor, v: Tensor, scale: float, window: int | None, rotary: Rotary | None, q: Tensor, views: Views
) -> Tensor:
    """What ``twin`` makes of some rows of a call."""
    out: Tensor = twin.attend(q, k, v, views, scale=scale, window=window, rotary=rotary)[0]
    return out


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
    ``impl``: a named implementation runs or raises ``ValueError``; "auto" takes the best that :func:`choose` finds, and beside
    it torch's own attention for prefill (:mod:`~forethought.kernels.prefill`) where the tuning of a GPU says so.
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
    if impl != "torch" and (impl != "auto" or not q.is_cpu):
        name = _best(q.device, q.dtype, dim, v.shape[2])[0] if impl == "auto" else choose(impl, q.device)[0]
        if name != "torch":
            twin: ModuleType = _module(name)  # type: ignore[assignment]
            if impl == "auto" and softcap is None and sinks is None and not need_lse:
                least = flash_from(q.device, q.dtype, dim, v.shape[2])
                if least is not None and (found := prefill.split(views, window, least, q.device)) is not None:
                    return prefill.attend(q, k, v, found, scale, partial(_alone, twin, k, v, scale, window, rotary)), None
            result: tuple[Tensor, Tensor | None] = twin.attend(
                q, k, v, views, scale=scale, window=window, softcap=softcap, sinks=sinks, rotary=rotary, need_lse=need_lse
            )
            return result
    with_lse = need_lse or sinks is not None
    out, lse = reference.attend(q, k, v, views, scale=scale, window=window, softcap=softcap, rotary=rotary, need_lse=with_lse)
    if sinks is not None:
        assert lse is not None
        out, lse = merge(out, lse, torch.zeros_like(out), sinks.to(lse.dtype).expand_as(lse))
    return out, lse if need_lse else None
