"""Reads one LaTeX or plain expression into an exact :class:`~.algebra.Poly`: a descent over a short grammar, nothing evaluated.

Knows numbers, fractions (mixed ones too), powers, roots, factorials and binomials of small integers, letters with indices, and
functions as opaque letters. What can be meant in two ways (``1/2x``) it does not read.
"""

from __future__ import annotations

import math
from fractions import Fraction

from .algebra import BOTH, Foreign, Poly, Unread, inverse, letter, number, opaque, power
from .tokens import FUNCTIONS, GREEK, decimal, tokens

MAX_DEPTH = 48
MAX_FACTORIAL = 200

_FOREIGN = frozenset((r"\int", r"\sum", r"\prod", r"\lim", r"\lfloor", r"\lceil"))
_STOPS = ("", "+", "-", ")", "]", "}", ",", r"\pm", r"\mp")


def expression(text: str) -> Poly:
    """The value of ``text``, in the notation of :func:`~.notation.normal`. Raises ``Unread``."""
    reader = _Reader(tokens(text))
    if sum(token in (r"\pm", r"\mp") for token in reader.tokens) > 1:
        raise Unread("several signs, together or each by itself")
    value = reader.sum()
    if reader.peek():
        raise Unread(f"{reader.peek()!r} is not read here")
    return value


