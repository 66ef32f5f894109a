"""Processing against a slow twin and against transformers; draws against the distribution they are from."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lab import slow_certainty, slow_gumbel, slow_process

from forethought.backend.kv import KVPool, LayerSpec
from forethought.backend.request import Request, Row, Sampling
from forethought.decoding.sampling import Sampler, certainty, filter_scores, process

V = 12
POOL = KVPool([LayerSpec(1, 1, 1, torch.device("cpu"))], 4, torch.float32)


def logits_of(seed: int, rows: int = 1, vocabulary: int = V) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def random_settings(rng: np.random.Generator) -> Sampling:
    """Each setting off as often as on."""

    def maybe(off: Any, on: Any) -> Any:
        return on if rng.random() < 0.5 else off

    return Sampling(
        temperature=maybe(1.0, float(rng.choice([0.0, 0.3, 0.9, 2.0]))), top_k=maybe(0, int(rng.integers(1, 2 * V))),
        top_p=maybe(1.0, float(rng.uniform(0.05, 0.99))), min_p=maybe(0.0, float(rng.uniform(0.01, 0.6))),
        repetition_penalty=maybe(1.0, float(rng.uniform(0.6, 1.8))), presence_penalty=maybe(0.0, float(rng.normal())),
        frequency_penalty=maybe(0.0, float(rng.normal())),
        logit_bias=maybe({}, {int(rng.integers(V)): float(rng.normal() * 3), int(rng.integers(V)): -math.inf}),
    )  # fmt: skip


def same(found: torch.Tensor, expected: list[float]) -> None:
    """Equal log-probabilities, and the same tokens ruled out."""
    slow = torch.tensor(expected, dtype=torch.float64)
    assert torch.equal(found.isinf(), slow.isinf())
    torch.testing.assert_close(found[~slow.isinf()].double(), slow[~slow.isinf()], rtol=1e-4, atol=1e-4)


# ---- processing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_a_batch_of_any_settings_equals_the_slow_twin_row_by_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    settings = [random_settings(rng) for _ in range(6)]
    prompts = [rng.integers(0, V, rng.integers(1, 6)).tolist() for _ in settings]
    outputs = [rng.integers(0, V, rng.integers(0, 6)).tolist() for _ in settings]
    logits = logits_of(seed, len(settings))
    before = logits.clone()
    together = process(logits, settings, prompts, outputs)
    assert torch.equal(logits, before), "the caller's logits are not written to"
    for row, own, s, prompt, output in zip(together, logits, settings, prompts, outputs, strict=True):
        same(row, slow_process(own.tolist(), prompt, output, s))
        alone = process(own[None], [s], [prompt], [output])[0]
        torch.testing.assert_close(alone, row)
        assert row.logsumexp(0).item() == pytest.approx(0.0, abs=1e-5)


def test_any_settings_at_all() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    settings = st.builds(
        Sampling,
        temperature=st.one_of(st.just(0.0), st.floats(0.05, 5)),
        top_k=st.integers(0, 10),
        top_p=st.floats(0.01, 1),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(0.5, 2),
        presence_penalty=st.floats(-3, 3),
        frequency_penalty=st.floats(-3, 3),
        logit_bias=st.dictionaries(st.integers(0, 7), st.floats(-5, 5), max_size=3),
    )
    tokens = st.lists(st.integers(0, 7), max_size=8)

    @hypothesis.settings(max_examples=150)
    @hypothesis.given(st.integers(0, 10_000), settings, tokens, tokens)
    def check(seed: int, s: Sampling, prompt: list[int], output: list[int]) -> None:
        logits = logits_of(seed, vocabulary=8)[0]

        def slow(nudge: float) -> torch.Tensor:
            nudged = replace(s, top_p=min(1.0, s.top_p * (1 + nudge)), min_p=min(1.0, s.min_p * (1 + nudge)))
            return torch.tensor(slow_process(logits.tolist(), prompt, output, nudged), dtype=torch.float64)

        # A token right on a threshold is in or out by rounding.
        hypothesis.assume(torch.equal(slow(1e-5).isinf(), slow(-1e-5).isinf()))
        same(process(logits[None], [s], [prompt], [output])[0], slow(0.0).tolist())

    check()


def test_greedy_is_all_on_the_best_and_a_tie_goes_to_the_first() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    assert process(logits, [Sampling()], [[0]], [[]])[0].tolist() == [-math.inf, 0.0, -math.inf, -math.inf]


def test_ties_at_the_edge_of_top_k_stay() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    kept = filter_scores(logits, [Sampling(temperature=1.0, top_k=2)])[0]
    assert kept.isfinite().tolist() == [True, True, True, False]


def test_top_p_keeps_the_token_that_crosses_the_threshold_and_at_least_one() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None]
    for top_p, count in ((0.0001, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4)):
        kept = filter_scores(logits, [Sampling(temperature=1.0, top_p=top_p)])[0]
        assert kept.isfinite().sum().item() == count, top_p


def test_filters_see_what_the_ones_before_left() -> None:
    """Top-p measures the mass that top-k left; min-p the largest of what is left, which is always the same."""
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[None]
    assert filter_scores(logits, [Sampling(temperature=1.0, top_p=0.6)])[0].isfinite().sum() == 2
    both = Sampling(temperature=1.0, top_k=2, top_p=0.56)
    assert filter_scores(logits, [both])[0].isfinite().sum() == 1, "0.4 of 0.7 is enough"
    assert filter_scores(logits, [Sampling(temperature=1.0, min_p=0.51)])[0].isfinite().sum() == 2


def test_penalties_count_what_they_should() -> None:
    """Repetition: prompt and output, once. Presence and frequency: the output only."""
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 1.0]])

    def raw(prompt: list[int], output: list[int], **settings: float) -> list[float]:
        found = process(logits, [Sampling(temperature=1.0, **settings)], [prompt], [output])[0]
        return (found - found[4] + 1.0).tolist()  # token 4 is never penalised

    assert raw([0, 1, 0], [1], repetition_penalty=2.0) == pytest.approx([1.0, -4.0, 2.0, -2.0, 1.0])
    assert raw([0, 1], [2, 2, 3], presence_penalty=0.5) == pytest.approx([2.0, -2.0, 1.5, -2.5, 1.0])
    assert raw([0, 1], [2, 2, 3], frequency_penalty=0.5) == pytest.approx([2.0, -2.0, 1.0, -2.5, 1.0])
    assert raw([0], [0], presence_penalty=-1.0, frequency_penalty=-1.0) == pytest.approx([4.0, -2.0, 2.0, -2.0, 1.0])


@pytest.mark.parametrize("seed", range(12))
def test_transformers_processes_in_the_same_way(seed: int) -> None:
    """Its own processors in the order that its ``generate`` builds them in: penalty, temperature, top-k, top-p, min-p."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    rng = np.random.default_rng(seed)
    s = Sampling(
        temperature=float(rng.uniform(0.3, 2)), top_k=int(rng.integers(3, V)), top_p=float(rng.uniform(0.5, 0.99)),
        min_p=float(rng.uniform(0.01, 0.2)), repetition_penalty=float(rng.uniform(0.7, 1.5)),
    )  # fmt: skip
    theirs = LogitsProcessorList([
        RepetitionPenaltyLogitsProcessor(s.repetition_penalty), TemperatureLogitsWarper(s.temperature), TopKLogitsWarper(s.top_k),
        TopPLogitsWarper(s.top_p), MinPLogitsWarper(s.min_p),
    ])  # fmt: skip
    prompt, output = rng.integers(0, V, 4).tolist(), rng.integers(0, V, 5).tolist()
    logits = logits_of(seed, vocabulary=40)
    expected = theirs(torch.tensor([prompt + output]), logits.clone()).log_softmax(-1)
    torch.testing.assert_close(process(logits, [s], [prompt], [output]), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_logits_are_processed_in_float32() -> None:
    logits = logits_of(1, 3)
    s = [Sampling(temperature=0.7, top_p=0.9)] * 3
    for dtype in (torch.bfloat16, torch.float16):
        found = process(logits.to(dtype), s, [[0]] * 3, [[]] * 3)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, process(logits.to(dtype).float(), s, [[0]] * 3, [[]] * 3))


