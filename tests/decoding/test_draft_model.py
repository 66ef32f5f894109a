"""A draft model as a source: what it reads, the room it takes, and what becomes of drafts that it cannot make."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from drafting import FIXED, LETTERS, SAMPLING_RULES, agree, babble, crowd, idle, plain, talker, together
from lab import TEXT_VOCABULARY, Audited, Toy, byte_text

import forethought as ft
from forethought.backend.batch import TokenBatch
from forethought.backend.kv import KVPool
from forethought.backend.request import Request, Row
from forethought.decoding.draft_model import DraftModel

PROMPT = [*b"abcab"]


def own(decoder: ft.Speculative) -> DraftModel:
    source = decoder.sources[0]
    assert isinstance(source, DraftModel)
    return source


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_prompt_is_read_once_by_the_draft_model() -> None:
    """Samples of one prompt, and the next request that begins alike, find it in the draft model's own cache."""
    draft, prompt = talker(7), [int(i) for i in np.random.default_rng(0).choice(LETTERS[:9], 60)]
    with Audited(talker(), ft.Speculative(draft, 3, adaptive=False), kv_slots=4000) as engine:
        engine.generate(prompt, n=6, max_tokens=12, temperature=1.0, seed=1, ignore_eos=True)
        assert draft.tokens < 60 + 6 * 30
        draft.tokens = 0
        engine.generate([*prompt, *b"ab"], max_tokens=12, ignore_eos=True)
        assert draft.tokens < 40


def test_a_draft_model_that_was_not_asked_catches_up() -> None:
    """In pieces of 2048 tokens, whatever was written meanwhile."""
    target, draft = talker(), talker(7)
    decoder = ft.Speculative(draft, 3, adaptive=False)
    propose, asked = decoder.sources[0].propose, [0]

    def lazy(rows: Any, nodes: int, depths: Any, floor: float) -> Any:
        asked[0] += 1
        return propose(rows, nodes, depths if asked[0] % 9 == 0 else [0] * len(rows), floor)

    decoder.sources[0].propose = lazy  # type: ignore[method-assign]
    requests = [([*PROMPT] * 450, {"max_tokens": 60, "ignore_eos": True, "seed": 1}),
                (PROMPT, {"max_tokens": 60, "ignore_eos": True, "seed": 1})]  # fmt: skip
    with Audited(target, decoder, kv_slots=8000) as engine:
        agree(together(engine, requests), plain(target, requests, slots=8000))
        assert engine.cost.accepted > 5
    idle(decoder)


def row(pool: KVPool, prompt: list[int], *stops: int) -> Row:
    request = Request(prompt=prompt, n=1, sampling=ft.Sampling(), max_tokens=9, min_tokens=0, stop_ids=frozenset(stops),
                      stop_strings=(), include_stop=False, logprobs=None, seed=1)  # fmt: skip
    return Row(request, 0, 0, prompt, pool.new_context(), [])


def test_nothing_is_drafted_behind_the_end_of_a_text() -> None:
    """A token that ends the request is drafted, and its forward is the last one."""
    draft, target = talker(7), talker()
    source, pool = DraftModel(draft, [1] * 8), target.new_pool(100)
    (whole,) = source.propose([row(pool, PROMPT)], 8, [8], 0.0)
    assert len(whole) == 8
    end = next(token for token in whole.ids[2:] if token not in whole.ids[:2])
    before = draft.tokens
    (cut,) = source.propose([row(pool, PROMPT, end)], 8, [8], 0.0)
    assert cut.ids == whole.ids[: whole.ids.index(end) + 1]
    assert draft.tokens - before <= len(PROMPT) + len(cut) - 1


