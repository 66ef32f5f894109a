"""What selection by an imperfect verifier is worth: precision and its ceiling, utility, how many draws; and solve or verify.

After Inference Scaling fLaws (arXiv 2411.17501), with formulas of our own derivation (the survival of rejections is weighted by
the prior, once), and When To Solve, When To Verify (2504.01005). Exact, but for votes and choices of verifications, which are
seeded Monte Carlo. What a false positive costs is the user's to say. Not here: intervals (bootstrap.py).

Utility is in units of one right answer: a wrong answer is worth -``loss``, none 0, and every draw costs ``cost``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..search.stopping import Kind
from .estimators import FirstAccept, Floats, best_of_k, grid, table, vote_at_k


class Ceiling(NamedTuple):
    """Accuracy with ever more draws. A problem of which no draw was accepted is wrong in ``low`` and right in ``high``."""

    low: float
    high: float


class SolveVerify(NamedTuple):
    """Accuracy over a grid of (solutions, verifications of each). Values are by problem, for bootstraps."""

    cost: Floats
    """[grid]: in solutions."""
    best: Floats
    """[problems, grid]: of the best-scored solution."""
    vote: Floats
    """[problems, grid]: of the vote weighted by scores; the plain vote where there are no verifications."""


def utility(first: FirstAccept, loss: float, cost: float = 0.0) -> Floats:
    """[problems, len(ks)]: what each problem brings on average."""
    _price(loss=loss, cost=cost)
    return first.right - loss * (first.answered - first.right) - cost * first.draws


def precision(first: FirstAccept, weights: ArrayLike | None = None) -> Floats:
    """[len(ks)]: the share of given answers that is right, over problems (``weights`` [problems]); NaN where none is given."""
    w = np.ones(len(first.right)) if weights is None else np.asarray(weights, dtype=np.float64)
    right, answered = w @ first.right, w @ first.answered
    return np.divide(right, answered, out=np.full_like(right, np.nan), where=answered != 0)


def ceiling(accepted: ArrayLike, right: ArrayLike) -> Ceiling:
    """From the tables of :func:`~.estimators.first_accept`."""
    truth = table(right)
    passed = (table(accepted, "accepted") == 1) & ~np.isnan(truth)
    a, good = passed.sum(axis=1), (passed & (truth == 1)).sum(axis=1)
    share = good / np.maximum(a, 1)
    return Ceiling(float(share.mean()), float(np.where(a == 0, 1.0, share).mean()))


def best_k(curve: ArrayLike, ks: Sequence[int]) -> int:
    """The smallest of ``ks`` with the highest utility on ``curve`` [len(ks)]; 0, abstain, where none is above 0.

    Of those asked for: a curve that still climbs at its end has no best k. NaN is never best.
    """
    values, k = np.asarray(curve, dtype=np.float64), grid(ks)
    if values.shape != k.shape:
        raise ValueError(f"curve: shape {values.shape} for {k.size} values of k")
    values = np.where(np.isnan(values), -np.inf, values)
    top = values.max(initial=0.0)
    return int(k[values == top].min()) if top > 0 else 0


def expected(kinds: Sequence[Kind], ks: Sequence[int]) -> FirstAccept:
    """The same curves for a model of the problems, each [len(kinds), len(ks)]; the mean over kinds goes by their ``weight``."""
    k = grid(ks)
    a = np.array([kind.accept for kind in kinds])[:, None]
    q = np.array([kind.right * kind.completeness for kind in kinds])[:, None]
    sure = a == 1
    answered = np.where(sure, 1.0, -np.expm1(k * np.log1p(-np.where(sure, 0.0, a))))
    draws = np.where(a > 0, answered / np.where(a > 0, a, 1.0), k)
    return FirstAccept(answered, q * draws, draws)


def two_kinds_best_k(first: Kind, second: Kind, loss: float, cost: float = 0.0) -> int:
    """Best number of draws in closed form for two kinds, ``first`` accepted more often and worth drawing for; 0 where neither is.

    Raises ``ValueError`` where more draws are always better, or where it is the seldom accepted kind that is worth drawing for:
    then utility falls before it climbs.
    """
    _price(loss=loss, cost=cost)
    one, two = first.margin(loss, cost), second.margin(loss, cost)
    if one <= 0 and two <= 0:
        return 0
    if not (one > 0 > two and 1 > first.accept > second.accept):
        raise ValueError(f"margins {one:.3g}, {two:.3g}, accepted {first.accept:.3g}, {second.accept:.3g}: no closed form")
    if not first.weight * second.weight:
        raise ValueError(f"weights {first.weight}, {second.weight}: both more than 0")
    turn = math.log(first.weight * one / (second.weight * -two)) / math.log((1 - second.accept) / (1 - first.accept))
    return max(0, math.ceil(turn))


def equal_cost(budget: float, price: float, verifications: Sequence[int]) -> list[tuple[int, int]]:
    """(solutions, verifications of each) for each of ``verifications``: as many solutions as ``budget`` solutions pay for.

    ``price``: tokens of a verification over tokens of a solution. Left out is what does not pay for one solution.
    """
    _price(price=price)
    pairs = [(math.floor(budget / (1 + price * v) * (1 + 1e-12)), v) for v in verifications]
    return [(s, v) for s, v in pairs if s]


def solve_or_verify(
    right: ArrayLike, scores: ArrayLike, answers: ArrayLike, pairs: Sequence[tuple[int, int]], price: float, *,
    repeats: int = 16, subsets: int = 200, seed: int = 0,
) -> SolveVerify:  # fmt: skip
    """Accuracy and cost S (1 + price V) of each (S, V) of ``pairs``, S solutions with V verifications each.

    ``right`` and ``answers`` [problems, N] as for :func:`~.estimators.vote_at_k`; ``scores`` [problems, N, M]: of each
    verification, at least 0, NaN where it is missing or unreadable. A solution's score is the mean over the readable ones among V
    of its M; one without is chosen last and has no weight. Both figures are means over ``repeats`` choices of V; best is exact
    over subsets of S, the vote Monte Carlo. Raises ``ValueError`` for V > M.
    """
    truth, given = table(right), np.asarray(scores, dtype=np.float64)
    if given.ndim != 3 or given.shape[:2] != truth.shape:
        raise ValueError(f"scores: shape {given.shape}, but right has {truth.shape}")
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: at least 1")
    _price(price=price)
    many = given.shape[2]
    best, vote = np.zeros((2, len(truth), len(pairs)))
    for v in sorted({v for _, v in pairs}):
        if not 0 <= v <= many:
            raise ValueError(f"V={v}: there are {many} verifications of each solution")
        columns = [i for i, pair in enumerate(pairs) if pair[1] == v]
        sizes = [pairs[i][0] for i in columns]
        rng = np.random.default_rng((seed, v))
        times = 1 if v in (0, many) else repeats
        for time in range(times):
            chosen = given if v == many else rng.permuted(given, axis=2)[:, :, :v]
            readable = (~np.isnan(chosen)).sum(axis=2)
            score = np.divide(np.nansum(chosen, axis=2), readable, out=np.full(truth.shape, np.nan), where=readable > 0)
            best[:, columns] += best_of_k(truth, score, sizes) / times
            weights = score if v else None
            vote[:, columns] += vote_at_k(answers, truth, sizes, weights=weights, subsets=subsets, seed=seed + time) / times
    return SolveVerify(np.array([s * (1 + price * v) for s, v in pairs]), best, vote)


def _price(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: at least 0")
