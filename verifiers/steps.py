"""Where the steps of a written solution are: paragraphs between blank lines, in the thought and behind it.

What scores steps and what labels them for training must cut alike, so there is one function. It reads nothing into the text: a
check ("Wait, …") is a step like any other, code and displayed formulas with blank lines in them are several.
"""

from __future__ import annotations

import re

_TAGS = re.compile(r"</?think>")
_BLANK = re.compile(r"\n[^\S\n]*\n\s*")


def steps_of(text: str) -> list[str]:
    """The paragraphs of a whole or half-written model output, in order, stripped; none is empty.

    A think tag ends a paragraph, as a blank line does, and is in none. Linear in the text.
    """
    return [step for part in _TAGS.split(text) for piece in _BLANK.split(part) if (step := piece.strip())]


def solution_of(text: str) -> str:
    """A model output as one plain text to be judged: its steps with blank lines between them, without think tags."""
    return "\n\n".join(steps_of(text))