def test_extreme_settings_stay_finite() -> None:
    logits = torch.tensor([[80.0, -80.0, 79.9, 0.0]])
    narrow = Sampling(temperature=1.0, top_k=10**9, top_p=1e-9, min_p=1.0)
    for s in (Sampling(temperature=1e-6), Sampling(temperature=1e30), narrow):
        found = process(logits, [s], [[0]], [[]])
        assert not found.isnan().any()
        assert found.logsumexp(-1).item() == pytest.approx(0.0, abs=1e-5)


# ---- drawing ---------------------------------------------------------------------------------------------------------


def row_of(*, seed: int = 0, sample: int = 0, index: int = 0, output: list[int] | None = None, min_tokens: int = 0,
           stop: Any = (), logprobs: Any = None, certain: bool = False, **sampling: Any) -> Row:  # fmt: skip
    request = Request([1], 1, Sampling(**sampling), 50, min_tokens, frozenset(stop), (), False, logprobs, seed, certainty=certain)
    return Row(request, sample, index, [1], POOL.new_context(), [1], output=output or [])


def test_a_draw_is_the_best_of_log_probability_plus_noise() -> None:
    rows = [
        row_of(seed=5, sample=2, temperature=1.0, output=[3, 4]), row_of(seed=5, temperature=0.5, top_k=3), row_of(seed=9),
        *(row_of(seed=5, sample=2, index=i, temperature=1.0, output=[3, 4]) for i in range(1, 6)),
    ]  # fmt: skip
    logits = logits_of(3, len(rows))
    drawn = Sampler().draw(rows, logits)
    for row, own, token in zip(rows, logits, drawn.tokens.tolist(), strict=True):
        scores = slow_process(own.tolist(), row.prompt, row.output, row.request.sampling)
        seed = row.request.noise_seed
        noisy = [x + slow_gumbel(seed, row.sample, len(row.output), t, row=row.index) for t, x in enumerate(scores)]
        assert token == noisy.index(max(noisy))
    assert not drawn.failed


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.1, "presence_penalty": 1.0}, {"logit_bias": {2: 1.5}}],
    ids=str,
)
def test_draws_follow_the_processed_distribution(settings: dict[str, Any]) -> None:
    """Chi-square over seeds, on logits of a small vocabulary; what is ruled out never comes."""
    n, s = 6000, {"temperature": 1.0, **settings}
    logits = torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0, 1.5])
    p = torch.tensor(slow_process(logits.tolist(), [1], [0, 0], Sampling(**s))).exp().double()
    rows = [row_of(seed=seed, output=[0, 0], **s) for seed in range(n)]
    counts = torch.bincount(Sampler().draw(rows, logits.expand(n, -1)).tokens, minlength=6).double()
    assert counts[p == 0].sum() == 0
    expected = p[p > 0] * n
    freedom = len(expected) - 1
    excess = ((counts[p > 0] - expected) ** 2 / expected).sum().item() - freedom
    assert excess < 4 * math.sqrt(2 * freedom)