class _Reader:
    """Tokens and a place among them. Methods are the rules of the grammar; each leaves the place behind what it read."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.depth, self.bars = tokens, 0, 0, False

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise Unread(f"{wanted or 'something'!r} is missing")
        self.at += 1
        return token

    def sum(self) -> Poly:
        total = self.signed()
        while self.peek() in ("+", "-", r"\pm", r"\mp"):
            total = total + self.signed()
        return total

    def signed(self) -> Poly:
        sign = number(1)
        while self.peek() in ("+", "-", r"\pm", r"\mp"):
            token = self.take()
            sign = sign * {"+": number(1), "-": number(-1), r"\pm": letter(BOTH), r"\mp": -letter(BOTH)}[token]
        return sign * self.product()

    def product(self) -> Poly:
        value, divided = self.powered(), False
        while not self.stops():
            token = self.peek()
            if token in ("*", r"\cdot", r"\times"):
                self.take()
                value, divided = value * self.powered(), False
            elif token in ("/", r"\div"):
                self.take()
                if divided:
                    raise Unread("a quotient of a quotient")
                if _literal(self.peek()) and (self.peek(1) == r"\frac" or _literal(self.peek(1) or "?")):
                    raise Unread("divided by a mixed number, or by an integer")
                value, divided = value * inverse(self.powered()), True
            elif divided:
                raise Unread("what follows a quotient may belong to either part")
            else:
                value = value * self.behind()
        return value

    def stops(self) -> bool:
        return self.peek() in _STOPS or (self.bars and self.peek() == "|")

    def behind(self) -> Poly:
        """A factor without a sign before it."""
        if _literal(self.peek()):
            raise Unread("a number behind a factor")
        return self.powered()

    def powered(self) -> Poly:
        base = self.factor()
        if self.peek() == "!":
            self.take()
            if self.peek() == "!":
                raise Unread("a double factorial or a factorial of one")
            base = _factorial(base)
        if self.peek() != "^":
            return base
        self.take()
        raised = power(base, self.exponent())
        if self.peek() == "!":
            raise Unread("a factorial of a power")
        return raised

    def exponent(self) -> Poly:
        self.deeper()
        sign = 1
        while self.peek() in ("+", "-"):
            sign *= -1 if self.take() == "-" else 1
        value = self.powered()
        self.depth -= 1
        return number(sign) * value

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unread("nested too deep")

    def factor(self) -> Poly:
        self.deeper()
        value = self.atom()
        self.depth -= 1
        return value

    def atom(self) -> Poly:
        token = self.take()
        if token in ("(", "[", "{"):
            value = self.sum()
            self.take({"(": ")", "[": "]", "{": "}"}[token])
            return value
        if token == "|":
            return self.absolute()
        if _literal(token):
            if "." in token and self.peek() in ("(", "["):
                raise Unread("digits that repeat, or a product")
            return self.mixed(decimal(token))
        if token.isalpha():
            return self.indexed(token)
        if token == r"\pi":
            return letter("pi")
        if token == r"\frac":
            return self.argument() * inverse(self.argument())
        if token == r"\sqrt":
            return self.root()
        if token == r"\binom":
            return _binomial(self.argument(), self.argument())
        if token[1:] in GREEK:
            return self.indexed(token[1:])
        if token[1:] in FUNCTIONS:
            return self.function(token[1:])
        raise (Foreign if token in _FOREIGN else Unread)(f"{token[:20]!r} is not read")

    def absolute(self) -> Poly:
        if self.bars:
            raise Unread("bars within bars")
        self.bars = True
        value = self.sum()
        self.take("|")
        self.bars = False
        return _absolute(value)

    def mixed(self, whole: Fraction) -> Poly:
        """An integer, and with it the proper fraction right behind it."""
        if whole.denominator > 1 or not (self.peek() == r"\frac" or (self.peek().isdigit() and self.peek(1) == "/")):
            return number(whole)
        plain = self.peek() == r"\frac"
        if plain:
            self.take()
            above, below = self.argument(), self.argument()
        else:
            above, _, below = self.factor(), self.take("/"), self.factor()
        if self.peek() == r"\frac" or (not plain and not self.stops()):
            raise Unread("what follows a mixed number")
        a, b = above.rational, below.rational
        if a is None or b is None:
            return number(whole) * above * inverse(below)
        if not 0 < a < b or a.denominator > 1 or b.denominator > 1:
            raise Unread("a product or a mixed number")
        return number(whole + a / b)

    def argument(self) -> Poly:
        """What a command applies to: a group, or one character."""
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
        if token[:1].isdigit():
            if len(self.peek()) > 1:
                raise Unread("a decimal without braces")
            return number(int(self.take()))
        return self.factor()

    def root(self) -> Poly:
        degree = Fraction(2)
        if self.peek() == "[":
            self.take()
            given = self.sum().rational
            self.take("]")
            if given is None or given.denominator > 1 or not 2 <= given <= 12:
                raise Unread("a root of a degree that is not read")
            degree = given
        if self.peek().isdigit() and len(self.peek()) > 1:
            raise Unread("a root without braces")
        value = self.argument()
        c = value.rational
        if c is not None and c < 0 and degree % 2:
            return -power(-value, number(1 / degree))
        return power(value, number(1 / degree))

    def indexed(self, name: str) -> Poly:
        while self.peek() in ("_", "'"):
            name += self.take()
            if name[-1] == "_":
                name += self.index()
        return letter(name)

    def index(self) -> str:
        if self.peek() != "{":
            return self.take()
        self.take()
        name = ""
        while (token := self.take()) != "}":
            if not token.isalnum():
                raise Unread("an index that is not read")
            name += token
        return name

    def function(self, name: str) -> Poly:
        """A function of a bracket, or of the factors up to the next sign or explicit product; opaque."""
        if self.peek() == "_":
            self.take()
            name += "_" + (self.argument().key if self.peek() == "{" else self.take())
        exponent = number(1)
        if self.peek() == "^":
            self.take()
            exponent = self.exponent()
            if (exponent.rational or -1) < 0:
                raise Unread("an inverse function or a power")
        if self.peek() in ("(", "{", "["):
            argument = self.factor()
            if self.peek() == "^":
                raise Unread("a power of a function or of its argument")
        else:
            argument = self.powered()
            signs = ("*", "/", r"\cdot", r"\times", r"\div")
            while not self.stops() and self.peek() not in signs and self.peek()[1:] not in FUNCTIONS:
                if argument.letters and self.peek() != r"\pi":
                    raise Unread("a function of one letter or of a product")
                argument = argument * self.behind()
        if name == "exp":
            return power(letter("e"), argument * exponent)
        return power(opaque(name, argument), exponent)


def _literal(token: str) -> bool:
    return token[0].isdigit() or (token[0] == "." and len(token) > 1)


def _absolute(value: Poly) -> Poly:
    """Exact for rationals and complex numbers with rational parts."""
    real, imaginary = (value.terms.get(m, Fraction(0)) for m in ((), (("i", Fraction(1)),)))
    if (value - number(real) - number(imaginary) * letter("i")).terms:
        return opaque("abs", value)
    return power(number(real * real + imaginary * imaginary), number(Fraction(1, 2)))


def _natural(value: Poly, limit: int) -> int:
    whole = value.rational
    if whole is None or whole.denominator > 1 or not 0 <= whole <= limit:
        raise Unread("not a small natural number")
    return int(whole)


def _factorial(value: Poly) -> Poly:
    return opaque("!", value) if value.rational is None else number(math.factorial(_natural(value, MAX_FACTORIAL)))


def _binomial(n: Poly, k: Poly) -> Poly:
    return number(math.comb(_natural(n, 1000), _natural(k, 1000)))
