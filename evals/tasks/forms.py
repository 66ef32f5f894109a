"""How a problem is put to a model: published protocols by name, or words of one's own.

The same model gains or loses many points by the form alone, so figures compare only with figures of the same one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...schema import Problem


@dataclass(frozen=True, slots=True)
class Form:
    """``ask``: the user's message, with fields such as ``{question}``. ``start``: how the answer begins, which the model goes on
    with. ``stop``: strings that end it. ``raw``: ``ask`` is text to go on with, as base models want it, and no chat.
    """

    ask: str
    start: str = ""
    stop: tuple[str, ...] = ()
    raw: bool = False

    def fill(self, problem: Problem, fields: Mapping[str, str]) -> str:
        """``ask`` for ``problem``. Braces that name no field stay."""
        known = {"question": problem.question, **fields}
        return re.sub(r"\{(\w+)\}", lambda hole: known.get(hole[1], hole[0]), self.ask)


def chosen(prompt: str, known: Mapping[str, Form]) -> Form:
    """The form that ``prompt`` names, or one of its own words with ``{question}`` in it. Raises ``ValueError`` for neither."""
    if prompt in known:
        return known[prompt]
    if "{question}" not in prompt:
        raise ValueError(f"task.prompt={prompt!r}: one of {', '.join(known)}, or text with {{question}} in it")
    return Form(prompt)


def evalplus(code: str) -> Form:
    """EvalPlus's form for chat models (arXiv 2305.01210): their answer is begun for them, up to the first line of code.

    It leaves no room to reason first. It ends before tests of the model's own, which EvalPlus drops from the program: small
    models get many of them wrong, and a program that fails its own test is no wrong program.
    """
    asked = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
    begun = "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:"
    return Form(f"{asked}\n```\n{code}\n```\n", f"{begun}\n```python\n", ("\n```", "\nassert ", "\nprint(", "\nif __name__"))
