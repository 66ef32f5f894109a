"""How a problem is solved: one strategy a file. A strategy asks a generator, perhaps a verifier, and chooses an answer.

What was drawn can be kept and given back, so that a run that was cut off goes on where it was, with the same text.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..backend.loop import Loop
from ..backend.request import seed_of as seed_of
from ..schema import Completion, Problem, Solution


@dataclass(frozen=True, slots=True)
class Draws:
    """A problem's samples by number. ``known``: those drawn before; ``keep`` is told of every new one, once, when it is there."""

    seed: int
    known: Mapping[int, Completion] = field(default_factory=dict)
    keep: Callable[[Completion], None] | None = None


class Strategy(ABC):
    """Solves problems, any number at a time."""

    width: int = 1
    """Draws of one problem that are under way at once, about: whoever keeps an engine busy wants to know."""

    @abstractmethod
    async def asolve(self, problem: Problem, draws: Draws) -> Solution:
        """The chosen answer with every candidate and the bill; ``draws`` says with what seed, and what is there already."""

    def solve(self, problem: Problem, seed: int = 0) -> Solution:
        """:meth:`asolve` for scripts and notebooks."""
        Loop.demand_another()
        result: Future[Solution] = Future()

        def run() -> None:
            try:
                result.set_result(asyncio.run(self.asolve(problem, Draws(seed_of(seed, problem.id)))))
            except BaseException as e:
                result.set_exception(e)

        threading.Thread(target=run, daemon=True).start()  # a notebook's own loop runs already
        return result.result()
