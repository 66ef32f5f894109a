"""What a verifier is worth for choosing: every figure against all subsets and all orders of a few draws, by brute force."""

from __future__ import annotations

from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import made

from forethought.evals.draws import Judged, problems_of
from forethought.evals.selection import Selector
from forethought.schema import Cost, Verdict

KS = [1, 2, 3, 4]
RIGHT = {"a": [True, False, True, False], "b": [False, False, True, False], "c": [False] * 4, "d": [True] * 4}
SCORES = {
    "a": [0.9, 0.9, 0.1, 0.3], "b": [0.2, 0.8, None, 0.1], "c": [None] * 4, "d": [0.5, 0.5, None, 0.7],
}  # fmt: skip
ANSWERS = {"a": ["4", "5", "4", "6"], "b": ["1", "1", "2", None], "c": [None, "7", "8", "8"], "d": ["3"] * 4}
WORDS = {
    "a": ["correct", "correct", "wrong", "unknown"], "b": ["wrong", "wrong", "correct", "wrong"],
    "c": ["wrong", "correct", "wrong", "error"], "d": ["unknown", "wrong", "unknown", "wrong"],
}  # fmt: skip


def run(path: Path, others: dict[str, Any]) -> list[Judged]:
    return problems_of(made(path, RIGHT, answers=ANSWERS, others=others))


def selector(path: Path, name: str, verdicts: dict[str, list[Verdict]], **options: Any) -> Selector:
    found = Selector.of(name, run(path, {name: verdicts}), KS, **options)
    assert found is not None
    return found


def scored() -> dict[str, list[Verdict]]:
    return {name: [Verdict("unknown", score) for score in scores] for name, scores in SCORES.items()}


def worded() -> dict[str, list[Verdict]]:
    return {name: [Verdict(word) for word in words] for name, words in WORDS.items()}


def means(curve: dict[str, Any]) -> list[float]:
    return [curve[str(k)].value for k in KS]


def test_best_of_k_is_the_mean_over_all_subsets(tmp_path: Path) -> None:
    def rank(problem: str, i: int) -> tuple[bool, bool, float]:
        score = SCORES[problem][i]
        return ANSWERS[problem][i] is not None, score is not None, score or 0.0

    def best(problem: str, k: int) -> float:
        shares = []
        for subset in combinations(range(4), k):
            top = max(rank(problem, i) if rank(problem, i)[0] else (False, False, 0.0) for i in subset)
            tied = [i for i in subset if (rank(problem, i) if rank(problem, i)[0] else (False, False, 0.0)) == top]
            shares.append(np.mean([RIGHT[problem][i] for i in tied]))
        return float(np.mean(shares))

    found = selector(tmp_path, "v", scored()).scored
    assert found is not None
    assert means(found.best) == pytest.approx([np.mean([best(problem, k) for problem in RIGHT]) for k in KS])


def test_the_weighted_vote_over_all_draws(tmp_path: Path) -> None:
    found = selector(tmp_path, "v", scored())
    assert found.scored is not None
    # a: 4 has 1.0 and is right, 5 has 0.9. b: 1 has 1.0 and is wrong. c: nobody has any weight, so 7 and 8 are tied. d: 3.
    assert found.scored.weighted["4"].value == pytest.approx((1 + 0 + 0 + 1) / 4)
    by_way = {one.first: one for one in found.differences}
    # The plain vote: a gets 4 right, b gets 1 wrong, c wrong, d right.
    assert by_way["vote weighted by v"].figure.value == 0
    assert by_way["best by v"].figure.value == pytest.approx(found.scored.best["4"].value - 0.5)
    assert {one.k for one in found.differences} == {4}


def test_a_negative_score_has_no_weighted_vote(tmp_path: Path) -> None:
    verdicts = scored()
    verdicts["a"][0] = Verdict("unknown", -0.1)
    found = selector(tmp_path, "v", verdicts)
    assert found.scored is not None
    assert found.scored.weighted == {}
    assert [one.first for one in found.differences] == ["best by v"]


def test_pairs_that_a_score_puts_in_order(tmp_path: Path) -> None:
    found = selector(tmp_path, "v", scored()).scored
    assert found is not None
    assert found.separates is not None
    # a: 0.9 ties with 0.9 and beats 0.3, 0.1 loses to both: 1.5 of 4. b's right draw has no score; c and d have no pair.
    assert (found.separates.value, found.separates.problems) == (pytest.approx(1.5 / 4), 1)


def test_first_accepted_is_the_mean_over_all_orders(tmp_path: Path) -> None:
    answered, right = np.zeros(4), np.zeros(4)
    for problem in RIGHT:
        for order in permutations(range(4)):
            for k in KS:
                first = next((i for i in order[:k] if WORDS[problem][i] == "correct"), None)
                answered[k - 1] += (first is not None) / 24 / 4
                right[k - 1] += (first is not None and RIGHT[problem][first]) / 24 / 4
    found = selector(tmp_path, "v", worded()).accepts
    assert found is not None
    assert means(found.answered) == pytest.approx(answered.tolist())
    assert means(found.right) == pytest.approx(right.tolist())
    assert means(found.precision) == pytest.approx((right / answered).tolist())
    for one in found.utility:
        curve = right - one.loss * (answered - right)
        assert means(one.curve) == pytest.approx(curve.tolist())
        assert one.best_k == (int(np.argmax(np.round(curve, 12))) + 1 if curve.max() > 1e-12 else 0)
        assert one.best == pytest.approx(max(0.0, curve.max()))
        assert one.climbing == (one.best_k == 4)
    assert {one.best_k for one in found.utility} >= {0, 4}


