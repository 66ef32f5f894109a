"""What a code problem is put together from: single operations on lists of whole numbers, on strings and on whole numbers.

Each says in plain English what it does, how Python writes it, and what it returns; the last by a function of its own that
shares nothing with the Python it is written as. It knows nothing of problems, of tests or of models.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["list", "string", "number"]
Role: TypeAlias = Literal["keep", "each", "whole", "last"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on a value of some kind; ``last`` ones give something else and so come at the end."""

    key: str
    """What it does, constants included, without a word of how it is said or written."""
    role: Role
    said: Sequence[str]
    """Clauses in the imperative, any of which tells it."""
    written: Sequence[str]
    """Python in ``{x}`` (an item: a condition for ``keep``, a value for ``each``) or in ``{v}`` (the whole value)."""
    run: Callable[[Any], Any]
    """Of the whole value."""
    edges: Sequence[int] = ()
    """Items about which a wrong program is likely to differ."""


@dataclass(frozen=True, slots=True)
class _Test:
    """A condition on a number, with what is said of those that meet it and of the others."""

    key: str
    yes: Sequence[str]
    no: Sequence[str]
    code: str
    run: Callable[[int], bool]
    edges: Sequence[int]


def _test(rng: random.Random) -> _Test:
    kind = rng.choice(["more", "least", "less", "most", "more", "least", "less", "most", "even", "odd", "divides", "from"])
    k, d = rng.randint(-5, 15), rng.randint(3, 7)
    above, below = [f"more than {k}", f"above {k}"], [f"less than {k}", f"below {k}"]
    least, most = [f"at least {k}", f"{k} or more"], [f"at most {k}", f"{k} or less"]
    near = (k - 1, k, k + 1)
    if kind == "more":
        return _Test(f"> {k}", above, most, f"{{x}} > {k}", lambda x: x > k, near)
    if kind == "least":
        return _Test(f">= {k}", least, below, f"{{x}} >= {k}", lambda x: x >= k, near)
    if kind == "less":
        return _Test(f"< {k}", below, least, f"{{x}} < {k}", lambda x: x < k, near)
    if kind == "most":
        return _Test(f"<= {k}", most, above, f"{{x}} <= {k}", lambda x: x <= k, near)
    if kind == "even":
        return _Test("even", ["even"], ["odd"], "{x} % 2 == 0", lambda x: not x & 1, (0, 1, -1, -2))
    if kind == "odd":
        return _Test("odd", ["odd"], ["even"], "{x} % 2 == 1", lambda x: bool(x & 1), (0, 1, -1, -2))
    if kind == "divides":
        yes, no = [f"divisible by {d}", f"a multiple of {d}"], [f"not divisible by {d}"]
        return _Test(f"% {d}", yes, no, f"{{x}} % {d} == 0", lambda x: x in range(x - x % d, x + 1, d), (0, d, -d, d - 1, d + 1))
    top = k + rng.randint(2, 9)
    inside = [f"from {k} to {top}", f"at least {k} and at most {top}"]
    outside = [f"less than {k} or more than {top}"]
    return _Test(
        f"{k}..{top}", inside, outside, f"{k} <= {{x}} <= {top}", lambda x: x in range(k, top + 1), (*near, top, top + 1)
    )


