"""What final answers say: values with canonical keys, and how sets, tuples, intervals and unions are made of others.

A key is canonical: the same value, the same key. Nothing is read here (:mod:`.shapes`) nor compared (:mod:`.exact`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from .algebra import Poly, Unread, letter, number

INFINITY = letter("∞")

Shape = Literal["number", "word", "based", "ratio", "ordered", "unordered", "named", "matrix", "union", "equation"]


@dataclass(frozen=True)
class Value:
    """What an answer says."""

    shape: Shape
    key: str
    items: tuple[Value, ...] = ()
    poly: Poly | None = None
    """Of a number; of an equation, what is zero."""
    detail: str = ""
    """Brackets of what is ordered, names of what is named, rows x columns of a matrix, digits and base, the first word."""


@dataclass(frozen=True)
class Answer:
    """A value with what stood around it and is no part of it: ``x =``, a unit."""

    value: Value
    unit: str = ""
    name: str = ""


def either(poly: Poly) -> Value:
    """The number; with a plus-minus in it, both."""
    branches = [value_of(branch) for branch in poly.branches()]
    return branches[0] if len(branches) == 1 else unordered(branches)


def value_of(poly: Poly) -> Value:
    """An expression without a plus-minus."""
    return Value("number", poly.key, poly=poly)


def ordered(brackets: str, items: list[Value]) -> Value:
    """A tuple, a vector, an interval."""
    return Value("ordered", brackets[0] + ", ".join(v.key for v in items) + brackets[1], tuple(items), detail=brackets)


def unordered(items: list[Value], *, counted: bool = False) -> Value:
    """A set; with ``counted``, a list that says how often. What a plus-minus made of an element is taken apart."""
    flat = [v for item in items for v in (item.items if item.shape == "unordered" else (item,))]
    unique = {v.key: v for v in sorted(flat, key=lambda v: v.key)}
    keys = sorted(v.key for v in flat) if counted else list(unique)
    return Value("unordered", "{" + ", ".join(keys) + "}", tuple(unique.values()))


Cut = tuple[Fraction | float, int]
"""Between the numbers: (v, 0) right before v, (v, 1) right behind it."""


def union(parts: list[Value]) -> Value:
    """Intervals and sets with rational ends, merged where they meet; others as they are written, in order."""
    spans = [span for part in parts for span in _spans(part)]
    if not spans or None in spans:
        return Value("union", " ∪ ".join(sorted(part.key for part in parts)), detail="as written")
    merged: list[tuple[Cut, Cut]] = []
    for low, high in sorted(span for span in spans if span):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    values = [_span(low, high) for low, high in merged]
    if len(values) == 1:
        return values[0]
    return Value("union", " ∪ ".join(v.key for v in values), tuple(values))


def _spans(part: Value) -> list[tuple[Cut, Cut] | None]:
    """The intervals that a value stands for; None for what has no rational ends."""
    ends = [_end(item) for item in part.items]
    if part.shape == "unordered":
        return [((end, 0), (end, 1)) if isinstance(end, Fraction) else None for end in ends]
    if part.shape == "union":
        return [span for item in part.items or (part,) for span in (_spans(item) if item is not part else [None])]
    if part.shape != "ordered" or len(ends) != 2 or part.detail[0] not in "([" or part.detail[1] not in ")]":
        raise Unread("a union of what are not intervals")
    low, high = ends
    if low is None or high is None:
        return [None]
    cuts = (low, int(part.detail[0] == "(")), (high, int(part.detail[1] == "]"))
    if cuts[0] >= cuts[1]:
        raise Unread("an empty interval")
    return [cuts]


def _end(item: Value) -> Fraction | float | None:
    if item.poly is None:
        return None
    return {INFINITY.key: math.inf, (-INFINITY).key: -math.inf}.get(item.key, item.poly.rational)


def _span(low: Cut, high: Cut) -> Value:
    ends = [
        value_of(number(end) if isinstance(end, Fraction) else INFINITY if end > 0 else -INFINITY) for end in (low[0], high[0])
    ]
    if low[0] == high[0]:
        return unordered(ends[:1])
    return ordered(("(" if low[1] else "[") + ("]" if high[1] else ")"), ends)
