"""The exact core on random values and on hostile texts: what it says is right, and what it costs is bounded."""

import random
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forethought.verifiers.algebra import MAX_BITS, MAX_TERMS, Unread
from forethought.verifiers.exact import compare, key
from forethought.verifiers.shapes import read

integers = st.integers(-(10**9), 10**9)
rationals = st.builds(Fraction, st.integers(-2000, 2000), st.integers(1, 200))


@st.composite
def written(draw: Any, value: Fraction) -> str:
    """A rational in one of the ways in which people write it."""
    sign, n, d = "-" if value < 0 else "", abs(value.numerator), value.denominator
    k = draw(st.integers(1, 12))
    ways = [rf"{sign}\frac{{{n}}}{{{d}}}", rf"\dfrac{{{sign}{n * k}}}{{{d * k}}}", rf"{sign}\tfrac {{{n}}} {{{d}}}"]
    ways += [f"{sign}{n * k}/{d * k}", rf"{sign}{n}\cdot\frac1{{{d}}}", f"${sign}{n}/{d}$"]
    ways += [rf"x = {sign}{n}/{d}", rf"{sign}\frac{{{n}}}{{{d}}}\text{{ cm}}"]
    if d == 1:
        ways += [f"{sign}{n}", f"{sign}{n:,}", f"{sign}{n:,}".replace(",", "{,}"), f"{sign}{n}.0", f"{sign}0{n}", f"{sign}{n}^1"]
    elif n > d:
        ways += [rf"{sign}{n // d}\frac{{{n % d}}}{{{d}}}", f"{sign}{n // d} {n % d}/{d}"]
    if 10**9 % d == 0:
        ways += [f"{sign}{n * 10**9 // d // 10**9}.{n * 10**9 // d % 10**9:09d}"]
    return str(draw(st.sampled_from(ways)))


@given(st.data(), rationals, rationals)
def test_rationals_compare_as_their_values(data: Any, a: Fraction, b: Fraction) -> None:
    one, same, other = (data.draw(written(value)) for value in (a, a, b))
    assert compare(one, same).relation == "same"
    assert key(one) == key(same) == str(a)
    ways = {"different", "unknown"} if "cm" in one + other else {"different"}  # 3 may be 300 in another unit
    assert compare(one, other).relation in ({"same"} if a == b else ways)


@given(st.lists(rationals, min_size=1, max_size=4), st.lists(rationals, min_size=1, max_size=4), st.randoms())
def test_sets_have_no_order_and_tuples_have(a: list[Fraction], b: list[Fraction], rng: random.Random) -> None:
    shuffled = rng.sample(a, len(a))
    assert compare(rf"\{{{', '.join(map(str, a))}\}}", rf"\{{{', '.join(map(str, shuffled))}\}}").relation == "same"
    tuples = [f"({', '.join(map(str, items))})" for items in (a, shuffled, b)]
    assert compare(tuples[0], tuples[1]).relation == ("same" if a == shuffled else "different")
    assert compare(tuples[0], tuples[2]).relation == ("same" if a == b else "different")


@given(*[st.lists(st.integers(-6, 6), min_size=1, max_size=5)] * 2, st.integers(-6, 6))
def test_polynomials_compare_as_their_coefficients(p: list[int], q: list[int], shift: int) -> None:
    def sums(c: list[int]) -> str:
        return " + ".join(f"{'-' * (v < 0)}{abs(v)}x^{i}" for i, v in enumerate(c)).replace("+ -", "- ")

    def nested(c: list[int]) -> str:
        text = "0"
        for v in reversed(c):
            text = f"x({text}) + ({v})"
        return text

    strip = [tuple(c[: max((i + 1 for i, v in enumerate(c) if v), default=0)]) for c in (p, q)]
    assert compare(sums(p), nested(p)).relation == "same"
    assert compare(f"({sums(p)})({sums(q)})", f"({nested(q)})({nested(p)})").relation == "same"
    assert compare(nested(p), nested(q)).relation == ("same" if strip[0] == strip[1] else "different")
    assert compare(f"({nested(p)}) - ({shift})", f"{-shift} + ({sums(p)})").relation == "same"


@given(st.integers(1, 400), st.integers(1, 400), st.integers(-9, 9), st.integers(-9, 9))
def test_roots_compare_as_numbers(m: int, n: int, a: int, b: int) -> None:
    """Against floating point, which tells numbers of this size apart."""
    one, other = rf"{a}\sqrt{{{m}}} + ({b})", rf"{b} + \sqrt{{{n}}}\cdot({a})"
    close = abs((a * m**0.5 + b) - (b + n**0.5 * a)) < 1e-9
    assert compare(one, other).relation == ("same" if close else "different")
    assert compare(rf"\frac{{1}}{{\sqrt{{{m}}} + {n}}}", rf"\frac{{\sqrt{{{m}}} - {n}}}{{{m} - {n}^2}}").relation in (
        "same" if m != n * n else "unknown"
    )


