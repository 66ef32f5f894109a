"""Whatever is wrong with one request is said of that one, in so many words; everything else goes on, and no slot is lost."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from lab import TEXT_VOCABULARY, Audited, Toy, byte_text, slow_generate, tiny_llama

import forethought as ft
from forethought.backend.batch import Output, TokenBatch
from forethought.backend.decoder import Decision, Draft
from forethought.backend.kv import KVPool
from forethought.backend.request import Request, Row

VOCABULARY = 31
BAD = 13
"""Seed of the request that goes wrong."""


def toy_model(**options: Any) -> Toy:
    return Toy(vocabulary=VOCABULARY, **options)


# ---- a closed engine -----------------------------------------------------------------------------------------------


def test_a_closed_engine_refuses_and_can_be_closed_again() -> None:
    engine = ft.Engine(toy_model(), ft.Autoregressive(), kv_slots=64)
    late = engine.stream([1], max_tokens=5)
    engine.close()
    engine.close()
    for use in (lambda: engine.generate([1]), lambda: engine.stream([1]), lambda: engine.score([1], [[2]]), lambda: list(late)):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    engine.clear_cache()
    assert engine.pool.free == engine.pool.size


def test_closing_cancels_what_runs_and_what_waits() -> None:
    toy = toy_model()
    toy.before = lambda batch: time.sleep(0.002)
    got: list[Any] = []
    with Audited(toy, kv_slots=2000, max_rows=2) as engine:
        thread = threading.Thread(target=lambda: got.extend(engine.generate([[i] for i in range(4)], max_tokens=1900)))
        thread.start()
        while toy.calls < 5:
            time.sleep(0.001)
        engine.close()
        thread.join(20)
    assert [o[0].finish_reason for o in got] == ["cancelled"] * 4
    assert all(o[0].token_ids == slow_generate(toy.rule, [i], len(o[0].token_ids)) for i, o in enumerate(got))


# ---- Ctrl-C --------------------------------------------------------------------------------------------------------


@pytest.fixture
def heard() -> Iterator[None]:
    """A shell's background jobs, and all they start, do not hear of Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_returns_what_there_is() -> None:
    toy = toy_model()

    def interrupt(batch: TokenBatch) -> None:
        if toy.calls == 10:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if toy.calls >= 10:
            time.sleep(0.01)

    toy.before = interrupt
    with Audited(toy, kv_slots=2000, max_rows=3) as engine:
        done = engine.generate([[1], [2], [3], [4]], n=1, max_tokens=600, stop=[])
        assert [c[0].finish_reason for c in done] == ["cancelled"] * 4
        assert 5 < len(done[0][0].token_ids) < 600
        assert done[3][0].token_ids == [], "it had not begun"
        assert done[0][0].token_ids == slow_generate(toy.rule, [1], len(done[0][0].token_ids))
        toy.before = lambda batch: None
        assert engine.generate([1], max_tokens=5)[0].finish_reason == "length"


@pytest.mark.usefixtures("heard")
def test_ctrl_c_in_a_stream_ends_the_stream() -> None:
    toy = toy_model()

    def interrupt(batch: TokenBatch) -> None:
        if toy.calls == 5:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.002)

    toy.before = interrupt
    with Audited(toy, kv_slots=2000) as engine, pytest.raises(KeyboardInterrupt):
        list(engine.stream([1], max_tokens=1500))


class TimeIsUp(Exception):
    pass


def test_what_else_ends_a_call_early_ends_its_requests() -> None:
    """A timeout by a signal, as test runners have: nobody waits for the answers any more."""
    toy = toy_model()

    def late(*_: object) -> None:
        raise TimeIsUp

    def interrupt(batch: TokenBatch) -> None:
        if toy.calls == 5:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        time.sleep(0.002)

    toy.before, before = interrupt, signal.signal(signal.SIGUSR1, late)
    try:
        with Audited(toy, kv_slots=4000) as engine:
            with pytest.raises(TimeIsUp):
                engine.generate([[1], [2], [3]], max_tokens=1000, stop=[])
            assert asyncio.run(engine.aunfinished()) == 0
            assert toy.calls < 100
    finally:
        signal.signal(signal.SIGUSR1, before)


