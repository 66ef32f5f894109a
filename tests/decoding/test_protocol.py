"""The seam between engine and decoders, tried by toy decoders that need more of it than plain decoding does.

Each is checked against a few lines that say what should come out, alone and together, in a large pool and in one so small that
everybody is preempted.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from lab import EOS, Audited, Rule, Toy, reciting, slow_generate, spell, tiny_llama
from torch import Tensor

import forethought as ft
from forethought.backend import batch as calls
from forethought.backend.batch import Output, Part, TokenBatch
from forethought.backend.decoder import Decision, Draft
from forethought.backend.kv import Context, KVPool
from forethought.backend.model import Model
from forethought.backend.request import Request, Row
from forethought.decoding import noise
from forethought.decoding.sampling import Sampler, process

V = 31
PROMPTS = [[1, 2, 3], [*range(5, 31), *range(9)], [7], [*range(30, 0, -1), *range(20)]]
POOLS = pytest.mark.parametrize("slots", [4000, 150], ids=["room for all", "too small for all"])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_llama(tmp_path_factory.mktemp("llama"), vocab_size=V)


def texts(outs: list[list[ft.Completion]]) -> list[list[list[int]]]:
    return [[completion.token_ids for completion in out] for out in outs]


# ---- rows that decide together ---------------------------------------------------------------------------------------


class Guided(ft.Decoder):
    """Classifier-free guidance: logits behind the prompt, pushed away from those behind another one. Two rows a sample."""

    exact = False

    def __init__(self, negative: list[int], weight: float = 0.7) -> None:
        self.negative, self.weight, self.sampler = negative, weight, Sampler()

    def open(self, request: Request, sample: int, pool: KVPool) -> list[Row]:
        prompts = [list(request.prompt), list(self.negative)]
        return [Row(request, sample, i, p, pool.new_context(), list(p)) for i, p in enumerate(prompts)]

    def slots(self, request: Request, pool: KVPool) -> dict[KVPool, int]:
        return {pool: len(request.prompt) + len(self.negative) + 2 * request.max_tokens}

    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        assert [row.index for row in rows] == [0, 1] * (len(rows) // 2), "the rows of a sample come together, in their order"
        assert all(a.request is b.request and a.sample == b.sample for a, b in zip(rows[::2], rows[1::2], strict=True))
        assert output.logits is not None
        mixed = (1 + self.weight) * output.logits[::2] - self.weight * output.logits[1::2]
        drawn = self.sampler.draw(rows[::2], mixed)
        return Decision(drawn.tokens.repeat_interleave(2), failed={2 * i: e for i, e in drawn.failed.items()})


def slow_guided(toy: Toy, prompt: list[int], negative: list[int], tokens: int, **options: Any) -> list[int]:
    def rule(ids: list[int]) -> np.ndarray:
        return (1 + np.float32(0.7)) * toy.rule(ids) - np.float32(0.7) * toy.rule([*negative, *ids[len(prompt) :]])

    return slow_generate(rule, prompt, tokens, **options)


@POOLS
@pytest.mark.parametrize("negative", [[4], [9, 8, 7], [*range(25), *range(25)]], ids=lambda n: f"{len(n)} tokens")
@pytest.mark.parametrize("chunk", [512, 16])
def test_two_rows_live_wait_and_end_together(negative: list[int], slots: int, chunk: int) -> None:
    toy = Toy(vocabulary=V)
    run: dict[str, Any] = {"temperature": 1.0, "seed": 4}
    with Audited(toy, Guided(negative), kv_slots=slots, prefill_tokens=chunk) as engine:
        outs = engine.generate(PROMPTS, n=3, max_tokens=12, **run)
        for prompt, out in zip(PROMPTS, texts(outs), strict=True):
            assert out == [slow_guided(toy, prompt, negative, 12, sample=i, **run) for i in range(3)]
        bill = engine.cost
        assert (bill.discarded > 0) == (slots == 150)
        assert (bill.kept, bill.injected) == (144, 132), "the method puts the second row's tokens there, but for the last"
        assert toy.tokens == bill.computed - 12
        found = engine.generate(PROMPTS[1], max_tokens=12, **run)[0]
        assert found.token_ids == slow_guided(toy, PROMPTS[1], negative, 12, **run), "both prompts found again"


def test_what_breaks_one_row_ends_both() -> None:
    toy = Toy(vocabulary=V)
    rule = toy.rule
    toy.rule = lambda ids: rule(ids) + np.float32(np.nan if ids[:2] == [9, 8] and len(ids) == 6 else 0)
    with Audited(toy, Guided([9, 8, 7]), kv_slots=4000) as engine:
        with pytest.raises(ft.GenerationError, match="nan") as error:
            engine.generate([1, 2], n=2, max_tokens=9)
        assert [len(c.token_ids) for c in error.value.results[0]] == [3, 3]


def test_rows_that_may_need_too_much_are_refused() -> None:
    with Audited(Toy(vocabulary=V), Guided([1] * 30), kv_slots=100) as engine:
        with pytest.raises(ValueError, match="can need 106 slots of a pool of 100"):
            engine.generate([1] * 36, max_tokens=20)
        assert len(engine.generate([1] * 30, max_tokens=20)[0].token_ids) == 20


# ---- drafts ----------------------------------------------------------------------------------------------------------

Tree = tuple[list[int], list[int]]
"""Token ids and parents (0: the root, j: the j-th of them)."""


class Matching(ft.Decoder):
    """Verifies what ``propose`` drafts by drawing the target at each node with plain decoding's own noise."""

    def __init__(self, propose: Callable[[Row], Tree]) -> None:
        self.propose = propose

    def draft(self, rows: Sequence[Row], budget: int) -> Draft | None:
        trees = []
        for row in rows:
            room = row.request.max_tokens - len(row.output) - 1
            ids, parents = self.propose(row)
            depth = [0]
            for parent in parents:
                depth.append(depth[parent] + 1)
            keep = next((j for j, d in enumerate(depth[1:]) if d > room), len(ids))
            keep = min(keep, budget)
            budget -= keep
            trees.append((ids[:keep], parents[:keep]))
        if not any(ids for ids, _ in trees):
            return None
        sizes = np.cumsum([0, *(len(ids) for ids, _ in trees)])
        flat = [torch.tensor([x for tree in trees for x in tree[part]], dtype=torch.int64) for part in (0, 1)]
        return Draft(flat[0], flat[1], torch.from_numpy(sizes))

    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        assert output.logits is not None
        logits = output.logits.cpu()
        emitted: list[list[int]] = []
        kept: list[list[int]] = []
        logprobs: list[Tensor] = []
        first = 0
        all_ids, all_parents, ptr = ([], [], [0] * (len(rows) + 1)) if draft is None else draft.lists()
        for i, row in enumerate(rows):
            ids, parents = (drafted[ptr[i] : ptr[i + 1]] for drafted in (all_ids, all_parents))
            node, path, said = 0, [0], list[int]()
            while True:
                said.append(self._target(row, said, logits[first + node]))
                logprobs.append(logits[first + node].log_softmax(-1)[said[-1]])
                children = [j + 1 for j, parent in enumerate(parents) if parent == node and ids[j] == said[-1]]
                if not children:
                    break
                node = children[0]
                path.append(node)
            emitted.append(said)
            kept.append(path)
            first += 1 + len(ids)
        assert first == len(logits), "one logits row for each root and each drafted token"

        def flat(lists: list[list[int]]) -> tuple[Tensor, Tensor]:
            return torch.tensor([x for xs in lists for x in xs]), torch.tensor([0, *np.cumsum([len(xs) for xs in lists])])

        return Decision(*flat(emitted), *flat(kept), logprobs=torch.stack(logprobs))

    def observe(self, row: Row, ids: Sequence[int]) -> None:
        assert list(ids) == row.output[-len(ids) :], "what a stop cut off is not observed"

    @staticmethod
    def _target(row: Row, ahead: list[int], logits: Tensor) -> int:
        output = [*row.output, *ahead]
        scores = process(logits[None], [row.request.sampling], [row.prompt], [output])[0]
        stream = noise.stream(row.request.noise_seed, row.sample, noise.Lane.TARGET)
        key = noise.keys(np.array([stream], np.uint64), np.array([len(output)], np.uint64))
        return int((scores + noise.gumbel(key, torch.arange(len(scores)))[0]).argmax())


