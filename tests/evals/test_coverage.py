"""Coverage laws: their formulas as products, their fits against other parameters, and what they find in worlds made for them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.evals.bootstrap import resamples
from forethought.evals.coverage import BetaBinomial, Law, PowerLaw, ZeroInflated, backtest, fit
from forethought.evals.estimators import pass_at_k

LAWS: list[Law] = [PowerLaw(), BetaBinomial(), ZeroInflated()]
each_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)


def world(
    seed: int, alpha: float, beta: float, zeros: float = 0.0, problems: int = 128, n: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Each problem's chance to be solved by a draw, and how many of ``n`` do; a share ``zeros`` is never solved."""
    rng = np.random.default_rng(seed)
    p = rng.beta(alpha, beta, problems)
    p[: round(zeros * problems)] = 0
    return p, rng.binomial(n, p)


def searched(law: Law, parameters: np.ndarray) -> np.ndarray:
    at = np.log(parameters)
    if isinstance(law, ZeroInflated):
        at[..., 2] -= np.log1p(-parameters[..., 2])
    return at


@pytest.mark.parametrize(("alpha", "beta", "zero"), [(0.3, 1.5, 0.0), (2.0, 40.0, 0.25), (1.0, 1.0, 0.9), (1e-3, 2e4, 0.0)])
def test_formulas_are_products_of_failures(alpha: float, beta: float, zero: float) -> None:
    """After j failures the chance of another one is (beta + j) / (alpha + beta + j)."""
    ks = np.array([1, 2, 10, 10_000])
    fail = np.cumprod([(beta + j) / (alpha + beta + j) for j in range(10_000)])[ks - 1]
    found = ZeroInflated().coverage(np.array([[alpha, beta, zero]] * 2), ks)
    np.testing.assert_allclose(found, np.tile((1 - zero) * (1 - fail), (2, 1)), atol=1e-10)
    np.testing.assert_allclose(BetaBinomial().coverage(np.array([alpha, beta]), ks), 1 - fail, atol=1e-10)


@pytest.mark.parametrize("zero", [None, 0.01, 0.4])
def test_likelihoods_add_up_to_one(zero: float | None) -> None:
    n, c = np.full(13, 12), np.arange(13)
    law: Law = BetaBinomial() if zero is None else ZeroInflated()
    at = searched(law, np.array([0.7, 2.5] if zero is None else [0.7, 2.5, zero]))
    chance = np.exp(law.height(n, c, np.eye(13))(np.tile(at, (13, 1)))) * [math.comb(12, i) for i in range(13)]
    assert chance.sum() == pytest.approx(1)
    assert (chance[0] > 0.4) == (zero == 0.4)
    assert chance @ c == pytest.approx(12 * (1 - (zero or 0)) * 0.7 / 3.2)


def test_power_law_is_the_least_squares_one() -> None:
    _, c = world(3, 0.4, 3.0)
    found = fit(PowerLaw(), 100, c)
    k = np.unique(np.geomspace(1, 100, 40).round().astype(int))
    curve = pass_at_k(100, c, k.tolist()).mean(axis=0)

    def error(a: float, b: float) -> float:
        return float(((np.exp(-a * k**-b) - curve) ** 2).sum())

    a, b = found.parameters
    least = min(error(x, y) for x in np.linspace(0.02, 5, 250) for y in np.linspace(0.01, 2, 200))
    assert error(a, b) <= least
    assert all(error(a, b) <= error(a * x, b * y) for x in (0.9999, 1, 1.0001) for y in (0.9999, 1, 1.0001))


@each_law
@settings(max_examples=25)
@given(data=st.data())
def test_no_start_ends_higher(law: Law, data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 30))
    c = np.array(data.draw(st.lists(st.integers(0, n), min_size=1, max_size=12).filter(any)))
    found = fit(law, n, c)
    height = law.height(np.full(c.size, n), c, np.ones((1, c.size)))
    top = height(np.clip(searched(law, found.parameters), law.low, law.high)[None])[0]
    rng = np.random.default_rng(0)
    others = rng.uniform(np.maximum(law.low, -5), np.minimum(law.high, 7), (2_000, len(law.names)))
    elsewhere = max(float(height(other[None])[0]) for other in others)
    assert top >= elsewhere - 1e-4
    values = found.predict([1, 2, n, 10 * n]).value
    assert ((values >= 0) & (values <= 1)).all()
    assert (np.diff(values) >= -1e-9).all()


