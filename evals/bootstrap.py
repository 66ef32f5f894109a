"""How sure a figure over problems is: percentile bootstrap over whole problems, paired differences, and McNemar's exact test.

Problems are what is resampled, so a problem's many draws never pass for independent ones, and an interval covers both the choice
of problems and the luck of the draws (arXiv 2411.00640). Approximate: too narrow for few problems (below about 30), and of no
width where all are equal; the Wilson interval (intervals.py) is there for plain proportions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .estimators import Floats, Ints


class Estimate(NamedTuple):
    """A figure and its interval, arrays of one shape; a single figure has shape ()."""

    value: Floats
    low: Floats
    high: Floats


class McNemar(NamedTuple):
    first: int
    """Problems that only the first run solved."""
    second: int
    """Problems that only the second run solved."""
    p: float
    """Two-sided: how likely a split at least as uneven is if both runs are equally good."""


@lru_cache(maxsize=4)
def resamples(problems: int, repeats: int, seed: int) -> Ints:
    """How often each problem is in each resample: [repeats, problems], every row adds up to ``problems``. Read-only."""
    for name, value in (("problems", problems), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name}={value}: at least 1")
    found = np.random.default_rng(seed).multinomial(problems, np.full(problems, 1 / problems), size=repeats)
    found.flags.writeable = False
    return found


def percentiles(samples: Floats, level: float) -> tuple[Floats, Floats]:
    """The ends of the middle ``level`` of ``samples`` [repeats, ...]; NaN where any of them is."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}: between 0 and 1")
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.asarray(low), np.asarray(high)


def interval(
    values: ArrayLike, of: Callable[[Floats], Floats] | None = None, *, level: float = 0.95, repeats: int = 2000, seed: int = 0
) -> Estimate:
    """The mean over problems of ``values`` [problems, ...] with its interval.

    ``of`` makes another figure of such means, [repeats, ...] to [repeats, ...], such as their ratio. A NaN problem makes its
    figure NaN: leaving it out would answer another question. The same seed resamples the same problems.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.ndim < 1 or not len(found):
        raise ValueError(f"values: shape {found.shape}; there must be problems")
    means = np.tensordot(resamples(len(found), repeats, seed) / len(found), found, axes=1)
    whole = found.mean(axis=0)
    if of is None:
        return Estimate(np.asarray(whole), *percentiles(means, level))
    return Estimate(np.asarray(of(whole[None])[0]), *percentiles(of(means), level))


def ratio(means: Floats) -> Floats:
    """``means`` [..., 2, m] to the ratio of the first to the second, [..., m]; NaN for 0 / 0. For :func:`interval`."""
    above, below = means[..., 0, :], means[..., 1, :]
    return np.asarray(np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0))


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, level: float = 0.95, repeats: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of ``first - second``, values [problems, ...] of two runs on the same problems in the same order.

    Far narrower than the intervals of the two where the same problems are hard for both. Raises ``ValueError`` for other shapes.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape}: two runs on the same problems")
    return interval(a - b, level=level, repeats=repeats, seed=seed)


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact test of two runs on the same problems, each [problems] of solved (1) or not (0): only those that differ count."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"shapes {a.shape} and {b.shape}: two runs on the same problems, [problems]")
    if odd := [x for run in (a, b) for x in run[(run != 0) & (run != 1)]]:
        raise ValueError(f"{odd[0]} is neither 0 nor 1")
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**n))
