"""Finds the final answer in what a model wrote: the last closed box, else a phrase that announces it, else (asked for) a guess.

Only text behind the last ``</think>`` counts; an unfinished thought has no answer. Linear in the text, of which the last
100,000 characters are read. Says nothing about what the answer means, but joins boxes that are several solutions.
"""

from __future__ import annotations

import itertools
import re

from .exact import key
from .notation import WIDE

MOST_BOXES = 50
"""Of one answer."""
TAIL = 100_000
GUESS_TAIL = 10_000

_THOUGHT = re.compile(r"\s*(?:<think(?:ing)?>|\[THINK\])")
_THOUGHT_END = re.compile(r"</think(?:ing)?>|\[/THINK\]")
_NARROW = str.maketrans({wide: r"\$" if wide == "＄" else narrow for wide, narrow in WIDE.items()})
_HEADING = re.compile(r"\d+[.)]\s+[A-Za-z]|(?:step|part|case|check|solution)\b", re.I)
_CLAUSE = re.compile(r"(?<=[\d})$%])(?:,| +(?:and|because|since|which|so|as)) +(?!sqrt|pi\b)(?:[a-z]{2,}) .*")

_OR = r"[\s$]{0,9}(?:,|(?:,[\s$]{0,9})?(?:\\text\{ ?)?(?:or|and)\b[ }]{0,9})[\s$]{0,9}(?:[A-Za-z](?:_\d)?[ ]?=[\s$]{0,9})?"
_ITEM = re.compile(r"\d+[.)]\s|[-*]\s")
_GOES_ON = re.compile(
    r"\s*(?:[-+*/:=<>^]|\d|(?:,|,? ?(?:and|or|to|nor))\s*(?:\$|\\\(|\\text|\d)"
    r"|(?:or|and|to|if|when|where|for|unless|otherwise|more|less|times|plus|minus|hundred|thousand|million|billion|trillion|dozen|percent)\b)"
)
"""Behind maths: what is said goes on."""
_BETWEEN = re.compile(
    rf"\}}?{_OR}(?:(?P<bare>[-+]?\d+(?:[./]\d+)?|[-+]?\\frac\{{\d+\}}\{{\d+\}}){_OR})?\\{{1,2}}f?box(?:ed)?\s{{0,9}}\{{?"
)
_LATE = re.compile(r"\bfinal\s+answer\**\s*(?:is|:)(?=[\s*]{0,9}(?:the\s+(?:final\s+)?answer\s+is\s*:?\s*)?[-+$\\(\[\d])", re.I)

_PIECE = re.compile(
    r"\\{1,2}(?P<box>boxed|fbox)(?![A-Za-z])\s*"
    r"(?:(?P<open>\{)|(?P<bare>[-+]?(?:[\d.\\(][^\s${}]*|[A-Za-z](?![A-Za-z]))(?:\{[^{}\s]*\})*))?|\\.|[{}]",
    re.S,
)
_PHRASE = re.compile(
    r"(?:\bfinal\s+answer\b|\banswer\b)\**\s*(?:is|:|=|would\s+be)\s*:?\s*(?=(?P<said>[^\n]{1,1000}))"
    r"|^[ \t]*[#*]{1,9}[ \t]*(?:final[ \t]+)?answer[ \t:*#]{0,9}\n\s{0,9}"
    r"(?=(?P<below>(?!\d+[.)]\s)(?:\*{0,2}[-+]?[\d.]|\*{0,2}\$|\\[(\[]|[A-Za-z][ \t]*=)[^\n]{0,1000}))"
    r"|^[ \t]*####\s*(?=(?P<marked>[^\n]{1,1000}))",
    re.I | re.M,
)
_SPAN = re.compile(
    r"\$\$([^$]{1,1000})\$\$|(?<!\\)\$(?!\s)([^$\n]{1,1000})(?<![\s\\=])\$(?![\d<])|"
    r"\$ ([^$\n]{1,1000}) \$(?! ?[\d<])|\\\(((?:(?!\\\)).){1,1000})\\\)|\\\[((?:(?!\\\]).){1,1000})\\\]",
    re.S,
)
_NUMBER = re.compile(
    r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})++(?!\d)|\d{1,1000}+)(?:\.\d{1,1000}+)?+(?:/\d{1,1000}+)?+"
    r"(?:(?=(?:kg|km|cm|mm|ml|mg|lbs?|oz|ft|[gm])\b)|(?!\w))"
)


