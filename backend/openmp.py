"""torch's threads on a CPU: whoever waits gives its OpenMP workers back.

Every thread that ever computed in parallel keeps workers of its own. Once there are more of all these than cores, GNU OpenMP
has them sleep between parallel regions instead of spinning, and waking them takes longer than a small model's layers: a forward
takes three times as long for as long as both sets exist. Does nothing where torch runs on another OpenMP.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch

_SOFT = 1  # omp_pause_soft: what was set stays set


def release_workers() -> None:
    """End the calling thread's workers; its next parallel region starts new ones (0.1 ms). Cheap where there are none."""
    _pause()(_SOFT)


@cache
def _pause() -> Callable[[int], int]:
    for name in _names():
        try:  # the one that torch has loaded, never another
            library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            return library.omp_pause_resource_all
        except (OSError, AttributeError):
            continue
    return lambda kind: 0


def _names() -> Iterator[str]:
    """Where torch's wheels keep it, then the system's."""
    if sys.platform == "linux":
        home = Path(torch.__file__).parent
        for folder in (home / "lib", home.parent / "torch.libs"):
            yield from map(str, sorted(folder.glob("libgomp*")))
        yield "libgomp.so.1"