# ---- NaN -----------------------------------------------------------------------------------------------------------


def nan_after(token: int, rule: Any) -> Any:
    return lambda ids: rule(ids) + np.float32(np.nan if ids[-1] == token else 0.0)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_nan_logits_end_the_request_they_belong_to(options: dict[str, Any]) -> None:
    toy = toy_model()
    right = toy.rule
    toy.rule = nan_after(BAD, right)
    prompts = [[1, 2], [4, BAD], [5, 6], [7]]
    with Audited(toy, kv_slots=2000) as engine:
        for _ in range(2):
            with pytest.raises(ft.GenerationError, match="output token 0 is nan") as error:
                engine.generate(prompts, n=2, max_tokens=9, logit_bias={BAD: -np.inf}, **options)
            for prompt, outs in zip(prompts, error.value.results, strict=True):
                for i, out in enumerate(outs):
                    if BAD in prompt:
                        assert (out.finish_reason, out.token_ids) == ("error", [])
                        assert out.error is not None
                        assert "nan" in out.error
                    else:
                        assert out.token_ids == slow_generate(right, prompt, 9, sample=i, logit_bias={BAD: -np.inf}, **options)
        with pytest.raises(ft.GenerationError, match="nan"):
            list(engine.stream([4, BAD], max_tokens=9))
        with pytest.raises(ft.GenerationError, match="nan"):
            asyncio.run(engine.agenerate([4, BAD], max_tokens=9))


def test_infinite_and_ruled_out_logits_are_errors_too() -> None:
    toy = toy_model()
    nothing = dict.fromkeys(range(VOCABULARY), -np.inf)
    with Audited(toy, kv_slots=2000) as engine:
        for options in ({}, {"temperature": 1.0}):
            with pytest.raises(ft.GenerationError, match="ruled out"):
                engine.generate([1], max_tokens=3, logit_bias=nothing, **options)
        with pytest.raises(ft.GenerationError, match="ruled out"):
            engine.generate([1], max_tokens=3, min_tokens=2, stop=list(range(VOCABULARY)))
        rule = toy.rule
        toy.rule = lambda ids: np.full(VOCABULARY, -np.inf, np.float32)
        with pytest.raises(ft.GenerationError, match="-inf"):
            engine.generate([1], max_tokens=3)
        toy.rule = lambda ids: np.full(VOCABULARY, np.inf, np.float32)
        with pytest.raises(ft.GenerationError, match="inf"):
            engine.generate([1], max_tokens=3)
        toy.rule = rule
        assert engine.generate([1], max_tokens=3)[0].token_ids == slow_generate(rule, [1], 3)


