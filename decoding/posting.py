"""The default index of Lookahead: hash chains over flat token arrays, drafts weighted by how much of the context matched.

Every position is linked to the one before it that ended with the same token, the same two and the same four. A draft walks
these chains from the end of the running text, in the text itself and in the memory, newest first, and takes what followed.
An occurrence weighs ``GROWTH`` to the power of how many tokens matched, ``OWN`` times that in the running text. Paths share
their occurrences' weight with ``ESCAPE``, the weight of what was never seen, which stays while a path's occurrences grow by
``GROWTH`` a token. Best paths come first, and a likely one is looked up again, as if it had been said: what ends alike
but began otherwise joins in. A memory that matches no more tokens than the running text weighs at most ``MOST`` times as
much, however often it repeats itself.

Inserting a token and evicting one are O(1); memory is O(n): four int32 a token, and the heads of the chains. A query looks at
no more than 6 (16 + budget / 2) occurrences at first and 18 when it looks again, however much there is. The constants were
fitted to texts of a small model and to people's answers, so that scores come true on average. Not here: fitting them online.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import final

from .index import EDGE, Ids, Index, Line
from .tree import Tree

GROWTH = 1.5
ESCAPE = 6.0
OWN = 3.0
REACH = 16
"""Tokens of the context that can match."""
LOOKS = 16
"""Occurrences looked at in each chain at first; half the budget more."""
AGAIN = 3
"""The same when a path is looked up again."""
LIKELY = 4.0
"""A path is, if its score is above this over the budget."""
CEILING = 0.98
MOST = 5.0
"""The weight of the memory over that of the running text, where the memory matches no more."""
FARTHEST = 64
"""Beyond this depth nothing grows surer."""

_ESCAPES = [ESCAPE * GROWTH**-at for at in range(FARTHEST)]
_POWERS = [GROWTH**m for m in (*range(REACH + 1), *range(-FARTHEST, 0))]
_MEMORY = 1 << 32
_NO = -2
"""Equal to no token and no edge."""


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

    def walk(self, context: Sequence[int], looks: int, end: int = -1) -> list[tuple[int, int]]:
        """Positions but ``end`` that end as the context does (newest token first), and how many tokens they share with it.

        At most ``looks`` from each chain, the longest key first, newest first.
        """
        ids, start, origin, reach = self.ids, self.start, self.origin, len(context)
        d, c, b, a = context[:4] if reach > 3 else [*context, _NO, _NO, _NO][:4]
        found: list[tuple[int, int]] = []
        at, back, left = self.head4.get(hash((a, b, c, d)), origin) - origin, self.back4, looks
        if at == end:
            at -= back[at] or at
        while at > start and left:
            m = 4
            while m < reach and ids[at - m] == context[m]:
                m += 1
            found.append((at, m))
            left -= 1
            at -= back[at] or at
        at, back, left = self.head2.get(c << 31 | d, origin) - origin, self.back2, looks
        if at == end:
            at -= back[at] or at
        while at > start and left:  # what the longer key has found is not taken twice
            if ids[at - 2] != b:
                found.append((at, 2))
            elif ids[at - 3] != a:
                found.append((at, 3))
            left -= 1
            at -= back[at] or at
        at, back, left = self.head1.get(d, origin) - origin, self.back1, looks
        if at == end:
            at -= back[at] or at
        while at > start and left:
            if ids[at - 1] != c:
                found.append((at, 1))
            left -= 1
            at -= back[at] or at
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
        return _Growth(self._chains, self._memory.chains, depth).tree(budget)


@final
class _Growth:
    """One draft: occurrences and, of each, what followed (``runs``), its weight, and where it stood at the root (``keys``).

    Keys tell occurrences apart however deep they were found: positions, in the memory ``_MEMORY`` more.
    """

    def __init__(self, own: Chains, memory: Chains, depth: int) -> None:
        self.own, self.memory, self.depth = own, memory, depth
        self.end = len(own.ids) - 1
        self.runs: list[Ids] = []
        self.weights: list[float] = []
        self.keys: list[int] = []

    def tree(self, budget: int) -> Tree:
        depth, runs, weights = self.depth, self.runs, self.weights
        ids: list[int] = []
        parents: list[int] = []
        scores: list[float] = []
        context = self.own.ids[max(1, self.end + 1 - REACH) :].tolist()[::-1]
        contexts = {0: context}
        group = self.root(context, LOOKS + budget // 2)
        least = LIKELY / budget
        heap: list[tuple[float, int, int, int, int, list[int]]] = []
        node = at = count = 0
        score = CEILING
        while True:
            if at < depth:
                if at and score > least:
                    contexts[node] = context = [ids[-1], *contexts[parents[-1]][: REACH - 1]]
                    group = group + self.find(context, AGAIN, at, {self.keys[i] for i in group})
                whole = _ESCAPES[at] if at < FARTHEST else _ESCAPES[-1]
                if len(group) == 1:
                    (i,) = group
                    token = runs[i][at]
                    if token >= 0:
                        count += 1
                        heappush(heap, (-score * weights[i] / (whole + weights[i]), count, token, node, at + 1, group))
                else:
                    groups: dict[int, list[int]] = {}
                    shares: dict[int, float] = {}
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
            if not heap:
                break
            score, _, token, parent, at, group = heappop(heap)
            ids.append(token)
            parents.append(parent)
            scores.append(-score)
            score *= -CEILING
            node += 1
            if node == budget:
                break
        return Tree(ids, parents, scores, [1] * node)

    def root(self, context: list[int], looks: int) -> list[int]:
        """All that matches the text itself."""
        found = self.find(context, looks, 0, set())
        mine = sum(key < _MEMORY for key in self.keys)
        theirs = self.weights[mine:]
        if mine and theirs and max(theirs) * OWN <= max(self.weights[:mine]):
            raised = max(1.0, sum(theirs) / MOST / sum(self.weights[:mine]))
            self.weights[:mine] = [weight * raised for weight in self.weights[:mine]]
        return found

    def find(self, context: list[int], looks: int, at: int, known: set[int]) -> list[int]:
        """Take in what matches a path of ``at`` tokens but ``known`` keys; their numbers. A run starts at the root's place."""
        runs, weights, keys, depth, first = self.runs, self.weights, self.keys, self.depth, len(self.runs)
        for place, matched in self.own.walk(context, looks, self.end):
            key = place - at
            if key not in known:
                run = _cut(self.own.ids, key + 1, depth)
                if len(run) < depth:  # up to the end of the text, and from there on as if it repeated itself
                    run = (run + run[at:] * (depth // (len(run) - at) + 1))[:depth]
                runs.append(run)
                weights.append(OWN * _POWERS[max(matched - at, -FARTHEST)])
                keys.append(key)
        for place, matched in self.memory.walk(context, looks):
            key = place - at
            if key + _MEMORY not in known:
                runs.append(_cut(self.memory.ids, key + 1, depth))
                weights.append(_POWERS[max(matched - at, -FARTHEST)])
                keys.append(key + _MEMORY)
        return list(range(first, len(runs)))


def _cut(ids: Ids, begin: int, length: int) -> Ids:
    """A slice that may begin before the array does."""
    return ids[begin : begin + length] if begin >= 0 else array("i", (EDGE,)) * -begin + ids[: begin + length]
