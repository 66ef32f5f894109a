"""Figures with intervals, and curves of them over the number of draws: coverage and its laws, votes. From tables alone.

A figure is a mean over problems, its interval is over problems too. Where coverage goes beyond the draws is a law's to say, never
without an interval and never further than ten times the draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..schema import Json
from .bootstrap import Estimate, interval, paired_difference, ratio
from .coverage import REACH, BetaBinomial, Law, PowerLaw, ZeroInflated, backtest, fit
from .draws import Tables
from .estimators import Floats, Ints, pass_at_k, vote_at_k
from .intervals import wilson

LAWS: Mapping[str, Law] = {"power law": PowerLaw(), "beta-binomial": BetaBinomial(), "zero-inflated": ZeroInflated()}
FEW = 8
"""Of fewer draws there is no curve that a law could follow."""
REPLICAS = 200
"""Resamples of the problems that a law is fitted to again."""


@dataclass(frozen=True, slots=True)
class Figure(Json):
    """A mean over problems and its 95 % interval: Wilson's where they are solved or not, else the bootstrap over problems."""

    value: float
    low: float
    high: float
    problems: int

    @classmethod
    def share(cls, right: Sequence[bool]) -> Figure:
        """Of problems that are solved or not: the bootstrap would be sure of itself where all are, or where there are few."""
        return cls(sum(right) / len(right), *wilson(sum(right), len(right)), len(right))

    @classmethod
    def of(cls, values: Floats) -> Figure:
        """Of what each problem is worth, [problems]."""
        return cls.estimated(interval(values), len(values))

    @classmethod
    def rate(cls, part: Floats, whole: Floats) -> Figure | None:
        """A sum over problems by another one, each [problems]; None for 0 / 0. All is possible where a resample has 0 / 0."""
        if not whole.sum():
            return None
        found = interval(np.stack([part, whole], axis=1)[:, :, None], of=ratio)
        low, high = np.nan_to_num(found.low[0], nan=0.0), np.nan_to_num(found.high[0], nan=1.0)
        return cls(float(found.value[0]), float(low), float(high), len(part))

    @classmethod
    def estimated(cls, estimate: Estimate, problems: int) -> Figure:
        return cls(float(estimate.value), float(estimate.low), float(estimate.high), problems)


def read_curve(curve: Mapping[str, Any]) -> dict[str, Figure]:
    """Figures by name, from JSON."""
    return {key: Figure.from_json(figure) for key, figure in curve.items()}


def curve(ks: Sequence[int], values: Floats) -> dict[str, Figure]:
    """``values`` [problems, len(ks)] as a figure for each k."""
    return {str(k): Figure.of(column) for k, column in zip(ks, values.T, strict=True)}


@dataclass(frozen=True, slots=True)
class Fitted(Json):
    """A law of coverage fitted to a run's draws."""

    parameters: Mapping[str, Figure]
    curve: Mapping[str, Figure]
    """k -> coverage, beyond the draws too."""
    drawn: int | None
    """Draws that the backtest was fitted to; None where there are too few for one."""
    k: int | None
    predicted: float | None
    observed: float | None

    _nested = {"parameters": read_curve, "curve": read_curve}


@dataclass(frozen=True, slots=True)
class Difference(Json):
    """One way to answer less another, over the same draws of the same problems."""

    first: str
    second: str
    k: int
    """Draws of each; for a single draw, of the other one."""
    figure: Figure

    _nested = {"figure": Figure.from_json}

    @classmethod
    def of(cls, first: str, second: str, k: int, values: tuple[Floats, Floats]) -> Difference:
        """``values``: of the two, each [problems]."""
        return cls(first, second, k, Figure.estimated(paired_difference(*values), len(values[0])))


@dataclass(frozen=True, slots=True)
class Curves:
    """What draws alone show. Values are [problems, len(ks)]."""

    ks: Sequence[int]
    """Those asked for that all problems have draws for."""
    coverage: Floats
    votes: Floats

    @classmethod
    def of(cls, found: Tables, ks: Sequence[int]) -> Curves:
        n = (~np.isnan(found.right)).sum(1)
        known = sorted({k for k in ks if k <= n.min()})
        if not known:
            nothing = np.empty((len(n), 0))
            return cls([], nothing, nothing)
        coverage = pass_at_k(n, np.nansum(found.right, 1).astype(int), known)
        return cls(known, coverage, vote_at_k(found.answers, found.right, known))

    def differences(self) -> list[Difference]:
        """The vote over all draws less a single draw."""
        if not self.ks or self.ks[0] != 1 or self.ks[-1] < 3:
            return []  # of one or two votes none is outvoted
        return [Difference.of("majority", "one draw", self.ks[-1], (self.votes[:, -1], self.coverage[:, 0]))]


def fits(found: Tables) -> dict[str, Fitted]:
    """Each law; none where a problem has fewer than ``FEW`` draws, or no draw is right."""
    n, c = (~np.isnan(found.right)).sum(1), np.nansum(found.right, 1).astype(int)
    if n.min() < FEW or not c.any():
        return {}
    end = REACH * int(n.min())
    ks = np.unique(np.geomspace(1, end, 31).round().astype(int)).tolist()
    fitted = {}
    for name, law in LAWS.items():
        one = fit(law, n, c, repeats=REPLICAS)
        ahead = one.predict(ks)
        curve = {str(k): Figure(float(v), float(a), float(b), len(n)) for k, v, a, b in zip(ks, *ahead, strict=True)}
        parameters = {key: Figure.estimated(estimate, len(n)) for key, estimate in one.estimates().items()}
        fitted[name] = Fitted(parameters, curve, *_backtested(law, n, c))
    return fitted


def _backtested(law: Law, n: Ints, c: Ints) -> tuple[int, int, float, float] | tuple[None, None, None, None]:
    try:
        test = backtest(law, n, c)
    except ValueError:  # too few draws, or none right among those it would see
        return None, None, None, None
    return test.drawn, test.k, test.predicted, test.observed
