"""How often a step waits for a device, drafts or none: once, to read what is drawn. Shown without one, and on one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from card import ELSEWHERE, Card
from lab import tiny_llama

import forethought as ft
from forethought.backend.batch import Output, TokenBatch
from forethought.backend.batch import Row as New
from forethought.backend.decoder import Draft
from forethought.backend.kv import KVPool, LayerSpec
from forethought.backend.request import Request, Row, Sampling
from forethought.decoding import sampling
from forethought.decoding.autoregressive import Autoregressive
from forethought.decoding.lookahead import Lookahead

V = 31
POOL = KVPool([LayerSpec(1, 1, 1, torch.device("cpu"))], 16, torch.float32)
GREEDY = Sampling()
NUCLEUS = Sampling(temperature=0.8, top_k=9, top_p=0.9, min_p=0.02)
EDITED = Sampling(temperature=0.7, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2, logit_bias={3: 2.0})
CASES: dict[str, tuple[list[Sampling], dict[str, Any]]] = {
    "greedy": ([GREEDY] * 3, {}),
    "sampled": ([Sampling(temperature=1.0)] * 3, {}),
    "filtered": ([NUCLEUS, GREEDY, Sampling(temperature=1.0, top_k=4)], {}),
    "edited": ([EDITED, GREEDY, EDITED], {}),
    "minimum": ([GREEDY, NUCLEUS], {"min_tokens": 9, "stop_ids": frozenset({2, 5})}),
    "reports": ([NUCLEUS, GREEDY], {"logprobs": "processed", "certainty": True}),
}


FIXED: dict[str, Any] = {
    "prompt": [1, 2, 3], "n": 1, "max_tokens": 20, "min_tokens": 0, "stop_ids": frozenset(), "stop_strings": (),
    "include_stop": False, "logprobs": None,
}  # fmt: skip


def rows_of(settings: list[Sampling], options: dict[str, Any]) -> list[Row]:
    made = []
    for i, s in enumerate(settings):
        request = Request(**FIXED | {"sampling": s, "seed": 5 + i} | options)
        row = Row(request, 0, 0, [1, 2, 3], POOL.new_context(), [3])
        row.output += [4, 4, 7]
        made.append(row)
    return made


@pytest.mark.parametrize("case", CASES)
def test_deciding_reads_once(case: str) -> None:
    """And decides what it does where nothing has to be read."""
    rows = rows_of(*CASES[case])
    logits = torch.randn(len(rows), V, generator=torch.Generator().manual_seed(1)) * 3
    wanted = Autoregressive().decide(rows, None, Output(logits)).split([1] * len(rows), V)
    with Card() as card:
        there = logits.to(ELSEWHERE, non_blocking=True)
        found = Autoregressive().decide(rows, None, Output(there)).split([1] * len(rows), V)
    assert (card.downloads, card.waits) == (1, [])
    for a, b in zip(found, wanted, strict=True):
        assert (a.ids, a.pending) == (b.ids, b.pending)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
        assert a.certainty == pytest.approx(b.certainty, abs=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_verifying_drafts_reads_once(case: str) -> None:
    """Of trees too: whatever the drafted tokens are, what was drawn at all nodes comes in one piece."""
    rows = rows_of(*CASES[case])
    ids, parents, ptr, places = [], [], [0], [0]
    for i in range(len(rows)):  # the first row has no draft, the second a chain of one, the third a tree
        ids += [4, 9, 4][: i * (i + 1) // 2]
        parents += [0, 0, 1][: i * (i + 1) // 2]
        ptr.append(len(ids))
        places.append(ptr[-1] + i + 1)
    logits = torch.randn(places[-1], V, generator=torch.Generator().manual_seed(1)) * 3
    logits[places[1], 4] += 99  # the second row's draft is right
    counts, draft = np.diff(places).tolist(), Draft(ids, parents, ptr)
    wanted = Lookahead(8).decide(rows, draft, Output(logits)).split(counts, V, draft)
    with Card() as card:
        there = logits.to(ELSEWHERE, non_blocking=True)
        found = Lookahead(8).decide(rows, draft, Output(there)).split(counts, V, draft)
    assert (card.downloads, card.waits) == (1, [])
    assert case in ("edited", "minimum") or found[1].kept == [0, 1]
    for a, b in zip(found, wanted, strict=True):
        assert (a.ids, a.pending, a.kept) == (b.ids, b.pending, b.kept)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
        assert a.certainty == pytest.approx(b.certainty, abs=1e-4)


def test_a_fault_is_still_one_rows_own() -> None:
    rows = rows_of([GREEDY, NUCLEUS, GREEDY], {"certainty": True})
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(1))
    logits[1, 4] = torch.nan
    with Card() as card:
        found = Autoregressive().decide(rows, None, Output(logits.to(ELSEWHERE, non_blocking=True)))
    assert list(found.failed) == [1]
    assert card.downloads == 1


def test_a_call_is_sent_without_a_wait() -> None:
    context = POOL.new_context()
    with Card() as card:
        batch = TokenBatch(POOL, [New(context, [4, 5])])
        for x in batch.tensors(ELSEWHERE):
            assert x.device == ELSEWHERE
    batch.rollback()
    assert (card.downloads, card.waits) == (0, [])


def test_the_card_sees_who_waits() -> None:
    with Card() as card:
        x = torch.randn(4, V).to(ELSEWHERE)
        assert len(card.waits) == 1
        x.max(-1).values.cpu()
        assert card.downloads == 1
        bool((x > 0).any())
        x[x > 0]
        assert len(card.waits) == 3
        with pytest.raises(AssertionError, match="here and elsewhere"):
            x + torch.randn(V)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("drafting", [False, True])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_k": 9, "top_p": 0.9}, {"repetition_penalty": 1.2}])
def test_a_step_on_a_card_waits_once(
    settings: dict[str, Any], drafting: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama(tmp_path)
    reads = 0
    honest = sampling.read

    def allowed(*tensors: Any) -> Any:
        nonlocal reads
        reads += 1
        torch.cuda.set_sync_debug_mode("default")
        try:
            return honest(*tensors)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    prompts = [np.random.default_rng(i).integers(1, 101, 5 + i).tolist() for i in range(3)]
    with ft.Engine(model, Lookahead(4, adaptive=False) if drafting else Autoregressive()) as engine:
        for _ in range(3):  # compiles, records graphs, and learns what to draft
            warm = engine.generate(prompts, max_tokens=12, seed=1, progress=False, **settings)
            engine.clear_cache()
        before = engine.cost.forwards
        monkeypatch.setattr(sampling, "read", allowed)
        with waiting_is_an_error():
            again = engine.generate(prompts, max_tokens=12, seed=1, progress=False, **settings)
        assert reads == engine.cost.forwards - before
    assert [a[0].token_ids for a in again] == [a[0].token_ids for a in warm]


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
