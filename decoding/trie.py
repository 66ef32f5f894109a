"""The trie of "Lookahead" (arXiv 2312.12728) as an index: every window of a text is a path, with how often it was seen.

A window is the two tokens a query may have and ``branch`` more. The running text has a trie of its own and leaves nothing in
the memory's; a query is the last two tokens, or the last one where two lead to too little. A node's score is its share of
what was seen behind the query, an occurrence in the running text counting ``OWN`` times, so no score exceeds its parent's;
a quarter of a draft is kept for the running text, whatever the memory holds. Forgetting a text takes back what it counted.
A tree with more than ``squeeze`` nodes under one first token is squeezed as in the paper: counts halve, what was seen once goes;
texts forgotten later than that may take more with them than they brought.

A token costs O(``branch``) node visits when it comes and when it goes, and as many nodes at worst; ``posting.py`` is what to
use. Not here: the paper's other draft shapes (one branch, parallel branches), queries longer than two tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import final

from ..checks import once, whole
from .index import Ids, Index, Line
from .tree import Tree, best

QUERY = 2
OWN = 4.0
"""What an occurrence in the running text counts, against one in the memory."""
DEEPEST = 256
"""A token costs a node for each level."""
FLOOR = 4
"""One node in so many is kept for the running text."""


class _Node:
    __slots__ = ("children", "count")

    def __init__(self) -> None:
        self.count = 0
        self.children: dict[int, _Node] = {}


_NONE = _Node()


@final
class _Forest:
    """One trie for each first token, that token its root; ``sizes`` counts their nodes."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.roots: dict[int, _Node] = {}
        self.sizes: dict[int, int] = {}

    def add(self, ids: Sequence[int], open_ends: deque[tuple[int, _Node]]) -> None:
        """Append tokens to a text whose last windows are ``open_ends``: (first token, deepest node), oldest first."""
        roots, sizes = self.roots, self.sizes
        for token in ids:
            if len(open_ends) == self.window:
                open_ends.popleft()
            for _ in range(len(open_ends)):
                first, node = open_ends.popleft()
                child = node.children.get(token)
                if child is None:
                    child = node.children[token] = _Node()
                    sizes[first] += 1
                child.count += 1
                open_ends.append((first, child))
            root = roots.get(token)
            if root is None:
                root = roots[token] = _Node()
                sizes[token] = 1
            root.count += 1
            open_ends.append((token, root))

    def remove(self, ids: Sequence[int]) -> None:
        """Take back what ``add`` counted for a whole text."""
        for begin, first in enumerate(ids):
            above = self.roots
            for token in ids[begin : begin + self.window]:
                node = above.get(token)
                if node is None:
                    break
                node.count -= 1
                if node.count < 1:
                    del above[token]
                    self.sizes[first] -= _size(node)
                    break
                above = node.children
            if first in self.sizes and first not in self.roots:
                del self.sizes[first]

    def squeeze(self, first: int) -> None:
        """Halve the counts under a first token; what was seen once is dropped."""
        root = self.roots[first]
        stack = [root]
        while stack:
            node = stack.pop()
            node.count -= node.count // 2
            node.children = {token: child for token, child in node.children.items() if child.count > 1}
            stack += node.children.values()
        self.sizes[first] = _size(root)

    def find(self, query: Sequence[int]) -> _Node:
        """The node that a query leads to; an empty one if it leads nowhere."""
        node = self.roots.get(query[0], _NONE)
        for token in query[1:]:
            node = node.children.get(token, _NONE)
        return node


def _size(node: _Node) -> int:
    size, stack = 0, [node]
    while stack:
        node = stack.pop()
        size += 1
        stack += node.children.values()
    return size


@final
@once("branch", "squeeze")
class Trie(Index):
    """See the module. ``branch`` is how deep a draft may get."""

    def __init__(
        self, capacity: int = 1_000_000, fingerprint: str | None = None, branch: int = 12, squeeze: int = 65_536
    ) -> None:
        super().__init__(capacity, fingerprint)
        self.branch = whole("branch", branch, 1, DEEPEST)
        self.squeeze = whole("squeeze", squeeze, 1)
        self._reset()

    def open(self, prompt_ids: Sequence[int]) -> Line:
        return _Line(self, prompt_ids)

    def texts(self) -> Iterator[list[int]]:
        return (text.tolist() for text in self._kept)

    @property
    def nodes(self) -> int:
        """Of the memory's tries."""
        return sum(self.forest.sizes.values())

    def _insert(self, text: Ids) -> None:
        self._kept.append(text)
        self.forest.add(text, deque())
        for first in set(text):
            if self.forest.sizes[first] > self.squeeze:
                self.forest.squeeze(first)

    def _evict(self, length: int) -> None:
        self.forest.remove(self._kept.popleft())

    def _reset(self) -> None:
        self.forest = _Forest(QUERY + self.branch)
        self._kept: deque[Ids] = deque()


@final
class _Line(Line):
    def __init__(self, index: Trie, prompt_ids: Sequence[int]) -> None:
        self._memory = index
        self._forget()
        super().__init__(index, prompt_ids)

    def _forget(self) -> None:
        self._own = _Forest(QUERY + self._memory.branch)
        self._ends: deque[tuple[int, _Node]] = deque()

    def _learn(self, begin: int) -> None:
        self._own.add(self._ids[begin:], self._ends)

    def _grow(self, budget: int, depth: int) -> Tree:
        depth = min(depth, self._memory.branch)
        tree = Tree()
        for length in range(min(QUERY, len(self._ids) - 1), 0, -1):
            query = self._ids[-length:]
            tree = _pick(self._own.find(query), self._memory.forest.find(query), budget, depth)
            if len(tree) >= depth:
                break
        return tree


def _pick(own: _Node, memory: _Node, budget: int, depth: int) -> Tree:
    """The ``budget`` descendants that were seen most, in either trie; a share of them from the running text's own."""
    tree = Tree()
    owed = budget // FLOOR
    spare: list[tuple[float, int, int, int, int, _Node, _Node]] = []
    heap = [(-1.0, 0, 0, 0, 0, own, memory)]
    count = 0
    # What is seen only at the end of a text has no continuation: the children's sum is the honest whole.
    whole = sum(OWN * n.count for n in own.children.values()) + sum(n.count for n in memory.children.values())
    while heap or spare:
        entry = heappop(heap) if heap else spare.pop()
        score, _, token, parent, level, own, memory = entry
        if level and heap and owed >= budget - len(tree) and not own.count:
            spare.append(entry)
            continue
        node = tree.add(token, parent, -score) if level else 0
        owed -= bool(level and own.count)
        if len(tree) == budget:
            break
        if level < depth:
            for child in own.children.keys() | memory.children.keys():
                mine, theirs = own.children.get(child, _NONE), memory.children.get(child, _NONE)
                count += 1
                share = (OWN * mine.count + theirs.count) / whole
                heappush(heap, (-share, count, child, node, level + 1, mine, theirs))
    return best(tree, budget)
