"""Every rule leaves the target's law as it is: shown by walking through all that can happen, not by sampling.

The production functions run with coins that branch: each question is answered in every way it can be, and the run is repeated for
each. Drafts are drawn through the same branches. What comes out is extended by plain draws from the target to a fixed length, so
that laws over whole sequences can be compared. The well-known mistakes are here too, with the size of what they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise, product
from typing import Any, overload

import numpy as np
import pytest
import torch
from lab import MASK, STEP, murmur, slow_gumbel

from forethought.decoding import noise
from forethought.decoding.acceptance import Accepted, Coins, HashCoins, block, match, ratio, without_replacement
from forethought.decoding.noise import Lane

V = 4
Law = np.ndarray
Prefix = tuple[int, ...]
Rule = Callable[[Sequence[int], Law, Law, Coins], Accepted]
CHAIN_RULES = pytest.mark.parametrize("rule", [ratio, block])
EXACT = 1e-12


# ---- all that can happen ---------------------------------------------------------------------------------------------


class Branch(Coins):
    """One way through all choices: a script for the first ones, then always the first that is possible."""

    def __init__(self, script: Prefix = ()) -> None:
        self.script, self.taken, self.weight = script, (), 1.0
        self.open: list[Prefix] = []
        self.new_round()

    def new_round(self) -> None:
        self.nodes: set[int] = set()
        self.drawn = -1

    def choose(self, probabilities: Sequence[float] | Law) -> int:
        possible = [i for i, w in enumerate(probabilities) if w > 0]
        at = len(self.taken)
        if at == len(self.script):
            self.open += [(*self.taken, other) for other in possible[1:]]
            self.script += (possible[0],)
        choice = self.script[at]
        self.taken += (choice,)
        self.weight *= float(probabilities[choice])
        return choice

    def accept(self, node: int, probability: float) -> bool:
        assert 0 <= probability <= 1
        assert node > 0
        assert node not in self.nodes, "a coin is thrown once"
        self.nodes.add(node)
        return self.choose((probability, 1 - probability)) == 0

    def draw(self, depth: int, probabilities: Law) -> int:
        assert self.drawn < 0, "the last token is drawn once"
        assert probabilities.sum() == pytest.approx(1, abs=1e-9)
        self.drawn = depth
        return self.choose(probabilities)


def explore(run: Callable[[Branch], Any]) -> Iterator[tuple[float, Any]]:
    """(probability, result) of each way."""
    scripts: list[Prefix] = [()]
    while scripts:
        branch = Branch(scripts.pop())
        result = run(branch)
        scripts += branch.open
        yield branch.weight, result


class World:
    """A target and a draft model: laws at random for each prefix, soft, peaked, with zeros; now and then equal."""

    def __init__(self, seed: int, context: bool = True) -> None:
        self.seed, self.context = seed, context
        self.p, self.q, self.joint = cache(self._p), cache(self._q), cache(self._joint)

    def _law(self, rng: np.random.Generator) -> Law:
        kind = rng.integers(4)
        if kind == 0:
            return rng.dirichlet(np.full(V, 0.2)) + 0.0
        law = rng.dirichlet(np.ones(V))
        if kind == 1:
            law[rng.permutation(V)[: rng.integers(1, V)]] = 0
        return law / law.sum()

    def _rng(self, which: int, prefix: Prefix) -> np.random.Generator:
        return np.random.default_rng([self.seed, which, *(prefix if self.context else ())])

    def _p(self, prefix: Prefix) -> Law:
        return self._law(self._rng(1, prefix))

    def _q(self, prefix: Prefix) -> Law:
        rng = self._rng(2, prefix)
        return self.p(prefix) if rng.random() < 0.1 else self._law(rng)

    def _joint(self, length: int, prefix: Prefix = ()) -> Law:
        """[V] * length: the target's law of what follows ``prefix``."""
        if not length:
            return np.ones(())
        law = self.p(prefix)
        return np.stack([law[x] * self.joint(length - 1, (*prefix, x)) for x in range(V)])

    def tables(self, ids: Sequence[int]) -> tuple[Law, Law]:
        """p [n + 1, V] and q [n, V] along a chain."""
        prefixes = [tuple(ids[:i]) for i in range(len(ids) + 1)]
        return np.array([self.p(x) for x in prefixes]), np.array([self.q(x) for x in prefixes[:-1]]).reshape(-1, V)

    def law(self, length: int, ways: Iterator[tuple[float, Sequence[int]]]) -> Law:
        """The joint law of the first ``length`` tokens, plain draws behind what each way emits."""
        law = np.zeros((V,) * length)
        for weight, ids in ways:
            prefix = tuple(ids)
            assert len(prefix) <= length
            law[prefix] += weight * self.joint(length - len(prefix), prefix)
        return law

    def distance(self, length: int, ways: Iterator[tuple[float, Sequence[int]]]) -> float:
        """Total variation between that and the target's law."""
        law = self.law(length, ways)
        assert law.sum() == pytest.approx(1, abs=1e-9)
        return float(np.abs(law - self.joint(length)).sum() / 2)


