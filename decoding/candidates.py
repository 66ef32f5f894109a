"""Which tokens can be drawn, and which one is, without sorting a vocabulary or hashing all of it: the draw on a CPU.

Exact: the tokens that ``sampling.filter_scores`` leaves, the best of log-probability plus noise among them. Top-p looks at the
tokens near the best one, and at more where these do not hold enough of the mass. Without filters a token far below the best
needs noise that few hashes give: the hash alone says whether it can win.

Cost: one or two passes over a row while it is in the cache. Every row is computed by itself, so what is drawn from it depends
on no other. Not here: penalties and bias, greedy rows, rows without a finite score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backend.request import Sampling
from . import noise

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BLOCK = 1 << 17
"""Scores worked on at once: what stays in a core's cache."""
DEPTHS = (6.0, 14.0, np.inf)
"""How far below the best score (divided by temperature) tokens are looked at, in turn, until they are enough."""
SMALL = 1 << 12
"""Scores so few that looking at some of them saves nothing."""
PROBES = 256
"""Tokens whose noise says how good the best one is at least."""


@dataclass(slots=True)
class Entries:
    """Some tokens of some rows, grouped by row."""

    rows: Ints
    """[M] ascending"""
    tokens: Ints
    """[M]"""
    scores: Floats
    """[M] scores over temperature, less the best of the row"""

    def bounds(self, rows: int) -> Ints:
        """[rows + 1]: where each row's entries begin."""
        return np.searchsorted(self.rows, np.arange(rows + 1))


class Settings:
    """Filters and temperatures of rows, each an array [N]."""

    def __init__(self, temperature: Floats, top_k: Ints, top_p: Floats, min_p: Floats) -> None:
        """``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off."""
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.kind = np.where(top_p < 1, _NUCLEUS, np.where((top_k > 0) | (min_p > 0), _CUT, _FREE))

    @classmethod
    def of(cls, sampling: Sequence[Sampling], temperature: float | None = None) -> Settings:
        """``temperature``: one for all in place of their own."""
        return cls(
            np.array([s.temperature if temperature is None else temperature for s in sampling]),
            np.array([s.top_k for s in sampling]), np.array([s.top_p for s in sampling]), np.array([s.min_p for s in sampling]),
        )  # fmt: skip

    def __getitem__(self, rows: slice | Ints) -> Settings:
        return Settings(self.temperature[rows], self.top_k[rows], self.top_p[rows], self.min_p[rows])


def kept(table: npt.NDArray[np.float32], settings: Settings) -> Entries:
    """What the filters leave of ``table`` [N, vocabulary], whose rows all have a largest finite score."""
    return _join([_kept(scaled, part, begin) for scaled, part, begin in _blocks(table, settings)])