def test_rates_are_of_draws_with_an_opinion(tmp_path: Path) -> None:
    found = selector(tmp_path, "v", worded())
    accepts = found.accepts
    assert found.statuses == {"correct": 4, "error": 1, "unknown": 3, "wrong": 8}
    assert accepts is not None
    assert accepts.right_accepted is not None
    assert accepts.wrong_accepted is not None
    assert accepts.accepted_right is not None
    assert accepts.right_accepted.value == pytest.approx(2 / 5)  # a: yes, no; b: yes; d: no, no
    assert accepts.wrong_accepted.value == pytest.approx(2 / 7)  # a: yes; b: three no; c: no, yes, no; unknown and error apart
    assert accepts.accepted_right.value == pytest.approx(2 / 4)
    assert accepts.accepted_right.low <= 0.5 <= accepts.accepted_right.high
    assert accepts.ceiling == [pytest.approx((0.5 + 1 + 0 + 0) / 4), pytest.approx((0.5 + 1 + 0 + 1) / 4)]
    assert found.scored is None


def test_a_rate_without_draws_is_none_and_a_rare_one_is_not_sure(tmp_path: Path) -> None:
    verdicts = {name: [Verdict("correct" if right else "unknown") for right in RIGHT[name]] for name in RIGHT}
    accepts = selector(tmp_path / "x", "v", verdicts).accepts
    assert accepts is not None
    assert accepts.wrong_accepted is None
    verdicts["c"][0] = Verdict("wrong")
    accepts = selector(tmp_path / "y", "v", verdicts).accepts
    assert accepts is not None
    assert accepts.wrong_accepted is not None
    found = accepts.wrong_accepted
    assert (found.value, found.low, found.high) == (0, 0, 1), "of one wrong draw"


def test_problems_that_it_has_not_judged_whole_are_left_out(tmp_path: Path) -> None:
    judged = run(tmp_path, {"v": {"d": [Verdict("correct", 1.0)] * 4, "a": [Verdict("correct", 1.0)] * 3}})
    found = Selector.of("v", judged, KS)
    assert found is not None
    assert (found.problems, found.draws) == (1, 4)
    assert Selector.of("nobody", judged, KS) is None


def test_solve_or_verify_at_its_price(tmp_path: Path) -> None:
    """A verification costs what is billed for it, equal texts once, over what a draw computed: 15 tokens."""
    chains = {"a": [[True, None], [False, False], [True, True], [False, True]]}
    said = {
        name: [
            Verdict("unknown", 0.5, cost=Cost(verifier=0 if i == 3 else 60), meta={"verdicts": said_of})
            for i, said_of in enumerate(chains.get(name, [[True, True]] * 4))
        ]
        for name in RIGHT
    }
    found = selector(tmp_path / "x", "v", said)
    assert found.price == pytest.approx(60 / 2 / 15)
    twice = selector(tmp_path / "y", "v", said, size=2.0)
    assert twice.price == pytest.approx(60 / 15)
    pairs = {(p.solutions, p.verifications): p for p in found.pairs}
    assert set(pairs) >= {(1, 0), (2, 0), (4, 0), (1, 1), (4, 2)}
    assert pairs[4, 2].cost == pytest.approx(4 * (1 + 2 * 2.0))
    assert pairs[4, 0].cost == 4
    assert pairs[4, 0].vote.value == pytest.approx(0.5), "the plain vote: a and d"
    # With scores of 1, 0, 1, 0.5 for a: 4 wins there as well; the others' are all alike, so nothing changes.
    assert pairs[4, 2].vote.value == pytest.approx(0.5)
    # b: 1, 1 and 2 are tied, the unreadable one comes last.
    assert pairs[4, 2].best.value == pytest.approx((1 + 1 / 3 + 0 + 1) / 4)


def test_it_comes_back_from_json(tmp_path: Path) -> None:
    for name, verdicts in {"v": scored(), "w": worded()}.items():
        found = selector(tmp_path / name, name, verdicts)
        assert Selector.from_json(found.to_json()) == found


def test_draws_beyond_what_all_problems_have_change_no_curve(tmp_path: Path) -> None:
    """A stopping rule draws on where it is in doubt: what it finds there says nothing about the others."""
    from forethought.evals.curves import Curves
    from forethought.evals.draws import tables

    short = {"a": [True, False], "b": [False, True]}
    more = {"a": [True, False], "b": [False, True, True, True]}
    found = [Curves.of(tables(problems_of(made(tmp_path / str(i), rights))), [1, 2, 4]) for i, rights in enumerate((short, more))]
    assert found[0].ks == found[1].ks == [1, 2]
    assert np.array_equal(found[0].coverage, found[1].coverage)
    assert np.array_equal(found[0].votes, found[1].votes)
