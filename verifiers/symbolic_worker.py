"""The process that asks math-verify about pairs of answers; :mod:`.symbolic` starts it by path, and it imports nothing of ours.

One JSON object a line each way. Limits its own memory and files, its CPU seconds with each question; its parent holds the clock.
math-verify parses with a grammar and evaluates no text, but what it computes has no bound: that is what this process is for.
"""

from __future__ import annotations

import importlib
import json
import os
import re
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


def compare(library: Any, pairs: list[list[tuple[str, bool]]]) -> dict[str, str]:
    """``relation`` and ``reason``: same where all pairs are, different where one is."""
    said = [compare_pair(library, *pair) for pair in pairs]
    worst = {"different": 0, "unknown": 1, "same": 2}
    return min(said, key=lambda one: worst[one["relation"]])


def compare_pair(library: Any, gold: tuple[str, bool], answer: tuple[str, bool]) -> dict[str, str]:
    """Same where math-verify says so and values agree, different where they differ everywhere.

    A bare log is of ten, as at school, or natural; an odd root of a negative number is real, as at school, or the principal one.
    Same are what the first reading of logs and both of roots make the same; different, what all make different.
    """
    keys = "".join(text for text, canonical in (gold, answer) if canonical)
    logs = (10, None) if "log(" in keys else (10,)
    roots = (False, True) if re.search(r"/(?:3|5|7|9|11)\)", keys) else (False,)
    parsed, said = [], []
    for base, real in ((base, real) for base in logs for real in roots):
        found = []
        for what, (text, canonical) in (("gold", gold), ("answer", answer)):
            try:
                found.append([Key(text, base, real).whole()] if canonical else latex(library, text))
            except ValueError as error:
                return {"relation": "unknown", "reason": f"math-verify: the {what}: {error}"}
        parsed.append(found)
        said.append(agree(found[0][0], found[1][0]))
    if all(agreed is False for agreed in said):
        return {"relation": "different", "reason": "math-verify"}
    verified = library.verify(*parsed[0], float_rounding=12, timeout_seconds=None, raise_on_error=True)
    if all(said[: len(roots)]) and verified:
        return {"relation": "same", "reason": "math-verify"}
    return {"relation": "unknown", "reason": f"math-verify says {'yes' if verified else 'no'}, and values do not prove it"}


def latex(library: Any, text: str) -> list[Any]:
    """What math-verify reads in LaTeX. Raises ``ValueError`` for nothing."""
    found: list[Any] = library.parse(
        f"${text}$",
        extraction_config=[library.LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
        raise_on_error=True,
    )
    if not found:
        raise ValueError("not parsed")
    sympy = importlib.import_module("sympy")
    real = {letter: sympy.Symbol(str(letter), real=True) for one in found for letter in getattr(one, "free_symbols", ())}
    return [one.xreplace(real) if isinstance(one, sympy.Basic) else one for one in found]


TOKEN = re.compile(r"1/\(|[\^!]?\(|\d+(?:/\d+)?| \+ |, |[-*^)]|[^\W\d]\w*\(?")
FUNCTIONS = "sin cos tan cot sec csc sinh cosh tanh coth".split()
INVERSE = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec", "arccsc": "acsc"}


class Key:
    """An expression of sympy from the canonical key of a polynomial, whose grammar ``algebra.py`` writes.

    ``base`` is of a bare log, None for e; ``real``: whether odd roots of negative numbers are. Raises ``ValueError`` for what is
    not in it.
    """

    def __init__(self, text: str, base: int | None, real: bool) -> None:
        self.sympy, self.base, self.real = importlib.import_module("sympy"), base, real
        self.tokens: list[str] = TOKEN.findall(text)
        if "".join(self.tokens) != text:
            raise ValueError("a key that is not read")
        self.at = 0

    def whole(self) -> Any:
        found = self.sum()
        if self.peek():
            raise ValueError("a key that is not read")
        return found

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str | None = None) -> str:
        token = self.peek()
        if not token or wanted not in (None, token):
            raise ValueError("a key that is not read")
        self.at += 1
        return token

    def sum(self) -> Any:
        total = self.product()
        while self.peek() == " + ":
            self.take()
            total += self.product()
        return total

    def product(self) -> Any:
        total = self.power()
        while self.peek() == "*":
            self.take()
            total *= self.power()
        return total

    def power(self) -> Any:
        if self.peek() == "-":
            self.take()
            return -self.power()
        base = self.atom()
        if self.peek() == "^":
            self.take()
            return self.raised(base, self.rational())
        if self.peek() == "^(":
            self.take()
            exponent = self.rational()
            self.take(")")
            return self.raised(base, exponent)
        return base

    def raised(self, base: Any, exponent: Any) -> Any:
        if not (self.real and exponent.is_Rational and exponent.q % 2 and exponent.q > 1):
            return base**exponent
        return (self.sympy.sign(base) if exponent.p % 2 else 1) * self.sympy.Abs(base) ** exponent

    def rational(self) -> Any:
        sign = -1 if self.peek() == "-" else 1
        if sign < 0:
            self.take()
        return sign * self.sympy.Rational(Fraction(self.take()))

    def atom(self) -> Any:
        token = self.take()
        if token[0].isdigit() and token != "1/(":
            return self.sympy.Rational(Fraction(token))
        if not token.endswith("("):
            known = {"pi": self.sympy.pi, "e": self.sympy.E, "i": self.sympy.I}
            return known[token] if token in known else self.sympy.Symbol(token, real=True)
        arguments = [self.sum()]
        while self.peek() == ", ":
            self.take()
            arguments.append(self.sum())
        self.take(")")
        return self.call(token[:-1], *arguments)

    def call(self, name: str, *of: Any) -> Any:
        if name == "1/":
            return 1 / of[0]
        if name == "^":
            return self.raised(*of)
        if name == "!":
            return self.sympy.factorial(of[0])
        if name == "abs":
            return self.sympy.Abs(of[0])
        if name in ("ln", "log"):
            return self.sympy.log(of[0], self.base) if name == "log" and self.base else self.sympy.log(of[0])
        if name.startswith("log_"):
            return self.sympy.log(of[0], Key(name[4:], self.base, self.real).atom())
        if name not in INVERSE and name not in FUNCTIONS:
            raise ValueError(f"{name} is not known")
        return getattr(self.sympy, INVERSE.get(name, name))(of[0])


def agree(gold: Any, answer: Any) -> bool | None:
    """Whether two expressions have one value, relative to its size, at all of some points or at none; None for neither.

    None too for what has no values: sets, relations, words. Equal as parsed is equal.
    """
    if gold == answer:
        return True
    found, small = set(), importlib.import_module("sympy").Rational(10) ** -(DIGITS - 50)
    try:
        letters = sorted(gold.free_symbols | answer.free_symbols, key=str)
        for at in (1, 2, 5, -31, 4000, -7000):
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
            reply = compare(library, question["pairs"])
        except Exception as error:
            reply = {"relation": "unknown", "reason": f"math-verify: {type(error).__name__}"}
        print(json.dumps(reply), file=channel, flush=True)


if __name__ == "__main__":
    main()
