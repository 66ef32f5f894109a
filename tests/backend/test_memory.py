"""The plan of a GPU's memory, over numbers: shapes of known models on cards of known sizes, and what drawing really takes."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from drafting import babble
from lab import Toy, slow_generate, tiny_llama
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import forethought as ft
from forethought.backend.batch import Output
from forethought.backend.decoder import Draft
from forethought.backend.kv import KVPool, LayerSpec
from forethought.backend.memory import DRAWING, MemoryPlan, plan_memory, share_out, step_bytes
from forethought.backend.model import Model, ModelInfo
from forethought.backend.request import Request, Row, Sampling
from forethought.decoding import sampling as sampling_module
from forethought.decoding.sampling import Sampler, sort_and_filter

CARD = torch.device("cuda", 0)
GB = 10**9


def of_shape(
    layers: int, width: int, parameters: int, recorded: int = 256, positions: int = 40960, vocabulary: int = 151936,
    kv_heads: int = 8, dim: int = 128, devices: int = 1,
) -> Model:  # fmt: skip
    specs = [LayerSpec(kv_heads, dim, dim, torch.device("cuda", i * devices // layers)) for i in range(layers)]
    info = ModelInfo("shape", vocabulary, width, positions, parameters, torch.bfloat16, CARD, specs)
    return cast(Model, SimpleNamespace(info=info, recorded_tokens=recorded))


QWEN3_8B = of_shape(36, 4096, 8_190_735_360)
QWEN3_06B = of_shape(28, 1024, 596_049_920)


def card(monkeypatch: pytest.MonkeyPatch, total: int, free: int, kept: int = 0) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: kept)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)


@pytest.mark.parametrize("total", [80 * GB, 24 * GB])
def test_weights_steps_and_pool_fill_the_share(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an 8B model: 147456 bytes a slot, 36 layers of 8 heads of 128, K and V, 2 bytes each."""
    weights = 2 * QWEN3_8B.info.parameters + GB // 2  # and the driver's own
    card(monkeypatch, total, total - weights)
    [plan] = share_out([QWEN3_8B], utilization=0.9, tokens=512, rows=256)
    assert (plan.device, plan.total, plan.limit, plan.taken) == ("cuda:0", total, int(0.9 * total), weights)
    assert plan.slot_bytes == 147456
    assert plan.pool == (plan.slots + 1) * 147456
    filled = plan.taken + plan.steps + plan.pool
    assert plan.limit - plan.slot_bytes < filled <= plan.limit
    assert 2 * GB < plan.steps < 3.5 * GB
    assert {80 * GB: 350_000, 24 * GB: 2_000}[total] < plan.slots < {80 * GB: 370_000, 24 * GB: 15_000}[total]


def test_a_card_that_is_too_small_is_told_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 16 * GB, 16 * GB - 2 * QWEN3_06B.info.parameters)
    assert share_out([QWEN3_06B], utilization=0.9, tokens=512, rows=256)[0].slots > 10_000
    card(monkeypatch, 20 * GB, 20 * GB - 2 * QWEN3_8B.info.parameters)
    message = r"cuda:0 has 20.0 GB, of which gpu_memory_utilization=0.9 lets 18.0 GB be filled; 16.4 GB are taken, a step needs"
    with pytest.raises(ValueError, match=message):
        share_out([QWEN3_8B], utilization=0.9, tokens=512, rows=256)
    [plan] = share_out([QWEN3_8B], utilization=0.9, tokens=64, rows=4)
    assert plan.slots >= 68


def test_what_torch_keeps_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []
    for free, kept in ((60 * GB, 0), (50 * GB, 10 * GB)):
        card(monkeypatch, 80 * GB, free, kept)
        plans += share_out([QWEN3_8B], utilization=0.9, tokens=512, rows=256)
    assert plans[0] == plans[1]


def test_no_more_than_rows_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    small = of_shape(28, 1024, 596_049_920, positions=1000)
    card(monkeypatch, 80 * GB, 78 * GB)
    [plan] = share_out([small], utilization=0.9, tokens=512, rows=8)
    assert plan.slots == 8000


def test_a_draft_model_has_a_pool_too(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 80 * GB, 62 * GB)
    [alone] = share_out([QWEN3_8B], utilization=0.9, tokens=512, rows=256)
    [both] = share_out([QWEN3_8B, QWEN3_06B], utilization=0.9, tokens=512, rows=256)
    assert both.slot_bytes == 147456 + 114688
    assert both.steps == alone.steps + step_bytes(QWEN3_06B, 768, 256)
    assert both.taken + both.steps + both.pool <= both.limit
    assert both.slots < alone.slots


def test_a_card_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 80 * GB, 62 * GB)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    draft = of_shape(28, 1024, 596_049_920)
    draft.info = replace(draft.info, layers=[replace(s, device=torch.device("cuda")) for s in draft.info.layers])
    assert share_out([QWEN3_8B, draft], utilization=0.9, tokens=512, rows=256) == share_out(
        [QWEN3_8B, QWEN3_06B], utilization=0.9, tokens=512, rows=256
    )


