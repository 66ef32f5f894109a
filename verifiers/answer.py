"""Right is what is equal: an answer read from the text, compared with the problem's as a string. Exact, free, never evaluates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..schema import Problem, Verdict
from .verifier import Verifier


class Answer(Verifier):
    """For answers with one spelling, such as whole numbers. ``read`` finds the answer in a text, None where there is none."""

    name = "answer"

    def __init__(self, read: Callable[[str], str | None]) -> None:
        self.read = read

    async def ajudge(self, problem: Problem, candidates: Sequence[str]) -> list[Verdict]:
        if problem.answer is None:
            raise ValueError(f"{problem.id} has no answer to compare with")
        return [self._verdict(self.read(text), problem.answer) for text in candidates]

    def _verdict(self, said: str | None, answer: str) -> Verdict:
        if said is None:
            return Verdict("unknown", None, "no answer was found", self.name)
        right = said == answer
        return Verdict("correct" if right else "wrong", float(right), "", self.name, answer=said)
