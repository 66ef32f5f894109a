"""The draft budget finds what pays, and leaves what does not: in invented worlds, where a step takes as long as it is said to.

A world is a curve T(q) of step times, and sources that guess right so often and take so long. No machine's clock is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from drafting import Clock
from lab import Audited, Toy

import forethought as ft
from forethought.backend.batch import Output, TokenBatch
from forethought.backend.request import Row
from forethought.decoding import noise, speculation
from forethought.decoding.pace import AGAIN, TRIED, WATCHED, Curve, Pace, Record, _stretch
from forethought.decoding.source import Source
from forethought.decoding.speculation import Speculation
from forethought.decoding.tree import Tree, best

V = 31
Seconds = Callable[[int], float]


def truth(place: int) -> int:
    return (7 * place + place // 5) % V


# ---- worlds ----------------------------------------------------------------------------------------------------------


class Script(Toy):
    """Says what stands at each place, whatever was before: these tests are about time alone."""

    def forward(self, batch: TokenBatch) -> Output:
        self.before(batch)
        wanted = np.arange(len(batch.ids)) if batch.wanted is None else batch.wanted
        logits = torch.zeros(len(wanted), V)
        logits[range(len(wanted)), [truth(place + 1) for place in batch.positions[wanted].tolist()]] = 20.0
        return Output(logits)


class Guess(Source):
    """Chains whose tokens are right with a probability that may change as texts are written; ``claim``: what it believes."""

    def __init__(self, clock: Clock, right: Callable[[int], float], cost: Seconds, claim: float = 0.8, seed: int = 0) -> None:
        self.clock, self.right, self.cost, self.claim, self.seed = clock, right, cost, claim, seed
        self.asked: list[int] = []
        """Of each proposal: how many tokens had been written by then, prompt included, in the first row."""
        self.sizes: list[int] = []

    def propose(self, rows: Sequence[Row], nodes: int, depths: Sequence[int], floor: float) -> list[Tree]:
        self.clock.now += self.cost(nodes * len(rows))
        self.asked.append(len(rows[0].prompt) + len(rows[0].output))
        self.sizes.append(nodes)
        return [self._guess(row, min(nodes, depth)) for row, depth in zip(rows, depths, strict=True)]

    def _guess(self, row: Row, length: int) -> Tree:
        start, ids = len(row.prompt) + len(row.output), list[int]()
        for place in range(start, start + max(0, length)):
            luck = (noise.mix(self.seed, row.request.seed, row.sample, start, place) >> 11) / 2**53
            ids.append(truth(place) if luck < self.right(place) else (truth(place) + 1) % V)
        return Tree.chain(ids, [self.claim ** (k + 1) for k in range(len(ids))])


@dataclass
class Diary:
    """Steps that only decode: when each began, how far the first row was, and its new tokens."""

    begun: list[float] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def pace(self, since: int = 0, until: int = 10**9) -> float:
        """Seconds a token (of the first row) between two places."""
        some = [(t, p) for t, p in zip(self.begun, self.places, strict=True) if since <= p <= until]
        (start, first), (end, last) = some[0], some[-1]
        return (end - start) / (last - first)

    def steps(self, since: int = 0, until: int = 10**9) -> int:
        return sum(since <= p <= until for p in self.places)

    def drafted(self, since: int = 0, until: int = 10**9) -> float:
        """Mean drafted tokens a step."""
        return float(np.mean([q - 1 for q, p in zip(self.sizes, self.places, strict=True) if since <= p <= until]))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(speculation, "time", made)
    return made


def live(monkeypatch: pytest.MonkeyPatch, clock: Clock, step: Seconds, sources: list[Source], *, most: int = 16,
         rows: int = 1, tokens: int = 900) -> tuple[Diary, ft.Cost]:  # fmt: skip
    """Write ``tokens`` tokens in each of so many rows."""
    toy, diary = Script(vocabulary=V), Diary()

    def look(batch: TokenBatch) -> None:
        if all(row.logits is None for row in batch.rows) and len(batch.rows) == rows:
            first = batch.rows[0]
            diary.begun.append(clock.now)
            diary.places.append(first.context.size + 1)
            diary.sizes.append(len(first.ids))

    toy.before = look
    forward = toy.forward

    def timed(batch: TokenBatch) -> Any:
        output = forward(batch)
        clock.now += step(len(batch.ids))
        return output

    monkeypatch.setattr(toy, "forward", timed)
    prompt = [truth(0)]
    with Audited(toy, Speculation(sources, most), kv_slots=rows * (tokens + 20)) as engine:
        for sample in engine.generate(prompt, n=rows, max_tokens=tokens, seed=3):
            assert sample.token_ids == [truth(place) for place in range(1, tokens + 1)]
        return diary, engine.cost


def best_fixed(step: Seconds, cost: Seconds, right: float, most: int, rows: int = 1) -> tuple[float, int]:
    """Seconds a token of one row with the best fixed length of chains, and that length."""

    def pace(n: int) -> float:
        emitted = sum(right**k for k in range(n + 1))
        return (step(rows * (1 + n)) + (cost(rows * n) if n else 0)) / emitted

    return min((pace(n), n) for n in range(most + 1))


def flat(q: int) -> float:
    """A model that reads its weights: sixteen tokens cost what one costs, beyond that each costs more."""
    return 0.010 + 0.0005 * max(0, q - 16)


def gentle(q: int) -> float:
    return 0.010 + 0.001 * q


def steep(q: int) -> float:
    """A model that computes: a token more is a token's time more."""
    return 0.001 + 0.010 * q


