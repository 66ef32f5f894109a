"""Maths benchmarks with short answers: GSM8K (arXiv 2110.14168), MATH-500 (2103.03874, 2305.20050), AIME 2024.

Answers are compared by :class:`~forethought.verifiers.maths.Maths`. The rows are not part of this package.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from ...schema import Problem
from ...verifiers.exact import key
from ...verifiers.extract import final_answer
from ...verifiers.maths import Maths
from .rows import Source, rows
from .task import Task

PROMPT = "{question}\n\nReason step by step, and put the final answer within \\boxed{}."


class _Rows(Task):
    """``path``: a file of JSON lines or a Hub id, instead of where the rows should be. ``count``: only the first ones."""

    source: Source

    def __init__(self, path: str | None = None, count: int | None = None, prompt: str = PROMPT) -> None:
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(f"task.count={count!r}: a whole number of at least 1, or null for all")
        if "{question}" not in prompt:
            raise ValueError(f"task.prompt={prompt!r}: {{question}} is missing")
        self.path, self.count, self.prompt = path, count, prompt

    def problems(self) -> Sequence[Problem]:
        found = rows(self.source, self.path)[: self.count]
        try:
            return [self.problem(i, row) for i, row in enumerate(found)]
        except KeyError as e:
            raise ValueError(f"{self.name}: a row without {e}") from None

    @abstractmethod
    def problem(self, number: int, row: dict[str, Any]) -> Problem:
        """The problem of one row, the ``number``-th."""

    def read(self, text: str) -> str | None:
        answer = final_answer(text)
        return None if answer is None else key(answer)

    def truth(self) -> Maths:
        return Maths()

    def validate(self) -> int:
        judge, found = self.truth(), self.problems()
        try:
            judge.validate(found)
        finally:
            judge.close()
        return len(found)


class Gsm8k(_Rows):
    """1,319 grade-school word problems. Row 1042 has a wrong answer (3, should be 3.5), which is left as it is."""

    name = "gsm8k"
    source = Source("gsm8k/test.jsonl", "openai/gsm8k", "main", "test")

    def problem(self, number: int, row: dict[str, Any]) -> Problem:
        solution, _, answer = row["answer"].rpartition("####")
        return Problem(f"gsm8k/{number}", row["question"], answer.strip(), self.name, meta={"solution": solution.strip()})


class Math500(_Rows):
    """500 competition problems of the MATH test set, of levels 1 to 5."""

    name = "math500"
    source = Source("math500/test.jsonl", "HuggingFaceH4/MATH-500", None, "test")

    def problem(self, number: int, row: dict[str, Any]) -> Problem:
        meta = {"solution": row["solution"], "subject": row["subject"]}
        return Problem(f"math500/{row['unique_id']}", row["problem"], row["answer"], self.name, int(row["level"]), meta)


class Aime(_Rows):
    """The 30 problems of the 2024 contests; answers are whole numbers from 0 to 999."""

    name = "aime24"
    source = Source("aime24/test.jsonl", "HuggingFaceH4/aime_2024", None, "train")

    def problem(self, number: int, row: dict[str, Any]) -> Problem:
        return Problem(f"aime24/{row['id']}", row["problem"], str(int(row["answer"])), self.name)
