"""How much to draft: learnt step times and acceptance, and the draft budget that maximises expected tokens per second.

``T(q)``, the time of a step with q new tokens, is learnt from the steps themselves; so are, for each source, what a proposal
of n nodes costs, what its scores are worth at each depth, and what trees it proposed lately. A node is worth verifying while its
acceptance exceeds what its time would give elsewhere: the engine's own tokens per second. What drafting turns out to gain
overrules what was expected of it. Host only, no model. Changes speed, never text. Cost: some microseconds a step and a row.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from .tree import Tree

AGAIN = 64
"""The size to ask a source for is reckoned anew every so many steps, for each octave of rows."""
TRIED = 64
"""Rows that were drafted for until what that gained counts more than what was expected of it."""
LOSS = 32
"""Tokens lost by it that count at once."""
WASTE = 0.01
"""Share of the time that sources which do not pay may cost, to see whether they still do not."""
FIRST = 8
"""Nodes asked of a source that little is known of, and trees that it takes to know more."""
SHAPES = 16
"""Proposals remembered, one a row."""
WATCHED = 4
"""Rows of a step that acceptance is learnt from, and that a source which does not pay is asked for, at most."""
SEEN = 16
"""Observations of a step's time that count: the last ones."""
SPARSE = 4
"""Once there are so many, one in so many more."""
RATE = 0.03
"""Weight of a new observation, once there are many."""
GRID: list[int] = [*range(1, 16), *(m << e for e in range(1, 10) for m in range(8, 16))]
"""Sizes that times are learnt at: all to 16, then eight an octave."""
MARGIN = 0.1
"""Drafts must promise so many tokens a row, or the noise of what is learnt would be chased."""
PRICED = 8
"""Steps for which the price of a draft's nodes stands."""
BINS = 16
"""Of scores, two an octave."""
DEPTHS = 6
"""Of depths, one an octave."""


class Mean:
    """A running mean: exact at first, exponential later."""

    __slots__ = ("count", "value")

    def __init__(self, value: float = 0.0, count: float = 0.0) -> None:
        self.value, self.count = value, count

    def add(self, x: float) -> None:
        self.count += 1
        self.value += (x - self.value) * max(RATE, 1 / self.count)


