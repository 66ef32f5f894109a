"""Who runs when: shared prompts and prefixes are computed once, and a pool too small for all still serves all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from lab import Audited, Toy, audit, slow_generate

import forethought as ft
from forethought.backend import batch as calls
from forethought.backend.batch import Output, TokenBatch
from forethought.backend.decoder import Decision, Draft
from forethought.backend.request import Row

VOCABULARY = 31


def toy_model(**options: Any) -> Toy:
    return Toy(vocabulary=VOCABULARY, **options)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist()


# ---- computed once -------------------------------------------------------------------------------------------------


def test_a_prefix_in_common_is_computed_once_in_the_same_batch() -> None:
    """Ten questions behind the same 100 tokens: the rest wait for the first, and only their own tokens are computed."""
    toy, shots = toy_model(), prompt_of(100)
    prompts = [[*shots, *prompt_of(5 + i, seed=i + 1)] for i in range(10)]
    with Audited(toy, kv_slots=4000) as engine:
        outs = engine.generate(prompts, max_tokens=6)
        assert [o[0].token_ids for o in outs] == [slow_generate(toy.rule, p, 6) for p in prompts]
        own = sum(len(p) - 100 for p in prompts)
        assert 100 + own <= engine.cost.prompt <= 100 + own + 5, "a chance hit more or less where the questions begin alike"
        assert engine.cost.prompt + engine.cost.cached == sum(map(len, prompts))


def test_short_common_prefixes_are_not_waited_for() -> None:
    toy = toy_model()
    with Audited(toy, kv_slots=4000) as engine:
        engine.generate([[1, 2, 3, i] for i in range(4)], max_tokens=1)
        assert engine.cost.forwards == 1


def test_what_was_computed_is_found_again_until_cleared() -> None:
    toy, prompt = toy_model(), prompt_of(50)
    with Audited(toy, kv_slots=4000) as engine:
        first = engine.generate(prompt, max_tokens=10)[0]
        assert engine.pool.cached == 59, "the last token has no KV"
        longer = [*prompt, *first.token_ids, 3, 4]
        second = engine.generate(longer, max_tokens=5)[0]
        assert (second.cost.cached, second.cost.prompt) == (59, 3)
        same = engine.generate(prompt, max_tokens=10)[0]
        assert (same.cost.cached, same.cost.prompt) == (49, 1), "one token at least is computed: its logits are wanted"
        assert same.token_ids == first.token_ids
        engine.clear_cache()
        assert engine.pool.free == engine.pool.size
        assert engine.generate(prompt, max_tokens=10)[0].cost.cached == 0


def test_a_half_known_edge_is_used_as_far_as_it_goes() -> None:
    toy, prompt = toy_model(), prompt_of(40)
    other = [*prompt[:23], (prompt[23] + 1) % VOCABULARY, 5]
    with Audited(toy, kv_slots=4000) as engine:
        engine.generate(prompt, max_tokens=2)
        out = engine.generate(other, max_tokens=8)[0]
        assert out.cost.cached == 23
        assert out.token_ids == slow_generate(toy.rule, other, 8)


def test_a_cancelled_stream_leaves_its_prompt_in_the_cache() -> None:
    toy, prompt = toy_model(), prompt_of(40)
    with Audited(toy, kv_slots=4000) as engine:
        stream = engine.stream(prompt, max_tokens=1000)
        next(stream)
        stream.close()
        assert engine.generate(prompt, max_tokens=4)[0].cost.cached == 39


def test_siblings_join_as_many_as_fit_and_the_rest_find_the_prompt_later() -> None:
    toy, prompt = toy_model(), prompt_of(40)
    for slots, rows in ((70, 256), (4000, 3)):
        held = Audited(toy, kv_slots=slots, max_rows=rows)
        with held as engine:
            outs = engine.generate(prompt, n=20, max_tokens=12, temperature=1.0, seed=1)
            assert [o.token_ids for o in outs] == [
                slow_generate(toy.rule, prompt, 12, seed=1, sample=i, temperature=1.0) for i in range(20)
            ]
            assert engine.cost.prompt < 2 * len(prompt)
        toy = toy_model()


# ---- too small for all ---------------------------------------------------------------------------------------------


class Watch(ft.Autoregressive):
    """Plain decoding that writes down who came, was preempted and left."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, int]] = []

    def admit(self, row: Row) -> None:
        self.log.append(("admit", row.request.seed))

    def preempt(self, row: Row) -> None:
        self.log.append(("preempt", row.request.seed))

    def release(self, row: Row, outcome: Any) -> None:
        assert outcome in ("stop", "length", "cancelled", "error")
        self.log.append((outcome, row.request.seed))


