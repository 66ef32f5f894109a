"""Held-out code problems of the built-in models' own kind, made on the spot. Programs run in a sandbox.

Truth is the hidden tests; the visible ones, of which a problem shows some, are for a verifier that selects
(``verifier=visible``).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from ...nano.programs import LEVELS, TASK, problems
from ...schema import Problem
from ...verifiers.code import Code
from ...verifiers.programs import readings
from .forms import chosen
from .task import Task


class NanoCode(Task):
    """``count`` problems, of ``levels`` 1 to 5 in turn (the number of operations)."""

    name = TASK

    def __init__(self, count: int = 300, levels: Sequence[int] = tuple(LEVELS), prompt: str = "{question}") -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"task.count={count!r}: a whole number of at least 1")
        if not levels or not all(level in LEVELS for level in levels):
            raise ValueError(f"task.levels={list(levels)}: levels from {LEVELS[0]} to {LEVELS[-1]}")
        self.count, self.levels, self.form = count, list(levels), chosen(prompt, {})

    def problems(self) -> Sequence[Problem]:
        return list(itertools.islice(problems("test", levels=self.levels), self.count))

    def read(self, text: str) -> str | None:
        return next(iter(readings(text)), None)

    def truth(self) -> Code:
        return Code("hidden")

    def validate(self) -> int:
        """Also by the visible tests: a reference that fails one of them would be no reference."""
        found = self.problems()
        for judge in (self.truth(), Code("visible")):
            try:
                complaints = asyncio.run(judge.validate(found))
            finally:
                judge.close()
            if complaints:
                raise ValueError(complaints[0])
        return len(found)
