"""Speculation changes no token: every drafting decoder against plain decoding, in every setting, company and shortage.

What only one of the decoders can do is tested beside it; here is what all of them promise.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drafting import (
    ADAPTIVE,
    DECODERS,
    FIXED,
    Asked,
    Clock,
    Make,
    agree,
    crowd,
    flips,
    idle,
    perturbed,
    plain,
    talker,
    together,
)  # fmt: skip
from lab import EOS, Audited, Toy, slow_generate, tiny_llama

import forethought as ft
from forethought.backend.batch import TokenBatch
from forethought.backend.model import Model
from forethought.backend.request import Row
from forethought.decoding import speculation
from forethought.decoding.source import Source
from forethought.decoding.speculation import Speculation
from forethought.decoding.tree import Tree

every_decoder = pytest.mark.parametrize("make", DECODERS.values(), ids=DECODERS.keys())
every_kind = pytest.mark.parametrize("make", FIXED.values(), ids=FIXED.keys())
FEW = {name: FIXED[name] for name in ("several", "tree", "lookahead")}
CROWD = crowd()


@pytest.fixture(scope="module")
def said() -> list[list[ft.Completion]]:
    """What plain decoding says to the crowd."""
    outs = plain(talker(), CROWD)
    found = [c for out in outs for c in out]
    reasons = {c.stop_reason for c in found}
    assert reasons >= {None, EOS, 98, "STOP", "ja"}, "stops of every kind are met"
    assert sum(c.finish_reason == "length" for c in found) > 10
    return outs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The decoders' own time: what an adaptive budget follows does not depend on the machine."""
    made = Clock()
    monkeypatch.setattr(speculation, "time", made)
    return made


@pytest.fixture
def duo(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> tuple[Toy, Toy]:
    """A target, and a draft model forty times as fast that is sometimes wrong."""
    target, draft = talker(), talker(salt=7)
    clock.charge(monkeypatch, target, lambda q: 0.04 + 1e-5 * q)
    clock.charge(monkeypatch, draft, lambda q: 0.001)
    return target, draft


class Books:
    """Counts what reaches a model, by itself."""

    def __init__(self, toy: Toy) -> None:
        self.tokens = self.calls = self.drafted = self.largest = 0
        toy.before = self._count

    def _count(self, batch: TokenBatch) -> None:
        self.calls += 1
        self.tokens += len(batch.ids)
        # All of a decoding row's logits are asked for, of a prompt's only the last.
        for size in [len(row.ids) - 1 for row in batch.rows if row.logits is None]:
            self.drafted += size
            self.largest = max(self.largest, size)


# ---- the same text ---------------------------------------------------------------------------------------------------


@every_decoder
def test_a_crowd_hears_what_plain_decoding_says(make: Make, duo: tuple[Toy, Toy], said: list[list[ft.Completion]]) -> None:
    """Sixteen requests of sixteen kinds in one engine; and everything computed is on the bill."""
    target, decoder = duo[0], make(duo[1])
    books, drafts = Books(target), Books(duo[1])
    with Audited(target, decoder, kv_slots=2500, prefill_tokens=40) as engine:
        outs = together(engine, CROWD)
        agree(outs, said)
        bill = engine.cost
    idle(decoder)
    assert bill.accepted > 0, "how many depends, where it adapts, on the clock"
    assert bill.drafted > 1.3 * bill.accepted, "drafts are sometimes wrong"
    assert 1 < books.largest <= decoder.draft_tokens
    found = [c.cost for out in outs for c in out]
    assert bill.forwards == books.calls
    assert bill.drafted == books.drafted == sum(c.drafted for c in found)
    assert bill.drafting == drafts.tokens == sum(c.drafting for c in found)
    assert bill.accepted == sum(c.accepted for c in found)
    assert bill.discarded == bill.drafted - bill.accepted, "nothing is thrown away but drafts"
    assert bill.computed - len(found) <= books.tokens <= bill.computed, "a last token that was drafted has been computed"
    assert all(c.kept <= c.forwards + c.accepted for c in found), "each forward gives a token, and one for each accepted"


@pytest.mark.parametrize("make", [pytest.param(make, id=name, marks=[] if name in FEW else [pytest.mark.slow])
                                  for name, make in FIXED.items()])  # fmt: skip
def test_one_at_a_time_hears_the_same(make: Make, duo: tuple[Toy, Toy], said: list[list[ft.Completion]]) -> None:
    decoder = make(duo[1])
    with Audited(duo[0], decoder, kv_slots=2500) as engine:
        agree([engine.generate(prompt, **options) for prompt, options in CROWD], said)
        assert engine.cost.accepted > 20
    idle(decoder)


@every_decoder
def test_a_pool_too_small_for_all_changes_nothing(make: Make, duo: tuple[Toy, Toy], said: list[list[ft.Completion]]) -> None:
    """Drafts shrink and rows are preempted; draft models have as little room."""
    decoder = make(duo[1])
    with Audited(duo[0], decoder, kv_slots=125, prefill_tokens=16) as engine:
        agree(together(engine, CROWD), said)
        recomputed = engine.cost.discarded - (engine.cost.drafted - engine.cost.accepted)
        assert recomputed > 100, "rows were preempted"
        assert engine.cost.accepted > 0
    idle(decoder)


@every_decoder
@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 8))])
def test_coming_watching_and_leaving(make: Make, seed: int, duo: tuple[Toy, Toy], said: list[list[ft.Completion]]) -> None:
    """Requests come at any time; some are streams, some are left or cancelled on the way."""
    rng, decoder = np.random.default_rng(seed), make(duo[1])

    async def one(engine: ft.Engine, i: int) -> None:
        (prompt, options), right = CROWD[i], said[i]
        await asyncio.sleep(float(rng.random()) * 0.05)
        if options.get("n", 1) == 1 and rng.random() < 0.5:
            seen, shown, leaves = list[int](), "", rng.random() < 0.5
            stream = engine.astream(prompt, **options)
            async for piece in stream:
                seen, shown = seen + piece.token_ids, shown + piece.text
                if leaves and rng.random() < 0.2:
                    break
            else:
                assert (seen, shown) == (right[0].token_ids, right[0].text)
            await stream.aclose()  # type: ignore[attr-defined]
            assert seen == right[0].token_ids[: len(seen)]
            assert right[0].text.startswith(shown)
        elif rng.random() < 0.3:
            task = asyncio.ensure_future(engine.agenerate(prompt, **options))
            await asyncio.sleep(float(rng.random()) * 0.03)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            agree([await engine.agenerate(prompt, **options)], [right])

    async def main(engine: ft.Engine) -> None:
        await asyncio.gather(*(one(engine, i) for i in rng.permutation(len(CROWD)).tolist()))

    with Audited(duo[0], decoder, kv_slots=int(rng.integers(125, 300)), prefill_tokens=24) as engine:
        asyncio.run(main(engine))
        assert engine.cost.drafted > 0
    idle(decoder)


