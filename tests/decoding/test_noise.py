"""Noise is a function of what it is for and of nothing else; and it is noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from lab import Toy, slow_gumbel
from torch import Tensor

import forethought as ft
from forethought.decoding import noise
from forethought.decoding.noise import Lane

V = 16


def gumbels(
    seeds: list[int], *, sample: int = 0, lane: Lane = Lane.TARGET, row: int = 0, positions: int = 1, vocabulary: int = V
) -> Tensor:
    """[seeds, positions, vocabulary]"""
    streams = np.repeat(np.array([noise.stream(seed, sample, lane, row) for seed in seeds], np.uint64), positions)
    keys = noise.keys(streams, np.tile(np.arange(positions, dtype=np.uint64), len(seeds)))
    return noise.gumbel(keys, torch.arange(vocabulary)).view(len(seeds), positions, vocabulary)


def chi_square(counts: Tensor, p: Tensor) -> float:
    """How many standard deviations Pearson's statistic is above its mean."""
    expected = p * counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    freedom = len(p) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def correlation(a: Tensor, b: Tensor) -> float:
    """Of two lots of numbers, in standard deviations of what independent ones show."""
    both = torch.stack((a.flatten(), b.flatten())).double()
    return abs(torch.corrcoef(both)[0, 1].item()) * math.sqrt(a.numel())


# ---- a function of what it is for ------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_slow_twin() -> None:
    for seed in (0, 1, -1, 7, 2**63 - 1, 2**64 - 1):
        for sample, lane, row, position in ((0, Lane.TARGET, 0, 0), (3, Lane.COIN, 0, 17), (1, Lane.DRAFT, 2, 100_000)):
            stream = noise.stream(seed, sample, lane, row)
            key = noise.keys(np.array([stream], np.uint64), np.array([position], np.uint64))
            fast = noise.gumbel(key, torch.arange(V))[0]
            slow = [slow_gumbel(seed, sample, position, token, lane, row) for token in range(V)]
            torch.testing.assert_close(fast, torch.tensor(slow), rtol=1e-5, atol=1e-5)


def test_golden_values_never_change() -> None:
    """Saved seeds must mean the same tokens in the next release."""
    assert noise.mix() == 0
    assert noise.stream(7, 0, Lane.TARGET) == 0x8EEE4CC612AB5ECC
    found = gumbels([7], positions=2)[0, :, :3].flatten().tolist()
    assert found == pytest.approx([-0.745208, 0.09082, 4.407218, 1.551227, 0.418438, 2.290375], abs=1e-5)


def test_a_draw_does_not_depend_on_its_company() -> None:
    streams = np.array([noise.stream(seed, 0, Lane.TARGET) for seed in range(20)], np.uint64)
    positions = np.arange(20, dtype=np.uint64)
    together = noise.gumbel(noise.keys(streams, positions), torch.arange(V))
    for i in (0, 7, 19):
        alone = noise.gumbel(noise.keys(streams[i : i + 1], positions[i : i + 1]), torch.arange(V))
        assert torch.equal(alone[0], together[i])
    some = torch.tensor([5, 2, 11])
    assert torch.equal(noise.gumbel(noise.keys(streams, positions), some), together[:, some])
    each = torch.tensor([[3, 4], [9, 0]])
    assert torch.equal(noise.gumbel(noise.keys(streams, positions)[:2], each), together[:2].gather(1, each))


def test_every_part_of_the_key_matters() -> None:
    parts = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (-1, 0, 0, 0), (1, 1, 0, 0)]
    assert len({noise.mix(*p) for p in parts}) == len(parts)
    assert len({noise.mix(1, 2), noise.mix(2, 1), noise.mix(1), noise.mix(1, 2, 0), noise.mix(12)}) == 5


def test_streams_and_keys_do_not_collide() -> None:
    """Small whole numbers are what people use as seeds."""
    streams = {noise.stream(seed, sample, lane) for seed in range(300) for sample in range(40) for lane in Lane}
    assert len(streams) == 300 * 40 * len(Lane)
    few = np.array(sorted(streams)[::60], np.uint64)
    keys = noise.keys(np.repeat(few, 300), np.tile(np.arange(300, dtype=np.uint64), len(few)))
    assert len(keys.unique()) == len(keys)


# ---- and it is noise -------------------------------------------------------------------------------------------------


def test_it_is_standard_gumbel() -> None:
    g = gumbels(list(range(40)), positions=50, vocabulary=500).flatten().double()
    n = len(g)
    assert abs(g.mean().item() - 0.5772156649) < 4 * math.sqrt(math.pi**2 / 6 / n)
    assert abs(g.var().item() - math.pi**2 / 6) < 4 * math.sqrt(4.4 * (math.pi**2 / 6) ** 2 / n)
    sorted_, rank = g.sort().values, (torch.arange(n).double() + 0.5) / n
    distance = (torch.exp(-torch.exp(-sorted_)) - rank).abs().max().item() * math.sqrt(n)
    assert distance < 1.95, "Kolmogorov-Smirnov at one in a thousand"


