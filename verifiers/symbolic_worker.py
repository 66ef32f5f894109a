"""The process that asks math-verify about pairs of answers; :mod:`.symbolic` starts it by path, and it imports nothing of ours.

One JSON object a line each way. Limits its own memory and files, its CPU seconds with each question; its parent holds the clock.
math-verify parses with a grammar and evaluates no text, but what it computes has no bound: that is what this process is for.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from fractions import Fraction
from typing import Any

MEMORY = 1 << 30
DIGITS = 300


def limit() -> None:
    """No core dumps, nothing written, bounded memory (Linux counts address space; elsewhere only the clock bounds it)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def allow(seconds: float) -> None:
    """CPU seconds from now on; the kernel ends the process that takes more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 2, hard))


def compare(library: Any, gold: str, answer: str) -> dict[str, str]:
    """``relation`` and ``reason``. Same where it verifies and values agree, different where they differ everywhere."""
    parsed = []
    for what, text in (("gold", gold), ("answer", answer)):
        found = library.parse(
            f"${text}$",
            extraction_config=[library.LatexExtractionConfig()],
            fallback_mode="no_fallback",
            parsing_timeout=None,
            raise_on_error=True,
        )
        if not found:
            return {"relation": "unknown", "reason": f"math-verify does not parse the {what}"}
        parsed.append(found)
    agreed = agree(parsed[0][0], parsed[1][0])
    if agreed is False:
        return {"relation": "different", "reason": "math-verify"}
    verified = library.verify(*parsed, float_rounding=12, timeout_seconds=None, raise_on_error=True)
    if agreed and verified:
        return {"relation": "same", "reason": "math-verify"}
    return {"relation": "unknown", "reason": f"math-verify says {'yes' if verified else 'no'}, and values do not prove it"}


def agree(gold: Any, answer: Any) -> bool | None:
    """Whether two expressions have one value, relative to its size, at all of four points or at none; None for neither.

    None too for what has no values: sets, relations, words. Equal as parsed is equal.
    """
    if gold == answer:
        return True
    found, small = set(), importlib.import_module("sympy").Rational(10) ** -(DIGITS - 50)
    try:
        letters = sorted(gold.free_symbols | answer.free_symbols, key=str)
        for at in (1, 2, 5, -31):
            point = {letter: Fraction(7 + 3 * i + at, 11) for i, letter in enumerate(letters)}
            a, b = (side.evalf(DIGITS, subs=point, maxn=4 * DIGITS, strict=True) for side in (gold, answer))
            if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
                return None
            found.add(bool(abs(a - b) <= abs(a) * small))
    except (TypeError, ValueError, AttributeError, ArithmeticError):  # the last: a zero has no digits to be sure of
        return None
    return found.pop() if len(found) == 1 else None


def main() -> None:
    """Answer questions until the input ends."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    limit()
    library = importlib.import_module("math_verify")
    print(json.dumps({"ready": True}), file=channel, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        allow(question["seconds"])
        try:
            reply = compare(library, question["gold"], question["answer"])
        except Exception as error:
            reply = {"relation": "unknown", "reason": f"math-verify: {type(error).__name__}"}
        print(json.dumps(reply), file=channel, flush=True)


if __name__ == "__main__":
    main()
