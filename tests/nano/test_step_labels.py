"""Labels of steps by hand-made solutions: what is wrong stays wrong until it is taken back."""

from __future__ import annotations

import random

import pytest

from forethought.nano.judging import spoilt
from forethought.nano.problems import generate
from forethought.nano.step_labels import labels
from forethought.schema import Problem
from forethought.verifiers.steps import steps_of

PROBLEM = Problem(
    "p", "Tom has 4 bags of 6 nuts. He buys 10 more. He loses half.", "17", meta={
        "steps": [["4 bags of 6", 4, "*", 6], ["He buys 10", 24, "+", 10], ["Half is left", 34, "/", 2]],
    },
)  # fmt: skip
A, B, C, END = "4 bags of 6: 4 * 6 = 24.", "He buys 10: 24 + 10 = 34.", "34 / 2 = 17.", "The answer is \\boxed{17}."


@pytest.mark.parametrize(
    ("steps", "good"),
    [
        ([A, B, C, END], "++++"),
        (["Tom starts with 4 bags.", A, B, "Wait, let me check.", "24 + 10 = 34. Good.", C, END], "+++++++"),
        (["6 * 4 = 24.", "10 + 24 = 34.", C, END], "++++"),
        ([A, B, C, "The answer is \\boxed{18}."], "+++-"),
        # a slip, and what follows from it
        ([A, "24 + 10 = 35.", "35 / 2 = 17.", END], "+---"),
        ([A, "24 + 10 = 44.", "44 / 2 = 22.", "The answer is \\boxed{22}."], "+---"),
        # a slip taken back
        ([A, "24 + 10 = 35.", "Hmm, let me check this step.", "24 + 10 = 34, not 35.", C, END], "+--+++"),
        ([A, "24 + 10 = 35.", "Wait.", "24 + 10 = 35. Good.", C, END], "+-----"),
        # right arithmetic that is not of this problem; half is halved the wrong way round
        ([A, "24 - 10 = 14.", "14 / 2 = 7.", "The answer is \\boxed{7}."], "+---"),
        ([A, B, "2 / 34 = 0.", "The answer is \\boxed{0}."], "++--"),
        # a step left out, seen at the next
        ([A, "24 / 2 = 12.", "The answer is \\boxed{12}."], "+--"),
        # the whole thing gone over again, with success
        ([A, "24 - 10 = 14.", "14 / 2 = 7.", "Let me double-check the whole thing.", A, B, C, END], "+----+++"),
        # and gone over wrong
        ([A, B, C, "Let me double-check the whole thing.", A, "24 + 10 = 33.", C, END], "+++++---"),
        (["34 / 2 = 17.", END], "++"),
        (["1 / 0 = 3."], "-"),
    ],
)
def test_hand_made(steps: list[str], good: str) -> None:
    for text in ("\n\n".join(steps), "<think>\n" + "\n\n".join(steps[:-1]) + "\n</think>\n" + steps[-1]):
        found = labels(PROBLEM, text)
        assert [step for step, _ in found] == steps
        assert "".join("-+"[label] for _, label in found) == good


def test_written_solutions_are_good_but_for_their_slips_and_spoilt_ones_end_bad() -> None:
    rng = random.Random(0)
    for seed in range(300):
        problem = generate(1 + seed % 8, seed)
        text = problem.meta["solution"]
        found = labels(problem, text)
        assert [step for step, _ in found] == steps_of(text)
        assert found[-1][1]
        bad = [step for step, good in found if not good]
        assert len(bad) == 2 * len(problem.meta["slips"])
        attempt = spoilt(rng, problem)
        assert labels(problem, attempt.text)[-1][1] == attempt.right
