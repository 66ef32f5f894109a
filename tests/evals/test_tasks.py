"""Benchmarks: their rows are found or asked for in words, and their gold answers pass."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from forethought.evals.config import build, compose
from forethought.evals.tasks.code import HumanEval, HumanEvalPlus, Mbpp
from forethought.evals.tasks.maths import Aime, Gsm8k, Math500
from forethought.evals.tasks.rows import Source, rows

SOURCE = Source("gsm8k/test.jsonl", "openai/gsm8k", "main", "test")


@pytest.fixture
def folder(benchmark_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETHOUGHT_DATA", str(benchmark_data))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("task", "count", "last"), [(Gsm8k, 1319, "gsm8k/1318"), (Math500, 500, None), (Aime, 30, None)])
def test_gold_answers_pass_and_changed_ones_fail(task: Any, count: int, last: str | None) -> None:
    problems = task().problems()
    assert len({problem.id for problem in problems}) == len(problems) == count
    assert last is None or problems[-1].id == last
    assert all(problem.question and problem.answer for problem in problems)
    assert task().validate() == count


@pytest.mark.usefixtures("folder")
def test_a_reference_solution_is_read_and_right() -> None:
    task = Math500(count=40)
    judge = task.truth()
    for problem in task.problems():
        (verdict,) = asyncio.run(judge.ajudge(problem, [str(problem.meta["solution"])]))
        assert verdict.status == "correct", problem.id
        assert verdict.answer == task.read(str(problem.meta["solution"]))
    judge.close()


def test_answers_that_are_equal_vote_together() -> None:
    task = Gsm8k()
    same = [r"so \boxed{1,000}", r"\boxed{1000}", r"\boxed{1000.0} dollars", r"thus \boxed{\$1000}"]
    assert len({task.read(text) for text in same}) == 1
    assert task.read("no idea") is None
    assert task.read(r"\boxed{1001}") != task.read(r"\boxed{1000}")


def test_rows_of_a_file(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    text = "".join(json.dumps({"question": f"q{i}", "answer": f"because\n#### {i},000"}) + "\n\n" for i in range(3))
    plain.write_text(text, encoding="utf-8")
    with gzip.open(packed, "wt", encoding="utf-8") as file:
        file.write(text)
    assert rows(SOURCE, str(plain)) == rows(SOURCE, str(packed))
    found = Gsm8k(str(packed), count=2).problems()
    assert [(p.id, p.question, p.answer) for p in found] == [("gsm8k/0", "q0", "0,000"), ("gsm8k/1", "q1", "1,000")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "q", "answer": "#### 1"}\n{"que', "line 2"),
        ("[1]", "line 1: not an object"),
        ('{"question": "q"}', "'answer'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Gsm8k(str(tmp_path / "a.jsonl")).problems()


def test_rows_that_are_nowhere_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETHOUGHT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"gsm8k/test\.jsonl"):
        Gsm8k().problems()
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl: no such file"):
        Gsm8k("./nothing.jsonl").problems()
    monkeypatch.delenv("FORETHOUGHT_DATA")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FileNotFoundError, match=r"FORETHOUGHT_DATA.*forethought\[eval\]"):
        Gsm8k().problems()


def test_rows_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Datasets:
        @staticmethod
        def load_dataset(*what: Any, **more: Any) -> list[dict[str, str]]:
            asked.append((what, more))
            if what[0] == "org/none":
                raise RuntimeError("not there\nand more")
            return [{"question": "q", "answer": "#### 7"}]

    monkeypatch.delenv("FORETHOUGHT_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert Gsm8k().problems()[0].answer == "7"
    assert Gsm8k("org/other").problems()[0].question == "q"
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"}), (("org/other", "main"), {"split": "test"})]
    with pytest.raises(FileNotFoundError, match=r"org/none: .*\(not there\)$"):
        Gsm8k("org/none").problems()


@pytest.mark.parametrize("option", ["gsm8k", "math500", "aime", "nano_math", "nano_code", "humaneval", "humanevalplus", "mbpp"])
def test_configs_build(option: str) -> None:
    assert build(compose("eval", [f"task={option}"]).task).name.startswith(option)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("task", "count"), [(HumanEval, 164), (HumanEvalPlus, 164), (Mbpp, 500)])
def test_code_is_asked_for_and_judged(task: Any, count: int) -> None:
    problems = task().problems()
    assert len({problem.id for problem in problems}) == len(problems) == count
    first = problems[0]
    source = first.meta.get("prompt", "") + first.meta["reference"]
    judge = task().truth()
    try:
        right, wrong = asyncio.run(judge.ajudge(first, [f"Here:\n```python\n{source}\n```", "```python\ndef f(): pass\n```"]))
    finally:
        judge.close()
    assert (right.status, wrong.status) == ("correct", "wrong")
    assert task().read(f"```python\n{source}\n```").strip() == source.strip().replace("\r\n", "\n")


@pytest.mark.parametrize(("options", "message"), [({"count": 0}, "task.count=0"), ({"prompt": "no hole"}, "question")])
def test_wrong_values_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gsm8k(**options)
