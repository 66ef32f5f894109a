"""What is asked of an engine is what comes out, whoever shares the batch; and the bill says what it took."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lab import EOS, TEXT_VOCABULARY, Audited, Toy, byte_text, slow_certainty, slow_generate, slow_process, tiny_llama

import forethought as ft
from forethought.backend.batch import Row, TokenBatch
from forethought.backend.model import Defaults, Model

VOCABULARY = 31
PROMPTS = [[1, 2, 3], [*range(5, 31), *range(9)], [7], [*range(30, 0, -1), *range(20)], [9, 9, 9, 9]]
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 7},
    {"temperature": 1.3, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 0.9, "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    {"temperature": 0.0, "repetition_penalty": 1.5, "logit_bias": {5: 2.0, 6: -np.inf}},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def toy_model(**options: Any) -> Toy:
    return Toy(vocabulary=VOCABULARY, **options)


def first_of(tokens: list[int], least: int) -> int:
    """Where a token stands that is new there, not before ``least``."""
    return next(i for i in range(least, len(tokens)) if tokens[i] not in tokens[:i])


def ids(completions: list[ft.Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


# ---- the same tokens, whoever else is there ------------------------------------------------------------------------


@pytest.mark.parametrize("options", SETTINGS, ids=lambda o: "-".join(o))
def test_tokens_are_those_of_the_slow_reference(options: dict[str, Any]) -> None:
    """Alone, together, and in a pool so small that everybody is preempted again and again."""
    toy = toy_model()
    expected = [[slow_generate(toy.rule, prompt, 20, seed=3, sample=i, **options) for i in range(2)] for prompt in PROMPTS]
    with Audited(toy, kv_slots=2000) as engine:
        assert [ids(c) for c in engine.generate(PROMPTS, n=2, max_tokens=20, seed=3, **options)] == expected
        assert [ids(engine.generate(prompt, n=2, max_tokens=20, seed=3, **options)) for prompt in PROMPTS] == expected
        assert engine.cost.discarded == 0
    with Audited(toy, kv_slots=90, prefill_tokens=13) as engine:
        assert [ids(c) for c in engine.generate(PROMPTS, n=2, max_tokens=20, seed=3, **options)] == expected
        assert engine.cost.discarded > 0, "the pool was not too small"


def test_settings_of_a_batch_do_not_mix() -> None:
    toy = toy_model()
    expected = [slow_generate(toy.rule, [8, 8], 16, seed=1, **options) for options in SETTINGS]

    async def all_at_once(engine: ft.Engine) -> list[list[ft.Completion]]:
        return await asyncio.gather(*(engine.agenerate([8, 8], max_tokens=16, seed=1, **options) for options in SETTINGS))

    with Audited(toy, kv_slots=2000) as engine:
        assert [c[0].token_ids for c in asyncio.run(all_at_once(engine))] == expected


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.1}])
def test_a_real_model_gives_the_same_tokens_in_any_company(llama: Model, options: dict[str, Any]) -> None:
    """Alone, in a batch of 33, and preempted. Rounding differs with the batch, so ties may flip: under 10 in a million."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 101, n).tolist() for n in rng.integers(1, 60, 33)]
    run: dict[str, Any] = {"max_tokens": 32, "seed": 11, **options}
    with Audited(llama, kv_slots=33 * 100) as engine:
        together = [c[0].token_ids for c in engine.generate(prompts, **run)]
        engine.clear_cache()
        alone = [engine.generate(prompt, **run)[0].token_ids for prompt in prompts[:8]]
    with Audited(llama, kv_slots=300, prefill_tokens=64) as engine:
        squeezed = [c[0].token_ids for c in engine.generate(prompts, **run)]
        assert engine.cost.discarded > 0
    pairs = [(t, a) for t, a in zip(together, alone, strict=False)] + list(zip(together, squeezed, strict=True))
    flips = sum(a != b for a, b in pairs)
    tokens = 32 * len(pairs)
    assert flips <= tokens * 10 / 1e6, f"{flips} of {len(pairs)} texts differ"


