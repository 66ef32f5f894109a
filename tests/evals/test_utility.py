"""Imperfect verifiers: a worked check, simulation by enumeration, and models against pools so large that they are the model."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.evals.bootstrap import interval, ratio
from forethought.evals.estimators import FirstAccept, best_of_k, first_accept, pass_at_k, vote_at_k
from forethought.evals.utility import (
    best_k,
    ceiling,
    equal_cost,
    expected,
    precision,
    solve_or_verify,
    two_kinds_best_k,
    utility,
)
from forethought.search.stopping import Kind, MarginalUtility

KS = list(range(1, 200))
# The constants of a notebook published with arXiv 2411.17501. The figures below are exact sums, not that notebook's.
EASY, HARD = Kind(0.58, 0.87, 1.0, 0.25), Kind(0.42, 0.13, 1.0, 0.25)
NAN = math.nan


def weighted(kinds: list[Kind], curves: np.ndarray) -> np.ndarray:
    return np.array([kind.weight for kind in kinds]) @ curves


@pytest.mark.parametrize(
    ("loss", "best", "worth", "in_the_end"), [(0.7, 3, 0.5246, 0.5176), (1.0, 2, 0.4724, 0.4325), (2.0, 1, 0.3388, 0.1487)]
)
def test_worked_check(loss: float, best: int, worth: float, in_the_end: float) -> None:
    curve = weighted([EASY, HARD], utility(expected([EASY, HARD], KS), loss))
    assert best_k(curve, KS) == two_kinds_best_k(EASY, HARD, loss) == best
    assert curve[best - 1] == pytest.approx(worth, abs=5e-5)
    assert curve[-1] == pytest.approx(in_the_end, abs=5e-5)


def test_model_is_a_sum_over_the_draw_that_is_accepted() -> None:
    kind = Kind(1.0, 0.4, 0.7, 0.1)
    model = expected([kind], [1, 4, 30])
    for column, k in enumerate((1, 4, 30)):
        stay = [(1 - kind.accept) ** j for j in range(k)]
        assert model.answered[0, column] == pytest.approx(sum(kind.accept * s for s in stay))
        assert model.right[0, column] == pytest.approx(sum(0.4 * 0.7 * s for s in stay))
        assert model.draws[0, column] == pytest.approx(sum(stay))


def test_model_at_its_ends() -> None:
    """Never accepted, always accepted, and accepted once in 1e12."""
    model = expected([Kind(0.2, 0.0, 1.0, 0.0), Kind(0.3, 0.5, 1.0, 1.0), Kind(0.5, 1e-12, 1.0, 0.0)], [1, 7])
    np.testing.assert_allclose(model.answered, [[0, 0], [1, 1], [1e-12, 7e-12]])
    np.testing.assert_allclose(model.right, [[0, 0], [0.5, 0.5], [1e-12, 7e-12]])
    np.testing.assert_allclose(model.draws, [[1, 7], [1, 1], [1, 7]])


def test_a_large_pool_is_the_model() -> None:
    kinds, n = [Kind(0.5, 0.6, 0.9, 0.3), Kind(0.5, 0.05, 0.8, 0.1)], 40_000
    right, accepted = np.zeros((2, n)), np.zeros((2, n))
    for row, kind in enumerate(kinds):
        good = round(n * kind.right)
        right[row, :good] = 1
        accepted[row, : round(good * kind.completeness)] = 1
        accepted[row, good : good + round((n - good) * kind.false_accept)] = 1
    ks = [1, 5, 40]
    for pool, model in zip(first_accept(accepted, right, ks), expected(kinds, ks), strict=True):
        np.testing.assert_allclose(pool, model, rtol=2e-3)
    assert ceiling(accepted, right).low == pytest.approx(sum(k.right * k.completeness / k.accept for k in kinds) / 2)


def test_precision_falls_and_accuracy_meets_its_ceiling() -> None:
    model = expected([EASY, HARD], KS)
    shares = precision(model, [EASY.weight, HARD.weight])
    assert shares[0] == pytest.approx((0.58 * 0.87 + 0.42 * 0.13) / (0.58 * EASY.accept + 0.42 * HARD.accept))
    assert (np.diff(shares[:40]) < 0).all()
    top = 0.58 * 0.87 / EASY.accept + 0.42 * 0.13 / HARD.accept
    assert weighted([EASY, HARD], model.right)[-1] == pytest.approx(top)


def test_precision_is_pooled_and_has_an_interval() -> None:
    accepted, right = [[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]], [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1]]
    first = first_accept(accepted, right, [1, 2])
    np.testing.assert_allclose(precision(first), [1 / 1.25, 1 / 1.5])
    np.testing.assert_allclose(precision(first, [0, 0, 1]), [NAN, NAN])
    found = interval(np.stack([first.right, first.answered], axis=1), of=ratio)
    np.testing.assert_allclose(found.value, precision(first))
    assert ceiling(accepted, right) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_a_perfect_verifier_is_pass_at_k() -> None:
    right = np.random.default_rng(1).random((20, 12)) < 0.3
    first = first_accept(right, right, [1, 3, 12])
    np.testing.assert_allclose(utility(first, loss=7.0), pass_at_k(12, right.sum(axis=1), [1, 3, 12]), atol=1e-12)
    np.testing.assert_allclose(precision(first), 1)


def test_utility_is_gain_less_losses_less_draws() -> None:
    first = FirstAccept(np.array([[0.9]]), np.array([[0.6]]), np.array([[2.5]]))
    assert utility(first, loss=2.0, cost=0.02)[0, 0] == pytest.approx(0.6 - 2 * 0.3 - 0.05)


@pytest.mark.parametrize(
    ("curve", "best"), [([0.1, 0.3, 0.3], 4), ([-0.1, -0.2, 0.0], 0), ([NAN, 0.2, NAN], 4), ([NAN] * 3, 0), ([0.1, 0.2, 0.9], 9)]
)
def test_best_k(curve: list[float], best: int) -> None:
    assert best_k(curve, [2, 4, 9]) == best


chances = st.integers(1, 19).map(lambda i: i / 20)


@given(
    chances,
    *[st.tuples(chances, chances, chances)] * 2,
    st.sampled_from([0.3, 1.0, 2.5, 8.0]),
    st.sampled_from([0.0, 0.01, 0.05]),
)
def test_closed_form_is_the_best_of_all(
    weight: float, one: tuple[float, float, float], two: tuple[float, float, float], loss: float, cost: float
) -> None:
    kinds = [Kind(weight, *one), Kind(1 - weight, *two)]
    try:
        closed = two_kinds_best_k(*kinds, loss, cost)
    except ValueError:
        first, second = (kind.margin(loss, cost) for kind in kinds)
        assert first >= 0 or second >= 0
        assert first <= 0 or second >= 0 or kinds[0].accept <= kinds[1].accept
        return
    curve = weighted(kinds, utility(expected(kinds, KS), loss, cost))
    worth = 0.0 if closed == 0 else curve[closed - 1] if closed <= KS[-1] else curve[-1]
    assert worth == pytest.approx(max(0.0, curve.max()), abs=1e-9)
    rule = MarginalUtility(kinds, loss, cost, horizon=199)
    drawn = next((j for j in range(199) if rule.done(accepted=0, rejected=j, votes=[])), 199)
    assert (0.0 if drawn == 0 else curve[drawn - 1]) == pytest.approx(worth, abs=1e-9)


def test_a_draw_that_brings_nothing_is_not_made() -> None:
    even, bad = Kind(0.5, 0.75, 0.5, 0.5), Kind(0.5, 0.0, 1.0, 0.25)  # worth 0.25 and -0.25
    assert two_kinds_best_k(even, bad, loss=1.0) == 0
    assert two_kinds_best_k(even, bad, loss=0.99) == 1


@pytest.mark.parametrize("pair", [(EASY, EASY), (HARD, EASY), (Kind(0.0, 0.9, 1, 0.1), HARD), (Kind(0.5, 1, 1, 0), HARD)])
def test_no_closed_form_is_said(pair: tuple[Kind, Kind]) -> None:
    with pytest.raises(ValueError, match=r"no closed form|both more than 0"):
        two_kinds_best_k(*pair, loss=1.0)


def test_equal_cost_spends_the_budget() -> None:
    assert equal_cost(64, 1.0, [0, 1, 3, 7, 63, 64]) == [(64, 0), (32, 1), (16, 3), (8, 7), (1, 63)]
    assert equal_cost(3.3, 0.1, [0, 1, 24]) == [(3, 0), (3, 1)]  # 3.3 / 1.1 is 3, whatever floats make of it


def pool() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three problems, five solutions, three verifications; some missing. Answer 1 is right."""
    rng = np.random.default_rng(11)
    answers = np.array([[1, 2, 2, 1, 0], [1, 0, 0, -1, 2], [2, 2, 1, 1, 1]])
    scores = rng.integers(0, 4, (3, 5, 3)) / 3.0
    scores[0, 1], scores[2, 0, 1:], scores[1, 4, 0] = NAN, NAN, NAN
    return (answers == 1).astype(float), scores, answers


