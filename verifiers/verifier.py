"""Who says an answer is right: the interface of exact checkers, reward models and generative judges.

A verifier reads whole candidates; selection and truth are two verifiers, never mixed up in a result. What it cannot read or
decide is ``unknown``, what broke on its own side ``error``; neither counts as wrong.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..schema import Problem, Verdict


class Verifier(ABC):
    """Judges texts that were written as answers to a problem."""

    name: str
    """As it stands in verdicts: what checks, and its settings where they matter."""

    @abstractmethod
    async def ajudge(self, problem: Problem, candidates: Sequence[str]) -> list[Verdict]:
        """A verdict for each of ``candidates``, whole model outputs, in order.

        Model text is hostile: it is never evaluated in this process, and whatever it does ends in a verdict, never in an
        exception. Raises ``ValueError`` for a problem that this verifier cannot judge at all.
        """

    def close(self) -> None:
        """Give back processes and folders."""
        return None


class StepScorer(ABC):
    """Scores solutions in the making, for searches."""

    @abstractmethod
    async def ascore(self, problem: Problem, partials: Sequence[str]) -> list[float]:
        """A score for each of ``partials``, model outputs cut at ends of steps, in order; more is better.

        NaN for one that cannot be scored: it has no step, or is too long.
        """
