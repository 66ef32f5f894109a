"""How coverage (mean pass@k) goes on beyond the draws that were made: three laws side by side, with intervals and a backtest.

Exponentiated power law by least squares (Brown et al., arXiv 2407.21787), beta-binomial by maximum likelihood (cf. 2510.05197;
why such mixtures look like power laws: 2502.17578), and the same with a share of problems that are never solved. All are models:
an extrapolation is as good as its law, so show them together and beside their backtest. Not here: other densities of pass@1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, TypeAlias, final

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import Estimate, percentiles, resamples
from .estimators import Floats, Ints, grid, log_gamma, pass_at_k

REACH = 10
"""How many times the draws made a curve may be followed without an interval."""
POINTS = 40
"""Log-spaced values of k that the power law is fitted to."""

Height: TypeAlias = Callable[[Floats], Floats]
"""[repeats, parameters] to [repeats]."""


class Law(ABC):
    """A family of curves. Parameters are arrays [..., len(names)]; the search moves in logarithms (log-odds for a share)."""

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    """Bounds of the search, so that data which drive a parameter to infinity still give a curve."""

    @abstractmethod
    def coverage(self, parameters: Floats, ks: Ints) -> Floats:
        """[..., len(ks)] of parameters [..., len(names)]."""

    @abstractmethod
    def natural(self, searched: Floats) -> Floats:
        """Parameters, from where the search ended."""

    @abstractmethod
    def height(self, n: Ints, c: Ints, weights: Floats) -> Height:
        """What a fit maximises, for each row of ``weights`` [repeats, problems]."""

    @abstractmethod
    def starts(self, n: Ints, c: Ints) -> list[Floats]:
        """Where to search from, each [len(names)]."""


@final
class PowerLaw(Law):
    """coverage(k) = exp(-a k^-b)."""

    names = ("a", "b")
    low, high = (-30.0, -8.0), (8.0, 3.0)

    def coverage(self, parameters: Floats, ks: Ints) -> Floats:
        a, b = parameters[..., :1], parameters[..., 1:]
        return np.exp(-a * np.asarray(ks, dtype=np.float64) ** -b)

    def natural(self, searched: Floats) -> Floats:
        return np.exp(searched)

    def height(self, n: Ints, c: Ints, weights: Floats) -> Height:
        k, curves = _curves(n, c)
        wanted = weights @ curves / weights.sum(axis=1, keepdims=True)
        return lambda at: -((self.coverage(np.exp(at), k) - wanted) ** 2).sum(axis=1)

    def starts(self, n: Ints, c: Ints) -> list[Floats]:
        k, curves = _curves(n, c)
        coverage = np.clip(curves.mean(axis=0), 1e-9, 1 - 1e-9)
        slope, log_a = np.polyfit(np.log(k), np.log(-np.log(coverage)), 1)
        return [np.array([log_a, np.log(max(-slope, 1e-3))])]


@final
class BetaBinomial(Law):
    """Problems' chances to be solved by one draw are Beta(alpha, beta): failure falls like k^-alpha in the end."""

    names = ("alpha", "beta")
    low, high = (-9.0, -9.0), (11.0, 11.0)

    def coverage(self, parameters: Floats, ks: Ints) -> Floats:
        return _beta_coverage(parameters, ks)

    def natural(self, searched: Floats) -> Floats:
        return np.exp(searched)

    def height(self, n: Ints, c: Ints, weights: Floats) -> Height:
        n, c, weights = _distinct(n, c, weights)
        return lambda at: np.asarray((weights * _log_beta_binomial(at, n, c)).sum(axis=1))

    def starts(self, n: Ints, c: Ints) -> list[Floats]:
        return [_beta(alpha, n, c) for alpha in (0.3, 2.0)]


