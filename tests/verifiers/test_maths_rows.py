"""The maths verifier on benchmark rows: reference answers, the same answers written otherwise, and answers made wrong."""

import asyncio
import json
import random
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from forethought.schema import Problem
from forethought.verifiers.exact import Form, compare, key
from forethought.verifiers.maths import Maths
from forethought.verifiers.notation import split
from forethought.verifiers.symbolic import installed

WRONG_REFERENCE = 1042  # of GSM8K, counted from 0: the worked solution rounds 9 / 2 wrongly, and ends in 3


def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def gsm8k(benchmark_data: Path) -> list[dict[str, str]]:
    return rows(benchmark_data / "gsm8k" / "test.jsonl")


@pytest.fixture(scope="module")
def math500(benchmark_data: Path) -> list[dict[str, str]]:
    return rows(benchmark_data / "math500" / "test.jsonl")


def judged(verifier: Maths, gold: str, *texts: str) -> list[str]:
    return [v.status for v in asyncio.run(verifier.ajudge(Problem("p", "", gold), texts))]


def test_gsm8k_golds_agree_with_their_worked_solutions(gsm8k: list[dict[str, str]]) -> None:
    verifier = Maths(symbolic=False)
    golds = [row["answer"].rpartition("####")[2].strip() for row in gsm8k]
    assert len(golds) == 1319
    assert all(judged(verifier, gold, row["answer"]) == ["correct"] for gold, row in zip(golds, gsm8k, strict=True))
    verifier.validate(Problem(str(i), "", gold) for i, gold in enumerate(golds))
    assert golds[WRONG_REFERENCE] == "3"  # the right answer is judged wrong there, and that is the reference's fault
    assert judged(verifier, golds[WRONG_REFERENCE], "#### 3.5") == ["wrong"]


def test_math500_golds_agree_with_their_solutions(math500: list[dict[str, str]]) -> None:
    verifier = Maths(symbolic=False)
    assert len(math500) == 500
    assert all(judged(verifier, row["answer"], row["solution"]) == ["correct"] for row in math500)
    verifier.validate(Problem(row["unique_id"], "", row["answer"]) for row in math500)  # every one is read exactly


def test_aime_golds(benchmark_data: Path) -> None:
    verifier = Maths(symbolic=False)
    golds = [row["answer"] for row in rows(benchmark_data / "aime24" / "test.jsonl")]
    verifier.validate(Problem(str(i), "", gold) for i, gold in enumerate(golds))
    assert all(judged(verifier, gold, rf"\boxed{{{int(gold)}}}") == ["correct"] for gold in golds)


@pytest.mark.skipif(not installed(), reason="math-verify is not installed")
def test_math_verify_takes_every_gold_of_math500(math500: list[dict[str, str]]) -> None:
    verifier = Maths(symbolic=True)
    assert verifier.symbolic is not None
    try:
        assert all(verifier.symbolic.compare((Form(row["answer"], False),) * 2).relation == "same" for row in math500)
        assert all(judged(verifier, row["answer"], row["solution"]) == ["correct"] for row in math500)
    finally:
        verifier.close()


WRAPPING = ("dollars", "parentheses", "full stop", "box", "braces")