@each_law
def test_replicas_are_fits_to_resampled_problems(law: Law) -> None:
    _, c = world(5, 0.8, 4.0, zeros=0.25, problems=40, n=24)
    found = fit(law, 24, c, repeats=5, seed=3)
    for times, replica in zip(resamples(40, 5, 3), found.replicas, strict=True):
        again = fit(law, 24, np.repeat(c, times))
        np.testing.assert_allclose(law.coverage(replica, np.array([1, 24, 500])), again.predict([1, 24]).value.tolist()
                                   + law.coverage(again.parameters, np.array([500])).tolist(), atol=2e-3)  # fmt: skip


def test_beta_binomial_finds_what_was_planted() -> None:
    _, c = world(7, 0.3, 1.5)
    found = fit(BetaBinomial(), 100, c, repeats=200).estimates(0.99)
    assert list(found) == ["alpha", "beta"]
    for name, planted in (("alpha", 0.3), ("beta", 1.5)):
        assert found[name].low < planted < found[name].high
        assert found[name].high - found[name].low < planted  # and says something


def test_zero_inflation_finds_what_was_planted() -> None:
    _, c = world(8, 1.0, 3.0, zeros=0.2)
    found = fit(ZeroInflated(), 100, c, repeats=200)
    parts = found.estimates(0.99)
    for name, planted, width in (("alpha", 1.0, 1.2), ("beta", 3.0, 3.5), ("zero", 0.2, 0.25)):
        assert parts[name].low < planted < parts[name].high
        assert parts[name].high - parts[name].low < width
    far = found.predict([100_000])
    assert far.low[0] < 0.8 < far.high[0] < 0.95


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p = rng.beta(1, 3, 100) * (rng.random(100) > 0.2)
        found = fit(ZeroInflated(), 60, rng.binomial(60, p), repeats=60, seed=seed).predict([5_000], level=0.8)
        held += bool(found.low[0] <= 0.8 * (1 - 3 / 5_003) <= found.high[0])
    assert 40 <= held <= 56  # 48 expected


def test_bias_of_the_laws_where_all_problems_can_be_solved() -> None:
    """128 problems, 100 draws, asked for 10,000: the power law says too much, the beta-binomial is right."""
    errors = {type(law): [] for law in LAWS[:2]}
    for seed in range(12):
        p, c = world(seed, 0.3, 1.5)
        for law in LAWS[:2]:
            found = law.coverage(fit(law, 100, c).parameters, np.array([10_000]))
            errors[type(law)].append(found[0] - (1 - (1 - p) ** 10_000).mean())
    bias = {law: np.mean(values) for law, values in errors.items()}
    assert 0.01 < bias[PowerLaw] < 0.05
    assert abs(bias[BetaBinomial]) < 0.012
    assert np.square(errors[BetaBinomial]).mean() < np.square(errors[PowerLaw]).mean()


def test_bias_of_the_laws_where_a_fifth_is_never_solved() -> None:
    """Both laws that end at 1 promise a sixth too much; the one that knows of zeros does not."""
    errors = {type(law): [] for law in LAWS}
    for seed in range(12):
        p, c = world(seed, 1.0, 3.0, zeros=0.2)
        for law in LAWS:
            found = law.coverage(fit(law, 100, c).parameters, np.array([10_000]))
            errors[type(law)].append(found[0] - (1 - (1 - p) ** 10_000).mean())
    assert 0.13 < np.mean(errors[PowerLaw]) < 0.2
    assert 0.13 < np.mean(errors[BetaBinomial]) < 0.2
    assert abs(np.mean(errors[ZeroInflated])) < 0.02
    assert np.sqrt(np.square(errors[ZeroInflated]).mean()) < 0.04