class Curve:
    """Seconds by size, learnt at the sizes of the grid: linear in between, mildly rising beyond what was seen.

    ``proportional``: below the smallest size seen it is in proportion; else as dear as that.
    """

    def __init__(self, proportional: bool = False) -> None:
        self._proportional = proportional
        self._recent: dict[int, deque[float]] = {}
        self._passed = defaultdict[int, int](int)
        self._median: dict[int, float] = {}
        self._known: dict[int, float] = {}
        self._sizes: list[int] = []

    def add(self, size: int, seconds: float) -> None:
        """One observation. What counts is the median of the last ones: the machine's hiccups are not the size's fault.

        Of a size that is well known, most are passed over: to sort them takes longer than they are worth.
        """
        at = _near(size)
        recent = self._recent.get(at)
        if recent is not None and len(recent) == SEEN:
            self._passed[at] += 1
            if self._passed[at] % SPARSE:
                return
        if recent is None:
            hopeful = self(at)  # or one unlucky first try would be the last
            recent = self._recent[at] = deque([hopeful] if hopeful else [], maxlen=SEEN)
            self._sizes = sorted(self._recent)
        recent.append(seconds)
        self._median[at] = sorted(recent)[(len(recent) - 1) // 2]
        least = math.inf
        for other in reversed(self._sizes):  # more tokens take no less time, whatever was seen
            least = self._known[other] = min(least, self._median[other])

    def seen(self, size: int) -> int:
        """How much is known of such a size, up to ``SEEN``."""
        return len(self._recent.get(_near(size), ()))

    @property
    def smallest(self) -> int:
        """The smallest size seen, 0 if there is none."""
        return self._sizes[0] if self._sizes else 0

    @property
    def largest(self) -> int:
        """The largest size seen."""
        return self._sizes[-1] if self._sizes else 0

    def __call__(self, size: float) -> float:
        """Expected seconds, 0 while nothing is known."""
        sizes, known = self._sizes, self._known
        if not sizes:
            return 0.0
        at = bisect_left(sizes, size)
        if at == len(sizes):
            first, last = sizes[0], sizes[-1]
            if first == last:  # hopeful, so that larger sizes are tried
                return float(known[last] * (size / last) ** 0.3)
            return known[last] + max(0.0, known[last] - known[first]) / (last - first) * (size - last)
        high = known[sizes[at]]
        if at == 0 and self._proportional:
            return float(high * size / sizes[0])
        if at == 0 or sizes[at] == size:
            return high
        low = known[sizes[at - 1]]
        return float(low + (high - low) * (size - sizes[at - 1]) / (sizes[at] - sizes[at - 1]))


class Best(NamedTuple):
    """What to ask a source for."""

    turn: int
    """When this was reckoned."""
    size: int
    """Nodes a row, 0 for none."""
    gain: float
    """Tokens a step that these bring."""
    least: float
    """Nodes that score below this do not pay."""


class Record:
    """What is known of one source."""

    def __init__(self) -> None:
        self.cost = Curve(proportional=True)
        """Seconds of a proposal by its nodes, all rows together."""
        self.trees: deque[tuple[int, Tree]] = deque(maxlen=SHAPES)
        """Of the last rows: how many nodes were asked for, and what came."""
        self.turns = 0
        self.idle = 0
        """Steps since it was asked."""
        self.probing = False
        """Whether it was asked only to see whether it still does not pay: then all it has is verified."""
        self.best = Best(0, 0, 0.0, 0.0)
        """For as many rows as there are now."""
        self.known: dict[int, Best] = {}
        """By octave of rows."""
        self.late = Mean()
        """Seconds that it takes to follow a row that was not asked for before."""
        self._cells = [[Mean(2.0 ** -((i + 0.5) / 2), 4) for i in range(BINS)] for _ in range(DEPTHS)]

    def worth(self, score: float, depth: int) -> float:
        """The acceptance that nodes of such a score, so deep, turned out to have."""
        return self._cell(score, depth).value

    def score(self, worth: float) -> float:
        """The lowest score that is worth so much at some depth."""
        for at in reversed(range(BINS)):
            if max(cells[at].value for cells in self._cells) >= worth:
                return float(2.0 ** (-(at + 1) / 2))
        return 1.0

    def _cell(self, score: float, depth: int) -> Mean:
        at = min(BINS - 1, int(-2 * math.log2(score))) if score > 0 else BINS - 1
        return self._cells[min(DEPTHS, depth.bit_length()) - 1][at]

    def values(self, tree: Tree, trust: float = 1.0) -> list[float]:
        """What each node is worth; no two are equal, none is worth more than its parent."""
        values, depths, shade, cell = [1.0], [0], trust, self._cell
        for parent, score in zip(tree.parents, tree.scores, strict=True):
            depth = depths[parent] + 1
            depths.append(depth)
            value = shade * cell(score, depth).value
            above = values[parent]
            values.append(value if value < above else above)
            shade -= 1e-5 * trust
        return values[1:]

    def outlook(self) -> list[tuple[int, list[float]]]:
        """The last rows' trees, by what their nodes are worth as far as is known now, best first."""
        return [(asked, sorted(self.values(tree), reverse=True)) for asked, tree in self.trees]

    def learn(self, tree: Tree, verified: Tree, emitted: Sequence[int]) -> tuple[float, float]:
        """The target emitted ``emitted`` behind a row's root, after ``verified``; what that says of ``tree``, which was proposed.

        A node's fate is known if its parent was verified; to guess the others from what was emitted would flatter them.
        Returns (expected, accepted) tokens, of these nodes.
        """
        place = {(parent, token): j for j, (parent, token) in enumerate(zip(verified.parents, verified.ids, strict=True), 1)}
        # Of each node that was verified: as which one, its depth, and whether all of its path was emitted.
        known = {0: (0, 0, True)}
        expected = accepted = 0.0
        for node, (token, parent, score) in enumerate(zip(tree.ids, tree.parents, tree.scores, strict=True), 1):
            if parent not in known:
                continue
            at, depth, emits = known[parent]
            hit = emits and depth < len(emitted) and emitted[depth] == token
            cell = self._cell(score, depth + 1)
            if (verified_as := place.get((at, token))) is not None:
                known[node] = verified_as, depth + 1, hit
            expected += cell.value
            accepted += hit
            cell.add(hit)
        return expected, accepted


class Pace:
    """Chooses draft budgets for an engine's steps. ``sources``: how many there are; ``most``: nodes a row at most."""

    def __init__(self, sources: int, most: int) -> None:
        self.plain = Curve()
        """T(q): seconds of a step without drafts by new tokens in the call, which are its rows."""
        self._steps = defaultdict[int, Curve](Curve)
        self.records = [Record() for _ in range(sources)]
        self.most = most
        self._sizes = [size for size in (1, *(m << e for e in range(12) for m in (2, 3))) if size < most] + [most]
        self._rates = defaultdict[int, Mean](Mean)
        self._whole = defaultdict[int, Curve](Curve)
        self._gains = defaultdict[int, Mean](Mean)
        """By octave of rows: tokens that steps gained by asking sources, over what their time gives without drafts."""
        self._closed: dict[int, tuple[int, int]] = {}
        """By octave of rows: until which step nothing is drafted, and for how many the next time."""
        self._counted = 0
        self._prices: dict[tuple[int, float], dict[int, float]] = {}
        """By rows and weight: what verifying so many nodes costs, in tokens; forgotten every so many steps."""

    def rate(self, rows: int) -> float:
        """Tokens per second that can be had in steps of so many rows: what was lately, and no less than without drafts."""
        known, plain = self._rates.get(_near(rows)), rows / (self.plain(rows) or 1.0)
        return max(1 / known.value, plain) if known else plain

    def count(self, rows: int, called: int, emitted: int, seconds: float, asking: float) -> None:
        """A step of ``rows`` rows and ``called`` new tokens in the call is over; proposals took ``asking`` seconds more."""
        self._counted += 1
        if self._counted % PRICED == 0:
            self._prices.clear()
        (self.step(rows) if called > rows else self.plain).add(called, seconds)
        self._rates[_near(rows)].add((seconds + asking) / emitted)
        if asking and not any(record.probing for record in self.records):
            whole = self._whole[rows.bit_length()]
            whole.add(called, seconds + asking)
            spent = min(seconds + asking, 2 * whole(called))  # hiccups do not count
            self._gains[rows.bit_length()].add(emitted - spent * rows / (self.plain(rows) or seconds))

    def step(self, rows: int) -> Curve:
        """T(q) with drafts, proposals left out, for about so many rows: q tokens of many rows take longer than of few."""
        return self._steps[rows.bit_length()]

    def time(self, rows: int, tokens: float) -> float:
        """Expected seconds of a step of ``rows`` rows with drafts and so many new tokens."""
        step = self.step(rows)
        least = step.smallest
        if not least:
            return self.plain(tokens)
        if tokens > (most := step.largest):  # beyond what was seen, no cheaper than the same tokens without drafts
            return max(step(tokens), step(most) + self.plain(tokens) - self.plain(most))
        if tokens >= least:
            return step(tokens)
        return self.plain(tokens) + max(0.0, step(least) - self.plain(least))

    def plan(self, source: int, rows: int) -> int:
        """Nodes a row to ask of ``source`` in a step of ``rows`` rows; 0 when it does not pay."""
        record = self.records[source]
        record.probing = False
        if self.plain.seen(rows) < 3:
            return 0  # plain steps first, to compare with
        if len(record.trees) < FIRST:
            record.probing = True
            return min(FIRST, self.most)
        record.turns += 1
        if self._loses(rows):  # whatever was expected
            return 0
        known = record.known.get(rows.bit_length())
        if known is None or record.turns >= known.turn + AGAIN:
            known = Best(record.turns, *self._size(record, rows), self._least(record, rows))
            record.known[rows.bit_length()] = known
        record.best = known
        record.idle += 1
        if not known.size:
            nodes, watched = min(FIRST, self.most), min(rows, WATCHED)
            some = nodes * watched
            price = record.cost(some) + watched * record.late.value + self.time(rows, rows + some) - self.plain(rows)
            if record.idle * self.plain(rows) * WASTE < price * len(self.records):
                return 0
            record.probing = True
        elif record.turns % AGAIN == AGAIN // 2:  # is more worth it, or less?
            at = self._sizes.index(known.size) + (-1 if record.turns // AGAIN % 2 else 1)
            nodes = self._sizes[min(max(at, 0), len(self._sizes) - 1)]
        else:
            nodes = known.size
        record.idle = 0
        return nodes

    def _loses(self, rows: int) -> bool:
        """Whether drafts turned out to lose; they get another chance, each time after twice as many steps."""
        octave = rows.bit_length()
        gain, (until, wait) = self._gains.get(octave), self._closed.get(octave, (0, AGAIN))
        if gain is not None and gain.count > 1:
            tried = gain.count * rows >= TRIED and gain.count > 3
            if gain.value * gain.count < -LOSS or (tried and gain.value < 0):
                until = self._counted + wait
                self._closed[octave] = until, 2 * wait
                del self._gains[octave]
            elif tried:
                self._closed.pop(octave, None)
        return self._counted < until

    def repays(self, source: int, rows: int, new: int, left: float) -> bool:
        """Whether ``new`` rows that ``source`` does not follow yet have enough tokens ``left`` each to make up for following."""
        record = self.records[source]
        steps = left / (1 + record.best.gain / rows)
        return new * record.late.value * self.rate(rows) <= record.best.gain * steps

    def _size(self, record: Record, rows: int) -> tuple[int, float]:
        """The size that gains most tokens a step, its time counted as the tokens it would give elsewhere; and these."""
        best, most, rate, outlook = 0, MARGIN * rows, self.rate(rows), record.outlook()
        for nodes in self._sizes:
            cut = [_stretch(values, asked, nodes) for asked, values in outlook]
            steps = [sorted(chain(*cut[i : i + rows]), reverse=True) for i in range(0, len(cut), rows)]
            gained = sum(self.choose(values, rows, max(1.0, rows / len(cut)))[1] for values in steps) / len(steps)
            gained -= rate * record.cost(rows * nodes)
            if gained > most:
                best, most = nodes, gained
        return best, most if best else 0.0

    def choose(self, values: Sequence[float], rows: int, weight: float = 1.0) -> tuple[int, float]:
        """How many of all rows' nodes to verify, best first, and the tokens gained by it.

        ``values``: their acceptance, descending: calibrated, and times how much more or less than expected was accepted of
        the row's drafts lately. ``weight``: how many nodes each stands for.
        """
        prices = self._prices.setdefault((rows, weight), {})
        largest = max(self.step(rows).largest, self.plain.largest)
        last = min(len(values), int(max(4, 2 * largest - rows) / weight))  # no leap into the unknown
        best, most, total = 0, MARGIN * rows, 0.0
        for k, value in enumerate(values[:last], 1):
            total += value
            if k == last or k + rows in _ON_GRID:
                price = prices.get(k)
                if price is None:
                    price = prices[k] = self.rate(rows) * (self.time(rows, rows + weight * k) - self.plain(rows))
                if weight * total - price > most:
                    best, most = k, weight * total - price
        return best, most if best else 0.0

    def floor(self, source: int) -> float:
        """The score below which nodes of ``source`` do not pay, as things stood when its size was last reckoned."""
        record = self.records[source]
        return 0.0 if record.probing else record.best.least

    def _least(self, record: Record, rows: int) -> float:
        """The score of a node that is worth what it costs to propose and to verify."""
        some = FIRST // 2
        verified = self.time(rows, rows * (1 + 2 * some)) - self.time(rows, rows * (1 + some))
        price = (verified + record.cost(rows * 2 * some) - record.cost(rows * some)) / (rows * some)
        return record.score(self.rate(rows) * price)


def _stretch(values: list[float], asked: int, nodes: int) -> list[float]:
    """The best ``nodes`` of ``values``; where no more than those ``asked`` for came, they go on falling as they did."""
    more = nodes - asked if len(values) == asked else 0
    return values[:nodes] + [values[-1] * values[-1] ** (i / asked) for i in range(1, more + 1)]


def _near(size: float) -> int:
    at: int = min(bisect_left(GRID, size), len(GRID) - 1)
    return GRID[at - 1] if at and size - GRID[at - 1] < GRID[at] - size else GRID[at]


_ON_GRID = frozenset(GRID)
