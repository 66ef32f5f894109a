"""What is printed: nothing a model writes can steer the terminal, and streaming shows what the whole text says."""

import io
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forethought import Completion, Piece
from forethought.evals.terminal import Paint, amount, clean, table, unfinished
from forethought.evals.watch import Reader, follow

# Text made of what matters here, far more often than chance would have it.
PIECES = [*"\x1b[m\x9b\x07\r\b\x00\u202e\u2066\n\t aé", "31m", "0;1", "]0;title", "\x1b\\"]
TAGS = ["<think>", "</think>", "<", "</", "think", ">", "<thi", "nk>"]
hostile = st.lists(st.one_of(st.sampled_from(PIECES), st.characters()), max_size=30).map("".join)
tagged = st.lists(st.one_of(st.sampled_from(PIECES + TAGS), st.characters()), max_size=30).map("".join)


@given(hostile)
def test_cleaned_text_holds_no_control_characters(text: str) -> None:
    cleaned = clean(text)
    assert all(c in "\n\t" or unicodedata.category(c) != "Cc" for c in cleaned)
    assert not re.search("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", cleaned)
    assert clean(cleaned) == cleaned


@given(st.text(st.characters(exclude_categories=["Cc", "Cf"])))
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert clean(text + "\n\t") == text + "\n\t"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("\x9b31mred", "red"),
        ("\x1b]0;title\x07text", "0;titletext"),
        ("over\rwritten\b", "overwritten"),
        ("a\u202eb", "ab"),
        ("é√漢\U0001f600", "é√漢\U0001f600"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert clean(text) == shown


def read(text: str, cuts: list[int], thinking: bool) -> list[tuple[bool, str]]:
    """What a reader says of ``text`` cut at ``cuts``, pieces of one kind joined."""
    reader, said = Reader(thinking), list[tuple[bool, str]]()
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    for start, end in zip([0, *ends], ends, strict=False):
        said += reader.feed(text[start:end])
    said += reader.feed("", last=True)
    joined: list[tuple[bool, str]] = []
    for kind, passage in said:
        if joined and joined[-1][0] == kind:
            joined[-1] = kind, joined[-1][1] + passage
        else:
            joined.append((kind, passage))
    return joined


@given(tagged, st.lists(st.integers(0, 40), max_size=20), st.booleans())
@example("\x1b[31mred</th\x1b[0mink>", [1, 2, 3, 9, 12, 14], True)
def test_reading_does_not_depend_on_the_cuts(text: str, cuts: list[int], thinking: bool) -> None:
    assert read(text, cuts, thinking) == read(text, [], thinking)


untagged = tagged.filter(lambda text: not unfinished(text) and "<think>" not in clean(text) and "</think>" not in clean(text))


@given(untagged, hostile, st.booleans(), st.integers(1, 5))
def test_reading_finds_reasoning_and_answer(reasoning: str, answer: str, opened: bool, step: int) -> None:
    text = ("" if opened else "<think>") + reasoning + "</think>" + answer
    whole = Completion(clean(text), [], "stop")
    expected = [(True, whole.reasoning), (False, whole.answer)]
    assert read(text, list(range(0, len(text), step)), opened) == [part for part in expected if part[1]]


def test_following_prints_and_returns() -> None:
    done = Completion("<think>\n1 + 1 = 2\n</think>\nIt is 2.", [1, 2], "stop")
    pieces = [Piece("<thi", [1]), Piece("nk>\n1 + \x1b[2J1 = 2\n</thi", []), Piece("nk>\nIt is 2.", [2], done)]
    out = io.StringIO()
    assert follow(iter(pieces), out) is done
    assert out.getvalue() == "1 + 1 = 2\n\nIt is 2.\n"


def test_following_interrupted_keeps_what_there_is() -> None:
    def pieces():
        yield Piece("One, <th", [1])
        raise KeyboardInterrupt

    out = io.StringIO()
    assert follow(pieces(), out) is None
    assert out.getvalue() == "One, <th\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_where_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Paint(io.StringIO()).dim("x") == "x"
    assert Paint(Terminal()).dim("x") == "\x1b[2mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Paint(Terminal()).bold("x") == "x"


def test_table_lines_up() -> None:
    assert table(["name", "n"], [["a", "1"], ["longer", "1,000"]]).splitlines() == [
        "name        n",
        "a           1",
        "longer  1,000",
    ]


@pytest.mark.parametrize(
    ("n", "unit", "text"),
    [
        (3, "", "3"),
        (9999, "", "9,999"),
        (264_960, "", "265 k"),
        (1_525_440, "", "1.5 M"),
        (99_990_000, "", "100 M"),
        (0, "B", "0 B"),
        (1500, "B", "1.5 kB"),
        (157_000, "B", "157 kB"),
        (6.9e9, "B/s", "6.9 GB/s"),
    ],
)
def test_amounts(n: float, unit: str, text: str) -> None:
    assert amount(n, unit) == text
