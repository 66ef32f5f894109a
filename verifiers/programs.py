"""Reads the program out of a model's text: fenced blocks, bare code, or the rest of a prompt that ends inside a function.
By patterns alone: hostile text is not parsed in this process, so several readings come back, best first, and the sandbox
takes the first that compiles and defines the function.
"""

from __future__ import annotations

import re

from ..schema import THINK_END

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n`]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.M | re.S)
_CODE = re.compile(r"^(?:(?:import|from|def|class|async def)\s+\w|@\w|if __name__\b)", re.M)
_AT_MARGIN = re.compile(r"^(?=[^\s#)\]}])", re.M)
_WORDS = "def class async import from if for while try with else elif except finally print return assert raise global del".split()
_PROSE = re.compile(rf"^(?!(?:{'|'.join(_WORDS)})\b)[A-Za-z]\w*\s+\w", re.M)
_LIKE_CODE = re.compile(r"^[ \t]*(?:(?:return|for|while|if|print|yield|raise|pass)\b|\w+(?:\[[^]\n]*])?[ \t]*=|\w[\w.]*\()", re.M)


def readings(text: str, entry_point: str | None = None, prompt: str = "") -> list[str]:
    """Programs that ``text`` may be meant as, best first; empty when there is no code in it.

    ``prompt`` is code that the text may go on with. Where it does not, what the prompt has before ``entry_point`` (imports,
    helpers) is put before it.
    """
    text, prompt = _lines(text.rpartition(THINK_END)[2]), _lines(prompt)
    blocks = [block for _, block in _FENCE.findall(text) if block.strip()]
    code = text
    if blocks:
        right = [block for block in blocks if entry_point and defines(block, entry_point)]
        code = right[-1] if right else max(blocks, key=len)
    if not code.strip():
        return []
    if prompt and entry_point and not defines(code, entry_point):
        found = _continued(code, prompt)
        return [*found, code] if blocks else found
    if not blocks and not _CODE.search(code) and not _LIKE_CODE.search(code):
        return []
    found = [code, *_without_prose(code)]
    if prompt and entry_point and (before := _before(prompt, entry_point)):
        found = [before + reading for reading in found] + found  # and as it is: a __future__ import has to come first
    return list(dict.fromkeys(found))


def defines(source: str, name: str) -> bool:
    """Whether ``source`` has a line at its margin that defines ``name``, as a function, a class or a variable."""
    pattern = rf"^(?:(?:async\s+)?def|class)\s+{re.escape(name)}\b|^{re.escape(name)}\s*(?::[^=\n]+)?=[^=]"
    return re.search(pattern, source, re.M) is not None


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _before(prompt: str, entry_point: str) -> str:
    """What the prompt has before the function that it asks for."""
    found = re.search(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\b", prompt, re.M)
    return prompt[: found.start()] if found else ""


def _continued(code: str, prompt: str) -> list[str]:
    """The prompt with the completion, whole, and up to the first line at the margin."""
    first = code.lstrip("\n")
    bodies = [code]
    if not first[0].isspace():  # a body that lost its indentation: that of every line, or of its first
        if not _LIKE_CODE.search(code):
            return []
        bodies = [re.sub(r"^(?=.*\S)", "    ", code, flags=re.M), "    " + first]
    joint = "" if prompt.endswith("\n") or code.startswith("\n") else "\n"
    result = []
    for body in bodies:
        result.append(prompt + joint + body)
        if end := _AT_MARGIN.search(body):
            result.append(prompt + joint + body[: end.start()])
    return result


def _without_prose(code: str) -> list[str]:
    """``code`` from its first line that can only be code, and up to the first line at the margin that reads like a sentence."""
    start = _CODE.search(code)
    rest = code[start.start() :] if start else code
    end = _PROSE.search(rest)
    return [rest, rest[: end.start()]] if end else [rest]
