"""Plain Python data as JSON and back, and when two are the same: tuples, sets, views of dicts, fractions, decimals, bytes, big
integers and keys of any kind included. Objects with behaviour do not pass: what they say about themselves is worth nothing.
Stands alone: the harness loads it by path.
"""

from __future__ import annotations

from collections.abc import ItemsView, KeysView
from typing import Any

_WORD = 1 << 63
_BITS = 1 << 16
"""Of a fraction's integers: beyond, to reduce one takes too long."""


class Array:
    """A NumPy array: no list, and no truth comes of comparing it with one."""

    __slots__ = ("items",)

    def __init__(self, items: Any) -> None:
        self.items = items


class Unplain(ValueError):
    """Not plain data; the text names the type."""


def encode(value: Any) -> Any:
    """For ``json.dumps``. Subclasses are taken as their base type, NumPy's values by ``tolist``. Raises :class:`Unplain`."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value) if -_WORD < value < _WORD else {"int": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {"set": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, KeysView):
        return {"keys": [encode(item) for item in value]}
    if isinstance(value, ItemsView):
        return {"items": [[encode(key), encode(item)] for key, item in value]}
    return _encode_number(value)


def _encode_number(value: Any) -> Any:
    kind = type(value).__name__
    match type(value).__module__.partition(".")[0], kind:
        case "fractions", "Fraction":
            return {"fraction": [encode(value.numerator), encode(value.denominator)]}
        case "decimal", "Decimal":
            return {"decimal": str(value)}
        case "numpy", "ndarray":
            return {"array": encode(value.tolist())}
        case "numpy", "bool" | "bool_":
            return int(value)  # equal to True or False, and neither of the two
        case "numpy", _:
            return encode(value.tolist())
    raise Unplain(kind)


def decode(data: Any, largest: int = 1 << 62) -> Any:
    """What :func:`encode` was given. Raises :class:`Unplain` for anything else.

    ``largest`` bounds sets and dicts: hostile keys can be chosen so that building a table of them takes the square of its size.
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return [decode(item, largest) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise Unplain("not an encoded value")
    [(kind, inner)] = data.items()
    try:
        if kind in ("set", "dict", "keys", "items") and len(inner) > largest:
            raise Unplain(f"{kind} of {len(inner)}")
        return _decode(kind, inner, largest)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise Unplain(f"{kind}: {error}") from None


def _decode(kind: str, inner: Any, largest: int) -> Any:
    match kind:
        case "int":
            return int(inner, 16)
        case "complex":
            return complex(*inner)
        case "tuple":
            return tuple(decode(item, largest) for item in inner)
        case "set":
            return {decode(item, largest) for item in inner}
        case "dict":
            return {decode(key, largest): decode(item, largest) for key, item in inner}
        case "keys":
            return dict.fromkeys(decode(item, largest) for item in inner).keys()
        case "items":
            return {decode(key, largest): decode(item, largest) for key, item in inner}.items()
        case "fraction":
            from fractions import Fraction  # here: every sandboxed program loads this file, and none of them needs it

            parts = [decode(part) for part in inner]
            if not all(isinstance(part, int) and part.bit_length() <= _BITS for part in parts):
                raise Unplain("a fraction of other or longer integers")
            return Fraction(*parts)
        case "decimal":
            from decimal import Decimal

            return Decimal(str(inner))
        case "array":
            return Array(decode(inner, largest))
        case "bytes":
            return bytes.fromhex(inner)
    raise Unplain(kind)


def same(got: Any, want: Any, absolute: float = 0.0, relative: float = 0.0) -> bool:
    """Whether two plain values are equal, as Python's ``==`` says: ``1 == 1.0 == True``, and a list is never a tuple.

    With a tolerance, numbers that are not booleans may differ by ``absolute + relative * |want|``.
    """
    if absolute == relative == 0.0:
        return bool(got == want)
    if isinstance(want, list | tuple):
        if type(got) is not type(want) or len(got) != len(want):
            return False
        return all(same(a, b, absolute, relative) for a, b in zip(got, want, strict=True))
    if isinstance(want, dict) and isinstance(got, dict):
        return got.keys() == want.keys() and all(same(got[key], want[key], absolute, relative) for key in want)
    if _number(got) and _number(want):
        return bool(got == want) or _close(got, want, absolute, relative)
    return bool(got == want)


def _close(got: Any, want: Any, absolute: float, relative: float) -> bool:
    try:
        return bool(abs(got - want) <= absolute + relative * abs(want))
    except OverflowError:  # an int beyond all floats
        return False


def listed(value: Any) -> Any:
    """``value`` with lists for tuples and arrays, as JSON has it."""
    if isinstance(value, Array):
        return listed(value.items)
    if isinstance(value, list | tuple):
        return [listed(item) for item in value]
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return value


def _number(value: Any) -> bool:
    return isinstance(value, int | float | complex) and not isinstance(value, bool)


def largest_table(value: Any) -> int:
    """Entries of the largest set or dict in a plain value."""
    match value:
        case dict():
            return max(len(value), *(largest_table(item) for pair in value.items() for item in pair), 0)
        case list() | tuple() | set() | frozenset():
            size = len(value) if isinstance(value, set | frozenset) else 0
            return max(size, *(largest_table(item) for item in value), 0)
    return 0