class Known:
    """What plain decoding gives, so that drafts can be right or wrong on purpose."""

    def __init__(self, model: Model, prompts: Sequence[list[int]], n: int, **options: Any) -> None:
        with Audited(model, kv_slots=8000) as engine:
            self.outs = engine.generate(list(prompts), n=n, **options)
            self.forwards = engine.cost.forwards
        self._all = {(tuple(p), c.index): c.token_ids for p, out in zip(prompts, self.outs, strict=True) for c in out}

    def next(self, row: Row, count: int) -> list[int]:
        known = self._all.get((tuple(row.prompt), row.sample), [])
        return known[len(row.output) : len(row.output) + count]

    def wrong_chain(self, row: Row) -> Tree:
        true = [*self.next(row, 1), 0][0]
        return [(true + 1) % V, true], [0, 1]

    def wrong_siblings(self, row: Row) -> Tree:
        true = [*self.next(row, 1), 0][0]
        return [(true + 1) % V, (true + 2) % V], [0, 0]

    def right_chain(self, row: Row) -> Tree:
        true = self.next(row, 5)
        return true, list(range(len(true)))

    def right_tree(self, row: Row) -> Tree:
        """The truth down the tree, two wrong siblings before it on each level, and a wrong child of one of them."""
        ids, parents, at = list[int](), list[int](), 0
        for token in self.next(row, 4):
            ids += [(token + 1) % V, (token + 2) % V, token, token]
            parents += [at, at, at, len(parents) + 1]
            at = len(ids) - 1
        return ids, parents

    def half_right(self, row: Row) -> Tree:
        true = self.next(row, 6)
        return [t if i < len(row.output) % 4 else (t + 1) % V for i, t in enumerate(true)], list(range(len(true)))


