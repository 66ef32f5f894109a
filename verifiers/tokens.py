"""Cuts an expression into numbers, letters, commands and signs, and reads decimals exactly.

Knows which words are functions and Greek letters; what tokens mean together is for :mod:`.expressions`.
"""

from __future__ import annotations

import re
from fractions import Fraction

from .algebra import Unread

FUNCTIONS = frozenset("sin cos tan cot sec csc log ln arcsin arccos arctan sinh cosh tanh exp max min gcd lcm".split())
GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi varphi chi psi omega "
    "Gamma Delta Theta Lambda Phi Psi Omega Sigma ell".split()
)
_TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:\\overline ?\{\d+\})?(?:[eE][+-]?\d+(?![A-Za-z\d.]))?)"
    r"|\\(?P<command>[A-Za-z]+)|(?P<word>[A-Za-z]+)|(?P<sign>[^\sA-Za-z\d\\])|(?P<space>\s+)|(?P<other>.)",
    re.S,
)


def decimal(text: str) -> Fraction:
    """A literal: digits, a point, a bar over what repeats, an exponent."""
    plain, bar, rest = text.partition("\\overline")
    digits, _, exponent = (rest if bar else plain).lower().partition("e")
    if re.fullmatch(r"\d+e[+-]\d+", text):
        raise Unread("a power of ten, or Euler's number and a sum")
    if len(text) > 1000 or len(exponent) > 4 or abs(int(exponent or 0)) > 1000:
        raise Unread("number too large")
    if not bar:
        return Fraction(digits) * Fraction(10) ** int(exponent or 0)
    if "." not in plain:
        raise Unread("a bar over an integer")
    repeating = digits.strip(" {}")
    places = len(plain.partition(".")[2])
    return Fraction(plain + "0") + Fraction(int(repeating), (10 ** len(repeating) - 1) * 10**places)


def tokens(text: str) -> list[str]:
    """The tokens of an expression; words are letters unless they are functions. Raises ``Unread`` for longer ones."""
    found: list[str] = []
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0]
        if kind == "word":
            named = token in FUNCTIONS or token in ("pi", "sqrt")
            if not named and len(token) > 3:
                raise Unread(f"{token[:20]!r} is a word")
            found.extend([f"\\{token}"] if named else token)
        elif kind != "space" and (kind == "other" or not token.isascii()):
            raise Unread(f"{token!r} is not read")
        elif kind != "space":
            found.append(token)
    return found
