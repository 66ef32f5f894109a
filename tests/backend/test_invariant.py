"""``Engine(batch_invariant=True)``: a request's text and log-probabilities are the same bits whatever shares its batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lab import Toy

import forethought as ft
from forethought.backend.model import Model
from forethought.backend.request import Sample
from forethought.backend.scheduler import Scheduler
from forethought.kernels import invariant, reference
from forethought.kernels.views import Views, ancestor_bits

DTYPES = [torch.float32, torch.bfloat16]
SHARED = "Tom has 3 apples. He buys 4 more and gives 2 to Ann. "
PROMPTS = ["What is 17 + 25?", SHARED + "How many has Tom?", SHARED + "How many has Ann?", SHARED * 9 + "How many are there?"]
OPTIONS: dict[str, Any] = {"n": 2, "max_tokens": 12, "temperature": 0.8, "seed": 5, "logprobs": True, "ignore_eos": True}
DECODERS: dict[str, Callable[[], ft.Decoder]] = {
    "plain": ft.Autoregressive,
    "lookup": ft.PromptLookup,
    "lookahead": ft.Lookahead,
    "tree": lambda: ft.Speculative(ft.load("nano-draft"), tree=[2, 2, 1]),
}


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def model(request: pytest.FixtureRequest) -> Model:
    return ft.load("nano", device="cpu", dtype=request.param)


def told(completions: list[ft.Completion]) -> list[tuple[Any, ...]]:
    return [(c.token_ids, c.logprobs) for c in completions]


@pytest.fixture(scope="module")
def expected(model: Model) -> list[list[tuple[Any, ...]]]:
    """Each prompt by an engine of its own, nothing cached, plainly decoded."""
    found = []
    for prompt in PROMPTS:
        with ft.Engine(model, ft.Autoregressive(), batch_invariant=True) as engine:
            found.append([told([engine.generate(prompt, **{**OPTIONS, "n": 1, "first": i})[0]])[0] for i in range(2)])
    return found


@pytest.mark.parametrize(
    "decoder", ["tree", *(pytest.param(name, marks=pytest.mark.slow) for name in DECODERS if name != "tree")]
)
def test_company_cache_chunks_drafts_and_preemption_change_no_bit(
    model: Model, expected: list[list[tuple[Any, ...]]], decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, preempted, preempt = random.Random(decoder), list[int](), Scheduler.preempt

    def noted(self: Scheduler, sample: Sample) -> None:
        preempted.append(sample.index)
        preempt(self, sample)

    monkeypatch.setattr(Scheduler, "preempt", noted)
    for prefill, slots in ((512, None), (29, 230)):
        with ft.Engine(model, DECODERS[decoder](), prefill_tokens=prefill, kv_slots=slots, batch_invariant=True) as engine:
            for _ in range(2):  # with a cold cache, then with a warm one
                order = chance.sample(range(len(PROMPTS)), len(PROMPTS))
                results = engine.generate([PROMPTS[i] for i in order], **OPTIONS)
                assert [told(found) for found in results] == [expected[i] for i in order]
        assert bool(preempted) == (slots is not None)


def test_scores_depend_on_no_other_continuation(model: Model) -> None:
    texts = ["He has 5.", "5", "Ann has 2 apples, and Tom has 5 of them.", "so 9 - 4 = 5"]
    with ft.Engine(model, ft.Autoregressive(), prefill_tokens=5, batch_invariant=True) as engine:
        one = [engine.score(PROMPTS[1], [text])[0].logprobs for text in texts]
    with ft.Engine(model, ft.Autoregressive(), batch_invariant=True) as engine:
        engine.generate(PROMPTS, **OPTIONS)
        assert [score.logprobs for score in engine.score(PROMPTS[1], texts)] == one


def test_it_is_the_same_law_up_to_rounding(model: Model) -> None:
    texts = ["He has 5.", "Ann has 2 apples, and Tom has 5 of them."]
    found = []
    for chosen in (False, True):
        with ft.Engine(model, ft.Autoregressive(), batch_invariant=chosen) as engine:
            found.append(torch.tensor([x for score in engine.score(SHARED, texts) for x in score.logprobs]))
    tolerance = 1e-3 if model.info.dtype == torch.float32 else 0.3
    torch.testing.assert_close(found[0], found[1], atol=tolerance, rtol=0)


def test_without_it_company_changes_bits() -> None:
    """Or the tests above could not fail: the very products differ by their rows on this machine, or in another dtype."""
    if not any(invariant.depends(dtype) for dtype in DTYPES):
        pytest.skip("this CPU's plain products do not depend on their rows")
    differs = False
    for dtype in DTYPES:
        model = ft.load("nano", device="cpu", dtype=dtype)
        with ft.Engine(model, ft.Autoregressive()) as engine:
            one = [told(engine.generate(prompt, **OPTIONS)) for prompt in PROMPTS]
            engine.clear_cache()
            differs |= [told(found) for found in engine.generate(PROMPTS, **OPTIONS)] != one
    assert differs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 40])
def test_a_products_row_is_its_own(dtype: torch.dtype, rows: int) -> None:
    x, weight, bias = torch.randn(40, 96).to(dtype), torch.randn(96, 130).to(dtype), torch.randn(130).to(dtype)
    found = invariant.product(x[:rows], weight, bias)
    torch.testing.assert_close(found, torch.addmm(bias, x[:rows], weight), atol=0.2, rtol=0.02)
    for i in range(rows):
        assert torch.equal(found[i], invariant.product(x[i : i + 1], weight, bias)[0])


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("length", [1, 127, 128, 129, 700])
def test_attention_is_the_specifications_and_the_same_bits_in_any_tree(length: int, window: int | None) -> None:
    parents = [-1, 0, 0, 1, 2, 3]
    k, v = torch.randn(2, 900, 2, 32)
    q = torch.randn(6, 6, 32)
    slots = torch.randperm(900)[: length + 6].numpy()
    places = torch.tensor([*range(length), *(length + depth for depth in (0, 1, 1, 2, 2, 3))]).numpy()
    ptr = torch.tensor
    whole = Views(places[length:], ptr([0, 6]).numpy(), ptr([0, 1]).numpy(), ptr([0, length + 6]).numpy(), slots, places,
                  tree=ancestor_bits(parents))  # fmt: skip
    found = invariant.attend(q, k, v, whole, scale=0.2, window=window)
    expected, _ = reference.attend(q, k, v, whole, scale=0.2, window=window)
    torch.testing.assert_close(found, expected)
    path = [0, 1, 3, 5]
    line = slots[[*range(length), *(length + i for i in path)]]
    chain = Views(places[length:][path], ptr([0, 4]).numpy(), ptr([0, 1]).numpy(), ptr([0, length + 4]).numpy(), line)
    assert torch.equal(invariant.attend(q[path], k, v, chain, scale=0.2, window=window), found[path])


def test_who_cannot_promise_it_says_so() -> None:
    with pytest.raises(ValueError, match="batch_invariant=True: Toy has no batch-invariant form"):
        ft.Engine(Toy(), ft.Autoregressive(), batch_invariant=True)
    nano = ft.load("nano", device="cpu")
    ratio = ft.Speculative(ft.load("nano-draft"), rule="ratio", adaptive=False)
    with pytest.raises(ValueError, match="text depends on what is drafted"):
        ft.Engine(nano, ratio, batch_invariant=True)