@pytest.mark.parametrize(
    "kind",
    ["llama", "llama-llama3", "llama-yarn", "mistral", "qwen2", "qwen3", "gpt2", "opt", "phi", "gemma2", "gemma3", "olmo2"],
)
def test_greedy_text_is_that_of_transformers(
    kind: str, checkpoint: Callable[..., Path], reference: Callable[[Path], Any]
) -> None:
    """Five ragged prompts, 64 tokens each, alone and all in one engine, through our transformer and the adapter."""
    folder = checkpoint(kind)
    expected = reference(folder).texts
    starts = [text[: len(text) - 64] for text in expected]
    with Audited(ft.load(folder), kv_slots=1000, prefill_tokens=16) as engine:
        together = engine.generate(starts, max_tokens=64)
        engine.clear_cache()
        alone = [engine.generate(start, max_tokens=64) for start in starts]
    for start, text, one, other in zip(starts, expected, together, alone, strict=True):
        assert [*start, *one[0].token_ids] == [*start, *other[0].token_ids] == text


def test_sample_i_is_the_same_whatever_n_is() -> None:
    toy = toy_model()
    with Audited(toy, kv_slots=2000) as engine:
        five = engine.generate([1, 2], n=5, max_tokens=16, temperature=1.0, seed=4)
        two = engine.generate([1, 2], n=2, max_tokens=16, temperature=1.0, seed=4)
        assert ids(five)[:2] == ids(two)
        assert len({tuple(t) for t in ids(five)}) == 5, "samples are independent"
        assert [c.index for c in five] == [0, 1, 2, 3, 4]
        late = engine.generate([1, 2], n=3, first=2, max_tokens=16, temperature=1.0, seed=4)
        assert ids(late) == ids(five)[2:], "nor who asks for it"
        assert [c.index for c in late] == [2, 3, 4]
        with pytest.raises(ValueError, match="first=-1"):
            engine.generate([1, 2], first=-1)


def test_position_in_the_call_does_not_matter() -> None:
    with Audited(toy_model(), kv_slots=2000) as engine:
        outs = engine.generate([[1, 2], [3], [1, 2]], max_tokens=16, temperature=1.0, seed=4)
        assert ids(outs[0]) == ids(outs[2])


def test_a_drawn_seed_is_recorded_and_repeats() -> None:
    with Audited(toy_model(), kv_slots=2000) as engine:
        first = engine.generate([1, 2], max_tokens=16, temperature=1.0)[0]
        again = engine.generate([1, 2], max_tokens=16, temperature=1.0, seed=first.seed)[0]
        other = engine.generate([1, 2], max_tokens=16, temperature=1.0)[0]
        assert first.token_ids == again.token_ids
        assert first.seed != other.seed
        assert engine.generate([1, 2], max_tokens=4, seed=-5)[0].seed == -5


# ---- prompts and answers -------------------------------------------------------------------------------------------


def test_a_bare_prompt_gives_one_list_and_several_a_list_of_lists() -> None:
    toy = Toy(vocabulary=TEXT_VOCABULARY, text=byte_text())
    chat = [{"role": "user", "content": "hi"}]
    with Audited(toy, kv_slots=2000) as engine:
        run = {"max_tokens": 6, "seed": 0}
        text, numbers, messages = (engine.generate(prompt, **run) for prompt in ("héllo", [1, 2, 3], chat))
        assert all(isinstance(out[0], ft.Completion) and len(out) == 1 for out in (text, numbers, messages))
        mixed = engine.generate(["héllo", [1, 2, 3], chat], **run)
        assert [ids(out) for out in mixed] == [ids(text), ids(numbers), ids(messages)]
        assert engine.generate([], **run) == []
        assert ids(engine.generate((1, 2, 3), **run)) == ids(numbers)
        assert ids(engine.generate(engine.encode("héllo"), **run)) == ids(text)
        assert ids(text)[0] == slow_generate(toy.rule, engine.encode("héllo"), 6)
        assert bytes(engine.encode(chat)[1:]).decode() == "user: hi\nassistant: "