def test_poisoned_kv_reaches_neither_the_cache_nor_a_neighbour(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A fault of the machine, once: NaN in KV just written, of a piece of prompt, the end of one, or a decoding row."""
    model = tiny_llama(tmp_path_factory.mktemp("llama"))
    forward, poisoned = model.forward, list[int]()
    prompts = [[*range(i, 40)] for i in range(5)]
    with Audited(model, kv_slots=2000) as engine:
        expected = engine.generate(prompts, max_tokens=12)

    victim = 2
    for chunk, when in ((16, 0), (64, 0), (64, 40)):
        poisoned.clear()

        def faulty(batch: TokenBatch, when: int = when) -> Output:
            output = forward(batch)
            for first, row in zip(batch.row_ptr, batch.rows, strict=False):
                if [*row.context.ids, *row.ids][0] == victim and row.context.size >= when and not poisoned:
                    poisoned.append(victim)
                    for k, v in zip(batch.pool.k, batch.pool.v, strict=True):
                        k[batch.slots[first]], v[batch.slots[first]] = np.nan, np.nan
            return output

        with Audited(model, kv_slots=2000, prefill_tokens=chunk) as engine:
            model.forward = faulty  # type: ignore[method-assign]
            try:
                with pytest.raises(ft.GenerationError, match="nan") as error:
                    engine.generate(prompts, max_tokens=12)
            finally:
                model.forward = forward  # type: ignore[method-assign]
            for i, (outs, right) in enumerate(zip(error.value.results, expected, strict=True)):
                if i == victim:
                    assert outs[0].finish_reason == "error"
                else:
                    assert outs[0].token_ids == right[0].token_ids
            again = engine.generate(prompts[victim], max_tokens=12)
            assert again[0].token_ids == expected[victim][0].token_ids, "served from poisoned KV"
            assert again[0].cost.cached == min(when, 37), "and what was sound is still there"


def test_kv_nobody_has_looked_at_yet_is_not_cached() -> None:
    """A prompt cancelled in the middle of its prefill: its KV may be broken, and no logits have said otherwise."""
    toy, prompt = toy_model(), [1] * 60
    release = threading.Event()
    toy.before = lambda batch: release.wait(10) if toy.calls == 2 else None
    with Audited(toy, kv_slots=200, prefill_tokens=16) as engine:

        async def main() -> None:
            task = asyncio.ensure_future(engine.agenerate(prompt, max_tokens=2))
            while toy.calls < 2:
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            release.set()

        asyncio.run(main())
        engine._call(lambda: None).result()
        assert engine.pool.cached == 0
        assert 0 < engine.cost.prompt < 60, "billed as far as it was computed"
        assert toy.tokens == engine.cost.computed


# ---- a faulty decoder ----------------------------------------------------------------------------------------------


class Saboteur(ft.Autoregressive):
    """Plain decoding that raises in one hook for one request, the ``at``-th time it is called for it."""

    def __init__(self, hook: str, at: int, sample: int | None = None) -> None:
        super().__init__()
        self.hook, self.at, self.sample, self.count = hook, at, sample, 0
        self.open_rows = 0

    def _trip(self, hook: str, request: Request, sample: int) -> None:
        if hook == self.hook and request.seed == BAD and self.sample in (None, sample):
            self.count += 1
            if self.count >= self.at:
                raise ArithmeticError(f"sabotage in {hook}")

    def open(self, request: Request, sample: int, pool: KVPool) -> list[Row]:
        self._trip("open", request, sample)
        return super().open(request, sample, pool)

    def admit(self, row: Row) -> None:
        self._trip("admit", row.request, row.sample)

    def draft(self, rows: Sequence[Row], budget: int) -> Draft | None:
        for row in rows:
            self._trip("draft", row.request, row.sample)
        return None

    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        for row in rows:
            self._trip("decide", row.request, row.sample)
        return super().decide(rows, draft, output)

    def observe(self, row: Row, ids: Sequence[int]) -> None:
        assert row.output[len(row.output) - len(ids) :] == list(ids)
        self._trip("observe", row.request, row.sample)

    def preempt(self, row: Row) -> None:
        self._trip("preempt", row.request, row.sample)

    def release(self, row: Row, outcome: Any) -> None:
        self._trip("release", row.request, row.sample)


@pytest.mark.parametrize("sample", [None, 1], ids=["every sample", "sample 1"])
@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("hook", ["open", "admit", "draft", "decide", "observe", "preempt", "release"])
def test_a_hook_that_raises_ends_that_request_only(hook: str, at: int, sample: int | None) -> None:
    toy, decoder = toy_model(), Saboteur(hook, at, sample)
    seeds = [3, BAD, 5, 7]
    prompt = [*range(20)]

    async def main(engine: ft.Engine) -> list[Any]:
        calls = (engine.agenerate([*prompt, s], n=3, max_tokens=16, temperature=1.0, seed=s) for s in seeds)
        return await asyncio.gather(*calls, return_exceptions=True)

    with Audited(toy, decoder, kv_slots=64 if hook == "preempt" else 400) as engine:
        results = asyncio.run(main(engine))
        for seed, result in zip(seeds, results, strict=True):
            expected = [slow_generate(toy.rule, [*prompt, seed], 16, temperature=1.0, seed=seed, sample=i) for i in range(3)]
            if seed != BAD:
                assert [o.token_ids for o in result] == expected
                continue
            if decoder.count < decoder.at:  # a hook that is called less often than that
                assert [o.token_ids for o in result] == expected
                continue
            assert isinstance(result, ft.GenerationError)
            assert f"sabotage in {hook}" in str(result)
            assert isinstance(result.__cause__, ArithmeticError)
            [outs] = result.results
            failed = [o for o in outs if o.finish_reason == "error"]
            assert failed
            assert all("sabotage" in (o.error or "") for o in failed)
            if sample is not None:
                assert [o.index for o in failed] == [sample]
            for out, right in zip(outs, expected, strict=True):
                assert out.token_ids == right[: len(out.token_ids)]
                assert out.finish_reason == "error" or out.token_ids == right
        decoder.hook = ""
        assert engine.generate([1], max_tokens=3, seed=BAD)[0].token_ids == slow_generate(toy.rule, [1], 3)


def test_a_passing_fault_costs_no_second_prompt() -> None:
    """Five samples join on one prompt, the decision fails once: they wait again, and find the prompt when it is there."""

    class Once(ft.Autoregressive):
        failed = False

        def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
            if len(rows) == 5 and not self.failed:
                self.failed = True
                raise ArithmeticError("once")
            return super().decide(rows, draft, output)

    toy, prompt = toy_model(), [*range(30)] * 3
    with Audited(toy, Once(), kv_slots=1000) as engine:
        outs = engine.generate(prompt, n=5, max_tokens=6, temperature=1.0, seed=0)
        assert [o.token_ids for o in outs] == [
            slow_generate(toy.rule, prompt, 6, seed=0, sample=i, temperature=1.0) for i in range(5)
        ]
        assert isinstance(engine.decoder, Once)
        assert engine.decoder.failed
    assert toy.tokens <= 2 * len(prompt) + 5 * 6


def test_the_leader_is_not_blamed_for_what_a_sibling_did() -> None:
    """Alone in the call but for those who joined on its prompt."""
    for hook in ("decide", "observe", "admit", "open"):
        toy = toy_model()
        with Audited(toy, Saboteur(hook, 1, sample=2), kv_slots=400) as engine:
            with pytest.raises(ft.GenerationError, match="sabotage") as error:
                engine.generate([*range(20)], n=4, max_tokens=6, temperature=1.0, seed=BAD)
            for i, out in enumerate(error.value.results[0]):
                right = slow_generate(toy.rule, [*range(20)], 6, temperature=1.0, seed=BAD, sample=i)
                assert (out.finish_reason == "error") == (i == 2)
                assert i == 2 or out.token_ids == right


def test_siblings_of_a_leader_that_keeps_none_of_its_prompt_end_alone() -> None:
    """There is nothing that they could share."""

    class Dropping(ft.Autoregressive):
        def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
            found = super().decide(rows, draft, output)
            dropped = [row.prompt == [5] and not row.output for row in rows]
            pending = {i: [5, int(found.emitted[i])] for i, drop in enumerate(dropped) if drop}
            ptr = np.cumsum([0, *(not drop for drop in dropped)]).tolist()
            return Decision(found.emitted, kept=[0] * ptr[-1], kept_ptr=ptr, pending=pending)

    toy = toy_model()

    async def both(engine: ft.Engine) -> Any:
        asked = engine.agenerate([1, 2, 3], max_tokens=30, seed=0), engine.agenerate([5], n=2, max_tokens=5, seed=0)
        return await asyncio.gather(*asked, return_exceptions=True)

    with Audited(toy, Dropping(), kv_slots=400) as engine:
        [bystander], failed = asyncio.run(both(engine))
    assert bystander.token_ids == slow_generate(toy.rule, [1, 2, 3], 30, seed=0)
    assert isinstance(failed, ft.GenerationError)
    [[first, second]] = failed.results
    assert first.token_ids == slow_generate(toy.rule, [5], 5, seed=0)
    assert (second.finish_reason, second.error) == ("error", "ValueError: cannot keep 1 of 0 tokens")


def test_samples_with_prompts_of_their_own_do_not_share() -> None:
    class Own(ft.Autoregressive):
        def open(self, request: Request, sample: int, pool: KVPool) -> list[Row]:
            prompt = [*request.prompt, *[sample] * (sample % 3)]
            return [Row(request, sample, 0, prompt, pool.new_context(), list(prompt))]

        def slots(self, request: Request, pool: KVPool) -> dict[KVPool, int]:
            return {pool: len(request.prompt) + 2 + request.max_tokens}

    toy = toy_model()
    for slots in (1000, 60):
        with Audited(toy, Own(), kv_slots=slots) as engine:
            outs = engine.generate([*range(20)], n=7, max_tokens=8)
            assert [o.token_ids for o in outs] == [slow_generate(toy.rule, [*range(20), *[i] * (i % 3)], 8) for i in range(7)]


def test_not_even_an_exit_ends_the_engines_thread() -> None:
    """What derives from BaseException only, as a panic of the tokenizers library does."""

    class Quits(ft.Autoregressive):
        def observe(self, row: Row, ids: Sequence[int]) -> None:
            if row.request.seed == BAD:
                raise SystemExit(3)

    toy = Toy(vocabulary=TEXT_VOCABULARY, text=byte_text())
    with Audited(toy, Quits(), kv_slots=400) as engine:
        with pytest.raises(ft.GenerationError, match="SystemExit"):
            engine.generate("hi", max_tokens=5, seed=BAD)
        decode = toy.text.decode  # type: ignore[union-attr]
        toy.text.decode = lambda ids: 1 / 0  # type: ignore[assignment, union-attr]
        with pytest.raises(ft.GenerationError, match="ZeroDivisionError") as error:
            engine.generate("hi", max_tokens=5)
        assert error.value.results[0][0].finish_reason == "error"
        assert error.value.results[0][0].token_ids == slow_generate(toy.rule, engine.encode("hi"), 5)
        with pytest.raises(ft.GenerationError, match="ZeroDivisionError"):
            list(engine.stream("hi", max_tokens=5))
        toy.text.decode = decode  # type: ignore[method-assign, union-attr]
        assert engine.generate("hi", max_tokens=5)[0].finish_reason == "length"


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "too few tokens": ({"emitted": torch.empty(0, dtype=torch.int64)}, "0 tokens for 1 rows"),
    "an id outside": ({"emitted": torch.tensor([VOCABULARY])}, "31"),
    "a negative id": ({"emitted": torch.tensor([-1])}, "-1"),
    "pointers that do not fit": ({"emitted": torch.tensor([1]), "emitted_ptr": torch.tensor([0, 2])}, "emitted_ptr"),
    "pointers that fall": ({"emitted": torch.tensor([1]), "emitted_ptr": torch.tensor([1, 1])}, "emitted_ptr"),
    "nothing to go on from": (
        {"emitted": torch.empty(0, dtype=torch.int64), "emitted_ptr": torch.tensor([0, 0])},
        "given tokens to feed",
    ),
    "an empty line of tokens": ({"emitted": torch.tensor([1]), "pending": {0: []}}, "given tokens to feed"),
    "a pending id outside": ({"emitted": torch.tensor([1]), "pending": {0: [VOCABULARY]}}, "31"),
    "a kept token that is not there": (
        {"emitted": torch.tensor([1]), "kept": torch.tensor([3]), "kept_ptr": torch.tensor([0, 1])},
        r"kept=\[3\]",
    ),
    "a token kept twice": (
        {"emitted": torch.tensor([1]), "kept": torch.tensor([0, 0]), "kept_ptr": torch.tensor([0, 2])},
        "kept=",
    ),
    "log-probabilities of something else": ({"emitted": torch.tensor([1]), "logprobs": torch.zeros(4)}, "4 logprobs"),
    "certainty of something else": ({"emitted": torch.tensor([1]), "certainty": torch.zeros(3)}, "3 certainty"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_decision_that_does_not_fit_commits_nothing(kind: str) -> None:
    wrong, message = MALFORMED[kind]

    class Broken(ft.Autoregressive):
        def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
            if any(row.request.seed == BAD and len(row.output) == 2 for row in rows):
                if len(rows) > 1:
                    raise ValueError("one at a time, please")
                return Decision(**wrong)
            return super().decide(rows, draft, output)

    toy = toy_model()

    async def main(engine: ft.Engine) -> list[Any]:
        calls = (engine.agenerate([1, s], max_tokens=8, seed=s) for s in (2, BAD, 3))
        return await asyncio.gather(*calls, return_exceptions=True)

    with Audited(toy, Broken(), kv_slots=100) as engine:
        one, bad, two = asyncio.run(main(engine))
        assert isinstance(bad, ft.GenerationError)
        assert bad.__cause__ is not None
        with pytest.raises(ValueError, match=message):
            raise bad.__cause__
        assert bad.results[0][0].token_ids == slow_generate(toy.rule, [1, BAD], 2)
        assert one[0].token_ids == slow_generate(toy.rule, [1, 2], 8)
        assert two[0].token_ids == slow_generate(toy.rule, [1, 3], 8)


def test_a_model_call_that_fails_for_one_fails_for_one() -> None:
    toy = toy_model()

    def explode(batch: TokenBatch) -> None:
        if any(BAD in row.context.ids for row in batch.rows):
            raise MemoryError("no memory for this one")

    toy.before = explode
    with Audited(toy, kv_slots=400) as engine:
        with pytest.raises(ft.GenerationError, match="no memory") as error:
            engine.generate([[1, 2], [BAD, 4], [5, 6]], n=3, max_tokens=8, logit_bias={BAD: -np.inf})
        for prompt, outs in zip(([1, 2], [BAD, 4], [5, 6]), error.value.results, strict=True):
            right = slow_generate(toy.rule, prompt, 8, logit_bias={BAD: -np.inf})
            for out in outs:
                assert out.token_ids == (right[:1] if BAD in prompt else right)


def test_a_defect_of_the_engine_itself_ends_what_runs_and_not_the_engine() -> None:
    toy = toy_model()
    with Audited(toy, kv_slots=400) as engine:
        scheduler = engine._runner.scheduler
        split = scheduler.split
        scheduler.split = lambda: 1 / 0  # type: ignore[assignment, return-value]
        with pytest.raises(ft.GenerationError, match="ZeroDivisionError"):
            engine.generate([[1], [2]], max_tokens=8)
        scheduler.split = split  # type: ignore[method-assign]
        assert engine.generate([1], max_tokens=8)[0].token_ids == slow_generate(toy.rule, [1], 8)


def test_someone_elses_contexts_in_the_pool_are_an_error_not_a_hang() -> None:
    """Slots that the engine cannot get back, because the caller holds them."""
    toy = toy_model()
    with Audited(toy, kv_slots=20) as engine:
        held = engine._call(lambda: engine.pool.allocate(15)).result()
        with pytest.raises(ft.GenerationError, match="PoolFull"):
            engine.generate([1, 2, 3], max_tokens=10)
        engine._call(lambda: engine.pool.release(held)).result()
        assert len(engine.generate([1, 2, 3], max_tokens=10)[0].token_ids) == 10
