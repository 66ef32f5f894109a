"""How much to draft: learnt step times and acceptance, and the draft budget that maximises expected tokens per second.

``T(q)``, the time of a step with q new tokens, is learnt from the steps themselves; so are, for each source, what a proposal
of n nodes costs, what its scores are worth, and what came of proposals of that size. A node is worth verifying while its
acceptance exceeds what its time would give elsewhere: the engine's own tokens per second. Host only, no model. Changes speed,
never text. Cost: some microseconds a step and a row.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from .tree import Tree

PROBE = 32
"""A source that does not pay is tried again every so many steps."""
TRY = 16
"""Every so many proposals another size is tried."""
WATCHED = 8
"""Rows of a step that acceptance is learnt from, at most."""
RATE = 0.05
"""Weight of a new observation, once there are many."""
GRID = sorted({m << e for m in (2, 3) for e in range(12)} | {1})
"""Numbers that budgets and step sizes are rounded to: 1, 2, 3, 4, 6, 8, 12, …"""
BINS = 16


class _Mean:
    """A running mean: exact at first, exponential later."""

    __slots__ = ("count", "value")

    def __init__(self, value: float = 0.0, count: float = 0.0) -> None:
        self.value, self.count = value, count

    def add(self, x: float) -> None:
        self.count += 1
        self.value += (x - self.value) * max(RATE, 1 / self.count)


class Curve:
    """Seconds by size, learnt at the sizes of the grid: linear in between, mildly rising beyond what was seen."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}
        self._known: dict[int, float] = {}
        self._sizes: list[int] = []

    def add(self, size: int, seconds: float) -> None:
        """One observation. What counts is the lower quartile of the last ones: the machine's hiccups are not the size's fault."""
        at = _near(size)
        recent = self._recent.get(at)
        if recent is None:
            hopeful = self(at)
            recent = self._recent[at] = deque(maxlen=16)
            if hopeful:
                recent.append(hopeful)  # or one unlucky first try would be the last
            self._sizes = sorted(self._recent)
        recent.append(seconds)
        self._known[at] = sorted(recent)[len(recent) // 4]

    def __call__(self, size: float) -> float:
        """Expected seconds, 0 while nothing is known."""
        sizes, known = self._sizes, self._known
        if not sizes:
            return 0.0
        at = bisect_left(sizes, size)
        if at == len(sizes):  # hopeful, so that larger sizes are tried
            return float(known[sizes[-1]] * (size / sizes[-1]) ** 0.3)
        high = known[sizes[at]]
        if at == 0 or sizes[at] == size:
            return high
        low = known[sizes[at - 1]]
        return float(low + (high - low) * (size - sizes[at - 1]) / (sizes[at] - sizes[at - 1]))


class Record:
    """What is known of one source."""

    def __init__(self) -> None:
        self.cost = Curve()
        """Seconds of a proposal by its nodes, all rows together."""
        self.profit: dict[tuple[int, int], _Mean] = {}
        """(rows, nodes a row) -> tokens gained in a step by being asked for so much, proposal not paid."""
        self.turns = 0
        self._bins = [_Mean(2.0 ** -((i + 0.5) / 2), 4) for i in range(BINS)]

    def worth(self, score: float) -> float:
        """The acceptance that nodes of such a score turned out to have."""
        return self._bins[_bin(score)].value

    def note(self, rows: int, nodes: int, gained: float) -> None:
        """What a proposal of ``nodes`` a row led to."""
        if nodes:
            self.profit.setdefault((_near(rows), nodes), _Mean()).add(gained)

    def learn(self, tree: Tree, verified: Tree, emitted: Sequence[int]) -> tuple[float, float]:
        """The target emitted ``emitted`` behind a row's root, after ``verified``; what that says of ``tree``, which was proposed.

        A node's fate is known if its parent was verified; to guess the others from what was emitted would flatter them.
        Returns (expected, accepted) tokens, of these nodes.
        """
        place = {(parent, token): j for j, (parent, token) in enumerate(zip(verified.parents, verified.ids, strict=True), 1)}
        at: list[int] = [0]  # of each node: the verified one, or -1
        depth = [0]  # and how many tokens of its path were emitted, or -1 once it has left
        expected = accepted = 0.0
        for token, parent, score in zip(tree.ids, tree.parents, tree.scores, strict=True):
            if at[parent] < 0:
                at.append(-1)
                depth.append(-1)
                continue
            before = depth[parent]
            hit = before >= 0 and emitted[before] == token
            at.append(place.get((at[parent], token), -1))
            depth.append(before + 1 if hit else -1)
            expected += self.worth(score)
            accepted += hit
            self._bins[_bin(score)].add(hit)
        return expected, accepted


def _bin(score: float) -> int:
    return min(BINS - 1, int(-2 * math.log2(score))) if score > 0 else BINS - 1


class Pace:
    """Chooses draft budgets for an engine's steps. ``sources``: how many there are; ``most``: nodes a row at most."""

    def __init__(self, sources: int, most: int) -> None:
        self.step = Curve()
        """T(q): seconds from one proposal to the next by new tokens in the call, proposals left out."""
        self.records = [Record() for _ in range(sources)]
        self._sizes = [n for n in GRID if n < most] + [most]
        self._rates: dict[int, _Mean] = {}

    def rate(self, rows: int) -> float:
        """Tokens per second lately in steps of so many rows."""
        known = self._rates.get(_near(rows))
        return 1 / known.value if known else rows / (self.step(rows) or 1.0)

    def count(self, rows: int, tokens: int, seconds: float) -> None:
        """A step is over, proposals included."""
        self._rates.setdefault(_near(rows), _Mean()).add(seconds / tokens)

    def plan(self, source: int, rows: int) -> int:
        """Nodes a row to ask of ``source`` in a step of ``rows`` rows; 0 when it does not pay.

        Begins with the most, tries its neighbours now and then, and keeps to what has paid best.
        """
        record, near = self.records[source], _near(rows)
        if not self.step(1):
            return 0  # a plain step first, to compare with
        record.turns += 1
        rate = self.rate(rows)
        tried = {n: p.value - rate * record.cost(rows * n) for n in self._sizes if (p := record.profit.get((near, n)))}
        if not tried:
            return self._sizes[-1]
        best = max(tried, key=lambda n: tried[n])
        if tried[best] <= 0:
            return best if record.turns % PROBE == 0 else 0
        if record.turns % TRY == 0:
            at = self._sizes.index(best) + (1 if record.turns % (2 * TRY) else -1)
            return self._sizes[min(max(at, 0), len(self._sizes) - 1)]
        return best

    def choose(self, values: Sequence[float], rows: int) -> tuple[int, float]:
        """How many of all rows' nodes to verify, best first, and the tokens gained by it.

        ``values``: their acceptance, descending: calibrated, and times how much more or less than expected was accepted of
        the row's drafts lately.
        """
        rate, base = self.rate(rows), self.step(rows)
        best, most, total = 0, 0.0, 0.0
        for k, value in enumerate(values, 1):
            total += value
            if k == len(values) or k + rows in _ON_GRID:
                gained = total - rate * (self.step(rows + k) - base)
                if gained > most:
                    best, most = k, gained
        return best, most

    def floor(self, rows: int) -> float:
        """The acceptance below which no node pays, about."""
        return min(0.5, max(0.01, 0.5 * self.rate(rows) * (self.step(2 * rows) - self.step(rows)) / rows))


def _near(size: int) -> int:
    return GRID[min(bisect_left(GRID, size), len(GRID) - 1)]


_ON_GRID = frozenset(GRID)
