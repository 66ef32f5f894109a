"""Lookahead: which answers are remembered, for whom, and what they are good for.

What an index proposes is tested beside it; that no token changes, for all decoders at once, in ``test_speculation.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drafting import agree, idle, plain, talker, together
from lab import EOS, Audited, Toy, byte_text, hashed

import forethought as ft
from forethought.backend.batch import TokenBatch
from forethought.decoding.index import BORDER, Index
from forethought.decoding.posting import Posting
from forethought.decoding.trie import Trie

PROMPT = [*b"abcab"]
RUN: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True, "seed": 1}
every_index = pytest.mark.parametrize("index", ["posting", "trie"])


def remembered(decoder: ft.Lookahead) -> list[list[int]]:
    return list(decoder.index.texts())  # type: ignore[attr-defined]


def as_remembered(prompt: list[int], output: list[int]) -> list[int]:
    """An answer, behind the last tokens of what was asked."""
    return [*prompt[-BORDER:], *output]


# ---- what is remembered ----------------------------------------------------------------------------------------------


@every_index
@pytest.mark.parametrize("adaptive", [False, True])
def test_finished_answers_are_remembered_whole_and_in_order(index: Any, adaptive: bool) -> None:
    """However they end: at the length, at a stop token or a stop string; every sample of a request."""
    decoder = ft.Lookahead(index=index, adaptive=adaptive)
    with Audited(talker(), decoder, kv_slots=4000) as engine:
        outs = [
            *engine.generate(PROMPT, **RUN),
            *engine.generate(PROMPT[:2], **RUN | {"stop": [98], "temperature": 1.0, "max_tokens": 90}),
            *engine.generate(PROMPT, **RUN | {"stop": "e", "max_tokens": 200, "temperature": 1.0}),
        ]
        assert [out.finish_reason for out in outs] == ["length", "stop", "stop"]
        prompts = [PROMPT, PROMPT[:2], PROMPT]
        assert remembered(decoder) == [as_remembered(p, out.token_ids) for p, out in zip(prompts, outs, strict=True)]
        five = engine.generate(PROMPT, n=5, **RUN | {"temperature": 1.0})
        expected = sorted(as_remembered(PROMPT, out.token_ids) for out in five)
        assert sorted(remembered(decoder)[3:]) == expected
    idle(decoder)


def test_an_answer_that_was_preempted_is_remembered_once() -> None:
    decoder, prompts = ft.Lookahead(adaptive=False), [[*PROMPT, *[97 + i] * 20] for i in range(6)]
    with Audited(talker(), decoder, kv_slots=90, prefill_tokens=16) as engine:
        outs = engine.generate(prompts, **RUN)
        assert engine.cost.discarded > engine.cost.drafted - engine.cost.accepted, "some were"
        expected = sorted(as_remembered(p, out[0].token_ids) for p, out in zip(prompts, outs, strict=True))
        assert sorted(remembered(decoder)) == expected
    idle(decoder)


def test_what_was_cancelled_or_failed_is_not_remembered() -> None:
    toy = talker()
    rule = toy.rule
    toy.rule = lambda ids: rule(ids) + np.float32(np.nan if ids[0] == 122 and len(ids) > 12 else 0)
    decoder = ft.Lookahead(adaptive=False)
    with Audited(toy, decoder, kv_slots=4000) as engine:
        with pytest.raises(ft.GenerationError, match="nan") as error:
            engine.generate([122, *PROMPT], **RUN)
        assert len(error.value.results[0][0].token_ids) > 3
        for piece in engine.stream(PROMPT, **RUN | {"max_tokens": 500}):
            assert piece.token_ids
            break

        async def leave() -> None:
            task = asyncio.ensure_future(engine.agenerate(PROMPT, n=3, **RUN | {"max_tokens": 2000}))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(leave())
        engine._call(lambda: None).result()
        assert remembered(decoder) == []
        assert decoder.index.tokens == 0
        engine.generate(PROMPT, **RUN)
        assert len(remembered(decoder)) == 1
    idle(decoder)


@every_index
def test_nothing_is_remembered_if_so_asked(index: Any) -> None:
    """What was there before stays, and is drafted from."""
    decoder = ft.Lookahead(index=index, remember=False, adaptive=False)
    [[answer]] = plain(talker(), [(PROMPT, RUN)])
    decoder.warm_up([as_remembered(PROMPT, answer.token_ids)])
    with Audited(talker(), decoder, kv_slots=4000) as engine:
        for _ in range(2):
            [out] = engine.generate(PROMPT, **RUN)
            assert out.token_ids == answer.token_ids
            assert out.cost.forwards < 12
        assert remembered(decoder) == [as_remembered(PROMPT, answer.token_ids)]
    idle(decoder)


def test_the_oldest_answers_go_when_there_is_no_room() -> None:
    decoder = ft.Lookahead(capacity=80, adaptive=False)
    with Audited(talker(), decoder, kv_slots=4000) as engine:
        outs = [engine.generate([97, 98, 99, 100 + i], **RUN)[0] for i in range(5)]
        assert remembered(decoder) == [as_remembered([97, 98, 99, 100 + i], outs[i].token_ids) for i in (3, 4)]
        assert decoder.index.tokens == 68


# ---- what it is good for ---------------------------------------------------------------------------------------------


def chaos() -> Toy:
    """Text that never repeats itself: what is guessed right was remembered."""
    return Toy(hashed(269), vocabulary=269, text=byte_text())


@every_index
def test_an_answer_asked_for_again_takes_few_forwards(index: Any) -> None:
    decoder = ft.Lookahead(12, index=index, adaptive=False)
    with Audited(chaos(), decoder, kv_slots=4000) as engine:
        [first] = engine.generate(PROMPT, **RUN | {"max_tokens": 61})
        [again] = engine.generate(PROMPT, **RUN | {"max_tokens": 61})
        assert again.token_ids == first.token_ids
        assert (first.cost.accepted, first.cost.forwards) == (0, 61)
        # The prompt's last token is drafted behind at once; then at most 12 tokens and one more a step.
        assert again.cost.forwards <= 6
        assert again.cost.accepted >= 55
        assert again.cost.drafting == 0


def test_requests_that_run_side_by_side_draft_for_each_other_once_they_end() -> None:
    """Twelve equal requests, of which only the first few are in the dark."""
    decoder = ft.Lookahead(12, adaptive=False)
    with Audited(chaos(), decoder, kv_slots=4000, max_rows=4) as engine:
        outs = engine.generate([PROMPT] * 12, **RUN)
        agree(outs, plain(chaos(), [(PROMPT, RUN)] * 12))
        forwards = sorted(out[0].cost.forwards for out in outs)
        assert forwards[8:] == [30] * 4
        assert max(forwards[:8]) < 8


@every_index
def test_warm_up_is_as_good_as_having_answered(index: Any) -> None:
    [[answer]] = plain(chaos(), [(PROMPT, RUN)])
    decoder = ft.Lookahead(12, index=index, adaptive=False)
    assert decoder.warm_up(iter([as_remembered(PROMPT, answer.token_ids), (5, 6), []])) == 36
    assert decoder.warm_up([]) == 36
    with Audited(chaos(), decoder, kv_slots=4000) as engine:
        [out] = engine.generate(PROMPT, **RUN)
    assert out.token_ids == answer.token_ids
    assert out.cost.forwards <= 4
    with pytest.raises(ValueError, match="-1"):
        decoder.warm_up([[5, -1]])


def test_a_memory_outlives_its_engine(tmp_path: Path) -> None:
    """Saved by one engine's index, read by another's, of another kind."""
    first = ft.Lookahead(12, adaptive=False)
    with Audited(chaos(), first, kv_slots=4000) as engine:
        [answer] = engine.generate(PROMPT, **RUN)
    first.index.save(tmp_path / "memory")
    index = Trie()
    index.load(tmp_path / "memory")
    assert index.fingerprint == byte_text().fingerprint
    with Audited(chaos(), ft.Lookahead(12, index=index, adaptive=False), kv_slots=4000) as engine:
        [out] = engine.generate(PROMPT, **RUN)
    assert out.token_ids == answer.token_ids
    assert out.cost.forwards <= 4


def test_an_index_serves_one_engine_after_another() -> None:
    index = Posting()
    for expected in (30, 4):
        with Audited(chaos(), ft.Lookahead(12, index=index, adaptive=False), kv_slots=4000) as engine:
            assert engine.generate(PROMPT, **RUN)[0].cost.forwards <= expected
    assert len(list(index.texts())) == 2


def test_a_wrong_memory_costs_drafts_and_no_token() -> None:
    decoder, asked = ft.Lookahead(adaptive=False), [(PROMPT, RUN), (PROMPT, RUN | {"temperature": 1.0})]
    rng = np.random.default_rng(0)
    decoder.warm_up(rng.choice([97, 98, 99, 100, EOS], (40, 30)).tolist())
    with Audited(talker(), decoder, kv_slots=4000) as engine:
        agree(together(engine, asked), plain(talker(), asked))
        assert engine.cost.drafted > 200


# ---- whose ids they are ----------------------------------------------------------------------------------------------


def test_an_index_takes_over_the_models_tokenizer_and_refuses_another() -> None:
    decoder = ft.Lookahead()
    assert decoder.index.fingerprint is None
    with Audited(talker(), decoder, kv_slots=64):
        assert decoder.index.fingerprint == byte_text().fingerprint
    with Audited(talker(), ft.Lookahead(index=decoder.index), kv_slots=64) as engine:
        engine.generate(PROMPT, max_tokens=3)
    with pytest.raises(ValueError, match="the index holds ids of another tokenizer than toy's"):
        ft.Engine(talker(), ft.Lookahead(index=Posting(fingerprint="another")))
    with Audited(Toy(), ft.Lookahead(index=Posting(fingerprint="another")), kv_slots=64) as engine:
        engine.generate([1], max_tokens=3)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ft.Lookahead(index="tree"), ValueError, "index='tree': one of posting, trie, or an Index"),  # type: ignore[arg-type]
        (lambda: ft.Lookahead(capacity=-1), ValueError, "capacity=-1: at least 0"),
        (lambda: ft.Lookahead(0), ValueError, "draft_tokens=0"),
        (lambda: ft.Lookahead(index=5), TypeError, "index=5"),  # type: ignore[arg-type]
        (lambda: ft.Lookahead(index=None), TypeError, "index=None"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_step_that_is_tried_again_leaves_lines_as_they_were() -> None:
    """One request spoils a call of six: each is tried again alone, and no line has a token twice."""
    toy, decoder = talker(), ft.Lookahead(adaptive=False)
    asked = [([*PROMPT, 97 + i], RUN) for i in range(5)]
    expected = plain(talker(), asked)

    def spoil(batch: TokenBatch) -> None:
        for row in batch.rows:
            line = [*row.context.ids, *row.ids]
            if line[0] == 122 and len(line) > 12:
                raise ArithmeticError("no")

    toy.before = spoil
    with Audited(toy, decoder, kv_slots=4000) as engine:
        outs = together_but_one(engine, asked)
        agree(outs, expected)
        lines = sorted(as_remembered(p, out[0].token_ids) for (p, _), out in zip(asked, outs, strict=True))
        assert sorted(remembered(decoder)) == lines
    idle(decoder)


def together_but_one(engine: ft.Engine, asked: list[tuple[list[int], dict[str, Any]]]) -> list[list[ft.Completion]]:
    """All of them beside one that fails."""

    async def main() -> list[Any]:
        bad = engine.agenerate([122, *PROMPT], **RUN)
        return await asyncio.gather(bad, *(engine.agenerate(p, **o) for p, o in asked), return_exceptions=True)

    failed, *outs = asyncio.run(main())
    assert isinstance(failed, ft.GenerationError)
    return outs


def test_an_index_of_ones_own() -> None:
    """Whatever an index proposes, the text stays."""

    class Silent(Index):
        def open(self, prompt_ids: Any) -> Any:
            return Posting().open(prompt_ids)

        def texts(self) -> Any:
            return iter([])

        def _insert(self, text: Any) -> None:
            raise AssertionError("a line that belongs to another index")

        def _evict(self, length: int) -> None:
            pass

        def _reset(self) -> None:
            pass

    asked = [(PROMPT, RUN)]
    with Audited(talker(), ft.Lookahead(index=Silent(), adaptive=False), kv_slots=400) as engine:
        agree(together(engine, asked), plain(talker(), asked))
