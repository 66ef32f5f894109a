"""Which steps of a written solution are good: what a process reward model is trained and measured on.

A step is bad where an equation in it is arithmetically wrong or is none that the problem's own solution computes, where the
answer it gives is not the problem's, and for as long as something wrong before it stands. Nothing here is a model's opinion;
it reads the solutions of ``problems.py`` and of models that learnt to write them, and no others.
"""

from __future__ import annotations

import re

from ..schema import Problem
from ..verifiers.steps import steps_of
from .problems import apply, read_answer

_EQUATION = re.compile(r"(-?\d+) ([-+*/]) (-?\d+) = (-?\d+)")


def labels(problem: Problem, text: str) -> list[tuple[str, bool]]:
    """The steps of ``text``, a whole or half-written solution of ``problem``, each with whether all is well up to its end.

    The equations of ``problem.meta["steps"]`` are good in any order and as often as they are written; sums and products either
    way round. What is wrong stands until the step of the problem's own that was next then is computed, rightly: that takes back
    what followed from it, too.
    """
    own = [_key(a, op, b) for _, a, op, b in problem.meta["steps"]]
    computed: set[tuple[int, str, int]] = set()
    standing: tuple[int, str, int] | None = None
    found = []
    for step in steps_of(text):
        good = True
        for a, op, b, stated in _EQUATION.findall(step):
            key = _key(int(a), op, int(b))
            if key in own and str(apply(int(a), op, int(b))) == stated:
                computed.add(key)
                standing = None if standing == key else standing
                continue
            good = False
            if standing is None:
                missing = [other for other in own if other not in computed]
                standing = key if key in own else (missing or own)[0]
        answer = read_answer(step)
        found.append((step, good and standing is None and answer in (None, problem.answer)))
    return found


def _key(a: int, op: str, b: int) -> tuple[int, str, int]:
    return (min(a, b), op, max(a, b)) if op in "+*" else (a, op, b)
