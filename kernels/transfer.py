"""Between host and device without a wait, and the one read that has to wait. On a CPU nothing is copied.

A copy from pageable memory waits for the device; one from pinned memory does not. Not here: buffers that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def numbered(device: str | torch.device) -> torch.device:
    """``device`` as tensors on it name it: "cuda" with a number, by default the current one's, "cpu" without."""
    found = torch.device(device)
    if found == torch.device("cuda"):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if found.type == "cpu" else found


def put(values: Tensor | np.ndarray | Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A host's ``values`` on ``device``; the host does not wait for it."""
    if isinstance(values, np.ndarray):
        found = torch.from_numpy(values)
    else:
        found = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    if device.type == "cpu":
        return found
    if device.type == "cuda" and found.is_cpu:
        found = found.pin_memory()
    return found.to(device, non_blocking=True)


def read(*found: Tensor | list[float] | None) -> list[Any]:
    """Tensors [N, …] of one shape in host memory, read at once; what is there already, as it is.

    The only wait for the device in a step of plain decoding. Whole numbers beyond 2^53 do not survive.
    """
    there = [x for x in found if isinstance(x, Tensor)]
    if all(x.is_cpu for x in there):
        return list(found)
    whole = iter(torch.stack([x.to(torch.float64) for x in there]).cpu().unbind())
    return [next(whole).to(x.dtype) if isinstance(x, Tensor) else x for x in found]