def _change(rng: random.Random) -> tuple[str, Sequence[str], Sequence[str], Callable[[int], int], Sequence[int]]:
    """A change of one number: key, how it is told of ``it``, Python, function, edges."""
    kind = rng.choice(["add", "subtract", "times", "square", "floor", "remainder", "limit", "raise", "negate", "abs", "from"])
    k, d = rng.randint(2, 15), rng.randint(2, 9)
    if kind == "add":
        return f"+ {k}", [f"add {k} to {{it}}", f"make {{it}} {k} more"], [f"{{x}} + {k}"], lambda x: x - -k, ()
    if kind == "subtract":
        said = [f"subtract {k} from {{it}}", f"take {k} from {{it}}", f"make {{it}} {k} less"]
        return f"- {k}", said, [f"{{x}} - {k}"], lambda x: x + -k, ()
    if kind == "from":
        return f"{k} -", [f"subtract {{it}} from {k}", f"take {{it}} from {k}"], [f"{k} - {{x}}"], lambda x: -x + k, ()
    if kind == "times":
        said = ["double {it}"] if d == 2 else [f"multiply {{it}} by {d}", f"take {{it}} {d} times"]
        return f"* {d}", said, [f"{{x}} * {d}"], lambda x: sum([x] * d), ()
    if kind == "square":
        return "square", ["square {it}", "multiply {it} by {its}"], ["{x} * {x}", "{x} ** 2"], lambda x: abs(x) ** 2, (-3,)
    if kind == "floor":
        said = ["take half of {it}, rounded down"] if d == 2 else [f"divide {{it}} by {d}, rounded down"]
        return f"// {d}", said, [f"{{x}} // {d}"], lambda x: math.floor(x / d), (-1, d, d - 1)
    if kind == "remainder":
        return f"% {d}", [f"replace {{it}} with the remainder by {d}"], [f"{{x}} % {d}"], lambda x: x - d * (x // d), (-1, d, 0)
    if kind == "limit":
        said = [f"make {{it}} at most {k}", f"replace {{it}} with {k} if more than {k}"]
        return f"min {k}", said, [f"min({{x}}, {k})", f"{k} if {{x}} > {k} else {{x}}"], lambda x: sorted((x, k))[0], (k, k + 1)
    if kind == "raise":
        k -= 8
        said = [f"make {{it}} at least {k}", f"replace {{it}} with {k} if less than {k}"]
        return f"max {k}", said, [f"max({{x}}, {k})", f"{k} if {{x}} < {k} else {{x}}"], lambda x: sorted((x, k))[1], (k, k - 1)
    if kind == "negate":
        return "neg", ["change the sign of {it}"], ["-{x}"], lambda x: 0 - x, (0,)
    return "abs", ["drop the sign of {it}", "take the abs value of {it}"], ["abs({x})"], lambda x: max(x, -x), (-1, 0)


def _either(rng: random.Random) -> tuple[str, Sequence[str], Sequence[str], Callable[[int], int], Sequence[int]]:
    """One of two changes, as a test says."""
    test = _test(rng)
    key, said, code, run, near = _change(rng)
    key2, said2, code2, run2, near2 = next(other for other in iter(lambda: _change(rng), None) if other[0] != key)
    clauses = [f"if {{it}} is {yes}, {said[0]}, or else {said2[0]}" for yes in test.yes]
    written = [f"{_bracketed(code[0])} if {test.code} else {_bracketed(code2[0])}"]
    edges = [*test.edges, *near, *near2]
    return f"{test.key} ? {key} : {key2}", clauses, written, lambda x: run(x) if test.run(x) else run2(x), edges


def _bracketed(code: str) -> str:
    return f"({code})" if " if " in code else code


def on_list(rng: random.Random) -> Operation:
    """One that makes a list of numbers from a list of numbers."""
    kind = rng.choices(["keep", "each", "either", "order"], [40, 34, 8, 26])[0]
    if kind == "keep":
        test = _test(rng)
        said = [f"keep those that are {yes}" for yes in test.yes] + [f"drop those that are {no}" for no in test.no]
        said += [f"take only the numbers that are {test.yes[0]}"]
        return Operation(f"keep {test.key}", "keep", said, [test.code], lambda v: [x for x in v if test.run(x)], test.edges)
    if kind != "order":
        key, told, code, run, edges = _change(rng) if kind == "each" else _either(rng)
        said = [clause.format(it="each number", its="itself") for clause in told[:1]]
        said += [clause.format(it=it, its="itself") for clause in told for it in ("each", "every number")]
        return Operation(f"each {key}", "each", said, code, lambda v: [run(x) for x in v], edges)
    k = rng.randint(2, 4)
    orders: list[tuple[str, list[str], list[str], Callable[[list[int]], list[int]]]] = [
        ("reverse", ["reverse the order", "turn the list around"], ["{v}[::-1]", "list(reversed({v}))"],
         lambda v: [*reversed(v)]),
        ("sort", ["sort them", "sort them up"], ["sorted({v})"], lambda v: sorted(v)),
        ("down", ["sort them down", "sort them from large to small"], ["sorted({v}, reverse=True)"], lambda v: sorted(v)[::-1]),
        (f"first {k}", [f"keep the first {k}", f"take only the first {k}"], [f"{{v}}[:{k}]"], lambda v: v[: min(k, len(v))]),
        (f"last {k}", [f"keep the last {k}", f"take only the last {k}"], [f"{{v}}[-{k}:]"], lambda v: v[max(0, len(v) - k) :]),
        (f"drop {k}", [f"drop the first {k}", f"leave out the first {k}"], [f"{{v}}[{k}:]"], lambda v: v[min(k, len(v)) :]),
        ("drop last", ["drop the last one", "leave out the last"], ["{v}[:-1]"], lambda v: v[: max(0, len(v) - 1)]),
        ("odd places", ["keep every second one, from the first on"], ["{v}[::2]"],
         lambda v: [x for i, x in enumerate(v) if not i & 1]),
        ("even places", ["keep every second one, from the second on"], ["{v}[1::2]"],
         lambda v: [x for i, x in enumerate(v) if i & 1]),
        ("once", ["drop repeats", "keep only the first of equal ones"], ["list(dict.fromkeys({v}))"], _once),
        ("running", ["replace them with their running sums"], ["[sum({v}[:i + 1]) for i in range(len({v}))]"],
         lambda v: [*accumulate(v)]),
        ("gaps", ["replace them with each minus the one before"], ["[b - a for a, b in zip({v}, {v}[1:])]"],
         lambda v: [v[i] - v[i - 1] for i in range(1, len(v))]),
    ]  # fmt: skip
    name, said, written, change = rng.choice(orders)
    return Operation(name, "whole", said, written, change)


def _once(values: list[int]) -> list[int]:
    return [x for i, x in enumerate(values) if x not in values[:i]]


def from_list(rng: random.Random) -> Operation:
    """One that makes a number from a list of numbers."""
    none = rng.choice([0, 0, -1])
    test = _test(rng)
    or_none = f"or {none} if there is none"
    product = "result = 1\nfor {x} in {v}:\n    result *= {x}\nreturn result"
    ends: list[tuple[str, list[str], list[str], Callable[[list[int]], int]]] = [
        ("sum", ["the sum", "their sum", "the total"], ["sum({v})"], lambda v: [0, *accumulate(v)][-1]),
        ("len", ["how many there are", "the number of them"], ["len({v})"], lambda v: sum(1 for _ in v)),
        (f"count {test.key}", [f"how many are {yes}" for yes in test.yes], [f"sum(1 for {{x}} in {{v}} if {test.code})"],
         lambda v: [test.run(x) for x in v].count(True)),
        (f"max {none}", [f"the max, {or_none}", f"the largest, {or_none}"], [f"max({{v}}, default={none})"],
         lambda v: sorted(v)[-1] if v else none),
        (f"min {none}", [f"the min, {or_none}", f"the smallest, {or_none}"], [f"min({{v}}, default={none})"],
         lambda v: sorted(v)[0] if v else none),
        (f"first {none}", [f"the first, {or_none}"], [f"{{v}}[0] if {{v}} else {none}"], lambda v: next(iter(v), none)),
        (f"last {none}", [f"the last, {or_none}"], [f"{{v}}[-1] if {{v}} else {none}"], lambda v: next(reversed(v), none)),
        (f"spread {none}", [f"the max minus the min, {or_none}"], [f"max({{v}}) - min({{v}}) if {{v}} else {none}"],
         lambda v: sorted(v)[-1] - sorted(v)[0] if v else none),
        ("product", ["the product", "all of them multiplied"], [product], lambda v: math.prod(v)),
    ]  # fmt: skip
    name, said, written, end = rng.choice(ends)
    return Operation(name, "last", said, written, end, test.edges if name.startswith("count") else ())


VOWELS = "aeiou"


def on_string(rng: random.Random) -> Operation:
    """One that makes a string from a string."""
    a, b = rng.sample("abcdeinorst", 2)
    k = rng.randint(2, 5)
    choices: list[tuple[str, Role, list[str], list[str], Callable[[str], str]]] = [
        (f"drop {a}", "whole", [f'drop every "{a}"', f'leave out all "{a}"'], [f'{{v}}.replace("{a}", "")'],
         lambda s: "".join(s.split(a))),
        (f"swap {a} {b}", "whole", [f'replace every "{a}" with "{b}"', f'put "{b}" for every "{a}"'],
         [f'{{v}}.replace("{a}", "{b}")'], lambda s: b.join(s.split(a))),
        ("vowels", "keep", ["keep only the vowels"], ['{x} in "aeiou"'], lambda s: "".join(c for c in s if VOWELS.count(c))),
        ("no vowels", "keep", ["drop the vowels", "leave out the vowels"], ['{x} not in "aeiou"'],
         lambda s: "".join(c for c in s if not VOWELS.count(c))),
        (f"keep {a}{b}", "keep", [f'keep only "{a}" and "{b}"'], [f'{{x}} in "{a}{b}"', f'{{x}} == "{a}" or {{x}} == "{b}"'],
         lambda s: "".join(c for c in s if {a, b} & {c})),
        ("twice", "each", ["double each letter", "write every letter twice"], ["{x} * 2", "{x} + {x}"],
         lambda s: "".join(c for c in s for _ in "12")),
        (f"behind {b}", "each", [f'put "{b}" after each letter', f'add "{b}" after every letter'], [f'{{x}} + "{b}"'],
         lambda s: "".join(f"{c}{b}" for c in s)),
        ("up vowels", "each", ["make the vowels upper case"], ['{x}.upper() if {x} in "aeiou" else {x}'],
         lambda s: s.translate({ord(c): ord(c) - 32 for c in VOWELS})),
        ("upper", "whole", ["make it upper case"], ["{v}.upper()"],
         lambda s: s.translate({ord(c): ord(c) - 32 for c in "abcdefghijklmnopqrstuvwxyz"})),
        ("reverse", "whole", ["reverse it", "turn it around"], ["{v}[::-1]", '"".join(reversed({v}))'],
         lambda s: "".join([*s][::-1])),
        (f"first {k}", "whole", [f"keep the first {k} letters"], [f"{{v}}[:{k}]"], lambda s: s[: min(k, len(s))]),
        (f"last {k}", "whole", [f"keep the last {k} letters"], [f"{{v}}[-{k}:]"], lambda s: s[max(0, len(s) - k) :]),
        (f"less {k}", "whole", [f"drop the first {k} letters"], [f"{{v}}[{k}:]"], lambda s: s[min(k, len(s)) :]),
        ("odd places", "whole", ["keep every second letter, from the first on"], ["{v}[::2]"],
         lambda s: "".join(c for i, c in enumerate(s) if not i & 1)),
        ("even places", "whole", ["keep every second letter, from the second on"], ["{v}[1::2]"],
         lambda s: "".join(c for i, c in enumerate(s) if i & 1)),
        (f"end {a}", "whole", [f'add "{a}" at the end'], [f'{{v}} + "{a}"'], lambda s: f"{s}{a}"),
        (f"start {a}", "whole", [f'add "{a}" at the start'], [f'"{a}" + {{v}}'], lambda s: f"{a}{s}"),
        ("sort", "whole", ["sort the letters"], ['"".join(sorted({v}))'], lambda s: "".join(sorted([*s]))),
    ]  # fmt: skip
    return Operation(*rng.choice(choices))


def from_string(rng: random.Random) -> Operation:
    """One that makes a number from a string."""
    a = rng.choice("abcdeinorst")
    k = rng.randint(2, 9)
    choices: list[tuple[str, list[str], list[str], Callable[[str], int]]] = [
        ("len", ["how many letters there are", "the number of letters"], ["len({v})"], lambda s: sum(1 for _ in s)),
        (f"len * {k}", [f"the number of letters, times {k}"], [f"len({{v}}) * {k}"], lambda s: sum(k for _ in s)),
        (f"len - {k}", [f"the number of letters, minus {k}"], [f"len({{v}}) - {k}"], lambda s: sum(1 for _ in s) - k),
        (f"count {a}", [f'how many "{a}" there are', f'the number of "{a}"'], [f'{{v}}.count("{a}")'],
         lambda s: len(s.split(a)) - 1),
        (f"find {a}", [f'the place of the first "{a}" from 0, or -1 if there is none'], [f'{{v}}.find("{a}")'],
         lambda s: next((i for i, c in enumerate(s) if c == a), -1)),
        ("count vowels", ["how many vowels there are", "the number of vowels"], ['sum(1 for {x} in {v} if {x} in "aeiou")'],
         lambda s: sum(s.count(c) for c in VOWELS)),
        ("kinds", ["how many different letters there are"], ["len(set({v}))"], lambda s: len(dict.fromkeys(s))),
    ]  # fmt: skip
    name, said, written, end = rng.choice(choices)
    return Operation(name, "last", said, written, end)


def on_number(rng: random.Random) -> Operation:
    """One that makes a number from a number."""
    if rng.random() < 0.12:
        written = ["sum(int(d) for d in str(abs({v})))"]
        return Operation("digits", "whole", ["take the sum of its digits"], written, lambda x: _digits(abs(x)), (-12, 99, 10))
    key, told, code, run, edges = (_change if rng.random() < 0.45 else _either)(rng)
    said = [clause.format(it="it", its="itself") for clause in told]
    return Operation(key, "whole", said, [c.replace("{x}", "{v}") for c in code], run, edges)


def _digits(x: int) -> int:
    return x % 10 + _digits(x // 10) if x else 0
