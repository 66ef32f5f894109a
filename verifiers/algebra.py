"""Exact sums of products: rationals, roots of integers, powers of pi, ``i``, and letters, in one canonical form.

Numbers in it are equal exactly when their keys are: products of roots of distinct primes are linearly independent over the
rationals, and pi is transcendental over them. What has no such form (``cot x``, ``2^x``, a quotient by ``x + 1``) becomes one
opaque letter: equal keys still mean equal, other keys mean nothing (:attr:`Poly.exact`). Bounded: what grows is ``Unread``.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

MAX_TERMS = 64
MAX_BITS = 4096
"""Of a coefficient; some 1,200 digits, below the length from which Python refuses to write integers."""
MAX_EXPONENT = 4096
MAX_KEY = 4000
MAX_ROOT = 12
MAX_WORK = 4000
"""Terms made for one answer."""
TRIAL = 10_000
"""Radicands are divided by what is below; what is left must be below its square, hence prime."""

BOTH = "±"
"""The letter whose square is one; :meth:`Poly.branches` puts both signs in."""

Monomial = tuple[tuple[str, Fraction], ...]
"""Letter and exponent, sorted. A prime, as its digits, has an exponent between 0 and 1; pi any; the others an integer."""


class Unread(ValueError):
    """What is written cannot be read exactly, or only beyond the bounds."""


class Foreign(Unread):
    """Notation beyond this grammar that means one thing, and that a library may know."""


@dataclass(frozen=True)
class Poly:
    """Monomials and their coefficients, none of them zero. Make it by :func:`number`, :func:`letter` and arithmetic."""

    terms: Mapping[Monomial, Fraction]

    @cached_property
    def key(self) -> str:
        """The canonical form, written out."""
        ordered = sorted(self.terms, key=lambda m: (-sum(e for _, e in m), m))
        text = " + ".join(_written(self.terms[monomial], monomial) for monomial in ordered) or "0"
        if len(text) > MAX_KEY:
            raise Unread("too long")
        return text

    @cached_property
    def letters(self) -> frozenset[str]:
        """All but primes, pi and ``i``."""
        return frozenset(name for m in self.terms for name, _ in m if not name.isdigit() and name not in ("pi", "i"))

    @property
    def exact(self) -> bool:
        """Whether another key proves another value: nothing opaque, and not both pi and e, which may be related."""
        names = {name for m in self.terms for name, _ in m}
        return not any("(" in name for name in names) and not {"pi", "e"} <= names

    @property
    def rational(self) -> Fraction | None:
        """The value, where it is a rational number."""
        if not self.terms:
            return Fraction(0)
        return self.terms.get(()) if len(self.terms) == 1 else None

    def __add__(self, other: Poly) -> Poly:
        return _collected([*self.terms.items(), *other.terms.items()])

    def __neg__(self) -> Poly:
        return Poly({monomial: -c for monomial, c in self.terms.items()})

    def __sub__(self, other: Poly) -> Poly:
        return self + -other

    def __mul__(self, other: Poly) -> Poly:
        return _collected(_product(a, b) for a in self.terms.items() for b in other.terms.items())

    def __truediv__(self, other: Poly) -> Poly:
        return self * inverse(other)

    def branches(self) -> list[Poly]:
        """The value with + and the value with - for every plus-minus; itself where there is none."""
        if not any(name == BOTH for m in self.terms for name, _ in m):
            return [self]
        return [self._branch(Fraction(1)), self._branch(Fraction(-1))]

    def _branch(self, sign: Fraction) -> Poly:
        return _collected(
            (tuple(a for a in m if a[0] != BOTH), c * sign if any(name == BOTH for name, _ in m) else c)
            for m, c in self.terms.items()
        )


def number(value: Fraction | int) -> Poly:
    """A rational as a polynomial."""
    return _collected([((), Fraction(value))])


def letter(name: str) -> Poly:
    """A letter, ``pi`` or ``i`` as a polynomial."""
    return Poly({((name, Fraction(1)),): Fraction(1)})


def opaque(name: str, *arguments: Poly) -> Poly:
    """What the form cannot express, as one letter that is named after all of it."""
    if any(BOTH in a.letters for a in arguments):
        raise Unread("plus-minus inside of a function")
    return letter(f"{name}({', '.join(a.key for a in arguments)})")


def inverse(poly: Poly) -> Poly:
    """One over it: exact for one term and for sums of square roots, else opaque up to a rational factor."""
    above, below = number(1), poly
    while len(below.terms) > 1:
        name = next((n for m in below.terms for n, _ in m if _conjugable(below, n)), None)
        if name is None:
            lead = below.terms[min(below.terms)]
            return above * number(1 / lead) * opaque("1/", below * number(1 / lead))
        other = Poly({m: -c if any(n == name for n, _ in m) else c for m, c in below.terms.items()})
        above, below = above * other, below * other
    if not below.terms:
        raise Unread("division by zero")
    ((monomial, c),) = below.terms.items()
    return above * _collected([_reduced(1 / c, ((name, -e) for name, e in monomial))])


def power(base: Poly, exponent: Poly) -> Poly:
    """``base ** exponent``; principal roots. Opaque where the form has none."""
    e = exponent.rational
    if e is None:
        return opaque("^", base, exponent)
    if not base.terms:
        if e > 0:
            return base
        raise Unread("zero to a power that is not positive")
    if e.denominator > 1:
        return _root_power(base, e)
    if abs(e) > MAX_EXPONENT:
        raise Unread("exponent too large")
    if e < 0:
        base, e = inverse(base), -e
    if len(base.terms) == 1:
        ((monomial, c),) = base.terms.items()
        _bounded(int(e) * _bits(c))
        return _collected([_reduced(c ** int(e), ((name, d * e) for name, d in monomial))])
    result = number(1)
    for _ in range(_small(int(e))):
        result = result * base
    return result


def _root_power(base: Poly, e: Fraction) -> Poly:
    ((monomial, c),) = list(base.terms.items())[:1]
    positive = all(name.isdigit() or name == "pi" for name, _ in monomial)
    if len(base.terms) > 1 or not positive or e.denominator > MAX_ROOT or (c < 0 and e.denominator != 2):
        return opaque("^", base, number(e))
    root = _collected([_reduced(Fraction(1), [*_primes(abs(c), e), *((name, d * e) for name, d in monomial)])])
    return root * power(letter("i"), number(e.numerator)) if c < 0 else root


def _primes(value: Fraction, e: Fraction) -> Iterator[tuple[str, Fraction]]:
    """The prime factors of a positive rational, each with its exponent times ``e``."""
    for part, sign in ((value.numerator, 1), (value.denominator, -1)):
        divisor = 2
        while part > 1:
            if divisor > TRIAL:
                raise Unread("a root of a number that is too large to factor")
            if divisor * divisor > part:
                divisor = part
            count = 0
            while part % divisor == 0:
                part, count = part // divisor, count + 1
            if count:
                yield str(divisor), sign * count * e
            divisor += 1


def _product(a: tuple[Monomial, Fraction], b: tuple[Monomial, Fraction]) -> tuple[Monomial, Fraction]:
    return _reduced(a[1] * b[1], [*a[0], *b[0]])


def _reduced(c: Fraction, factors: Iterable[tuple[str, Fraction]]) -> tuple[Monomial, Fraction]:
    """Exponents added up, whole powers of primes and of ``i`` taken into the coefficient."""
    exponents: dict[str, Fraction] = {}
    for name, e in factors:
        exponents[name] = exponents.get(name, Fraction(0)) + e
    for name, e in exponents.items():
        if abs(e) > MAX_EXPONENT:
            raise Unread("exponent too large")
        if name.isdigit():
            whole = e.numerator // e.denominator
            _bounded(abs(whole) * int(name).bit_length())
            c, e = c * Fraction(int(name)) ** whole, e - whole
        elif name == "i":
            c, e = -c if e % 4 >= 2 else c, e % 2
        elif name == BOTH:
            e %= 2
        exponents[name] = e
    return tuple(sorted((name, e) for name, e in exponents.items() if e)), c


class _Allowance(threading.local):
    """Terms that this thread may still make."""

    left = math.inf


_allowance = _Allowance()


@contextmanager
def bounded() -> Iterator[None]:
    """Within it, more than ``MAX_WORK`` terms are ``Unread``."""
    before, _allowance.left = _allowance.left, min(_allowance.left, MAX_WORK)
    try:
        yield
    finally:
        _allowance.left = before


def _collected(terms: Iterable[tuple[Monomial, Fraction]]) -> Poly:
    total: dict[Monomial, Fraction] = {}
    for monomial, c in terms:
        _allowance.left -= 1
        if _allowance.left < 0:
            raise Unread("too much to compute")
        total[monomial] = total.get(monomial, Fraction(0)) + c
        _bounded(_bits(total[monomial]))
        if len(total) > MAX_TERMS:
            raise Unread("too many terms")
    return Poly({monomial: c for monomial, c in total.items() if c})


def _conjugable(poly: Poly, name: str) -> bool:
    """Whether flipping the sign of ``name`` and multiplying makes it vanish: its square is without it."""
    exponents = {e for m in poly.terms for n, e in m if n == name}
    return name == "i" or (name.isdigit() and exponents == {Fraction(1, 2)})


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(bits: int) -> None:
    if bits > MAX_BITS:
        raise Unread("number too large")


def _small(exponent: int) -> int:
    if exponent > MAX_TERMS:
        raise Unread("power of a sum too large")
    return exponent


def _written(c: Fraction, monomial: Monomial) -> str:
    factors = [name if e == 1 else f"{name}^{e}" if e.denominator == 1 and e > 0 else f"{name}^({e})" for name, e in monomial]
    if not factors:
        return str(c)
    return "*".join(factors if c == 1 else ["-" + factors[0], *factors[1:]] if c == -1 else [str(c), *factors])
