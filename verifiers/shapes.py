"""Reads a final answer: numbers and expressions, lists, sets, tuples, intervals, unions, matrices, equations, words.

Exact or not at all: what has no place here raises ``Unread``. A value's key is canonical, so values are the same when their keys
are; which other keys prove a difference is for :mod:`.exact` to say.
"""

from __future__ import annotations

import re

from .algebra import Unread, bounded, number
from .expressions import expression
from .notation import OPEN, OR, ROW, enclosed, normal, split
from .tokens import FUNCTIONS, GREEK
from .units import measured
from .values import INFINITY, Answer, Value, either, ordered, union, unordered, value_of

_WORD = re.compile(r"(?:\\text ?\{[^{}\\]*\}|[A-Za-z][A-Za-z'.-]*+|[ ])++")
_CHOICE = re.compile(r"(?:\\text ?\{ ?)?(?:\(([A-Ja-j])\)|([A-J])[).:]?)(?: ?\})?(?P<more>.*)")
_REMARK = re.compile(
    rf"\([A-Ja-j]\)|(?:[,{OR}]|\b(?:and|or|nor)\b)[^A-Za-z]*[A-J]\b|^ *[-+*/^=<>]"
    r"|^[ \\]*(?:text ?\{ ?)?(?:is|isn't|are|was|not|wrong|false|incorrect)\b"
)
"""Behind a choice: another one, or words about it."""
_SHORT = re.compile(r"(?i:no|on|or|if|up|us|it|so|is)|[IVXL]{2,}")
"""Words that are no products of letters."""
_LETTER = re.compile(rf"(?:[A-Za-z]|\\(?:{'|'.join(sorted(GREEK))})(?![A-Za-z]))(?:'|_ ?\w|_ ?\{{ ?\w+ ?\}})*")
_NAME = re.compile(
    rf"{_LETTER.pattern} ?(?:\([^()=]{{1,10}}\))?|[A-Za-z] ?\^ ?\{{ ?-1 ?\}} ?\([^()=]{{1,10}}\)"
    r"|\\text ?\{[^{}]*\}|[A-Za-z]{4,}(?: [A-Za-z]+)*|[A-Z]{2,3}"
)
_BASED = re.compile(r"(-?)([0-9A-Z]*[0-9][0-9A-Z]*) ?_ ?(?:(\d)|\{ ?(\d+) ?\})")
_MATRIX = re.compile(r"(.*?)[(\[]? ?\\begin ?\{([pb]?matrix|array)\}(?:\{[lcr| ]*\})?(.*?)\\end ?\{\2\} ?[)\]]?", re.S)
_ORDER = re.compile(r"\\(?:le|ge)(?![A-Za-z])|[<>]")


def read(text: str) -> Answer:
    """The answer that ``text`` states. Raises ``Unread``, and nothing else."""
    try:
        with bounded():
            return _answer(normal(text))
    except RecursionError:
        raise Unread("nested too deep") from None


def _answer(text: str) -> Answer:
    while text.startswith("{") and enclosed(text):
        text = text[1:-1].strip()
        if len(split(text, ",", grouped=True)) > 1:
            text = f"⦃{text}⦄"
    if not text:
        raise Unread("nothing")
    if word := _word(text):
        return Answer(word)
    if OR in text:
        alternatives = split(text, OR)
        if len(alternatives) > 1 and all(map(_ranged, alternatives)):
            return _either(alternatives)
        text = text.replace(OR, ",")
    parts = [part for part in split(text, ",", grouped=True) if part]
    if len(parts) > 1:
        return _listed(parts)
    sides = split(text, "=")
    if len(sides) > 1:
        return _equal(sides)
    member = split(text, r"\in")
    if len(member) == 2 and _NAME.fullmatch(member[0]):
        inner = _answer(member[1])
        return Answer(inner.value, inner.unit, member[0])
    if _ORDER.search(text):
        return _inequality(text)
    return _plain(text)


