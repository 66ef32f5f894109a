"""The posting index against what it means, written slowly: look everywhere, share weights, take the best."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from forethought.decoding.posting import (
    AGAIN,
    CEILING,
    ESCAPE,
    FARTHEST,
    GROWTH,
    LIKELY,
    LOOKS,
    MOST,
    OWN,
    REACH,
    Chains,
    Posting,
)  # fmt: skip
from forethought.decoding.tree import Tree

Place = tuple[int, int]
"""A text (0 the running one, 1, 2, … the remembered, oldest first) and a position in it."""
Group = dict[Place, tuple[float, int]]


def paths(tree: Tree) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.ids, tree.parents, strict=True):
        found.append((*found[parent], token))
    return found[1:]


def matched(text: Sequence[int], at: int, context: Sequence[int]) -> int:
    """How many tokens up to ``at`` are as at the end of the context."""
    m = 0
    while m < min(at + 1, len(context), REACH) and text[at - m] == context[-1 - m]:
        m += 1
    return m


def lookup(texts: Sequence[Sequence[int]], own: bool, context: Sequence[int], looks: int) -> dict[Place, int]:
    """Newest first, the ``looks`` last occurrences of the context's last 4, 2 and 1 tokens, and how much they match."""
    everywhere = [(t, at) for t in range(len(texts)) for at in range(len(texts[t])) if (t == 0) == own]
    if own:
        everywhere.pop()  # nothing follows the end
    ends = {place: matched(texts[place[0]], place[1], context) for place in reversed(everywhere)}
    found: dict[Place, int] = {}
    for length, below in ((4, REACH + 1), (2, 4), (1, 2)):
        some = [place for place, m in ends.items() if m >= length][:looks]
        found |= {place: ends[place] for place in some if ends[place] < below}
    return found


