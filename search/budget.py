"""What a strategy may spend on one problem, in whatever currency: the first limit that is reached stops it. Host only."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

from ..checks import number, whole
from ..schema import Cost


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one problem; None: no limit. What is under way when one is reached is finished, and billed."""

    tokens: int | None = None
    """Put through the model, :attr:`Cost.computed`."""
    forwards: int | None = None
    """Model calls one after the other, :attr:`Cost.critical`."""
    verifications: int | None = None
    """Candidates shown to the verifier."""
    flops: float | None = None
    """By :meth:`Cost.flops`."""
    seconds: float | None = None
    """Of wall time."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            name = f"budget.{field.name}"
            if field.name in ("flops", "seconds"):
                value = number(name, value, lambda x: x > 0, "more than 0, or null for no limit")
            else:
                value = whole(name, value, 1)
            object.__setattr__(self, field.name, value)


class Meter:
    """What was spent on one problem so far. ``parameters``: of the model, for FLOPs."""

    def __init__(self, budget: Budget, parameters: int = 0) -> None:
        if budget.flops is not None and not parameters:
            raise ValueError("budget.flops: how many parameters the generator has is not known")
        self.budget, self.parameters = budget, parameters
        self.cost = Cost()
        self.verifications = 0
        self._start = time.perf_counter()

    def add(self, cost: Cost, verifications: int = 0) -> None:
        """Something was done after what was done before."""
        self.cost += cost
        self.verifications += verifications

    @property
    def reached(self) -> str | None:
        """The name of a limit that is reached; None while there is room."""
        spent = {
            "tokens": self.cost.computed, "forwards": self.cost.critical, "verifications": self.verifications,
            "flops": self.cost.flops(self.parameters), "seconds": time.perf_counter() - self._start,
        }  # fmt: skip
        limits = ((name, getattr(self.budget, name)) for name in spent)
        return next((name for name, limit in limits if limit is not None and spent[name] >= limit), None)
