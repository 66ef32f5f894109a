"""Dense groups of queries over slots: what a plan for plain torch is made of.

Tables on the device, masks, and the room that keys are gathered in. Not here: which groups views become (``plan.py``), and
attention (``reference.py``).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """Slots that lie evenly: the ``j``-th of entry ``e`` is ``first + e * apart + j * step``. A strided view reads them."""

    first: int
    apart: int
    step: int


class _Rooms(threading.local):
    def __init__(self) -> None:
        self.of: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}


_rooms = _Rooms()


@dataclass(slots=True)
class Group:
    """``E`` entries of ``n`` queries, each over ``L`` slots, dense after padding."""

    entries: int
    length: int
    slots: Tensor | Grid
    """[E * L] pool rows, or the grid they are."""
    queries: Tensor | None = None
    """[E * n] row of q of each query; None: all of q, in order."""
    mask: Tensor | None = None
    """[E, n, L] bool, what is visible; None: everything."""
    empty: Tensor | None = None
    """[E * n] bool, queries that see nothing; None: there are none."""
    turn: Tensor | None = None
    """[E * n] positions to turn queries by; None: none."""
    valid: Tensor | None = None
    """Which of the E * n results are real and not padding; None: all."""
    target: Tensor | None = None
    """Query of each real result; None: all of q, in order."""
    _biases: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)

    @property
    def lone(self) -> bool:
        """Whether it is one entry with all of q, in order, so that results are where they belong."""
        return self.entries == 1 and self.queries is self.empty is self.turn is self.valid is self.target is None

    def bias(self, rows: int, dtype: torch.dtype) -> Tensor | None:
        """The mask as [E, 1, rows, L] of 0 and -inf, each query's line repeated for the heads that share a KV head."""
        if self.mask is None:
            return None
        if (rows, dtype) not in self._biases:
            bias = torch.zeros(self.mask.shape, dtype=dtype, device=self.mask.device).masked_fill_(~self.mask, -torch.inf)
            n = bias.shape[1]
            self._biases[rows, dtype] = (bias if n in (1, rows) else bias.repeat_interleave(rows // n, 1)).unsqueeze(1)
        return self._biases[rows, dtype]


def rooms(k: Tensor, v: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Where this thread gathers up to ``slots`` slots of K and V, kept between calls: fresh memory costs more than attention."""
    key = (k.shape[1:], v.shape[1:], k.dtype)
    room = _rooms.of.get(key)
    if room is None or len(room[0]) < slots:
        with torch.inference_mode(False):  # or no later call outside that mode could use them
            room = _rooms.of[key] = k.new_empty(slots, *k.shape[1:]), v.new_empty(slots, *v.shape[1:])
    return room
