"""Scores are the model's own log-probabilities, however the text was cut into calls and whoever else is running."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest
import torch
from lab import TEXT_VOCABULARY, Audited, Toy, byte_text, slow_generate, tiny_llama

import forethought as ft
from forethought.backend.batch import Row, TokenBatch

PROMPT = [5, 3, 8, 1, 2]
CONTINUATIONS = [[1], [4, 4], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2], [4, 4], [30]]


def log_softmax(logits: np.ndarray) -> list[float]:
    return torch.from_numpy(logits).double().log_softmax(0).tolist()


def slow_score(toy: Toy, prompt: list[int], continuation: list[int]) -> list[float]:
    return [log_softmax(toy.rule([*prompt, *continuation[:i]]))[token] for i, token in enumerate(continuation)]


@pytest.mark.parametrize(("chunk", "slots"), [(1, 200), (3, 200), (5, 200), (64, 200), (64, 17)])
def test_continuations_are_scored_as_if_each_were_alone(chunk: int, slots: int) -> None:
    """Also where the pool holds no more than the prompt and the longest."""
    toy = Toy(vocabulary=31)
    with Audited(toy, kv_slots=slots, prefill_tokens=chunk) as engine:
        scores = engine.score(PROMPT, CONTINUATIONS)
        for score, continuation in zip(scores, CONTINUATIONS, strict=True):
            assert score.token_ids == continuation
            assert score.logprobs == pytest.approx(slow_score(toy, PROMPT, continuation), abs=1e-5)
            assert score.total == pytest.approx(sum(score.logprobs))
        assert asyncio.run(engine.ascore(PROMPT, CONTINUATIONS))[2].logprobs == pytest.approx(scores[2].logprobs)


def test_short_continuations_share_calls_and_the_prompt_is_computed_once() -> None:
    toy = Toy(vocabulary=31)
    with Audited(toy, kv_slots=200) as engine:
        scores = engine.score(PROMPT, CONTINUATIONS)
        assert toy.calls == engine.cost.forwards == 2
        bill = ft.Cost.parallel(score.cost for score in scores)
        assert bill.prompt == len(PROMPT)
        assert bill.computed == toy.tokens == 4 + sum(map(len, CONTINUATIONS)), "each starts behind the prompt's last token"
        assert engine.cost.computed == toy.tokens
        again = engine.score(PROMPT, [[7]])
        assert (again[0].cost.cached, again[0].cost.prompt, again[0].cost.computed) == (4, 1, 1)
        assert engine.generate(PROMPT, max_tokens=3)[0].cost.cached == 4, "and generation finds it too"


def test_scores_of_a_real_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = tiny_llama(tmp_path_factory.mktemp("llama"))
    pool = model.new_pool(100)
    text = [*PROMPT, *CONTINUATIONS[2]]
    logits = model.forward(TokenBatch(pool, [Row(pool.new_context(), text)])).logits
    assert logits is not None
    expected = [logits[i].log_softmax(0)[text[i + 1]].item() for i in range(len(PROMPT) - 1, len(text) - 1)]
    with Audited(model, kv_slots=200, prefill_tokens=7) as engine:
        assert engine.score(PROMPT, CONTINUATIONS)[2].logprobs == pytest.approx(expected, abs=1e-4)
        sampled = engine.generate(PROMPT, max_tokens=9, temperature=1.0, logprobs="raw")[0]
        assert engine.score(PROMPT, [sampled.token_ids])[0].logprobs == pytest.approx(sampled.logprobs, abs=1e-4)


def test_labels_share_out_one() -> None:
    toy = Toy(vocabulary=TEXT_VOCABULARY, text=byte_text())
    with Audited(toy, kv_slots=200) as engine:
        logits = toy.rule(engine.encode("ok? "))
        weights = {label: math.exp(logits[ord(label)]) for label in "yn"}
        shares = engine.score("ok? ", labels=["y", "n"])
        assert shares == pytest.approx({label: w / sum(weights.values()) for label, w in weights.items()}, rel=1e-4)
        assert asyncio.run(engine.ascore("ok? ", labels=[ord("y"), ord("n")])) == {ord("y"): shares["y"], ord("n"): shares["n"]}
        assert engine.score("ok? ", labels=["y"]) == {"y": 1.0}
        assert engine.cost.prompt > 0


def test_text_is_tokenised_by_itself_behind_the_prompt() -> None:
    """No BOS in between, and no token across the seam, though "he" + "ll" has one."""
    toy = Toy(vocabulary=TEXT_VOCABULARY, text=byte_text())
    with Audited(toy, kv_slots=200) as engine:
        [score] = engine.score("he", ["ll"])
        assert score.token_ids == list(b"ll")
        assert score.logprobs == pytest.approx(slow_score(toy, engine.encode("he"), list(b"ll")), abs=1e-5)


def test_scoring_in_a_full_pool_pushes_running_samples_aside_and_spoils_none() -> None:
    toy, prompt = Toy(vocabulary=31), [3, 1, 4, 1, 5, 9, 2, 6]
    expected = [slow_generate(toy.rule, prompt, 20, seed=i, temperature=1.0) for i in range(6)]

    async def main(engine: ft.Engine) -> Any:
        running = [asyncio.ensure_future(engine.agenerate(prompt, max_tokens=20, seed=i, temperature=1.0)) for i in range(6)]
        scores = []
        for i in range(12):
            await asyncio.sleep(0.002)
            scores.append(await engine.ascore([i] * 30, [[1, 2, 3], [4] * 8]))
        return await asyncio.gather(*running), scores

    with Audited(toy, kv_slots=50, prefill_tokens=16) as engine:
        outs, scores = asyncio.run(main(engine))
    assert [o[0].token_ids for o in outs] == expected
    for i, (short, long) in enumerate(scores):
        assert short.logprobs == pytest.approx(slow_score(toy, [i] * 30, [1, 2, 3]), abs=1e-5)
        assert long.logprobs == pytest.approx(slow_score(toy, [i] * 30, [4] * 8), abs=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"continuations": [[1]], "labels": [1]}, TypeError, "one of them"),
        ({}, TypeError, "one of them"),
        ({"continuations": "text"}, TypeError, "a list"),
        ({"continuations": [1, 2]}, TypeError, "1"),
        ({"continuations": [[]]}, ValueError, "no tokens"),
        ({"continuations": ["text"]}, ValueError, "no tokenizer"),
        ({"continuations": [[1], [2, 31]]}, ValueError, "31"),
        ({"continuations": [[1.5]]}, TypeError, "1.5"),
        ({"continuations": [[1] * 60]}, ValueError, "65 tokens"),
        ({"labels": []}, ValueError, "at least one"),
        ({"labels": [1, 1]}, ValueError, "different"),
        ({"labels": [1, -1]}, ValueError, "-1"),
        ({"labels": "ab"}, TypeError, "a list"),
    ],
)
def test_bad_input_is_refused_with_its_value(call: dict[str, Any], error: type[Exception], message: str) -> None:
    with Audited(Toy(vocabulary=31), kv_slots=64) as engine:
        with pytest.raises(error, match=message):
            engine.score(PROMPT, **call)
        assert engine.cost.forwards == 0
        assert engine.score(PROMPT, []) == []


def test_bad_prompts_are_refused() -> None:
    with Audited(Toy(vocabulary=31), kv_slots=64) as engine:
        for prompt, message in (([], "empty"), ([1] * 64, "65 tokens"), ([31], "31")):
            with pytest.raises(ValueError, match=message):
                engine.score(prompt, [[1]])
    with pytest.raises(RuntimeError, match="closed"):
        engine.score([1], [[1]])


def test_nan_is_an_error_and_never_cached() -> None:
    toy = Toy(vocabulary=31)
    rule = toy.rule
    toy.rule = lambda ids: rule(ids) * np.float32(np.nan) if 13 in ids else rule(ids)
    with Audited(toy, kv_slots=64) as engine:
        with pytest.raises(FloatingPointError, match="NaN"):
            engine.score([1, 2, 13, 4], [[5]])
        with pytest.raises(FloatingPointError, match="NaN"):
            engine.score([1, 2, 13, 4], labels=[5, 6])
        assert engine.pool.cached == 0
        assert engine.score([1, 2, 3, 4], [[5]])[0].logprobs == pytest.approx(slow_score(toy, [1, 2, 3, 4], [5]), abs=1e-5)


def test_a_cancelled_score_harms_nobody() -> None:
    """The awaiting task is cancelled before or while the engine's thread does the work."""
    toy = Toy(vocabulary=31)

    async def main(engine: ft.Engine) -> Any:
        running = asyncio.ensure_future(engine.agenerate(PROMPT, max_tokens=60))
        for _ in range(20):
            score = asyncio.ensure_future(engine.ascore(PROMPT, CONTINUATIONS))
            await asyncio.sleep(0)
            score.cancel()
            with pytest.raises(asyncio.CancelledError):
                await score
        return await running

    with Audited(toy, kv_slots=200) as engine:
        [out] = asyncio.run(main(engine))
        assert out.token_ids == slow_generate(toy.rule, PROMPT, 60)
        assert len(engine.score(PROMPT, CONTINUATIONS)) == 5
