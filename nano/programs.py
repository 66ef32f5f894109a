"""Seeded code problems: short Python functions asked for by signature and docstring, with a worked solution and tests.

A problem is a chain of one to five operations (``operations.py``); ``level`` is their number. Train and test never meet: the
sha256 of the chain, constants included and words left out, picks the split. What tests expect comes from functions that share
nothing with the solution's text; the *visible* ones are few and drawn at random, the *hidden* ones include the edges.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from ..schema import Problem
from .operations import Kind, from_list, from_string, on_list, on_number, on_string
from .problems import Split, split_of

TASK = "nano_code"
LEVELS = range(1, 6)
HIDDEN = 12
"""Hidden tests of a problem, at least."""

_NAMES: dict[Kind, list[str]] = {
    "list": "nums numbers values items arr lst".split(),
    "string": "s text string".split(),
    "number": "n x value num".split(),
}
_TYPES: dict[Kind, str] = {"list": "list[int]", "string": "str", "number": "int"}
_ITEMS = {"list": ["x", "n", "item"], "string": ["c", "char"], "number": ["d"]}
_VERBS = "count total check add swap result number sum digits out even odd text values items find".split()
_LETTERS = "aabcddeeeinoorrsstt"
_SWEEP: dict[Kind, Sequence[Any]] = {
    "list": [[*range(i, i + 5)] for i in range(-13, 27, 5)],
    "string": ["abcdeinorst", "tsroniedcba", "aaeeiioo", "stdrbnca"],
    "number": range(-12, 41),
}
"""Inputs of which some lie at a boundary, wherever in a chain that is."""


class _Chain:
    """The operations of one problem, of which each matters."""

    def __init__(self, rng: random.Random, level: int) -> None:
        self.rng = rng
        self.kind: Kind = rng.choices(["list", "string", "number"], [60, 25, 15])[0]  # type: ignore[assignment]
        make = {"list": on_list, "string": on_string, "number": on_number}[self.kind]
        self.operations = [make(rng) for _ in range(level)]
        if self.kind != "number" and rng.random() < (0.35 if level == 1 else 0.6):
            self.operations[-1] = (from_list if self.kind == "list" else from_string)(rng)
        self.skeleton = f"{self.kind} | " + " | ".join(operation.key for operation in self.operations)

    @property
    def result(self) -> str:
        return "int" if self.operations[-1].role == "last" else _TYPES[self.kind]

    def run(self, value: Any, without: int = -1) -> Any:
        for i, operation in enumerate(self.operations):
            if i != without:
                value = operation.run(value)
        return value

    def usual(self) -> Any:
        """An input such as anybody would try."""
        rng = self.rng
        if self.kind == "number":
            return rng.randint(-9, 40)
        if self.kind == "string":
            return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(3, 8)))
        return [rng.randint(-9, 25) for _ in range(rng.randint(3, 5))]

    def edges(self) -> list[Any]:
        """Inputs on which programs that are nearly right differ."""
        rng, near = self.rng, [edge for operation in self.operations for edge in operation.edges]
        if self.kind == "number":
            return [0, 1, -1, -7, 100, *near]
        if self.kind == "string":
            return ["", "a", "aeiou", "".join(rng.choice("abcde") for _ in range(12)), "tttt", "oneidea"]
        rng.shuffle(near)
        lists = [[], [rng.randint(-9, 9)], [-3, -8, -3, -1], [4, 4, 4], [0, 0, 7, 7, -2, 0], list(range(9, -3, -2))]
        return lists + [near[i : i + 4] for i in range(0, len(near), 4)]

    def tests(self) -> tuple[list[list[Any]], list[list[Any]]] | None:
        """Visible and hidden ones, each [arguments, expected]; None where some operation does not matter."""
        visible = _tests(self, [self.usual() for _ in range(self.rng.choice([2, 3, 3]))])
        hidden = _tests(self, [*self.edges(), *(self.usual() for _ in range(8))])
        while len(hidden) < HIDDEN:
            hidden = _tests(self, [*(args[0] for args, _ in hidden), self.usual()])
        usual = hidden[-8:]
        if len({repr(want) for _, want in usual}) < 4 or any(len(repr(want)) > 40 for _, want in hidden):
            return None
        if len(visible) < 2 or visible[0][1] in (0, [], "") or visible[0][1] == visible[0][0][0]:
            return None
        for i in range(len(self.operations)):
            if sum(self.run(args[0], i) != want for args, want in usual) < 2:
                return None
        return visible, _tests(self, [*(args[0] for args, _ in hidden), *_SWEEP[self.kind]])


def _tests(chain: _Chain, inputs: Sequence[Any]) -> list[list[Any]]:
    distinct = {repr(value): value for value in inputs}.values()
    return [[[value], chain.run(value)] for value in distinct]


def _docstring(chain: _Chain, name: str) -> str:
    """What the function is to do, in words."""
    rng = chain.rng
    clauses = [rng.choice(operation.said) for operation in chain.operations]
    ends = chain.operations[-1].role == "last"
    last = clauses.pop() if ends else ""
    if not clauses:
        whole = rng.choice([f"Return {last} of {name}.", f"Of {name}, return {last}.", f"With {name}, find {last}."])
        return whole
    if len(clauses) > 1:
        joint = rng.choice([", then ", ". Then ", ", and then "])
        text = joint.join(clauses)
    else:
        text = clauses[0]
    start = rng.choice([f"With {name}: ", f"Given {name}, ", f"Take {name}, then "])
    end = rng.choice([f". Return {last}.", f", and return {last}.", f". The answer is {last}."]) if ends else rng.choice(
        [".", " and return the result.", ". Return the result."]
    )  # fmt: skip
    return start + text + end


class _Writer:
    """Writes the body of a function that runs a chain, in one of several manners."""

    def __init__(self, chain: _Chain, name: str) -> None:
        rng = chain.rng
        self.chain, self.name = chain, name
        self.manner = rng.choice(["steps", "short", "loop"])
        self.item = rng.choice([item for item in _ITEMS[chain.kind] if item != name])
        self.codes = [rng.choice(op.written).replace("{x}", self.item) for op in chain.operations]
        self.lines: list[str] = []

    def body(self) -> list[str]:
        operations, i = self.chain.operations, 0
        while i < len(operations):
            more = 1
            if operations[i].role in ("keep", "each"):
                joined = self.manner != "steps" and [op.role for op in operations[i : i + 2]] == ["keep", "each"]
                more = 2 if joined else 1
                condition = self.codes[i] if operations[i].role == "keep" else ""
                value = self.codes[i + more - 1] if operations[i + more - 1].role == "each" else self.item
                looped = self.manner == "loop" and i == 0
                self._items(value, condition, last=i + more == len(operations), looped=looped)
            else:
                self._whole(self.codes[i], last=i + 1 == len(operations))
            i += more
        return self.lines

    def _give(self, code: str, *, last: bool) -> None:
        self.lines.append(f"return {code}" if last else f"{self.name} = {code}")

    def _whole(self, code: str, *, last: bool) -> None:
        if "\n" in code:
            self.lines += code.replace("{v}", self.name).split("\n")
        else:
            self._give(code.replace("{v}", self.name), last=last)

    def _items(self, value: str, condition: str, *, last: bool, looped: bool) -> None:
        text = self.chain.kind == "string"
        if looped:
            start, add = ('""', f"out += {value}") if text else ("[]", f"out.append({value})")
            self.lines += [f"out = {start}", f"for {self.item} in {self.name}:"]
            self.lines += [f"    if {condition}:", f"        {add}"] if condition else [f"    {add}"]
            if last:
                self.lines.append("return out")
            else:
                self.name = "out"
            return
        code = f"{value} for {self.item} in {self.name}" + (f" if {condition}" if condition else "")
        self._give(f'"".join({code})' if text else f"[{code}]", last=last)


def _plan(chain: _Chain, writer: _Writer) -> str:
    """One or two lines that say in signs what the words ask for."""
    parts = []
    for operation, code in zip(chain.operations, writer.codes, strict=True):
        if operation.role == "keep":
            parts.append(f"only if {code}.")
        elif operation.role == "each":
            parts.append(f"each {code}.")
        else:
            parts.append(f"{operation.key}.")
    parts = [f"First {parts[0]}", *(f"Then {part}" for part in parts[1:])]
    half = (len(parts) + 1) // 2 if len(parts) > 2 else len(parts)
    return "\n\n".join(" ".join(part) for part in (parts[:half], parts[half:]) if part)


def generate(level: int, seed: int, split: Split = "train") -> Problem:
    """The problem of this level and seed. ``meta`` is what :class:`~forethought.verifiers.code.Code` reads (``tests`` named
    ``visible`` and ``hidden``, ``entry_point``, ``prompt``, ``reference``) with ``solution`` (text) and ``skeleton``.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be 1 to 5, not {level}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, not {split!r}")
    for attempt in itertools.count():
        rng = random.Random(f"{TASK} {level} {seed} {split} {attempt}")
        chain = _Chain(rng, level)
        tests = chain.tests() if split_of(chain.skeleton) == split else None
        if tests:
            return _problem(chain, *tests, f"{TASK}-{split}-{level}-{seed}", level)
    raise AssertionError("unreachable")


