"""What is asked of what callers give: whole numbers, token ids, numbers, flags; and attributes that are set once.

Numpy's scalars count as numbers, a bool never does. Every error names the value, and comes when a thing is built, not when
it is first used. The files that they give are read here too, if they hold one JSON object. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def is_whole(value: Any) -> bool:
    """Whether ``value`` is a whole number, numpy's too, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def token_ids(ids: Iterable[Any], what: str) -> list[int]:
    """``ids`` as plain integers. Raises ``TypeError``, with the value, for what is no whole number; a bool or a byte is none."""
    if isinstance(ids, bytes | bytearray | memoryview):
        raise TypeError(f"{what}: {bytes(ids[:20])!r}: bytes are no token ids; text is a str")
    found = list(ids)
    for i, token in enumerate(found):
        if type(token) is not int:
            if not is_whole(token):
                raise TypeError(f"{what}: {token!r} is no token id, but {type(token).__name__}")
            found[i] = int(token)
    return found


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """``value`` as an ``int``, from ``least`` to ``most``.

    Raises ``TypeError`` for what is no whole number, such as 2.0, ``ValueError`` for one that is too small or too large.
    """
    if not is_whole(value):
        raise TypeError(f"{name}={value!r}: a whole number, not {type(value).__name__}")
    found = int(value)
    if found < least:
        raise ValueError(f"{name}={found}: at least {least}")
    if most is not None and found > most:
        raise ValueError(f"{name}={found}: at most {most}")
    return found


def number(name: str, value: Any, ok: Callable[[float], bool], what: str) -> float:
    """``value`` as a ``float`` of which ``ok`` holds; ``what`` says what that is. NaN is never ok.

    Raises ``TypeError`` for what is no number, ``ValueError`` for another number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: a number, not {type(value).__name__}")
    real: Any = value
    try:
        found = float(real)
    except OverflowError:
        found = math.inf if real > 0 else -math.inf
    if math.isnan(found) or not ok(found):
        raise ValueError(f"{name}={found if math.isinf(found) else value!r}: {what}")
    return found


def flag(name: str, value: Any) -> bool:
    """``value``, which is True or False. Raises ``TypeError`` for anything else: "no" would count as yes."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: True or False, not {type(value).__name__}")
    return value


def instance(name: str, value: Any, kind: type, hint: str) -> None:
    """Raises ``TypeError``, with a ``hint`` at what to give, unless ``value`` is a ``kind``; a class of that kind is none."""
    if isinstance(value, type):
        raise TypeError(f"{name}={value.__name__}: a class; {hint}")
    if not isinstance(value, kind):
        raise TypeError(f"{name}={value!r}: {hint}, not {type(value).__name__}")


def once(*names: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: attributes ``names`` are set when an object is built, and never again.

    Other things were made from them by then: another value would be taken, and change nothing.
    """
    fixed = frozenset(names)

    def decorate(kind: type[T]) -> type[T]:
        put = kind.__setattr__

        def setattr_once(self: T, name: str, value: Any) -> None:
            if name in fixed and name in self.__dict__:
                raise AttributeError(f"{type(self).__name__}.{name} is fixed once it is built: make another one")
            put(self, name, value)

        kind.__setattr__ = setattr_once  # type: ignore[method-assign, assignment]
        return kind

    return decorate


def read_json(file: Path) -> dict[str, Any]:
    """The object in ``file``; empty where there is no such file. Raises ``ValueError`` naming a file that holds none."""
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{file}: not readable as JSON ({e})") from e
    if not isinstance(content, dict):
        raise ValueError(f"{file}: a JSON object is expected, not {type(content).__name__}")
    return content
