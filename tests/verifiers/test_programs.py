"""The program in a model's text, however it is wrapped: what is read runs, and is what was meant."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.verifiers.fences import split
from forethought.verifiers.programs import readings

SUM = "def total(xs):\n    return sum(xs)"
PROMPT = 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """Sum."""\n'
FENCE = "```"
QUOTED = '''def total(xs):
    """Sum.

    ```python
    total([1])
    ```
    """
    return sum(xs)'''
AT_MARGIN = '''TEXT = """
```
not the end
```
"""
def total(xs):
    return sum(xs)'''


def reading(text: str, prompt: str = "") -> str:
    """The first reading that would run; the sandbox's choice, here for harmless texts."""
    for source in readings(text, "total", prompt):
        try:
            names = compile(source, "test", "exec").co_names
        except SyntaxError:
            continue
        if "total" in names:
            return source
    return ""



def chosen(text: str, prompt: str = "") -> dict[str, Any]:
    """What :func:`reading` defines, run."""
    source = reading(text, prompt)
    assert source, f"no program in {text!r}"
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return namespace


def indented(text: str, by: str) -> str:
    return "\n".join(by + line for line in text.split("\n"))


FENCED = {
    "plain": f"```python\n{SUM}\n```",
    "in a list item": f"1. Sum them:\n\n   ```python\n{indented(SUM, '   ')}\n   ```\n2. Done.",
    "in a list item, code at the margin": f"1. Sum them:\n   ```python\n{SUM}\n   ```\n",
    "in a list item, code further in": f"- Sum:\n  ```python\n{indented(SUM, '      ')}\n  ```\n",
    "behind the bullet": f"- ```python\n{indented(SUM, '  ')}\n  ```\n- done",
    "behind the number": f"2. ```python\n{indented(SUM, '   ')}\n   ```",
    "in a quote": f"> Look:\n> ```python\n{indented(SUM, '> ')}\n> ```\n> Done.",
    "with tabs": f"\t```python\n{indented(SUM, chr(9))}\n\t```",
    "closed on the last line": f"```python\n{SUM}```\nThat is it.",
    "closed behind a space": f"```python\n{SUM} ```",
    "closed in a comment": f"```python\n{SUM}  # done```",
    "closed behind more ticks": f"```python\n{SUM}\n`````",
    "never closed": f"```python\n{SUM}\n",
    "never closed, with words behind": f"```python\n{SUM}\n\nThis adds them all up.",
    "opened behind a sentence": f"Here it is: ```python\n{SUM}\n```",
    "code on the fence's line": "```def total(xs):\n    return sum(xs)\n```",
    "tildes": f"~~~python\n{SUM}\n~~~",
    "tildes with ticks within": f"~~~\n{QUOTED}\n~~~",
    "four ticks": f"````python\n{QUOTED}\n````",
    "in a block of Markdown": f"```markdown\nText\n```python\n{SUM}\n```\n```\nDone",
    "in a longer block": f"````\nText\n```python\n{SUM}\n```\n````",
    "a fence in the docstring": f"```python\n{QUOTED}\n```\nUse it.",
    "a fence in a string at the margin": f"```python\n{AT_MARGIN}\n```\nUse it.",
    "a fence in a string, never closed": f"```python\n{AT_MARGIN}\n",
    "inline ticks in a comment": "```python\ndef total(xs):  # not ```sum``` of\n    return sum(xs)\n```",
    "ticks in a string": "```python\nTICKS = '```'\ndef total(xs):\n    return sum(xs)\n```",
    "an escaped quote": "```python\nQ = '\\'```'\ndef total(xs):\n    return sum(xs)\n```",
    "ticks in a docstring": '```python\ndef total(xs):\n    """Sum of ```xs```."""\n    return sum(xs)\n```',
    "no end of a string in another block": f"```text\nthey said \"\"\"\n```\n```python\n{SUM}\n```",
    "language and version": f"```python3.10\n{SUM}\n```",
    "language in capitals": f"```Python\n{SUM}\n```",
    "language in braces": f"```{{.python .numberLines}}\n{SUM}\n```",
    "a name behind the language": f"```python title=\"sum.py\"\n{SUM}\n```",
    "a space before the language": f"``` python\n{SUM}\n```",
    "no language": f"```\n{SUM}\n```",
    "opened twice": f"```\n```python\n{SUM}\n```",
    "closed by the next": f"```python\n{SUM}\n```text\nout\n```",
    "a stray fence before": f"```\n\n{SUM}\n```",
    "only the end of a fence": f"{SUM}\n```\nThis adds them up.",
    "carriage returns": f"```python\r\n{SUM}\r\n```\r\n".replace("\n    ", "\r\n    "),
    "old carriage returns": f"```python\n{SUM}\n```".replace("\n", "\r"),
}  # fmt: skip


