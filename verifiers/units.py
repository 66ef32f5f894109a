"""Takes the unit off a quantity: ``5\\text{ cm}``, ``\\$5``, ``90^\\circ``, ``10\\%``, ``12 inches``.

A unit is dropped, and kept aside under one name a unit, because the problem fixes the unit of its answer. Nothing is converted;
:func:`related` says when two numbers may be the same quantity in two units.
"""

from __future__ import annotations

import re
from fractions import Fraction

from .algebra import Unread
from .notation import DOLLAR
from .tokens import FUNCTIONS, GREEK

_NAMES = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile", "lb": "pound lbs", "oz": "ounce", "gal": "gallon",
    "mg": "milligram", "g": "gram", "kg": "kilogram", "ml": "milliliter", "l": "liter litre", "mph": "", "kph": "",
    "s": "second sec", "min": "minute mins", "h": "hour hr hrs", "day": "", "week": "", "month": "", "year": "yr",
    "$": "dollar usd buck", "cent": "", "%": "percent", "degree": "deg", "rad": "radian", "unit": "", "people": "",
}  # fmt: skip
_UNIT = {word: unit for unit, words in _NAMES.items() for word in (unit, *words.split())}
_NOT_UNITS = frozenset(
    "thousand million billion trillion hundred dozen gross pair couple score half halves quarter third "
    "zero one two three four five six "
    "seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy "
    "eighty ninety first "
    "times plus minus divided over by multiple power factor factorial root base mod modulo remainder point negative "
    "twice double triple inverse kilo mega giga nearly minimum maximum "
    " equals equal to is are was and or not no nor but because since which that this so as if then than "
    "more less fewer least most about approximately above below under between up down with without for from wrong maybe "
    "where when while we you it they he she who i the an".split()
)
"""Words that say something about the number, or begin a clause: what stands with them is no unit."""
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "squared": "^2", "cubed": "^3"}

_CURRENCY = re.compile(rf"([+-]?) ?([{DOLLAR}£€¥]) ?([+-]?.*)", re.S)
_SUFFIX = re.compile(
    r"(?P<circ>\\circ)\s*(?P<scale>[CFK]?)$"
    r"|(?P<sign>%)$"
    rf"|(?P<money>[{DOLLAR}£€¥])$"
    r"|\\text ?\{(?P<text>[A-Za-z .,'()/%²³-]*)\} ?(?:\^ ?\{?(?P<power>[23])\}?)?$"
    r"|(?<=[\d}) ])(?<![A-Za-z\\])(?P<bare>[A-Za-z]{2,}(?:[ /-][A-Za-z]+){0,3}) ?(?:\^ ?\{?(?P<bare_power>[23])\}?)?$"
)


def measured(text: str) -> tuple[str, str]:
    """``text`` without its unit, and the unit's name; an empty name where there is none. Raises ``Unread`` for ``5 million``."""
    units: list[str] = []
    if money := _CURRENCY.fullmatch(text):
        text, units = money[1] + money[3].strip(), ["$" if money[2] == DOLLAR else money[2]]
    while (match := _SUFFIX.search(text)) and match.start() > 0:
        unit = _unit(match)
        if unit is None:
            break
        text = text[: match.start()].strip()
        units.insert(0, unit)
    return text, " ".join(unit for unit in dict.fromkeys(units) if unit and unit != "unit")


def _unit(match: re.Match[str]) -> str | None:
    if match["circ"]:
        return f"degree {match['scale']}".strip()
    if match["sign"]:
        return "%"
    if match["money"]:
        return "$" if match["money"] == DOLLAR else match["money"]
    words = re.findall(r"[A-Za-z%]+", (match["text"] or match["bare"] or "").lower())
    if match["bare"] and not _bare(words):
        return None
    if len(words) > 4 or any(map(_no_unit, words)) or (words and all(word in _POWERS for word in words)):
        raise Unread("words behind a number that are no unit")
    if "of" in words and (words[0] in ("of", "percent") or words[-1] == "of"):
        raise Unread("a part of something")
    power = match["power"] or match["bare_power"]
    powers = [_POWERS[word] for word in words if word in _POWERS] + ([f"^{power}"] if power else [])
    names = [_UNIT.get(word) or _UNIT.get(word.removesuffix("s")) or word for word in words if word not in _POWERS]
    if names == ["unit"]:
        return ""
    return " ".join(names) + "".join(powers)


def _bare(words: list[str]) -> bool:
    """Whether words without a command around them are a unit rather than a product of letters."""
    first = words[0]
    if first in FUNCTIONS or first in GREEK or first in ("pi", "sqrt"):
        return False
    return first in _UNIT or first.removesuffix("s") in _UNIT or first in _POWERS or _no_unit(first) or len(first) >= 4


def _no_unit(word: str) -> bool:
    if word in _UNIT or word.removesuffix("s") in _UNIT:
        return False
    return word in _NOT_UNITS or word.removesuffix("s") in _NOT_UNITS or bool(re.search(r"(?:illion|th|teen)s?$", word))


def related(a: Fraction, b: Fraction) -> bool:
    """Whether units that are in use could turn one number into the other: a power of ten, 12 inches, 60 minutes, ..."""
    if not a or not b:
        return False
    ratio = max(a / b, b / a)
    if ratio in _FACTORS:
        return True
    return ratio.denominator == 1 and len(str(ratio)) <= 13 and set(str(ratio)[1:]) == {"0"} and str(ratio)[0] == "1"


_FACTORS = {Fraction(f) for f in (3, 7, 9, 12, 16, 24, 36, 52, 60, 144, 365, 1440, 1728, 1760, 3600, 5280, 86400)} | {
    Fraction(18, 5)
}
