"""The draw on a CPU against a whole sort and noise for every token, at any vocabulary; its law at that of real models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from lab import slow_gumbel

from forethought.backend.request import Sampling
from forethought.decoding import candidates, noise
from forethought.decoding.sampling import filter_scores, sort_and_filter

VOCABULARIES = [1, 2, 9, 300, 4096, 5000, 40_000]
REAL = 151_936
SETTINGS = [
    {},
    {"temperature": 1e-6},
    {"temperature": 50.0},
    {"temperature": 1e30},
    {"temperature": 1e30, "top_p": 0.9, "min_p": 0.5},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 1.7, "top_p": 0.999},
    {"top_p": 1e-50},
    {"top_p": 0.5, "min_p": 0.3},
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": 3000},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    {"top_k": 50, "top_p": 0.7, "min_p": 0.02},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 1e-30},
]
LAWS = ["peaked", "bulk", "flat", "ties", "equal", "few are possible", "far apart"]


def logits_of(law: str, rows: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, vocabulary)) * {"peaked": 6, "bulk": 2.5, "flat": 0.05, "far apart": 1e4}.get(law, 2)
    if law == "bulk":  # as of a model: most tokens far below a few
        x[:, rng.integers(0, vocabulary, 1 + vocabulary // 1000)] += 12
    if law == "ties":
        x = x.round()
    if law == "equal":
        x[:] = 1.5
    if law == "few are possible":
        x[rng.random(x.shape) < 0.9] = -np.inf
        x[:, 0] = 0.0
    return x.astype(np.float32)


def sampling(settings: dict[str, Any], rows: int) -> list[Sampling]:
    return [Sampling(**{"temperature": 1.0} | settings)] * rows


def whole(table: np.ndarray, asked: Sequence[Sampling], keys: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Perturbed and plain log-probabilities of every token, by sorting and by noise for all."""
    temperature = torch.tensor([[s.temperature] for s in asked], dtype=torch.float64)
    law = sort_and_filter((torch.from_numpy(table) / temperature).float(), asked).double().log_softmax(-1)
    gumbel = noise.gumbel(torch.from_numpy(keys.view(np.int64)), torch.arange(table.shape[1]))
    return law + gumbel, law


def keys_of(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, rows, dtype=np.uint64)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("law", LAWS)
def test_a_draw_is_that_of_noise_for_every_token(law: str, vocabulary: int) -> None:
    compared = 0
    for number, settings in enumerate(SETTINGS):
        table, keys, asked = logits_of(law, 5, vocabulary, number), keys_of(5, number), sampling(settings, 5)
        perturbed, plain = whole(table, asked, keys)
        count = min(4, vocabulary)
        tokens, logprobs = candidates.draw(table, candidates.Settings.of(asked), keys, count)
        best, places = perturbed.topk(count)
        # Where the two best are nearly as good, or the edge of the nucleus is within rounding, either is right.
        for row in range(5):
            finite = int((best[row] > -torch.inf).sum())
            gaps = -best[row, :finite].diff()
            sure = int((gaps < 1e-4).float().argmax()) if (gaps < 1e-4).any() else finite
            assert tokens[row, :sure].tolist() == places[row, :sure].tolist(), (settings, row)
            np.testing.assert_allclose(logprobs[row, :sure], plain[row, places[row, :sure]], rtol=1e-3, atol=1e-3)
            assert (logprobs[row, finite:] == -np.inf).all(), "where a filter leaves fewer, nothing more is likely"
            compared += sure
    assert compared > 5 * len(SETTINGS) * min(count, 2) // 2


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("law", LAWS)
def test_filters_leave_what_sorting_leaves(law: str, vocabulary: int) -> None:
    for number, settings in enumerate(SETTINGS):
        asked = sampling(settings, 4)
        scores = torch.from_numpy(logits_of(law, 4, vocabulary, number))
        fast, slow = filter_scores(scores, asked), sort_and_filter(scores, asked)
        assert (fast > -torch.inf).any(1).all(), "one token always stays"
        odd = (fast > -torch.inf) != (slow > -torch.inf)
        # float32 sums of a long tail are uncertain: only tokens at the edge of the mass may differ
        mass = scores.double().softmax(-1)
        assert (torch.where(odd, mass, 0.0).sum(1) < 3e-4).all(), settings
        assert torch.equal(fast[~odd], slow[~odd])


def test_ties_at_the_edge_of_the_nucleus_go_to_the_first() -> None:
    scores = torch.zeros(1, 6000)
    scores[0, 4000:] = 3.0  # 2,000 equal ones hold 90.9 % of the mass
    left = filter_scores(scores, [Sampling(temperature=1.0, top_p=0.5)])[0] > -torch.inf
    assert left.nonzero()[:, 0].tolist() == list(range(4000, 4000 + int(left.sum())))
    assert int(left.sum()) == int(np.ceil(0.5 * (2000 + 4000 * np.exp(-3))))


