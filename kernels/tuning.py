"""Launch configurations of the Triton kernels and what computes prefill, from the JSON files in ``tuned/``: nearest device used.

Nothing is tuned at run time. A file says whether its figures were measured on the device or are only an estimate.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tuned"


@dataclass(frozen=True, slots=True)
class Config:
    """How attention is launched for heads of about ``dim`` numbers of ``itemsize`` bytes."""

    dim: int
    itemsize: int
    rows: int
    """Rows (queries x heads that share a KV head) of a tile: at least 16, a power of two."""
    block: int
    """Slots of a tile: at least 16, a power of two."""
    warps: int
    stages: int
    blocks_per_sm: int
    """Contexts are cut so that about so many blocks are at work on a multiprocessor."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """The configurations of one device."""

    device: str
    capability: tuple[int, int]
    measured: bool
    configs: tuple[Config, ...]
    prefill: str = "sdpa"
    """What computes plain chains of at least ``prefill_queries`` queries: "sdpa", torch's own attention, or "twin"."""
    prefill_queries: int = 128

    def nearest(self, dim: int, itemsize: int, rows: int) -> Config:
        """That for heads and tiles at least as large, so that a tile fits; else for the largest there are."""
        found = [c for c in self.configs if c.itemsize == itemsize]
        if not found:
            raise ValueError(f"no configuration for numbers of {itemsize} bytes in the tuning of {self.device}")
        found = _least(found, "dim", dim)
        return _least(found, "rows", rows)[0]


def _least(configs: list[Config], name: str, size: int) -> list[Config]:
    """Those with the smallest ``name`` that is at least ``size``, or with the largest."""
    sizes = {getattr(c, name) for c in configs}
    wanted = min((s for s in sizes if s >= size), default=max(sizes))
    return [c for c in configs if getattr(c, name) == wanted]


@cache
def tunings() -> tuple[Tuning, ...]:
    """All that is committed, in the order of their file names."""
    return tuple(parse(json.loads(path.read_text())) for path in sorted(FOLDER.glob("*.json")))


def parse(found: dict[str, Any]) -> Tuning:
    """A file's contents. ``ValueError`` for what no kernel could be launched with."""
    configs = tuple(Config(**entry) for entry in found["triton"])
    for c in configs:
        for name, value in (("rows", c.rows), ("block", c.block)):
            if value < 16 or value & (value - 1):
                raise ValueError(f"tuning of {found['device']}: {name}={value}: a power of two, at least 16")
    major, minor = found["capability"]
    prefill, queries = found["prefill"], found["prefill_queries"]
    if prefill not in ("sdpa", "twin") or queries < 1:
        raise ValueError(f"tuning of {found['device']}: prefill={prefill!r} from {queries} queries: sdpa or twin, 1 or more")
    return Tuning(found["device"], (major, minor), found["measured"], configs, prefill, queries)


@cache
def tuning_for(device: str, capability: tuple[int, int]) -> Tuning:
    """That of the device of this name; else of its compute capability; else of the nearest lower one, or the lowest."""
    return nearest_device(tunings(), device, capability)


def nearest_device(known: tuple[Tuning, ...], device: str, capability: tuple[int, int]) -> Tuning:
    """See :func:`tuning_for`."""

    def distance(tuning: Tuning) -> tuple[bool, bool, int]:
        behind = 100 * (capability[0] - tuning.capability[0]) + capability[1] - tuning.capability[1]
        return tuning.device != device, behind < 0, abs(behind)

    return min(known, key=distance)