def test_an_awaited_call_gives_the_same() -> None:
    with Audited(toy_model(), kv_slots=2000) as engine:
        run: dict[str, Any] = {"n": 3, "max_tokens": 12, "temperature": 1.0, "seed": 2}

        async def main() -> Any:
            blocking = engine.generate([4, 5], **run)  # the plain door, from inside a running event loop
            return blocking, await engine.agenerate([4, 5], **run), await engine.agenerate([[4, 5], [6]], **run)

        blocking, bare, several = asyncio.run(main())
        assert ids(blocking) == ids(bare) == ids(several[0])
        assert len(several) == 2


def test_a_progress_bar_counts_prompts() -> None:
    shown, hidden = io.StringIO(), io.StringIO()
    with Audited(toy_model(), kv_slots=2000) as engine:
        with redirect_stderr(shown):
            engine.generate([[1], [2], [3]], max_tokens=2, progress=True)
        with redirect_stderr(hidden):
            engine.generate([[1], [2], [3]], max_tokens=2)
    assert "0/3" in shown.getvalue()
    assert hidden.getvalue() == "", "by itself only on a terminal"


# ---- how it ends ---------------------------------------------------------------------------------------------------


def test_max_tokens_is_a_length_and_a_stop_token_a_stop() -> None:
    toy = toy_model()
    free = slow_generate(toy.rule, [1, 2], 30)
    at = first_of(free, 5)
    stop, unused = free[at], next(token for token in range(VOCABULARY) if token not in free)
    with Audited(toy, kv_slots=2000) as engine:
        [full] = engine.generate([1, 2], max_tokens=30)
        assert (full.token_ids, full.finish_reason, full.stop_reason) == (free, "length", None)
        [cut] = engine.generate([1, 2], max_tokens=30, stop=[stop, unused])
        assert (cut.token_ids, cut.finish_reason, cut.stop_reason) == (free[: at + 1], "stop", stop)
        [both] = engine.generate([1, 2], max_tokens=at + 1, stop=stop)
        assert (both.finish_reason, both.stop_reason) == ("stop", stop), "the last token that was allowed is also a stop"


def test_the_checkpoint_stops_unless_told_not_to() -> None:
    toy = toy_model()
    free = slow_generate(toy.rule, [1, 2], 30)
    at = first_of(free, 3)
    end = free[at]
    ending = toy_model(defaults=Defaults(stop_ids=(end, 100_000)))
    with Audited(ending, kv_slots=2000) as engine:
        [stopped] = engine.generate([1, 2], max_tokens=30)
        assert (stopped.token_ids, stopped.stop_reason) == (free[: at + 1], end)
        [later] = engine.generate([1, 2], max_tokens=30, min_tokens=at + 1)
        assert later.token_ids[: at + 1] == [*free[:at], later.token_ids[at]] != free[: at + 1]
        [ignoring] = engine.generate([1, 2], max_tokens=30, ignore_eos=True)
        assert ignoring.token_ids == free
        [asked] = engine.generate([1, 2], max_tokens=30, ignore_eos=True, stop=end)
        assert asked.stop_reason == end, "a stop that was asked for counts all the same"


def test_min_tokens_puts_stop_tokens_out_of_reach() -> None:
    toy = toy_model()
    free = slow_generate(toy.rule, [1, 2], 30)
    end = free[3]
    later = slow_generate(toy.rule, [1, 2], 10, logit_bias={end: -np.inf})
    with Audited(toy, kv_slots=2000) as engine:
        [out] = engine.generate([1, 2], max_tokens=30, min_tokens=10, stop=end)
        assert out.token_ids[:10] == later
        assert len(out.token_ids) > 10
        sampled = engine.generate([1, 2], n=20, temperature=3.0, seed=0, max_tokens=40, min_tokens=9, stop=list(range(15)))
        assert all(len(c.token_ids) >= 10 and c.token_ids[-1] < 15 for c in sampled)
        assert all(token >= 15 for c in sampled for token in c.token_ids[:9])