def test_over_two_cards_the_fuller_one_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 80 * GB, 70 * GB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((70 - 20 * device.index) * GB, 80 * GB))
    first, second = share_out([of_shape(36, 4096, 8_190_735_360, devices=2)], utilization=0.9, tokens=512, rows=256)
    assert (first.device, second.device) == ("cuda:0", "cuda:1")
    assert first.slots == second.slots
    assert second.limit - second.slot_bytes < second.taken + second.steps + second.pool <= second.limit


def test_a_number_of_slots_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 8 * GB, GB)
    [plan] = share_out([QWEN3_8B], utilization=0.9, tokens=512, rows=256, kv_slots=1000)
    assert plan.slots == 1000


def test_the_report_is_a_line() -> None:
    plan = MemoryPlan("cuda:0", 80 * GB, 72 * GB, 17 * GB, 3 * GB, 147456, 350_000)
    assert str(plan) == (
        "cuda:0: 80.0 GB, of which 72.0 GB may be filled: 17.0 GB taken (weights), 3.0 GB for steps, 51.6 GB for 350000 KV "
        "slots of 147456 bytes"
    )


def test_exactly_the_least_fits() -> None:
    about: dict[str, Any] = {"total": 1000, "free": 900, "utilization": 0.5, "steps": 100, "slot_bytes": 10, "most": 99}
    assert plan_memory("card", least=29, **about).slots == 29
    with pytest.raises(ValueError, match="hold no 30 KV slots"):
        plan_memory("card", least=30, **about)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_a_share_is_a_share(share: float, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="gpu_memory_utilization"):
        ft.Engine(tiny_llama(tmp_path), ft.Autoregressive(), gpu_memory_utilization=share)


def test_on_a_cpu_nothing_is_planned(tmp_path: Any) -> None:
    tiny_llama(tmp_path)
    with ft.Engine(ft.load(tmp_path, device="cpu"), ft.Autoregressive()) as engine:
        assert engine.memory == ()
        assert engine.pool.size == 64 * 1024


