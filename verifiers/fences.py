"""Fenced blocks of a text, as models write them: in list items and quotes, opened behind a sentence, closed on the last line of
code, never closed, one in another. Reads each line once or twice: linear in the text, whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

END = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|eom_id|end_of_text|end_of_turn|end|return|user|assistant|eos|EOT)\|>"
    r"|<｜end▁of▁sentence｜>|<end_of_turn>|<eos>|</s>|\[/?INST\]|<EOT>"
)
"""Tokens that end a text, or a turn, and were left in it."""

_LANGUAGE = re.compile(r"[{.]*([A-Za-z0-9_+#-]*)")
_ITEM = re.compile(r"[ \t>]*(?:(?:[-*+]|[0-9]{1,3}[.)])[ \t]+)?")
_TOKEN = re.compile(r"\\.|\"\"\"|'''|[\"'#]|`{3,}")
_RUN = re.compile(r"`{3,}")
_PYTHON = ("", "py", "python", "python3", "python2", "py3", "ipython", "ipython3", "code", "tool_code", "solution")
_UNNAMED = ("", "code", "solution")
_WRAPPERS = ("markdown", "md")
_TRIES = 8
"""How often a string may turn out to have no end before quotes are no longer looked at: each time costs the rest of the text."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block's text without its fences and the indentation that it has from them."""

    text: str
    python: bool
    """Whether its language is Python, or not said."""
    named: bool
    """Whether it is said to be Python."""
    other: str | None = None
    """Up to the first line that looks like the closing fence, where that one stands within a string of the program."""


@dataclass(frozen=True, slots=True)
class _Fence:
    marker: str
    info: str
    column: int
    quoted: bool

    @property
    def language(self) -> str:
        found = _LANGUAGE.match(self.info)
        return found[1].lower() if found else ""


def split(text: str) -> tuple[str, list[Block]]:
    """What stands before the first fence, and the blocks in order; those within a longer fence or a block of Markdown come by
    themselves.
    """
    lines = text.split("\n")
    head, blocks = len(lines), list[Block]()
    i, tries = 0, _TRIES
    while i < len(lines):
        fence = _opening(lines[i])
        if fence is None:
            i += 1
            continue
        head = min(head, i)
        first = i + 1
        if fence.language in _WRAPPERS:
            i = first
            continue
        end, tail = _closing(lines, first, len(lines), fence, strings=True) if tries else (None, "")
        if end is None:  # a string that has no end, for one
            tries = max(tries - 1, 0)
            end, tail = _closing(lines, first, len(lines), fence, strings=False)
        naive = None if end is None else _closing(lines, first, end, fence, strings=False)[0]
        if end is None:
            blocks.append(_block(lines[first:], fence))
            break
        other = None if naive is None else [*lines[first:naive], ""]
        body = [*lines[first:end], tail]
        blocks.append(_block(body, fence, other))
        if len(fence.marker) > 3:  # room for shorter ones within
            blocks += _within(body)
        i = end if _opens_again(lines[end]) else end + 1
    return "\n".join(lines[:head]), blocks


def _within(lines: Sequence[str]) -> list[Block]:
    return split("\n".join(line for line in lines if not line.lstrip().startswith(("````", "~~~~"))))[1]


def _opening(line: str) -> _Fence | None:
    """A fence at the start of a line or an item, or behind a sentence; not what is quoted within a line."""
    start = _ITEM.match(line)
    at = start.end() if start else 0
    quoted = line.lstrip().startswith(">")
    if found := _marker(line[at:]):
        return _Fence(*found, at, quoted)
    runs = list(_RUN.finditer(line))
    if len(runs) % 2 and (found := _marker(line[runs[-1].start() :])) and found[1].isalnum():
        return _Fence(*found, len(line) - len(line.lstrip()), quoted)
    return None


def _marker(text: str) -> tuple[str, str] | None:
    """A fence and what is said behind it."""
    marker = text[: len(text) - len(text.lstrip(text[:1]))] if text[:1] in ("`", "~") else ""
    info = text[len(marker) :].strip()
    return None if len(marker) < 3 or (marker[0] == "`" and "`" in info) else (marker, info)


def _opens_again(line: str) -> bool:
    """Whether the fence that ends a block names a language: it belongs to the next one."""
    found = _opening(line)
    return found is not None and found.language != "" and not END.match(found.info)


def _closing(lines: Sequence[str], first: int, last: int, fence: _Fence, *, strings: bool) -> tuple[int | None, str]:
    """The line before ``last`` that ends the block, and what of it belongs to the block; None where there is none. With
    ``strings``, none within a string of the program does.
    """
    inside = ""
    for number in range(first, last):
        line = lines[number]
        if not inside:
            bare = END.sub("", line).strip(" \t>")
            if len(bare) >= len(fence.marker) and not bare.strip(fence.marker[0]):
                return number, ""
            if fence.marker[0] == "`" and bare.startswith(fence.marker) and _opens_again(line):
                return number, ""
        if strings:
            inside, at = _quotes(line, inside, fence.marker)
            if at is not None:
                return number, line[:at]
    return None, ""


def _quotes(line: str, inside: str, marker: str) -> tuple[str, int | None]:
    """The triple quotes that are open after ``line``, and where a fence stands in it outside strings."""
    for token in _TOKEN.finditer(line):
        text = token[0]
        if inside:
            if text == inside or (len(inside) == 1 and text[0] == inside):
                inside = ""
        elif text == "#":
            runs = [run for run in _RUN.finditer(line, token.end()) if len(run[0]) >= len(marker)]
            if marker[0] == "`" and len(runs) % 2 and runs[-1].end() == len(line.rstrip()):
                return "", runs[-1].start()
            break
        elif text[0] in "\"'":
            inside = text
        elif text[0] == "`" and marker[0] == "`" and len(text) >= len(marker):
            return "", token.start()
    return inside if len(inside) == 3 else "", None


def _block(lines: Sequence[str], fence: _Fence, other: Sequence[str] | None = None) -> Block:
    python = fence.language in _PYTHON or fence.language.startswith(("python", "py3"))
    code = (
        [] if fence.language == fence.info.lower() or not re.match(r"(?:def|class|import|from)\b", fence.info) else [fence.info]
    )
    kept = "\n".join([*code, *(_without_margin(line, fence) for line in lines)])
    naive = None if other is None else "\n".join(_without_margin(line, fence) for line in other)
    return Block(kept, python or bool(code), python and fence.language not in _UNNAMED, naive)


def _without_margin(line: str, fence: _Fence) -> str:
    if fence.quoted:
        return line.lstrip().removeprefix(">").removeprefix(" ")
    margin = len(line) - len(line.lstrip(" \t"))
    return line[min(margin, fence.column) :]