def sampled_chain(world: World, depth: int, branch: Branch, stop: Callable[[float], bool] | None = None) -> list[int]:
    """Drawn from the draft model; ``stop`` is asked after each token, of its probability."""
    ids: list[int] = []
    while len(ids) < depth:
        law = world.q(tuple(ids))
        ids.append(branch.choose(law))
        if stop is not None and stop(law[ids[-1]]):
            break
    return ids


def judged(world: World, rule: Rule, depth: int) -> Iterator[tuple[float, Accepted]]:
    def run(branch: Branch) -> Accepted:
        ids = sampled_chain(world, depth, branch)
        out = rule(ids, *world.tables(ids), branch)
        assert out.path == list(range(1, len(out.path) + 1))
        assert out.ids[:-1] == ids[: len(out.path)]
        assert branch.drawn == len(out.path)
        return out

    return explore(run)


def emitted(ways: Iterator[tuple[float, Accepted]]) -> Iterator[tuple[float, list[int]]]:
    return ((weight, out.ids) for weight, out in ways)


def mean_path(ways: Iterator[tuple[float, Accepted]]) -> float:
    return sum(weight * len(out.path) for weight, out in ways)


class Lazy(Sequence[int]):
    """Tokens that are drawn when they are looked at: what is never looked at needs no branch."""

    def __init__(self, length: int, draw: Callable[[int], int]) -> None:
        self.length, self.get = length, cache(draw)

    @overload
    def __getitem__(self, i: int) -> int: ...
    @overload
    def __getitem__(self, i: slice) -> list[int]: ...
    def __getitem__(self, i: int | slice) -> int | list[int]:
        assert isinstance(i, int)
        return self.get(i)

    def __len__(self) -> int:
        return self.length


@cache
def shapes(nodes: int) -> list[list[int]]:
    """All rooted trees of so many nodes beside the root, siblings in every order, as parents; children before grandchildren."""

    @cache
    def forests(n: int) -> list[tuple[Any, ...]]:
        if not n:
            return [()]
        return [(first, *rest) for size in range(1, n + 1) for first in forests(size - 1) for rest in forests(n - size)]

    found = []
    for forest in forests(nodes):
        parents, queue = [], [(0, forest)]
        for parent, children in queue:
            for child in children:
                parents.append(parent)
                queue.append((len(parents), child))
        found.append(parents)
    return found


def depth_of(parents: Sequence[int]) -> int:
    depths = [0]
    for parent in parents:
        depths.append(depths[parent] + 1)
    return max(depths)


def width_of(parents: Sequence[int]) -> int:
    return max(map(list(parents).count, parents), default=0)


# ---- exact -----------------------------------------------------------------------------------------------------------


@CHAIN_RULES
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_chain_leaves_the_law_as_it_is(rule: Rule, depth: int) -> None:
    for seed in range(24 if depth < 3 else 8):
        world = World(seed)
        assert world.distance(depth + 1, emitted(judged(world, rule, depth))) < EXACT


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 6])
def test_matching_leaves_the_law_as_it_is_for_every_tree(nodes: int) -> None:
    """Whatever the labels are: the target's best tokens, tokens at random, even a token twice among siblings."""
    world = World(nodes)
    for parents, best in product(shapes(nodes), (True, False)):
        rng = np.random.default_rng(len(parents))
        ids, prefixes = [], [()]
        for node, parent in enumerate(parents):
            rank = parents[:node].count(parent)
            ids.append(int(np.argsort(-world.p(prefixes[parent]))[rank % V] if best else rng.integers(V)))
            prefixes.append((*prefixes[parent], ids[-1]))

        assert world.distance(depth_of(parents) + 1, emitted(matched(world, ids, parents, prefixes))) < EXACT