@pytest.mark.parametrize(
    ("slots", "prompts"),
    [
        (60, [[i, 9, 9, 9] for i in range(4)]),
        (90, [[*prompt_of(40), 0], [*prompt_of(40), 1], [9, 9, 9], [8]]),  # the second waits for the first's prompt
    ],
)
def test_the_oldest_is_never_preempted_and_the_youngest_first(slots: int, prompts: list[list[int]]) -> None:
    toy, decoder = toy_model(), Watch()
    with Audited(toy, decoder, kv_slots=slots, prefill_tokens=16) as engine:

        async def main() -> Any:
            return await asyncio.gather(*(engine.agenerate(p, max_tokens=40, seed=i) for i, p in enumerate(prompts)))

        outs = asyncio.run(main())
        assert [o[0].token_ids for o in outs] == [slow_generate(toy.rule, p, 40) for p in prompts]
    preempted = [seed for what, seed in decoder.log if what == "preempt"]
    assert preempted, "the pool was not too small"
    assert 0 not in preempted
    running: set[int] = set()
    for what, seed in decoder.log:
        if what == "preempt":
            assert seed == max(running), "someone younger was running"
        running = running | {seed} if what == "admit" else running - {seed}
    assert sum(what == "admit" for what, _ in decoder.log) == sum(what != "admit" for what, _ in decoder.log)


def test_a_cached_prompt_takes_room_too() -> None:
    """Nobody is let in on cached slots that leave no room to go on, only to be thrown out again at every step."""
    toy, decoder, prompt = toy_model(), Watch(), prompt_of(40)

    async def main(engine: ft.Engine) -> Any:
        return await asyncio.gather(
            engine.agenerate([7] * 5, max_tokens=30, seed=1), engine.agenerate(prompt, max_tokens=9, seed=2)
        )

    with Audited(toy, decoder, kv_slots=60) as engine:
        engine.generate(prompt, max_tokens=1, seed=0)
        first, second = asyncio.run(main(engine))
        assert first[0].token_ids == slow_generate(toy.rule, [7] * 5, 30)
        assert second[0].token_ids == slow_generate(toy.rule, prompt, 9)
    assert sum(seed == 2 and what == "preempt" for what, seed in decoder.log) <= 1


def test_recomputing_is_billed_as_waste_and_the_prompt_once() -> None:
    toy = toy_model()
    with Audited(toy, kv_slots=64) as engine:
        outs = engine.generate([[i, *prompt_of(11)] for i in range(5)], max_tokens=30, temperature=1.0, seed=0)
        bill = engine.cost
    assert bill.prompt <= 60
    assert bill.discarded > 0
    assert {o[0].cost.peak_kv_bytes for o in outs} == {(12 + 30 - 1) * engine.pool.slot_bytes}
    assert toy.tokens == bill.computed - len(outs)


def test_a_request_as_large_as_the_pool_runs() -> None:
    toy, prompt = toy_model(), prompt_of(20)
    with Audited(toy, kv_slots=50) as engine:
        before = engine.generate(prompt_of(30, seed=1), max_tokens=20)  # fills the cache, which has to go
        assert before[0].finish_reason == "length"
        assert engine.generate(prompt, max_tokens=30)[0].token_ids == slow_generate(toy.rule, prompt, 30)


