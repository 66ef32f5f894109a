"""Which drafted tokens stay: the rules that leave the target's distribution exactly as it is. The only place that decides it.

``match`` takes the target's own draws and suits any draft (arXiv 2510.13161, app. B). The others weigh the target's law ``p``
against the law ``q`` that a draft was *sampled* from: ``ratio`` token by token (arXiv 2211.17192, 2302.01318), ``block`` a whole
chain at once, keeping more on average (arXiv 2403.10444), ``without_replacement`` a tree (Sequoia, arXiv 2402.12374). A draft
that was picked, not sampled (argmax, n-gram) has no ``q`` and may only meet ``match``: trying its tokens one by one would accept
no more, and judging it by a soft ``q`` is wrong, not just worse.

Exact, if ``p`` and ``q`` are the processed laws at each prefix, if whether a sampled token stays in the draft does not depend on
that token (a draft may stop *after* one), and if coins and draft draws are independent. After ``block`` no draft draw may serve a
second round, as tokens behind the end decided on it; the other rules look at none. Cost: a few passes over the vocabulary for
each node on the path (``block``: for each token); rows of nodes not reached are not read. Host only, one row of the batch a call.
Not here: processing of logits (``sampling.py``), who proposes (the sources), which KV stays (the engine).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from . import noise

Table: TypeAlias = npt.NDArray[np.floating[Any]]
Law: TypeAlias = npt.NDArray[np.float64]

TOLERANCE = 1e-4
"""How far a row's sum may be from 1: float32 over a large vocabulary. Within it, rows are normalised again."""


class Coins(ABC):
    """Where a rule's randomness comes from. All answers are independent of each other and of the draft."""

    @abstractmethod
    def accept(self, node: int, probability: float) -> bool:
        """True with this probability; asked at most once for each node, counted from 1."""

    @abstractmethod
    def draw(self, depth: int, probabilities: Law) -> int:
        """A token from ``probabilities`` [V], to stand behind ``depth`` accepted tokens; asked once, last."""


class HashCoins(Coins):
    """Coins as hashes (``noise.py``) of the sample's row, the position, and the node or token.

    A round emits at least one token, so its first position marks it: nothing is asked twice, nor shared with a draft's lane.
    """

    def __init__(self, seed: int, sample: int, row: int, position: int) -> None:
        """``position``: how many tokens the row has put out before this round."""
        if position < 0:
            raise ValueError(f"position={position}: how many tokens there are so far")
        self._coin = noise.stream(seed, sample, noise.Lane.COIN, row)
        self._residual = noise.stream(seed, sample, noise.Lane.RESIDUAL, row)
        self._position = position

    def uniform(self, node: int) -> float:
        """In (0, 1), both ends out of reach: what is sure stays sure."""
        return ((noise.mix(self._coin, self._position, node) >> 12) + 0.5) * 2.0**-52

    def accept(self, node: int, probability: float) -> bool:
        return self.uniform(node) < probability

    def draw(self, depth: int, probabilities: Law) -> int:
        possible = np.flatnonzero(probabilities)
        key = noise.keys(np.array([self._residual], np.uint64), np.array([self._position + depth], np.uint64))
        gumbel = noise.gumbel(key, torch.from_numpy(possible))[0].numpy()
        return int(possible[np.argmax(np.log(probabilities[possible]) + gumbel)])


@dataclass(frozen=True, slots=True)
class Accepted:
    """What comes of one row's draft."""

    path: list[int]
    """The nodes that stay, in order, counted from 1; the root is not among them."""
    ids: list[int]
    """The tokens emitted: those of ``path``, and one more that was not drafted, or not there."""


def match(ids: Sequence[int], parents: Sequence[int], targets: Sequence[int]) -> Accepted:
    """Follow the target's own draws as far as the tree has them; ``ids`` and ``parents`` [n] as in ``Tree``.

    ``targets`` [n + 1]: the token drawn from the target's law at the root and at each node; those off the path do not matter.
    """
    if len(ids) != len(parents):
        raise ValueError(f"{len(ids)} drafted tokens with {len(parents)} parents")
    if len(targets) != len(ids) + 1:
        raise ValueError(f"{len(targets)} target tokens for {len(ids)} drafted ones: the root and each node has one")
    at, token = 0, targets[0]
    path, emitted = list[int](), [token]
    for node, (parent, drafted) in enumerate(zip(parents, ids, strict=True), 1):
        if parent == at and drafted == token:  # of twins the first one: the second is no child of it
            at, token = node, targets[node]
            path.append(node)
            emitted.append(token)
        elif not 0 <= parent < node:
            raise _late(parent, node)
    return Accepted(path, emitted)


def ratio(ids: Sequence[int], p: Table, q: Table, coins: Coins) -> Accepted:
    """Accept each token of a chain with min(1, p/q), and draw the first that fails from (p - q)+ (arXiv 2211.17192, 2302.01318).

    ``p`` [n + 1, V] and ``q`` [n, V]: row ``i`` is the law behind ``i`` drafted tokens. Of a token, 1 - TV(p, q) is accepted.
    """
    _fit(ids, p, q, len(ids))
    return _descend(ids, [[i + 1] for i in range(len(ids))] + [[]], p, q, coins)