def matched(world: World, ids: list[int], parents: list[int], prefixes: list[Prefix]) -> Iterator[tuple[float, Accepted]]:
    def run(branch: Branch) -> Accepted:
        out = match(ids, parents, Lazy(len(ids) + 1, lambda node: branch.choose(world.p(prefixes[node]))))
        assert [parents[node - 1] for node in out.path] == [0, *out.path][:-1]
        assert out.ids[:-1] == [ids[node - 1] for node in out.path]
        return out

    return explore(run)


def sampled_tree(world: World, parents: list[int], branch: Branch, few: bool = False) -> tuple[Sequence[int], Law, Law]:
    """Tokens drawn without replacement when they are looked at, and p and q, whose rows are NaN until their node is known.

    ``few``: the draft model's laws are cut to as many tokens as there are children, but two at least.
    """
    count = len(parents)
    p, q = np.full((count + 1, V), np.nan), np.full((count + 1, V), np.nan)
    prefixes: dict[int, Prefix] = {}

    def place(node: int, prefix: Prefix) -> None:
        prefixes[node] = prefix
        p[node], children = world.p(prefix), parents.count(node)
        if children:
            law = np.array(world.q(prefix))
            if np.count_nonzero(law) < children:
                law = (law + 1 / V) / 2
            if few:
                law[np.argsort(-law)[max(2, children) :]] = 0
            q[node] = law / law.sum()

    def draw(i: int) -> int:
        rest = q[parents[i]].copy()
        for j in range(i):
            if parents[j] == parents[i]:
                rest[ids[j]] = 0
        token = branch.choose(rest / rest.sum())
        place(i + 1, (*prefixes[parents[i]], token))
        return token

    place(0, ())
    ids = Lazy(count, draw)
    return ids, p, q


