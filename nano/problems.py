"""Seeded word problems of 1 to 8 steps with integer answers, and their worked solutions with reflections.

A problem is a head (how much there is at first), a chain of events, and a tail (what is asked), each of which costs a known
number of steps; ``level`` is their sum. Train and test never meet: the sha256 of the arithmetic skeleton (operations and
numbers, no words) picks the split, so a held-out problem is not a training problem in other words either.
Solutions are written, never sampled from a model. The text is plain English without units, fractions or negative numbers.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..schema import Problem

Split: TypeAlias = Literal["train", "test"]

TASK = "nano_math"
LEVELS = range(1, 9)
LARGEST = 999
_TEST_SHARE = 8
"""One skeleton in so many is held out."""

HE = "Tom Sam Ben Leo Max Jack Adam Omar Ravi Paul Noah Luke Hugo Ivan Carl".split()
SHE = "Mia Ana Eva Lily Rosa Nina Zoe Emma Lucy Sara Kate Ruth Jane Maya Olga".split()
THINGS = (
    "apples pears oranges marbles stickers cards coins books pencils pens shells stones cookies candies stamps toys balls eggs "
    "flowers buttons beads nuts cups plates photos tickets"
).split()
GOODS = "pens hats cakes toys books tickets balls cups plates lamps chairs shirts".split()
BOXES = "boxes bags jars baskets packs crates".split()
TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}
GROWS = {2: "doubles", 3: "triples"}

# What happens, and how the solution calls it. S subject, M object pronoun, F friend, o things, g goods, B containers.
_Lines: TypeAlias = list[tuple[str, str]]
_MORE: _Lines = [
    ("{S} buys {n} more {o}.", "{S} buys {n} more"),
    ("{S} finds {n} {o}.", "{S} finds {n}"),
    ("{F} gives {M} {n} {o}.", "{F} gives {M} {n}"),
    ("{S} gets {n} {o} as a gift.", "{S} gets {n}"),
    ("{S} wins {n} {o} in a game.", "{S} wins {n}"),
]
_FEWER: _Lines = [
    ("{S} gives {n} {o} to {F}.", "{S} gives away {n}"),
    ("{S} loses {n} {o}.", "{S} loses {n}"),
    ("{S} sells {n} {o}.", "{S} sells {n}"),
    ("{S} uses {n} of the {o}.", "{S} uses {n}"),
]
_HALF: _Lines = [
    ("{S} gives half of the {o} to {F}.", "Half is left"),
    ("{S} sells half of the {o}.", "Half is left"),
    ("{S} loses half of the {o}.", "Half is left"),
]
_PACKS: _Lines = [
    ("{S} buys {k} {B} of {m} {o} each.", "{k} {B} of {m}"),
    ("{S} finds {m} {o} every day for {k} days.", "{k} days with {m} each"),
    ("{k} friends each give {M} {m} {o}.", "{k} friends with {m} each"),
]
_EACH: _Lines = [
    ("{S} gives {m} {o} to each of {k} friends.", "{k} friends with {m} each"),
    ("{S} sells {k} {B} of {m} {o} each.", "{k} {B} of {m}"),
    ("{S} uses {m} {o} every day for {k} days.", "{k} days with {m} each"),
]
_EARN: _Lines = [
    ("{S} earns {n} dollars.", "{S} earns {n}"),
    ("{F} gives {M} {n} dollars.", "{F} gives {M} {n}"),
    ("{S} finds {n} dollars.", "{S} finds {n}"),
]
_SPEND: _Lines = [
    ("{S} spends {n} dollars.", "{S} spends {n}"),
    ("{S} pays {n} dollars for lunch.", "{S} pays {n}"),
    ("{S} gives {n} dollars to {F}.", "{S} gives away {n}"),
]
_WAGES: _Lines = [
    ("{S} works {k} hours for {m} dollars an hour.", "{k} hours at {m} each"),
    ("{S} sells {k} {g} at {m} dollars each.", "{k} {g} at {m} each"),
    ("{S} saves {m} dollars a week for {k} weeks.", "{k} weeks with {m} each"),
]
_PRICES: _Lines = [
    ("{S} buys {k} {g} at {m} dollars each.", "{k} {g} at {m} each"),
    ("{S} spends {m} dollars a day for {k} days.", "{k} days with {m} each"),
]

_REFLECT = ["Wait, let me check.", "Wait, let me check that.", "Hmm, let me check this step."]
_REVIEW = ["Let me double-check the whole thing.", "Wait, let me go over this again.", "Let me check everything once more."]
_CONFIRM = ["That is right.", "Yes, that is correct.", "Good."]


def apply(a: int, op: str, b: int) -> int:
    """``a op b`` for ``+ - * /``; division must be exact."""
    if op == "/":
        if b == 0 or a % b:
            raise ValueError(f"{a} / {b} is not exact")
        return a // b
    return {"+": a + b, "-": a - b, "*": a * b}[op]


@dataclass(frozen=True, slots=True)
class Step:
    """One reasoning step: a few words and one equation, which ``slip`` makes wrong by so much."""

    lead: str
    a: int
    op: str
    b: int
    slip: int = 0

    @property
    def result(self) -> int:
        return apply(self.a, self.op, self.b) + self.slip

    def equation(self, result: int | None = None) -> str:
        return f"{self.a} {self.op} {self.b} = {self.result if result is None else result}"


class _Story:
    """Builds one problem: sentences for the question, steps for the solution, and the skeleton that names it."""

    def __init__(self, rng: random.Random, level: int) -> None:
        self.rng = rng
        self.facts: list[str] = []
        self.steps: list[Step] = []
        self.skeleton: list[str] = []
        self.opening = ""
        he = rng.random() < 0.5
        self.name = _unseen_name(rng) if rng.random() < 0.04 else rng.choice(HE if he else SHE)
        self.friends = rng.sample([n for n in HE + SHE if n != self.name], 4)
        self.subject, self.object = ("He", "him") if he else ("She", "her")
        self.money = rng.random() < 0.3
        self.things = "dollars" if self.money else rng.choice(THINGS)
        self.value = 0

        tails = [(0, self._ask_now, 3), (1, self._ask_total, 2), (1, self._ask_more, 1), (1, self._ask_share, 1)]
        tails += [(2, self._ask_relative, 2)] + ([] if self.money else [(1, self._ask_worth, 1)])
        heads = [(0, self._start, 3), (1, self._boxes, 0 if self.money else 2), (1, self._relative, 2), (2, self._loose, 1)]
        tail_cost, tail = self._pick([t for t in tails if t[0] <= level])
        head_cost, head = self._pick([h for h in heads if h[0] + tail_cost <= level])
        head()
        left = level - head_cost - tail_cost
        while left:
            left -= self._event(left)
        tail()

    def _pick(self, options: list[tuple[int, Callable[[], None], int]]) -> tuple[int, Callable[[], None]]:
        cost, make, _ = self.rng.choices(options, [weight for *_, weight in options])[0]
        return cost, make

    def _fill(self, text: str, **numbers: object) -> str:
        who = self.rng.choice([self.name, self.subject])
        words = {"S": who, "N": self.name, "M": self.object, "F": self.friends[0], "o": self.things}
        return text.format(**words, **numbers)

    def _step(self, lead: str, a: int, op: str, b: int) -> int:
        self.steps.append(Step(lead, a, op, b))
        return self.steps[-1].result

    def _number(self, low: int, high: int) -> int:
        return self.rng.randint(low, max(low, high))

    # Heads: how much there is at first.

    def _start(self) -> None:
        self.value = self._number(4, 80)
        self.facts.append(self._fill("{N} has {n} {o}.", n=self.value))
        self.opening = self._fill("{N} starts with {n} {o}.", n=self.value)
        self.skeleton.append(f"start {self.value}")

    def _boxes(self) -> None:
        k, m, boxes = self._number(2, 9), self._number(3, 15), self.rng.choice(BOXES)
        self.facts.append(self._fill("{N} has {k} {B} with {m} {o} in each.", k=k, m=m, B=boxes))
        self.value = self._step(f"{k} {boxes} of {m}", k, "*", m)
        self.skeleton.append(f"boxes {k} {m}")

    def _relative(self) -> None:
        base, friend = self._number(5, 60), self.friends[1]
        self.facts.append(f"{friend} has {base} {self.things}.")
        self.value = self._related(self.name, friend, base)
        self.skeleton.append(f"from {base}")

    def _loose(self) -> None:
        k, m, r = self._number(2, 8), self._number(3, 12), self._number(2, 20)
        if self.money:
            self.facts.append(self._fill("{N} saves {m} dollars a week for {k} weeks and gets {r} dollars more.", k=k, m=m, r=r))
            lead = f"{k} weeks with {m} each"
        else:
            boxes = self.rng.choice(BOXES)
            self.facts.append(self._fill("{N} has {k} {B} of {m} {o} and {r} more {o}.", k=k, m=m, r=r, B=boxes))
            lead = f"{k} {boxes} of {m}"
        self.value = self._step(f"With {r} more", self._step(lead, k, "*", m), "+", r)
        self.skeleton.append(f"loose {k} {m} {r}")

    def _related(self, who: str, than: str, base: int) -> int:
        """A fact that gives ``who`` an amount in terms of ``than``'s, and its step."""
        kinds = ["more"] + ["fewer"] * (base > 4) + ["times"] * (base * 2 <= 300)
        kind = self.rng.choice(kinds)
        if kind == "times":
            n = self._number(2, min(5, 400 // base))
            self.facts.append(f"{who} has {TIMES[n]} as many {self.things} as {than}.")
            result = self._step(f"{who} has {TIMES[n]} as many", base, "*", n)
        else:
            n = self._number(2, min(40, base - 1) if kind == "fewer" else 40)
            self.facts.append(f"{who} has {n} {kind} {self.things} than {than}.")
            result = self._step(f"{who} has {n} {kind}", base, "+" if kind == "more" else "-", n)
        self.skeleton.append(f"{kind} {n}")
        return result

    # Events: what happens to it.

    def _event(self, budget: int) -> int:
        """One event that costs at most ``budget`` steps; returns its cost."""
        x, fill = self.value, self._fill
        kinds = ["+", "-", "-"] if x > 3 else ["+"]
        kinds += ["*"] * (x <= 150) + ["half"] * 2 * (x % 2 == 0 and x > 5)
        if budget > 1:
            kinds += ["packs"] * (x < 700) + ["each"] * 2 * (x > 12) + ["third"] * 2 * (x % 3 == 0 and x > 8)
        kind = self.rng.choice([k for k in kinds if k != "+" or x < 850])
        k = m = n = 0
        goods, boxes = self.rng.choice(GOODS), self.rng.choice(BOXES)
        if kind in "+-":
            n = self._number(2, min(x - 1, 95) if kind == "-" else 95)
            fact, lead = self.rng.choice((_EARN if self.money else _MORE) if kind == "+" else (_SPEND if self.money else _FEWER))
            self.facts.append(fill(fact, n=n))
            self.value = self._step(fill(lead, n=n), x, kind, n)
        elif kind == "*":
            n = self._number(2, 3)
            self.facts.append(f"Then the number of {self.things} {GROWS[n]}.")
            self.value = self._step(f"The number {GROWS[n]}", x, "*", n)
        elif kind == "half":
            fact, lead = ("{S} spends half of the {o}.", "Half is left") if self.money else self.rng.choice(_HALF)
            self.facts.append(fill(fact))
            self.value = self._step(lead, x, "/", 2)
        elif kind == "third":
            self.facts.append(fill("{S} gives a third of the {o} to {F}."))
            self.value = self._step("That leaves", x, "-", self._step("A third is", x, "/", 3))
        else:
            k = self._number(2, 9 if kind == "packs" else min(9, x // 4))
            m = self._number(2, 15 if kind == "packs" else min(15, (x - 1) // k))
            table = (_WAGES if self.money else _PACKS) if kind == "packs" else (_PRICES if self.money else _EACH)
            fact, lead = self.rng.choice(table)
            self.facts.append(fill(fact, k=k, m=m, B=boxes, g=goods))
            part = self._step(fill(lead, k=k, m=m, B=boxes, g=goods), k, "*", m)
            word, op = ("Adding them", "+") if kind == "packs" else ("Taking them away", "-")
            self.value = self._step(word, x, op, part)
        self.skeleton.append(" ".join([kind, *(str(v) for v in (k, m, n) if v)]))
        return 2 if kind in ("packs", "each", "third") else 1

    # Tails: what is asked.

    def _ask_now(self) -> None:
        self.facts.append(self._fill("How many {o} does {N} have now?"))
        self.skeleton.append("now")

    def _other(self, low: int, high: int) -> int:
        """A friend's amount, told at the start or just before the question."""
        amount = self._number(low, high)
        fact = f"{self.friends[2]} has {amount} {self.things}."
        self.facts.insert(self.rng.choice([0, len(self.facts)]), fact)
        return amount

    def _ask_total(self) -> None:
        other = self._other(3, 95)
        self.facts.append(f"How many {self.things} do {self.name} and {self.friends[2]} have together now?")
        self.value = self._step("Together they have", self.value, "+", other)
        self.skeleton.append(f"total {other}")

    def _ask_more(self) -> None:
        other = self._other(1, min(95, self.value - 1))
        self.facts.append(f"How many more {self.things} does {self.name} have than {self.friends[2]} now?")
        self.value = self._step("The difference is", self.value, "-", other)
        self.skeleton.append(f"than {other}")

    def _ask_share(self) -> None:
        ways = [k for k in range(2, 10) if self.value % k == 0]
        k = self.rng.choice(ways) if ways else 1
        self.facts.append(self._fill("{S} shares them equally among {k} friends. How many {o} does each friend get?", k=k))
        self.value = self._step(f"Shared among {k} friends", self.value, "/", k)
        self.skeleton.append(f"share {k}")

    def _ask_worth(self) -> None:
        price = self._number(2, min(9, LARGEST // self.value))
        self.facts.append(self._fill("{S} sells all of them for {n} dollars each. How many dollars does {N} get?", n=price))
        self.value = self._step(f"Sold at {price} each", self.value, "*", price)
        self.skeleton.append(f"worth {price}")

    def _ask_relative(self) -> None:
        friend, mine = self.friends[3], self.value
        other = self._related(friend, self.name, mine)
        self.facts[-1] = self.facts[-1].replace(" has ", " now has ", 1)
        self.facts.append(f"How many {self.things} do {self.name} and {friend} have together?")
        self.value = self._step("Together they have", mine, "+", other)
        self.skeleton.append("both")

    @property
    def sound(self) -> bool:
        """Every number on the way is positive and small, and no division is by 1."""
        return all(0 < s.result <= LARGEST and (s.op, s.b) != ("/", 1) for s in self.steps)

    def question(self) -> str:
        facts = list(self.facts)
        if self.rng.random() < 0.25:
            # A number that nothing depends on.
            other = self.rng.choice([t for t in THINGS if t != self.things])
            facts.insert(self.rng.randrange(len(facts)), f"{self.friends[1]} likes to count {self._number(3, 60)} {other}.")
        return " ".join(facts)


def _unseen_name(rng: random.Random) -> str:
    """A name that no word list holds, spelled byte by byte."""
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3))).capitalize()


def write(rng: random.Random, steps: Sequence[Step], opening: str, answer: int) -> tuple[str, list[list[int]]]:
    """A worked solution of these steps, and the character spans of the results in it that it takes back."""
    parts: list[str] = [opening] if opening else []
    slips: list[list[int]] = []
    length = len("<think>\n") + sum(len(p) + 2 for p in parts)

    def say(text: str) -> None:
        nonlocal length
        parts.append(text)
        length += len(text) + 2

    terse = rng.random() < 0.15
    wordy = rng.random() < 0.3
    for step in steps:
        lead = "" if terse else step.lead + ": "
        luck = rng.random()
        if luck < 0.04:
            wrong = abs(step.result + rng.choice([-10, -2, -1, 1, 2, 10]))
            wrong = step.result + 1 if wrong == step.result else wrong
            text = lead + step.equation(wrong)
            slips.append([length + len(text) - len(str(wrong)), length + len(text)])
            say(text + ".")
            say(rng.choice(_REFLECT))
            say(f"{step.equation()}, not {wrong}.")
            continue
        say(lead + step.equation() + ".")
        if luck < (0.2 if wordy else 0.06):
            say(rng.choice(_REFLECT))
            say(f"{step.equation()}. {rng.choice(_CONFIRM)}")
    reviews = rng.choices([0, 1, 2], [80, 16, 4])[0]
    for _ in range(reviews):
        say(rng.choice(_REVIEW))
        for step in steps:
            say(step.equation() + ".")
        say(rng.choice(_CONFIRM))
    closing = rng.choice(["The answer is", "So the answer is", "The result is"])
    return "<think>\n" + "\n\n".join(parts) + f"\n</think>\n{closing} \\boxed{{{answer}}}.", slips


def split_of(skeleton: str) -> Split:
    """The split a skeleton belongs to, for ever."""
    return "test" if int.from_bytes(hashlib.sha256(skeleton.encode()).digest()[:8]) % _TEST_SHARE == 0 else "train"


def generate(level: int, seed: int, split: Split = "train") -> Problem:
    """The problem of this level and seed. ``meta``: ``solution`` (text), ``skeleton``, ``slips`` (spans of errors that the
    solution takes back), ``opening`` (text) and ``steps`` (each lead, a, op, b: what a right solution computes, in order).
    """
    if level not in LEVELS:
        raise ValueError(f"level must be 1 to 8, not {level}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, not {split!r}")
    for attempt in itertools.count():
        rng = random.Random(f"{TASK} {level} {seed} {split} {attempt}")
        story = _Story(rng, level)
        skeleton = " | ".join(story.skeleton)
        if story.sound and split_of(skeleton) == split:
            break
    question = story.question()
    solution, slips = write(rng, story.steps, story.opening, story.value)
    steps = [[step.lead, step.a, step.op, step.b] for step in story.steps]
    meta = {"solution": solution, "skeleton": skeleton, "slips": slips, "opening": story.opening, "steps": steps}
    return Problem(f"{TASK}-{split}-{level}-{seed}", question, str(story.value), TASK, level, meta)


def problems(split: Split = "test", seed: int = 0, levels: range | list[int] = LEVELS) -> Iterator[Problem]:
    """Endless problems, the levels in turn."""
    for i in itertools.count():
        yield generate(levels[i % len(levels)], seed + i // len(levels), split)


_BOXED = re.compile(r"\\boxed\{\s*(-?\d+)\s*\}")


def read_answer(text: str) -> str | None:
    """The integer in the last ``\\boxed{}``, in its shortest spelling; None when there is none."""
    found = _BOXED.findall(text)
    return str(int(found[-1])) if found else None