def test_drafts_shrink_before_anybody_is_preempted() -> None:
    """A decoder is told what there is room for, and the last of the pool still serves everyone."""

    class Greedy(ft.Autoregressive):
        budgets: list[int] = []

        def draft(self, rows: Sequence[Row], budget: int) -> Draft | None:
            self.budgets.append(budget)
            n = min(budget, 8 * len(rows))
            if not n:
                return None
            each = [n // len(rows) + (i < n % len(rows)) for i in range(len(rows))]
            ids = torch.zeros(n, dtype=torch.int64)
            parents = torch.cat([torch.arange(k) for k in each])
            return Draft(ids, parents, torch.tensor([0, *np.cumsum(each).tolist()]))

        def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
            assert output.logits is not None
            if draft is None:
                return super().decide(rows, None, output)
            counts = [1 + end - begin for begin, end in pairwise(draft.lists()[2])]
            roots = [sum(counts[:i]) for i in range(len(counts))]
            plain = super().decide(rows, None, Output(output.logits[roots]))
            root_only = torch.zeros(len(rows), dtype=torch.int64), torch.arange(len(rows) + 1)
            return Decision(plain.emitted, kept=root_only[0], kept_ptr=root_only[1])

    toy, decoder = toy_model(), Greedy()
    with Audited(toy, decoder, kv_slots=40) as engine:
        outs = engine.generate([[1], [2], [3]], max_tokens=12)
        assert [o[0].token_ids for o in outs] == [slow_generate(toy.rule, [i], 12) for i in (1, 2, 3)]
        assert min(decoder.budgets) < 8 < max(decoder.budgets)
        assert engine.cost.drafted == engine.cost.discarded > 0
        assert engine.cost.accepted == 0


def test_cached_slots_in_front_of_used_ones_can_be_freed() -> None:
    """Two contexts that computed the same prefix by themselves: one copy's cache must not be pinned by what hangs on it."""
    toy = toy_model()
    with Audited(toy, kv_slots=24) as engine:
        tree, pool = engine._runner.tree, engine.pool

        def twice() -> None:
            contexts = [pool.new_context(), pool.new_context()]
            for context, ids in zip(contexts, ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6]), strict=True):
                batch = TokenBatch(pool, [calls.Row(context, ids)])
                toy.forward(batch)
                batch.commit()
                tree.insert(context.ids, context.slots)
            contexts[0].release()
            assert (pool.used, pool.cached) == (6, 4)
            assert engine._runner.scheduler.reserve(pool.size - 6), "four cached slots, and nobody could have them"
            audit(pool, tree)
            contexts[1].release()

        engine._call(twice).result()


# ---- anything at all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_random_schedule_in_a_tiny_pool(seed: int) -> None:
    """Submit, watch, cancel, score and clear in any order: what ends by itself is right, and the books balance at each step."""
    rng, toy = np.random.default_rng(seed), toy_model()
    stems = [prompt_of(20, seed=100 + i) for i in range(3)]

    async def one(engine: ft.Engine, i: int) -> None:
        stem = stems[rng.integers(3)][: rng.integers(1, 21)]
        prompt = [*stem, *prompt_of(int(rng.integers(0, 6)), seed=i)]
        n, tokens = int(rng.integers(1, 4)), int(rng.integers(1, 25))
        options: dict[str, Any] = {"max_tokens": tokens, "temperature": 1.0, "seed": i}
        kind = rng.integers(5)
        await asyncio.sleep(float(rng.random()) * 0.05)
        if kind == 0:
            task = asyncio.ensure_future(engine.agenerate(prompt, n=n, **options))
            await asyncio.sleep(float(rng.random()) * 0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif kind == 1:
            expected, seen = slow_generate(toy.rule, prompt, tokens, seed=i, temperature=1.0), list[int]()
            leave = rng.integers(1, 30)
            stream = engine.astream(prompt, **options)
            async for piece in stream:
                seen += piece.token_ids
                if len(seen) >= leave:
                    break
            await stream.aclose()  # type: ignore[attr-defined]
            assert seen == expected[: len(seen)]
        elif kind == 2:
            [score] = await engine.ascore(prompt, [[1, 2, 3]])
            logits = torch.from_numpy(toy.rule(prompt))
            assert score.logprobs[0] == pytest.approx(logits.log_softmax(0)[1].item(), abs=1e-5)
        else:
            outs = await engine.agenerate(prompt, n=n, **options)
            assert [o.token_ids for o in outs] == [
                slow_generate(toy.rule, prompt, tokens, seed=i, sample=j, temperature=1.0) for j in range(n)
            ]
        if rng.random() < 0.1:
            engine.clear_cache()

    async def main(engine: ft.Engine) -> None:
        await asyncio.gather(*(one(engine, i) for i in range(25)))

    with Audited(toy, kv_slots=60, prefill_tokens=16) as engine:
        asyncio.run(main(engine))