TREES = [*((nodes, False) for nodes in range(1, 6)), (6, True), pytest.param(6, False, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("nodes", "few"), TREES)
def test_trees_sampled_without_replacement_leave_the_law_as_it_is(nodes: int, few: bool) -> None:
    """All trees, whole, siblings in every order."""
    worlds = [World(seed) for seed in range(7)]
    for i, parents in enumerate(shapes(nodes)):
        if width_of(parents) > V:
            continue
        for world in worlds if nodes <= 3 else (worlds[i % len(worlds)],):
            assert world.distance(depth_of(parents) + 1, emitted(judged_tree(world, parents, few))) < EXACT


def judged_tree(world: World, parents: list[int], few: bool = False) -> Iterator[tuple[float, Accepted]]:
    def run(branch: Branch) -> Accepted:
        ids, p, q = sampled_tree(world, parents, branch, few)
        out = without_replacement(ids, parents, p, q, branch)
        assert [parents[node - 1] for node in out.path] == [0, *out.path][:-1]
        assert out.ids[:-1] == [ids[node - 1] for node in out.path]
        assert branch.drawn == len(out.path)
        return out

    return explore(run)


# ---- how much is accepted --------------------------------------------------------------------------------------------


def test_one_drafted_token_is_accepted_as_often_as_the_laws_overlap() -> None:
    for seed in range(30):
        world = World(seed)
        overlap = np.minimum(world.p(()), world.q(())).sum()
        for rule in (ratio, block):
            assert mean_path(judged(world, rule, 1)) == pytest.approx(overlap, abs=EXACT)


def test_a_chain_of_equal_chances_has_the_geometric_length() -> None:
    for seed in range(10):
        world = World(seed, context=False)
        overlap = np.minimum(world.p(()), world.q(())).sum()
        assert mean_path(judged(world, ratio, 3)) == pytest.approx(sum(overlap**i for i in (1, 2, 3)), abs=EXACT)


def test_block_verification_keeps_more() -> None:
    gains = []
    for seed in range(30):
        world = World(seed)
        gains.append(mean_path(judged(world, block, 2)) - mean_path(judged(world, ratio, 2)))
        assert gains[-1] > -EXACT
    assert np.mean(gains) > 0.02
    assert np.mean(np.array(gains) > 1e-6) > 0.3


def test_more_candidates_are_accepted_more_often() -> None:
    means = []
    for seed in range(30):
        world = World(seed)
        if np.count_nonzero(world.q(())) == V:
            rates = [mean_path(judged_tree(world, [0] * count)) for count in range(1, V + 1)]
            assert rates[0] == pytest.approx(np.minimum(world.p(()), world.q(())).sum(), abs=EXACT)
            assert all(more >= fewer - EXACT for fewer, more in pairwise(rates))
            assert rates[-1] == pytest.approx(1, abs=1e-9), "every token is a candidate"
            means.append(rates)
    one, two = np.mean(means, 0)[:2]
    assert len(means) > 10
    assert two > one + 0.1


# ---- mistakes, with their size ---------------------------------------------------------------------------------------


def first_token(run: Callable[[Branch], Accepted]) -> Law:
    law = np.zeros(V)
    for weight, out in explore(run):
        law[out.ids[0]] += weight
    return law


def variation(a: Law, b: Law) -> float:
    return float(np.abs(a - b).sum() / 2)


def test_a_picked_token_must_not_be_judged_by_a_soft_law() -> None:
    """With a perfect draft model it is worst: its best token always comes out."""
    p = np.array([0.4, 0.3, 0.2, 0.1])
    both, one = np.stack((p, p)), p[None]
    ids = [int(p.argmax())]
    for rule in (ratio, block):
        wrong = first_token(lambda branch, rule=rule: rule(ids, both, one, branch))
        assert variation(wrong, p) == pytest.approx(0.6)
    ids = [int(x) for x in np.argsort(-p)[:2]]
    q = np.array([0.1, 0.2, 0.3, 0.4])
    tables = np.stack((p, p, p)), np.stack((q, q, q))
    wrong = first_token(lambda branch: without_replacement(ids, [0, 0], *tables, branch))
    assert variation(wrong, p) == pytest.approx(0.6)

    right = first_token(lambda branch: match(ids, [0, 0], Lazy(3, lambda node: branch.choose(p))))
    assert variation(right, p) < EXACT
    # The law that an argmax is truly drawn from has one token: then the ratio rule is right, and accepts what matching does.
    true = np.eye(V)[ids[:1]]
    assert variation(first_token(lambda branch: ratio(ids[:1], both, true, branch)), p) < EXACT
    accepted = sum(w for w, out in explore(lambda branch: ratio(ids[:1], both, true, branch)) if out.path)
    assert accepted == pytest.approx(p[ids[0]])


def test_a_draft_that_was_not_sampled_is_refused_by_all_but_matching() -> None:
    p: Any = np.full((3, V), 1 / V)
    nothing: Any = None
    for call in (
        lambda: ratio([0, 1], p, nothing, HashCoins(0, 0, 0, 0)),
        lambda: block([0, 1], p, nothing, HashCoins(0, 0, 0, 0)),
        lambda: without_replacement([0, 1], [0, 0], p, nothing, HashCoins(0, 0, 0, 0)),
    ):
        with pytest.raises(ValueError, match="may only meet match"):
            call()
    assert match([0, 1], [0, 0], [1, 9, 3]) == Accepted([2], [1, 3])


@CHAIN_RULES
def test_a_draft_may_stop_behind_a_token_but_not_drop_it(rule: Rule) -> None:
    """To stop where it is not sure is part of the law of drafts; to take the token away lets the coin see it."""
    distances = []
    for seed in range(12):
        world = World(seed)

        def run(branch: Branch, drop: bool, world: World = world) -> list[int]:
            ids = sampled_chain(world, 2, branch, stop=lambda chance: chance < 0.3)
            if drop and world.q(tuple(ids[:-1]))[ids[-1]] < 0.3:
                ids.pop()
            return rule(ids, *world.tables(ids), branch).ids

        assert world.distance(3, emitted_by(run, drop=False)) < EXACT
        distances.append(world.distance(3, emitted_by(run, drop=True)))
    assert np.mean(distances) == pytest.approx(0.08, abs=0.005)
    assert max(distances) == pytest.approx(0.296, abs=0.005)


def emitted_by(run: Callable[..., list[int]], **options: Any) -> Iterator[tuple[float, list[int]]]:
    return explore(lambda branch: run(branch, **options))


def test_a_sampled_tree_may_not_be_pruned_by_its_values() -> None:
    """Not even of a second sibling, whose probability is small: no second one at all, or whichever it is."""
    p, q = np.array([0.1, 0.4, 0.4, 0.1]), np.array([0.7, 0.15, 0.1, 0.05])

    def run(branch: Branch, drop: bool) -> Accepted:
        first = branch.choose(q)
        rest = q * (np.arange(V) != first)
        second = branch.choose(rest / rest.sum())
        ids = [first] if drop and q[second] < 0.12 else [first, second]
        n = len(ids) + 1
        return without_replacement(ids, [0] * len(ids), np.tile(p, (n, 1)), np.tile(q, (n, 1)), branch)

    assert variation(first_token(lambda branch: run(branch, False)), p) < EXACT
    assert variation(first_token(lambda branch: run(branch, True)), p) == pytest.approx(0.125)


class OneUniform(Coins):
    """The mistake: one number for the draft, the coin and the residual."""

    def __init__(self, u: float) -> None:
        self.u = u

    def accept(self, node: int, probability: float) -> bool:
        return self.u < probability

    def draw(self, depth: int, probabilities: Law) -> int:
        return int(np.searchsorted(np.cumsum(probabilities), self.u, side="right"))


def test_one_uniform_must_not_serve_draft_coin_and_residual() -> None:
    p, q = np.array([0.3, 0.3, 0.2, 0.2]), np.array([0.1, 0.1, 0.4, 0.4])
    tables, law = (np.stack((p, p)), q[None]), np.zeros(V)
    grid = (np.arange(1000) + 0.5) / 1000  # what is decided changes at multiples of a tenth and of a half alone
    for u in grid:
        coins = OneUniform(u)
        law[ratio([coins.draw(0, q)], *tables, coins).ids[0]] += 1 / len(grid)
    assert variation(law, p) == pytest.approx(0.4)

    def independent(branch: Branch) -> Accepted:
        return ratio([branch.choose(q)], *tables, branch)

    assert variation(first_token(independent), p) < EXACT


@CHAIN_RULES
def test_which_rules_let_a_draft_draw_serve_a_second_round(rule: Rule) -> None:
    """A drafter whose noise depends on the position alone drafts the same token again where the chain was cut before it.

    The ratio rule ends without having looked at it. Block verification has: its draws must be new in each round.
    """
    distances = []
    for seed in range(12):
        world = World(seed, context=False)
        p, q = world.p(()), world.q(())

        def run(branch: Branch, again: bool, p: Law = p, q: Law = q) -> list[int]:
            ids = [branch.choose(q), branch.choose(q)]
            out = rule(ids, np.stack((p, p, p)), np.stack((q, q)), branch)
            if out.path:
                return out.ids
            branch.new_round()
            return out.ids + rule([ids[1] if again else branch.choose(q)], np.stack((p, p)), q[None], branch).ids

        assert world.distance(3, emitted_by(run, again=False)) < EXACT
        distances.append(world.distance(3, emitted_by(run, again=True)))
    if rule is ratio:
        assert max(distances) < EXACT
    else:
        assert max(distances) == pytest.approx(0.036, abs=0.001)


# ---- coins that are hashes -------------------------------------------------------------------------------------------


def slow_mix(*parts: int) -> int:
    state = len(parts)
    for part in parts:
        state = murmur((state + STEP & MASK) ^ (part & MASK))
    return state


def chance_of(statistic: float, freedom: int) -> float:
    """Of a chi-square variable at least as large."""
    return torch.special.gammaincc(torch.tensor(freedom / 2.0).double(), torch.tensor(statistic / 2.0).double()).item()


def together(a: Law, b: Law, bins: int = 8) -> float:
    """How likely two lots of uniforms, if independent, are to fill a grid as unevenly as these."""
    counts = np.histogram2d(a, b, bins, [[0, 1], [0, 1]])[0]
    expected = len(a) / bins**2
    return chance_of(float(((counts - expected) ** 2 / expected).sum()), bins**2 - 1)


def test_hash_coins_are_those_of_the_slow_twin() -> None:
    p = np.array([0.1, 0.0, 0.6, 0.3])
    for seed, sample, row, position in ((0, 0, 0, 0), (7, 3, 0, 17), (-1, 1, 2, 100_000), (2**63, 0, 1, 5)):
        coins = HashCoins(seed, sample, row, position)
        for node in (1, 2, 60):
            hashed = slow_mix(slow_mix(seed, sample, Lane.COIN, row), position, node)
            u = ((hashed >> 12) + 0.5) / 2**52
            assert coins.uniform(node) == u
            assert coins.accept(node, np.nextafter(u, 1))
            assert not coins.accept(node, u)
        for depth in (0, 3):
            scores = [
                math.log(p[x]) + slow_gumbel(seed, sample, position + depth, x, Lane.RESIDUAL, row) if p[x] else -math.inf
                for x in range(V)
            ]
            assert coins.draw(depth, p) == int(np.argmax(scores))


def test_golden_coins_never_change() -> None:
    """Saved seeds must mean the same tokens in the next release."""
    coins = HashCoins(7, 0, 0, 3)
    assert [coins.uniform(node) for node in (1, 2, 3)] == pytest.approx([0.417189461, 0.664648421, 0.353209907])
    assert [coins.draw(depth, np.full(9, 1 / 9)) for depth in range(6)] == [0, 3, 2, 1, 7, 1]


def test_what_is_sure_stays_sure() -> None:
    for seed in range(2000):
        coins = HashCoins(seed, 0, 0, 0)
        assert coins.accept(1, 1.0)
        assert not coins.accept(1, 0.0)
        assert coins.draw(0, np.eye(V)[seed % V]) == seed % V
    with pytest.MonkeyPatch.context() as patch:
        for state, end in ((MASK, 1.0), (0, 0.0)):
            patch.setattr(noise, "mix", lambda *_, state=state: state)
            assert HashCoins(0, 0, 0, 0).uniform(1) == pytest.approx(end)
            assert 0 < HashCoins(0, 0, 0, 0).uniform(1) < 1


def test_no_coin_shares_a_hash_with_a_draft_or_another_coin() -> None:
    """Siblings, positions, samples, rows and lanes: 52 bits of each are all different."""
    seen: list[int] = []
    for seed, sample, row, position in product(range(8), range(3), range(2), range(12)):
        coins = HashCoins(seed, sample, row, position)
        seen += [int(coins.uniform(node) * 2**52) for node in range(1, 21)]
        streams = np.array([noise.stream(seed, sample, lane, row) for lane in Lane], np.uint64)
        keys = noise.keys(streams, np.full(len(Lane), position)).numpy().view(np.uint64)
        seen += [int(key) >> 12 for key in keys]
    assert len(set(seen)) == len(seen)


def test_coins_are_uniform_and_independent() -> None:
    n = 6000
    coins = [HashCoins(seed, 0, 0, 5) for seed in range(n)]
    first, second = (np.array([c.uniform(node) for c in coins]) for node in (1, 2))
    later = np.array([HashCoins(seed, 0, 0, 6).uniform(1) for seed in range(n)])
    # Gumbel noise g is exp(-exp(-g)) = 1 - u of the hash's own uniform: the draft's draw and the residual's of token 2.
    token = torch.tensor([2])
    lanes = {}
    for lane in (Lane.DRAFT, Lane.RESIDUAL):
        streams = np.array([noise.stream(seed, 0, lane) for seed in range(n)], np.uint64)
        lanes[lane] = np.exp(-np.exp(-noise.gumbel(noise.keys(streams, np.full(n, 5)), token)[:, 0].double().numpy()))
    lots = {"first": first, "second": second, "later": later, "draft": lanes[Lane.DRAFT], "residual": lanes[Lane.RESIDUAL]}
    names = list(lots)
    found = {(a, b): together(lots[a], lots[b]) for i, a in enumerate(names) for b in names[i + 1 :]}
    assert min(found.values()) > 1e-4, found
    # The test would tell if a coin were the draft's own number, either way round.
    assert together(lots["draft"], lots["draft"]) < 1e-12
    assert together(1 - lots["draft"], lots["draft"]) < 1e-12


def rounds(rule: str, world: World, seed: int, draft_noise: Law, length: int) -> list[int]:
    """Text made by one rule round by round, as a decoder does; ``draft_noise`` [round's start, position, V]."""
    out: list[int] = []
    while len(out) < length:
        start, prefix = len(out), tuple(out)
        coins, noises = HashCoins(seed, 0, 0, start), draft_noise[start if rule == "block" else 0]
        with np.errstate(divide="ignore"):
            scores = np.log(world.q(prefix)) + noises[start]
            first, second = np.argsort(-scores)[:2].tolist()
            below = int((np.log(world.q((*prefix, first))) + noises[start + 1]).argmax())
        if rule == "tree":  # a child, one of its own, and a sibling, if the draft model has a second token
            ids, parents, at = [first, below], [0, 1], [prefix, (*prefix, first), (*prefix, first, below)]
            if np.isfinite(scores[second]):
                ids, parents, at = [*ids, second], [*parents, 0], [*at, (*prefix, second)]
            p, q = np.array([world.p(x) for x in at]), np.array([world.q(x) for x in at])
            out += without_replacement(ids, parents, p, q, coins).ids
        else:
            at = [prefix, (*prefix, first), (*prefix, first, below)]
            p, q = np.array([world.p(x) for x in at]), np.array([world.q(x) for x in at[:2]])
            out += (ratio if rule == "ratio" else block)([first, below], p, q, coins).ids
    return out[:length]


@pytest.mark.parametrize("rule", ["ratio", "block", "tree"])
def test_hash_coins_give_the_targets_law_over_several_rounds(rule: str) -> None:
    length, n = 3, 3000
    world = next(world for world in map(World, range(1000)) if soft(world))
    streams = np.array([noise.stream(seed, 0, Lane.DRAFT, row) for seed in range(n) for row in range(length)], np.uint64)
    positions = np.arange(length + 1)
    keys = noise.keys(np.repeat(streams, length + 1), np.tile(positions, len(streams)))
    draft_noise = noise.gumbel(keys, torch.arange(V)).view(n, length, length + 1, V).double().numpy()
    counts = np.zeros((V,) * length)
    for seed in range(n):
        counts[tuple(rounds(rule, world, seed, draft_noise[seed], length))] += 1
    expected = world.joint(length) * n
    rare = expected < 5
    assert counts[expected == 0].sum() == 0
    cells = [*zip(counts[~rare], expected[~rare], strict=True), (counts[rare].sum(), expected[rare].sum())]
    statistic = sum((c - e) ** 2 / e for c, e in cells)
    assert len(cells) > 30
    assert chance_of(statistic, len(cells) - 1) > 1e-4


def soft(world: World) -> bool:
    """Whether the first laws have no rare token and the draft model is often wrong."""
    firsts = [(), *((x,) for x in range(V))]
    return all(
        min(np.sort(world.q(x))[1], np.sort(world.p(x))[1]) > 0.05 and np.minimum(world.p(x), world.q(x)).sum() < 0.8
        for x in firsts
    )


# ---- refused, and rounding -------------------------------------------------------------------------------------------


class Never(Coins):
    """Every coin falls badly; remembers what was to be drawn from."""

    def accept(self, node: int, probability: float) -> bool:
        return False

    def draw(self, depth: int, probabilities: Law) -> int:
        self.depth, self.probabilities = depth, probabilities
        return int(probabilities.argmax())


def test_equal_laws_leave_no_residual_and_the_target_is_drawn_from() -> None:
    p = np.array([0.1, 0.2, 0.3, 0.4])
    for rule in (ratio, block):
        coins = Never()
        assert rule([1, 2], np.tile(p, (3, 1)), np.tile(p, (2, 1)), coins).path == []
        np.testing.assert_allclose(coins.probabilities, p)
    coins = Never()
    assert without_replacement([1, 2], [0, 0], np.tile(p, (3, 1)), np.tile(p, (3, 1)), coins).path == []
    assert coins.depth == 0
    assert np.isfinite(coins.probabilities).all()


def test_greedy_laws_keep_what_the_target_would_write() -> None:
    p = np.eye(V)[[2, 0, 3]]
    for rule in (ratio, block):
        assert rule([2, 0], p, np.eye(V)[[2, 0]], HashCoins(1, 0, 0, 0)) == Accepted([1, 2], [2, 0, 3])
        assert rule([2, 1], p, np.eye(V)[[2, 1]], HashCoins(1, 0, 0, 0)) == Accepted([1], [2, 0])


def test_nothing_drafted_is_a_plain_draw() -> None:
    p, q = np.array([[0.1, 0.2, 0.3, 0.4]]), np.empty((0, V))
    expected = HashCoins(3, 0, 0, 9).draw(0, p[0])
    assert ratio([], p, q, HashCoins(3, 0, 0, 9)) == block([], p, q, HashCoins(3, 0, 0, 9)) == Accepted([], [expected])
    assert without_replacement([], [], p, np.full((1, V), np.nan), HashCoins(3, 0, 0, 9)) == Accepted([], [expected])
    assert match([], [], [8]) == Accepted([], [8])


def test_single_precision_over_a_large_vocabulary_is_a_law() -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(3, 50_000)).astype(np.float32)) * 4
    p, q = scores.softmax(-1).numpy(), (scores[:2] * 0.9).softmax(-1).numpy()
    ids = [int(x) for x in q.argmax(-1)]
    for rule in (ratio, block):
        assert len(rule(ids, p, q, HashCoins(0, 0, 0, 0)).ids) >= 1