# ---- room ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kv_slots", [101, *(pytest.param(n, marks=pytest.mark.slow) for n in (130, 220))])
@pytest.mark.parametrize("shape", [{"draft_tokens": 4}, {"tree": [3, 2, 1]}, {"tree": [4, 4, 2]}], ids=["chain", "tree", "bush"])
def test_a_draft_pool_too_small_for_all_changes_nothing(kv_slots: int, shape: dict[str, Any]) -> None:
    """Room for one line and a little: some drafts are not made, and the text goes on."""
    target, asked = talker(), crowd()
    decoder = ft.Speculative(talker(7), adaptive=False, kv_slots=kv_slots, **shape)
    with Audited(target, decoder, kv_slots=2500) as engine:
        agree(together(engine, asked), plain(target, asked))
        assert engine.cost.accepted > 0, "how many depends on who comes first"
    idle(decoder)
    pool = own(decoder)._pool
    assert pool is not None
    assert pool.size == kv_slots


def test_room_is_taken_from_the_cache_before_it_is_taken_from_rows() -> None:
    """Of a row that waits only as much is forgotten as must be, and what others left in the cache goes first."""
    draft = talker(7)
    source = DraftModel(draft, [1, 1])
    with Audited(talker(), ft.Speculative(talker(7), 2, adaptive=False), kv_slots=300) as engine:
        pool = source._own(engine.pool)
        assert source._cache is not None
        rows = [row(engine.pool, [LETTERS[i]] * 70) for i in range(4)]
        for one in rows:
            assert len(source.propose([one], 2, [5], 0.0)[0]) == 2
        assert pool.used > 200, "all four are followed"
        newest = row(engine.pool, [LETTERS[9]] * 70)
        before = draft.tokens
        assert len(source.propose([newest], 2, [5], 0.0)[0]) == 2, "one line goes, and the next one has its room"
        assert draft.tokens - before == 71
        assert len(source._lines) == 4
        for one in [*rows, newest]:
            source.stop(one, True)
        assert pool.used == 0


@pytest.mark.parametrize("kv_slots", [0, -1])
def test_a_pool_has_slots(kv_slots: int) -> None:
    with pytest.raises(ValueError, match=f"kv_slots={kv_slots}"):
        ft.Speculative(talker(), kv_slots=kv_slots)


def test_what_can_never_fit_the_draft_pool_is_refused() -> None:
    with Audited(talker(), ft.Speculative(talker(7), kv_slots=50), kv_slots=400) as engine:
        with pytest.raises(ValueError, match="can need 55 slots of a pool of 50"):
            engine.generate(PROMPT, max_tokens=50)
        assert len(engine.generate(PROMPT, max_tokens=45, ignore_eos=True)[0].token_ids) == 45


