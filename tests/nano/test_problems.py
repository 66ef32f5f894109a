"""The problem generator: answers follow from the text, levels count steps, and the two splits never meet."""

from __future__ import annotations

import itertools
import re

import pytest

from forethought.nano.problems import LARGEST, LEVELS, apply, generate, problems, read_answer, split_of
from forethought.schema import Problem

EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def draws(split: str, count: int) -> list[Problem]:
    return list(itertools.islice(problems(split), count))  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_stated_equation_holds_but_the_planted_slips(split: str) -> None:
    slipped = 0
    for problem in draws(split, 600):
        text, slips = problem.meta["solution"], problem.meta["slips"]
        for match in EQUATION.finditer(text):
            a, op, b, stated = match.groups()
            planted = [match.start(4), match.end(4)] in slips
            assert (apply(int(a), op, int(b)) != int(stated)) == planted, match.group()
            assert 0 < apply(int(a), op, int(b)) <= LARGEST
        for start, end in slips:
            slipped += 1
            assert re.match(r"\.\n\n[^\n]*check[^\n]*\n\n[^\n]*, not " + text[start:end] + r"\.\n", text[end:])
        equations = [m for m in EQUATION.finditer(text) if [m.start(4), m.end(4)] not in slips]
        assert equations[-1].group(4) == problem.answer == read_answer(text)
    assert slipped > 25


def test_a_solution_uses_the_numbers_of_its_question() -> None:
    """Each operand was told, or is an earlier result, or is the 2 or 3 of a word (twice, half, a third…)."""
    for problem in draws("train", 400):
        known = {int(n) for n in re.findall(r"\d+", problem.question)} | {2, 3, 4, 5}
        for a, op, b, _ in EQUATION.findall(problem.meta["solution"]):
            assert {int(a), int(b)} <= known, problem
            known.add(apply(int(a), op, int(b)))


@pytest.mark.parametrize("level", LEVELS)
def test_level_is_the_number_of_steps(level: int) -> None:
    for seed in range(30):
        solution = generate(level, seed).meta["solution"]
        plain = re.split(r"[^\n]*(?:double-check|over this again|once more)", solution)[0]
        steps = [part for part in plain.split("\n\n") if EQUATION.search(part)]
        redone = sum("check" in part for part in plain.split("\n\n"))
        assert len(steps) - redone == level


def test_the_splits_are_disjoint_and_problems_varied() -> None:
    train, test = draws("train", 3000), draws("test", 800)
    seen = [{p.meta["skeleton"] for p in part} for part in (train, test)]
    assert not seen[0] & seen[1]
    assert not {p.question for p in train} & {p.question for p in test}
    assert len(seen[0]) > 0.95 * len(train)
    assert len(seen[1]) > 0.85 * len(test)
    assert all(split_of(p.meta["skeleton"]) == "test" for p in test)


def test_deterministic_and_marked() -> None:
    assert generate(4, 7, "test") == generate(4, 7, "test") != generate(4, 8, "test")
    problem = generate(4, 7, "test")
    assert (problem.id, problem.task, problem.level) == ("nano_math-test-4-7", "nano_math", 4)
    assert Problem.from_json(problem.to_json()) == problem


def test_solutions_reflect_now_and_then_and_end_in_a_box() -> None:
    solutions = [p.meta["solution"] for p in draws("train", 1000)]
    assert all(re.fullmatch(r"<think>\n.+\n</think>\n[^\n]+\\boxed\{\d+\}\.", s, re.DOTALL) for s in solutions)
    assert 0.3 < sum("check" in s or "again" in s for s in solutions) / 1000 < 0.8
    assert 0.1 < sum("the whole thing" in s or "over this again" in s or "once more" in s for s in solutions) / 1000 < 0.3


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{42}", "42"),
        ("\\boxed{1} or \\boxed{ 007 }", "7"),
        ("\\boxed{-3}", "-3"),
        ("42", None),
        ("\\boxed{4 2}", None),
        ("", None),
    ],
)
def test_read_answer(text: str, answer: str | None) -> None:
    assert read_answer(text) == answer


@pytest.mark.parametrize(("level", "split"), [(0, "train"), (9, "test"), (1, "dev")])
def test_bad_arguments(level: int, split: str) -> None:
    with pytest.raises(ValueError, match=str(level) if split != "dev" else "dev"):
        generate(level, 0, split)  # type: ignore[arg-type]
