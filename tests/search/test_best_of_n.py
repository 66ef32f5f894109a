"""Repeated sampling: which draws are asked for, and which answer is chosen from them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from lab import Toy, slow_certainty

import forethought as ft
from forethought.schema import Completion, Cost, Problem, Verdict
from forethought.search.best_of_n import BestOfN
from forethought.search.budget import Budget
from forethought.search.stopping import FirstAccept
from forethought.search.strategy import Draws, seed_of
from forethought.verifiers.verifier import Verifier

PROBLEM = Problem("p", "?", "a")


class Scripted:
    """Sample i says ``texts[i]``; ten tokens, two forwards each. ``asked``: (first, n) of each call.

    ``certain``: each sample's certainty in the mean, if asked for it; None for a sample that has none.
    """

    def __init__(self, texts: Sequence[str], certain: Sequence[float | None] = ()) -> None:
        self.texts, self.certain, self.asked = texts, certain, list[tuple[int, int]]()

    async def agenerate(self, prompt: Any, *, n: int, seed: int, first: int, **options: Any) -> list[Completion]:
        self.asked.append((first, n))
        self.options = options
        await asyncio.sleep(0)
        cost = Cost(kept=10, critical=2)
        told = [None if c is None else [c - 2, c + 1, c + 1] for c in self.certain] if options.get("certainty") else [None] * 99
        return [
            Completion(self.texts[i], [0] * 10, "stop", None, [-float(i), 0.0], told[i], seed=seed, index=i, cost=cost)
            for i in range(first, first + n)
        ]


class Judge(Verifier):
    name = "judge"

    def __init__(self, scores: dict[str, float], right: str = "a") -> None:
        self.scores, self.right, self.seen = scores, right, 0

    async def ajudge(self, problem: Problem, candidates: Sequence[str]) -> list[Verdict]:
        self.seen += len(candidates)
        return [Verdict("correct" if text == self.right else "wrong", self.scores.get(text)) for text in candidates]


def best(lm: Scripted, n: int, **options: Any) -> BestOfN:
    def read(text: str) -> str | None:
        return text if text != "-" else None

    return BestOfN(cast("ft.Generator", lm), n, ask=lambda p: p.question, read=read, **options)


@pytest.mark.parametrize(
    ("texts", "select", "scores", "chosen"),
    [
        ("abb", "majority", {}, 1),
        ("ab", "majority", {}, 0),
        ("--b", "majority", {}, 2),
        ("--", "majority", {}, None),
        ("abbc", "weighted", {"a": 0.9, "b": 0.3, "c": 0.1}, 0),
        ("abbc", "weighted", {"a": 0.5, "b": 0.3, "c": 0.1}, 1),
        ("bcb", "score", {"b": 0.1, "c": 0.2}, 1),
        ("-cb", "score", {"-": 5.0, "b": -0.1, "c": -0.2}, 2),
        ("cbab", "accepted", {}, 2),
        ("cbb", "accepted", {}, None),
        ("abc", "likelihood", {}, 0),
        ("-bc", "likelihood", {}, 1),
    ],
)
def test_what_is_chosen(texts: str, select: Any, scores: dict[str, float], chosen: int | None) -> None:
    judge = Judge(scores) if select in ("weighted", "score", "accepted") else None
    lm = Scripted(texts)
    solution = best(lm, len(texts), select=select, verifier=judge).solve(PROBLEM)
    assert solution.chosen == chosen
    assert solution.answer == (None if chosen is None else texts[chosen])
    assert [candidate.text for candidate in solution.candidates] == list(texts)
    assert lm.asked == [(0, len(texts))], "one call, so that all share the prompt"
    assert solution.cost.kept == 10 * len(texts)
    assert solution.cost.critical == 2, "draws are side by side"


@pytest.mark.parametrize(
    ("texts", "certain", "power", "chosen"),
    [
        ("abc", [1.0, 3.0, 2.0], None, 1),
        ("a-b", [1.0, 3.0, 2.0], None, 2),
        ("ab", [1.0, 1.0], None, 0),
        ("abc", [None, -1.0, -2.0], None, 1),
        ("abbc", [4.0, 1.0, 2.0, 3.0], None, 0),
        # By rank a has 4, c 3, b 2 + 1 votes: for each power the p-th powers of these.
        ("abbc", [4.0, 1.0, 2.0, 3.0], 0, 1),
        ("abbc", [4.0, 1.0, 2.0, 3.0], 0.5, 1),
        ("abbc", [4.0, 1.0, 2.0, 3.0], 1.0, 0),
        ("abbc", [4.0, 3.5, 0.5, 3.0], 1.0, 0),
        ("abbc", [4.0, 3.5, 3.4, 3.0], 1.0, 1),
        ("abbc", [400.0, 3.5, 3.4, 3.0], 1.0, 1),
        # Of two with an answer 2 votes against 1: the others have no rank; among all it would be 4 + 1 against 3.
        ("a--bb", [5.0, 4.0, 3.0, 2.0, 1.0], 1.0, 0),
        ("a--bb", [5.0, 4.0, 3.0, 2.0, 1.0], 0.9, 3),
        # The certainty of a draw without one is the least.
        ("abb", [2.0, None, 1.0], 2, 0),
        ("abb", [None, 2.0, 1.0], 2, 1),
        ("aab", [1.0, 2.0, 9.0], 20.0, 2),
        ("--", [1.0, 2.0], 1.0, None),
    ],
)
def test_what_certainty_chooses(texts: str, certain: list[float | None], power: float | None, chosen: int | None) -> None:
    lm = Scripted(texts, certain)
    solution = best(lm, len(texts), select="self_certainty", power=power).solve(PROBLEM)
    assert solution.chosen == chosen
    assert lm.options["certainty"] is True
    assert [candidate.score for candidate in solution.candidates] == pytest.approx(certain)


def test_a_borda_vote_is_the_papers() -> None:
    """Against sums written out, on random draws."""
    rng = random.Random(0)
    for _ in range(200):
        n, power = rng.randint(1, 9), rng.choice([0.0, 0.3, 0.7, 1.2, 2.0])
        texts, certain = rng.choices("abc-", k=n), rng.sample(range(100), n)
        solution = best(Scripted(texts, certain), n, select="self_certainty", power=power).solve(PROBLEM)
        order = sorted((i for i in range(n) if texts[i] != "-"), key=lambda i: -certain[i])
        votes = {a: sum((len(order) - r) ** power for r, i in enumerate(order) if texts[i] == a) for a in set(texts) - {"-"}}
        assert (solution.answer is None) == (not votes)
        if votes:
            assert votes[str(solution.answer)] == pytest.approx(max(votes.values()))


def test_known_draws_are_not_drawn_again_and_new_ones_are_told_once() -> None:
    lm, told = Scripted("abcdefgh"), list[int]()
    known = {i: Completion(f"old{i}", [1], "stop", index=i) for i in (0, 3, 4)}
    strategy = best(lm, 8)
    solution = asyncio.run(strategy.asolve(PROBLEM, Draws(7, known, lambda completion: told.append(completion.index))))
    assert lm.asked == [(1, 2), (5, 3)]
    assert told == [1, 2, 5, 6, 7]
    assert [candidate.text for candidate in solution.candidates] == ["old0", "b", "c", "old3", "old4", "f", "g", "h"]


def test_it_stops_at_the_first_accepted_one() -> None:
    lm, judge = Scripted("bbbbbabbbbbb"), Judge({})
    solution = best(lm, 12, select="accepted", verifier=judge, stop=FirstAccept(), round=2).solve(PROBLEM)
    assert lm.asked == [(0, 2), (2, 2), (4, 2)]
    assert (solution.chosen, solution.meta["ended"], judge.seen) == (5, "stopping rule", 6)
    assert solution.cost.critical == 6, "rounds come one after the other"


@pytest.mark.parametrize(
    ("budget", "draws"),
    [(Budget(tokens=25), 4), (Budget(forwards=3), 4), (Budget(verifications=5), 6), (Budget(flops=2 * 5 * 25), 4), (Budget(), 9)],
)
def test_the_first_limit_reached_ends_it(budget: Budget, draws: int) -> None:
    strategy = best(Scripted("b" * 9), 9, verifier=Judge({}), select="accepted", budget=budget, round=2, parameters=5)
    solution = strategy.solve(PROBLEM)
    assert len(solution.candidates) == draws
    assert solution.meta["draws"] == draws


def test_draws_end_at_strings_and_rounds_at_a_rule() -> None:
    """``ends`` is the generator's ``stop``; the strategy's own ``stop`` is another thing."""
    lm = Scripted(["a", "b"])
    best(lm, 2, ends=("\n```", "Q:")).solve(PROBLEM)
    assert lm.options["stop"] == ["\n```", "Q:"]
    best(lm, 2).solve(PROBLEM)
    assert "stop" not in lm.options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"n": True}, "n=True"),
        ({"select": "best"}, "select='best'"),
        ({"select": "score"}, "verifier"),
        ({"round": 0}, "round=0"),
        ({"seed": 3}, "seed"),
        ({"select": "self_certainty", "power": -0.5}, "power=-0.5"),
        ({"select": "self_certainty", "power": float("inf")}, "power=inf"),
        ({"select": "self_certainty", "power": True}, "power=True"),
        ({"select": "majority", "power": 1.0}, "power=1.0"),
    ],
)
def test_bad_values_are_named(options: dict[str, Any], message: str) -> None:
    given = {"n": 2} | options
    with pytest.raises((TypeError, ValueError), match=message):
        best(Scripted("ab"), given.pop("n"), **given)


def test_scores_that_are_no_weights() -> None:
    with pytest.raises((TypeError, ValueError), match=r"a score of -0\.5"):
        best(Scripted("ab"), 2, select="weighted", verifier=Judge({"a": 0.5, "b": -0.5})).solve(PROBLEM)
    unsure = best(Scripted("abc"), 3, select="score", verifier=Judge({"a": float("nan"), "b": 0.1, "c": 0.0})).solve(PROBLEM)
    assert unsure.answer == "b"


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"budget\.tokens=0"):
        Budget(tokens=0)
    with pytest.raises(ValueError, match=r"budget\.flops"):
        best(Scripted("a"), 1, budget=Budget(flops=1e9)).solve(PROBLEM)


def test_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    assert seed_of(1, "p") == seed_of(1, "p")
    assert len({seed_of(1, "p"), seed_of(2, "p"), seed_of(1, "q"), seed_of("1", "p"), seed_of(1, "p", 0)}) == 5
    assert 0 <= seed_of(0, "") < 2**63


def test_it_works_inside_a_running_loop() -> None:
    async def main() -> str | None:
        return best(Scripted("a"), 1).solve(PROBLEM).answer

    assert asyncio.run(main()) == "a"


def test_draws_of_the_engine_are_the_same_in_one_call_or_in_several() -> None:
    model = ft.load("nano")
    with ft.Engine(model, ft.Autoregressive(), kv_slots=4096) as engine:
        strategy = BestOfN(engine, 6, ask=lambda p: p.question, read=lambda text: text, max_tokens=12, temperature=1.0)
        whole = asyncio.run(strategy.asolve(Problem("x", "Tom has 3 pens."), Draws(5)))
        known = {c.completion.index: replace(c.completion) for c in whole.candidates[1:3] if c.completion is not None}
        parts = asyncio.run(strategy.asolve(Problem("x", "Tom has 3 pens."), Draws(5, known)))
    assert [c.text for c in whole.candidates] == [c.text for c in parts.candidates]
    assert len({c.text for c in whole.candidates}) > 1


def test_the_engines_own_certainty_chooses() -> None:
    """The draw whose distributions, recomputed token by token, were the furthest from uniform."""
    toy = Toy(vocabulary=31)
    with ft.Engine(toy, ft.Autoregressive(), kv_slots=500) as engine:
        strategy = BestOfN(engine, 5, ask=lambda p: [1, 2, 3], read=lambda text: "read", select="self_certainty", max_tokens=8,
                           temperature=1.5)  # fmt: skip
        solution = asyncio.run(strategy.asolve(PROBLEM, Draws(3)))
    means = []
    for candidate in solution.candidates:
        assert candidate.completion is not None
        tokens = candidate.completion.token_ids
        means.append(sum(slow_certainty(toy.rule([1, 2, 3, *tokens[:at]])) for at in range(8)) / 8)
    assert [candidate.score for candidate in solution.candidates] == pytest.approx(means, rel=1e-4)
    assert solution.chosen == means.index(max(means))
    assert len(set(means)) > 1
