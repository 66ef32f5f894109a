"""A device that is not there: tensors that say they are elsewhere, are computed on the CPU, and count who waits for them.

:class:`Card` is a mode. While it is on, what is made on or moved to the device "meta" is such a tensor. Whatever would make
the host wait for a CUDA device is counted, and mixing tensors of both places is refused, as there. Not a test.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

ELSEWHERE = torch.device("meta")
COUNTS = ("nonzero", "bincount", "masked_select", "unique", "repeat_interleave", "_local_scalar_dense")
"""Operations whose result's size, or value, the host must know."""


class Remote(Tensor):
    """Says it is elsewhere; holds what it is."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Remote:
        made = Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), dtype=held.dtype, device=ELSEWHERE)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} outside of Card")


class Card(TorchDispatchMode):
    """``waits``: what would have waited for the device. ``downloads``: copies to the host, each of which waits too."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.downloads = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        flat = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        remote = any(isinstance(x, Remote) for x in flat)
        device = kwargs.get("device")
        upload = device == ELSEWHERE and not remote
        here = remote and device is not None and torch.device(device).type == "cpu"
        if name in ("_to_copy", "copy_") and upload and flat and not kwargs.get("non_blocking"):
            self.waits.append(f"{name} of pageable memory")
        if here:
            self.downloads += 1
        elif remote:
            if name in COUNTS or (name.startswith("index") and any(x.dtype == torch.bool for x in self._indices(args))):
                self.waits.append(name)
            strangers = [x for x in flat if not isinstance(x, Remote) and x.dim()]
            assert not strangers, f"{name} of tensors here and elsewhere"
        inner, options = tree_map(lambda x: x.held if isinstance(x, Remote) else x, (args, kwargs))
        if device == ELSEWHERE:
            options["device"] = torch.device("cpu")
        result = function(*inner, **options)
        if here or not (remote or upload):
            return result
        known = {id(x.held): x for x in flat if isinstance(x, Remote)}
        return tree_map(lambda x: known.get(id(x), x) if id(x) in known or not isinstance(x, Tensor) else Remote(x), result)

    @staticmethod
    def _indices(args: Any) -> list[Tensor]:
        return [x for x in torch.utils._pytree.tree_leaves(args[1:2]) if isinstance(x, Tensor)]