def _plain(text: str) -> Answer:
    """An answer without a name: a matrix, a union, something in brackets, digits in a base, a ratio, an expression."""
    if matrix := _MATRIX.fullmatch(text):
        return Answer(_matrix(matrix[1].strip(), matrix[3]))
    united = split(text, r"\cup")
    if len(united) > 1:
        return Answer(union([_answer(part).value for part in united]))
    if text in (r"\emptyset", r"\varnothing"):
        return Answer(unordered([]))
    if re.fullmatch(r"\\mathbb ?\{? ?R ?\}?", text):
        return Answer(ordered("()", [value_of(-INFINITY), value_of(INFINITY)]))
    if text[0] in OPEN and enclosed(text):
        bracketed = _bracketed(text)
        if bracketed:
            return bracketed
    if based := _BASED.fullmatch(text):
        return Answer(_based(based[1], based[2], int(based[3] or based[4])))
    bare, unit = measured(text)
    if "degree" in unit and re.search("sin|cos|tan|cot|sec|csc", bare):
        raise Unread("a function of degrees")
    if re.fullmatch(r"\d+(?: ?: ?\d+)+", bare):
        parts = [str(int(part)) for part in bare.split(":")]
        return Answer(Value("ratio", ":".join(parts), tuple(value_of(number(int(part))) for part in parts)), unit)
    return Answer(_scalar(bare), unit)


def _scalar(text: str) -> Value:
    if infinite := re.fullmatch(r"([+-]?) ?\\infty", text):
        return value_of(-INFINITY if infinite[1] == "-" else INFINITY)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    if re.fullmatch(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?", text):
        text = text.replace(" ", "")
    return either(expression(text))


def _word(text: str) -> Value | None:
    choice = _CHOICE.fullmatch(text)
    if choice and choice["more"] and _REMARK.search(choice["more"]) and re.match(r"[ :\\,]", choice["more"]):
        if choice[1] and choice[1].islower() and "\\text" not in text:
            return None  # a letter in brackets, as in (a) + b
        raise Unread("several choices, or a remark on one")
    if choice and (not choice["more"] or (choice[1] and re.match(r"[ :\\]", choice["more"]))):
        return Value("word", f"({(choice[1] or choice[2]).upper()})", detail="choice")
    if not _WORD.fullmatch(text):
        return None
    bare = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text)
    words = re.findall(r"[a-z]+", bare.lower())
    products = max(map(len, words), default=0) < 3 and not _SHORT.fullmatch(text)
    if not words or ("\\text" not in text and (products or words[0] in FUNCTIONS or words[0] == "sqrt")):
        return None
    return Value("word", " ".join(re.sub(r"[^\w'/-]+", " ", bare.lower()).split()), detail=words[0])


def _bracketed(text: str) -> Answer | None:
    """A set, a tuple, an interval; None for an expression in brackets."""
    opening, closing, inner = text[0], text[-1], text[1:-1].strip()
    parts = split(inner, ",") if inner else []
    if opening == "⦃" or (not parts and opening in "({"):
        if closing != "⦄":
            raise Unread("brackets of two kinds")
        if any(part.startswith("⦃") for part in parts):
            raise Unread("a set of sets")
        answers = [_answer(part) for part in parts]
        return Answer(unordered([a.value for a in answers]), _one({a.unit for a in answers}))
    if len(parts) < 2:
        return _answer(inner) if opening == "(" and closing == ")" and _ORDER.search(inner) is None and "=" not in inner else None
    if any(re.fullmatch(r"0\d\d", part) for part in parts[1:]):
        raise Unread("commas between numbers or between digits")
    answers = [_answer(part) for part in parts]
    if any(a.name for a in answers):
        raise Unread("names inside of a tuple")
    return Answer(ordered(opening + closing, [a.value for a in answers]), _one({a.unit for a in answers}))


def _ranged(text: str) -> bool:
    """Whether it is surely a range of numbers rather than a point."""
    return bool(_ORDER.search(text)) or bool(re.fullmatch(r"\[.*\)|\(.*\]|\(.*\\infty.*\)", text))


def _either(parts: list[str]) -> Answer:
    """``x < 1 or x > 3``: the union."""
    answers = [_answer(part) for part in parts]
    names = {a.name for a in answers} - {""}
    if len(names) > 1:
        raise Unread("ranges of several letters")
    return Answer(union([a.value for a in answers]), "", max(names, default=""))


