"""The default index of Lookahead: hash chains over flat token arrays, drafts weighted by how much of the context matched.

Every position is linked to the one before it that ended with the same token, the same two and the same four. A draft walks
these chains from the end of the running text, in the text itself and in the memory, newest first, and takes what followed.
An occurrence weighs ``GROWTH`` to the power of how many tokens matched, and more if it is the running text's own. Paths share
their occurrences' weight; so does ``ESCAPE``, the weight of anything never seen, which loses by the same factor at every
token that went on as before. Drafts are the best paths first.

Inserting a token and evicting one are O(1), memory is O(n): four int32 a token and the chains' heads. A query looks at no
more than a few times the budget of occurrences, wherever they are. Not here: decay by age, other than that the newest
occurrences are looked at first.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import final

from .index import EDGE, Ids, Index, Line
from .tree import Tree

GROWTH = 1.5
ESCAPE = 8.0
OWN = 3.0
REACH = 16
CEILING = 0.98
LOOKS = 24
FRESH = 1.0
AGAIN = 6

_WEIGHTS = [GROWTH**m for m in range(-300, REACH + 1)]
_WEIGHTS = _WEIGHTS[300:] + _WEIGHTS[:300]


@final
class Chains:
    """Texts one behind the other, an edge before each, and where their last 1, 2 and 4 tokens came before.

    Positions in the heads are absolute; in ``ids``, ``origin`` less. ``back*`` say how far back the same tokens ended before,
    0 if never: such distances outlive what is cut off at the front.
    """

    def __init__(self, ids: Ids) -> None:
        self.ids = ids
        self.start = 0
        self.origin = 0
        self.back1 = array("i")
        self.back2 = array("i")
        self.back4 = array("i")
        self.head1: dict[int, int] = {}
        self.head2: dict[int, int] = {}
        self.head4: dict[int, int] = {}
        self.learn(0)

    def learn(self, begin: int) -> None:
        """Link the positions from ``begin`` on."""
        ids, head1, head2, head4 = self.ids, self.head1, self.head2, self.head4
        add1, add2, add4 = self.back1.append, self.back2.append, self.back4.append
        a, b, c = ([-1, -1, -1] + ids[max(0, begin - 3) : begin].tolist())[-3:]
        for at, d in enumerate(ids[begin:], begin + self.origin):
            one = two = four = 0
            if d >= 0:
                one = at - head1.get(d, at)
                head1[d] = at
                if c >= 0:
                    key = c << 31 | d
                    two = at - head2.get(key, at)
                    head2[key] = at
                    if b >= 0 and a >= 0:
                        key = hash((a, b, c, d))
                        four = at - head4.get(key, at)
                        head4[key] = at
            add1(one)
            add2(two)
            add4(four)
            a, b, c = b, c, d

    def cut(self, count: int) -> None:
        """Forget the first ``count`` positions: a text and its edge."""
        ids, end = self.ids, self.start + count
        a = b = c = -1
        for at, d in enumerate(ids[self.start : end], self.start + self.origin):
            if d >= 0:
                for head, key in ((self.head1, d), (self.head2, c << 31 | d), (self.head4, hash((a, b, c, d)))):
                    if head.get(key) == at:
                        del head[key]
            a, b, c = b, c, d
        self.start = end
        if end > len(ids) // 2:  # moving what is left costs less than what was forgotten
            for column in (ids, self.back1, self.back2, self.back4):
                del column[:end]
            self.origin += end
            self.start = 0

    def heads(self, context: Sequence[int]) -> list[int]:
        """Where the last 4, 2 and 1 tokens of a context (newest first) ended last, -1 if never."""
        d, c, b, a = [*context, -2, -2, -2][:4]
        nowhere = self.origin - 1
        return [
            self.head4.get(hash((a, b, c, d)), nowhere) - self.origin, self.head2.get(c << 31 | d, nowhere) - self.origin,
            self.head1.get(d, nowhere) - self.origin,
        ]  # fmt: skip

    def walk(self, starts: list[int], context: list[int], reach: int, looks: int) -> list[tuple[int, int]]:
        """Positions that end as the context does, and how many tokens they share with it: longest keys and newest first."""
        ids, start = self.ids, self.start
        found: list[tuple[int, int]] = []
        d, c, b, a = [*context, -2, -2, -2][:4]
        at, back, left = starts[0], self.back4, looks
        while at > start and left:
            left -= 1
            m = 4
            while m < reach and ids[at - m] == context[m]:
                m += 1
            found.append((at, m))
            step = back[at]
            if not step:
                break
            at -= step
        at, back, left = starts[1], self.back2, looks
        while at > start and left:
            left -= 1
            if ids[at - 2] != b:
                found.append((at, 2))
            elif ids[at - 3] != a:
                found.append((at, 3))
            step = back[at]
            if not step:
                break
            at -= step
        at, back, left = starts[2], self.back1, looks
        while at > start and left:
            left -= 1
            if ids[at - 1] != c:
                found.append((at, 1))
            step = back[at]
            if not step:
                break
            at -= step
        return found


@final
class Posting(Index):
    """See the module."""

    def __init__(self, capacity: int = 1_000_000, fingerprint: str | None = None) -> None:
        super().__init__(capacity, fingerprint)
        self._reset()

    def open(self, prompt_ids: Sequence[int]) -> Line:
        return _Line(self, prompt_ids)

    def texts(self) -> Iterator[list[int]]:
        begin = self.chains.start + 1
        for length in self._lengths:
            yield self.chains.ids[begin : begin + length].tolist()
            begin += length + 1

    def _insert(self, text: Ids) -> None:
        ids = self.chains.ids
        begin = len(ids)
        ids.extend(text)
        ids.append(EDGE)
        self.chains.learn(begin)

    def _evict(self, length: int) -> None:
        self.chains.cut(length + 1)

    def _reset(self) -> None:
        self.chains = Chains(array("i", (EDGE,)))


@final
class _Line(Line):
    def __init__(self, index: Posting, prompt_ids: Sequence[int]) -> None:
        self._memory = index
        super().__init__(index, prompt_ids)

    def _learn(self, begin: int) -> None:
        if begin == 1:
            self._chains = Chains(self._ids)
        else:
            self._chains.learn(begin)

    def _forget(self) -> None:
        self._chains = Chains(self._ids)

    def _grow(self, budget: int, depth: int) -> Tree:
        end = len(self._ids) - 1
        return _Growth(self._chains, self._memory.chains, end, budget, depth).tree


class _Growth:
    def __init__(self, own, memory, end, budget, depth) -> None:
        self.own, self.memory, self.end, self.depth = own, memory, end, depth
        self.runs: list[Sequence[int]] = []
        self.weights: list[float] = []
        self.keys: list[int] = []
        ids = own.ids
        context = ids[max(1, end + 1 - REACH) :].tolist()[::-1]
        group = self.find([], context, 0, LOOKS + budget // 2)
        self.tree = self.grow(group, context, budget, depth)

    def find(self, group: list[int], context: list[int], at: int, looks: int) -> list[int]:
        own, memory, end, depth, runs, weights, keys = self.own, self.memory, self.end, self.depth, self.runs, self.weights, self.keys
        known = {keys[i] for i in group}
        reach = min(REACH, len(context))
        count = len(runs)
        starts = own.heads(context)
        if starts[2] == end:
            starts = [end - back[end] if p == end and back[end] else (p if p < end else -1) for p, back in zip(starts, (own.back4, own.back2, own.back1))]
        ids = own.ids
        for place, matched in own.walk(starts, context, reach, looks):
            key = place - at
            if key in known or key < 0:
                continue
            run = ids[key + 1 : key + 1 + depth]
            if len(run) < depth:  # up to the end of the text, and from there on as if it repeated itself
                part = run[at:]
                run = (run + part * (depth // len(part) + 1))[:depth]
            runs.append(run)
            weights.append(OWN * _WEIGHTS[matched - at])
            keys.append(key)
        ids = memory.ids
        for place, matched in memory.walk(memory.heads(context), context, reach, looks):
            key = place - at
            if ~key in known or key < 0:
                continue
            runs.append(ids[key + 1 : key + 1 + depth])
            weights.append(_WEIGHTS[matched - at])
            keys.append(~key)
        return group + list(range(count, len(runs)))

    def grow(self, group: list[int], context: list[int], budget: int, depth: int) -> Tree:
        runs, weights = self.runs, self.weights
        ids: list[int] = []
        parents: list[int] = []
        scores: list[float] = []
        heap: list[tuple[float, int, int, int, int, list[int]]] = []
        node, at, score, count = 0, 0, CEILING, 0
        escapes = [ESCAPE / GROWTH**j for j in range(depth)]
        least = FRESH / budget
        while True:
            if at < depth:
                if at and score > least:
                    path = []
                    j = node
                    while j:
                        path.append(ids[j - 1])
                        j = parents[j - 1]
                    group = self.find(group, (path + context)[:REACH], at, AGAIN)
                if len(group) == 1:
                    (i,) = group
                    token = runs[i][at]
                    if token >= 0:
                        weight = weights[i]
                        count += 1
                        heappush(heap, (-score * weight / (weight + escapes[at]), count, token, node, at + 1, group))
                else:
                    groups: dict[int, list[int]] = {}
                    shares: dict[int, float] = {}
                    whole = escapes[at]
                    for i in group:
                        token = runs[i][at]
                        if token >= 0:
                            weight = weights[i]
                            whole += weight
                            if token in groups:
                                groups[token].append(i)
                                shares[token] += weight
                            else:
                                groups[token] = [i]
                                shares[token] = weight
                    rate = -score / whole
                    for token, share in shares.items():
                        count += 1
                        heappush(heap, (rate * share, count, token, node, at + 1, groups[token]))
            if len(ids) == budget or not heap:
                return Tree(ids, parents, scores, [1] * len(ids))
            score, _, token, parent, at, group = heappop(heap)
            ids.append(token)
            parents.append(parent)
            scores.append(-score)
            score = -score * CEILING
            node = len(ids)
