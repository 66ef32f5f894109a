"""How a GPU's memory is shared out before a KV pool is made: what is there already, what a step takes, and the rest.

Counted from a model's shapes, not tried out; a step's share is an upper bound. Numbers only: nothing here takes memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..checks import number
from ..kernels.transfer import numbered
from ..kernels.views import TREE_LIMIT
from .graphs import LISTED
from .model import Model

GPU_MEMORY_UTILIZATION = 0.9
"""Share of a GPU's memory that an engine fills when not told."""
DRAWING = 48
"""Bytes a logit while tokens are drawn by all rules at once: 40 in float32 scores, orders and noise, and what sorting takes."""
LIBRARIES = 256 << 20
"""What the driver and cuBLAS keep for recordings and products."""
TABLES = 4 << 20
"""Work lists of recordings, beside the slots they list."""
PIECES = 4
"""Partial results of attention a query, at most about so many."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What becomes of one device's memory, in bytes."""

    device: str
    total: int
    limit: int
    """What may be filled of it."""
    taken: int
    """By weights, and by whatever else was there before."""
    steps: int
    """Kept for recordings, their tables, activations and drawing."""
    slot_bytes: int
    """Of one KV slot, in all pools."""
    slots: int

    @property
    def pool(self) -> int:
        return (self.slots + 1) * self.slot_bytes

    def __str__(self) -> str:
        return (
            f"{self.device}: {_gb(self.total)}, of which {_gb(self.limit)} may be filled: {_gb(self.taken)} taken (weights), "
            f"{_gb(self.steps)} for steps, {_gb(self.pool)} for {self.slots} KV slots of {self.slot_bytes} bytes"
        )


def plan_memory(
    device: str, *, total: int, free: int, utilization: float, steps: int, slot_bytes: int, least: int, most: int
) -> MemoryPlan:
    """The largest pool of ``least`` to ``most`` slots that leaves room for everything else.

    ``ValueError``, with the numbers, where not even ``least`` fit.
    """
    plan = MemoryPlan(device, total, int(utilization * total), total - free, steps, slot_bytes, 0)
    room = plan.limit - plan.taken - plan.steps
    slots = room // slot_bytes - 1  # one is written to by what nobody wants
    if slots < least:
        raise ValueError(
            f"{device} has {_gb(total)}, of which gpu_memory_utilization={utilization} lets {_gb(plan.limit)} be filled; "
            f"{_gb(plan.taken)} are taken, a step needs {_gb(steps)}, and {_gb(max(0, room))} left hold no {least} KV slots of "
            f"{slot_bytes} bytes: say kv_slots, allow fewer max_rows or prefill_tokens, or take a smaller model"
        )
    return replace(plan, slots=min(slots, most))


def most_decided(rows: int) -> int:
    """Tokens that a step may decide on, drafted ones included: one of each of ``rows`` rows, and of one row at least a tree."""
    return max(rows, 1 + TREE_LIMIT)


def step_bytes(model: Model, tokens: int, decided: int) -> int:
    """Bytes that a call of up to ``tokens`` new tokens and drawing behind ``decided`` of them take beside weights and pool."""
    info, recorded = model.info, model.recorded_tokens
    layer = -(-max(0, info.parameters - info.vocab_size * info.width) // (max(1, len(info.layers)) * info.width))
    widest = max(spec.kv_heads * (spec.dim + spec.dim_v) for spec in info.layers)
    size = info.dtype.itemsize
    # What one layer's products give out, the residual stream in float32, and attention's partial results.
    token = layer * size + 4 * 4 * info.width + PIECES * 4 * 2 * info.width
    logits = info.vocab_size * (decided * (2 * size + DRAWING) + recorded * size)
    tables = 2 * 4 * min(LISTED, recorded * info.max_positions) + (TABLES if recorded else 0)
    return (tokens + recorded) * token + logits + info.max_positions * widest * size + tables + LIBRARIES


def share_out(
    models: Sequence[Model], *, utilization: float, tokens: int, rows: int, kv_slots: int | None = None
) -> tuple[MemoryPlan, ...]:
    """A plan for each GPU that holds layers of ``models``, each of which gets a pool, all pools as many slots.

    The first model says how many are of use: ``rows`` full contexts. ``kv_slots``: take so many, whether they fit or not.
    Raises ``ValueError`` as :func:`plan_memory` does, and for a ``utilization`` outside (0, 1].
    """
    utilization = number("gpu_memory_utilization", utilization, lambda x: 0 < x <= 1, "above 0, at most 1")
    decided = most_decided(rows)
    most, plans = rows * models[0].info.max_positions, []
    steps = sum(step_bytes(model, tokens + decided, decided) for model in models)
    slot_of: Counter[torch.device] = Counter()
    for model in models:
        for spec in model.info.layers:
            slot_of[numbered(spec.device)] += spec.kv_heads * (spec.dim + spec.dim_v) * model.info.dtype.itemsize
    for device in (device for device in slot_of if device.type == "cuda"):
        slot = slot_of[device]
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps it for what comes
        if kv_slots is None:
            plan = plan_memory(str(device), total=total, free=free, utilization=utilization, steps=steps, slot_bytes=slot,
                               least=min(tokens + rows, most), most=most)  # fmt: skip
        else:
            plan = MemoryPlan(str(device), total, int(utilization * total), total - free, steps, slot, kv_slots)
        plans.append(plan)
    slots = min((plan.slots for plan in plans), default=0)
    return tuple(replace(plan, slots=slots) for plan in plans)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
