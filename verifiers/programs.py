"""Reads the program out of a model's text: fenced blocks, bare code, or the rest of a prompt that ends inside a function.
By patterns alone: hostile text is not parsed in this process, so several readings come back, best first, and the sandbox
takes the first that compiles and defines the function. Linear in the text.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from . import fences

_THOUGHT = re.compile(r"</think(?:ing)?>|\[/THINK\]|◁/think▷")
_CODE = re.compile(r"^(?:(?:import|from|def|class|async def)[ \t]+\w|@\w|if __name__\b)", re.M)
_AT_MARGIN = re.compile(r"^(?=[^\s#)\]}])", re.M)
_WORDS = "def class async import from if for while try with else elif except finally print return assert raise global del".split()
_PROSE = re.compile(rf"^(?!(?:{'|'.join(_WORDS)})\b)[A-Za-z]\w*[ \t]+\w", re.M)
_LIKE_CODE = re.compile(r"^[ \t]*(?:(?:return|for|while|if|print|yield|raise|pass)\b|\w+(?:\[[^]\n]*])?[ \t]*=|\w[\w.]*\()", re.M)
_MADE = re.compile(
    r"^(?:(?:async[ \t]+)?def[ \t]+(\w+)|class[ \t]+(\w+)|([A-Z][A-Z0-9_]*)[ \t]*(?::[^=\n]+)?=|(?:import|from)[ \t]+(.*))", re.M
)
_NAME = re.compile(r"[^\W\d]\w*")
_TAG = re.compile(r"^[ \t]*</?[A-Za-z_]+>[ \t]*$", re.M)
"""A line that is nothing but a tag, around code without fences."""
_TYPED = str.maketrans(
    {**dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u202f\u3000", " "), **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
     "\u2028": "\n", "\u2029": "\n", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}
)  # fmt: skip
"""Characters that stand in for those a program is made of."""
_ENTITIES = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#39;", "'"), ("&#x27;", "'"), ("&nbsp;", " "), ("&amp;", "&"))


def readings(text: str, entry_point: str | None = None, prompt: str = "") -> list[str]:
    """Programs that ``text`` may be meant as, best first; empty when there is no code in it.

    ``prompt`` is code that the text may go on with. Where it does not, what the prompt has before ``entry_point`` (imports,
    helpers) is put before it.
    """
    text, prompt = _lines(_THOUGHT.split(text)[-1]), _lines(prompt)
    repaired = dict.fromkeys([text, _typed(text), _unescaped(_typed(text))])  # later ones count where none before compiles
    wholes = [whole for version in repaired for whole in _ends(version)]
    return list(dict.fromkeys(reading for whole in wholes for reading in _readings(whole, entry_point, prompt)))


def defines(source: str, name: str) -> bool:
    """Whether ``source`` has a line at its margin that defines ``name``, as a function, a class or a variable."""
    name = re.escape(name)
    pattern = rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*(?::[^=\n]+)?=[^=]"
    return re.search(pattern, source, re.M) is not None


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff").replace("\n\ufeff", "\n")


def _typed(code: str) -> str:
    return code.translate(_TYPED)


def _unescaped(code: str) -> str:
    for entity, character in _ENTITIES:
        code = code.replace(entity, character)
    return code


def _ends(text: str) -> list[str]:
    """``text`` up to a token that ends it and was left in it, and all of it; that first where the token may be the program's."""
    end = fences.END.search(text)
    if not end:
        return [text]
    before = text[text.rfind("\n", 0, end.start()) + 1 : end.start()]
    cut = text[: end.start()]
    return [text, cut] if any(mark in before for mark in "\"'#") else [cut, text]


def _readings(text: str, entry_point: str | None, prompt: str) -> list[str]:
    head, blocks = fences.split(text)
    blocks = [block for block in blocks if block.text.strip()]
    head_counts = _is_program(head, entry_point, prompt)
    if not blocks:
        text = head if head_counts else text  # behind the fence that closes a block opened in the prompt
        text = _TAG.sub("", text)
        return _bare(text, entry_point, prompt) if text.strip() else []
    right = [block for block in blocks if entry_point and defines(block.text, entry_point)]
    right = [block for block in right if block.python] or right
    right = [block for block in right if not _is_stub(block.text, entry_point or "")] or right
    if not right and head_counts:
        return _bare(head, entry_point, prompt)
    python = [block for block in blocks if block.named] or [block for block in blocks if block.python] or blocks
    chosen = right[-1] if right else max(python, key=lambda block: len(block.text))
    found = []
    for code in (chosen.text, chosen.other):
        if code is None or not code.strip():
            continue
        if right and (whole := _completed(code, [block.text for block in blocks if block is not chosen])) != code:
            found += _bare(whole, entry_point, prompt)
        found += _bare(code, entry_point, prompt, fenced=True)
    return found


