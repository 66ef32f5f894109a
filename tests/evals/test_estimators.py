"""Estimators against what they stand for: the average over every subset, or every order, of a problem's draws."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.evals.estimators import best_of_k, counts, first_accept, log_gamma, pass_at_k, pass_hat_k, vote_at_k

NAN = math.nan
verdicts = st.sampled_from([0.0, 1.0, 1.0, 0.0, NAN])


def known(row: Sequence[float]) -> list[int]:
    return [i for i, y in enumerate(row) if not math.isnan(y)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else NAN


@given(st.lists(st.lists(verdicts, min_size=6, max_size=6), min_size=1, max_size=4))
def test_pass_at_k_and_pass_hat_k_are_means_over_subsets(rows: list[list[float]]) -> None:
    n, c = counts(rows)
    ks = [5, 1, 3, 6]
    any_right, all_right = pass_at_k(n, c, ks), pass_hat_k(n, c, ks)
    for p, row in enumerate(rows):
        for column, k in enumerate(ks):
            subsets = [[row[i] for i in subset] for subset in combinations(known(row), k)]
            assert any_right[p, column] == pytest.approx(mean([max(s) for s in subsets]), abs=1e-12, nan_ok=True)
            assert all_right[p, column] == pytest.approx(mean([min(s) for s in subsets]), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("c", [1, 7, 100, 5_000, 9_999])
@pytest.mark.parametrize("k", [1, 10, 1_000, 9_000, 10_000])
def test_large_counts_against_whole_numbers(c: int, k: int) -> None:
    n = 10_000
    none, every = (float(Fraction(math.comb(some, k), math.comb(n, k))) for some in (n - c, c))
    assert pass_at_k(n, c, [k])[0, 0] == pytest.approx(1 - none, abs=1e-10)
    assert pass_hat_k(n, c, [k])[0, 0] == pytest.approx(every, abs=1e-10)


def test_ends_are_exact() -> None:
    assert pass_at_k([9, 10_000], [0, 0], [1, 5]).tolist() == [[0, 0], [0, 0]]
    assert pass_at_k([9, 10_000], [9, 10_000], [1, 5]).tolist() == [[1, 1], [1, 1]]
    assert pass_hat_k([9, 10_000], [9, 10_000], [1, 5]).tolist() == [[1, 1], [1, 1]]
    assert not np.signbit(pass_at_k(7, 0, [1, 7])).any()


def test_too_few_draws_are_nan_and_unknown_ones_are_none() -> None:
    n, c = counts([[1, None, None], [None, None, None], [0, 1, 1]])
    assert (n.tolist(), c.tolist()) == ([1, 0, 3], [1, 0, 2])
    np.testing.assert_allclose(pass_at_k(n, c, [1, 2]), [[1, NAN], [NAN, NAN], [2 / 3, 1]])
    np.testing.assert_allclose(best_of_k([[1, NAN, NAN]], [[0, 9, 9]], [1, 2]), [[1, NAN]])
    np.testing.assert_allclose(vote_at_k([[0, 1, 1]], [[1, NAN, NAN]], [1, 2]), [[1, NAN]])
    for found in first_accept([[1, 1, 1]], [[1, NAN, NAN]], [1, 2]):
        np.testing.assert_allclose(found, [[1, NAN]])


def test_empty_tables() -> None:
    assert pass_at_k([], [], [1, 2]).shape == (0, 2)
    nothing = np.zeros((0, 5))
    assert best_of_k(nothing, nothing, [1]).shape == vote_at_k(nothing.astype(int), nothing, [1]).shape == (0, 1)
    assert np.isnan(best_of_k(np.zeros((2, 0)), np.zeros((2, 0)), [1])).all()


@given(st.lists(st.tuples(verdicts, st.sampled_from([-1.5, -0.0, 0.0, 0.5, 2.0, NAN, -math.inf])), min_size=5, max_size=7))
def test_best_of_k_is_the_mean_over_subsets_and_ties(draws: list[tuple[float, float]]) -> None:
    right, scores = [y for y, _ in draws], [s for _, s in draws]
    ks = list(range(1, len(draws) + 1))

    def chosen(subset: Sequence[int]) -> float:
        scored = [i for i in subset if not math.isnan(scores[i])]
        top = max((scores[i] for i in scored), default=None)
        return mean([right[i] for i in (subset if top is None else [i for i in scored if scores[i] == top])])

    expected = [mean([chosen(subset) for subset in combinations(known(right), k)]) for k in ks]
    np.testing.assert_allclose(best_of_k([right], [scores], ks)[0], expected, atol=1e-12)


def test_best_of_k_without_scores_is_one_draw() -> None:
    right = [[1, 0, 0, 1, 1, 0, 0, 0]]
    np.testing.assert_allclose(best_of_k(right, np.full((1, 8), NAN), [1, 4, 8]), [[3 / 8] * 3])


@given(st.integers(1, 14), st.integers(1, 14), st.data())
def test_votes_of_two_answers_are_hypergeometric(c: int, w: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, c + w))
    chance = [math.comb(c, x) * math.comb(w, k - x) / math.comb(c + w, k) for x in range(k + 1)]
    expected = sum(p * (1 if 2 * x > k else 0.5 if 2 * x == k else 0) for x, p in enumerate(chance))
    found = vote_at_k([[4] * c + [2] * w], [[1] * c + [0] * w], [k], subsets=4_000)
    assert found[0, 0] == pytest.approx(expected, abs=4.5 * math.sqrt(max(0, expected * (1 - expected)) / 4_000) + 1e-9)


@given(
    st.lists(st.tuples(st.integers(-1, 2), st.sampled_from([0.0, 0.25, 0.5, 1.0, NAN])), min_size=4, max_size=6),
    st.sampled_from([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]),
    st.booleans(),
)
def test_votes_are_means_over_subsets_and_ties(draws: list[tuple[int, float]], truth: Sequence[float], weighted: bool) -> None:
    answers, weights = [a for a, _ in draws], [w for _, w in draws]
    ks = list(range(1, len(draws) + 1))
    right = [truth[a] if a >= 0 else 0.0 for a in answers]

    def winner(subset: Sequence[int]) -> float:
        votes: dict[int, float] = {}
        for i in subset:
            if answers[i] >= 0:
                weight = (0.0 if math.isnan(weights[i]) else weights[i]) if weighted else 1.0
                votes[answers[i]] = votes.get(answers[i], 0.0) + weight
        return mean([truth[a] for a, v in votes.items() if v == max(votes.values())]) if votes else 0.0

    expected = [mean([winner(subset) for subset in combinations(range(len(draws)), k)]) for k in ks]
    found = vote_at_k([answers], [right], ks, weights=[weights] if weighted else None, subsets=3_000)[0]
    np.testing.assert_allclose(found, expected, atol=0.045)  # 4.9 standard errors at most
    assert found[-1] == pytest.approx(expected[-1])  # there is but one subset of all


def test_weights_turn_a_vote_and_rounding_breaks_no_tie() -> None:
    answers, right = [[7, 7, 3]], [[0, 0, 1]]
    assert vote_at_k(answers, right, [3])[0, 0] == 0
    assert vote_at_k(answers, right, [3], weights=[[0.1, 0.1, 0.9]])[0, 0] == 1
    assert vote_at_k(answers, right, [3], weights=[[0.1, 0.2, 0.3]])[0, 0] == 0.5  # 0.1 + 0.2 > 0.3 in floating point


def test_an_answer_judged_both_ways_is_as_right_as_its_draws() -> None:
    assert vote_at_k([[5, 5, 5, 1]], [[1, 1, 0, 0]], [4])[0, 0] == pytest.approx(2 / 3)


def test_votes_repeat_by_seed_and_do_not_look_at_other_problems() -> None:
    rng = np.random.default_rng(5)
    answers, right = rng.integers(0, 4, (3, 30)), np.zeros((3, 30))
    right[answers == 1] = 1
    found = vote_at_k(answers, right, [5, 9], seed=3)
    np.testing.assert_array_equal(found, vote_at_k(answers, right, [5, 9], seed=3))
    np.testing.assert_array_equal(found[:2], vote_at_k(answers[:2], right[:2], [5, 9], seed=3))
    np.testing.assert_array_equal(found[:, 1:], vote_at_k(answers, right, [9], seed=3))
    assert (found != vote_at_k(answers, right, [5, 9], seed=4)).any()
    twins = vote_at_k(answers[[0, 0]], right[[0, 0]], [5, 9], seed=3)
    assert (twins[0] != twins[1]).all()  # problems do not share their luck


@given(st.lists(st.tuples(verdicts, verdicts), min_size=5, max_size=6))
def test_first_accept_is_the_mean_over_orders(draws: list[tuple[float, float]]) -> None:
    accepted, right = [a for a, _ in draws], [y for _, y in draws]
    ks = list(range(1, len(draws) + 1))
    found = first_accept([accepted], [right], ks)
    orders = list(permutations(known(right)))
    for column, k in enumerate(ks):
        answered, good, made = [], [], []
        for order in orders if k <= len(known(right)) else []:
            first = next((place for place, i in enumerate(order[:k]) if accepted[i] == 1), None)
            answered.append(float(first is not None))
            good.append(0.0 if first is None else right[order[first]])
            made.append(float(k if first is None else first + 1))
        for values, expected in zip(found, (answered, good, made), strict=True):
            assert values[0, column] == pytest.approx(mean(expected), abs=1e-12, nan_ok=True)


def test_log_gamma() -> None:
    x = np.array([[1e-8, 0.5, 1.0], [3.7, 1e4, 1e9]])
    np.testing.assert_array_equal(log_gamma(x), [[math.lgamma(v) for v in row] for row in x])
    assert log_gamma(5).shape == ()


@pytest.mark.parametrize("ks", [[], [0], [2, -1], [1.5], [[1, 2]], ["1"]])
def test_bad_k_is_refused(ks: list[int]) -> None:
    with pytest.raises(ValueError, match="k="):
        pass_at_k(3, 1, ks)


@pytest.mark.parametrize(("n", "c"), [(3, 4), (3, -1), ([5, 2], [5, 3])])
def test_impossible_counts_are_refused(n: int, c: int) -> None:
    with pytest.raises(ValueError, match="right of"):
        pass_at_k(n, c, [1])


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"right: 0\.5"):
        counts([[1, 0.5]])
    with pytest.raises(ValueError, match=r"right: shape \(2,\)"):
        counts([1, 0])
    with pytest.raises(ValueError, match=r"accepted: 2\.0"):
        first_accept([[2.0]], [[1]], [1])
    with pytest.raises(ValueError, match=r"scores: shape \(1, 1\)"):
        best_of_k([[1, 0]], [[1]], [1])
    with pytest.raises(ValueError, match=r"accepted: shape"):
        first_accept([[1]], [[1, 0]], [1])
    with pytest.raises(ValueError, match=r"answers: float64"):
        vote_at_k([[1.0]], [[1]], [1])
    with pytest.raises(ValueError, match=r"subsets=0"):
        vote_at_k([[1]], [[1]], [1], subsets=0)


@pytest.mark.parametrize("bad", [-0.5, math.inf, -math.inf])
def test_votes_of_no_worth_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"weights: {bad}"):
        vote_at_k([[1, 2]], [[1, 0]], [1], weights=[[1.0, bad]])