def _problem(chain: _Chain, visible: list[list[Any]], hidden: list[list[Any]], id: str, level: int) -> Problem:
    rng = chain.rng
    name, entry = rng.choice(_NAMES[chain.kind]), "_".join(rng.sample(_VERBS, 2))
    shown = visible[: rng.choice([1, 2])]
    signature = f"def {entry}({name}: {_TYPES[chain.kind]}) -> {chain.result}:"
    examples = "".join(f"\n    >>> {entry}({args[0]!r})\n    {want!r}" for args, want in shown).replace("'", '"')
    prompt = f'{signature}\n    """{_docstring(chain, name)}\n{examples}\n    """\n'
    writer = _Writer(chain, name)
    reference = "\n    ".join([signature, *writer.body()]) + "\n"
    meta = {
        "solution": f"<think>\n{_plan(chain, writer)}\n</think>\n```python\n{reference}```",
        "skeleton": chain.skeleton,
        "tests": {"visible": visible, "hidden": hidden},
        "entry_point": entry,
        "prompt": prompt,
        "reference": reference,
    }
    return Problem(id, prompt.rstrip("\n"), None, TASK, level, meta)


def problems(split: Split = "test", seed: int = 0, levels: Sequence[int] = LEVELS) -> Iterator[Problem]:
    """Endless problems, the levels in turn."""
    for i in itertools.count():
        yield generate(levels[i % len(levels)], seed + i // len(levels), split)
