"""Says whether two final answers are the same, exactly and without a library: same, different, or unknown.

*Same* when canonical keys are equal. *Different* only where that is proven: both are read into exact values that differ.
Everything else is unknown, and so is what depends on the question:

- A unit is dropped where only one side has it, and is no part of the key. Two different units are unknown, and so is a ratio
  that a change of unit explains (``3 ft`` and ``36``).
- Percent is a unit: ``10\\%`` is the same as ``10``; against ``0.1`` it is unknown, and ``10`` against ``0.1`` is different. So
  no chain of "same" ever joins ``10`` and ``0.1``.
- ``x = 5`` is ``5``; against ``y = 5`` it is unknown. A bare list ``1, 2`` has no order and is the set; a tuple has one.
- Decimals are what they say: ``0.5`` is ``1/2``, ``0.333`` is not ``1/3``. A base is kept: ``4210_5`` is not ``4210``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

from .algebra import BOTH, Foreign, Poly, Unread
from .notation import normal
from .shapes import read
from .units import related
from .values import Answer, Value

Relation = Literal["same", "different", "unknown"]


_DROPPED = re.compile(
    r"\\text|\d ?_|(?<![\\A-Za-z])(?<!\\end\{)(?<!\\begin\{)[A-Za-z]{4,}"
    r"|[='…]|\\(?:approx|sim|simeq|cong|equiv|neq?|mid|p?mod|to|implies|iff|[Rr]ightarrow)(?![A-Za-z])"
)
"""What math-verify drops or cuts off, or takes for a product of letters: words, the base of a number, one side of a relation."""


class Form(NamedTuple):
    """A number or expression, as a computer algebra system is asked about it."""

    text: str
    canonical: bool
    """Whether ``text`` is the key of a ``Poly``: what was read here, whatever another reader makes of it; else it is LaTeX."""


@dataclass(frozen=True)
class Outcome:
    """How two answers compare."""

    relation: Relation
    reason: str = ""
    ask: tuple[tuple[Form, Form], ...] = ()
    """What a computer algebra system may know: the answers are the same if these pairs all are, different if one is. Empty for
    what is ambiguous, and for what is no expression."""


def key(text: str) -> str | None:
    """What equal answers share: the canonical form, else the text in one spelling; None where it is too long for either."""
    try:
        spelled = normal(text)
    except Unread:
        return None
    try:
        return read(text).value.key
    except Unread:
        return spelled or None


def compare(gold: str, answer: str) -> Outcome:
    """Whether ``answer`` says what ``gold`` says. Symmetric; ``same`` implies equal keys. Never raises."""
    try:
        spelled = normal(gold), normal(answer)
    except Unread as error:
        return Outcome("unknown", str(error))
    if spelled[0] == spelled[1] and spelled[0]:
        return Outcome("same", "as written")
    try:
        a, b = read(gold), read(answer)
    except Unread as error:
        foreign = isinstance(error, Foreign) and not any(map(_DROPPED.search, spelled))
        return Outcome("unknown", str(error), ask=((_form(gold), _form(answer)),) if foreign else ())
    if reason := _ambiguous(a, b):
        return Outcome("unknown", reason)
    if a.value.key == b.value.key:
        return Outcome("same", "equal values")
    if not _regrouped(a.value, b.value, spelled) and differ(a.value, b.value):
        return Outcome("different", "different values")
    return Outcome("unknown", "no proof either way", ask=_pairs(a.value, b.value))


def _form(text: str) -> Form:
    """An answer as it was read, if it is a number or an expression; else as it is written."""
    try:
        answer = read(text)
    except Unread:
        return Form(text, False)
    return Form(text, False) if answer.unit or answer.value.shape != "number" else Form(answer.value.key, True)


def _pairs(a: Value, b: Value) -> tuple[tuple[Form, Form], ...]:
    """The expressions, place by place, on which it depends whether two values are the same; empty if there are no such places.

    One at least has no canonical form, so that a simplifier may find more than the keys show.
    """
    if a.shape == b.shape == "number" and a.poly is not None and b.poly is not None:
        if _free(a.poly) and _free(b.poly):
            return ()
        return () if a.poly.exact and b.poly.exact else ((Form(a.key, True), Form(b.key, True)),)
    if a.shape != b.shape or a.shape not in ("ordered", "matrix") or (a.detail, len(a.items)) != (b.detail, len(b.items)):
        return ()
    pairs = [_pairs(x, y) for x, y in zip(a.items, b.items, strict=True) if x.key != y.key]
    return tuple(pair for found in pairs for pair in found) if all(pairs) else ()


def _ambiguous(a: Answer, b: Answer) -> str:
    """Why it takes the question to compare the two; empty where it does not."""
    if a.name and b.name and a.name != b.name:
        return "two names"
    if a.unit and b.unit and not f"{a.unit} ".startswith(f"{b.unit} ") and not f"{b.unit} ".startswith(f"{a.unit} "):
        return "two units"
    if a.unit == b.unit or a.value.key == b.value.key:
        return ""
    values = [v.poly.rational if v.poly else None for v in (a.value, b.value)]
    if values[0] is not None and values[1] is not None and related(values[0], values[1]):
        return "perhaps in another unit"
    if "degree" in a.unit + b.unit and "pi" in a.value.key + b.value.key:
        return "degrees or radians"
    return ""


def _regrouped(a: Value, b: Value, texts: tuple[str, str]) -> bool:
    """Whether a comma may stand between digits in one and between numbers in the other."""
    if a.shape != b.shape and any(re.fullmatch(r"-?\d+,\d+", text) for text in texts):
        return True
    return (a.shape, len(a.items)) != (b.shape, len(b.items)) and any(re.search(r"\d,\d{3}(?!\d)", text) for text in texts)


def differ(a: Value, b: Value) -> bool:
    """Whether two values, whose keys differ or not, are proven different."""
    if a.key == b.key and a.shape == b.shape:
        return False
    if a.shape != b.shape:
        return _shapes_differ(a, b) or _shapes_differ(b, a)
    if a.shape == "number":
        return a.poly is not None and b.poly is not None and _numbers_differ(a.poly, b.poly)
    if a.shape == "word":
        return _words_differ(a, b)
    if a.shape == "based":
        return a.poly != b.poly
    if a.shape == "ratio":
        return len(a.items) == len(b.items) == 2 and _cross(a) * _cross(b, 1) != _cross(b) * _cross(a, 1)
    if a.shape == "ordered":
        if any(item.shape == "unordered" for item in (*a.items, *b.items)):
            return False  # signs that go together, or not
        if len(a.items) != len(b.items) or any(map(differ, a.items, b.items)):
            return True
        same = all(x.key == y.key for x, y in zip(a.items, b.items, strict=True))
        return len(a.items) == 2 and a.detail != b.detail and same and (_interval(a) or _interval(b))
    if a.shape == "unordered":
        return _foreign(a, b) or _foreign(b, a)
    if a.shape == "equation":
        return _linear(a.poly) and _linear(b.poly) and _letters(a) == _letters(b)
    if a.shape == "union":
        return not a.detail and not b.detail
    if a.shape == "matrix" and a.detail != b.detail:
        return True
    return a.detail == b.detail and any(map(differ, a.items, b.items))  # a matrix, or values with names


def _shapes_differ(a: Value, b: Value) -> bool:
    if a.shape == "number" and a.poly is not None:
        if b.shape == "based":
            return a.poly.rational is not None and a.poly != b.poly
        if b.shape in ("ordered", "unordered", "union", "matrix"):
            return a.poly.exact and not a.poly.letters and all(differ(a, item) for item in b.items if len(b.items) == 1)
    if a.shape == "ordered" and b.shape == "unordered":
        if any(item.shape == "ordered" for item in b.items):
            return all(differ(a, item) for item in b.items)
        return _foreign(a, b) or _foreign(b, a)
    if a.shape == "ordered" and b.shape == "union":
        return not b.detail and all(v.poly is not None and (v.poly.rational is not None or "∞" in v.key) for v in a.items)
    return a.shape == "unordered" and b.shape == "union" and not b.detail and all(v.shape == "number" for v in a.items)


def _interval(value: Value) -> bool:
    """Whether it is surely an interval, not a point or a vector."""
    return value.detail in ("[)", "(]") or any("∞" in item.key for item in value.items)


def _numbers_differ(a: Poly, b: Poly) -> bool:
    if not (a.exact and b.exact) or (_free(a) and _free(b)):
        return False
    if ("j" in a.letters) != ("j" in b.letters):
        return False  # perhaps the imaginary unit
    if a.letters != b.letters and len(a.letters) == len(b.letters):
        return False  # perhaps the same with other names
    for one, other in ((a, b), (b, a)):
        if not one.letters and len(other.terms) == 1 and _perhaps_unit(other.letters):
            return False  # perhaps 5 and 5 metres, or 5 and 5 mol
    return True


def _free(poly: Poly) -> bool:
    """Whether it is true of any constant: ``x^2 + C``, or ``k*pi``, which other expressions may say as well."""
    names = [tuple(name for name, e in monomial if e == 1) for monomial in poly.terms]
    alone = any(len(found) == 1 and found[0] in ("C", "c", "K", "k") for found in names)
    return (alone and len(names) > 1) or any("pi" in found and {"k", "n", "m"} & set(found) for found in names)


_UNIT_LETTERS = frozenset((*"mghsLlNJWVAKCFHTSkMB", "Omega"))  # k, M and B: thousands, millions, billions
_UNIT_SPELLING = _UNIT_LETTERS | frozenset((*"abcdeknoprtuvzPGMDBQ", "mu"))


def _perhaps_unit(letters: frozenset[str]) -> bool:
    """Whether letters may spell a unit: one that is one, or several of those of which compound units are made."""
    return bool(letters) and letters <= (_UNIT_LETTERS if len(letters) == 1 else _UNIT_SPELLING)


def _words_differ(a: Value, b: Value) -> bool:
    choices = [v.detail.startswith("choice") for v in (a, b)]
    if any(choices):
        return all(choices)
    if a.key != a.detail or b.key != b.detail or min(len(a.key), len(b.key)) < 4:
        return a.key in _PARITY and b.key in _PARITY
    alike = a.key[:4] == b.key[:4] or SequenceMatcher(None, a.key, b.key).ratio() >= 0.75
    return not (alike or {a.key, b.key} <= _VERDICTS or {a.key, b.key} & _COUNTS)


_PARITY = frozenset(("odd", "even", "yes", "no"))
_VERDICTS = frozenset(
    "true right correct valid yes none never false wrong incorrect invalid zero null nothing neither always impossible undefined "
    "divergent diverges convergent converges".split()
)
_COUNTS = frozenset("dozen half twice thrice single double triple pair couple score gross".split())


def _foreign(a: Value, b: Value) -> bool:
    """Whether something in ``a`` is proven to be none of ``b``."""
    return any(all(differ(item, other) for other in b.items) for item in a.items)


def _cross(ratio: Value, at: int = 0) -> int:
    poly = ratio.items[at].poly
    return int(poly.rational or 0) if poly else 0


def _letters(value: Value) -> frozenset[str]:
    return value.poly.letters if value.poly else frozenset()


def _linear(poly: Poly | None) -> bool:
    if poly is None or not poly.exact or BOTH in poly.letters:
        return False
    degrees = [[e for name, e in m if name in poly.letters] for m in poly.terms]
    return all(sum(d) <= 1 and min(d, default=1) > 0 for d in degrees)