def test_callers_at_the_same_moment_get_one_draft_pool() -> None:
    """Requests are checked on the threads that bring them."""
    draft, gate, made = talker(7), threading.Barrier(2, timeout=0.5), list[KVPool]()
    new_pool = draft.new_pool

    def slow(slots: int) -> KVPool:
        with suppress(threading.BrokenBarrierError):
            gate.wait()
        made.append(new_pool(slots))
        return made[-1]

    draft.new_pool = slow  # type: ignore[method-assign]
    with Audited(talker(), ft.Speculative(draft, 3, adaptive=False), kv_slots=400) as engine:
        callers = [threading.Thread(target=engine.generate, args=(PROMPT,), kwargs={"max_tokens": 9}) for _ in range(2)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert len(made) == 1


# ---- what a draft model cannot do ------------------------------------------------------------------------------------


def test_drafting_stops_where_the_draft_models_positions_end() -> None:
    """The text goes on; nothing is drafted, nor computed, behind that place."""
    target, asked = talker(), [(PROMPT, {"max_tokens": 80, "ignore_eos": True, "seed": 1})]
    for decoder in (
        ft.Speculative(talker(positions=40), 4, adaptive=False),
        ft.Speculative(talker(positions=40), tree=[2, 2], adaptive=False),
        ft.Speculative(talker(positions=40), 4, rule="block"),
    ):
        with Audited(target, decoder, kv_slots=400) as engine:
            [[out]] = found = together(engine, asked)
            agree(found, plain(target, asked))
        assert 20 <= out.cost.accepted <= 40
        assert out.cost.forwards > 40
        idle(decoder)
    with Audited(target, ft.Speculative(talker(positions=4), 4, adaptive=False), kv_slots=400) as engine:
        [[out]] = found = together(engine, asked)
        agree(found, plain(target, asked))
        assert (out.cost.drafted, out.cost.drafting) == (0, 0)


def test_tokens_that_the_draft_model_does_not_have_are_no_draft() -> None:
    """Padding alone differs: the wider one's extra tokens are never guessed, nor read."""
    wide, narrow = TEXT_VOCABULARY + 5, TEXT_VOCABULARY
    for target_size, draft_size in ((wide, narrow), (narrow, wide)):
        alive = [*LETTERS, TEXT_VOCABULARY + 1] if target_size == wide else LETTERS
        target = Toy(babble(0, target_size, alive), vocabulary=target_size, text=byte_text())
        eager = [*LETTERS, TEXT_VOCABULARY + 1] if draft_size == wide else LETTERS
        for shape in ({"draft_tokens": 4}, {"tree": [3, 2]}):
            draft = Toy(babble(7, draft_size, eager), vocabulary=draft_size, text=byte_text())
            asked = [([*PROMPT, *[TEXT_VOCABULARY + 1] * more], {"max_tokens": 40, "temperature": t, "seed": 2})
                     for t in (0.0, 1.0) for more in ([0, 1] if target_size == wide else [0])]  # fmt: skip
            expected = plain(target, asked)
            if target_size == wide:
                assert any(TEXT_VOCABULARY + 1 in c.token_ids for out in expected for c in out)
            with Audited(target, ft.Speculative(draft, adaptive=False, **shape), kv_slots=400) as engine:
                agree(together(engine, asked), expected)
                assert engine.cost.drafted > 0


class Spoilt(Toy):
    """Fails, or goes out of its mind, for lines that begin with ``bad``."""

    bad = ord("z")

    def __init__(self, how: str) -> None:
        super().__init__(babble(7), vocabulary=TEXT_VOCABULARY, text=byte_text())
        self.how = how
        good = self.rule
        if how == "nan":
            self.rule = lambda ids: good(ids) + np.float32(np.nan if ids[0] == self.bad else 0)

    def forward(self, batch: TokenBatch) -> Any:
        output = super().forward(batch)
        if self.how == "raises" and any([*row.context.ids, *row.ids][0] == self.bad for row in batch.rows):
            raise ArithmeticError("out of order")
        return output


DRAFTING = {name: make for name, make in FIXED.items() if name in ("chain", "tree", "several")} | SAMPLING_RULES
every_drafting = pytest.mark.parametrize("make", DRAFTING.values(), ids=DRAFTING.keys())


@every_drafting
def test_a_draft_model_that_raises_ends_one_request_alone(make: Any) -> None:
    target, decoder = talker(), make(Spoilt("raises"))
    options = {"max_tokens": 24, "ignore_eos": True, "seed": 1}
    prompts = [PROMPT, [ord("z"), *PROMPT], [98, 97]]
    with Audited(target, decoder, kv_slots=600) as engine:
        for _ in range(2):
            with pytest.raises(ft.GenerationError, match="ArithmeticError: out of order") as error:
                engine.generate(prompts, **options)
            outs = error.value.results
            assert (outs[1][0].finish_reason, outs[1][0].error) == ("error", "ArithmeticError: out of order")
            agree([outs[0], outs[2]], plain(target, [(prompts[0], options), (prompts[2], options)]))
            assert outs[0][0].cost.accepted > 0
        with pytest.raises(ft.GenerationError, match="out of order"):
            engine.generate(prompts[1], **options)
    idle(decoder)


@every_drafting
def test_a_draft_model_that_overflows_drafts_nothing(make: Any) -> None:
    """Not a number is no probability: the text is the target's."""
    target, decoder = talker(), make(Spoilt("nan"))
    asked = [(p, {"max_tokens": 24, "ignore_eos": True, "seed": 1}) for p in (PROMPT, [ord("z"), *PROMPT], [98, 97])]
    with Audited(target, decoder, kv_slots=600) as engine:
        outs = together(engine, asked)
        agree(outs, plain(target, asked))
        assert outs[1][0].cost.drafted == 0 or len(decoder.sources) > 1
    idle(decoder)
