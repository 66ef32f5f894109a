"""Generative verifiers: what they ask, what they read in the answers, and what the direct form's probability is of."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from lab import TEXT_VOCABULARY, Audited, Toy, byte_text, hashed

import forethought as ft
from forethought.backend.generator import GenerationError, Generator
from forethought.schema import Completion, Cost, Problem, Verdict
from forethought.verifiers.generative import GenerativeVerifier, said

PROBLEM = Problem("p", "What is 1 + {solution}?")
THOUGHT = "<think>\n1 + 1 = 2.\n\nFine {question}.\n</think>\nSo 2."
SOLUTION = "1 + 1 = 2.\n\nFine {question}.\n\nSo 2."
YES, NO = "<think>\nok\n</think>\nIs the answer correct? Yes", "It is not.\nIs the answer correct (Yes/No)? No"


class Scripted(Generator):
    """Says what ``script(prompt text)`` gives, in order, and remembers what it was asked."""

    def __init__(self, script: Callable[[str], list[str]]) -> None:
        self.script = script
        self.asked: list[tuple[Any, dict[str, Any]]] = []

    async def agenerate(self, prompts: Any, **options: Any) -> Any:
        self.asked.append((prompts, options))
        await asyncio.sleep(0)
        texts = self.script(prompts[0]["content"])
        cost = Cost(prompt=100, kept=10, discarded=2, forwards=11, critical=11, seconds=0.5)
        rest = Cost(cached=100, kept=10, forwards=10, critical=10, seconds=0.7)
        return [Completion(t, [], "stop", cost=rest if i else cost, index=i) for i, t in enumerate(texts)]

    def generate(self, prompts: Any, **options: Any) -> Any: ...
    def stream(self, prompt: Any, **options: Any) -> Any: ...
    def astream(self, prompt: Any, **options: Any) -> Any: ...
    def score(self, prompt: Any, continuations: Any = None, *, labels: Any = None) -> Any: ...
    async def ascore(self, prompt: Any, continuations: Any = None, *, labels: Any = None) -> Any: ...


def judge(verifier: GenerativeVerifier, texts: list[str], problem: Problem = PROBLEM) -> list[Verdict]:
    return asyncio.run(verifier.ajudge(problem, texts))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (YES, True), (NO, False), ("Is the answer correct? Yes.", True), (f"{YES}\nNo.\n{NO}", False), (f"{NO} {YES}", True),
        ("Is the answer correct? yes", None), ("Is the answer correct? Nothing", None), ("Is the answer correct? ", None),
        ("Yes", None), ("Is the answer correct? (Yes/No) Yes", None), ("", None), ("Is the answer correct?\nYes", None),
    ],
)  # fmt: skip
def test_the_last_verdict_counts(text: str, verdict: bool | None) -> None:
    assert said(text) is verdict


@pytest.mark.parametrize(
    ("chains", "score", "verdicts"),
    [
        ([YES, NO, YES, YES], 0.75, [True, False, True, True]),
        ([YES, "No idea", NO, "I would say Yes"], 0.5, [True, None, False, None]),
        ([NO], 0.0, [False]), (["?", ""], None, [None, None]),
    ],
)  # fmt: skip
def test_the_score_is_the_share_of_yes_among_what_was_read(chains: list[str], score: float | None, verdicts: list[Any]) -> None:
    [verdict] = judge(GenerativeVerifier(Scripted(lambda _: chains), chains=len(chains)), [THOUGHT])
    assert (verdict.status, verdict.score, verdict.meta["verdicts"]) == ("unknown", score, verdicts)
    read = sum(v is not None for v in verdicts)
    assert verdict.reason == f"{read} of {len(chains)} verdicts could be read, {verdicts.count(True)} Yes"
    more = len(chains) - 1
    assert verdict.cost == Cost(
        verifier=112 + 10 * more, cached=100 * more, forwards=11 + 10 * more, critical=11, seconds=0.7 if more else 0.5
    )


def test_what_it_asks() -> None:
    lm = Scripted(lambda _: [YES] * 3)
    judge(GenerativeVerifier(lm, chains=3, temperature=0.5, max_tokens=77), [THOUGHT])
    [(prompt, options)] = lm.asked
    asked = f"What is 1 + {{solution}}?\n\nSolution:\n{SOLUTION}\n\nIs the solution correct?"
    assert prompt == [{"role": "user", "content": asked}]
    seed = options.pop("seed")
    assert 0 <= seed < 2**63
    assert options == {"n": 3, "temperature": 0.5, "max_tokens": 77}
    judge(GenerativeVerifier(lm, prompt="{solution}|{question}|{solution}|{other}"), ["a"])
    assert lm.asked[-1][0][0]["content"] == "a|What is 1 + {solution}?|a|{other}"


def test_seeds_depend_on_the_problem_and_the_text_alone() -> None:
    def seeds(texts: list[str], problem: Problem = PROBLEM, seed: int = 0) -> list[int]:
        lm = Scripted(lambda _: [YES])
        judge(GenerativeVerifier(lm, chains=1, seed=seed), texts, problem)
        return [options["seed"] for _, options in lm.asked]

    first = seeds(["a", "b"])
    assert seeds(["b", "c", "a"])[::2] == first[::-1]
    others = [*first, *seeds(["a"], Problem("q", PROBLEM.question)), *seeds(["a"], seed=1)]
    assert len(set(others)) == 4


def test_equal_solutions_are_judged_and_paid_once() -> None:
    lm = Scripted(lambda asked: [YES if "a" in asked.split("Solution:")[1][:3] else NO])
    verdicts = judge(GenerativeVerifier(lm, chains=1), ["a", "b", "<think>a</think>", "a", ""])
    assert [v.score for v in verdicts] == [1.0, 0.0, 1.0, 1.0, None]
    assert [v.cost.verifier for v in verdicts] == [112, 112, 0, 0, 0]
    assert verdicts[4].reason == "nothing to judge"
    assert len(lm.asked) == 2


def test_thresholds() -> None:
    def status(texts: list[str], threshold: float) -> str:
        lm = Scripted(lambda _: texts)
        return judge(GenerativeVerifier(lm, chains=len(texts), threshold=threshold), ["a"])[0].status

    assert [status([YES, NO], t) for t in (0.5, 0.51)] == ["correct", "wrong"]
    assert status(["?"], 0.0) == "unknown"


def test_what_goes_wrong_is_one_solutions_own() -> None:
    def script(asked: str) -> list[str]:
        text = asked.split("Solution:\n")[1]
        if text.startswith("long"):
            raise ValueError("a prompt of 9 tokens leaves no room")
        if text.startswith("bad"):
            raise GenerationError("FloatingPointError: NaN", [])
        return [YES]

    verdicts = judge(GenerativeVerifier(Scripted(script), chains=1), ["fine", "long", "bad", "fine too"])
    assert [(v.status, v.score) for v in verdicts] == [("unknown", 1.0), ("unknown", None), ("error", None), ("unknown", 1.0)]
    assert "no room" in verdicts[1].reason
    assert "NaN" in verdicts[2].reason


def test_the_direct_form_is_the_probability_of_yes_against_no() -> None:
    """Against the toy's own logits behind the prompt and the beginning of the answer."""
    text, rule = byte_text(), hashed(TEXT_VOCABULARY, 3.0)
    toy = Toy(rule, vocabulary=TEXT_VOCABULARY, text=text)
    with Audited(toy) as engine:
        verdicts = judge(GenerativeVerifier(engine, chains=0), [THOUGHT, "3", THOUGHT])
        assert engine.cost.computed == toy.tokens
        paid = sum(v.cost.verifier for v in verdicts)
    for verdict, solution in zip(verdicts, (SOLUTION, "3"), strict=False):
        asked = f"{PROBLEM.question}\n\nSolution:\n{solution}\n\nIs the solution correct? Answer Yes or No."
        ids = text.encode([{"role": "user", "content": asked}]) + text.encode_continuation("Is the answer correct?")

        def likely(word: str, ids: list[int] = ids) -> float:
            total, so_far = 0.0, list(ids)
            for token in text.encode_continuation(word):
                logits = rule(so_far).astype(np.float64)
                total += logits[token] - np.log(np.exp(logits).sum())
                so_far.append(token)
            return math.exp(total)

        yes, no = likely(" Yes"), likely(" No")
        assert verdict.score == pytest.approx(yes / (yes + no), abs=1e-5)
    assert paid == toy.tokens
    assert verdicts[2].cost == Cost()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": -1}, "chains=-1"), ({"chains": 1.5}, "chains=1.5"), ({"threshold": 2}, "threshold=2"),
        ({"prompt": "{question}"}, "without {solution}"), ({"n": 3}, "n: verdicts are numbered"),
        ({"temperature": -1}, "temperature=-1"), ({"top_p": 0.0}, "top_p=0"), ({"lm": None}, "lm or model"),
        ({"chains": 0, "max_tokens": 5}, "max_tokens: nothing is generated"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        GenerativeVerifier(**{"lm": Scripted(lambda _: [])} | options)


@pytest.mark.parametrize(("chains", "options"), [(2, {"max_tokens": 40}), (0, {})])
def test_the_built_in_model_judges_on_an_engine_of_its_own(chains: int, options: dict[str, Any]) -> None:
    problem = Problem("p", "Tom has 3 pens. He buys 4 more pens. How many pens does Tom have?")
    texts = ["<think>\n3 + 4 = 7.\n</think>\nSo the answer is \\boxed{7}.", "So the answer is \\boxed{8}."]
    for _ in range(2):
        verifier = GenerativeVerifier(model="nano", chains=chains, **options)
        verdicts = judge(verifier, texts, problem)
        assert verifier.name == f"genrm[nano, {chains}]"
        assert all(v.cost.verifier > 30 for v in verdicts)
        assert all(v.score is None or 0 <= v.score <= 1 for v in verdicts)
        assert [v.score for v in judge(verifier, texts[::-1], problem)][::-1] == pytest.approx([v.score for v in verdicts])
        verifier.close()
        with pytest.raises(RuntimeError, match="closed"):
            judge(verifier, texts, problem)


def test_it_is_public() -> None:
    assert ft.GenerativeVerifier is GenerativeVerifier