@final
class ZeroInflated(Law):
    """A share ``zero`` of the problems is never solved, the others are beta-binomial: coverage ends below 1."""

    names = ("alpha", "beta", "zero")
    low, high = (-9.0, -9.0, -12.0), (11.0, 11.0, 12.0)

    def coverage(self, parameters: Floats, ks: Ints) -> Floats:
        return (1 - parameters[..., 2:]) * _beta_coverage(parameters, ks)

    def natural(self, searched: Floats) -> Floats:
        return np.concatenate([np.exp(searched[..., :2]), 1 / (1 + np.exp(-searched[..., 2:]))], axis=-1)

    def height(self, n: Ints, c: Ints, weights: Floats) -> Height:
        n, c, weights = _distinct(n, c, weights)

        def likelihood(at: Floats) -> Floats:
            never, sometimes = -np.logaddexp(0, -at[:, 2:]), -np.logaddexp(0, at[:, 2:])
            mixed = sometimes + _log_beta_binomial(at, n, c)
            return np.asarray((weights * np.where(c == 0, np.logaddexp(never, mixed), mixed)).sum(axis=1))

        return likelihood

    def starts(self, n: Ints, c: Ints) -> list[Floats]:
        # Two explanations of many problems without a right draw: most are just hard, or most are never solved.
        some, unsolved = c > 0, np.clip((c == 0).mean(), 0.01, 0.99)
        zeros = ((0.3, 0.1 * unsolved), (2.0, 0.9 * unsolved))
        return [np.append(_beta(alpha, n[some], c[some]), np.log(zero / (1 - zero))) for alpha, zero in zeros]


def _curves(n: Ints, c: Ints) -> tuple[Ints, Floats]:
    """Log-spaced k up to the fewest draws, and each problem's pass@k there."""
    k = np.unique(np.geomspace(1, n.min(), POINTS).round().astype(np.int64))
    return k, pass_at_k(n, c, k.tolist())


def _distinct(n: Ints, c: Ints, weights: Floats) -> tuple[Ints, Ints, Floats]:
    """Problems with the same counts taken together."""
    pairs, member, times = np.unique(np.stack([n, c], axis=1), axis=0, return_inverse=True, return_counts=True)
    together = weights[:, np.argsort(member.ravel(), kind="stable")]
    return pairs[:, 0], pairs[:, 1], np.add.reduceat(together, np.cumsum(times) - times, axis=1)


def _beta(alpha: float, n: Ints, c: Ints) -> Floats:
    """log(alpha, beta) with the mean that the data have."""
    mean = float(np.clip(c.sum() / n.sum(), 1e-4, 1 - 1e-4))
    return np.log([alpha, alpha * (1 - mean) / mean])


def _beta_coverage(parameters: Floats, ks: Ints) -> Floats:
    """1 - B(alpha, beta + k) / B(alpha, beta), [..., len(ks)]."""
    a, b = parameters[..., :1], parameters[..., 1:2]
    return 0.0 - np.expm1((log_gamma(b + ks) - log_gamma(a + b + ks)) + (log_gamma(a + b) - log_gamma(b)))


def _log_beta_binomial(at: Floats, n: Ints, c: Ints) -> Floats:
    """log of B(alpha + c, beta + n - c) / B(alpha, beta), [repeats, problems]."""
    a, b = np.exp(at[:, :1]), np.exp(at[:, 1:2])
    return (log_gamma(a + c) - log_gamma(a)) + (log_gamma(b + (n - c)) - log_gamma(b)) - (log_gamma(a + b + n) - log_gamma(a + b))


@dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to draws. ``parameters`` [len(law.names)]; ``replicas`` [repeats, len(law.names)]: of resampled problems."""

    law: Law
    draws: int
    """n: the fewest draws of a problem."""
    parameters: Floats
    replicas: Floats

    def predict(self, ks: Sequence[int], level: float = 0.95) -> Estimate:
        """Coverage at ``ks``, each [len(ks)]; the interval is NaN for a fit without replicas.

        Such a fit goes as far as 10 n. Raises ``ValueError`` beyond: a curve that nothing checks any more must not stand alone.
        """
        k = grid(ks)
        value = self.law.coverage(self.parameters, k)
        if len(self.replicas):
            return Estimate(value, *percentiles(self.law.coverage(self.replicas, k), level))
        if k.max() > REACH * self.draws:
            raise ValueError(f"k={k.max()} is more than {REACH} times n={self.draws} draws: fit with repeats, for an interval")
        return Estimate(value, np.full(k.size, np.nan), np.full(k.size, np.nan))

    def estimates(self, level: float = 0.95) -> dict[str, Estimate]:
        """Each parameter by name. Raises ``ValueError`` for a fit without replicas."""
        if not len(self.replicas):
            raise ValueError("repeats=0: no interval")
        low, high = percentiles(self.replicas, level)
        return {name: Estimate(self.parameters[i], low[i], high[i]) for i, name in enumerate(self.law.names)}


class Backtest(NamedTuple):
    drawn: int
    """Draws of each problem that the law was fitted to."""
    k: int
    predicted: float
    observed: float

    @property
    def error(self) -> float:
        return self.predicted - self.observed


def fit(law: Law, n: ArrayLike, c: ArrayLike, *, repeats: int = 0, seed: int = 0) -> Fit:
    """``law`` fitted to problems with ``c`` [problems] of ``n`` draws right, and again to ``repeats`` resamples of the problems.

    Raises ``ValueError`` where a problem has fewer than 2 draws, or no draw is right: then there is no curve to follow.
    """
    total, good = (np.asarray(x, dtype=np.int64) for x in np.broadcast_arrays(n, c))
    if total.ndim != 1 or not total.size or (total < 2).any() or (good < 0).any() or (good > total).any():
        raise ValueError(f"n={n!r}, c={c!r}: each [problems], at least 2 draws, and 0 <= c <= n")
    if not good.any():
        raise ValueError(f"none of {total.sum()} draws is right: nothing to follow")
    low, high = np.array(law.low), np.array(law.high)
    height = law.height(total, good, np.ones((1, total.size)))
    ends = [_climb(height, np.clip(start, low, high)[None], low, high) for start in law.starts(total, good)]
    found = max(ends, key=lambda end: float(height(end)[0]))[0]
    replicas = np.empty((0, len(law.names)))
    if repeats:
        # From the fit itself, but off the bounds, where a likelihood is flat and nothing would move.
        margin = (high - low) / 20
        start = np.tile(np.clip(found, low + margin, high - margin), (repeats, 1))
        again = law.height(total, good, resamples(total.size, repeats, seed).astype(np.float64))
        replicas = law.natural(_climb(again, start, low, high))
    return Fit(law, int(total.min()), law.natural(found), replicas)


def backtest(law: Law, n: ArrayLike, c: ArrayLike, *, seed: int = 0) -> Backtest:
    """Fitted to an eighth of the draws, chosen at random, and held against coverage at k = the fewest draws of a problem.

    Raises ``ValueError`` for fewer than 16 draws, and where the eighth has no right draw.
    """
    total, good = (np.asarray(x, dtype=np.int64) for x in np.broadcast_arrays(n, c))
    k = int(total.min())
    if (some := k // 8) < 2:
        raise ValueError(f"n={k} draws: at least 16")
    kept = np.random.default_rng(seed).hypergeometric(good, total - good, some)
    observed = pass_at_k(total, good, [k]).mean()
    return Backtest(some, k, float(fit(law, np.full(total.shape, some), kept).predict([k]).value[0]), float(observed))


def _climb(height: Height, start: Floats, low: Floats, high: Floats, step: float = 3e-3) -> Floats:
    """Where ``height`` ([repeats, d] to [repeats]) is greatest near each row of ``start``, within the bounds.

    Newton's method by central differences. Curvatures count by size, so that every step goes up, and are damped where one fails.
    """
    at, size = start.copy(), start.shape[1]
    here, damping = height(at), np.full(len(at), 1e-3)
    axes = step * np.eye(size)
    for _ in range(100):
        up, down = ([height(at + sign * axis) for axis in axes] for sign in (1, -1))
        slope = np.stack([(u - d) / (2 * step) for u, d in zip(up, down, strict=True)], axis=1)
        bend = np.empty((len(at), size, size))
        for i in range(size):
            bend[:, i, i] = (up[i] + down[i] - 2 * here) / step**2
        for i, j in combinations(range(size), 2):
            both = height(at + axes[i] + axes[j]) + height(at - axes[i] - axes[j])
            bend[:, i, j] = bend[:, j, i] = (both - up[i] - down[i] - up[j] - down[j] + 2 * here) / (2 * step**2)
        values, vectors = np.linalg.eigh(bend)
        values = np.abs(values) + damping[:, None] * np.abs(values).max(axis=1, keepdims=True) + 1e-300
        move = np.einsum("rij,rj->ri", vectors, np.einsum("rji,rj->ri", vectors, slope) / values)
        new = np.clip(at + np.clip(move, -1.5, 1.5), low, high)
        there = height(new)
        better = there > here
        small = np.abs(new - at).max(axis=1) < 1e-6
        at, here = np.where(better[:, None], new, at), np.where(better, there, here)
        damping = np.where(better, np.maximum(damping / 10, 1e-9), damping * 10)
        if (small | (damping > 1e6)).all():
            break
    return at