EVEN = np.full((3, V), 1 / V)


def spoilt(i: int, x: int, value: float, rows: int = 3) -> Law:
    table = EVEN[:rows].copy()
    table[i, x] = value
    return table


@pytest.mark.parametrize(
    ("ids", "p", "q", "message"),
    [
        ([0, 1], EVEN[:2], EVEN[:2], r"p has shape \(2, 4\): 2 drafted tokens need \[3, V\]"),
        ([0, 1], EVEN[0], EVEN[:2], r"p has shape \(4,\)"),
        ([0, 1], EVEN, EVEN, r"q has shape \(3, 4\): 2 drafted tokens need \[2, 4\]"),
        ([0, 1], EVEN, EVEN[:2, :3], r"q has shape \(2, 3\)"),
        ([0, 1], EVEN, np.full(2, 0.5), r"q has shape \(2,\)"),
        ([0, 1], EVEN, EVEN[:2] * 1.01, r"q\[0\] sums to 1.01"),
        ([0, 1], EVEN * 0.9, EVEN[:2], r"p\[0\] sums to 0.9"),
        ([0, 1], spoilt(0, 2, math.nan), EVEN[:2], r"p\[0\] sums to nan"),
        ([0, 1], EVEN, spoilt(0, 2, math.nan, 2), r"q\[0\] sums to nan"),
        ([0, 1], spoilt(0, 2, math.inf), EVEN[:2], r"p\[0\] sums to inf"),
        ([0, 1], np.array([[1.5, -0.5, 0, 0]] * 3), EVEN[:2], r"p\[0\] sums to 1, its least value is -0.5"),
        ([0, 1], np.log(EVEN), EVEN[:2], r"p\[0\] sums to -5.5"),
        ([1, 1], EVEN, np.array([[0.5, 0, 0.5, 0]] * 2), "node 1: token 1 has q = 0 there"),
        ([4, 1], EVEN, EVEN[:2], "node 1: token 4 has q = 0"),
        ([-1, 1], EVEN, EVEN[:2], "node 1: token -1 has q = 0"),
    ],
)
@CHAIN_RULES
def test_what_does_not_fit_is_refused(rule: Rule, ids: list[int], p: Law, q: Law, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(ids, p, q, HashCoins(0, 0, 0, 0))
    if q.shape == (2, V):  # a tree's q has a row for each node
        with pytest.raises(ValueError, match=message):
            without_replacement(ids, [0, 1], p, np.concatenate((q, q[:1])), HashCoins(0, 0, 0, 0))


def test_trees_that_are_none_are_refused() -> None:
    coins = HashCoins(0, 0, 0, 0)
    for parents, message in (([0], "2 drafted tokens with 1 parents"), ([0, 2], "node 2 has parent 2"), ([-1, 0], "parent -1")):
        with pytest.raises(ValueError, match=message):
            match([0, 1], parents, [0, 0, 0])
        with pytest.raises(ValueError, match=message):
            without_replacement([0, 1], parents, EVEN, EVEN, coins)
    with pytest.raises(ValueError, match="2 target tokens for 2 drafted ones"):
        match([0, 1], [0, 1], [0, 0])
    with pytest.raises(ValueError, match=r"q has shape \(2, 4\): 2 drafted tokens need \[3, 4\]"):
        without_replacement([0, 1], [0, 1], EVEN, EVEN[:2], coins)
    with pytest.raises(ValueError, match="node 2: token 1 has q = 0 there, or is a sibling's"):
        without_replacement([1, 1], [0, 0], EVEN, EVEN, Never())
    with pytest.raises(ValueError, match="position=-1"):
        HashCoins(0, 0, 0, -1)


def test_of_twins_the_first_one_stays() -> None:
    found = match([5, 5, 7], [0, 0, 1], [5, 7, 0, 9])
    assert (found.path, found.ids) == ([1, 3], [5, 7, 9])
