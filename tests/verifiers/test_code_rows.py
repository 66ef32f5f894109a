"""References of HumanEval, HumanEval+ and MBPP pass, broken ones fail."""

import asyncio
import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from forethought.schema import Problem
from forethought.verifiers.code import Code


def human_eval(path: Path) -> list[Problem]:
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return [
        Problem(
            row["task_id"],
            row["prompt"],
            meta={
                "prompt": row["prompt"],
                "entry_point": row["entry_point"],
                "tests": {"hidden": row["test"]},
                "reference": row["canonical_solution"],
            },
        )
        for row in rows
    ]


def mbpp(path: Path) -> list[Problem]:
    problems = []
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if 11 <= row["task_id"] <= 510:
            names = re.findall(r"^(?:def|class)\s+(\w+)", row["code"], re.M)
            entry = [name for name in names if re.search(rf"\b{name}\s*\(", row["test_list"][0])][-1]
            tests, setup = {"hidden": row["test_list"]}, row["test_setup_code"]
            meta = {"entry_point": entry, "tests": tests, "setup": setup, "reference": row["code"]}
            problems.append(Problem(f"MBPP/{row['task_id']}", row["text"], meta=meta))
    return problems


def shared(code: Code, problems: Sequence[Problem]) -> int:
    """How many have tests that need the program's process."""
    return sum(code._tests(problem).tests is not None for problem in problems)


async def complaints(code: Code, problems: Sequence[Problem]) -> list[str]:
    found = await asyncio.gather(*(code.validate([problem]) for problem in problems))
    return [text for texts in found for text in texts]


@pytest.mark.slow
def test_references_of_human_eval_pass(benchmark_data: Path, code: Code) -> None:
    problems = human_eval(benchmark_data / "humaneval" / "HumanEval.jsonl.gz")
    assert len(problems) == 164
    assert asyncio.run(complaints(code, problems)) == []
    assert shared(code, problems) == 8


@pytest.mark.slow
def test_references_of_human_eval_plus_pass_but_one(benchmark_data: Path, code: Code) -> None:
    """HumanEval/32 unpacks the candidate's float: no solution passes these tests."""
    pytest.importorskip("numpy")
    problems = human_eval(benchmark_data / "humanevalplus" / "HumanEvalPlus-OriginFmt.jsonl.gz")
    assert len(problems) == 164
    (complaint,) = asyncio.run(complaints(code, problems))
    assert complaint.startswith("HumanEval/32: its own reference does not pass: runtime_error")


@pytest.mark.slow
def test_references_of_mbpp_pass(benchmark_data: Path, code: Code) -> None:
    problems = mbpp(benchmark_data / "mbpp" / "mbpp.jsonl")
    assert len(problems) == 500
    assert asyncio.run(complaints(code, problems)) == []
    assert shared(code, problems) == 1


@pytest.mark.slow
def test_broken_references_fail(benchmark_data: Path, code: Code) -> None:
    """Of every eighth problem of HumanEval: nothing returned, an exception, a syntax error, another name."""

    async def statuses(problem: Problem) -> list[str]:
        source, entry = problem.meta["prompt"] + problem.meta["reference"], problem.meta["entry_point"]
        broken = [
            re.sub(r"\breturn\b", "_ =", source),
            f"{source}\ndef {entry}(*_):\n    raise KeyError(0)",
            f"{source}\n)",
            source.replace(f"def {entry}(", f"def other_{entry}("),
        ]
        return [verdict.status for verdict in await code.ajudge(problem, [f"```python\n{text}\n```" for text in broken])]

    problems = human_eval(benchmark_data / "humaneval" / "HumanEval.jsonl.gz")[::8]

    async def every() -> list[list[str]]:
        return list(await asyncio.gather(*map(statuses, problems)))

    for problem, found in zip(problems, asyncio.run(every()), strict=True):
        assert found == ["wrong"] * 4, problem.id