def test_solve_or_verify_is_the_mean_over_choices() -> None:
    right, scores, answers = pool()
    found = solve_or_verify(right, scores, answers, [(3, 2), (5, 1)], 0.5, repeats=1_500, subsets=4, seed=2)
    assert found.cost.tolist() == [6.0, 7.5]
    for column, (s, v) in enumerate([(3, 2), (5, 1)]):
        for p in range(3):
            best, vote = [], []
            for solutions in combinations(range(5), s):
                for chosen in product(combinations(range(3), v), repeat=s):
                    read = [scores[p, i, list(m)] for i, m in zip(solutions, chosen, strict=True)]
                    means = [float(np.mean(r[~np.isnan(r)])) if (~np.isnan(r)).any() else None for r in read]
                    top = max((m for m in means if m is not None), default=None)
                    best.append(np.mean([right[p, i] for i, m in zip(solutions, means, strict=True) if m == top or top is None]))
                    votes: dict[int, float] = {}
                    for i, m in zip(solutions, means, strict=True):
                        if (a := int(answers[p, i])) >= 0:
                            votes[a] = votes.get(a, 0.0) + (m or 0.0)
                    tied = [a for a, w in votes.items() if w > max(votes.values()) - 1e-9]
                    vote.append(np.mean([a == 1 for a in tied]) if tied else 0.0)
            assert found.best[p, column] == pytest.approx(np.mean(best), abs=0.04)
            assert found.vote[p, column] == pytest.approx(np.mean(vote), abs=0.04)