def _is_stub(code: str, entry_point: str) -> bool:
    """Whether the function is a signature without a body, as it is written to say how it is called."""
    signature = rf"^(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b[^\n]*:"
    found = re.search(signature + r"[ \t]*(?:\n[ \t]+)?(?:\.\.\.|pass\b)", code, re.M)
    return found is not None and not re.match(r"[ \t]*(?:#[^\n]*)?\n[ \t]+\S", code[found.end() :])


def _is_program(head: str, entry_point: str | None, prompt: str) -> bool:
    """Whether what stands before a fence is code."""
    first = head.lstrip("\n")
    if entry_point and defines(head, entry_point):
        return True
    return bool(prompt and first[:1].isspace() and _LIKE_CODE.search(head))


def _bare(code: str, entry_point: str | None, prompt: str, *, fenced: bool = False) -> list[str]:
    """Readings of text without fences, or of what is in them."""
    if entry_point and not defines(code, entry_point):
        found = []
        if (moved := _outdented(code, entry_point)) is not None:
            found = [*_with_imports(_without_prose(moved), entry_point, prompt)]
        if prompt:
            return [*found, *_continued(code, prompt), *([code] if fenced else [])]
        if found:
            return [*found, code]
    if not fenced and not _CODE.search(code) and not _LIKE_CODE.search(code):
        return []
    return _with_imports([code, *_without_prose(code)], entry_point, prompt)


def _with_imports(found: Sequence[str], entry_point: str | None, prompt: str) -> list[str]:
    """With what the prompt has before the function, and as it is: a ``__future__`` import has to come first."""
    before = _before(prompt, entry_point) if prompt and entry_point else ""
    return [*[before + reading for reading in found if before], *found]


def _before(prompt: str, entry_point: str) -> str:
    """What the prompt has before the function that it asks for."""
    found = re.search(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", prompt, re.M)
    return prompt[: found.start()] if found else ""


def _outdented(code: str, entry_point: str) -> str | None:
    """``code`` with the function, which stands further in, moved to the margin with all that stands as far in."""
    found = re.search(rf"^([ \t]+)(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", code, re.M)
    if not found:
        return None
    return "\n".join(line.removeprefix(found[1]) for line in code.split("\n"))


def _completed(code: str, others: Sequence[str]) -> str:
    """``code`` behind those of the other blocks that make what it uses and does not make, and what these use in turn."""
    makers = {name: number for number, other in enumerate(others) for name in _made(other)}
    known, wanted, taken = _made(code), list(_NAME.findall(code)), set[int]()
    while wanted:
        name = wanted.pop()
        if name in known or (number := makers.get(name)) is None:
            continue
        if number not in taken:
            taken.add(number)
            known |= _made(others[number])
            wanted += _NAME.findall(others[number])
    return "\n\n".join([*(others[number] for number in sorted(taken)), code])


def _made(code: str) -> set[str]:
    """Functions, classes, constants and imports at the margin."""
    names = set()
    for function, name, constant, imported in _MADE.findall(code):
        names |= {function, name, constant} | set(_NAME.findall(imported))
    return names - {"", "import", "as", "from"}


def _continued(code: str, prompt: str) -> list[str]:
    """The prompt with the completion, whole, and up to the first line at the margin."""
    first = code.lstrip("\n")
    bodies = [code]
    if not first[0].isspace():  # a body that lost its indentation: that of every line, or of its first
        if not _LIKE_CODE.search(code):
            return []
        bodies = [textwrap.indent(code, "    "), "    " + first]
    elif not first.startswith(("    ", "\t")):
        bodies.append(textwrap.indent(textwrap.dedent(code), "    "))
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