@pytest.mark.parametrize("name", FENCED)
def test_fences(name: str) -> None:
    assert chosen(FENCED[name])["total"]([1, 2, 3]) == 6


def test_a_block_is_its_lines() -> None:
    assert readings(f"```python\n{SUM}\n```", "total") == [f"{SUM}\n"]
    assert split("a\n```py\nb\n  c\n```\n~~~\nd\n")[1][0].text == "b\n  c\n"
    assert split("a\n```py\nb```\nc")[1][0].text == "b"


WRONG = "def total(xs):\n    return 0"
SEVERAL = {
    "the last one": f"```python\n{WRONG}\n```\nBetter:\n```python\n{SUM}\n```",
    "not the example": f"```python\n{SUM}\n```\n```python\nprint(total([1, 2, 3]), total([4, 5, 6]), total([7, 8, 9]))\n```",
    "not the output": f"```python\n{SUM}\n```\n```text\ndef total(xs): the output, which is longer than the program is\n```",
    "not another language": f"```ruby\n{WRONG}\n```\n```python\n{SUM}\n```\n```ruby\n{WRONG}\n```",
    "with its imports": "```python\nfrom functools import reduce\nimport operator as op\n```\n```python\n"
        "def total(xs):\n    return reduce(op.add, xs)\n```",
    "with a helper before": "```python\ndef plus(a, b):\n    return a + b\n```\n```python\ndef total(xs):\n    t = 0\n"
        "    for x in xs: t = plus(t, x)\n    return t\n```",
    "with a helper behind": "```python\ndef total(xs):\n    return plus(xs)\n```\nand\n```python\ndef plus(xs):\n"
        "    return sum(xs)\n```",
    "with a helper's helper": "```python\nSTART = 0\n```\n```python\ndef plus(xs):\n    return sum(xs, START)\n```\n"
        "```python\ndef total(xs):\n    return plus(xs)\n```",
    "with a helper that is no program": "```python\ndef sum(xs:\n```\n" + f"```python\n{SUM}\n```",
    "not its signature": f"```python\n{SUM}\n```\nIt is called so:\n```python\ndef total(xs: list) -> int: ...\n```",
    "not its signature, passed": f"```python\n{SUM}\n```\n```python\ndef total(xs):\n    pass  # yours\n```",
    "a helper of the first version": f"```python\ndef plus(xs):\n    return sum(xs)\n{WRONG}\n```\n```python\n"
        f"def total(xs):\n    return plus(xs)\n```",
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
def test_several_blocks(name: str) -> None:
    assert chosen(SEVERAL[name])["total"]([1, 2, 3]) == 6


@pytest.mark.parametrize("end", ["<|im_end|>", "</s>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "<eos>",
"<｜end▁of▁sentence｜>",
                                 "<|im_end|>\n<|im_start|>user\nThanks", "<|endoftext|>def total(xs): return 0",
                                 "</s></s>"])  # fmt: skip
@pytest.mark.parametrize("text", [f"```python\n{SUM}\n```", f"```python\n{SUM}\n", f"```python\n{SUM}", f"{SUM}\n", SUM])
def test_leftover_end_tokens(text: str, end: str) -> None:
    assert chosen(text + end)["total"]([1, 2, 3]) == 6
    assert chosen("    return sum(xs)" + end, PROMPT)["total"]([1, 2, 3]) == 6


def test_a_next_turn_is_not_the_answer() -> None:
    assert chosen(f"```python\n{SUM}\n```<|im_end|>\n<|im_start|>user\n```python\n{WRONG}\n```")["total"]([1, 2, 3]) == 6


@pytest.mark.parametrize("token", ["</s>", "<|im_end|>", "<eos>"])
def test_tokens_in_the_program_are_its_own(token: str) -> None:
    text = f"def total(xs):\n    # up to {token}\n    mark = '{token}'\n    return sum(xs) if len(mark) == {len(token)} else 0"
    for whole in (text, f"```python\n{text}\n```"):
        assert chosen(whole)["total"]([1, 2, 3]) == 6


BARE = {
    "byte-order mark": f"\ufeff{SUM}",
    "byte-order mark in a fence": f"```python\n\ufeff{SUM}\n```",
    "spaces that do not break": SUM.replace(" ", "\u00a0"),
    "wide spaces and no width": SUM.replace("    ", "\u3000   ") + "\u200b",
    "curly quotes": "def total(xs):\n    return {“a”: sum(xs)}[‘a’]",
    "entities": "def total(xs):\n    return sum(x for x in xs if x &lt; 10 and x &gt; 0 &amp; 1)",
    "entities of its own": "def total(xs):\n    return sum(xs) if '&lt;' != '<' else 0",
    "an indented block": f"Here:\n\n{indented(SUM, '    ')}\n\nDone with it.",
    "an indented program": indented(SUM, "  "),
    "after prose": f"Sure, here is the function:\n\n{SUM}\n\nIt adds them up.",
    "after [/THINK]": f"[THINK]{WRONG}[/THINK]\n{SUM}",
    "between tags": f"<answer>\n{SUM}\n</answer>",
    "between tags behind prose": f"Here it is.\n<code>\n{SUM}\n</code>\n",
    "after </thinking>": f"<thinking>\n```python\n{WRONG}\n```\n</thinking>\n```python\n{SUM}\n```",
    "other characters in strings": "def total(xs):\n    return sum(xs) if len('\u00a0\u201c') == 2 and '\u00a0' != ' ' else 0",
}


@pytest.mark.parametrize("name", BARE)
def test_characters_and_margins(name: str) -> None:
    assert chosen(BARE[name])["total"]([1, 2, 3]) == 6


BODY = "    return sum(xs)"
CONTINUED = {
    "the body": BODY,
    "the body, narrower": "  s = 0\n  for x in xs:\n    s += x\n  return s",
    "the body, with a tab": "\treturn sum(xs)".replace("\t", "    "),
    "the body, unindented": "s = 0\nfor x in xs:\n    s += x\nreturn s",
    "the body, its first line stripped": "s = sum(xs)\n    return s",
    "the body and the end of a fence": f"{BODY}\n```\n\nThis adds them up.",
    "the body and another program": f"{BODY}\n\n\ndef other():\n    pass\n\nprint(other(",
    "the body in a fence": f"```python\n{BODY}\n```",
    "the body in a list item": f"1. So:\n   ```python\n{indented(BODY, '   ')}\n   ```",
    "the signature again": "def total(xs: List[int]) -> int:\n    return sum(xs)",
    "the signature again, in a fence": "```python\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n```",
    "the prompt again": PROMPT + BODY,
    "the signature again, indented": "    def total(xs: List[int]) -> int:\n        return sum(xs)",
}


@pytest.mark.parametrize("name", CONTINUED)
def test_what_goes_on_with_a_prompt(name: str) -> None:
    assert chosen(CONTINUED[name], PROMPT)["total"]([1, 2, 3]) == 6


def test_a_block_that_names_its_language_goes_before_a_longer_one() -> None:
    """Where nothing says what the program defines."""
    program = "n = int(input())\nprint(n + 1)"
    shown = f"```python\n{program}\n```\nExample input:\n```\n5 and so on, and so on, and so on, and so on\n```"
    assert readings(shown)[0].strip() == program
    assert readings(f"```\n{program}\n```")[0].strip() == program


def test_a_body_that_passes_first_is_one() -> None:
    source = "def total(xs):\n    pass\n    return sum(xs)"
    assert readings(f"```python\n{WRONG}\n```\n```python\n{source}\n```", "total")[0].strip() == source


def test_without_code_there_is_no_program() -> None:
    for text in ("", " \n", "I do not know.", "```\n```", "\ufeff", "<|im_end|>", "~~~", "> ", "1. "):
        assert readings(text, "total") == [], text


UNITS = [
    "\n", " ", "\t", "`", "~", "```\n", "~~~\n", "```python\n", "~~~~ `\n", "~`", "```\n~~~\n", "`````\n````\n", "> ",
    "> ```\n", "- ", "1. ```\n",
    "def ", "def\n", "async ", "total:", "total ", "x.(", "x[", "A", "A ", "A:", "a\n ", '"', "'''",
    '"""\n', '```\n"""\n', "```\n'''\n```\n\"\"\"\n", "\\",
    "#", "# ```", "# ```x", "<", "<|", "</s>", "<|im_end|>", "&", "&lt;", "&#9", "\u00a0", "\ufeff", "\r",
    "import a\n", "from ", "class X\n", "    def total",
    "```\ndef a():\n b\n```\n", "```\nA = 1\n```\n", "</think>", "[/THINK]", "@", "if ", "return\n", "= ", "    ",
    "((", "````\n```\n", "```markdown\n",
]  # fmt: skip


def seconds(text: str) -> float:
    start = time.process_time()
    readings(text, "total", PROMPT)
    readings(text)
    return time.process_time() - start


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("tail", ["`", "x"])
def test_reading_takes_time_in_proportion(unit: str, tail: str) -> None:
    """Four times the text: the square would be sixteen times the seconds, and many of them."""
    short, long = (unit * (size // len(unit)) + tail for size in (10_000, 40_000))
    assert seconds(long) < 12 * seconds(short) + 0.5


words = st.sampled_from(
    [
        "```",
        "~~~",
        "````",
        "python",
        "\n",
        "\n\n",
        "    ",
        "def total(xs):",
        "return 1",
        '"""',
        "'",
        "#",
        "> ",
        "1. ",
        "</s>",
        "x",
        "\r",
        "\ufeff",
    ]
)


@given(st.lists(words, max_size=30).map("".join), st.sampled_from(["", PROMPT]))
def test_any_text_is_read(text: str, prompt: str) -> None:
    found = readings(text, "total", prompt)
    assert len(found) == len(set(found)) < 60
    head, blocks = split(text)
    assert text.startswith(head)
    assert sum(len(block.text) for block in blocks) <= 2 * len(text) + 2


@given(st.text())
def test_any_characters_are_read(text: str) -> None:
    for prompt in ("", PROMPT):
        assert all(isinstance(reading, str) for reading in readings(text, "total", prompt))


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("    return sum(xs)\n", PROMPT),
        ("    return sum(xs)\r\n", PROMPT.replace("\n", "\r\n")),
        ("    return sum(xs)\n\nThis adds them up.", PROMPT),
        ("    return sum(xs)\n\ndef other(:\n", PROMPT),
        ("return sum(xs)", PROMPT),
        ("s = 0\nfor x in xs:\n    s += x\nreturn s", PROMPT),
        ("```python\n    return sum(xs)\n```", PROMPT),
        ("```\nreturn sum(xs)\n```", PROMPT),
        ("def total(xs: List[int]) -> int:\n    return sum(xs)", PROMPT),
        (PROMPT + "    return sum(xs)", PROMPT),
        ("from __future__ import annotations\ndef total(xs):\n    return sum(xs)", PROMPT),
        ("Here it is:\n\ndef total(xs):\n    return sum(xs)\n\nI hope it helps.", ""),
        ("LIMIT = 3\n\ndef total(xs):\n    return sum(xs)", ""),
        ("```python\ndef total(xs): return 0\n```\nBetter:\n```python\ndef total(xs): return sum(xs)\n```", ""),
        (
            "```python\ndef total(xs): return sum(xs)\n```\nUse:\n```python\nprint(total([1, 2, 3]), 'a much longer block')\n```",
            "",
        ),
        ("```py\ndef total(xs):\n    return sum(xs)", ""),
        ("<think>def total(xs): return 0</think>\n```\ndef total(xs): return sum(xs)\n```", ""),
        ("~~~\ntotal = sum\n~~~", ""),
    ],
)
def test_program_is_read_from_the_text(text: str, prompt: str) -> None:
    assert chosen(text, prompt)["total"]([1, 2, 3]) == 6



def test_hostile_text_is_read_in_time() -> None:
    for text in (
        "\n" * 200_000,
        " " * 200_000,
        "```\n" * 50_000,
        "def " * 50_000,
        "a" * 200_000,
        "total:" * 50_000,
        "x.(" * 50_000,
    ):
        readings(text, "total", PROMPT)

