"""Code benchmarks in Python: HumanEval (arXiv 2107.03374), HumanEval+ (2305.01210), MBPP's test split (2108.07732).

Programs are judged by running them in a sandbox; see :class:`~forethought.verifiers.code.Code`. The rows are not part of this
package.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

from ...schema import Problem
from ...verifiers.code import Code
from ...verifiers.programs import readings
from .forms import Form, evalplus
from .mbpp_plus import IDS
from .rows import RowsTask, Source, rows

Subset = Literal["test", "evalplus"]


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
    forms = {
        "plain": Form("Complete this Python function. Answer with the whole function in a ```python block.\n\n{question}"),
        "evalplus": evalplus("{code}"),
        "complete": Form("{code}", stop=("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint("), raw=True),  # of the paper
    }  # fmt: skip

    def fields(self, problem: Problem) -> Mapping[str, str]:
        return {"code": problem.question.strip()}  # models were trained on line ends that begin a token, not on such that end one

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
    """Short functions, each with three tests. ``subset``: "test", the 500 of the test split, task ids 11 to 510; or "evalplus",
    the 378 of all 974 that EvalPlus keeps, with these rows' own words and tests (EvalPlus words half of them anew).
    """

    name = "mbpp"
    source = Source("mbpp/mbpp.jsonl", "google-research-datasets/mbpp", "full", "test")
    forms = {
        "plain": Form("{question}\n\nAnswer with the whole function in a ```python block."),
        "evalplus": evalplus('"""\n{text}\n{test}\n"""'),
        "3-shot": Form("{shots}{task}", stop=("[DONE]",), raw=True),  # of the paper
        "bigcode": Form(
            '"""\n{text}\n{test}\n"""\n', stop=("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n```"), raw=True
        ),
    }  # fmt: skip

    def __init__(
        self, path: str | None = None, count: int | None = None, prompt: str | None = None, subset: Subset = "test"
    ) -> None:
        if subset not in get_args(Subset):
            raise ValueError(f"task.subset={subset!r}: one of {', '.join(get_args(Subset))}")
        super().__init__(path, count, prompt)
        self.subset = subset

    def rows(self) -> list[dict[str, Any]]:
        """A file has all 974. On the Hub they are in four splits, of which EvalPlus takes some of each."""
        if self.subset == "test":
            return super().rows()
        parts = [rows(self.source._replace(split=split), self.path) for split in ("prompt", "test", "validation", "train")]
        return list({row["task_id"]: row for part in parts for row in part}.values())

    def keep(self, row: dict[str, Any]) -> bool:
        return row["task_id"] in IDS if self.subset == "evalplus" else bool(11 <= row["task_id"] <= 510)

    def problem(self, number: int, row: dict[str, Any]) -> Problem:
        names = re.findall(r"^(?:def|class)\s+(\w+)", row["code"], re.M)
        entry = [name for name in names if re.search(rf"\b{name}\s*\(", row["test_list"][0])][-1]
        meta = {
            "entry_point": entry, "tests": {"hidden": row["test_list"]}, "setup": row["test_setup_code"],
            "reference": row["code"], "text": row["text"],
        }  # fmt: skip
        return Problem(f"MBPP/{row['task_id']}", _mbpp_question(row), task=self.name, meta=meta)

    def fields(self, problem: Problem) -> Mapping[str, str]:
        text, tests = problem.meta["text"], problem.meta["tests"]["hidden"]
        few = {"shots": self._shots, "task": f"{_SHOT}{problem.question}\n[BEGIN]\n"} if "{shots}" in self.form.ask else {}
        return {"text": text, "test": tests[0], **few}

    @cached_property
    def _shots(self) -> str:
        """The paper's three examples, task ids 2 to 4."""
        found = {row["task_id"]: row for row in rows(self.source._replace(split="prompt"), self.path)}
        if missing := {2, 3, 4} - set(found):
            raise ValueError(f"task.prompt=3-shot: there is no row with task_id {min(missing)}, one of its examples")
        shown = ((_mbpp_question(found[i]), found[i]["code"].replace("\r\n", "\n").strip()) for i in (2, 3, 4))
        return "".join(f"{_SHOT}{question}\n[BEGIN]\n{code}\n[DONE]\n\n" for question, code in shown)


_SHOT = "You are an expert Python programmer, and here is your task: "


def _mbpp_question(row: Mapping[str, Any]) -> str:
    shown = "\n".join(row["test_list"])
    return f"{row['text']} Your code should pass these tests:\n\n{shown}"
