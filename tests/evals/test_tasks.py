"""Benchmarks: their rows are found or asked for in words, and their gold answers pass."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from forethought.evals.config import build, compose
from forethought.evals.tasks.code import HumanEval, HumanEvalPlus, Mbpp
from forethought.evals.tasks.forms import chosen
from forethought.evals.tasks.maths import Aime, Gsm8k, Math500
from forethought.evals.tasks.nano_math import NanoMath
from forethought.evals.tasks.rows import Source, rows
from forethought.schema import Problem

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


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (Gsm8k, {"count": 0}, "task.count=0"),
        (Gsm8k, {"prompt": "no hole"}, "'no hole': one of boxed, 5-shot, or text with {question} in it"),
        (Mbpp, {"prompt": "8-shot"}, "'8-shot': one of plain, evalplus, 3-shot, bigcode, or"),
        (HumanEvalPlus, {"prompt": ""}, "'': one of plain, evalplus, complete, or"),
        (NanoMath, {"prompt": "boxed"}, "task.prompt='boxed'"),
        (Mbpp, {"subset": "sanitized"}, "task.subset='sanitized': one of test, evalplus"),
    ],
)
def test_wrong_values_are_named(task: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        task(**options)


# ---- forms ----------------------------------------------------------------------------------------------------------------

ASKED = "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n```\n"
BEGUN = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:\n```python\n"
)


def put(task: Any, problem: Problem) -> str:
    return str(task.form.fill(problem, task.fields(problem)))


def mbpp_rows(folder: Path, numbers: Sequence[int]) -> str:
    rows_of = [
        {"task_id": i, "text": f"Write f{i}.", "code": f"def f{i}(x):\r\n  return {{x}}", "test_setup_code": "",
         "test_list": [f"assert f{i}(1) == {{1}}", f"assert f{i}(2) == {{2}}", f"assert f{i}(3) == {{3}}"]}
        for i in numbers
    ]  # fmt: skip
    file = folder / "mbpp.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of), encoding="utf-8")
    return str(file)


def test_evalplus_shows_one_test_and_begins_the_answer(tmp_path: Path) -> None:
    task = Mbpp(mbpp_rows(tmp_path, [2, 3, 4, 11]), prompt="evalplus")
    (problem,) = task.problems()
    assert put(task, problem) == f'{ASKED}"""\nWrite f11.\nassert f11(1) == {{1}}\n"""\n```\n'
    assert (task.form.start, task.form.raw) == (BEGUN, False)
    assert {"\n```", "\nassert "} < set(task.form.stop)


def test_evalplus_shows_the_function_without_the_lines_around_it(tmp_path: Path) -> None:
    prompt = '\n\ndef f(x):\n    """ {x} and \\1 stay. """\n'
    row = {"task_id": "a", "prompt": prompt, "entry_point": "f", "test": "def check(c): pass", "canonical_solution": ""}
    (tmp_path / "a.jsonl").write_text(json.dumps(row), encoding="utf-8")
    for kind in (HumanEval, HumanEvalPlus):
        task = kind(str(tmp_path / "a.jsonl"), prompt="evalplus")
        (problem,) = task.problems()
        assert put(task, problem) == f"{ASKED}{prompt.strip()}\n```\n"
    complete = HumanEval(str(tmp_path / "a.jsonl"), prompt="complete")
    assert put(complete, problem) == prompt.strip()
    assert complete.form.raw


def test_few_shots_are_the_papers_own(tmp_path: Path) -> None:
    task = Mbpp(mbpp_rows(tmp_path, [1, 2, 3, 4, 5, 11]), prompt="3-shot")
    (problem,) = task.problems()

    def shown(i: int) -> str:
        tests = "\n".join(f"assert f{i}({x}) == {{{x}}}" for x in (1, 2, 3))
        asked = f"You are an expert Python programmer, and here is your task: Write f{i}."
        return f"{asked} Your code should pass these tests:\n\n{tests}\n"

    solved = [f"{shown(i)}[BEGIN]\ndef f{i}(x):\n  return {{x}}\n[DONE]\n\n" for i in (2, 3, 4)]
    assert put(task, problem) == "".join(solved) + f"{shown(11)}[BEGIN]\n"
    assert (task.form.stop, task.form.raw) == (("[DONE]",), True)
    short = Mbpp(mbpp_rows(tmp_path, [2, 4, 11]), prompt="3-shot")
    with pytest.raises(ValueError, match="no row with task_id 3"):
        put(short, short.problems()[0])


@pytest.mark.usefixtures("folder")
def test_gsm8k_shots_are_of_the_training_split() -> None:
    task = Gsm8k(count=2, prompt="5-shot")
    first, second = task.problems()
    text = put(task, second)
    assert text.startswith("Question: Natalia sold clips to 48 of her friends in April")
    assert text.count("\n#### ") == 5
    assert text.endswith(f"\n\nQuestion: {second.question}\nAnswer:")
    assert first.question not in text


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("task", [HumanEval, HumanEvalPlus, Mbpp, Gsm8k, Math500, Aime])
def test_every_form_fills_its_holes(task: Any) -> None:
    for name, form in task.forms.items():
        asking = task(prompt=name, count=3)
        assert asking.form is form
        for problem in asking.problems():
            text = put(asking, problem)
            assert (problem.meta.get("text") or problem.question.strip()) in text
            for hole in set(re.findall(r"\{(\w+)\}", form.ask)):
                assert f"{{{hole}}}" not in text, name


def test_words_of_ones_own_keep_their_braces() -> None:
    form = chosen("{question} in \\boxed{} or {this}", {})
    assert form.fill(Problem("1", "Is {question} {x}?"), {}) == "Is {question} {x}? in \\boxed{} or {this}"
    assert (form.start, form.stop, form.raw) == ("", (), False)


@pytest.mark.usefixtures("folder")
def test_the_subset_of_evalplus() -> None:
    problems = Mbpp(subset="evalplus").problems()
    assert len({problem.id for problem in problems}) == len(problems) == 378
    assert (problems[0].id, problems[-1].id) == ("MBPP/2", "MBPP/809")
    assert not {"MBPP/1", "MBPP/83", "MBPP/461", "MBPP/783"} & {problem.id for problem in problems}


def test_the_subset_is_in_all_splits_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Datasets:
        @staticmethod
        def load_dataset(*_: Any, split: str) -> list[dict[str, Any]]:
            asked.append(split)
            number = {"prompt": 2, "test": 11, "validation": 555, "train": 602}[split]
            return [
                {"task_id": number, "text": "t", "code": "def f(): 1", "test_setup_code": "", "test_list": ["assert f() == 1"]}
            ]

    monkeypatch.delenv("FORETHOUGHT_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert [problem.id for problem in Mbpp(subset="evalplus").problems()] == ["MBPP/2", "MBPP/11", "MBPP/555", "MBPP/602"]
    assert [problem.id for problem in Mbpp().problems()] == ["MBPP/11"]
    assert asked == ["prompt", "test", "validation", "train", "test"]
