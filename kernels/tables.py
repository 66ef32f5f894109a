"""A work list on the host, as tables, and its way to the device in one copy.

What the tables say: :class:`~forethought.kernels.work.Work`. Not here: how they are made, and tables that stay in their place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from .views import Ints


class Tables(NamedTuple):
    """Tables on their way to the device."""

    items: np.ndarray
    pairs: np.ndarray
    slots: np.ndarray
    open: np.ndarray
    slot_positions: np.ndarray | None
    merge_ptr: np.ndarray | None
    merge_list: np.ndarray | None


class Facts(NamedTuple):
    """What of a work list is numbers, as in :class:`Work`."""

    most_pairs: int
    few: int
    masked: bool
    turned: bool
    blind: bool
    slot_reads: int


class Plan(NamedTuple):
    """A work list on the host."""

    tree: Ints | None
    tables: Tables
    facts: Facts


def upload(tree: Ints | None, tables: Tables, device: torch.device) -> dict[str, Any]:
    """``tree`` as int64 and ``tables`` as int32 on the device, by name, in one copy from one (pinned) buffer."""
    words = 0 if tree is None else 2 * len(tree)
    spaces = [0 if table is None else -(-table.size // 4) * 4 for table in tables]  # every table begins at 16 bytes
    start = -(-words // 4) * 4
    host = torch.empty(start + sum(spaces), dtype=torch.int32, pin_memory=device.type == "cuda")
    view = host.numpy()
    if tree is not None:
        view[:words].view(np.int64)[:] = tree
    at, places = start, []
    for table, space in zip(tables, spaces, strict=True):
        if table is not None:
            view[at : at + table.size] = table.reshape(-1)
        places.append(at)
        at += space
    there = host if device.type == "cpu" else host.to(device, non_blocking=True)
    found: dict[str, Any] = {"tree": None if tree is None else there[:words].view(torch.int64)}
    for name, table, at in zip(Tables._fields, tables, places, strict=True):
        found[name] = None if table is None else there[at : at + table.size].view(table.shape)
    return found