@given(rationals, rationals, st.sampled_from(["()", "[]", "(]", "[)"]), st.sampled_from(["()", "[]", "(]", "[)"]))
def test_intervals_say_whether_ends_belong(a: Fraction, b: Fraction, one: str, other: str) -> None:
    texts = [f"{brackets[0]}{a}, {b}{brackets[1]}" for brackets in (one, other)]
    points = {one, other} == {"()", "[]"}  # or points, or vectors, written in either kind
    assert compare(*texts).relation == ("same" if one == other else "unknown" if points else "different")


PIECES = [
    *"0123456789xyabeiA .,;:!?+-*/^_=<>()[]{}$%|~'&\\\"\n", *"π²①٣½∞\x00é😀", "e5", "_{2}", "million", " cm", " and ",
    "{,}", "\\,", "\\\\",
    *(rf"\{name}" for name in "frac sqrt text{ pm cup infty pi left right { } binom overline{ sin log circ % $ boxed{".split()),
    r"\in ", r"^\circ", r"\mathbb{R}", r"\begin{pmatrix}", r"\end{pmatrix}",
]  # fmt: skip
ALPHABET = st.sampled_from(PIECES)


@settings(max_examples=1500)
@given(st.lists(ALPHABET, max_size=14).map("".join), st.lists(ALPHABET, max_size=14).map("".join))
@example("①", "1")
@example("٣", "3")
@example("0.\\overline{}", "0")
def test_any_text_gets_an_answer(a: str, b: str) -> None:
    """Nothing but ``Unread`` comes out, comparing is symmetric, and relations agree with keys."""
    relation = compare(a, b).relation
    assert relation == compare(b, a).relation
    if relation != "unknown":
        assert (relation == "same") == (key(a) == key(b))
    for text in (a, b):
        assert compare(text, text).relation in ("same", "unknown")


HOSTILE = {
    "tower": "9^9^9^9",
    "tower in braces": "9^{9^{9^{9}}}",
    "factorials": "((((10^8)!)!)!)!",
    "factorial": "100000000!",
    "binomial": r"\binom{100000000}{50000000}",
    "huge exponent": "2^{99999999999999999999}",
    "huge negative exponent": "2^{-99999999999999999999}",
    "scientific": "1e999999999",
    "tiny": "1e-999999999",
    "a million digits": "7" * 10**6,
    "900 digits squared, squared": f"(({'7' * 900})^2)^2",
    "a million braces": "{" * 10**6,
    "braces both ways": "{" * 500_000 + "}" * 500_000,
    "480 brackets": "(" * 480 + "1" + ")" * 480,
    "roots in roots": r"\sqrt{" * 140 + "2" + "}" * 140,
    "roots without braces": r"\sqrt" * 190 + "2",
    "fractions in fractions": r"\frac1" * 160 + "2",
    "sines": r"\sin" * 240 + "x",
    "signs": "-" * 990 + "1",
    "exponents": "x" + "^2" * 490,
    "powers of powers": "(" * 39 + "1+x" + ")^2" * 39,
    "power of a sum": "(a+b+c+d+f+g)^{60}",
    "product of sums": "(a+b+c+d)" * 100,
    "many letters": "+".join(f"x_{{{i}}}" for i in range(140)),
    "field of roots": r"(\sqrt2+\sqrt3+\sqrt5+\sqrt7+\sqrt{11}+\sqrt{13})^{40}",
    "one over roots": r"\frac{1}{\sqrt2+\sqrt3+\sqrt5+\sqrt7+\sqrt{11}+\sqrt{13}+\sqrt{17}}",
    "root of a huge prime": rf"\sqrt{{{10**120 + 1111}}}",
    "roots of large numbers": "+".join(rf"\sqrt{{{10**11 + 3 * i}}}" for i in range(50)),
    "words and no end": "a" * 900 + "!",
    "words in between": "ab " * 300 + "1",
    "commas": "," * 990,
    "numbers in a list": "1," * 490,
    "unions": r"(1,2)\cup" * 80,
    "matrices": r"\begin{pmatrix}" * 60,
    "equals": "x=" * 400,
    "backslashes": "\\" * 990,
    "dollars": "$" * 999,
    "python": "__import__('os').system('echo hostile > hostile')",
    "python in a fraction": r"\frac{__import__('os').system('echo hostile > hostile')}{1}",
    "null": "\x00" * 900,
    "based": f"{'z' * 300}_{{36}}",
    "repeating": r"0.\overline{" + "1" * 900 + "}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_bounded(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    assert compare("5", HOSTILE[name]).relation != "same"
    assert compare(HOSTILE[name], HOSTILE[name]).relation != "different"
    try:
        value = read(HOSTILE[name]).value
    except Unread:
        pass
    else:
        assert len(value.key) <= 4000
        if value.poly is not None:
            assert len(value.poly.terms) <= MAX_TERMS
            assert all(max(c.numerator.bit_length(), c.denominator.bit_length()) <= MAX_BITS for c in value.poly.terms.values())
    key(HOSTILE[name])
    assert time.perf_counter() - start < 10  # a bound for safety: it takes milliseconds
    assert not list(tmp_path.iterdir())