def small(n: int) -> float:
    return 0.0002


def levels(n: int) -> float:
    """A draft model a tenth as slow, one forward a level."""
    return 0.001 * n


# ---- what pays -------------------------------------------------------------------------------------------------------


slow = pytest.mark.slow


@pytest.mark.parametrize("right", [0.8, pytest.param(0.6, marks=slow), pytest.param(0.95, marks=slow)])
@pytest.mark.parametrize(("step", "cost"), [(flat, small), (flat, levels), (gentle, small), (gentle, levels)],
                         ids=["flat, lookup", "flat, model", "gentle, lookup", "gentle, model"])  # fmt: skip
@pytest.mark.parametrize("claim", [0.3, 0.99], ids=["modest", "boastful"])
def test_a_good_source_is_asked_for_what_serves_best(
    step: Seconds, cost: Seconds, right: float, claim: float, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a sixth of the best fixed length, tries included, whatever the source thinks of itself."""
    source = Guess(clock, lambda place: right, cost, claim)
    diary, _ = live(monkeypatch, clock, step, [source])
    least, length = best_fixed(step, cost, right, 16)
    plain = step(1)
    assert length > 1, "this world is one where drafts pay"
    assert diary.pace(since=350) <= 1.17 * least
    assert diary.pace(since=350) < plain


@pytest.mark.parametrize("rows", [2, 8])
def test_rows_together_are_served_as_well_as_one(rows: int, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen tokens a call are free, for all rows together."""
    source = Guess(clock, lambda place: 0.8, small)
    diary, _ = live(monkeypatch, clock, flat, [source], rows=rows, tokens=500)
    least, _ = best_fixed(flat, small, 0.8, 16, rows)
    assert diary.pace(since=250) <= 1.25 * least
    assert diary.pace(since=250) < 0.75 * flat(rows)


# ---- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [flat, pytest.param(gentle, marks=slow), steep])
@pytest.mark.parametrize("cost", [small, levels, lambda n: 0.02 + 0.005 * n], ids=["cheap", "a model", "dear"])
def test_a_useless_source_costs_nearly_nothing(
    step: Seconds, cost: Seconds, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is hardly asked, unless asking is as good as free, and what it says is hardly verified."""
    source = Guess(clock, lambda place: 0.0, cost, claim=0.95)
    diary, bill = live(monkeypatch, clock, step, [source])
    assert bill.accepted == 0
    assert diary.pace(since=200) < 1.05 * step(1), "no slower than plain decoding, but for a look now and then"
    if cost(1) + step(2) - step(1) > 0.05 * step(1):
        assert sum(place > 200 for place in source.asked) < diary.steps(since=200) / 16
        assert diary.drafted(since=200) < 0.5, "mean drafted tokens a step"


def test_a_source_too_dear_for_what_it_gives_is_left(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of its tokens are right, but a token of its own takes as long as one of the target's."""
    source = Guess(clock, lambda place: 0.5, lambda n: 0.011 * n)
    diary, _ = live(monkeypatch, clock, flat, [source])
    assert diary.pace(since=300) < 1.05 * flat(1)


def test_what_costs_more_to_verify_than_it_gives_is_left(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token verified takes as long as a token written, and one of five is wrong."""
    source = Guess(clock, lambda place: 0.8, small)
    diary, _ = live(monkeypatch, clock, steep, [source], rows=4, tokens=700)
    assert diary.pace(since=250) < 1.05 * steep(4)


def test_of_two_sources_the_useless_one_is_left(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    good = Guess(clock, lambda place: 0.8, small, seed=1)
    bad = Guess(clock, lambda place: 0.0, lambda n: 0.004, claim=0.95, seed=2)
    diary, _ = live(monkeypatch, clock, flat, [bad, good])
    least, _ = best_fixed(flat, small, 0.8, 16)
    assert diary.pace(since=350) <= 1.2 * least
    steps = diary.steps(since=350)
    assert sum(place > 350 for place in bad.asked) < steps / 8
    assert sum(place > 350 for place in good.asked) > 0.9 * steps


# ---- changes ---------------------------------------------------------------------------------------------------------


def test_when_acceptance_collapses_drafts_go_down_and_come_back(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Guess(clock, lambda place: 0.0 if 1000 <= place < 2000 else 0.9, levels)
    diary, _ = live(monkeypatch, clock, flat, [source], tokens=3000)
    least, _ = best_fixed(flat, levels, 0.9, 16)
    assert diary.pace(500, 990) < 1.25 * least
    assert diary.pace(1000, 1990) < 1.15 * flat(1), "the fall itself included"
    assert diary.pace(1300, 1990) < 1.06 * flat(1)
    assert sum(1300 <= place < 2000 for place in source.asked) < diary.steps(1300, 1999) / 16
    assert diary.pace(2500, 2990) < 1.3 * least, "what pays again is found again"


def test_a_row_that_is_hard_does_not_spoil_one_that_is_easy(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the rows accept everything, half nothing: what is verified goes to the former."""

    class Torn(Guess):
        def _guess(self, row: Row, length: int) -> Tree:
            self.right = lambda place: 0.97 if row.sample % 2 else 0.0
            return super()._guess(row, length)

    source = Torn(clock, lambda place: 0.0, small, claim=0.8)
    _, bill = live(monkeypatch, clock, gentle, [source], rows=4, tokens=400)
    assert bill.accepted > 0.55 * bill.drafted


@pytest.mark.parametrize("every", [7, 40])
def test_hiccups_do_not_stick(every: int, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then a step, or a proposal, takes thirty times as long: nobody's fault, and soon forgotten."""
    count = [0]

    def step(q: int) -> float:
        count[0] += 1
        return flat(q) * (30 if count[0] % every == 0 else 1)

    def cost(n: int) -> float:
        count[0] += 1
        return small(n) * (30 if count[0] % every == 1 else 1)

    source = Guess(clock, lambda place: 0.8, cost)
    diary, _ = live(monkeypatch, clock, step, [source])
    _, length = best_fixed(flat, small, 0.8, 16)
    steps = diary.steps(since=350)
    assert sum(place > 350 for place in source.asked) > 0.9 * steps
    expected = sum(0.8**k for k in range(length + 1))
    assert (900 - 350) / steps > 0.8 * expected, "tokens a step"


def test_nothing_is_drafted_before_there_is_something_to_compare_with(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Guess(clock, lambda place: 1.0, small)
    diary, _ = live(monkeypatch, clock, flat, [source], tokens=60)
    assert diary.sizes[0] == 1
    assert source.asked[0] > 1
    assert diary.pace() < 0.6 * flat(1), "and then it is drafted soon"


def test_a_worlds_story_repeats_itself(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the invented times decides."""
    stories = []
    for _ in range(2):
        clock.now = 0.0
        source = Guess(clock, lambda place: 0.7, levels)
        diary, bill = live(monkeypatch, clock, gentle, [source], tokens=300)
        stories.append((diary, source.sizes, bill.drafted, bill.accepted))
    assert stories[0] == stories[1]


# ---- the parts -------------------------------------------------------------------------------------------------------


def test_a_curve_knows_what_it_was_told() -> None:
    curve = Curve()
    assert curve(1) == curve(100) == 0, "nothing is known"
    for _ in range(40):
        for size in (1, 4, 16, 64):
            curve.add(size, 0.01 + 0.001 * size)
    for size in (1, 4, 16, 64):
        assert curve(size) == pytest.approx(0.01 + 0.001 * size, rel=0.02)
    assert curve(10) == pytest.approx(0.02, rel=0.02), "in between it is linear"
    assert [curve(q) for q in range(1, 200)] == sorted(curve(q) for q in range(1, 200)), "more takes no less"
    assert curve(128) > curve(64)


def test_a_curve_takes_no_notice_of_hiccups_but_of_changes() -> None:
    rng, curve = np.random.default_rng(0), Curve()
    for i in range(200):
        curve.add(8, 0.010 * (1 + 0.02 * rng.random()) * (50 if i % 8 == 7 else 1))
    assert curve(8) == pytest.approx(0.010, rel=0.03)
    for _ in range(20):
        curve.add(8, 0.030)
    assert curve(8) == pytest.approx(0.030, rel=0.03), "it has become slower for good"


def test_an_unlucky_first_try_is_not_the_last_word() -> None:
    curve = Curve()
    for _ in range(10):
        curve.add(1, 0.01)
    curve.add(8, 0.5)
    assert curve(8) < 0.05
    for _ in range(16):
        curve.add(8, 0.012)
    assert curve(8) == pytest.approx(0.012)


@pytest.mark.parametrize("actual", [0.05, 0.5, 0.95])
def test_scores_become_what_they_turn_out_to_be_worth(actual: float) -> None:
    """What is expected of one node of some score; of other scores nothing is learnt."""
    record, rng, said = Record(), np.random.default_rng(1), list[float]()
    for _ in range(400):
        hit = bool(rng.random() < actual)
        tree = Tree.chain([1], [0.7])
        expected, accepted = record.learn(tree, tree, [1, 9] if hit else [2])
        assert accepted == hit
        said.append(expected)
    assert np.mean(said[200:]) == pytest.approx(actual, abs=0.06)
    other = Tree.chain([1], [0.01])
    assert record.learn(other, other, [2])[0] == Record().learn(other, other, [2])[0]


def test_only_nodes_whose_fate_is_known_are_learnt_from() -> None:
    """A tree of six, of which four were verified; the target went down one branch."""
    proposed = Tree()
    for token, parent, score in ((1, 0, 0.9), (2, 1, 0.7), (3, 2, 0.5), (4, 0, 0.3), (5, 4, 0.2), (6, 5, 0.1)):
        proposed.add(token, parent, score)
    verified = best(proposed, 4)
    assert verified.ids == [1, 2, 3, 4]
    expected, accepted = Record().learn(proposed, verified, [1, 2, 9])
    # Known: 1 and 2 (right), 3 and 4 (wrong). What stands behind a wrong one cannot be right.
    assert accepted == 2
    assert 1 < expected < 4


def test_what_stands_behind_a_wrong_token_is_wrong() -> None:
    """Even where it is what the target said in that place."""
    tree = Tree()
    for token, parent, score in ((1, 0, 0.9), (2, 0, 0.8), (3, 2, 0.7)):
        tree.add(token, parent, score)
    assert Record().learn(tree, tree, [1, 3])[1] == 1


@pytest.mark.parametrize("rows", [1, 6])
def test_what_is_verified_is_what_gains_most(rows: int) -> None:
    """Against trying every count, up to the grid that times are known on."""
    rng = np.random.default_rng(2)
    for _ in range(30):
        pace = Pace(1, 64)
        slope = float(rng.uniform(0, 0.004))
        step: Seconds = lambda q, slope=slope: 0.01 + slope * q  # noqa: E731
        for _ in range(20):
            for q in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128):
                pace.step(rows).add(q, step(q))
        values = sorted(rng.uniform(0, 1, 40).tolist(), reverse=True)
        count, gained = pace.choose(values, rows)
        per_token = pace.rate(rows)

        def gain(k: int, values: list[float] = values, per_token: float = per_token, step: Seconds = step) -> float:
            return sum(values[:k]) - per_token * (step(rows + k) - step(rows))

        most = max(gain(k) for k in range(len(values) + 1))
        assert gained == pytest.approx(gain(count), abs=0.25)
        assert gain(count) >= most - max(0.12 * most, 0.25), "the grid is coarse, and no coarser"
    assert Pace(1, 8).choose([], 1) == (0, 0.0)


def test_nodes_that_cost_more_than_they_give_are_below_the_floor() -> None:
    """A token a second without drafts; a node costs 0.3 s to propose and 0.1 s to verify, so it must be worth 0.4 tokens."""
    pace = Pace(1, 8)
    record = pace.records[0]
    assert pace.floor(0) == 0, "nothing is known, everything is tried"
    for _ in range(20):
        for nodes in range(1, 9):
            pace.step(1).add(1 + nodes, 1 + 0.1 * nodes)
            record.cost.add(nodes, 0.3 * nodes)
        pace.plain.add(1, 1.0)
        record.trees.append((8, Tree.chain(range(8), [0.9**i for i in range(1, 9)])))
    assert pace.plan(0, 1) > 0
    assert not record.probing
    assert pace.floor(0) == pytest.approx(0.4, rel=0.25), "as far as bins of half an octave tell"
    honest = pace.floor(0)
    record.probing = True
    assert pace.floor(0) == 0, "to see what they are worth, all are wanted"
    record.probing = False
    modest = Tree.chain([1], [0.15])
    for _ in range(200):  # what scores 0.15 turns out to be accepted four times of five
        record.learn(modest, modest, [1] if _ % 5 else [2])
    record.known.clear()
    pace.plan(0, 1)
    assert pace.floor(0) <= 0.15 < honest


def knowing(pace: Pace) -> None:
    """A token a second without drafts, and a source whose eight tokens are nearly free and as good as sure."""
    for _ in range(20):
        for nodes in range(1, 9):
            pace.step(1).add(1 + nodes, 1 + 0.01 * nodes)
            pace.records[0].cost.add(nodes, 0.01 * nodes)
        pace.plain.add(1, 1.0)
        pace.records[0].trees.append((8, Tree.chain(range(8), [0.9**i for i in range(1, 9)])))


def test_what_was_gained_overrules_what_was_expected() -> None:
    pace = Pace(1, 8)
    knowing(pace)
    assert pace.plan(0, 1) > 0
    for _ in range(TRIED):
        pace.count(1, 9, 1, 1.08, 0.08)  # nothing was accepted, whatever the scores say

    def asked() -> list[bool]:
        """In the next steps, of which none drafts."""
        found = []
        for _ in range(AGAIN + 1):
            found.append(pace.plan(0, 1) > 0)
            pace.count(1, 1, 1, 1.0, 0.0)
        return found

    assert asked() == [False] * AGAIN + [True], "after a while it is tried again"
    for _ in range(TRIED):
        pace.count(1, 9, 1, 1.08, 0.08)
    assert not any(asked()), "and then, as it lost again, after twice as long"
    pace = Pace(1, 8)
    knowing(pace)
    for _ in range(TRIED):
        pace.count(1, 9, 6, 1.08, 0.08)
    assert pace.plan(0, 1) > 0


def test_what_was_not_asked_for_goes_on_falling_as_the_rest_did() -> None:
    assert _stretch([0.9, 0.81], 2, 4) == pytest.approx([0.9, 0.81, 0.729, 0.6561])
    assert _stretch([0.5, 0.25], 2, 3) == pytest.approx([0.5, 0.25, 0.125])
    assert _stretch([0.9, 0.8], 4, 6) == [0.9, 0.8], "no more came, though more was asked for"
    assert _stretch([0.9, 0.8], 4, 1) == [0.9]


def test_a_source_that_little_is_known_of_is_asked_for_few_rows(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    source, deep = Guess(clock, lambda place: 0.0, small), list[int]()
    guess = source.propose

    def propose(rows: Sequence[Row], nodes: int, depths: Sequence[int], floor: float) -> list[Tree]:
        deep.append(sum(depth > 0 for depth in depths))
        return guess(rows, nodes, depths, floor)

    monkeypatch.setattr(source, "propose", propose)
    live(monkeypatch, clock, flat, [source], rows=12, tokens=60)
    assert deep
    assert max(deep[:2]) == WATCHED


def test_tokens_of_many_rows_take_longer_than_of_few() -> None:
    """As they do: what is learnt with two rows says nothing of thirty."""
    pace = Pace(1, 16)
    for _ in range(10):
        pace.count(2, 2, 2, 1.0, 0.0)
        pace.count(30, 30, 30, 3.0, 0.0)
        pace.count(2, 32, 4, 1.5, 0.0)
        pace.count(30, 60, 32, 8.0, 0.0)
    assert pace.time(2, 32) == pytest.approx(1.5)
    assert pace.time(30, 60) == pytest.approx(8.0)
    assert pace.time(30, 32) > 3.0
