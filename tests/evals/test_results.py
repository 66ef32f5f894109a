"""Results of runs without a model: whose word counts, what is kept, and what is not claimed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_runs import made

from forethought.evals.coverage import REACH, BetaBinomial, fit
from forethought.evals.draws import problems_of
from forethought.evals.results import Results, show
from forethought.schema import Verdict

RIGHTS = {f"p{i}": [i < 6, i % 2 == 0, True, i % 3 == 0] for i in range(10)}


def judge(word: str) -> dict[str, list[Verdict]]:
    return {name: [Verdict("correct" if word == "yes" else "wrong", 1.0 if word == "yes" else 0.0)] * 4 for name in RIGHTS}


def test_only_the_truth_says_what_is_right(tmp_path: Path) -> None:
    """Another verifier's lines come after the truth's in the file, and say something else."""
    plain = Results.of(made(tmp_path / "a", RIGHTS), [1, 2, 4])
    other = Results.of(made(tmp_path / "b", RIGHTS, others={"yes": judge("yes"), "no": judge("no")}), [1, 2, 4])
    assert (other.accuracy, other.coverage, other.votes, other.statuses) == (
        plain.accuracy, plain.coverage, plain.votes, plain.statuses,
    )  # fmt: skip
    assert plain.selectors == {}
    assert set(other.selectors) == {"yes", "no"}
    yes, no = (other.selectors[name].accepts for name in ("yes", "no"))
    assert yes is not None
    assert no is not None
    assert (yes.answered["1"].value, no.answered["1"].value) == (1, 0)
    assert yes.right["1"].value == pytest.approx(plain.coverage["1"].value)
    assert no.right["4"].value == 0
    assert no.precision == {}


def test_another_truth(tmp_path: Path) -> None:
    run = made(tmp_path, RIGHTS, others={"no": judge("no")})
    found = Results.of(run, [1], truth="no")
    assert (found.truth, found.accuracy.value, found.coverage["1"].value) == ("no", 0, 0)
    assert set(found.selectors) == {"truth"}, "what was the truth is now one that chooses"
    accepts = found.selectors["truth"].accepts
    assert accepts is not None
    assert accepts.accepted_right is not None
    assert accepts.accepted_right.value == 0
    with pytest.raises(ValueError, match="p0 has no verdict of 'nobody' on draw 0"):
        problems_of(run, "nobody")


def test_it_comes_back_from_json(tmp_path: Path) -> None:
    run = made(tmp_path, RIGHTS, others={"yes": judge("yes")}, level=3)
    found = Results.of(run, [1, 2, 4], parameters=7, split={"draws": 2.0})
    assert Results.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    assert found.flops == 10 * 2 * 7 * 30


def test_again_keeps_the_settings(tmp_path: Path) -> None:
    run = made(tmp_path, RIGHTS)
    first = Results.of(run, [1, 3], parameters=7, split={"wall_seconds": 1.0})
    (run / "results.json").write_text(json.dumps(first.to_json()))
    assert Results.again(run) == first


def test_a_broken_judgement_counts_nowhere_and_no_answer_is_not_right(tmp_path: Path) -> None:
    found = Results.of(made(tmp_path, {"a": [True, None, False], "b": [True, True, None]}), [1, 2, 3])
    assert found.statuses == {"correct": 3, "error": 2, "wrong": 1}
    assert list(found.coverage) == ["1", "2"]
    assert found.coverage["1"].value == pytest.approx((1 / 2 + 1) / 2)


def test_no_law_goes_further_than_it_may(tmp_path: Path) -> None:
    rights = {name: right * 2 for name, right in RIGHTS.items()}
    found = Results.of(made(tmp_path, rights), [1, 2, 4])
    assert set(found.laws) == {"power law", "beta-binomial", "zero-inflated"}
    for law in found.laws.values():
        assert max(map(int, law.curve)) == REACH * 8
        assert all(figure.low <= figure.value <= figure.high for figure in law.curve.values())
        assert law.drawn is law.predicted is None, "eight draws are too few to hold a law against"
    expected = fit(BetaBinomial(), np.full(10, 8), np.array([sum(right) for right in rights.values()])).predict([80]).value[0]
    assert found.laws["beta-binomial"].curve["80"].value == pytest.approx(expected)
    assert Results.of(made(tmp_path / "few", {"a": [True] * 7, "b": [False] * 8}), [1]).laws == {}
    assert Results.of(made(tmp_path / "none", {"a": [False] * 8}), [1]).laws == {}
    many = Results.of(made(tmp_path / "many", {f"p{i}": [j % (i + 1) == 0 for j in range(32)] for i in range(8)}), [1])
    assert {law.drawn for law in many.laws.values()} == {4}
    assert {law.observed for law in many.laws.values()} == {1.0}


def test_the_vote_is_held_against_one_draw(tmp_path: Path) -> None:
    found = Results.of(made(tmp_path, RIGHTS), [1, 2, 4])
    (difference,) = found.differences
    assert (difference.first, difference.second, difference.k) == ("majority", "one draw", 4)
    assert difference.figure.value == pytest.approx(found.votes["4"].value - found.coverage["1"].value)
    assert Results.of(made(tmp_path / "two", {name: right[:2] for name, right in RIGHTS.items()}), [1, 2]).differences == []


def test_how_different_draws_are(tmp_path: Path) -> None:
    texts = {"a": ["x", "x", "y"], "b": ["z"] * 3}
    answers: dict[str, list[str | None]] = {"a": ["1", "1", "2"], "b": ["1", None, None]}
    found = Results.of(made(tmp_path, {"a": [True] * 3, "b": [True] * 3}, texts=texts, answers=answers), [1])
    assert (found.answers, found.texts) == (1.5, 0.5)


def test_levels(tmp_path: Path) -> None:
    run = made(tmp_path, {"a": [False, True], "b": [True, True]}, level=1)
    run = made(tmp_path, {"c": [None, None]}, level=2)
    found = Results.of(run, [1])
    assert {level: figure.value for level, figure in found.levels.items()} == {"1": 0.5, "2": 0}
    assert {level: figure.value for level, figure in found.single.items()} == {"1": 0.75}, "nobody knows of level 2"
    assert "1" in show(found)


def test_what_is_shown(tmp_path: Path) -> None:
    shown = show(Results.of(made(tmp_path, RIGHTS, others={"yes\x1b[31m": judge("yes")}), [1, 2, 4]))
    for part in ("10 problems, 40 draws", "yes as the one that chooses", "best of k", "weighted vote", "first accepted",
                 "accepts 100.0 [100.0, 100.0] of right draws, 100.0 [100.0, 100.0] of wrong ones", "majority less one draw",
                 "draws worth making: "):  # fmt: skip
        assert part in shown
    assert "\x1b" not in shown
