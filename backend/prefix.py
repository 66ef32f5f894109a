"""The prefix tree: KV of token sequences worth finding again, shared at token granularity.

A radix tree over token ids whose edges carry slots. It may hold only plain contexts' slots, because only those are
a function of their ids. Least recently used leaves are trimmed from their ends. Not here: any policy on what to insert.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count

import numpy as np

from ..kernels.views import Ints
from .kv import KVPool


class _Node:
    __slots__ = ("children", "ids", "parent", "slots", "used")

    def __init__(self, ids: list[int], slots: Ints, parent: _Node | None) -> None:
        self.ids, self.slots, self.parent = ids, slots, parent
        self.children: dict[int, _Node] = {}
        self.used = 0


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])


class PrefixTree:
    """Which slots of ``pool`` hold the KV of which token prefix."""

    def __init__(self, pool: KVPool) -> None:
        self.pool = pool
        self._root = _Node([], np.empty(0, np.int64), None)
        self._clock = count(1)

    def match(self, ids: list[int]) -> Ints:
        """Slots of the longest known prefix of ``ids``, one per token."""
        return np.concatenate([slots for _, slots in self._walk(ids)] or [np.empty(0, np.int64)])

    def insert(self, ids: list[int], slots: Ints) -> None:
        """Remember that ``slots`` hold the KV of ``ids``. Where the prefix is known already, the known slots stay."""
        path = self._walk(ids)
        done = sum(len(s) for _, s in path)
        if done == len(ids):
            return
        node = self._root
        if path:
            node, matched = path[-1]
            if len(matched) < len(node.ids):
                node = self._split(node, len(matched))
        tail = _Node(ids[done:], slots[done:].copy(), node)
        tail.used = next(self._clock)
        self.pool.hold(tail.slots)
        node.children[tail.ids[0]] = tail

    def forget(self, ids: list[int], keep: int) -> None:
        """Let go of everything that begins with ``ids[: keep + 1]``."""
        path, at = self._walk(ids), 0
        for node, matched in path:
            if at + len(matched) > keep:
                lower = node if at == keep else self._split(node, keep - at).children[ids[keep]]
                self._remove(lower)
                return
            at += len(matched)

    def evict(self, need: int) -> int:
        """Free at least ``need`` slots if the idle ones suffice, oldest leaves first, from their ends. Returns how many."""
        freed = 0
        order = count()
        heap = [(node.used, next(order), node) for node in self._leaves()]
        heapq.heapify(heap)
        while heap and freed < need:
            _, _, leaf = heapq.heappop(heap)
            idle = self._idle_tail(leaf)
            take = min(idle, need - freed)
            if not take:
                continue
            keep = len(leaf.ids) - take
            freed += self.pool.drop(leaf.slots[keep:])
            leaf.ids, leaf.slots = leaf.ids[:keep], leaf.slots[:keep]
            if not keep:
                parent = self._unlink(leaf)
                if not parent.children and parent is not self._root:
                    heapq.heappush(heap, (parent.used, next(order), parent))
        return freed if freed >= need or not self.pool.cached else freed + self._forget_pinned()

    def _forget_pinned(self) -> int:
        """Free idle slots that stand in front of used ones: of a prefix known twice over, whose other copy is in use.

        What is behind them can no longer be found, and is freed when its users let go.
        """
        freed, stack = 0, list(self._root.children.values())
        while stack:
            node = stack.pop()
            if self.pool.idle_mask(node.slots).any():
                freed += self._remove(node)
            else:
                stack.extend(node.children.values())
        return freed

    def clear(self) -> None:
        """Forget everything."""
        for node in self._nodes():
            self.pool.drop(node.slots)
        self._root.children.clear()

    def _walk(self, ids: list[int]) -> list[tuple[_Node, Ints]]:
        """Nodes along ``ids`` with the matched part of their slots; only the last may be partial."""
        now, node, at, path = next(self._clock), self._root, 0, []
        while at < len(ids) and (child := node.children.get(ids[at])) is not None:
            n = common(child.ids, ids[at : at + len(child.ids)])
            child.used = now
            path.append((child, child.slots[:n]))
            if n < len(child.ids):
                break
            node, at = child, at + n
        return path

    def _split(self, node: _Node, at: int) -> _Node:
        """Cut an edge in two; returns the upper half."""
        assert node.parent is not None
        upper = _Node(node.ids[:at], node.slots[:at], node.parent)
        upper.used = node.used
        node.parent.children[upper.ids[0]] = upper
        node.ids, node.slots, node.parent = node.ids[at:], node.slots[at:], upper
        upper.children[node.ids[0]] = node
        return upper

    def _idle_tail(self, leaf: _Node) -> int:
        """How many slots at the end of a leaf no context counts on."""
        idle = self.pool.idle_mask(leaf.slots)
        return len(idle) if idle.all() else int(np.argmin(idle[::-1]))

    def _remove(self, node: _Node) -> int:
        """Drop ``node`` and all below it; how many slots that freed."""
        self._unlink(node)
        return sum(self.pool.drop(below.slots) for below in self._nodes(node))

    def _unlink(self, leaf: _Node) -> _Node:
        parent = leaf.parent
        assert parent is not None
        parent.children = {first: child for first, child in parent.children.items() if child is not leaf}
        return parent

    def _nodes(self, top: _Node | None = None) -> list[_Node]:
        """``top`` and everything below it; None: everything."""
        found, stack = [], list(self._root.children.values()) if top is None else [top]
        while stack:
            node = stack.pop()
            found.append(node)
            stack.extend(node.children.values())
        return found

    def _leaves(self) -> list[_Node]:
        return [node for node in self._nodes() if not node.children]