@pytest.mark.parametrize("vocabulary", [50, 3000, 40_000])
def test_nothing_depends_on_the_company(vocabulary: int) -> None:
    """To the bit: rows alone, and among others of all settings and laws."""
    asked = [Sampling(**{"temperature": 1.0} | settings) for settings in SETTINGS for _ in LAWS]
    table = np.concatenate([logits_of(law, 1, vocabulary, i) for i in range(len(SETTINGS)) for law in LAWS])
    keys = keys_of(len(asked))
    tokens, logprobs = candidates.draw(table, candidates.Settings.of(asked), keys, 3)
    for row in range(len(asked)):
        alone = candidates.draw(table[row : row + 1], candidates.Settings.of(asked[row : row + 1]), keys[row : row + 1], 3)
        assert alone[0].tolist() == tokens[row : row + 1].tolist()
        assert alone[1].tobytes() == logprobs[row : row + 1].tobytes()


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("law", LAWS)
def test_the_winner_alone_is_that_of_a_whole_draw(law: str, vocabulary: int) -> None:
    """Exactly: whether a filter leaves a token is answered without sorting only where that is sure."""
    rows = 13 if vocabulary < 1000 else 6
    for i, settings in enumerate(SETTINGS):
        table, keys = logits_of(law, rows, vocabulary, i), keys_of(rows, i)
        asked = candidates.Settings.of(sampling(settings, rows))
        won = candidates.winners(table, asked, keys)
        assert won.tolist() == candidates.draw(table, asked, keys)[0][:, 0].tolist(), settings
        assert won[2:3].tolist() == candidates.winners(table[2:3], asked[2:3], keys[2:3]).tolist()


def test_hashes_say_what_noise_will_be() -> None:
    tokens = np.arange(3000, dtype=np.uint64)
    bits = noise.hashes(np.uint64(77), tokens)
    gumbel = noise.gumbel(torch.tensor([77]), torch.arange(3000))[0].numpy()
    assert (noise.gumbel_of(bits) == gumbel).all()
    for bound in (-3.0, -1.0, 0.0, 2.0, 5.0, 8.0, 30.0, -np.inf, np.inf, -1e6):
        low = bits < noise.fewer_than(np.array([bound]))
        assert (low | (gumbel <= bound)).all(), "nothing larger is missed"
        assert (low & (gumbel < bound - 1e-3)).sum() <= 1, "and little else is taken"
    assert slow_gumbel(1, 2, 3, 4) == pytest.approx(
        float(noise.gumbel_of(noise.hashes(key_at(1, 2, 3), np.array([4], np.uint64)))[0]), abs=1e-5
    )


@pytest.mark.parametrize("vocabulary", [1, 100, (1 << 14) - 1, 1 << 14, 40_000])
def test_lucky_tokens_are_those_of_small_hashes(vocabulary: int) -> None:
    for key in (0, 5, 2**64 - 1):
        bits = noise.hashes(np.uint64(key), np.arange(vocabulary, dtype=np.uint64))
        for below in (0.5, 1.0, 1e5, 1e8 + 0.5, 2.0**31, 2.0**32 - 1, 2.0**32, 1e12, np.inf, float(bits[0]) + 1):
            expected = np.flatnonzero(bits < below).tolist()
            assert noise.lucky(key, vocabulary, below).tolist() == expected, (key, below)


def test_one_wide_row_among_narrow_ones() -> None:
    """Rows of which 1 and all tokens are left, in any order: each draws what it draws alone."""
    table, keys, asked = np.zeros((7, 20_000), np.float32), keys_of(7), sampling({"top_p": 0.9}, 7)
    table[[0, 2, 3, 6], 77] = 40.0
    tokens, logprobs = candidates.draw(table, candidates.Settings.of(asked), keys)
    perturbed, plain = whole(table, asked, keys)
    assert tokens[[0, 2, 3, 6], 0].tolist() == [77] * 4
    assert tokens[:, 0].tolist() == perturbed.argmax(-1).tolist()
    np.testing.assert_allclose(logprobs, plain.gather(1, torch.from_numpy(tokens)), atol=1e-3)


def key_at(seed: int, sample: int, position: int) -> np.ndarray:
    stream = np.array([noise.stream(seed, sample, noise.Lane.TARGET)], np.uint64)
    return noise.keys(stream, np.array([position], np.uint64)).numpy().view(np.uint64)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.95}, {"top_k": 40}, {"min_p": 0.02}], ids=str)
def test_draws_from_a_real_vocabulary_follow_their_law(settings: dict[str, Any]) -> None:
    """Chi-square over the tokens that are likely, and all others in 20 classes: 3,000 draws of one row of 151,936 logits."""
    draws = 3000
    row = logits_of("bulk", 1, REAL, 3)
    asked = sampling(settings, 1)
    law = sort_and_filter(torch.from_numpy(row) / asked[0].temperature, asked).double().softmax(-1)[0].numpy()
    keys = keys_of(draws, 5)
    found = np.concatenate([candidates.draw(row, candidates.Settings.of(asked), keys[i : i + 1])[0][:, 0] for i in range(draws)])
    classes = np.arange(REAL) % 20
    likely = np.flatnonzero(law * draws >= 10)
    classes[likely] = 20 + np.arange(len(likely))
    seen = np.bincount(classes[found], minlength=20 + len(likely)).astype(float)
    expected = np.bincount(classes, law, 20 + len(likely)) * draws
    assert (seen[expected == 0] == 0).all(), "what is filtered is never drawn"
    enough = expected >= 5
    seen, expected = seen[enough], expected[enough]
    statistic, freedom = float(((seen - expected) ** 2 / expected).sum()), len(seen) - 1
    assert freedom >= 5
    assert abs(statistic - freedom) < 4.5 * np.sqrt(2 * freedom), (statistic, freedom)


def test_mixed_settings_in_one_call() -> None:
    rows = len(SETTINGS)
    table, keys = logits_of("bulk", rows, 9000), keys_of(rows)
    asked = [Sampling(**{"temperature": 1.0} | settings) for settings in SETTINGS]
    perturbed, _ = whole(table, asked, keys)
    assert candidates.draw(table, candidates.Settings.of(asked), keys)[0][:, 0].tolist() == perturbed.argmax(-1).tolist()
