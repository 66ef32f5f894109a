"""Maths benchmarks with short answers: GSM8K (arXiv 2110.14168), MATH-500 (2103.03874, 2305.20050), AIME 2024.

Answers are compared by :class:`~forethought.verifiers.maths.Maths`. The rows are not part of this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from ...schema import Problem
from ...verifiers.exact import key
from ...verifiers.extract import final_answer
from ...verifiers.maths import Maths
from .forms import Form
from .rows import RowsTask, Source, rows

BOXED = Form("{question}\n\nReason step by step, and put the final answer within \\boxed{}.")
SHOTS = 5


class _ShortAnswer(RowsTask):
    """Its answers are short and compared as mathematics."""

    forms = {"boxed": BOXED}

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


class Gsm8k(_ShortAnswer):
    """1,319 grade-school word problems. Row 1042 has a wrong answer (3, should be 3.5), which is left as it is."""

    name = "gsm8k"
    source = Source("gsm8k/test.jsonl", "openai/gsm8k", "main", "test")
    forms = {"boxed": BOXED, "5-shot": Form("{shots}Question: {question}\nAnswer:", stop=("Question:",), raw=True)}

    def problem(self, number: int, row: dict[str, Any]) -> Problem:
        solution, _, answer = row["answer"].rpartition("####")
        return Problem(f"gsm8k/{number}", row["question"], answer.strip(), self.name, meta={"solution": solution.strip()})

    def fields(self, problem: Problem) -> Mapping[str, str]:
        return {"shots": self._shots} if "{shots}" in self.form.ask else {}

    @cached_property
    def _shots(self) -> str:
        """The first rows of the training split."""
        found = rows(Source("gsm8k/train.jsonl", "openai/gsm8k", "main", "train"), None)[:SHOTS]
        return "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in found)


class Math500(_ShortAnswer):
    """500 competition problems of the MATH test set, of levels 1 to 5."""

    name = "math500"
    source = Source("math500/test.jsonl", "HuggingFaceH4/MATH-500", None, "test")

    def problem(self, number: int, row: dict[str, Any]) -> Problem:
        meta = {"solution": row["solution"], "subject": row["subject"]}
        return Problem(f"math500/{row['unique_id']}", row["problem"], row["answer"], self.name, int(row["level"]), meta)


class Aime(_ShortAnswer):
    """The 30 problems of the 2024 contests; answers are whole numbers from 0 to 999."""

    name = "aime24"
    source = Source("aime24/test.jsonl", "HuggingFaceH4/aime_2024", None, "train")

    def problem(self, number: int, row: dict[str, Any]) -> Problem:
        return Problem(f"aime24/{row['id']}", row["problem"], str(int(row["answer"])), self.name)