def test_the_tail_where_winners_come_from_is_exact() -> None:
    """P(g > x) is 1 - exp(-exp(-x)) far out, where a coarse uniform would leave only a few values."""
    g = gumbels(list(range(100)), positions=100, vocabulary=400).flatten()
    for x in (6.0, 8.0, 10.0):
        expected = -math.expm1(-math.exp(-x)) * len(g)
        assert abs((g > x).sum().item() - expected) < 4 * math.sqrt(expected)
    large = g[g > 8]
    assert len(large.unique()) == len(large)


def test_extreme_hashes_give_finite_noise() -> None:
    """Whatever the hash is, from all zeros to all ones: finite, and never so small or large as to decide by itself."""
    u = torch.tensor([0.0, 1.0, 2.0**31, 2.0**32 - 1]).add(0.5).mul(2.0**-32).clamp(max=1 - 2.0**-24)
    ends = -torch.log(-torch.log1p(-u))
    assert ends.isfinite().all()
    g = gumbels(list(range(50)), positions=200, vocabulary=300)
    assert ends.min() - 1e-4 <= g.min() < -2.0
    assert 12 < g.max() <= ends.max() + 1e-4


@pytest.mark.parametrize("axis", ["positions", "seeds", "samples", "rows", "lanes"])
def test_draws_follow_p_along_every_axis(axis: str) -> None:
    """argmax(log p + noise), chi-square against p, walking one coordinate of the key and holding the others."""
    p = torch.tensor([0.4, 0.2, 0.15, 0.1, 0.06, 0.04, 0.03, 0.02])
    n, v = 20_000, len(p)
    if axis == "positions":
        g = gumbels([5], positions=n, vocabulary=v)
    elif axis == "seeds":
        g = gumbels(list(range(n)), vocabulary=v)
    elif axis == "samples":
        g = torch.cat([gumbels([5], sample=i, vocabulary=v) for i in range(n)])
    elif axis == "rows":
        g = torch.cat([gumbels([5], row=i, vocabulary=v) for i in range(n)])
    else:
        g = torch.cat([gumbels([seed], lane=lane, vocabulary=v) for seed in range(n // len(Lane)) for lane in Lane])
    draws = (p.log() + g.view(-1, v)).argmax(-1)
    assert chi_square(torch.bincount(draws, minlength=v).double(), p.double()) < 4


def test_neighbours_are_independent() -> None:
    n = 400
    base = gumbels(list(range(n)), positions=20)
    others = {
        "sample": gumbels(list(range(n)), sample=1, positions=20),
        "lane": gumbels(list(range(n)), lane=Lane.DRAFT, positions=20),
        "row": gumbels(list(range(n)), row=1, positions=20),
        "seed": gumbels(list(range(1, n + 1)), positions=20),
        "negative seed": gumbels([-s for s in range(1, n + 1)], positions=20),
        "high bits of the seed": gumbels([s + (1 << 40) for s in range(n)], positions=20),
    }
    for name, other in others.items():
        assert correlation(base, other) < 4, name
    assert correlation(base[:, :-1], base[:, 1:]) < 4, "position"
    assert correlation(base[:, :, :-1], base[:, :, 1:]) < 4, "token"
    assert correlation(base[:, :-1, 1:], base[:, 1:, :-1]) < 4, "position against token"


def test_pairs_of_draws_are_independent() -> None:
    """Two positions of one stream, jointly, against p x p."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    g = gumbels(list(range(15_000)), positions=2, vocabulary=4)
    first, second = (p.log() + g).argmax(-1).unbind(1)
    counts = torch.bincount(first * 4 + second, minlength=16).double()
    assert chi_square(counts, (p[:, None] * p).flatten().double()) < 4


def test_one_seed_gives_unlike_prompts_unlike_noise() -> None:
    """And a prompt its own, whatever is asked beside it: under a flat law the first tokens of 40 prompts are 40 draws."""
    toy = Toy(lambda ids: np.zeros(1000), vocabulary=1000)
    prompts = [[i] for i in range(40)]
    with ft.Engine(toy, ft.Autoregressive(), kv_slots=2000) as engine:
        run: dict[str, Any] = {"max_tokens": 1, "temperature": 1.0, "seed": 3}
        first = [out[0].token_ids[0] for out in engine.generate(prompts, **run)]
        assert len(set(first)) > 30
        assert [engine.generate(prompt, **run)[0].token_ids[0] for prompt in reversed(prompts)] == first[::-1]
        assert engine.generate([[5], [5]], **run)[0][0].token_ids == [first[5]]