def without_replacement(ids: Sequence[int], parents: Sequence[int], p: Table, q: Table, coins: Coins) -> Accepted:
    """Try the children of a node in order, each against what those before it left over (Sequoia, arXiv 2402.12374).

    A node's children must have been drawn from its row of ``q`` in this order, each from what was left: the best of log q plus
    Gumbel noise, best first. ``p`` and ``q`` [n + 1, V], at the root and each node; where a node has no child, ``q`` is not read.
    """
    children = _children(ids, parents)
    _fit(ids, p, q, len(children))
    return _descend(ids, children, p, q, coins)


def block(ids: Sequence[int], p: Table, q: Table, coins: Coins) -> Accepted:
    """Decide on a chain's length as a whole (arXiv 2403.10444, algorithm 2): in expectation the most a chain can keep.

    Arguments as of :func:`ratio`. A prefix has the weight P = min(1, P of the one before * p/q), the empty one 1. What may still
    be drawn behind it is (P p - q)+, R in sum: it is where the chain ends with R / (R + 1 - P), unless a longer one is kept; the
    whole chain is kept with its P.
    """
    n = len(ids)
    _fit(ids, p, q, n)
    targets, drafts, weights = [_law("p", p, i) for i in range(n + 1)], [_law("q", q, i) for i in range(n)], [1.0]
    for i, token in enumerate(ids):
        _drawable(i + 1, token, drafts[i])
        weights.append(min(1.0, weights[i] * float(targets[i][token]) / float(drafts[i][token])))
    if n == 0 or coins.accept(n, weights[n]):
        return Accepted(list(range(1, n + 1)), [*ids, coins.draw(n, targets[n])])
    # The longest prefix whose coin falls well; asked from the end, the coins of shorter ones are not needed.
    for i in range(n - 1, 0, -1):
        rest = float(np.maximum(weights[i] * targets[i] - drafts[i], 0.0).sum())
        # Nothing to give and P = 1: a longer prefix has been kept already, but for rounding.
        if rest > 0 and coins.accept(i, rest / (rest + (1.0 - weights[i]))):
            break
    else:
        i = 0
    return Accepted(list(range(1, i + 1)), [*ids[:i], coins.draw(i, _residual(targets[i], drafts[i], weights[i]))])


def _descend(ids: Sequence[int], children: Sequence[Sequence[int]], p: Table, q: Table, coins: Coins) -> Accepted:
    node, path, emitted = 0, list[int](), list[int]()
    while True:
        target = _law("p", p, node)
        draft = _law("q", q, node) if children[node] else target
        for child in children[node]:
            token = ids[child - 1]
            _drawable(child, token, draft)
            if coins.accept(child, min(1.0, float(target[token]) / float(draft[token]))):
                path.append(child)
                emitted.append(token)
                node = child
                break
            target = _residual(target, draft)
            draft = _without(draft, token)
        else:
            return Accepted(path, [*emitted, coins.draw(len(path), target)])


def _residual(target: Law, draft: Law, weight: float = 1.0) -> Law:
    """(weight * target - draft)+, normalised. Nothing is left only where both are equal, up to rounding: then the target."""
    rest = np.maximum(weight * target - draft, 0.0)
    total = rest.sum()
    return rest / total if total > 0 else target


def _without(draft: Law, token: int) -> Law:
    """What the next sibling was drawn from; all zero when there can be none."""
    rest = draft.copy()
    rest[token] = 0.0
    return rest / (rest.sum() or 1.0)


def _law(name: str, table: Table, i: int) -> Law:
    row = np.asarray(table[i], np.float64)
    total, least = float(row.sum()), float(row.min())
    if not (abs(total - 1.0) <= TOLERANCE and least >= 0):  # not the other way round: NaN must fail
        raise ValueError(f"{name}[{i}] sums to {total:.6g}, its least value is {least:.6g}: not a distribution")
    return row / total


def _drawable(node: int, token: int, draft: Law) -> None:
    if not (0 <= token < len(draft) and draft[token] > 0):
        raise ValueError(f"node {node}: token {token} has q = 0 there, or is a sibling's: it was not drawn from q")


def _children(ids: Sequence[int], parents: Sequence[int]) -> list[list[int]]:
    """Of the root and each node, in order."""
    if len(ids) != len(parents):
        raise ValueError(f"{len(ids)} drafted tokens with {len(parents)} parents")
    children: list[list[int]] = [[] for _ in range(len(ids) + 1)]
    for node, parent in enumerate(parents, 1):
        if not 0 <= parent < node:
            raise _late(parent, node)
        children[parent].append(node)
    return children


def _late(parent: int, node: int) -> ValueError:
    return ValueError(f"node {node} has parent {parent}: a parent comes before its child, the root is 0")


def _fit(ids: Sequence[int], p: Table, q: Table | None, rows: int) -> None:
    """Shapes alone; ``rows`` of ``q``."""
    if q is None:
        raise ValueError("q=None: a draft that was not sampled from a known q may only meet match")
    if p.ndim != 2 or len(p) != len(ids) + 1 or p.shape[1] == 0:
        raise ValueError(f"p has shape {p.shape}: {len(ids)} drafted tokens need [{len(ids) + 1}, V]")
    if q.shape != (rows, p.shape[1]):
        raise ValueError(f"q has shape {q.shape}: {len(ids)} drafted tokens need {[rows, p.shape[1]]}")