def test_two_tokens_in_a_row_follow_the_product_of_their_distributions() -> None:
    """Exact enumeration of all texts of two tokens from a first-order chain, against draws at two positions."""
    n, chain = 4000, torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]])
    sampler = Sampler()
    rows = [row_of(seed=seed, temperature=1.0) for seed in range(n)]
    first = sampler.draw(rows, chain[0].log().expand(n, -1)).tokens
    for row, token in zip(rows, first.tolist(), strict=True):
        row.output.append(token)
    second = sampler.draw(rows, chain[first].log()).tokens
    counts = torch.bincount(first * 3 + second, minlength=9).double()
    expected = (chain[0][:, None] * chain).flatten().double() * n
    assert ((counts - expected) ** 2 / expected).sum().item() < 8 + 4 * math.sqrt(16)


def test_stop_tokens_wait_for_min_tokens() -> None:
    logits = torch.tensor([[0.0, 9.0, 8.0, 1.0]]).expand(3, -1)
    rows = [row_of(min_tokens=2, stop=[1, 2], output=o) for o in ([], [0], [0, 0])]
    assert Sampler().draw(rows, logits).tokens.tolist() == [3, 3, 1]
    assert logits[0].tolist() == [0.0, 9.0, 8.0, 1.0]


def test_a_row_that_cannot_be_drawn_fails_alone() -> None:
    logits = logits_of(2, 5)
    logits[1, 3], logits[2, 0], logits[3] = math.nan, math.inf, -math.inf
    for settings in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2, "repetition_penalty": 1.1}):
        drawn = Sampler().draw([row_of(seed=i, **settings) for i in range(5)], logits)
        assert sorted(drawn.failed) == [1, 2, 3]
        assert all(isinstance(e, FloatingPointError) for e in drawn.failed.values())
        alone = [Sampler().draw([row_of(seed=i, **settings)], logits[i : i + 1]).tokens.item() for i in (0, 4)]
        assert drawn.tokens[[0, 4]].tolist() == alone


