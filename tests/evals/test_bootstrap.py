"""Bootstrap intervals against every resample of few problems and against normal theory; McNemar against counted coins."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.evals.bootstrap import interval, mcnemar, paired_difference, percentiles, ratio, resamples


def test_resamples_are_whole_problems_drawn_with_replacement() -> None:
    found = resamples(3, 27_000, seed=1)
    assert (found.sum(axis=1) == 3).all()
    seen, times = np.unique(found, axis=0, return_counts=True)
    drawn, ways = np.unique([np.bincount(r, minlength=3) for r in product(range(3), repeat=3)], axis=0, return_counts=True)
    np.testing.assert_array_equal(seen, drawn)
    np.testing.assert_allclose(times / 1_000, ways, atol=0.4)  # 1,000 expected for each of the 27 ways; 4 standard errors


def test_ends_are_quantiles_of_all_resamples() -> None:
    values = np.array([0.0, 0.25, 0.5, 1.0, 0.9])
    means = [np.mean(r) for r in product(values, repeat=5)]
    found = interval(values, level=0.8, repeats=40_000, seed=2)
    assert found.value == pytest.approx(0.53)
    assert (found.low, found.high) == (
        pytest.approx(np.quantile(means, 0.1), abs=0.011),
        pytest.approx(np.quantile(means, 0.9), abs=0.011),
    )


def test_interval_of_many_problems_is_the_normal_one() -> None:
    values = np.random.default_rng(3).beta(0.5, 1.0, (2_000, 2))
    found = interval(values, seed=4)
    half = 1.96 * values.std(axis=0) / math.sqrt(2_000)
    np.testing.assert_allclose(found.value, values.mean(axis=0))
    np.testing.assert_allclose(found.high - found.value, half, rtol=0.1)
    np.testing.assert_allclose(found.value - found.low, half, rtol=0.1)


def test_draws_of_one_problem_are_not_independent() -> None:
    """Half of 40 problems always solved: 100 draws of each make the interval no narrower."""
    solved = np.repeat([1.0, 0.0], 20)
    width = np.diff(interval(solved)[1:], axis=0)[0]
    assert width == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(40), rel=0.1)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(6)
    held = 0
    for seed in range(600):
        p = rng.beta(0.5, 1.5, 60)
        found = interval(rng.binomial(8, p) / 8, level=0.9, repeats=500, seed=seed)
        held += bool(found.low <= 0.25 <= found.high)
    assert 0.865 <= held / 600 <= 0.935


def test_ratio_of_means_is_no_mean_of_ratios() -> None:
    right, answered = np.array([[0.9, 0.0], [0.0, 0.0]]), np.array([[0.9, 0.0], [0.1, 0.0]])
    found = interval(np.stack([right, answered], axis=1), of=ratio, seed=5)
    np.testing.assert_allclose(found.value, [0.9, np.nan])
    np.testing.assert_allclose(found.low[0], 0.0)
    np.testing.assert_allclose(found.high[0], 1.0)
    assert np.isnan(found.low[1])


def test_nan_stays_in_its_own_figure() -> None:
    found = interval([[1.0, math.nan], [0.0, 1.0], [1.0, 1.0]])
    assert not np.isnan([found.value[0], found.low[0], found.high[0]]).any()
    assert np.isnan([found.value[1], found.low[1], found.high[1]]).all()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.floats(-0.5, 0.5))
def test_a_paired_difference_sees_through_hard_problems(values: list[float], shift: float) -> None:
    first = np.array(values) + shift
    found = paired_difference(first, values, repeats=50)
    np.testing.assert_allclose(found, [shift] * 3, atol=1e-12)  # no width, however unlike the problems are
    back = paired_difference(values, first, repeats=50)
    np.testing.assert_allclose(back.low, -found.high, atol=1e-12)


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(7)
    p = rng.beta(0.3, 0.3, 300)
    first, second = rng.binomial(20, np.minimum(p + 0.03, 1)) / 20, rng.binomial(20, p) / 20
    found = paired_difference(first, second, seed=1)
    assert 0 < found.low < found.value < found.high
    assert interval(first).low < interval(second).high  # one by one they tell nothing


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(0).random(20)
    np.testing.assert_array_equal(interval(values, seed=8), interval(values, seed=8))
    assert interval(values, seed=8).low != interval(values, seed=9).low


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=14))
def test_mcnemar_counts_splits_as_uneven(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    found = mcnemar(first, second)
    gap = sum(first) - sum(second)
    differ = sum(a != b for a, b in pairs)
    assert (found.first - found.second, found.first + found.second) == (gap, differ)
    uneven = sum(abs(2 * sum(heads) - differ) >= abs(gap) for heads in product([0, 1], repeat=differ))
    assert found.p == pytest.approx(uneven / 2**differ)


def test_mcnemar_of_many_problems() -> None:
    first, second = np.zeros(3_000), np.zeros(3_000)
    first[:1_050], second[1_050:2_050] = 1, 1
    found = mcnemar(first, second)
    assert found[:2] == (1_050, 1_000)
    assert found.p == pytest.approx(math.erfc((50 - 1) / math.sqrt(2_050) / math.sqrt(2)), rel=1e-3)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values: shape \(0, 3\)"):
        interval(np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"repeats=0"):
        interval([1.0], repeats=0)
    with pytest.raises(ValueError, match=r"level=95"):
        interval([1.0], level=95)
    with pytest.raises(ValueError, match=r"level=0"):
        percentiles(np.zeros((3, 1)), 0)
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        paired_difference([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match=r"shapes \(1,\) and \(2,\)"):
        mcnemar([1], [1, 0])
    for bad in (0.5, math.nan):
        with pytest.raises(ValueError, match=f"{bad} is neither"):
            mcnemar([1, 0], [1, bad])