def rewritten(gold: str) -> Iterator[tuple[str, str]]:
    """Rule and result: ``gold`` as somebody else would write it."""
    yield from zip(WRAPPING, (f"${gold}$", rf"\({gold}\)", f"{gold}.", rf"\boxed{{{gold}}}", f"{{{gold}}}"), strict=True)
    yield "spaces", re.sub(r"(?<![\\A-Za-z!,]) ?([-+=,]) ?(?!\\!|\d{3})", r" \1 ", gold)
    yield "no spaces", re.sub(r"(?<![A-Za-z\\]) (?![A-Za-z])|(?<=[,=+-]) ", "", gold) if "\\text" not in gold else gold
    yield "thin spaces", re.sub(r"(?<=[,=+]) ?(?!\\!|\d{3})", r"\\,", gold)
    yield "dfrac", re.sub(r"\\d?frac", r"\\tfrac" if "dfrac" in gold else r"\\dfrac", gold)
    yield "slash", re.sub(r"^(-?)\\d?frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", gold)
    yield "frac", re.sub(r"(?<![\w}])(\d+)/(\d+)", r"\\frac{\1}{\2}", gold)
    if not re.match(r"\d", gold):
        yield "not reduced", re.sub(r"frac\{(\d+)\}\{(\d+)\}", lambda m: rf"frac{{{int(m[1]) * 6}}}{{{int(m[2]) * 6}}}", gold)
    yield "brackets", re.sub(r"\\(?:left|right)", "", gold)
    yield "large brackets", re.sub(r"^\((.*)\)$", r"\\left(\1\\right)", gold) if "left" not in gold else gold
    yield "roots", re.sub(r"\\sqrt\{?(\d+)\}?", r"\1^{1/2}" if re.match(r"\\sqrt\{\d+\}$", gold) else r"\\sqrt{\1}", gold)
    yield "roots gathered", re.sub(r"^(\d+) ?\\sqrt\{(\d+)\}$", lambda m: rf"\sqrt{{{int(m[1]) ** 2 * int(m[2])}}}", gold)
    yield "other matrix", gold.replace("pmatrix", "bmatrix")
    yield "plain words", re.sub(r"^\\text\{\(?(\w+)\)?\}$", r"\1", gold)
    yield "bold words", gold.replace(r"\text{", r"\textbf{")
    yield "base in braces", re.sub(r"_\{?(\d)\}?$", r"_{\1}" if "{" not in gold else r"_\1", gold)
    yield "degrees", re.sub(r"\^\\circ$", " degrees", gold)
    yield "no degrees", re.sub(r"\^\\circ$|\\text\{ degrees\}$", "", gold)
    yield "no currency", gold.replace(r"\$", "")
    yield "pi", gold.replace(r"\pi", "π")
    yield "greater than", re.sub(r"^\((-?\d+),\s*\\infty\)$", r"x > \1", gold)
    if re.fullmatch(r"-?\d+", gold):
        yield from (("point", f"{gold}.0"), ("over one", rf"\frac{{{gold}}}{{1}}"), ("unit", rf"{gold}\text{{ cm}}"))
        yield from (("named", f"x = {gold}"), ("apples", f"{gold} apples"), ("doubled", f"{2 * int(gold)}/2"))
        yield from (("thousands", f"{int(gold):,}"), ("braced thousands", f"{int(gold):,}".replace(",", "{,}")))
    if re.fullmatch(r"\d*\.\d+", gold):
        value = Fraction(gold)
        yield "fraction", rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
        yield "zeros", f"0{gold}0" if gold[0] == "." else f"{gold}0"
    if (match := re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", gold)) and 10**12 % int(match[3]) == 0:
        digits = str(int(match[2]) * (10**12 // int(match[3]))).zfill(13)
        yield "decimal", f"{match[1]}{digits[:-12]}.{digits[-12:].rstrip('0')}"
    if len(split(gold, ",", grouped=True)) > 1 and r"\!" not in gold:
        yield "reordered", ", ".join(reversed(split(gold, ",", grouped=True)))
        yield "as a set", rf"\{{{gold}\}}"
    if r"\cup" in gold:
        yield "reordered union", r" \cup ".join(reversed(split(gold, r"\cup")))
    if re.fullmatch(r"[-+ \w^{}]+", gold) and re.search(r"\w [-+] ", gold) and "_" not in gold:
        terms = re.findall(r"[-+]?[^-+]+", gold.replace(" ", ""))
        yield "terms reordered", "".join(term if term[0] in "+-" else f"+{term}" for term in reversed(terms)).removeprefix("+")


def test_rewritten_answers_are_the_same(math500: list[dict[str, str]]) -> None:
    """All are decided, rightly, and what is the same has the same key."""
    golds = [row["answer"] for row in math500]
    pairs = sorted({(rule, gold, new) for gold in golds for rule, new in rewritten(gold) if new != gold})
    assert sum(rule not in WRAPPING for rule, _, _ in pairs) >= 1200
    assert [pair for pair in pairs if compare(pair[1], pair[2]).relation != "same"] == []
    assert [pair for pair in pairs if key(pair[1]) != key(pair[2])] == []


FRACTION = r"\\d?frac\{(\d+)\}\{(\d+)\}"
SPOILING = {
    "opened": (r"^\(", "["), "closed": (r"\)$", "]"), "open now": (r"\]$", ")"),
    "no root": (r"\\sqrt", ""), "no pi": (r"\\pi", "1"), "real": (r"(?<!p)i$", ""), "no base": (r"_\{?\d\}?$", ""),
    "no fraction": (FRACTION, r"\1\2"), "upside down": (FRACTION, r"\\frac{\2}{\1}"),
    "plus": (" - ", " + "), "minus": (r" \+ ", " - "), "one sign": (r"\\pm", "+"),
    "one less": (r"^([^(]*),[^,]*$", r"\1"), "tuple shortened": (r"^(\(.*),[^,]*\)$", r"\1)"), "one interval": (r" ?\\cup.*", ""),
    "other letter": (r"(?<![a-z])x(?![a-z])", "w"), "squared": (r"(?<![a-z])([a-z])$", r"\1^2"),
}  # fmt: skip


def corrupted(gold: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Rule and result: an answer that is not ``gold``."""
    numbers = list(re.finditer(r"\d+", gold))
    for number in rng.sample(numbers, min(3, len(numbers))):
        value, before, behind = int(number[0]), gold[: number.start()], gold[number.end() :]
        for rule, other in (("one more", value + 1), ("ten times", value * 10), ("two less", abs(value - 2))):
            if other != value and not (rule == "ten times" and before.endswith(".")):
                yield rule, f"{before}{other}{behind}"
    if numbers and gold not in ("0", "x=0"):
        yield "sign", f"-{gold}"
    for rule, (old, new) in SPOILING.items():
        changed = re.sub(old, new, gold, count=1)
        if changed != gold and changed:
            yield rule, changed
    if tuple_ := re.fullmatch(r"\(([^,()]+),([^,()]+)\)", gold):
        yield "swapped", f"({tuple_[2]},{tuple_[1]})"
    if word := re.fullmatch(r"\\text\{(.*)\}", gold):
        yield "another word", rf"\text{{{rng.choice([w for w in ('(A)', '(D)', 'Angela', 'odd', 'west') if w != word[1]])}}}"


def test_corrupted_answers_never_pass(gsm8k: list[dict[str, str]], math500: list[dict[str, str]]) -> None:
    rng = random.Random(0)
    golds = [row["answer"] for row in math500] + [row["answer"].rpartition("####")[2].strip() for row in gsm8k[:100]]
    pairs = [(gold, new) for gold in golds for _, new in corrupted(gold, rng)]
    assert len(pairs) >= 2000
    verifier = Maths()
    try:
        statuses = [judged(verifier, gold, rf"\boxed{{{new}}}")[0] for gold, new in pairs]
    finally:
        verifier.close()
    passed = [pair for pair, status in zip(pairs, statuses, strict=True) if status == "correct"]
    assert not passed
    assert statuses.count("wrong") >= 0.85 * len(pairs)


def test_other_golds_never_pass(gsm8k: list[dict[str, str]], math500: list[dict[str, str]]) -> None:
    """5,000 random pairs and 4,000 neighbours in sorted order: what passes is the same number, but for units and grouping."""
    golds = sorted({row["answer"] for row in math500} | {row["answer"].rpartition("####")[2].strip() for row in gsm8k})
    rng = random.Random(5)
    pairs = [tuple(rng.sample(golds, 2)) for _ in range(5000)]
    pairs += [(a, b) for step in range(1, 9) for a, b in zip(golds, golds[step:], strict=False)][:4000]
    assert len(pairs) == 9000

    def bare(gold: str) -> str:
        return (
            re.sub(r"\\text\{[^}]*\}|\\mbox\{[^}]*\}\^2|\^\\circ|\\!|,|\\\$|\.0+$|\\%|\s", "", gold)
            .removeprefix("x=")
            .removesuffix(".00")
        )

    assert [pair for pair in pairs if compare(*pair).relation == "same" and bare(pair[0]) != bare(pair[1])] == []