def _listed(parts: list[str]) -> Answer:
    answers = [_answer(part) for part in parts]
    words = sum(a.value.shape == "word" for a in answers)
    if 0 < words < len(answers):
        raise Unread("words among values")
    if any(map(_ORDER.search, parts)):
        raise Unread("several inequalities")
    names = [a.name for a in answers]
    unit = _one({a.unit for a in answers})
    if len(set(names) - {""}) > 1:
        if len(set(names)) < len(names) or "" in names:
            raise Unread("some named, some not")
        pairs = sorted(zip(names, (a.value for a in answers), strict=True), key=lambda pair: pair[0])
        key = ", ".join(f"{name} = {value.key}" for name, value in pairs)
        return Answer(Value("named", key, tuple(value for _, value in pairs), detail=",".join(sorted(names))), unit)
    return Answer(unordered([a.value for a in answers], counted=True), unit, max(names))


def _equal(sides: list[str]) -> Answer:
    """``x = value``, where the value is written once or in several ways; otherwise an equation."""
    if not _NAME.fullmatch(sides[0]) and _LETTER.fullmatch(sides[-1]):
        sides = sides[::-1]
    if _NAME.fullmatch(sides[0]):
        answers = [_answer(side) for side in sides[1:]]
        if len({a.value.key for a in answers}) > 1:
            raise Unread("a chain of unequal sides")
        first = answers[0]
        if first.name:
            raise Unread("named twice")
        itself = re.sub(r"[ {}\\]", "", sides[0])
        if not (first.value.poly and itself in first.value.poly.letters):
            return Answer(first.value, first.unit, itself)
    polys = [expression(side) for side in sides]
    differences = [poly - polys[0] for poly in polys[1:]]
    if not any(d.terms for d in differences):
        return Answer(value_of(polys[0]))
    if len(polys) > 2:
        raise Unread("a chain of unequal sides")
    poly = differences[0]
    if not poly.letters:
        raise Unread("an equation that is false")
    poly = poly * number(1 / poly.terms[min(poly.terms)])
    return Answer(Value("equation", f"{poly.key} = 0", poly=poly))


def _inequality(text: str) -> Answer:
    """An inequality of one letter, as an interval."""
    signs, sides = _ORDER.findall(text), [side.strip() for side in _ORDER.split(text)]
    if signs[0] in (">", r"\ge"):
        flipped = {">": "<", r"\ge": r"\le"}
        signs, sides = [flipped.get(sign, "?") for sign in signs[::-1]], sides[::-1]
    names = [i for i, side in enumerate(sides) if _LETTER.fullmatch(side)]
    if not set(signs) <= {"<", r"\le"} or len(names) != 1 or len(sides) > 3 or (len(sides) == 3 and names != [1]):
        raise Unread("an inequality that is not solved for one letter")
    (at,) = names
    low = _answer(sides[at - 1]).value if at else value_of(-INFINITY)
    high = _answer(sides[at + 1]).value if at + 1 < len(sides) else value_of(INFINITY)
    if any(v.poly is None or v.poly.letters - {"∞"} for v in (low, high)):
        raise Unread("an inequality between letters")
    brackets = ("[" if at and signs[at - 1] == r"\le" else "(") + ("]" if at + 1 < len(sides) and signs[at] == r"\le" else ")")
    return Answer(ordered(brackets, [low, high]), "", sides[at])


def _matrix(factor: str, body: str) -> Value:
    rows = [split(row, "&") for row in split(body.strip(f" {ROW}"), ROW)]
    if len({len(row) for row in rows}) > 1:
        raise Unread("a matrix with rows of different lengths")
    scale = expression(factor if factor not in ("", "-") else f"{factor}1")
    polys = [[scale * expression(cell) for cell in row] for row in rows]
    key = "; ".join(", ".join(cell.key for cell in row) for row in polys)
    cells = tuple(value_of(cell) for row in polys for cell in row)
    return Value("matrix", f"[{key}]", cells, detail=f"{len(rows)}x{len(rows[0])}")


def _based(sign: str, digits: str, base: int) -> Value:
    if not 2 <= base <= 36 or len(digits) > 200 or any(int(d, 36) >= base for d in digits):
        raise Unread("digits that the base has not")
    digits = sign + (digits.lstrip("0") or "0")
    return Value("based", f"{digits}_{base}", poly=number(int(digits, base)), detail=str(base))


def _one(units: set[str]) -> str:
    return " and ".join(sorted(units - {""}))
