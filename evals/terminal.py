"""What may be printed: model text without what could steer a terminal, colours only where they are wanted, plain tables.

Nothing of a model's words is hidden: of an escape sequence only the part that acts is taken out.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

# Control characters of C0 (but newline and tab) and C1, DEL, and the marks and isolates that reorder text on the screen.
_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_CSI = r"(?:\x1b\[|\x9b)[0-?]{0,32}[ -/]{0,4}"
_ESCAPE = r"\x1b[ -/]{0,4}"
_UNWANTED = re.compile(f"{_CSI}[@-~]|{_ESCAPE}[0-~]|[{_CONTROL}]")
_UNFINISHED = re.compile(rf"(?:{_CSI}|{_ESCAPE})\Z")


def clean(text: str) -> str:
    """``text`` without control characters, ANSI escapes and reordering marks; newlines and tabs stay."""
    return _UNWANTED.sub("", text)


def unfinished(text: str) -> int:
    """How many characters at the end of ``text`` may be the start of an escape sequence."""
    found = _UNFINISHED.search(text)
    return 0 if found is None else len(found.group())


class Paint:
    """Emphasis for one output stream: nothing at all unless it is a terminal and NO_COLOR is not set."""

    def __init__(self, stream: IO[str]) -> None:
        self.on = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def dim(self, text: str) -> str:
        return self._in("2", text)

    def bold(self, text: str) -> str:
        return self._in("1", text)

    def good(self, text: str) -> str:
        return self._in("32", text)

    def bad(self, text: str) -> str:
        return self._in("31", text)

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on and text else text


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Says on a terminal's last line what takes its time, and takes it back."""
    shown = sys.stderr.isatty()
    if shown:
        print(text, end="", flush=True, file=sys.stderr)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", flush=True, file=sys.stderr)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their names: the first one to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for first, *others in (header, *rows):
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def amount(n: float, unit: str = "") -> str:
    """A number as people read it: ``1,234``, ``1.6 M``, ``12 GB``; ``unit`` behind the prefix."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(n) >= size or (unit and prefix == "k" and abs(n) >= 1e3):
            scaled = n / (1e3 if prefix == "k" else size)
            return f"{scaled:.{1 if scaled < 99.95 else 0}f} {prefix}{unit}"
    return f"{n:,.0f} {unit}".rstrip()