def test_what_the_checkpoint_says_is_the_default() -> None:
    said = Defaults(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, repetition_penalty=1.2, max_tokens=9)
    toy = toy_model(defaults=said)
    own = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2}
    with Audited(toy, kv_slots=2000) as engine:
        [out] = engine.generate([1, 2], seed=5)
        assert out.token_ids == slow_generate(toy.rule, [1, 2], 9, seed=5, **own)
        [greedy] = engine.generate([1, 2], seed=5, temperature=0, max_tokens=12, repetition_penalty=1)
        assert greedy.token_ids == slow_generate(toy.rule, [1, 2], 12)
    with Audited(toy_model(positions=40), kv_slots=2000) as engine:
        assert len(engine.generate([1, 2])[0].token_ids) == 38, "silent: greedy, for all the room there is"
    with Audited(toy_model(), kv_slots=30) as engine:
        assert len(engine.generate([1, 2])[0].token_ids) == 28


# ---- log-probabilities ---------------------------------------------------------------------------------------------


def test_logprobs_are_of_the_model_or_of_what_was_drawn_from() -> None:
    toy, prompt = toy_model(), [1, 2]
    settings: dict[str, Any] = {"temperature": 0.8, "top_k": 5, "repetition_penalty": 1.2}
    with Audited(toy, kv_slots=2000) as engine:
        run = {"max_tokens": 12, "seed": 6, **settings}
        [raw] = engine.generate(prompt, logprobs="raw", **run)
        [processed] = engine.generate(prompt, logprobs="processed", **run)
        [default] = engine.generate(prompt, logprobs=True, **run)
        [none] = engine.generate(prompt, **run)
        [greedy] = engine.generate(prompt, logprobs="processed", max_tokens=5)
    assert none.logprobs is None
    assert raw.logprobs is not None
    assert raw.logprobs == default.logprobs
    for i, token in enumerate(raw.token_ids):
        logits, output = toy.rule([*prompt, *raw.token_ids[:i]]), raw.token_ids[:i]
        assert raw.logprobs[i] == pytest.approx(torch.from_numpy(logits).double().log_softmax(-1)[token].item(), abs=1e-5)
        assert processed.logprobs is not None
        drawn_from = slow_process(logits, prompt, output, ft.Sampling(**settings))
        assert processed.logprobs[i] == pytest.approx(drawn_from[token], abs=1e-5)
    assert greedy.logprobs == [0.0] * 5


def test_logprobs_are_as_many_as_tokens_whoever_shares_the_batch() -> None:
    async def main(engine: ft.Engine) -> Any:
        options: list[dict[str, Any]] = [{"logprobs": "raw"}, {}, {"logprobs": "processed", "temperature": 1.0, "n": 3}]
        return await asyncio.gather(*(engine.agenerate([1, i], max_tokens=5 + i, **o) for i, o in enumerate(options)))

    with Audited(toy_model(), kv_slots=60) as engine:
        raw, none, processed = asyncio.run(main(engine))
    assert none[0].logprobs is None
    assert all(len(c.logprobs) == len(c.token_ids) for c in [*raw, *processed])


@pytest.mark.parametrize("slots", [2000, 90])
def test_certainty_is_of_the_model_at_every_token(slots: int) -> None:
    """Of the plain model, whatever the draw does to its logits; also for samples that were preempted; only for those who ask."""
    toy, settings = toy_model(), {"temperature": 0.8, "top_k": 5, "repetition_penalty": 1.2}

    async def main(engine: ft.Engine) -> Any:
        asked = (engine.agenerate(p, n=2, max_tokens=15, seed=1, stop=[4], certainty=i != 1, **settings)
                 for i, p in enumerate(PROMPTS))  # fmt: skip
        return await asyncio.gather(*asked)

    with Audited(toy, kv_slots=slots) as engine:
        answers = asyncio.run(main(engine))
    for i, (prompt, completions) in enumerate(zip(PROMPTS, answers, strict=True)):
        for c in completions:
            expected = [slow_certainty(toy.rule([*prompt, *c.token_ids[:at]])) for at in range(len(c.token_ids))]
            assert c.certainty == (None if i == 1 else pytest.approx(expected, abs=1e-5))


