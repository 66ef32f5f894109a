"""HTML in which nothing that is text can become markup: elements are made here, and all else that goes into them is escaped.

Text of models shows what it holds: control characters and marks that reorder text stand there as signs of themselves.
"""

from __future__ import annotations

import html
import re

VOID = ("br", "col", "meta")
"""Elements without an end tag."""

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """What may stand in a page as it is."""


def visible(text: str) -> str:
    """``text`` with every character to be seen: control pictures for C0, ``\\uXXXX`` for others; newlines and tabs stay."""

    def sign(found: re.Match[str]) -> str:
        code = ord(found[0])
        return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"\\u{code:04x}"

    return _UNSEEN.sub(sign, text)


def escaped(text: str) -> Html:
    """For the inside of an element and of a quoted attribute; what is ``Html`` already stays."""
    return text if isinstance(text, Html) else Html(html.escape(visible(text)))


def h(tag: str, *children: str | None, **attributes: str | bool | None) -> Html:
    """An element. ``class_`` is ``class``, ``data_x`` is ``data-x``; None and False leave out, True is an attribute alone."""
    written = "".join(
        f" {_name(name)}" if value is True else f' {_name(name)}="{escaped(value)}"'
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{join(*children)}</{tag}>")


def join(*children: str | None) -> Html:
    """One after the other."""
    return Html("".join(escaped(child) for child in children if child is not None))


def _name(attribute: str) -> str:
    return attribute.rstrip("_").replace("_", "-")


def cut(text: str, characters: int) -> str:
    """At most so many characters of ``text``, and then how many more there are."""
    more = len(text) - characters
    return text if more <= 0 else f"{text[:characters]}… ({more:,} more characters)"


def grid(header: list[str], rows: list[list[str]], *, caption: str | None = None, left: int = 1) -> Html:
    """A table; the first ``left`` columns are words, the others numbers, which stand to the right."""

    def line(kind: str, cells: list[str]) -> Html:
        return h("tr", *(h(kind, cell, class_=None if i < left else "n") for i, cell in enumerate(cells)))

    body = h("tbody", *(line("td", row) for row in rows))
    table = h("table", caption and h("caption", caption), h("thead", line("th", header)), body)
    return h("div", table, class_="wide")


def unfolds(summary: str, *children: str | None, **attributes: str | bool | None) -> Html:
    """What is shown on a click."""
    return h("details", h("summary", summary), *children, **attributes)
