"""Draft trees: tokens proposed behind a row's last token, from one source or several, under one budget of nodes.

A node's score estimates the probability that verification reaches and accepts it, so it is at most its parent's, and the
best nodes of a tree are a tree. Host only. Not here: who proposes (the sources), who decides (``acceptance.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from ..backend.decoder import Draft
from ..kernels.views import TREE_LIMIT


@dataclass(slots=True)
class Tree:
    """Nodes in an order in which parents come first, often best first."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """Of each node: 0 for the root (the row's last token, which is no node), ``j`` for the ``j``-th node, counted from 1."""
    scores: list[float] = field(default_factory=list)
    """Of each node: the estimated probability of its whole path."""
    sources: list[int] = field(default_factory=list)
    """Of each node: a bit for each source that proposed it."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def chain(cls, ids: Sequence[int], scores: Sequence[float], source: int = 1) -> Tree:
        """One path."""
        return cls(list(ids), list(range(len(ids))), list(scores), [source] * len(ids))

    def add(self, token: int, parent: int, score: float, source: int = 1) -> int:
        """Append a node; returns its number, counted from 1."""
        self.ids.append(token)
        self.parents.append(parent)
        self.scores.append(score)
        self.sources.append(source)
        return len(self.ids)

    @property
    def depths(self) -> list[int]:
        """Of each node, 1 for the root's children."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return depths[1:]


def merge(trees: Sequence[Tree], weights: Sequence[float] | None = None) -> Tree:
    """One tree of all paths, best first. A node that several sources propose has its best score, times its source's weight."""
    if len(trees) == 1 and weights is None:
        return trees[0]
    children: dict[tuple[int, int], int] = {}
    whole = Tree()
    for tree, weight in zip(trees, weights or [1.0] * len(trees), strict=True):
        place = [0]
        for token, parent, score, source in zip(tree.ids, tree.parents, tree.scores, tree.sources, strict=True):
            at = place[parent]
            node = children.get((at, token))
            if node is None:
                node = children[at, token] = whole.add(token, at, score * weight, source)
            else:
                whole.scores[node - 1] = max(whole.scores[node - 1], score * weight)
                whole.sources[node - 1] |= source
            place.append(node)
    return best(whole, len(whole))


def best(tree: Tree, count: int, depth: int | None = None) -> Tree:
    """The ``count`` nodes with the best scores, at most ``depth`` deep, best first.

    Without a branch a tree may be of any length; with one it has at most 64 nodes, the kernels' limit.
    """
    scores, depths = list(tree.scores), tree.depths
    for j, parent in enumerate(tree.parents):
        if parent:
            scores[j] = min(scores[j], scores[parent - 1])
    if any(parent != j for j, parent in enumerate(tree.parents)):
        count = min(count, TREE_LIMIT)
    order = sorted(range(len(tree)), key=lambda j: (-scores[j], j))
    if depth is not None:
        order = [j for j in order if depths[j] <= depth]
    order = order[: max(0, count)]
    place = [0] * (len(tree) + 1)
    for new, old in enumerate(order, 1):
        place[old + 1] = new
    return Tree(
        [tree.ids[j] for j in order], [place[tree.parents[j]] for j in order], [scores[j] for j in order],
        [tree.sources[j] for j in order],
    )  # fmt: skip


def above(tree: Tree, limit: float) -> Tree:
    """The nodes that score more than ``limit``; no node may score more than its parent."""
    place, some = [0], Tree()
    for token, parent, score, source in zip(tree.ids, tree.parents, tree.scores, tree.sources, strict=True):
        place.append(some.add(token, place[parent], score, source) if score > limit else 0)
    return some


def flatten(trees: Sequence[Tree]) -> Draft | None:
    """The engine's draft of one tree a row; None if there is no node."""
    if not any(trees):
        return None
    ids = [token for tree in trees for token in tree.ids]
    parents = [parent for tree in trees for parent in tree.parents]
    ends = [0, *accumulate(len(tree) for tree in trees)]
    return Draft(ids, parents, ends)