def test_what_is_kept_between_draws_follows_the_rows() -> None:
    """The same sampler, rows that come and go, settings that change, vocabularies that do not match."""
    sampler, rng = Sampler(), np.random.default_rng(0)
    pool = [row_of(seed=i, temperature=float(i % 3), top_k=i % 4) for i in range(8)]
    for step in range(30):
        rows = [pool[i] for i in rng.permutation(8)[: rng.integers(1, 9)]]
        logits = logits_of(step, len(rows), int(rng.choice([V, 7])))
        fresh = Sampler().draw(rows, logits)
        assert sampler.draw(rows, logits).tokens.tolist() == fresh.tokens.tolist()
        for row, token in zip(rows, fresh.tokens.tolist(), strict=True):
            row.output.append(token)


def test_logprobs_of_the_drawn() -> None:
    logits = logits_of(4, 3)
    rows = [
        row_of(temperature=0.5, top_k=2, logprobs="raw"), row_of(temperature=0.5, top_k=2, logprobs="processed"), row_of(),
    ]  # fmt: skip
    drawn = Sampler().draw(rows, logits)
    assert drawn.logprobs is not None
    raw, processed, _ = drawn.logprobs.tolist()
    assert raw == pytest.approx(logits[0].log_softmax(0)[drawn.tokens[0]].item(), abs=1e-5)
    slow = slow_process(logits[1].tolist(), [1], [], rows[1].request.sampling)
    assert processed == pytest.approx(slow[drawn.tokens[1]], abs=1e-5)
    assert Sampler().draw(rows[2:], logits[2:]).logprobs is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_certainty_is_the_divergence_from_uniform(dtype: torch.dtype) -> None:
    """Also of large logits, and with tokens that have no probability: a padded vocabulary says nothing."""
    logits = torch.cat((logits_of(0, 20), logits_of(1, 5) * 30 + 1000)).to(dtype)
    padded = torch.cat((logits, torch.full((25, 3), -torch.inf, dtype=dtype)), 1)
    expected = [slow_certainty(row) for row in logits.tolist()]
    assert certainty(logits).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert certainty(padded).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    sure = torch.tensor([[0.0, -math.inf, -math.inf], [2.0, 2.0, 2.0]], dtype=dtype)
    assert certainty(sure).tolist() == pytest.approx([0.0, 0.0])


def test_certainty_is_the_models_own_and_only_for_those_who_ask() -> None:
    logits, settings = logits_of(4, 3), {"temperature": 0.5, "top_k": 2, "repetition_penalty": 1.5}
    drawn = Sampler().draw([row_of(**settings, certain=True), row_of(), row_of(min_tokens=2, stop=[1])], logits)
    assert drawn.certainty is not None
    assert drawn.certainty.tolist() == pytest.approx([slow_certainty(row) for row in logits.tolist()], abs=1e-5)
    greedy = Sampler().draw([row_of(certain=True)], logits[:1]).certainty
    assert greedy is not None
    assert greedy.tolist() == pytest.approx(drawn.certainty[:1].tolist())
    assert Sampler().draw([row_of(**settings), row_of(logprobs="raw")], logits[:2]).certainty is None
