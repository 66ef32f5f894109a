"""What the nano models are trained on: a weighted mix of sources, each a function from a random generator to one document.

A new skill is one function and one line in ``SOURCES``. Documents are made on the fly from (seed, step, index), so a run that
resumes sees exactly what an uninterrupted one sees. No text here comes from files, from the web or from another model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from . import programs
from . import tokenizer as tok
from .judging import judged
from .problems import LEVELS, generate


@dataclass(frozen=True, slots=True)
class Document:
    """A text that ends where it ends, special tokens written out, and the characters whose tokens the loss is on."""

    text: str
    learn_from: int
    skip: Sequence[Sequence[int]] = ()
    """[start, end) spans after ``learn_from`` that are read but not learnt, such as planted mistakes."""


Source: TypeAlias = Callable[[random.Random], Document]


def chat(question: str) -> str:
    """The prompt a question becomes: what the chat template renders."""
    return f"{tok.BOS}{tok.USER}{question}{tok.END}{tok.ASSISTANT}"


def answered(prompt: str, answer: str, skip: Sequence[Sequence[int]] = ()) -> Document:
    """A prompt, and an answer to learn; spans of ``skip`` count from the answer's start."""
    start = len(prompt)
    return Document(prompt + answer + tok.END, start, [(start + a, start + b) for a, b in skip])


def maths(rng: random.Random) -> Document:
    """A word problem and its worked solution; one in six as raw text rather than chat."""
    problem = generate(rng.choice(LEVELS), rng.getrandbits(48), "train")
    solution, slips = problem.meta["solution"], problem.meta["slips"]
    if rng.random() < 1 / 6:
        # The newline is learnt too, so that a bare question is continued.
        return answered(tok.BOS + problem.question, "\n" + solution, [(a + 1, b + 1) for a, b in slips])
    return answered(chat(problem.question), solution, slips)


def code(rng: random.Random) -> Document:
    """A function that is asked for, and its planned solution."""
    problem = programs.generate(rng.choice(programs.LEVELS), rng.getrandbits(48), "train")
    return answered(chat(problem.question), problem.meta["solution"])


def judging(rng: random.Random) -> Document:
    """A word problem with a solution, and whether that is right; one in three without a chain of thought."""
    problem = generate(rng.choice(LEVELS), rng.getrandbits(48), "train")
    question, answer = judged(rng, problem, direct=rng.random() < 1 / 3)
    return answered(chat(question), answer)


SOURCES: list[tuple[float, Source]] = [
    (1.0, maths),
    (0.4, code),
    (0.25, judging),
]


def documents(seed: int, step: int, count: int, sources: Sequence[tuple[float, Source]] = SOURCES) -> list[Document]:
    """The documents of one training step."""
    weights = [weight for weight, _ in sources]
    made = []
    for i in range(count):
        rng = random.Random(f"{seed} {step} {i}")
        made.append(rng.choices(sources, weights)[0][1](rng))
    return made