# ---- real models -----------------------------------------------------------------------------------------------------

TIE = 1e-4
"""In float32, scores this close may change places with the shape of a call."""
COARSE = 1 / 16
"""In bfloat16, likewise: logits from 4 to 8 are 1/32 apart."""
NUMBERS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2},
    {"presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 1.2, "top_k": 6, "min_p": 0.02},
    {"temperature": 0.6, "n": 3},
    {"temperature": 1.0, "logit_bias": {5: 4.0, 6: -8.0}, "min_tokens": 20, "stop": [5, 7, 11]},
    {"repetition_penalty": 1.1, "min_tokens": 30, "stop": list(range(40))},
]
ZOO = [
    "mistral", "qwen2", "qwen3", "gpt2", "opt", "phi", "gemma2", "gemma3", "olmo2", "llama-yarn", "qwen2-window", "phi3-longrope",
    "stablelm", "gpt-neox", "gpt-oss", "cohere2", "opt-narrow",
]  # fmt: skip
SOON = {"mistral", "gpt2", "gemma2"}


def backend_fixtures() -> Any:
    """The module of fixtures beside the tests of the backend: its checkpoints are wanted here too."""
    path = Path(__file__).parents[1] / "backend" / "conftest.py"
    spec = importlib.util.spec_from_file_location("backend_fixtures", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checkpoint = backend_fixtures().checkpoint


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    """A random Llama, and one whose weights are a little off."""
    folder = tmp_path_factory.mktemp("llama")
    return tiny_llama(folder), perturbed(folder, folder / "draft", 0.1)


def compare(target: Model, draft: Model, decoders: dict[str, Make], asked: Sequence[Asked], gap: float, *, rate: float = 10 / 1e6,
            useful: bool = True, **options: Any) -> None:  # fmt: skip
    """Every decoder against plain decoding, all requests at once and some one by one.

    A text may leave plain decoding's where two scores are closer than ``gap``, and ``rate`` of all tokens may be such places.
    """
    expected, tokens, flipped, accepted = plain(target, asked), 0, 0, 0
    for make in decoders.values():
        decoder = make(draft)
        with Audited(target, decoder, **{"kv_slots": 2500, "prefill_tokens": 64} | options) as engine:
            runs = [together(engine, asked)]
            if not options:
                engine.clear_cache()
                runs.append([engine.generate(prompt, **own) for prompt, own in asked[:8]])
            accepted += engine.cost.accepted
        idle(decoder)
        flipped += sum(flips(target, asked[: len(outs)], outs, expected[: len(outs)], gap) for outs in runs)
        tokens += sum(c.cost.kept for outs in runs for out in outs for c in out)
    assert accepted > 0.02 * tokens or not useful, "drafts were of use"
    assert flipped <= tokens * rate, f"{flipped} texts differ in {tokens} tokens"


def numbers(vocabulary: int, max_tokens: int = 40) -> list[Asked]:
    return crowd(range(1, vocabulary), NUMBERS * 2, max_tokens)


def test_a_real_model_in_float32(llamas: tuple[Model, Model]) -> None:
    compare(*llamas, FIXED, numbers(101, max_tokens=30), TIE)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"kv_slots": 150}], ids=["room", "no room"])
