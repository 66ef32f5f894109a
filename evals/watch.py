"""Model text as it comes, for people: cleaned, the reasoning told from the answer, whatever the pieces it arrives in.

The think tags are left out, and so is white space around what they enclose. Not here: what a stream is made of (the engine).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from ..backend.request import Piece
from ..schema import Completion
from .terminal import Paint, clean, unfinished

OPEN, CLOSE = "<think>", "</think>"


class Reader:
    """Splits a stream into (is reasoning, text). ``thinking``: the prompt itself has opened the reasoning."""

    def __init__(self, thinking: bool = False) -> None:
        self.thinking = thinking
        self._raw = self._text = self._space = ""
        self._started = False

    def feed(self, text: str, *, last: bool = False) -> Iterator[tuple[bool, str]]:
        """What ``text`` completes; ``last`` gives out what was held back as well."""
        self._raw += text
        whole = len(self._raw) - (0 if last else unfinished(self._raw))
        self._text += clean(self._raw[:whole])
        self._raw = self._raw[whole:]
        while True:
            found = [(at, tag) for tag in (OPEN, CLOSE) if (at := self._text.find(tag)) >= 0]
            if not found:
                break
            at, tag = min(found)
            yield from self._say(self._text[:at])
            self._text = self._text[at + len(tag) :]
            self.thinking, self._started, self._space = tag == OPEN, False, ""
        held = 0 if last else next((n for n in range(len(CLOSE) - 1, 0, -1) if self._text.endswith((OPEN[:n], CLOSE[:n]))), 0)
        ready, self._text = self._text[: len(self._text) - held], self._text[len(self._text) - held :]
        yield from self._say(ready)

    def _say(self, text: str) -> Iterator[tuple[bool, str]]:
        """White space waits for what comes after it, so that a passage neither starts nor ends with any."""
        body = text.rstrip()
        if not body:
            self._space += text
            return
        yield self.thinking, self._space + body if self._started else body.lstrip()
        self._started, self._space = True, text[len(body) :]


def follow(stream: Iterator[Piece], out: IO[str], *, thinking: bool = False) -> Completion | None:
    """Print a stream as it comes, reasoning dimmed, and return its completion; None when Ctrl-C ended it before."""
    reader, paint = Reader(thinking), Paint(out)
    completion: Completion | None = None
    shown: bool | None = None

    def write(text: str, *, last: bool = False) -> None:
        nonlocal shown
        for is_reasoning, passage in reader.feed(text, last=last):
            gap = "\n\n" if shown is not None and shown != is_reasoning else ""
            out.write(gap + (paint.dim(passage) if is_reasoning else passage))
            shown = is_reasoning
        out.flush()

    with suppress(KeyboardInterrupt):
        for piece in stream:
            completion = piece.completion
            write(piece.text)
    write("", last=True)
    if shown is not None:
        out.write("\n")
    return completion
