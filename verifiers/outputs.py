"""Whether what a program printed is what was expected: line for line as they look, and, with a tolerance, word for word with
numbers that may differ a little.
"""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][-+]?[0-9]{1,4})?")
_WHOLE = re.compile(r"[-+]?[0-9]+")


def same_output(got: str, want: str, absolute: float = 0.0, relative: float = 0.0) -> bool:
    """Spaces at the ends of lines and empty lines at the end do not count.

    With a tolerance, no others do either, and a number may differ by ``absolute`` or by ``relative`` times the expected one;
    whole numbers on both sides are exact.
    """
    if _lines(got) == _lines(want):
        return True
    if absolute == relative == 0.0:
        return False
    mine, theirs = got.split(), want.split()
    return len(mine) == len(theirs) and all(_close(a, b, absolute, relative) for a, b in zip(mine, theirs, strict=True))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _close(got: str, want: str, absolute: float, relative: float) -> bool:
    if got == want:
        return True
    if not (_NUMBER.fullmatch(got) and _NUMBER.fullmatch(want)) or (_WHOLE.fullmatch(got) and _WHOLE.fullmatch(want)):
        return False
    a, b = float(got), float(want)
    return math.isfinite(a) and math.isfinite(b) and abs(a - b) <= max(absolute, relative * abs(b))
