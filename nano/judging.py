"""Solutions of word problems with an error planted that spoils the answer, and what a judge writes of a solution.

The errors are such as a small model makes: a slip in the arithmetic, a number copied wrong, another operation, a step left out.
What follows is computed from the wrong value, without a further error. A judge goes through the problem's own steps in order,
compares each result, and stops at the first that differs. It judges by knowing the problem, not by reading the text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..schema import Problem
from ..verifiers.steps import solution_of
from .problems import Step, write

QUESTION = "{question}\n\nSolution:\n{solution}\n\nIs the solution correct?"
"""What a judge is asked."""
DIRECT = " Answer Yes or No."
"""At the end of the question: without a chain of thought."""
VERDICT = "Is the answer correct? "
"""Behind which Yes or No stands."""

_LARGEST = 4000


@dataclass(frozen=True, slots=True)
class Attempt:
    """A written solution, whether its answer is right, and the results it comes to, in order."""

    text: str
    right: bool
    results: Sequence[int]


def steps(problem: Problem) -> list[Step]:
    """What a right solution computes."""
    return [Step(*step) for step in problem.meta["steps"]]


def spoilt(rng: random.Random, problem: Problem) -> Attempt:
    """A solution with one error that is never put right. The right one, where none was found in some tries."""
    right = steps(problem)
    for _ in range(20):
        wrong = _spoil(rng, right)
        if wrong and str(wrong[-1].result) != problem.answer:
            text, _ = write(rng, wrong, problem.meta["opening"], wrong[-1].result)
            return Attempt(text, False, [step.result for step in wrong])
    return Attempt(problem.meta["solution"], True, [step.result for step in right])


def _spoil(rng: random.Random, right: Sequence[Step]) -> list[Step] | None:
    """The steps with one error and what follows from it; None where that cannot be computed."""
    at = rng.randrange(len(right))
    step = right[at]
    kind = rng.choices(["slip", "copy", "operation", "skip"], [45, 25, 20, 10])[0]
    changed: list[Step] = []
    if kind == "slip":
        size = len(str(step.result))
        changed = [replace(step, slip=rng.choice([-1, 1]) * rng.choice([1, 1, 2, 9, *(10**i for i in range(size))]))]
    elif kind == "copy":
        others = [n for other in right for n in (other.a, other.b)] + [step.b + 1, step.b - 1, step.b + 10]
        changed = [replace(step, b=rng.choice([n for n in others if n > 0 and n != step.b]))]
    elif kind == "operation":
        changed = [replace(step, op=rng.choice({"+": "-*", "-": "+", "*": "+", "/": "-*"}[step.op]))]
    elif len(right) == 1 or at == len(right) - 1:
        return None
    moved: dict[int, int] = {}
    done: list[Step] = []
    try:
        for i, old in enumerate(right):
            now = old if i < at else replace(old, a=moved.get(old.a, old.a), b=moved.get(old.b, old.b))
            if i == at:
                if not changed:
                    moved[old.result] = old.a
                    continue
                now = changed[0]
            if not 0 < now.result <= _LARGEST or now.b == 0:
                return None
            done.append(now)
            moved[old.result] = now.result
    except ValueError:
        return None
    return done


def verdict(right: bool) -> str:
    return VERDICT + ("Yes" if right else "No")


def chain(problem: Problem, results: Sequence[int], right: bool) -> str:
    """A judge's answer: the problem's own steps, each beside the solution's result, to the first that differs."""
    lines = []
    for i, step in enumerate(steps(problem)):
        stated = results[i] if i < len(results) else None
        agrees = stated == step.result
        says = f"The solution has {stated}." if stated is not None else "The solution has no more."
        lines.append(f"{step.equation()}. {says} {'Good.' if agrees else 'No.'}")
        if not agrees:
            break
    body = "\n\n".join(lines)
    return f"<think>\n{body}\n</think>\n{verdict(right)}"


def judged(rng: random.Random, problem: Problem, *, direct: bool = False) -> tuple[str, str]:
    """What a judge is asked about one attempt at ``problem``, wrong as often as right, and what it answers."""
    attempt = Attempt(problem.meta["solution"], True, [step.result for step in steps(problem)])
    if rng.random() < 0.5:
        attempt = spoilt(rng, problem)
    question = QUESTION.format(question=problem.question, solution=solution_of(attempt.text)) + DIRECT * direct
    return question, verdict(attempt.right) if direct else chain(problem, attempt.results, attempt.right)
