"""Code benchmarks in Python: HumanEval (arXiv 2107.03374), HumanEval+ (2305.01210), MBPP's test split (2108.07732).

Programs are judged by running them in a sandbox; see :class:`~forethought.verifiers.code.Code`. The rows are not part of this
package.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from ...schema import Problem
from ...verifiers.code import Code
from ...verifiers.programs import readings
from .rows import RowsTask, Source


class _Programs(RowsTask):
    """Its answers are Python functions."""

    known_bad: Sequence[str] = ()
    """Problems whose own reference cannot pass their tests."""

    def read(self, text: str) -> str | None:
        return next(iter(readings(text)), None)

    def truth(self) -> Code:
        return Code("hidden")

    def validate(self) -> int:
        judge, found = self.truth(), self.problems()
        try:
            complaints = asyncio.run(judge.validate(problem for problem in found if problem.id not in self.known_bad))
        finally:
            judge.close()
        if complaints:
            raise ValueError(complaints[0])
        return len(found)


class HumanEval(_Programs):
    """164 functions to complete from signature and docstring."""

    name = "humaneval"
    source = Source("humaneval/HumanEval.jsonl.gz", "openai/openai_humaneval", None, "test")
    default_prompt = "Complete this Python function. Answer with the whole function in a ```python block.\n\n{question}"

    def problem(self, number: int, row: dict[str, Any]) -> Problem:
        meta = {
            "prompt": row["prompt"], "entry_point": row["entry_point"], "tests": {"hidden": row["test"]},
            "reference": row["canonical_solution"],
        }  # fmt: skip
        return Problem(row["task_id"], row["prompt"], task=self.name, meta=meta)


class HumanEvalPlus(HumanEval):
    """The same with some 80 times as many tests. HumanEval/32 cannot pass: its tests unpack a float."""

    name = "humanevalplus"
    source = Source("humanevalplus/HumanEvalPlus-OriginFmt.jsonl.gz", "evalplus/humanevalplus", None, "test")
    known_bad = ("HumanEval/32",)


class Mbpp(_Programs):
    """500 short functions, task ids 11 to 510, each with three tests, which the prompt shows."""

    name = "mbpp"
    source = Source("mbpp/mbpp.jsonl", "google-research-datasets/mbpp", "full", "test")
    default_prompt = "{question}\n\nAnswer with the whole function in a ```python block."

    def keep(self, row: dict[str, Any]) -> bool:
        return bool(11 <= row["task_id"] <= 510)

    def problem(self, number: int, row: dict[str, Any]) -> Problem:
        names = re.findall(r"^(?:def|class)\s+(\w+)", row["code"], re.M)
        entry = [name for name in names if re.search(rf"\b{name}\s*\(", row["test_list"][0])][-1]
        shown = "\n".join(row["test_list"])
        meta = {
            "entry_point": entry, "tests": {"hidden": row["test_list"]}, "setup": row["test_setup_code"],
            "reference": row["code"],
        }  # fmt: skip
        return Problem(f"MBPP/{row['task_id']}", f"{row['text']} Your code should pass these tests:\n\n{shown}", task=self.name,
                       meta=meta)  # fmt: skip
