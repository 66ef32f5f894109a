"""The training loop that all nano models share: AdamW, a constant rate that decays at the end, checkpoints, exact resumption.

What is learnt is the caller's: for every step a list of losses, of which every core of a CPU computes some. One device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

Loss: TypeAlias = Callable[[], Tensor]
"""Computes one scalar."""
Log: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Length of a training and its learning rate."""

    steps: int
    rate: float
    warmup: int = 100
    decay: float = 0.2
    """Share of the steps over which the rate falls to zero."""

    def rate_at(self, step: int) -> float:
        tail = (self.steps - step) / max(1, round(self.steps * self.decay))
        return self.rate * min(1.0, (step + 1) / self.warmup, tail)


def say(line: str) -> None:
    print(line, flush=True)


def optimizer_for(model: torch.nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms alone."""
    weights = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": 0.1},
        {"params": [w for w in weights if w.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def backward(model: torch.nn.Module, losses: Sequence[Loss]) -> float:
    """Puts the gradient of the losses' sum into the weights and returns that sum.

    On a CPU every core computes losses of its own: operations this small do not pay to be shared out. The gradients are added
    in order, so the sum does not depend on how many cores there are.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def one(loss: Loss) -> tuple[float, Sequence[Tensor]]:
        value = loss()
        return value.item(), torch.autograd.grad(value, weights)

    threads = torch.get_num_threads() if weights[0].device.type == "cpu" else 1
    torch.set_num_threads(1 if threads > 1 else threads)
    try:
        with ThreadPoolExecutor(threads) as pool:
            total = 0.0
            for value, gradients in pool.map(one, losses):
                total += value
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
    finally:
        torch.set_num_threads(threads)
    return total


def fit(
    model: torch.nn.Module,
    schedule: Schedule,
    out: Path,
    losses: Callable[[int], tuple[Sequence[Loss], int]],
    *,
    resume: bool = False,
    stop_at: int | None = None,
    save_every: int = 150,
    log: Log = say,
    look: Callable[[], None] = lambda: None,
) -> None:
    """Trains to ``schedule.steps`` (or pauses at ``stop_at``), leaving ``step-N.pt`` in ``out``.

    ``losses``: what a step learns, and of how many tokens. ``look``: called now and then, to see how it goes. ``resume`` goes on
    from the newest checkpoint; without it, a folder that holds some already is refused (``FileExistsError``).
    """
    newest = newest_checkpoint(out)
    if newest and not resume:
        raise FileExistsError(f"{out} holds checkpoints: resume, or name another folder")
    optimizer = optimizer_for(model, schedule.rate)
    out.mkdir(parents=True, exist_ok=True)
    done = 0
    if newest:
        state = torch.load(newest, map_location=next(model.parameters()).device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    tokens, since = 0, time.perf_counter()
    for step in range(done, schedule.steps if stop_at is None else stop_at):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        parts, count = losses(step)
        total = backward(model, parts)
        tokens += count
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 20 == 0:
            speed = tokens / (time.perf_counter() - since)
            log(f"step {step + 1}/{schedule.steps}  loss {total:.4f}  {speed:,.0f} tokens/s")
            tokens, since = 0, time.perf_counter()
        if (step + 1) % save_every == 0 or step + 1 in (schedule.steps, stop_at):
            save_checkpoint(out, step + 1, model, optimizer)
        if (step + 1) % (2 * save_every) == 0:
            look()
            tokens, since = 0, time.perf_counter()


def newest_checkpoint(out: Path) -> Path | None:
    return max(out.glob("step-*.pt"), default=None)


def save_checkpoint(out: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Whole or not at all: written beside, then renamed."""
    state: dict[str, Any] = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    target = out / f"step-{step:06d}.pt"
    torch.save(state, target.with_suffix(".tmp"))
    os.replace(target.with_suffix(".tmp"), target)
