"""The Wilson interval against published values, its own definition, and its coverage."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.evals.intervals import Z95, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)  # the last one: Newcombe, Statistics in Medicine 17, 1998, table I
def test_published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_ends_are_where_the_score_test_turns(case: tuple[int, int]) -> None:
    successes, trials = case
    share = successes / trials
    for end in wilson(successes, trials):
        assert 0 <= end <= 1
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / trials))


@pytest.mark.parametrize("case", [(1, 0), (-1, 3), (4, 3)])
def test_nonsense_is_refused(case: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="trials"):
        wilson(*case)
