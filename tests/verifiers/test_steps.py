"""Steps of a solution: paragraphs of the thought and of what follows it."""

import random
import re

import pytest

from forethought.nano.problems import LEVELS, generate
from forethought.verifiers.steps import solution_of, steps_of


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", []),
        ("  \n\n \n", []),
        ("one", ["one"]),
        ("one\ntwo", ["one\ntwo"]),
        ("one\n\ntwo", ["one", "two"]),
        ("one \n \t \n\n\n  two\n\n", ["one", "two"]),
        ("one\r\n\r\ntwo", ["one", "two"]),
        ("<think>\none\n\ntwo\n</think>\nSo 3.", ["one", "two", "So 3."]),
        ("<think>one</think>two", ["one", "two"]),
        ("<think>\none\n\ntw", ["one", "tw"]),
        ("<think></think>", []),
        ("a <thinking> b", ["a <thinking> b"]),
    ],
)
def test_steps(text: str, steps: list[str]) -> None:
    assert steps_of(text) == steps


@pytest.mark.parametrize("level", LEVELS)
def test_steps_of_what_a_nano_model_writes(level: int) -> None:
    solution = generate(level, 7, "train").meta["solution"]
    thought, answer = re.fullmatch(r"<think>\n(.*)\n</think>\n(.*)", solution, re.S).groups()
    assert steps_of(solution) == [*thought.split("\n\n"), answer]
    assert solution_of(solution) == f"{thought}\n\n{answer}"


def test_steps_of_a_longer_text_begin_with_those_of_a_shorter() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(["a", " ", "\n", "\n\n", "<think>", "</think>"], k=20))
        whole = steps_of(text)
        assert steps_of("\n\n".join(whole)) == whole
        for cut in range(len(text)):
            *closed, _ = steps_of(text[:cut]) or [""]
            assert whole[: len(closed)] == closed


def test_time_is_linear_in_blank_text() -> None:
    assert steps_of("a" + "\n \t" * 200_000 + "b") == ["a", "b"]
