"""What k draws would have brought, estimated from n >= k: pass@k, pass^k, best-of-k, vote@k and first accept, problem by problem.

Each is the mean over all subsets of k draws: exact, but for votes, which are seeded Monte Carlo. After Chen et al. (arXiv
2107.03374) and Brown et al. (2407.21787). Not here: means over problems and their intervals (bootstrap.py).

Draws come as tables [problems, draws] of 1 (right), 0 (wrong) and NaN (truth unknown, or no such draw); ``None`` reads as NaN.
A NaN draw counts nowhere. Results are [problems, len(ks)], NaN where a problem has fewer than k draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_lgamma = np.vectorize(math.lgamma, otypes=[np.float64])


def log_gamma(x: ArrayLike) -> Floats:
    """log Γ(x), element by element, for x > 0."""
    return np.asarray(_lgamma(x), dtype=np.float64)


def table(values: ArrayLike, name: str = "right") -> Floats:
    """``values`` as floats [problems, draws]. Raises ``ValueError`` for another shape, or anything but 0, 1 and NaN."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 2:
        raise ValueError(f"{name}: shape {found.shape}, not [problems, draws]")
    if (odd := found[~(np.isnan(found) | (found == 0) | (found == 1))]).size:
        raise ValueError(f"{name}: {odd[0]} is neither 0, 1 nor NaN")
    return found


def counts(right: ArrayLike) -> tuple[Ints, Ints]:
    """(n, c): of each problem, the draws whose truth is known, and those that are right."""
    found = table(right)
    return (~np.isnan(found)).sum(axis=1), np.nansum(found, axis=1).astype(np.int64)


def grid(ks: Sequence[int]) -> Ints:
    """``ks`` as an array. Raises ``ValueError`` unless it is a sequence of whole numbers of at least 1."""
    found = np.asarray(ks)
    if found.ndim != 1 or found.dtype.kind not in "iu" or (found < 1).any():
        raise ValueError(f"k={ks}: whole numbers of at least 1")
    return found.astype(np.int64)


def pass_at_k(n: ArrayLike, c: ArrayLike, ks: Sequence[int]) -> Floats:
    """The chance that at least one of k draws is right: 1 - C(n-c, k) / C(n, k), for n draws of which c are right.

    ``n`` and ``c``: a number or [problems]; absolute error below 1e-10 for n up to 10,000. Raises ``ValueError`` unless
    0 <= c <= n.
    """
    total, good = _drawn(n, c)
    return 0.0 - np.expm1(_log_all_among(total - good, total, grid(ks)))


def pass_hat_k(n: ArrayLike, c: ArrayLike, ks: Sequence[int]) -> Floats:
    """The chance that all of k draws are right: C(c, k) / C(n, k). Shapes and errors as :func:`pass_at_k`."""
    total, good = _drawn(n, c)
    return np.exp(_log_all_among(good, total, grid(ks)))


def _drawn(n: ArrayLike, c: ArrayLike) -> tuple[Ints, Ints]:
    total, good = np.broadcast_arrays(np.atleast_1d(n), np.atleast_1d(c))
    if (bad := (good < 0) | (good > total)).any():
        raise ValueError(f"{good[bad][0]} right of {total[bad][0]} draws")
    return total.astype(np.int64)[:, None], good.astype(np.int64)[:, None]


def _log_all_among(part: Ints, whole: Ints, k: Ints) -> Floats:
    """log of C(part, k) / C(whole, k): -inf where k > part, NaN where k > whole. The arguments broadcast."""
    # In pairs that are equal when part == whole, so that certainty comes out exactly.
    log = (log_gamma(part + 1) - log_gamma(whole + 1)) + (
        log_gamma(np.maximum(whole - k, 0) + 1) - log_gamma(np.maximum(part - k, 0) + 1)
    )
    return np.where(k > whole, np.nan, np.where(k > part, -np.inf, np.minimum(log, 0.0)))


def best_of_k(right: ArrayLike, scores: ArrayLike, ks: Sequence[int]) -> Floats:
    """The chance that the best-scored of k draws is right; among equal scores one is taken at random.

    ``scores`` [problems, draws]; a draw with score NaN is taken only where no draw of the k has one, and then at random.
    """
    truth, given, k = table(right), np.asarray(scores, dtype=np.float64), grid(ks)
    _same_shape(truth, scores=given)
    out = np.full((len(truth), k.size), np.nan)
    for row, known in enumerate(~np.isnan(truth)):
        if not (n := int(known.sum())):
            continue
        y, score = truth[row, known], given[row, known]
        block = np.unique(-score, return_inverse=True)[1]  # best first, all NaN last and equal
        size = np.bincount(block)
        worse = np.exp(_log_all_among((n - size.cumsum())[:, None], np.asarray(n), k))  # that all k come after this block
        best = np.vstack([np.ones(k.size), worse[:-1]]) - worse
        out[row] = np.bincount(block, weights=y) / size @ best
    return out


