"""Where rows and seconds went: every row of every step counted, every second in exactly one part."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from lab import Audited, Toy

import forethought as ft
from forethought.backend.batch import Output, TokenBatch
from forethought.backend.decoder import Decision, Draft
from forethought.backend.request import Row
from forethought.backend.usage import PARTS, Usage

LONG = [*range(1, 31)]


def used(engine: ft.Engine) -> Usage:
    """Once all steps are over."""
    engine._call(lambda: None).result()
    return engine.usage


def test_rows_until_the_queue_is_empty() -> None:
    """Ten draws of five tokens through four rows: twice four that leave others waiting, then the last two."""
    with Audited(Toy(), kv_slots=500, max_rows=4) as engine:
        engine.generate([1, 2, 3], n=10, max_tokens=5)
        usage = used(engine)
        assert (usage.steps, usage.rows, usage.queued_steps, usage.queued_rows, usage.busy) == (15, 50, 10, 40, 1.0)
        engine.generate([1, 2, 3], n=6, max_tokens=5)
        again = used(engine)
    # The second time somebody queued for five steps; the steps without a queue between count as well.
    assert (again.steps, again.rows, again.queued_steps, again.queued_rows) == (25, 80, 20, 70)
    assert again.busy == 70 / (20 * 4)
    assert usage.steps == 15, "a copy"


def test_without_a_queue_there_is_no_share() -> None:
    with Audited(Toy(), kv_slots=500, max_rows=4) as engine:
        engine.generate([1, 2, 3], n=4, max_tokens=5)
        assert used(engine).busy is None


def test_a_row_in_its_prompt_is_idle() -> None:
    """Thirty tokens at ten a step: two steps give nothing, the third the first token."""
    with Audited(Toy(), kv_slots=500, prefill_tokens=10) as engine:
        engine.generate([LONG], max_tokens=4)
        assert (used(engine).steps, used(engine).rows) == (6, 4)


@pytest.mark.parametrize("slots", [600, 90])
def test_every_token_is_one_rows_step(slots: int) -> None:
    """Also where samples are preempted and computed again."""
    prompts = [LONG, [5, 6, 7], [9] * 20]
    with Audited(Toy(), kv_slots=slots, max_rows=5, prefill_tokens=16) as engine:
        outs = engine.generate(prompts, n=4, max_tokens=20, temperature=1.0, seed=0)
        usage = used(engine)
    assert usage.rows == sum(len(c.token_ids) for c in itertools.chain.from_iterable(outs))
    assert usage.steps * 5 >= usage.rows
    assert usage.queued_rows <= usage.rows


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any, **options: Any) -> Any:
            self.now += seconds
            return work(*args, **options)

        return slow


class Slow(ft.Autoregressive):
    """Drafts nothing for a second, decides for a hundredth."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.drafts, self.decisions = clock, 0, 0

    def draft(self, rows: Sequence[Row], budget: int) -> Draft | None:
        self.drafts += 1
        self.clock.now += 1.0
        return None

    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        self.decisions += 1
        self.clock.now += 0.01
        return super().decide(rows, draft, output)


def test_every_second_is_in_the_part_that_took_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call takes 10 s for each token of a prompt and each other token: the latter come one a row."""
    clock = Clock()
    toy, decoder, expected = Toy(), Slow(clock), {"prefill": 0.0, "decode": 0.0}

    def call(batch: TokenBatch) -> None:
        sizes = np.diff(batch.row_ptr)
        expected["prefill"] += 10.0 * sizes[sizes > 1].sum()
        expected["decode"] += 10.0 * (sizes == 1).sum()
        clock.now += 10.0 * sizes.sum()

    toy.before = call
    monkeypatch.setattr(time, "perf_counter", clock)
    with Audited(toy, decoder, kv_slots=500, prefill_tokens=20) as engine:
        runner = engine._runner
        runner.scheduler.admit = clock.takes(0.001, runner.scheduler.admit)  # type: ignore[method-assign]
        engine.generate([[1, 2, 3], LONG], n=2, max_tokens=6)
        first = used(engine)
        start, clock.now = clock.now, clock.now + 5000.0
        engine.generate([[4, 5, 6]], max_tokens=2)
        usage = used(engine)
        end, clock.now = clock.now, clock.now + 70.0
        assert sum(engine.usage.seconds.values()) == pytest.approx(clock.now - 100.0), "waiting still"
    assert expected["prefill"] == 10.0 * 36
    assert expected["decode"] > 0
    assert first.seconds["waiting"] == 0
    assert usage.seconds["waiting"] == 5000.0
    assert sum(first.seconds.values()) == pytest.approx(start - 100.0)
    assert sum(usage.seconds.values()) == pytest.approx(end - 100.0)
    for part, seconds in expected.items():
        assert usage.seconds[part] == pytest.approx(seconds)  # type: ignore[index]
    assert usage.seconds["drafting"] == pytest.approx(decoder.drafts)
    assert usage.seconds["sampling"] == pytest.approx(decoder.decisions / 100)
    assert 0 < usage.seconds["other"] < 1
    assert set(usage.seconds) == set(PARTS)


def test_scoring_is_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, toy = Clock(), Toy()

    def call(batch: TokenBatch) -> None:
        clock.now += 3.0

    toy.before = call
    monkeypatch.setattr(time, "perf_counter", clock)
    with Audited(toy, kv_slots=500) as engine:
        engine.score([1, 2, 3], [[4], [5, 6]])
        usage = used(engine)
    assert usage.seconds["prefill"] == 3.0 * toy.calls
    assert usage.seconds["decode"] == 0
    assert (usage.steps, usage.rows) == (0, 0)


def test_how_many_have_not_ended() -> None:
    async def main(engine: ft.Engine) -> list[int]:
        seen = [await engine.aunfinished()]
        task = asyncio.create_task(engine.agenerate([1, 2, 3], n=7, max_tokens=4000, ignore_eos=True))
        await asyncio.sleep(0)
        seen.append(await engine.aunfinished())
        task.cancel()
        await asyncio.wait([task])
        return [*seen, await engine.aunfinished()]

    with Audited(Toy(), kv_slots=30_000, max_rows=4) as engine:
        assert asyncio.run(main(engine)) == [0, 7, 0]