def log_total(table: npt.NDArray[np.float32]) -> Floats:
    """log sum exp of each row of ``table`` [N, vocabulary]; NaN for one without a largest finite score."""
    total = np.empty(len(table))
    step = max(1, BLOCK // table.shape[1])
    for begin in range(0, len(table), step):
        block = table[begin : begin + step]
        best = block.max(1)
        with np.errstate(invalid="ignore"):
            total[begin : begin + step] = best + np.log(np.exp(block - best[:, None]).sum(1), dtype=np.float64)
    return total


def draw(table: npt.NDArray[np.float32], settings: Settings, keys: npt.NDArray[np.uint64], count: int = 1) -> tuple[Ints, Floats]:
    """The ``count`` tokens of each row of ``table`` [N, vocabulary] that do best under the noise of its key, best first.

    Returns tokens [N, count] and log-probabilities [N, count] of what they are drawn from; where a filter leaves fewer, token 0
    with log-probability minus infinity. Rows are not greedy and have a largest finite score.
    """
    tokens, scores, totals = _draw(table, settings, keys, count, totals=True)
    return tokens, scores - totals[:, None]


def _draw(
    table: npt.NDArray[np.float32], settings: Settings, keys: npt.NDArray[np.uint64], count: int, totals: bool
) -> tuple[Ints, Floats, Floats]:
    """Tokens, their scores over temperature less the best, and log sum exp [N] of these over the row, if ``totals``."""
    first = settings.kind[0]
    if (settings.kind == first).all():
        return _WAYS[first](table, settings, keys, count, totals)
    tokens, scores, total = np.empty((len(table), count), np.int64), np.empty((len(table), count)), np.zeros(len(table))
    for kind in np.unique(settings.kind):
        rows = np.flatnonzero(settings.kind == kind)
        tokens[rows], scores[rows], total[rows] = _WAYS[kind](table[rows], settings[rows], keys[rows], count, totals)
    return tokens, scores, total


def winners(table: npt.NDArray[np.float32], settings: Settings, keys: npt.NDArray[np.uint64]) -> Ints:
    """The first token [N] of each row of what :func:`draw` gives, without log-probabilities."""
    filters = settings.kind.any()
    if (table.size if filters else table.shape[1]) > SMALL:
        return _draw(table, settings, keys, 1, totals=False)[0][:, 0]
    scaled = _scaled(table, settings)
    tokens: Ints = _perturbed(scaled, keys).argmax(1)
    if not filters:
        return tokens
    # Who wins without filters wins with them, if they leave it; mostly they do, and to see it nothing need be sorted.
    unsure = np.flatnonzero(~_surely_kept(scaled, settings, tokens))
    if len(unsure):
        tokens[unsure] = _draw(table[unsure], settings[unsure], keys[unsure], 1, totals=False)[0][:, 0]
    return tokens


def _surely_kept(scaled: npt.NDArray[np.float32], settings: Settings, tokens: Ints) -> npt.NDArray[np.bool_]:
    """Whether the filters leave one of ``tokens`` [N] in each row beyond doubt; with all of them set there always is some."""
    score = scaled[np.arange(len(scaled)), tokens]
    better = scaled >= score[:, None]
    kept: npt.NDArray[np.bool_] = settings.top_k == 0
    if not kept.all():  # as many as itself and its equals, at most, is a place among the best
        kept |= better.sum(1) <= settings.top_k
    if settings.min_p.any():
        with np.errstate(divide="ignore"):
            kept &= score >= np.log(settings.min_p).astype(np.float32)
    nucleus = settings.top_p < 1
    if nucleus.any():
        mass = np.exp(scaled)
        before = np.where(better, mass, 0).sum(1) - np.exp(score)
        kept &= ~nucleus | (settings.top_k == 0) & (before < settings.top_p * mass.sum(1) * (1 - 1e-4))
    return kept


def _left(
    table: npt.NDArray[np.float32], settings: Settings, keys: npt.NDArray[np.uint64], count: int, totals: bool
) -> tuple[Ints, Floats, Floats]:
    """As :func:`_draw`, for rows with filters."""
    entries = kept(table, settings)
    bounds = entries.bounds(len(table))
    perturbed = entries.scores + noise.gumbel_of(_hashes(keys[entries.rows], entries.tokens))
    if count == 1:  # without a table, which one row of many tokens makes large for all
        best = np.flatnonzero(perturbed == np.maximum.reduceat(perturbed, bounds[:-1])[entries.rows])
        place = best[np.searchsorted(best, bounds[:-1])][:, None]
        found = np.ones(place.shape, np.bool_)
    else:
        padded = _padded(entries, bounds, perturbed, count)
        column = largest(padded, count)
        found = np.take_along_axis(padded, column, 1) > -np.inf
        place = np.where(found, bounds[:-1, None] + column, 0)
    mass = np.bincount(entries.rows, np.exp(entries.scores), len(table)) if totals else np.ones(len(table))
    return np.where(found, entries.tokens[place], 0), np.where(found, entries.scores[place], -np.inf), np.log(mass)


def _unfiltered(
    table: npt.NDArray[np.float32], settings: Settings, keys: npt.NDArray[np.uint64], count: int, totals: bool
) -> tuple[Ints, Floats, Floats]:
    """As :func:`_draw`, for rows without filters."""
    contenders = _all if table.shape[1] <= SMALL else _contenders
    tokens, scores, total = np.zeros((len(table), count), np.int64), np.full((len(table), count), -np.inf), np.zeros(len(table))
    some = min(count, table.shape[1])
    for scaled, _, begin in _blocks(table, settings):
        rows = slice(begin, begin + len(scaled))
        tokens[rows, :some], scores[rows, :some] = contenders(scaled, keys[rows], some)
        if totals:
            total[rows] = np.log(np.exp(scaled).sum(1), dtype=np.float64)
    return tokens, scores, total


_FREE, _CUT, _NUCLEUS = 0, 1, 2
_WAYS = {_FREE: _unfiltered, _CUT: _left, _NUCLEUS: _left}
"""What draws from rows without filters, with others than top-p, with top-p: each kind by itself, so that a sum over a row is
always taken in the same order."""


def _all(scaled: npt.NDArray[np.float32], keys: npt.NDArray[np.uint64], count: int) -> tuple[Ints, Floats]:
    """The best ``count`` tokens with noise for every one, and their scores."""
    tokens = largest(_perturbed(scaled, keys), count)
    return tokens, scaled[np.arange(len(scaled))[:, None], tokens].astype(np.float64)


def _perturbed(scaled: npt.NDArray[np.float32], keys: npt.NDArray[np.uint64]) -> Floats:
    """Every token's score with its noise."""
    perturbed: Floats = noise.gumbel_of(noise.hash_rows(keys, scaled.shape[1])) + scaled.astype(np.float64)
    return perturbed


def _contenders(scaled: npt.NDArray[np.float32], keys: npt.NDArray[np.uint64], count: int) -> tuple[Ints, Floats]:
    """The same with noise for those alone that may be among the best, of which a hash says enough."""
    tokens, scores = np.zeros((len(scaled), count), np.int64), np.full((len(scaled), count), -np.inf)
    probes = max(PROBES, count)
    for row, (mine, key) in enumerate(zip(scaled, keys, strict=True)):
        near = np.flatnonzero(mine >= -DEPTHS[0])
        some = near[:probes]
        if len(some) < count:
            some = np.argpartition(-mine, probes)[:probes]
        probed = np.sort(mine[some].astype(np.float64) + noise.gumbel_of(_hashes(key, some)))[-count]
        low, high = noise.fewer_than(np.array([probed, probed + DEPTHS[0]]))
        few = len(near) < scaled.shape[1] // 4  # else to hash them twice costs more than to look at a few more
        can = noise.lucky(int(key), scaled.shape[1], high if few else low)
        if few:
            can = np.union1d(can, near[_hashes(key, near) < low])
        perturbed = mine[can].astype(np.float64) + noise.gumbel_of(_hashes(key, can))
        tokens[row] = can[largest(perturbed[None], count)[0]]
        scores[row] = mine[tokens[row]]
    return tokens, scores


def _hashes(key: Any, tokens: Ints) -> npt.NDArray[np.uint32]:
    return noise.hashes(key, tokens.astype(np.uint64))


def _blocks(table: npt.NDArray[np.float32], settings: Settings) -> Iterator[tuple[npt.NDArray[np.float32], Settings, int]]:
    """A few rows at a time: scores over temperature less the best, their settings, and the first one's number."""
    step = max(1, BLOCK // table.shape[1])
    for begin in range(0, len(table), step):
        part = settings if step >= len(table) else settings[slice(begin, begin + step)]
        yield _scaled(table[begin : begin + step], part), part, begin


def _scaled(table: npt.NDArray[np.float32], settings: Settings) -> npt.NDArray[np.float32]:
    scaled: npt.NDArray[np.float32] = table - table.max(1, keepdims=True)
    with np.errstate(over="ignore"):  # minus infinity is as good
        scaled *= (1 / settings.temperature).astype(np.float32)[:, None]
    return scaled


def _kept(scaled: npt.NDArray[np.float32], settings: Settings, begin: int) -> Entries:
    edge = np.full(len(scaled), -np.inf)
    few = (settings.top_k > 0) & (settings.top_k < scaled.shape[1])
    for k in np.unique(settings.top_k[few]):
        rows = np.flatnonzero(settings.top_k == k)
        edge[rows] = _edge(scaled[rows], int(k))
    with np.errstate(divide="ignore"):
        floor = np.maximum(edge, np.log(settings.min_p))
    partial = settings.top_p < 1
    if not partial.any():
        found = _above(scaled, floor)
    else:
        goal = np.full(len(scaled), np.inf)
        for row in np.flatnonzero(partial):
            left = scaled[row][scaled[row] >= edge[row]] if few[row] else scaled[row]
            goal[row] = settings.top_p[row] * np.exp(left).sum()
        found = _nucleus(scaled, floor, goal)
    found.rows += begin
    return found


def _nucleus(scaled: npt.NDArray[np.float32], floor: Floats, goal: Floats) -> Entries:
    """Of each row the best tokens down to ``floor``, ties by number, until their mass reaches ``goal``; at least one."""
    waiting, done = np.arange(len(scaled)), []
    for depth in DEPTHS:
        found = _above(scaled if len(waiting) == len(scaled) else scaled[waiting], np.maximum(floor[waiting], -depth))
        found, before, whole = _ranked(found, len(waiting))
        wanted = goal[waiting]
        enough = (whole >= wanted) | (floor[waiting] >= -depth) | (depth == np.inf)
        keep = enough[found.rows] & ((before < wanted[found.rows]) | (before == 0))
        done.append(Entries(waiting[found.rows[keep]], found.tokens[keep], found.scores[keep]))
        waiting = waiting[~enough]
        if not len(waiting):
            break
    joined = _join(done)
    order = np.argsort(joined.rows, kind="stable")
    return joined if len(done) == 1 else Entries(joined.rows[order], joined.tokens[order], joined.scores[order])


def _ranked(found: Entries, rows: int) -> tuple[Entries, Floats, Floats]:
    """``found`` with each row's best first, ties by number; the mass before each entry in its row; and each row's."""
    bounds = found.bounds(rows)
    # As unsigned numbers, distances from the best sort as they do as floats; the place behind them makes the sort stable.
    order = np.abs(found.scores.astype(np.float32)).view(np.uint32).astype(np.uint64) << np.uint64(32)
    order |= np.arange(len(order), dtype=np.uint64)
    order = np.sort(_padded(found, bounds, order, fill=np.uint64(2**64 - 1)), axis=1)
    place = (order[order != np.uint64(2**64 - 1)] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    ranked = Entries(found.rows, found.tokens[place], found.scores[place])
    mass = np.exp(_padded(ranked, bounds, ranked.scores, fill=-np.inf))
    total = mass.cumsum(1)
    column = np.arange(len(place)) - bounds[found.rows]
    return ranked, np.where(column > 0, total[found.rows, column - 1], 0.0), total[:, -1]


def _edge(scaled: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.float32]:
    """The ``k``-th largest of each row."""
    rows, vocabulary = scaled.shape
    width = vocabulary // (4 * k) if vocabulary > SMALL else 0
    if width < 8:
        return np.partition(scaled, vocabulary - k, axis=1)[:, vocabulary - k]
    # The k-th largest of the maxima of blocks is no larger than the k-th largest of all.
    blocks = vocabulary // width
    maxima = scaled[:, : blocks * width].reshape(rows, blocks, width).max(2)
    least = np.partition(maxima, blocks - k, axis=1)[:, blocks - k]
    edges = np.empty(rows, np.float32)
    for row, bound in enumerate(least):
        few = scaled[row][scaled[row] >= bound]
        edges[row] = np.partition(few, len(few) - k)[len(few) - k]
    return edges


def _above(scaled: npt.NDArray[np.float32], floor: Floats) -> Entries:
    """Possible tokens of at least ``floor`` [N]."""
    floor = np.maximum(floor, -np.finfo(np.float32).max)
    return _entries(scaled, scaled >= floor.astype(np.float32)[:, None])


def _entries(scaled: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> Entries:
    flat = np.flatnonzero(mask)
    rows = flat // scaled.shape[1]
    return Entries(rows, flat - rows * scaled.shape[1], scaled.ravel()[flat].astype(np.float64))


def _padded(entries: Entries, bounds: Ints, values: npt.NDArray[Any], least: int = 1, fill: Any = -np.inf) -> npt.NDArray[Any]:
    """``values`` [M] of ``entries`` as a table with a row for each of theirs, at least so wide."""
    table = np.full((len(bounds) - 1, max(least, int((bounds[1:] - bounds[:-1]).max()))), fill, values.dtype)
    table[entries.rows, np.arange(len(values)) - bounds[entries.rows]] = values
    return table


def largest(table: npt.NDArray[Any], count: int) -> Ints:
    """Where in each row of ``table`` the ``count`` largest are, best first."""
    if count == 1:
        best: Ints = table.argmax(1)
        return best[:, None]
    if table.shape[1] > 4 * count:
        some = np.sort(np.argpartition(-table, count, axis=1)[:, : count + 1], axis=1)
        return np.take_along_axis(some, largest(np.take_along_axis(table, some, 1), count), 1)
    order: Ints = np.argsort(-table, axis=1, kind="stable")
    return order[:, :count]


def _join(parts: Sequence[Entries]) -> Entries:
    if len(parts) == 1:
        return parts[0]
    rows, tokens, scores = zip(*((part.rows, part.tokens, part.scores) for part in parts), strict=True)
    return Entries(np.concatenate(rows), np.concatenate(tokens), np.concatenate(scores))