def test_an_engine_takes_the_planned_pool(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft model's is as large."""
    asked: list[Any] = []

    def planned(models: Any, **options: Any) -> tuple[MemoryPlan, ...]:
        asked.append((models, options))
        return (MemoryPlan("cuda:0", 1, 1, 0, 0, 1, 321),)

    from forethought.backend import engine as module

    monkeypatch.setattr(module, "share_out", planned)
    model, small = tiny_llama(tmp_path / "a"), tiny_llama(tmp_path / "b", num_hidden_layers=1)
    with ft.Engine(model, ft.Speculative(small, 4), max_rows=7, prefill_tokens=11, gpu_memory_utilization=0.4) as engine:
        assert engine.pool.size == 321
        assert engine.max_rows == 7
        assert asked == [([model, small], {"utilization": 0.4, "tokens": 11, "rows": 7, "kv_slots": None})]


# ---- logits that a step decides on -----------------------------------------------------------------------------------


class Eager(ft.Lookahead):
    """Drafts up to nine tokens a row, all that it may; several rows a sample if told so."""

    def __init__(self, rows: int = 1) -> None:
        super().__init__(9, adaptive=False)
        self.rows, self.budgets, self.decided = rows, list[int](), list[int]()

    def open(self, request: Request, sample: int, pool: KVPool) -> list[Row]:
        prompt = list(request.prompt)
        return [Row(request, sample, i, prompt, pool.new_context(), list(prompt)) for i in range(self.rows)]

    def draft(self, rows: Any, budget: int) -> Draft:
        self.budgets.append(budget)
        many = [max(0, min(9, budget // len(rows), row.request.max_tokens - len(row.output) - 1)) for row in rows]
        return Draft([7] * sum(many), [i for n in many for i in range(n)], np.cumsum([0, *many]).tolist())

    def decide(self, rows: Any, draft: Any, output: Output) -> Any:
        assert output.logits is not None
        self.decided.append(len(output.logits))
        return super().decide(rows, draft, output)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """planned(True): from here on engines run as on a card."""
    from forethought.backend import engine as module

    def plan(on: bool) -> None:
        plans = (MemoryPlan("cuda:0", 1, 1, 0, 0, 1, 9000),) if on else ()
        monkeypatch.setattr(module, "share_out", lambda models, **options: plans)

    return plan


def all_of(engine: ft.Engine, requests: list[dict[str, Any]]) -> list[list[list[int]]]:
    """Token ids of each sample of each request, all asked for at once."""

    async def together() -> Any:
        return await asyncio.gather(*(engine.agenerate(**request) for request in requests))

    return [[c.token_ids for c in outs] for outs in asyncio.run(together())]


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
def test_no_step_decides_on_more_than_is_planned_for(on: bool, rows: int, planned: Callable[[bool], None]) -> None:
    """Rows, drafted tokens, prompts that end and siblings that join: all decide on logits of their own."""
    planned(on)
    toy, decoder = Toy(vocabulary=31), Eager(rows)
    requests = [{"prompts": [1 + i, 2, 3], "n": 1 + 3 * i, "max_tokens": 9 + i, "seed": i} for i in range(4)]
    with ft.Engine(toy, decoder, max_rows=70, prefill_tokens=8) as engine:
        found = all_of(engine, [requests[0], *requests, requests[3] | {"n": 20, "prompts": [8, 9]}])
        assert engine.generate([5], max_tokens=9)[0].cost.drafted > 0
        for prompt in ([5], [8, 9]):  # of one token, and cached but for one: what leads is not fed
            all_of(engine, [{"prompts": [9, 9, 9], "max_tokens": 50}, {"prompts": prompt, "n": 69 // rows, "max_tokens": 9}])
    for outs, request in zip(found[1:-1], requests, strict=True):
        prompt, most, seed = request["prompts"], request["max_tokens"], request["seed"]
        assert outs == [slow_generate(toy.rule, prompt, most, seed=seed, sample=k) for k in range(len(outs))]
    assert (max(decoder.decided) <= 70) == on


def test_one_row_may_always_verify_a_tree(planned: Callable[[bool], None]) -> None:
    planned(True)
    decoder = Eager()
    with ft.Engine(Toy(vocabulary=31), decoder, max_rows=1) as engine:
        engine.generate([5], max_tokens=9)
    assert max(decoder.budgets) == 64


def test_drafts_go_on_while_a_prompt_is_fed_that_many_will_share(planned: Callable[[bool], None]) -> None:
    planned(True)
    decoder = Eager()
    long = {"prompts": [*range(30)] * 9, "n": 64, "max_tokens": 2}
    with ft.Engine(Toy(vocabulary=31), decoder, max_rows=12, prefill_tokens=4) as engine:
        all_of(engine, [{"prompts": [1], "max_tokens": 99, "temperature": 1.0, "seed": 0}, long])
    assert sum(budget < 50 for budget in decoder.budgets) < 10


@pytest.mark.parametrize("rule", ["ratio", "block", "tree"])
def test_a_budget_that_text_depends_on_is_not_cut(rule: Any, planned: Callable[[bool], None]) -> None:
    """On a card fewer rows run, and the text of a seed is the same alone and in a crowd."""
    planned(True)
    requests = [{"prompts": [5 + i % 9, 6, 7], "max_tokens": 30, "temperature": 1.0, "seed": i} for i in range(30)]
    found = []
    for asked in (requests[:1], requests):
        toy, draft = (Toy(babble(salt, 60, range(5, 17)), vocabulary=60) for salt in (0, 1))
        decoder = ft.Speculative(draft, tree=[2, 2] if rule == "tree" else [1] * 6, rule=rule)
        with ft.Engine(toy, decoder, kv_slots=9000, max_rows=70) as engine:
            assert engine.max_rows == 70 // 7
            found.append(all_of(engine, asked)[0])
    assert found[0] == found[1]


class Peak(TorchDispatchMode):
    """``most``: bytes of all that was made while it is on, at the moment there were most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and (key := x.untyped_storage()._cdata) not in self._known:
                self._known.add(key)
                self.now += x.untyped_storage().nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(x.untyped_storage(), self._gone, key, x.untyped_storage().nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        self._known.discard(key)


def test_drawing_takes_no_more_than_is_kept_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device, by all rules at once, over logits that are large beside everything else."""
    monkeypatch.setattr(sampling_module, "filter_scores", sort_and_filter)
    rows, vocabulary = 32, 4096
    pool = KVPool([LayerSpec(1, 1, 1, torch.device("cpu"))], rows, torch.float32)
    sampling = Sampling(
        temperature=0.7, top_k=9, top_p=0.9, min_p=0.02, repetition_penalty=1.3, presence_penalty=0.4, logit_bias={3: 2.0}
    )
    request = Request(
        prompt=[1, 2, 3], n=1, max_tokens=20, min_tokens=9, stop_ids=frozenset({2}), stop_strings=(), include_stop=False,
        logprobs="processed", sampling=sampling, seed=1, certainty=True,
    )  # fmt: skip
    drawing = [Row(request, i, 0, [1, 2, 3], pool.new_context(), [3], output=[4, 4]) for i in range(rows)]
    logits = torch.randn(rows, vocabulary, dtype=torch.bfloat16)
    sampler = Sampler()
    sampler._prepare(drawing)
    with Peak() as peak:
        sampler._draw_on_device(drawing, logits, None, True)
        sampler.certainty(drawing, logits)
    assert DRAWING / 2 < peak.most / (rows * vocabulary) < DRAWING


def test_a_pool_takes_what_is_planned_for_it() -> None:
    pool = KVPool([LayerSpec(2, 4, 6, torch.device("cpu")), LayerSpec(1, 8, 8, torch.device("cpu"))], 10, torch.float16)
    plan = MemoryPlan("card", 0, 0, 0, 0, slot_bytes=pool.slot_bytes, slots=10)
    assert plan.pool == sum(x.untyped_storage().nbytes() for x in pool._blocks)