def vote_at_k(
    answers: ArrayLike, right: ArrayLike, ks: Sequence[int], *,
    weights: ArrayLike | None = None, subsets: int = 200, seed: int = 0,
) -> Floats:  # fmt: skip
    """The chance that the answer with most votes among k draws is right; a tie counts as its answers do on average.

    ``answers`` [problems, draws]: whole numbers that equal answers of a problem share, below 0 for a draw without one, which does
    not vote. ``weights`` [problems, draws]: votes count that much, NaN as 0. They may not be negative (``ValueError``): in a sum
    of raw rewards an answer would win by being rare, so map them to what is positive first. An answer whose draws are judged
    differently is as right as they are on average. No vote at all is not right.

    Monte Carlo over ``subsets`` subsets without replacement; a problem's value depends on its row and on nothing in other rows.
    The spread over subsets is no interval for another sample of draws.
    """
    truth, labels, k = table(right), np.asarray(answers), grid(ks)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"answers: {labels.dtype}, not whole numbers")
    worth = np.ones_like(truth) if weights is None else np.asarray(weights, dtype=np.float64)
    worth = np.where(np.isnan(worth), 0.0, worth)
    _same_shape(truth, answers=labels, weights=worth)
    if (bad := worth[(worth < 0) | np.isinf(worth)]).size:
        raise ValueError(f"weights: {bad[0]}; a vote counts from 0 to a finite number")
    if subsets < 1:
        raise ValueError(f"subsets={subsets}: at least 1")
    out = np.full((len(truth), k.size), np.nan)
    for row, known in enumerate(~np.isnan(truth)):
        n = int(known.sum())
        names, member = np.unique(labels[row, known], return_inverse=True)
        share = np.bincount(member, weights=truth[row, known]) / np.bincount(member)
        order = np.random.default_rng((seed, row)).permuted(np.tile(np.arange(n), (subsets, 1)), axis=1)
        for column, size in enumerate(k):
            if size <= n:
                out[row, column] = _vote(member[order[:, :size]], worth[row, known][order[:, :size]], names >= 0, share)
    return out


def _vote(member: Ints, worth: Floats, votes: NDArray[np.bool_], share: Floats) -> float:
    """Mean over subsets: ``member`` and ``worth`` [subsets, k] are each draw's class and weight, the rest is by class."""
    cell = (member + len(share) * np.arange(len(member))[:, None]).ravel()
    shape, cells = (len(member), len(share)), len(member) * len(share)
    there = (np.bincount(cell, minlength=cells).reshape(shape) > 0) & votes
    total = np.where(there, np.bincount(cell, weights=worth.ravel(), minlength=cells).reshape(shape), -1.0)
    # Equal up to the rounding of sums that were added in another order. Where nobody votes, no -1 is tied.
    tied = total >= total.max(axis=1, keepdims=True) * (1 - 1e-9)
    return float(np.mean((tied @ share) / np.maximum(tied.sum(axis=1), 1)))


class FirstAccept(NamedTuple):
    """Drawing until a verifier accepts or k draws are made; each [problems, len(ks)]."""

    answered: Floats
    """The chance that a draw is accepted."""
    right: Floats
    """The chance that a draw is accepted and the first such is right."""
    draws: Floats
    """The number of draws made, on average."""


def first_accept(accepted: ArrayLike, right: ArrayLike, ks: Sequence[int]) -> FirstAccept:
    """Exact over all orders of a problem's draws, from a table of what the verifier accepted beside what is right.

    ``accepted`` [problems, draws]: NaN, where the verifier has no opinion, is not accepted. Where nobody knows whether a rejected
    draw is right, 0 or 1 does as well: only NaN in ``right`` drops a draw.
    """
    truth, word, k = table(right), table(accepted, "accepted"), grid(ks)
    _same_shape(truth, accepted=word)
    n = (~np.isnan(truth)).sum(axis=1)
    passed = (word == 1) & ~np.isnan(truth)
    a, good = passed.sum(axis=1), (passed & (truth == 1)).sum(axis=1)
    answered = pass_at_k(n, a, ks)
    # Sum over j < k of the chance C(n-a, j) / C(n, j) that j draws are all rejected, by the hockey-stick identity.
    draws = ((n + 1) / (a + 1))[:, None] * pass_at_k(n + 1, a + 1, ks)
    return FirstAccept(answered, answered * (good / np.maximum(a, 1))[:, None], np.where(k > n[:, None], np.nan, draws))


def _same_shape(truth: Floats, **others: NDArray[np.generic]) -> None:
    for name, other in others.items():
        if other.shape != truth.shape:
            raise ValueError(f"{name}: shape {other.shape}, but right has {truth.shape}")