@each_law
def test_no_curve_goes_far_alone(law: Law) -> None:
    _, c = world(9, 0.5, 2.0, problems=30, n=20)
    alone, joined = fit(law, 20, c), fit(law, 20, c, repeats=40)
    assert np.isnan(alone.predict([200]).low).all()
    with pytest.raises(ValueError, match=r"k=201 .* n=20 "):
        alone.predict([1, 201])
    with pytest.raises(ValueError, match=r"repeats=0"):
        alone.estimates()
    far = joined.predict([20, 201, 100_000])
    np.testing.assert_array_equal(far.value[:1], alone.predict([20]).value)
    assert (far.low <= far.value).all()
    assert (far.value <= far.high).all()
    assert (far.low < far.high).all()


def test_the_reach_is_that_of_the_fewest_draws() -> None:
    with pytest.raises(ValueError, match=r"k=51 .* n=5 "):
        fit(BetaBinomial(), [5, 400, 400], [1, 30, 400]).predict([51])


def test_problems_may_have_different_numbers_of_draws() -> None:
    rng = np.random.default_rng(4)
    n = rng.integers(20, 200, 2_000)
    found = fit(BetaBinomial(), n, rng.binomial(n, rng.beta(0.5, 2.0, 2_000)))
    assert found.parameters == pytest.approx([0.5, 2.0], rel=0.1)


@each_law
@pytest.mark.parametrize(
    ("n", "c"), [(50, [50] * 9), (50, [5] * 30), (50, [1] + [0] * 20), (2, [1]), (1_000, [1]), (40, [0, 40, 0, 40])], ids=str
)
def test_odd_data_give_a_curve(law: Law, n: int, c: list[int]) -> None:
    found = fit(law, n, c, repeats=20).predict([1, n, 10 * n, 1_000 * n])
    for values in found:
        assert ((values >= 0) & (values <= 1)).all()
        assert (np.diff(values) >= -1e-9).all()
    if not isinstance(law, PowerLaw):
        assert found.value[0] == pytest.approx(np.mean(c) / n, rel=0.02, abs=1e-3)


def test_backtest_of_the_laws() -> None:
    _, c = world(6, 1.0, 3.0, zeros=0.2, problems=400, n=160)
    found = {type(law): backtest(law, 160, c, seed=1) for law in LAWS}
    for result in found.values():
        assert (result.drawn, result.k) == (20, 160)
        assert result.observed == pytest.approx((c > 0).mean())
        assert result.error == result.predicted - result.observed
    assert abs(found[ZeroInflated].error) < 0.03
    assert found[PowerLaw].error > 0.03
    assert found[BetaBinomial].error > 0.03


def test_backtest_looks_at_an_eighth_of_the_draws() -> None:
    """One problem in ten solved in all draws, the others once in 160: most of those are not seen."""
    c = np.array([160] * 10 + [1] * 90)
    found = [backtest(BetaBinomial(), 160, c, seed=seed) for seed in range(3)]
    assert all(result.observed == 1 for result in found)
    assert all(result.predicted < 0.7 for result in found)
    assert len({result.predicted for result in found}) > 1
    assert found[0] == backtest(BetaBinomial(), 160, c, seed=0)


def test_backtest_ends_where_all_problems_have_draws() -> None:
    n, c = np.array([16, 64, 64]), np.array([3, 9, 1])
    found = backtest(BetaBinomial(), n, c)
    assert (found.drawn, found.k) == (2, 16)
    assert found.observed == pytest.approx(pass_at_k(n, c, [16]).mean())


@each_law
def test_what_cannot_be_fitted_is_refused(law: Law) -> None:
    with pytest.raises(ValueError, match=r"none of 30 draws is right"):
        fit(law, 10, [0, 0, 0])
    for n, c in ((1, [1]), (3, [4]), (3, [-1]), (3, []), ([[3]], [[1]])):
        with pytest.raises(ValueError, match=r"at least 2 draws"):
            fit(law, n, c)
    with pytest.raises(ValueError, match=r"n=15 draws: at least 16"):
        backtest(law, [15, 99], [3, 9])
    with pytest.raises(ValueError, match=r"k=\[0\]"):
        fit(law, 10, [3]).predict([0])
