"""Problems with tests, and texts put to a code verifier."""

import asyncio
from typing import Any

from forethought.schema import Problem, Verdict
from forethought.verifiers.code import Code


def judge(code: Code, problem: Problem, *texts: str) -> list[Verdict]:
    return asyncio.run(code.ajudge(problem, texts))


def problem(tests: object, entry_point: str | None = "add", **meta: Any) -> Problem:
    return Problem("p", "?", meta={"entry_point": entry_point, "tests": {"hidden": tests}, **meta})