class Slow:
    """Scores of the paths of one draft.

    A group of occurrences: where they stood at the root, their weight there, and how deep they were found.
    """

    def __init__(self, running: Sequence[int], memory: Sequence[Sequence[int]], budget: int) -> None:
        self.texts, self.budget = [running, *memory], budget
        own, theirs = (self.find((), which, LOOKS + budget // 2) for which in (True, False))
        if own and theirs and max(w for w, _ in theirs.values()) * OWN <= max(w for w, _ in own.values()):
            raised = max(1.0, sum(w for w, _ in theirs.values()) / MOST / sum(w for w, _ in own.values()))
            own = {place: (weight * raised, 0) for place, (weight, _) in own.items()}
        self.root = own | theirs

    def find(self, path: tuple[int, ...], own: bool, looks: int) -> Group:
        depth = len(path)
        return {
            (t, at - depth): ((OWN if own else 1.0) * GROWTH ** (m - depth), depth)
            for (t, at), m in lookup(self.texts, own, [*self.texts[0], *path], looks).items()
        }

    def follows(self, place: Place, found: int, depth: int) -> int | None:
        t, at = place
        text, beyond = self.texts[t], at + 1 + depth
        while t == 0 and beyond >= len(text):  # the running text goes on as if it repeated itself
            beyond -= len(text) - 1 - (at + found)
        return text[beyond] if beyond < len(text) else None

    def children(self, path: tuple[int, ...], score: float, group: Group) -> list[tuple[float, int, Group]]:
        depth = len(path)
        if path and score * CEILING > LIKELY / self.budget:
            group = self.find(path, False, AGAIN) | self.find(path, True, AGAIN) | group
        by_token: dict[int, Group] = {}
        for place, (weight, found) in group.items():
            token = self.follows(place, found, depth)
            if token is not None:
                by_token.setdefault(token, {})[place] = weight, found
        shares = {token: sum(weight for weight, _ in some.values()) for token, some in by_token.items()}
        whole = ESCAPE * GROWTH ** -min(depth, FARTHEST - 1) + sum(shares.values())
        return [(score * CEILING * shares[token] / whole, token, some) for token, some in by_token.items()]

    def draft(self, depth: int) -> dict[tuple[int, ...], float]:
        done: dict[tuple[int, ...], float] = {}
        edge = [((token,), score, group) for score, token, group in self.children((), 1.0, self.root)]
        while edge and len(done) < self.budget:
            edge.sort(key=lambda item: -item[1])
            path, score, group = edge.pop(0)
            done[path] = score
            if len(path) < depth:
                edge += [((*path, token), s, g) for s, token, g in self.children(path, score, group)]
        return done


@pytest.mark.parametrize("vocabulary", [2, 3, 8])
@pytest.mark.parametrize("budget", [1, 8, 24])
def test_drafts_are_what_they_mean(vocabulary: int, budget: int) -> None:
    pytest.importorskip("hypothesis")
    from hypothesis import given
    from hypothesis import strategies as st

    text = st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=40)

    @given(text, st.lists(text, max_size=6), st.integers(1, budget))
    def check(running: list[int], memory: list[list[int]], depth: int) -> None:
        index = Posting(capacity=120)
        for old in memory:
            index.observe(old)
        line = index.open(running[: len(running) // 2])
        line.extend(running[len(running) // 2 :])
        tree = line.draft(budget, depth)
        slow = Slow(running, list(index.texts()), budget).draft(depth)
        assert tree.scores == pytest.approx(sorted(slow.values(), reverse=True))
        for path, score in zip(paths(tree), tree.scores, strict=True):
            if score > min(tree.scores) * (1 + 1e-9):  # which of the last, where they are equal, is nobody's promise
                assert slow[path] == pytest.approx(score)

    check()


def test_the_longest_match_wins_over_many_short_ones() -> None:
    index = Posting()
    for _ in range(3):
        index.observe([5, 6, 9])
    index.observe([0, 1, 2, 3, 4, 5, 6, 7, 8])
    for _ in range(3):
        index.observe([5, 6, 9])
    assert paths(index.draft([0, 1, 2, 3, 4, 5, 6], 3))[0] == (7,)


def test_a_match_that_went_on_is_surer() -> None:
    """Of 1 token that follows, its chance given all before it grows along the path."""
    index = Posting()
    index.observe(range(100, 140))
    scores = index.draft([100, 101], 20).scores
    steps = [after / before for before, after in itertools.pairwise(scores)]
    assert steps == sorted(steps)


@pytest.mark.parametrize("budget", [16, 64])
@pytest.mark.parametrize("alike", [True, False])
def test_history_never_pushes_the_prompt_out(budget: int, alike: bool) -> None:
    index = Posting()
    for i in range(200):
        index.observe([8, 9, 100] if alike else [8, 9, 100 + i, 7, 7])
    drafted = paths(index.draft([8, 9, 50, 51, 52, 53, 8, 9], budget, depth=4))
    assert (50, 51) in drafted
    assert any(path[0] >= 100 for path in drafted)


def test_a_path_is_looked_up_again() -> None:
    """What began otherwise, but ends as the path does, is drafted behind it."""
    index = Posting()
    for tail in ([5, 6], [7, 8]):
        index.observe([3, 4, *tail])
    index.observe([1, 2, 3, 4])
    drafted = paths(index.draft([1, 2], 16))
    assert {(3, 4, 5, 6), (3, 4, 7, 8)} <= set(drafted)


def test_a_text_that_repeats_itself_is_drafted_round_and_round() -> None:
    period = [1, 2, 3]
    tree = Posting().draft(period * 2, 10)
    assert paths(tree)[-1] == tuple((period * 4)[:10])


def test_a_chain_may_be_longer_than_a_tree() -> None:
    index = Posting()
    index.observe(range(400))
    tree = index.draft([0, 1], 300)
    assert tree.ids == list(range(2, 302))
    index.observe([0, 1, 5])
    assert len(index.draft([0, 1], 300)) == 64


def test_a_query_looks_at_so_much_however_much_there_is() -> None:
    index = Posting(capacity=3000)
    for _ in range(3):
        index.observe([4] * 1000)
    assert len(index.chains.walk([4] * REACH, 7)) <= 3 * 7
    assert index.draft([4] * 5, 8).ids == [4] * 8


def test_ten_thousand_requests_leave_no_more_than_the_capacity() -> None:
    rng = random.Random(0)
    index = Posting(capacity=1000)
    sizes = []
    for number in range(10_000):
        line = index.open([number % 7, number % 5])
        line.extend([rng.randrange(30) for _ in range(8)])
        line.close()
        if number % 2000 == 1999:
            chains = index.chains
            sizes.append(len(chains.ids))
            assert all(len(back) == len(chains.ids) for back in (chains.back1, chains.back2, chains.back4))
            assert len(chains.head1) <= 30
            assert max(len(chains.head2), len(chains.head4)) <= 1000
    assert index.tokens <= 1000
    assert max(sizes) <= 2 * (1000 + 101)


def test_scores_come_true() -> None:
    """Over text with chances of its own: what scores promise and what is accepted differ by less than a third."""
    rng = random.Random(1)
    chances = [[rng.choice([1, 1, 2, 20]) for _ in range(12)] for _ in range(12)]
    index = Posting()
    said = hits = 0.0
    for _ in range(60):
        text = [0]
        for _ in range(60):
            text.append(rng.choices(range(12), chances[text[-1]])[0])
        line = index.open(text[:10])
        for at in range(10, 60):
            tree = line.draft(8)
            children = {(parent, token): j for j, (parent, token) in enumerate(zip(tree.parents, tree.ids, strict=True), 1)}
            node = 0
            for token in text[at:]:
                if (node, token) not in children:
                    break
                node = children[node, token]
                hits += 1
            said += sum(tree.scores)
            line.extend([text[at]])
        line.close()
    assert 2 / 3 < said / hits < 3 / 2


@pytest.mark.slow
def test_ten_thousand_requests_through_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what it holds nor what a query looks at grows once it is full."""
    looked = [0]
    walk = Chains.walk

    def counted(self: Chains, *arguments: Any, **named: Any) -> Any:
        found = walk(self, *arguments, **named)
        looked[0] += len(found)
        return found

    monkeypatch.setattr(Chains, "walk", counted)
    index, draw = Posting(100_000), random.Random(0)
    words = [[draw.randrange(500) for _ in range(8)] for _ in range(60)]  # texts share phrases, as answers do

    def text(phrases: int) -> list[int]:
        return [token for _ in range(phrases) for token in draw.choice(words)]

    def held() -> int:
        chains = index.chains
        columns = (chains.ids, chains.back1, chains.back2, chains.back4, chains.head1, chains.head2, chains.head4)
        return sum(map(sys.getsizeof, columns))

    bytes_held, looks = [], []
    for request in range(10_000):
        line = index.open(text(3))
        line.extend(text(9))
        if request >= 100 and request % 10 == 0:
            looked[0] = 0
            assert len(line.draft(16)) > 0
            looks.append(looked[0])
        line.close()
        assert index.tokens <= 100_000
        if request >= 2_500 and request % 250 == 0:
            bytes_held.append(held())
    half = len(bytes_held) // 2
    assert max(bytes_held[half:]) <= 1.1 * max(bytes_held[:half]), "it swings, as columns are cut when half is forgotten"
    assert max(bytes_held) < 100 * 100_000
    full = len(looks) // 4
    assert np.mean(looks[-full:]) <= 1.1 * np.mean(looks[full : 2 * full])
