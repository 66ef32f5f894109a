"""Planted errors spoil the answer and nothing else, and what a judge says of them is true."""

from __future__ import annotations

import random
import re

import pytest

from forethought.nano.judging import DIRECT, Attempt, chain, judged, spoilt, steps
from forethought.nano.mix import judging
from forethought.nano.problems import apply, generate, read_answer
from forethought.verifiers import generative
from forethought.verifiers.steps import solution_of

EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def test_a_planted_error_is_one_and_spoils_the_answer() -> None:
    rng, single, slips = random.Random(0), 0, 0
    for seed in range(300):
        problem = generate(1 + seed % 8, seed)
        attempt = spoilt(rng, problem)
        if attempt.right:
            single += 1
            continue
        assert read_answer(attempt.text) == str(attempt.results[-1]) != problem.answer
        text = re.split(r"\n\n[^\n]*(?:double-check|over this again|once more)", attempt.text)[0]
        taken_back = [m[0] for m in EQUATION.finditer(text) if f"not {m[4]}." in text]
        false = {m[0] for m in EQUATION.finditer(text) if apply(int(m[1]), m[2], int(m[3])) != int(m[4])} - {*taken_back}
        assert len(false) <= 1, attempt.text
        slips += len(false)
    assert single < 10
    assert 80 < slips < 220


@pytest.mark.parametrize("right", [True, False])
def test_a_chain_compares_up_to_the_first_difference(right: bool) -> None:
    problem = generate(5, 3)
    own = [step.result for step in steps(problem)]
    stated = own if right else [*own[:2], own[2] + 1, *own[3:]]
    text = chain(problem, stated, right)
    parts = re.fullmatch(r"<think>\n(.*)\n</think>\nIs the answer correct\? (Yes|No)", text, re.DOTALL)
    assert parts is not None
    lines = parts[1].split("\n\n")
    assert parts[2] == ("Yes" if right else "No")
    assert len(lines) == (5 if right else 3)
    for line, step, there in zip(lines, steps(problem), stated, strict=False):
        assert line == f"{step.equation()}. The solution has {there}. {'Good.' if there == step.result else 'No.'}"
    assert "The solution has no more. No." in chain(problem, own[:2], False)


def test_a_judge_is_asked_and_answers_as_the_generative_verifier_reads() -> None:
    verdicts = []
    for seed in range(200):
        rng, problem = random.Random(seed), generate(1 + seed % 8, seed)
        direct = seed % 2 == 0
        question, answer = judged(rng, problem, direct=direct)
        solution = question.split("\n\nSolution:\n")[1].removesuffix(DIRECT * direct).removesuffix("\n\nIs the solution correct?")
        template = generative.DIRECT if direct else generative.CHAINS
        assert question == template.format(question=problem.question, solution=solution)
        assert solution == solution_of(solution)
        assert "think>" not in solution
        right = read_answer(solution) == problem.answer
        assert generative.said(answer) == right
        assert answer.endswith(f"{generative.ASKED} {'Yes' if right else 'No'}")
        verdicts.append(right)
    assert 70 < sum(verdicts) < 130


def test_judging_documents_are_learnt_from_the_answer_on() -> None:
    for seed in range(20):
        document = judging(random.Random(seed))
        assert re.match(r"<think>|Is the answer correct\? (Yes|No)<\|end\|>$", document.text[document.learn_from :])
        assert "Is the solution correct?" in document.text[: document.learn_from]


def test_an_attempt_that_cannot_be_spoilt_is_the_right_one() -> None:
    class Always(random.Random):
        """Skips the only step, always."""

        def choices(self, *args: object, **kwargs: object) -> list[str]:  # type: ignore[override]
            return ["skip"]

    problem = generate(1, 0)
    assert spoilt(Always(0), problem) == Attempt(problem.meta["solution"], True, [int(problem.answer or "")])
