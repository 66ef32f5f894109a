"""One spelling for what LaTeX and plain text spell in many ways, and cutting text at the right commas.

Works on strings alone and judges nothing: spaces, sizes of brackets, fonts, signs of other alphabets, digit grouping.
"""

from __future__ import annotations

import re

from .algebra import Unread

MAX_CHARS = 1000
MAX_NESTING = 40

DOLLAR = "＄"  # \$; a plain $ only delimits
ROW = "¶"  # \\
OPEN, CLOSE = "([⦃⟨{", ")]⦄⟩}"  # ⦃ ⦄ stand for \{ \}
PAIRS = dict(zip(OPEN, CLOSE, strict=True))

WIDE: dict[str, str] = {chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F)} | {"。": ".", "、": ","}
"""Full-width characters; their dollar is always money (:data:`DOLLAR`)."""
WIDE[DOLLAR] = r"\$"
_SIGNS = {
    **dict.fromkeys("−–—‐‑", "-"),
    **dict.fromkeys("\u00a0\u2009\u202f\u2002\u2003\u2006\u200a\t\n\r", " "),
    "\u200b": "", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ", "÷": "/", "∕": "/", "√": r"\sqrt ",
    "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "∈": r"\in ", "°": r"^\circ ",
    "²": "^2", "³": "^3", "∅": r"\emptyset ", "±": r"\pm ", "∓": r"\mp ", "％": "%", "，": ",", "（": "(", "）": ")",
    "½": r"\frac12 ", "⅓": r"\frac13 ", "¼": r"\frac14 ", "¾": r"\frac34 ", "⅔": r"\frac23 ",
}  # fmt: skip
_CHARS = str.maketrans(WIDE | _SIGNS)

_RULES = [(re.compile(pattern), new) for pattern, new in (
    (r"\\{2} ?(?:\[[^\[\]]{0,9}\])?", ROW),
    (r"\\\$", DOLLAR),
    (r"\\[()\[\]]|\$\$", "$"),
    (r"(?<=\d)(?:\{,\}|,\\!) ?(?=\d{3})|(?<=\d)\\[,;:!] ?(?=\d{3}(?!\d))", ""),
    (r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits)(?![A-Za-z])\.?", ""),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
    (r"\\(?:mathrm|mathbf|mathit|boldsymbol|operatorname|vec|hat)\s*\{\s*([A-Za-z])\s*\}", r" \1 "),
    (r"\\(?:mathrm|operatorname)\s*\{(sin|cos|tan|cot|sec|csc|log|ln|arcsin|arccos|arctan)\}", r"\\\1 "),
    (r"\\(?:mbox|hbox|textbf|textit|textrm|textsf|textnormal|mathrm|mathbf|mathit|operatorname|emph)(?![A-Za-z])", r"\\text"),
    (r"\\text\s*\{([\d\s.,:/%+-]*)\}", r"\1"),
    (r"\\(?:quad|qquad|thinspace|enspace)(?![A-Za-z])|\\[,;:!> ]|~", " "),
    (r"\\(?:leqslant|leq)(?![A-Za-z])|\\lt(?![A-Za-z])", lambda m: "<" if m[0] == r"\lt" else r"\le "),
    (r"\\(?:geqslant|geq)(?![A-Za-z])|\\gt(?![A-Za-z])", lambda m: ">" if m[0] == r"\gt" else r"\ge "),
    (r"\\lbrace(?![A-Za-z])|\\\{", "⦃"),
    (r"\\rbrace(?![A-Za-z])|\\\}", "⦄"),
    (r"\\langle(?![A-Za-z])", "⟨"),
    (r"\\rangle(?![A-Za-z])", "⟩"),
    (r"\\(?:lvert|rvert|vert)(?![A-Za-z])", "|"),
    (r"\\(?:ldots|dots|cdots)(?![A-Za-z])|\.\.\.", "…"),
    (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])|\\degree(?![A-Za-z])", r"\\circ "),
    (r"\\?%", "%"),
)]  # fmt: skip
_AND, _OR = (
    re.compile(rf"\\text\{{\s*{word}\s*\}}|(?<=[\s\d}}\)$]){word}(?=[\s\d{{\(\\$])|\\(?:{sign})(?![A-Za-z])")
    for word, sign in (("and", "land|wedge"), ("or", "lor|vee"))
)
OR = "∨"
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}", re.S)
_WORDS = re.compile(r"(?:\\text\{[^{}]*\}|[A-Za-z][A-Za-z'.-]*+|[ ])++")


def normal(text: str) -> str:
    """``text`` in one spelling. Raises ``Unread`` where it is too long or nested too deep."""
    if len(text) > MAX_CHARS:
        raise Unread("too long")
    text = text.translate(_CHARS).strip()
    while box := _BOX.fullmatch(text):
        text = box[1].strip()
    if not _WORDS.fullmatch(text):
        text = _OR.sub(f" {OR} ", _AND.sub(" , ", text))
    for pattern, new in _RULES:
        text = pattern.sub(new, text)
    text = text.replace("$", DOLLAR if text.count("$") % 2 else "")
    text = re.sub(r"\s+", " ", text).strip(f" {ROW}").rstrip(" .,;")
    _nesting(text)
    return text


def _nesting(text: str) -> None:
    depth = 0
    for char in text:
        depth += (char in OPEN) - (char in CLOSE)
        if depth > MAX_NESTING:
            raise Unread("nested too deep")


def split(text: str, separator: str, *, grouped: bool = False) -> list[str]:
    """``text`` cut at each ``separator`` outside of brackets; with ``grouped`` not at commas like that of 1,000."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        depth += (text[i] in OPEN) - (text[i] in CLOSE)
        end = i + len(separator)
        if depth == 0 and text.startswith(separator, i) and not (separator[-1].isalpha() and text[end : end + 1].isalpha()):
            if not (grouped and re.match(r",\d{3}(?!\d)", text[i : i + 5]) and re.search(r"(?<![\d.])\d{1,3}$", text[start:i])):
                parts.append(text[start:i].strip())
                start = end
            i = end
        else:
            i += 1
    return [*parts, text[start:].strip()]


def enclosed(text: str) -> bool:
    """Whether the first bracket of ``text`` is closed by its last character, of whatever kind."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char in OPEN) - (char in CLOSE)
        if depth == 0:
            return i > 0 and i == len(text) - 1
    return False