def final_answer(text: str, *, guess: bool = False) -> str | None:
    """The answer as it is written, or None. With ``guess``, else the last maths span, else the last number."""
    ends = list(_THOUGHT_END.finditer(text))
    text = text[ends[-1].end() :] if ends else text
    if not ends and _THOUGHT.match(text):
        return None
    text = text[-TAIL:].translate(_NARROW)
    boxes = _boxes(text)
    answer = None
    if boxes and (late := _LATE.search(text, boxes[-1][1])):
        answer = announced(text[late.start() :], whole=True)
    answer = answer or _joined(text, boxes) or announced(text)
    if answer is None and guess:
        answer = _last(_SPAN, text[-GUESS_TAIL:]) or _last(_NUMBER, text[-GUESS_TAIL:])
    if answer and re.search(r"\\\\[A-Za-z]", answer) and not re.search(r"(?<!\\)\\(?!\\)", answer):
        answer = answer.replace(r"\\", "\\")  # written with every backslash doubled
    return answer


def boxed(text: str) -> str | None:
    """What is in the last box that is closed and not empty; a box within a box is part of it. ``\\boxed 5`` counts too.

    Boxes with nothing but "or", "and" or a comma between them are several solutions, and are joined by commas.
    """
    return _joined(text, _boxes(text))


def _joined(text: str, boxes: list[tuple[int, int]]) -> str | None:
    if not boxes:
        return None
    boxes = boxes[-MOST_BOXES:]
    said = [text[slice(*boxes[-1])].strip()]
    for at, ((_, end), (start, _)) in reversed(list(enumerate(itertools.pairwise(boxes)))):
        if not (between := _BETWEEN.fullmatch(text[end:start])):
            break
        if between["bare"]:
            said.insert(0, between["bare"])
        said.insert(0, text[slice(*boxes[at])].strip())
    return ", ".join({key(one): one for one in said}.values())  # one value in two forms is one answer


def _boxes(text: str) -> list[tuple[int, int]]:
    """Where the contents of closed, filled boxes are, outermost only, in order."""
    found: list[tuple[int, int]] = []
    opened: list[int | None] = []  # open braces; for those of boxes, where the content starts
    for piece in _PIECE.finditer(text):
        if piece["open"]:
            opened.append(piece.end())
        elif piece["bare"] and any(map(str.isalnum, piece["bare"])):
            found.append(piece.span("bare"))
        elif piece[0] == "{":
            opened.append(None)
        elif piece[0] == "}" and opened and (start := opened.pop()) is not None and text[start : piece.start()].strip():
            while found and found[-1][0] >= start:
                found.pop()
            found.append((start, piece.start()))
    return found


def announced(text: str, whole: bool = False) -> str | None:
    """What follows the last "the answer is", "final answer:" or ``####``, up to the end of the sentence or line; a value below a
    heading that says "answer". With ``whole``, none that goes on behind its maths."""
    for match in reversed(list(_PHRASE.finditer(text))):
        name = next(name for name in ("said", "below", "marked") if match[name])
        said = match[name].strip().lstrip("*_: ").strip()
        if (name == "marked" and _HEADING.match(said)) or ("\n" in match[0] and _ITEM.match(said)):
            continue
        span = _SPAN.match(said)
        rest = said[span.end() :] if span else ""
        if span is None and (span := _SPAN.match(text, match.start(name))):
            rest = text[span.end() : span.end() + 1000].partition("\n")[0]
        if span and not _GOES_ON.match(rest):
            return next(group for group in span.groups() if group is not None).strip()
        if span and whole:
            continue
        said = re.split(r"[.!?;](?=\s|\*|$)|,? I hope|\*\*", said, maxsplit=1)[0].strip(" *_`")
        said = _CLAUSE.sub("", said)
        if said:
            return said
    return None


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = None
    for match in pattern.finditer(text):
        found = next((group for group in match.groups() if group), match[0])
    return found.strip() if found else None
