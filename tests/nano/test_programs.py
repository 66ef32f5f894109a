"""The generator of code problems: references run and pass, every operation matters, the splits never meet, and few visible
tests let some wrong programs through, as few tests do."""

from __future__ import annotations

import copy
import itertools
import random
import re
from typing import Any

import pytest

from forethought.nano.operations import from_list, from_string, on_list, on_number, on_string
from forethought.nano.problems import split_of
from forethought.nano.programs import HIDDEN, LEVELS, generate, problems
from forethought.schema import Problem
from forethought.verifiers.programs import readings


def draws(split: str, count: int) -> list[Problem]:
    return list(itertools.islice(problems(split), count))  # type: ignore[arg-type]


def passes(source: str, problem: Problem, tests: str) -> bool:
    """Whether trusted code gives what the tests expect, types included."""
    space: dict[str, Any] = {}
    exec(source, space)
    function = space[problem.meta["entry_point"]]
    try:
        return all(same(function(*copy.deepcopy(args)), want) for args, want in problem.meta["tests"][tests])
    except (ValueError, IndexError, TypeError, ZeroDivisionError):
        return False


def same(value: object, want: object) -> bool:
    return type(value) is type(want) and value == want


@pytest.mark.parametrize("split", ["train", "test"])
def test_references_pass_all_tests_and_are_what_the_solution_ends_with(split: str) -> None:
    for problem in draws(split, 400):
        reference = problem.meta["reference"]
        assert passes(reference, problem, "visible"), reference
        assert passes(reference, problem, "hidden"), reference
        solution = problem.meta["solution"]
        assert re.fullmatch(r"<think>\n[^\n]+(\n\n[^\n]+)?\n</think>\n```python\n" + re.escape(reference) + "```", solution)
        assert readings(solution, problem.meta["entry_point"]) == [reference]


def test_the_prompt_is_python_and_shows_visible_tests_alone() -> None:
    for problem in draws("test", 200):
        exec(problem.meta["prompt"] + "    return None\n", {})
        assert problem.meta["prompt"].rstrip("\n") == problem.question
        shown = re.findall(r">>> (\w+)\((.*)\)\n    (.*)", problem.question)
        assert len(shown) in (1, 2)
        for (name, given, want), (args, expected) in zip(shown, problem.meta["tests"]["visible"], strict=False):
            assert (name, eval(given), eval(want)) == (problem.meta["entry_point"], args[0], expected)


def test_visible_tests_are_few_and_hidden_ones_many_with_edges() -> None:
    for problem in draws("test", 200):
        visible, hidden = (problem.meta["tests"][name] for name in ("visible", "hidden"))
        assert 2 <= len(visible) <= 3
        assert len(hidden) >= HIDDEN
        inputs = [args[0] for args, _ in hidden]
        assert len({repr(value) for value in inputs}) == len(inputs)
        edge: Any = 0 if isinstance(inputs[0], int) else type(inputs[0])()
        assert edge in inputs
        assert len({repr(want) for _, want in hidden}) >= 4


@pytest.mark.parametrize("level", LEVELS)
def test_level_is_the_number_of_operations_and_each_is_asked_for(level: int) -> None:
    for seed in range(60):
        problem = generate(level, seed)
        assert problem.meta["skeleton"].count(" | ") == level
        plan = re.search(r"<think>\n(.*)\n</think>", problem.meta["solution"], re.DOTALL)
        assert plan is not None
        assert len(re.findall(r"First |Then ", plan[1])) == level


def mutants(source: str) -> list[str]:
    """Programs with one sign changed: boundaries, operations and constants."""
    swaps = [(" > ", " >= "), (" >= ", " > "), (" < ", " <= "), (" <= ", " < "), (" + ", " - "), (" - ", " + "), ("max(", "min(")]
    found = []
    for old, new in swaps:
        found += [source[: m.start()] + new + source[m.end() :] for m in re.finditer(re.escape(old), source)]
    for match in re.finditer(r"(?<=[-+*%<>=] )\d+", source):
        found.append(source[: match.start()] + str(int(match[0]) + 1) + source[match.end() :])
    return found


def test_visible_tests_accept_some_wrong_programs_most_of_all_at_boundaries() -> None:
    """Measured against the hidden tests, which few of those programs pass."""
    wrong, accepted, boundary, boundary_accepted = 0, 0, 0, 0
    for problem in draws("test", 300):
        reference = problem.meta["reference"]
        for mutant in mutants(reference):
            if passes(mutant, problem, "hidden"):
                continue
            changed = sum(a != b for a, b in zip(re.findall("[<>]=?", mutant), re.findall("[<>]=?", reference), strict=True))
            good = passes(mutant, problem, "visible")
            wrong, accepted = wrong + 1, accepted + good
            boundary, boundary_accepted = boundary + changed, boundary_accepted + changed * good
    assert wrong > 500
    assert 0.03 < accepted / wrong < 0.35
    assert boundary_accepted / boundary > 1.5 * accepted / wrong


def test_edges_catch_most_boundary_errors() -> None:
    """Of conditions on items that are kept; in others, equal ones often end the same either way."""
    caught = total = 0
    for problem in draws("train", 300):
        for match in re.finditer(r" (?:>|<) (?=-?\d+[:\])])", problem.meta["reference"]):
            total += 1
            source = problem.meta["reference"]
            caught += not passes(f"{source[: match.start()]} {match[0].strip()}= {source[match.end() :]}", problem, "hidden")
    assert total > 20
    assert caught / total > 0.5


def test_the_splits_are_disjoint_and_there_are_many_problems() -> None:
    train, test = draws("train", 1500), draws("test", 400)
    seen = [{p.meta["skeleton"] for p in part} for part in (train, test)]
    assert not seen[0] & seen[1]
    assert all(split_of(p.meta["skeleton"]) == "test" for p in test)
    for level in LEVELS[2:]:
        skeletons = [p.meta["skeleton"] for p in train if p.level == level]
        assert len(set(skeletons)) > 0.98 * len(skeletons)


@pytest.mark.parametrize("make", [on_list, from_list, on_string, from_string, on_number])
def test_a_key_says_all_that_an_operation_does(make: Any) -> None:
    """Two of one key agree on every input, so the split cannot be got round by other words."""
    rng, known = random.Random(0), dict[str, Any]()
    inputs: list[Any] = {
        on_number: [*range(-30, 60)],
        on_list: [[rng.randint(-15, 30) for _ in range(n)] for n in range(12)],
        on_string: ["".join(rng.choices("abcdeinorst", k=n)) for n in range(30)],
    }[{from_list: on_list, from_string: on_string}.get(make, make)]
    for _ in range(4000):
        operation = make(rng)
        results = [operation.run(copy.deepcopy(value)) for value in inputs]
        assert known.setdefault(operation.key, results) == results, operation.key


def test_deterministic_and_marked() -> None:
    assert generate(4, 7, "test") == generate(4, 7, "test") != generate(4, 8, "test")
    problem = generate(4, 7, "test")
    assert (problem.id, problem.task, problem.level) == ("nano_code-test-4-7", "nano_code", 4)
    assert Problem.from_json(problem.to_json()) == problem


@pytest.mark.parametrize(("level", "split"), [(0, "train"), (6, "test"), (1, "dev")])
def test_bad_arguments(level: int, split: str) -> None:
    with pytest.raises(ValueError, match=str(level) if split != "dev" else "dev"):
        generate(level, 0, split)  # type: ignore[arg-type]