GREEDY: dict[str, Any] = {"max_tokens": 24}
SAMPLED: dict[str, Any] = {"max_tokens": 24, "temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 6}
DRAFTS = ["wrong_chain", "wrong_siblings", "right_chain", "right_tree", "half_right"]


@POOLS
@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", DRAFTS)
def test_drafts_right_or_wrong_do_not_change_the_text(kind: str, options: dict[str, Any], slots: int) -> None:
    toy = Toy(vocabulary=V)
    known = Known(toy, PROMPTS, 2, **options)
    toy.tokens = 0
    with Audited(toy, Matching(getattr(known, kind)), kv_slots=slots) as engine:
        outs = engine.generate(PROMPTS, n=2, **options)
        assert texts(outs) == texts(known.outs)
        assert texts([engine.generate(prompt, n=2, **options) for prompt in PROMPTS]) == texts(outs)
        costs, bill = [c.cost for out in outs for c in out], engine.cost
    assert bill.drafted > 0
    assert all(c.accepted <= c.drafted and c.drafted - c.accepted <= c.discarded for c in costs)
    if kind.startswith("wrong"):
        assert bill.accepted == 0
    samples = 4 * len(PROMPTS)
    assert bill.computed - samples <= toy.tokens <= bill.computed, "a last token that was drafted has been computed"


@pytest.mark.parametrize("kind", DRAFTS)
def test_drafts_are_billed_for_what_they_were(kind: str) -> None:
    toy = Toy(vocabulary=V)
    known = Known(toy, [[1, 2, 3]], 1, max_tokens=25)
    with Audited(toy, Matching(getattr(known, kind)), kv_slots=4000) as engine:
        [out] = engine.generate([1, 2, 3], max_tokens=25)
        assert engine.pool.cached == 3 + 24, "what is kept of a tree is a plain line, good for the cache"
    cost = out.cost
    if kind in ("wrong_chain", "wrong_siblings"):
        # 25 steps: the first only ends the prompt, and the last has room for no draft.
        drafted = 2 * 23 - (kind == "wrong_chain")
        assert (cost.forwards, cost.drafted, cost.accepted, cost.discarded) == (25, drafted, 0, drafted)
    elif kind == "right_chain":
        # One token by the prompt, then 6, 6, 6, and 6 of the 6 still to come.
        assert (cost.forwards, cost.drafted, cost.accepted, cost.discarded) == (5, 20, 20, 0)
    elif kind == "right_tree":
        # One, then 5 a step, and 4 at the end, with a quarter of each tree right.
        assert (cost.forwards, cost.accepted) == (6, 19)
        assert cost.discarded == cost.drafted - 19
        assert cost.drafted > 3 * 19
    else:
        assert 0 < cost.accepted < cost.drafted
        assert cost.discarded == cost.drafted - cost.accepted
    assert cost.kept == 25


def test_drafts_of_a_row_that_fails_are_billed_all_the_same() -> None:
    toy = Toy(vocabulary=V)
    known = Known(toy, [[1, 2, 3]], 1, max_tokens=25)

    class Fails(Matching):
        def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
            decision = super().decide(rows, draft, output)
            decision.failed = {i: ArithmeticError("no") for i, row in enumerate(rows) if len(row.output) == 7}
            return decision

    with Audited(toy, Fails(known.right_chain), kv_slots=400) as engine:
        toy.tokens = 0
        with pytest.raises(ft.GenerationError, match="ArithmeticError: no") as error:
            engine.generate([1, 2, 3], max_tokens=25)
        cost = error.value.results[0][0].cost
        assert (cost.kept, cost.drafted, cost.accepted, cost.discarded) == (7, 10, 5, 5)
        assert toy.tokens == cost.computed


@pytest.mark.parametrize("kind", DRAFTS)
def test_drafts_on_a_real_model(llama: Model, kind: str) -> None:
    """Tree attention proper: the text is plain decoding's."""
    known = Known(llama, PROMPTS, 2, **SAMPLED)
    with Audited(llama, Matching(getattr(known, kind)), kv_slots=4000) as engine:
        assert texts(engine.generate(PROMPTS, n=2, **SAMPLED)) == texts(known.outs)
        if kind.startswith("right"):
            assert engine.cost.forwards < known.forwards / 3
            assert engine.cost.accepted > 100
    with Audited(llama, Matching(getattr(known, kind)), kv_slots=150) as engine:
        assert texts(engine.generate(PROMPTS, n=2, **SAMPLED)) == texts(known.outs)


@pytest.mark.parametrize("seed", range(8))
def test_random_trees_in_a_random_schedule(seed: int) -> None:
    """Trees of any shape, partly right, while requests come, stream and are cancelled in a pool too small for them."""
    rng, toy = np.random.default_rng(seed), Toy(vocabulary=V)
    stem = rng.integers(0, V, 20).tolist()
    prompts = [[*stem[: rng.integers(1, 21)], i] for i in range(12)]
    options: dict[str, Any] = {"max_tokens": 18, "temperature": 1.0, "seed": seed}
    known = Known(toy, prompts, 3, **options)

    def propose(row: Row) -> Tree:
        ids, parents, depth = list[int](), list[int](), [0]
        right, true = {0}, known.next(row, 8)
        for _ in range(rng.integers(0, 9)):
            parent = int(rng.integers(len(depth)))
            level = depth[parent]
            hit = parent in right and level < len(true) and rng.random() < 0.7
            ids.append(true[level] if hit else int(rng.integers(V)))
            parents.append(parent)
            depth.append(level + 1)
            if parent in right and level < len(true) and ids[-1] == true[level]:
                right.add(len(ids))
        order = sorted(range(len(ids)), key=lambda j: depth[j + 1])  # shallow first: a cut leaves a tree
        place = {0: 0} | {j + 1: k + 1 for k, j in enumerate(order)}
        return [ids[j] for j in order], [place[parents[j]] for j in order]

    async def one(engine: ft.Engine, i: int) -> None:
        right = [c.token_ids for c in known.outs[i]]
        await asyncio.sleep(float(rng.random()) * 0.03)
        if i % 4 == 0:
            seen = list[int]()
            stream = engine.astream(prompts[i], **options)
            async for piece in stream:
                seen += piece.token_ids
                if rng.random() < 0.2:
                    break
            await stream.aclose()  # type: ignore[attr-defined]
            assert seen == right[0][: len(seen)]
        elif i % 4 == 1:
            task = asyncio.ensure_future(engine.agenerate(prompts[i], n=3, **options))
            await asyncio.sleep(float(rng.random()) * 0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            assert [c.token_ids for c in await engine.agenerate(prompts[i], n=3, **options)] == right

    async def main(engine: ft.Engine) -> None:
        await asyncio.gather(*(one(engine, i) for i in range(len(prompts))))

    with Audited(toy, Matching(propose), kv_slots=int(rng.integers(45, 120)), prefill_tokens=16) as engine:
        asyncio.run(main(engine))
        assert engine.cost.accepted > 0


def test_siblings_get_the_prompt_without_what_their_leader_drafted() -> None:
    """The prompt is found whole in the cache, so that its last token is a root like any other, with a draft behind it."""
    toy, options = Toy(vocabulary=V), {"max_tokens": 16, "temperature": 1.0, "seed": 2}
    known = Known(toy, [PROMPTS[1]], 4, **options)
    with Audited(toy, Matching(known.right_chain), kv_slots=4000) as engine:
        for _ in range(3):
            assert texts([engine.generate(PROMPTS[1], n=4, **options)]) == texts(known.outs)


@pytest.mark.parametrize("at", range(1, 9))
def test_a_stop_inside_an_accepted_run_cuts_it_there(at: int) -> None:
    toy = Toy(vocabulary=V)
    known = Known(toy, [[1, 2, 3]], 1, max_tokens=25, logprobs="raw")
    plain = known.outs[0][0]
    tokens = plain.token_ids
    stop = tokens[at]
    end = tokens.index(stop) + 1
    with Audited(toy, Matching(known.right_chain), kv_slots=4000) as engine:
        [out] = engine.generate([1, 2, 3], max_tokens=25, stop=stop, logprobs="raw")
        assert (out.token_ids, out.finish_reason, out.stop_reason) == (tokens[:end], "stop", stop)
        assert out.logprobs == pytest.approx(plain.logprobs[:end])
        # The first token is the prompt's; from there on five are drafted and one is not.
        assert out.cost.accepted == sum(i % 6 != 0 for i in range(end))
        assert out.cost.accepted + out.cost.discarded == out.cost.drafted
        again = engine.generate([1, 2, 3, *tokens], max_tokens=5)[0]
        assert again.token_ids == slow_generate(toy.rule, [1, 2, 3, *tokens], 5), "KV past the stop is cached for what it is"
        for most in range(1, 12):
            [cut] = engine.generate([1, 2, 3], max_tokens=most)
            assert (cut.token_ids, cut.finish_reason) == (tokens[:most], "length")


def test_a_stop_string_inside_an_accepted_run_cuts_it_there() -> None:
    script = spell("abc", b"STOP", "xyz", b"END. Then", "123", EOS)
    toy = reciting([1, 2], script)

    def propose(row: Row) -> Tree:
        true = script[len(row.output) : len(row.output) + 5]
        return true, list(range(len(true)))

    with Audited(toy, Matching(propose), kv_slots=4000) as engine:
        for stop, text, used in (("STOP", "abc", 4), ("Px", "abcSTO", 5), ("D. T", "abcSTOPxyzEN", 8), (EOS, None, len(script))):
            [out] = engine.generate([1, 2], max_tokens=20, stop=stop)
            assert out.token_ids == script[:used]
            assert text is None or out.text == text
            pieces = list(engine.stream([1, 2], max_tokens=20, stop=stop))
            assert "".join(map(str, pieces)) == out.text
            assert [t for p in pieces for t in p.token_ids] == out.token_ids
            assert len(pieces) < len(out.token_ids)


# ---- what is fed is not what is said ---------------------------------------------------------------------------------


class Header(ft.Autoregressive):
    """Plain decoding that slips ``header`` into the context after the third token, before or behind it."""

    exact = False

    def __init__(self, header: list[int], behind: bool) -> None:
        super().__init__()
        self.header, self.behind = header, behind

    def slots(self, request: Request, pool: KVPool) -> dict[KVPool, int]:
        return {pool: len(request.prompt) + request.max_tokens + len(self.header)}

    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        decision = super().decide(rows, draft, output)
        said = decision.emitted.tolist()
        decision.pending = {
            i: [said[i], *self.header] if self.behind else [*self.header, said[i]]
            for i, row in enumerate(rows)
            if len(row.output) == 2
        }
        return decision


@POOLS
@pytest.mark.parametrize("chunk", [512, 3])
@pytest.mark.parametrize("behind", [True, False])
def test_a_decoder_may_feed_tokens_that_it_does_not_emit(behind: bool, chunk: int, slots: int) -> None:
    toy, header = Toy(vocabulary=V), [30, 29, 28, 27]

    def expected(prompt: list[int], sample: int) -> list[int]:
        def rule(ids: list[int]) -> np.ndarray:
            at = len(prompt) + (3 if behind else 2)
            return toy.rule(ids if len(ids) < len(prompt) + 3 else [*ids[:at], *header, *ids[at:]])

        return slow_generate(rule, prompt, 15, sample=sample, temperature=1.0, seed=1)

    with Audited(toy, Header(header, behind), kv_slots=slots // 2, prefill_tokens=chunk) as engine:
        outs = engine.generate(PROMPTS, n=2, max_tokens=15, temperature=1.0, seed=1)
        assert texts(outs) == [[expected(prompt, i) for i in range(2)] for prompt in PROMPTS]
        assert all(c.cost.injected == 4 for out in outs for c in out)
        assert toy.tokens == engine.cost.computed - 2 * len(PROMPTS)
        assert (engine.cost.discarded > 0) == (slots == 150)


class Renamed(ft.Autoregressive):
    """Feeds each token with the embedding of the next one in the vocabulary, ``extra`` tokens before it."""

    exact = False

    def __init__(self, model: Model, extra: Sequence[int] = ()) -> None:
        super().__init__()
        self.model, self.extra = model, list(extra)

    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        decision = super().decide(rows, draft, output)
        vectors = self.model.embed((decision.emitted + 1) % V)
        decision.embeddings = dict(enumerate(vectors))
        if self.extra:
            decision.pending = {i: [*self.extra, token] for i, token in enumerate(decision.emitted.tolist())}
        return decision

    def slots(self, request: Request, pool: KVPool) -> dict[KVPool, int]:
        return {pool: len(request.prompt) + request.max_tokens * (1 + len(self.extra))}


@pytest.mark.parametrize("extra", [[], [3, 4]], ids=["alone", "behind others"])
def test_an_embedding_may_stand_for_another_token(llama: Model, extra: list[int]) -> None:
    for model in (Toy(vocabulary=V), llama):

        def rule(ids: list[int], model: Model = model) -> np.ndarray:
            line = [*ids[:3], *(x for token in ids[3:] for x in (*extra, (token + 1) % V))]
            if isinstance(model, Toy):
                return model.rule(line)
            pool = model.new_pool(100)
            logits = model.forward(TokenBatch(pool, [calls.Row(pool.new_context(), line)])).logits
            assert logits is not None
            return logits[-1].cpu().numpy()

        with Audited(model, Renamed(model, extra), kv_slots=4000) as engine:
            for _ in range(2):
                [out] = engine.generate([1, 2, 3], max_tokens=10, temperature=1.0, seed=3)
                assert out.token_ids == slow_generate(rule, [1, 2, 3], 10, temperature=1.0, seed=3)
            assert engine.pool.cached == 3, "what is no function of its ids is not cached"


# ---- what else a row can be ------------------------------------------------------------------------------------------


class Behind(ft.Autoregressive):
    """Plain decoding; each sample of a request sees another finished context in front of its own, the last one none."""

    fronts: Sequence[Context] = ()

    def open(self, request: Request, sample: int, pool: KVPool) -> list[Row]:
        [row] = super().open(request, sample, pool)
        if sample < len(self.fronts):
            row.view = [Part(self.fronts[sample], -self.fronts[sample].size)]
        return [row]


@pytest.mark.parametrize("slots", [4000, 130])
def test_rows_may_see_other_contexts(llama: Model, slots: int) -> None:
    """The same text as behind a longer prompt; nothing of it is taken for what the ids alone would give."""
    fronts, run = [[*range(20)], [*range(20, 5, -1)], []], {"max_tokens": 12, "temperature": 1.0, "seed": 1}

    def behind(front: list[int]) -> Rule:
        def rule(ids: list[int]) -> np.ndarray:
            pool = llama.new_pool(100)
            logits = llama.forward(TokenBatch(pool, [calls.Row(pool.new_context(), [*front, *ids])])).logits
            assert logits is not None
            return logits[-1].cpu().numpy()

        return rule

    expected = [
        [slow_generate(behind(front), p, 12, sample=i, temperature=1.0, seed=1) for i, front in enumerate(fronts)]
        for p in PROMPTS[:3]
    ]
    decoder = Behind()
    with Audited(llama, decoder, kv_slots=slots) as engine:

        def prepare(ids: list[int]) -> Context:
            context = engine.pool.new_context()
            batch = TokenBatch(engine.pool, [calls.Row(context, ids)])
            llama.forward(batch)
            batch.commit()
            return context

        contexts = [engine._call(lambda ids=ids: prepare(ids)).result() for ids in fronts[:2]]
        for known in ([], contexts, contexts, []):
            decoder.fronts = known
            outs = texts(engine.generate(PROMPTS[:3], n=3, **run))
            if known:
                assert outs == expected
            else:
                assert [out[2] for out in outs] == [out[2] for out in expected]
        for context in contexts:
            engine._call(context.release).result()


class Looks(ft.Autoregressive):
    """Plain decoding that compares the hidden states it asked for with the logits."""

    hidden = (0, 2)

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.seen = model, 0

    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        assert output.logits is not None
        assert set(output.hidden) == {0, 2}
        assert len(output.hidden[0]) == len(output.hidden[2]) == len(rows)
        torch.testing.assert_close(output.hidden[2] @ self.model._head, output.logits)
        last = torch.tensor([row.output[-1] if row.output else row.prompt[-1] for row in rows])
        torch.testing.assert_close(output.hidden[0], self.model.embed(last.to(output.logits.device)))
        self.seen += len(rows)
        return super().decide(rows, draft, output)


def test_hidden_states_come_row_by_row_with_the_logits(llama: Model) -> None:
    decoder = Looks(llama)
    with Audited(llama, decoder, kv_slots=4000, prefill_tokens=16) as engine:
        engine.generate(PROMPTS, n=3, max_tokens=6, temperature=1.0)
    assert decoder.seen == 3 * 6 * len(PROMPTS)


# ---- the order of things ---------------------------------------------------------------------------------------------


class Recorder(Guided):
    """Guidance that writes down what is asked of each row."""

    def __init__(self) -> None:
        super().__init__([9, 8, 7])
        self.log: dict[int, str] = {}
        self.rows: list[Row] = []  # kept, so that no id is used twice

    def _note(self, row: Row, letter: str) -> None:
        self.log[id(row)] += letter

    def open(self, request: Request, sample: int, pool: KVPool) -> list[Row]:
        rows = super().open(request, sample, pool)
        self.rows += rows
        self.log |= {id(row): "o" for row in rows}
        return rows

    def admit(self, row: Row) -> None:
        assert row.pending, "one token at least is still to be computed"
        line = [*row.context.ids, *row.pending]
        assert line == [*row.prompt, *row.output]
        self._note(row, "a")

    def draft(self, rows: Sequence[Row], budget: int) -> Draft | None:
        assert budget >= 0
        assert all(len(row.pending) == 1 for row in rows)
        return None

    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        for row in rows:
            self._note(row, "d")
        return super().decide(rows, draft, output)

    def observe(self, row: Row, ids: Sequence[int]) -> None:
        assert list(ids) == row.output[-len(ids) :]
        self._note(row, "s")

    def preempt(self, row: Row) -> None:
        self._note(row, "p")

    def release(self, row: Row, outcome: Any) -> None:
        assert outcome == "length"
        self._note(row, "r")


@pytest.mark.parametrize("slots", [4000, 170])
def test_each_row_is_opened_admitted_and_released_once_and_in_order(slots: int) -> None:
    decoder = Recorder()
    with Audited(Toy(vocabulary=V), decoder, kv_slots=slots) as engine:
        engine.generate(PROMPTS, n=3, max_tokens=14, temperature=1.0)
    assert len(decoder.log) == 2 * 3 * len(PROMPTS)
    # The second row's last token is not observed: the first has ended both.
    pattern = re.compile(r"oa(ds|pa)*(dr|dsr)")
    assert all(pattern.fullmatch(story) for story in decoder.log.values()), decoder.log
    assert any("p" in story for story in decoder.log.values()) == (slots == 170)
