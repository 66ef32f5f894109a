"""Judges final answers of maths problems: finds the answer in the text, compares it exactly with the problem's, says so.

The core (:mod:`.exact`) needs no library, evaluates nothing, and says wrong only of what is proven to be another value. What it
cannot decide goes to math-verify in a killable process where that is installed, and is unknown otherwise. Votes go by the
canonical key in ``Verdict.answer``: what only math-verify finds equal has two keys. Looks at the answer, never at the reasoning.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from ..checks import flag, number
from ..schema import Problem, Status, Verdict
from .algebra import Unread
from .exact import Form, Outcome, Relation, compare, key
from .extract import final_answer
from .notation import normal
from .shapes import read
from .symbolic import Symbolic, installed
from .verifier import Verifier

_STATUS: dict[Relation, tuple[Status, float | None]] = {
    "same": ("correct", 1.0),
    "different": ("wrong", 0.0),
    "unknown": ("unknown", None),
}


class Maths(Verifier):
    """Correct, wrong or unknown, by the final answer.

    ``symbolic`` asks math-verify about what the exact core cannot decide: ``"auto"`` where it is installed. ``timeout`` bounds
    one such question, in seconds. ``guess`` takes the last maths span or number of a text that announces no answer.
    """

    def __init__(self, symbolic: Literal["auto"] | bool = "auto", timeout: float = 5.0, guess: bool = False) -> None:
        if symbolic not in ("auto", True, False):
            raise ValueError(f"symbolic={symbolic!r} is none of 'auto', True, False")
        if symbolic is True and not installed():
            raise ModuleNotFoundError("symbolic=True needs math-verify: pip install 'forethought[math]'")
        number("timeout", timeout, lambda x: 0 < x < math.inf, "a positive number of seconds")
        flag("guess", guess)
        self.symbolic = Symbolic(timeout) if symbolic and installed() else None
        self.without = "not asked: symbolic=False" if symbolic is False else "math-verify is not installed"
        self.guess = guess
        self.name = "maths+math-verify" if self.symbolic else "maths"

    async def ajudge(self, problem: Problem, candidates: Sequence[str]) -> list[Verdict]:
        """A verdict each; ``meta`` holds the answer as written and who decided.

        Raises ``ValueError`` for a problem without an answer, or with one that is too long.
        """
        gold = _gold(problem)
        answers = [final_answer(text, guess=self.guess) for text in candidates]
        verdicts: dict[str | None, Verdict] = {}
        for answer in dict.fromkeys(answers):
            verdicts[answer] = await self._verdict(gold, answer)
        return [verdicts[answer] for answer in answers]

    def validate(self, problems: Iterable[Problem]) -> None:
        """Check that every answer is right against itself, can be read, and is not right with a digit changed.

        Raises ``ValueError`` that names the first problem of which this does not hold. Needs no model; may start math-verify.
        """
        for problem in problems:
            gold = _gold(problem)
            if compare(gold, gold).relation != "same" or not self._readable(gold):
                raise ValueError(f"{problem.id}: the answer {gold!r} cannot be read")
            changed = _changed(gold)
            if compare(gold, changed).relation == "same":
                raise ValueError(f"{problem.id}: {changed!r} passes for the answer {gold!r}")

    def close(self) -> None:
        """End math-verify's process."""
        if self.symbolic:
            self.symbolic.close()

    async def _verdict(self, gold: str, answer: str | None) -> Verdict:
        if answer is None:
            return Verdict("unknown", None, "no answer found", self.name)
        outcome, by, meta = compare(gold, answer), "exact", {"said": answer}
        if outcome.ask and self.symbolic:
            by = "math-verify"
            try:
                outcome = await asyncio.to_thread(self.symbolic.compare, *outcome.ask)
            except RuntimeError as error:
                return Verdict("error", None, str(error), self.name, answer=key(answer), meta={**meta, "by": by})
        elif outcome.ask:
            outcome = Outcome("unknown", f"{outcome.reason} ({self.without})")
        status, score = _STATUS[outcome.relation]
        return Verdict(status, score, outcome.reason, self.name, answer=key(answer), meta={**meta, "by": by})

    def _readable(self, gold: str) -> bool:
        try:
            read(gold)
        except Unread:
            return self.symbolic is not None and self.symbolic.compare((Form(gold, False),) * 2).relation == "same"
        return True


def _gold(problem: Problem) -> str:
    if problem.answer is None:
        raise ValueError(f"{problem.id}: no answer to compare with")
    try:
        if normal(problem.answer):
            return problem.answer
    except Unread as error:
        raise ValueError(f"{problem.id}: the answer cannot be read: {error}") from None
    raise ValueError(f"{problem.id}: the answer {problem.answer!r} is empty")


def _changed(gold: str) -> str:
    """``gold`` with its first digit changed, or one put behind it."""
    changed, times = re.subn(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), gold, count=1)
    return changed if times else f"{gold}1"