def test_solve_or_verify_without_a_choice_is_exact() -> None:
    right, scores, answers = pool()
    found = solve_or_verify(right, scores, answers, [(5, 3), (3, 0), (1, 0), (9, 3)], 2.0, subsets=30, seed=4)
    mean = np.array([[np.mean(x[~np.isnan(x)]) if (~np.isnan(x)).any() else NAN for x in row] for row in scores])
    np.testing.assert_allclose(found.best[:, 0], best_of_k(right, mean, [5])[:, 0])
    np.testing.assert_allclose(found.vote[:, 0], vote_at_k(answers, right, [5], weights=mean)[:, 0])
    np.testing.assert_allclose(found.vote[:, 1], vote_at_k(answers, right, [3], subsets=30, seed=4)[:, 0])
    np.testing.assert_allclose(found.best[:, 2], right.mean(axis=1))
    assert np.isnan(found.best[:, 3]).all()
    assert np.isnan(found.vote[:, 3]).all()
    assert found.cost.tolist() == [35.0, 3.0, 1.0, 63.0]


def test_solve_or_verify_repeats_by_seed() -> None:
    right, scores, answers = pool()
    one, again, other = (solve_or_verify(right, scores, answers, [(3, 1)], 1.0, repeats=3, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.best, again.best)
    np.testing.assert_array_equal(one.vote, again.vote)
    assert (one.best != other.best).any()


def test_nonsense_is_refused() -> None:
    right, scores, answers = pool()
    first = first_accept(right, right, [1])
    with pytest.raises(ValueError, match=r"loss=-1"):
        utility(first, loss=-1)
    with pytest.raises(ValueError, match=r"cost=nan"):
        utility(first, loss=1, cost=NAN)
    with pytest.raises(ValueError, match=r"curve: shape \(2,\) for 3"):
        best_k([0.1, 0.2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"price=-0\.5"):
        equal_cost(8, -0.5, [1])
    with pytest.raises(ValueError, match=r"V=4: there are 3"):
        solve_or_verify(right, scores, answers, [(1, 4)], 1.0)
    with pytest.raises(ValueError, match=r"scores: shape \(3, 5\)"):
        solve_or_verify(right, scores[:, :, 0], answers, [(1, 1)], 1.0)
    with pytest.raises(ValueError, match=r"repeats=0"):
        solve_or_verify(right, scores, answers, [(1, 1)], 1.0, repeats=0)
    with pytest.raises(ValueError, match=r"weights: -"):
        solve_or_verify(right, scores - 2, answers, [(2, 3)], 1.0)
