"""Held-out word problems of the built-in models' own kind, made on the spot. Answers are whole numbers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from ...nano.problems import LEVELS, TASK, problems, read_answer
from ...schema import Problem
from ...verifiers.answer import Answer
from .forms import chosen
from .task import Task


class NanoMath(Task):
    """``count`` problems, of ``levels`` 1 to 8 in turn (the number of steps)."""

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
        return read_answer(text)

    def truth(self) -> Answer:
        return Answer(self.read)

    def validate(self) -> int:
        judge, checked = self.truth(), 0
        for problem in self.problems():
            answer = problem.answer or ""
            texts = [f"\\boxed{{{answer}}}", f"\\boxed{{{int(answer) + 1}}}", answer]
            found = [verdict.status for verdict in asyncio.run(judge.ajudge(problem, texts))]
            if found != ["correct", "wrong", "unknown"]:
                raise ValueError(f"{problem.id}: its answer {answer}, the next number and no box are judged {found}")
            checked += 1
        return checked
