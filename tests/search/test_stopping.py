"""Stopping rules: the vote's posterior against integration, the price rule against the utility of every number of draws."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.search.stopping import FirstAccept, Kind, LeaderStays, MarginalUtility, ahead

Rule = FirstAccept | LeaderStays | MarginalUtility
RULES: list[Rule] = [FirstAccept(), LeaderStays(0.95), MarginalUtility([Kind(1.0, 0.5, 1.0, 0.2)], 1.0, 0.01, 16)]


def draws_until_done(rule: Rule, most: int) -> int:
    """How many draws a rule makes of a problem whose draws are all rejected."""
    return next((j for j in range(most) if rule.done(accepted=0, rejected=j, votes=[])), most)


@pytest.mark.parametrize(("accepted", "rejected", "done"), [(0, 0, False), (0, 99, False), (1, 0, True), (3, 7, True)])
def test_first_accept(accepted: int, rejected: int, done: bool) -> None:
    assert FirstAccept().done(accepted=accepted, rejected=rejected, votes=[accepted + rejected]) is done


@given(st.integers(0, 40), st.integers(0, 40))
def test_ahead_is_the_mass_of_a_beta_posterior(a: int, b: int) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(64)  # exact for polynomials up to degree 127

    def mass(low: float, high: float) -> float:
        p = low + (high - low) * (nodes + 1) / 2
        return float(weights @ (p**a * (1 - p) ** b)) * (high - low) / 2

    assert ahead(a, b) == pytest.approx(mass(0.5, 1) / mass(0, 1), rel=1e-9)
    assert ahead(a, b) + ahead(b, a) == pytest.approx(1)


@pytest.mark.parametrize(
    ("votes", "done"),
    [
        ([], False),
        ([3], False),
        ([4], True),
        ([4, 1], False),
        ([1, 6], True),
        ([1, 6, 1], True),
        ([9, 4], False),
        ([500, 400], True),
    ],
)  # 1 - 2^-(votes + 1) for one answer; for 4 against 1: 57 of the 64 outcomes of six coins
def test_leader_stays(votes: Sequence[int], done: bool) -> None:
    assert LeaderStays(0.95).done(accepted=0, rejected=0, votes=votes) is done


def test_a_vote_is_as_sure_as_its_threshold() -> None:
    assert ahead(4, 1) == 57 / 64
    assert LeaderStays(57 / 64).done(accepted=0, rejected=9, votes=[4, 1])
    assert not LeaderStays(57 / 64 + 1e-9).done(accepted=9, rejected=0, votes=[1, 4])


@st.composite
def mixtures(draw: st.DrawFn) -> list[Kind]:
    chance = st.sampled_from([0.0, 0.02, 0.13, 0.3, 0.5, 0.8, 0.97, 1.0])
    weights = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any))
    return [Kind(w / sum(weights), draw(chance), draw(chance), draw(chance)) for w in weights]


@given(mixtures(), st.sampled_from([0.0, 0.5, 1.0, 3.0, 20.0]), st.sampled_from([0.0, 0.001, 0.03, 0.2]))
def test_price_rule_makes_as_many_draws_as_are_best(kinds: list[Kind], loss: float, cost: float) -> None:
    horizon = 60
    total, best, most = 0.0, 0.0, 0
    for k in range(1, horizon + 1):
        for kind in kinds:  # the k-th draw is made where k - 1 were rejected
            reached = kind.weight * (1 - kind.accept) ** (k - 1)
            right, wrong = kind.right * kind.completeness, (1 - kind.right) * kind.false_accept
            total += reached * (right - loss * wrong - cost)
        if total > best + 1e-12:
            best, most = total, k
    rule = MarginalUtility(kinds, loss, cost, horizon)
    drawn = draws_until_done(rule, horizon)
    if drawn != most:  # then the two are worth the same but for rounding
        value = sum(kind.weight * kind.margin(loss, cost) * (1 - kind.accept) ** j for kind in kinds for j in range(drawn))
        assert value == pytest.approx(best, abs=1e-9)
    assert rule.done(accepted=1, rejected=0, votes=[])


def test_price_rule_looks_beyond_draws_that_do_not_pay() -> None:
    """What is accepted at once is mostly wrong here, and what is left after that is mostly right."""
    kinds = [Kind(0.5, 0.0, 1.0, 0.5), Kind(0.5, 0.2, 1.0, 0.0)]
    first_draw = sum(kind.weight * kind.margin(0.6, 0.0) for kind in kinds)
    assert first_draw < 0
    assert draws_until_done(MarginalUtility(kinds, 0.6, 0.0, 50), 99) == 50
    assert draws_until_done(MarginalUtility(kinds, 0.6, 0.0, 2), 99) == 0
    assert draws_until_done(MarginalUtility(kinds, 1.1, 0.0, 50), 99) == 0


def test_rejections_that_no_kind_explains_end_it() -> None:
    rule = MarginalUtility([Kind(1.0, 1.0, 1.0, 0.0)], 0.0, 0.0, 9)
    assert not rule.done(accepted=0, rejected=0, votes=[])
    assert rule.done(accepted=0, rejected=1, votes=[])


@pytest.mark.parametrize("rejected", [1_000, 100_000])
def test_long_histories_do_not_underflow(rejected: int) -> None:
    """So many rejections leave only the kind that is rarely accepted, however small both weights became."""
    kinds = [Kind(0.999, 0.0, 1.0, 0.9), Kind(0.001, 0.5, 0.9, 0.0)]
    assert not MarginalUtility(kinds, 9.0, 0.0, 200_000).done(accepted=0, rejected=rejected, votes=[])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_every_rule_ends_or_goes_on_by_counts_alone(rule: Rule) -> None:
    assert not rule.done(accepted=0, rejected=0, votes=[])
    assert rule.done(accepted=8, rejected=0, votes=[8])


@pytest.mark.parametrize("confidence", [0.5, 1.0, -1.0, math.nan])
def test_confidence_is_checked(confidence: float) -> None:
    with pytest.raises(ValueError, match=f"confidence={confidence}"):
        LeaderStays(confidence)


@pytest.mark.parametrize("name", ["weight", "right", "completeness", "false_accept"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_kinds_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Kind(**{"weight": 0.5, "right": 0.5, "completeness": 0.5, "false_accept": 0.5, name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": []}, r"weights \[\]"),
        ({"kinds": [Kind(0.4, 1, 1, 0)]}, r"weights \[0.4\]"),
        ({"loss": -1.0}, "loss=-1.0"),
        ({"loss": math.nan}, "loss=nan"),
        ({"cost": math.inf}, "cost=inf"),
        ({"horizon": 0}, "horizon=0"),
    ],
)
def test_prices_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MarginalUtility(**{"kinds": [Kind(1.0, 1, 1, 0)], "loss": 1.0, "cost": 0.1, "horizon": 9, **change})  # type: ignore[arg-type]