def test_a_real_model_at_its_own_pace(llamas: tuple[Model, Model], options: dict[str, Any]) -> None:
    """The machine's clock decides what is drafted, never what is said."""
    compare(*llamas, ADAPTIVE, numbers(101, max_tokens=80), TIE, useful=False, **options)


def test_a_real_model_without_room(llamas: tuple[Model, Model]) -> None:
    compare(*llamas, FEW, numbers(101), TIE, kv_slots=130, prefill_tokens=16)


@pytest.mark.parametrize("kind", [kind if kind in SOON else pytest.param(kind, marks=pytest.mark.slow) for kind in ZOO])
def test_every_architecture(kind: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Windows, soft caps, sinks, learnt positions, biases: a tree of drafts is masked as a text would be."""
    folder = checkpoint(kind)
    decoders = FEW if kind in SOON else FIXED
    asked = numbers(97, max_tokens=30)[: 8 if kind in SOON else None]
    compare(ft.load(folder), perturbed(folder, tmp_path / "draft", 0.02), decoders, asked, TIE)


def test_a_real_model_in_bfloat16(llamas: tuple[Model, Model], tmp_path: Path) -> None:
    """Rounding differs with the shape of a call, so near ties may flip: they are counted, and nothing else differs."""
    tiny_llama(tmp_path)
    target, draft = ft.load(tmp_path, dtype="bfloat16"), perturbed(tmp_path, tmp_path / "draft", 0.1, "bfloat16")
    assert target.info.dtype == draft.info.dtype == torch.bfloat16
    unfiltered = [own for own in NUMBERS if not own.keys() & {"top_k", "top_p", "min_p"}]  # a filter's edge is another tie
    compare(target, draft, FEW, crowd(range(1, 101), unfiltered * 3, 30), COARSE, rate=1 / 100)


# ---- the bill --------------------------------------------------------------------------------------------------------


@every_kind
def test_what_is_left_on_the_way_is_billed_too(make: Make, duo: tuple[Toy, Toy]) -> None:
    """Streams that are left after a few tokens."""
    books, drafts = Books(duo[0]), Books(duo[1])
    with Audited(duo[0], make(duo[1]), kv_slots=2500) as engine:
        for prompt, _ in CROWD[:4]:
            for piece in engine.stream(prompt, max_tokens=60, ignore_eos=True):
                assert piece.token_ids
                break
        engine._call(lambda: None).result()
        bill = engine.cost
    assert (bill.forwards, bill.drafted, bill.drafting) == (books.calls, books.drafted, drafts.tokens)


# ---- shapes ----------------------------------------------------------------------------------------------------------


class Oracle(Source):
    """Knows the whole text; ``shape`` says what it makes of it."""

    def __init__(self, known: list[int], shape: Callable[[list[int]], Tree]) -> None:
        self.known, self.shape = known, shape
        self.asked: list[tuple[int, list[int]]] = []

    def propose(self, rows: Sequence[Row], nodes: int, depths: Sequence[int], floor: float) -> list[Tree]:
        self.asked.append((nodes, list(depths)))
        return [self.shape(self.known[len(row.output) :][:depth]) for row, depth in zip(rows, depths, strict=True)]


def certain(ids: list[int]) -> Tree:
    return Tree.chain(ids, [1.0] * len(ids))


def test_a_perfect_chain_gives_all_its_tokens_and_one_more() -> None:
    """The mean accepted length is ``draft_tokens`` + 1, whatever the length: chains have no limit."""
    toy = Toy()
    known = slow_generate(toy.rule, [1, 2], 401)
    for draft_tokens in (1, 4, 7, 64, 99, 399):
        decoder = Speculation([Oracle(known, certain)], draft_tokens, adaptive=False)
        with Audited(toy, decoder, kv_slots=2000) as engine:
            [out] = engine.generate([1, 2], max_tokens=401)
        assert out.token_ids == known
        assert out.cost.forwards == 1 + -(-400 // (draft_tokens + 1)), "one for the prompt"
        assert out.cost.accepted == out.cost.drafted == 401 - out.cost.forwards


def test_a_draft_goes_no_deeper_than_the_text() -> None:
    toy = Toy()
    known = slow_generate(toy.rule, [1, 2], 40)
    oracle = Oracle(known, certain)
    with Audited(toy, Speculation([oracle], 8, adaptive=False), kv_slots=2000) as engine:
        [out] = engine.generate([1, 2], max_tokens=21)
    assert out.token_ids == known[:21]
    assert oracle.asked == [(8, [19]), (8, [10]), (8, [1])]
    assert (out.cost.drafted, out.cost.discarded, out.cost.forwards) == (8 + 8 + 1, 0, 4)


def test_a_source_that_oversteps_is_cut() -> None:
    """Deeper than the text, more than the budget, more branches than the kernels take."""
    toy = Toy()
    known = slow_generate(toy.rule, [1, 2], 30)

    def wild(ids: list[int]) -> Tree:
        tree = certain([*ids, 1, 2, 3, 4])
        for wrong in range(100):
            tree.add(wrong, 0, 0.1)
        return tree

    class Wild(Oracle):
        def propose(self, rows: Sequence[Row], nodes: int, depths: Sequence[int], floor: float) -> list[Tree]:
            return [wild(self.known[len(row.output) :]) for row in rows]

    for draft_tokens in (3, 64, 300):
        with Audited(toy, Speculation([Wild(known, certain)], draft_tokens, adaptive=False), kv_slots=2000) as engine:
            [out] = engine.generate([1, 2], max_tokens=30)
        assert out.token_ids == known
        assert out.cost.accepted >= 20
    assert out.cost.drafted == 64


@pytest.mark.parametrize("draft_tokens", [100, 200])
def test_long_chains_and_short_trees_in_one(draft_tokens: int) -> None:
    """Sources may propose a chain too long for a tree; merged with another one's branch it is cut to what a tree may have."""
    toy = Toy()
    known = slow_generate(toy.rule, [1, 2], 200)
    sources = [Oracle(known, certain), Oracle(known, lambda ids: Tree.chain([(ids[0] + 1) % 101], [0.5]) if ids else Tree())]
    with Audited(toy, Speculation(sources, draft_tokens, adaptive=False), kv_slots=2000) as engine:
        [out] = engine.generate([1, 2], max_tokens=200)
    assert out.token_ids == known
    assert out.cost.forwards == 5, "one for the prompt, 64 in each of three, and what is left"


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("at", range(1, 12))
def test_what_breaks_behind_a_draft_breaks_where_plain_decoding_does(at: int, adaptive: bool, clock: Clock,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """No finite logit behind some token, be it the root, drafted and right, or the last of a chain."""
    toy = Toy()
    known, rule = slow_generate(toy.rule, [1, 2], 20), toy.rule
    clock.charge(monkeypatch, toy, lambda q: 1.0)
    toy.rule = lambda ids: rule(ids) + np.float32(np.nan if len(ids) == 2 + at and ids[:2] == [1, 2] else 0)
    decoder = Speculation([Oracle(known, certain)], 5, adaptive=adaptive)
    other = slow_generate(rule, [9], 20)
    with Audited(toy, decoder, kv_slots=2000) as engine:
        with pytest.raises(ft.GenerationError, match=rf"FloatingPointError: .* output token {at} is nan") as error:
            engine.generate([[1, 2], [9]], max_tokens=20)
        [[broken], [whole]] = error.value.results
        assert (broken.token_ids, broken.finish_reason) == (known[:at], "error")
        assert (whole.token_ids, whole.finish_reason) == (other, "length")
    idle(decoder)


@every_decoder
def test_a_backbone_writes_no_text(make: Make, checkpoint: Callable[..., Path]) -> None:
    backbone, decoder = ft.load(checkpoint("llama", headless=True)), make(ft.load(checkpoint("llama")))
    with Audited(backbone, decoder, kv_slots=64) as engine, pytest.raises(ft.GenerationError, match="without an LM head"):
        engine.generate([1, 2], max_tokens=3)
    idle(decoder)


@every_decoder
def test_a_decoder_serves_one_engine(make: Make) -> None:
    decoder = make(talker(7))
    with Audited(talker(), decoder, kv_slots=64):
        pass
    with pytest.raises(ValueError, match=f"{type(decoder).__name__} serves an engine already"):
        ft.Engine(talker(), decoder)


@pytest.mark.parametrize("make", [ft.Lookahead, ft.PromptLookup, lambda n: ft.Speculative(talker(), n)])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-3, ValueError), (2.5, TypeError), (True, TypeError), ("5", TypeError)]
)
def test_draft_tokens_is_a_number_of_tokens(make: Any, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=re.escape(f"draft_tokens={value!r}")):
        make(value)