# ---- what it took --------------------------------------------------------------------------------------------------


def test_every_computed_token_is_billed_once() -> None:
    """All but the last token of each sample go through the model, and nothing else does."""
    for slots in (2000, 90):
        toy = toy_model()
        with Audited(toy, kv_slots=slots, prefill_tokens=16) as engine:
            outs = [c for out in engine.generate(PROMPTS, n=3, max_tokens=20, temperature=1.0, seed=0) for c in out]
            bill = engine.cost
        assert toy.tokens == bill.computed - len(outs)
        assert toy.calls == bill.forwards == bill.critical
        assert bill.kept == sum(len(c.token_ids) for c in outs)
        assert bill.prompt == sum(c.cost.prompt for c in outs)
        assert sum(c.cost.prompt + c.cost.cached for c in outs) == 3 * sum(map(len, PROMPTS)) or slots == 90
        assert (bill.drafted, bill.accepted, bill.injected, bill.probe) == (0, 0, 0, 0)
        assert all(c.cost.forwards >= len(c.token_ids) and c.cost.seconds > 0 for c in outs)


def test_kv_of_one_sample_is_what_it_holds_beside_what_it_shares() -> None:
    toy = toy_model()
    with Audited(toy, kv_slots=2000) as engine:
        outs = engine.generate([*range(30), *range(10)], n=3, max_tokens=10, temperature=1.0)
        per_slot = engine.pool.slot_bytes
        assert [c.cost.peak_kv_bytes // per_slot for c in outs] == [40 + 9, 9, 9]


def test_sixty_four_samples_compute_their_prompt_once(llama: Model) -> None:
    """And hold at most 512 + 64 x new slots."""
    prompt = np.random.default_rng(1).integers(0, 101, 512).tolist()
    held = Audited(llama, kv_slots=4096)
    with held as engine:
        outs = engine.generate(prompt, n=64, max_tokens=8, temperature=1.0, seed=0)
        assert engine.cost.prompt == 512
        assert engine.cost.cached == 63 * 512
        assert engine.cost.forwards <= 1 + 8
        assert held.peak <= 512 + 64 * 8
        assert len({tuple(c.token_ids) for c in outs}) > 32
        again = engine.generate(prompt, n=64, max_tokens=8, temperature=1.0, seed=0)
        assert ids(again) == ids(outs)
        assert engine.cost.prompt == 513, "all but the last token is found again"


def test_long_prompts_are_fed_in_chunks_beside_decoding() -> None:
    toy, sizes = toy_model(), list[int]()
    toy.before = lambda batch: sizes.append(len(batch.ids))
    with Audited(toy, kv_slots=2000, prefill_tokens=32) as engine:
        out = engine.generate([[1], [*range(30)] * 3, [*range(30, 0, -1)] * 3], max_tokens=8)
        assert [c[0].token_ids for c in out] == [
            slow_generate(toy.rule, p, 8) for p in ([1], [*range(30)] * 3, [*range(30, 0, -1)] * 3)
        ]
    assert max(sizes) <= 32 + 3


def test_no_more_rows_run_at_once_than_allowed() -> None:
    toy, rows = toy_model(), list[int]()
    toy.before = lambda batch: rows.append(len(batch.rows))
    with Audited(toy, kv_slots=2000, max_rows=4) as engine:
        outs = engine.generate([[1], [2], [3]], n=5, max_tokens=6, temperature=1.0, seed=0)
        assert [ids(c) for c in outs] == [
            [slow_generate(toy.rule, [p], 6, seed=0, sample=i, temperature=1.0) for i in range(5)] for p in (1, 2, 3)
        ]
    assert max(rows) == 4


def test_plain_steps_are_made_ahead() -> None:
    """Where the model can: all but the first one, and those after somebody came or went."""
    toy = toy_model()
    with Audited(toy, kv_slots=2000) as engine:
        engine.generate([[1], [2], [3]], max_tokens=30, seed=0)
    assert toy.foreseen >= 2 * toy.calls // 3 - 4, "the toy makes two of three"


# ---- engines -------------------------------------------------------------------------------------------------------


def test_several_engines_share_a_model(llama: Model) -> None:
    with Audited(llama, kv_slots=300) as one, Audited(llama, kv_slots=200) as two:
        assert one.pool is not two.pool

        async def main() -> Any:
            return await asyncio.gather(*(e.agenerate(PROMPTS, max_tokens=12, temperature=1.0, seed=1) for e in (one, two)))

        a, b = asyncio.run(main())
        assert [ids(c) for c in a] == [ids(c) for c in b]


def test_engines_of_unlike_models_do_not_mix(llama: Model) -> None:
    toy = toy_model()
    with Audited(llama, kv_slots=300) as one, Audited(toy, kv_slots=300) as two:

        async def main() -> Any:
            return await asyncio.gather(one.agenerate(PROMPTS, max_tokens=12), two.agenerate(PROMPTS, max_tokens=12))

        a, b = asyncio.run(main())
        assert [c[0].token_ids for c in b] == [slow_generate(toy.rule, p, 12) for p in PROMPTS]
        assert [ids(c) for c in a] == [ids(one.generate(p, max_tokens=12)) for p in PROMPTS]


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU's memory")
def test_the_pool_is_sized_by_memory_unless_told(llama: Model) -> None:
    with ft.Engine(llama, ft.Autoregressive()) as engine:
        assert engine.pool.size == 64 * llama.info.max_positions
    with pytest.raises(ValueError, match="kv_slots=0: at least 1"):
        ft.Engine(llama, ft.Autoregressive(), kv_slots=0)
    for wrong in ({"prefill_tokens": 0}, {"max_rows": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            ft.Engine(llama, ft.Autoregressive(), **wrong)  # type: ignore[arg-type]


def test_authors_of_methods_may_use_contexts_of_their_own(llama: Model) -> None:
    """The model call without an engine: fork, truncate, and the same logits."""
    pool = llama.new_pool(64)
    context = pool.new_context()
    batch = TokenBatch(pool, [Row(context, [1, 2, 3, 4])])
    logits = llama.forward(batch).logits
    batch.commit()
    twin = context.fork()
    twin.truncate(2)
    again = TokenBatch(pool, [Row(twin, [3, 4])])
    assert logits is not None
    torch.testing.assert_close(llama.forward(again).logits, logits[2:])
    again.commit()
    assert pool.used == 6
    for c in (context, twin):
        c.release()
    assert pool.used == 0


def test_eos_of_a_saved_checkpoint_ends_the_text(tmp_path: Path) -> None:
    """The whole way: checkpoint and tokenizer on disk, BOS once, end token kept in the ids and out of the text."""
    text = byte_text()
    tiny_llama(tmp_path, vocab_size=TEXT_VOCABULARY, eos_token_id=EOS)
    text.tokenizer.save_pretrained(tmp_path)
    model = ft.load(tmp_path)
    assert EOS in model.info.defaults.stop_ids
    with Audited(model, kv_slots=2000) as engine:
        assert engine.encode("hi") == engine.encode("<s>hi") == [EOS - 1, *b"hi"]
        [out] = engine.generate("hi", max_tokens=8, logit_bias={EOS: 100.0})
        assert (out.token_ids, out.text, out.stop_reason) == ([EOS], "", EOS)
        [forced] = engine.generate("hi", max_tokens=8, min_tokens=3, logit_bias={EOS: 100.0})
        assert forced.token_ids[-1] == EOS
        assert len(forced.token_ids) == 4
