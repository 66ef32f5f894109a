"""Speculation changes no token: every drafting decoder against plain decoding, in every setting, company and shortage.

What only one of the decoders can do is tested beside it; here is what all of them promise.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drafting import (
    ADAPTIVE, DECODERS, FIXED, LETTERS, Asked, Clock, Make, agree, crowd, flips, idle, perturbed, plain, talker, texts, together,
)  # fmt: skip
from lab import Audited, Toy, slow_generate, tiny_llama

import forethought as ft
from forethought.backend.batch import TokenBatch
from forethought.backend.model import Model
from forethought.decoding import speculation
from forethought.decoding.source import Source
from forethought.decoding.speculation import Speculation
from forethought.decoding.tree import Tree

every_decoder = pytest.mark.parametrize("make", DECODERS.values(), ids=DECODERS.keys())
CROWD = crowd()


@pytest.fixture(scope="module")
def said() -> list[list[ft.Completion]]:
    """What plain decoding says to the crowd."""
    outs = plain(talker(), CROWD)
    found = [c for out in outs for c in out]
    reasons = {c.stop_reason for c in found}
    assert {98, "STOP"} <= reasons and len(reasons) > 4, "stops of every kind are met"
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


# ---- the same text ---------------------------------------------------------------------------------------------------


@every_decoder
def test_a_crowd_hears_what_plain_decoding_says(make: Make, duo: tuple[Toy, Toy], said: list[list[ft.Completion]]) -> None:
    """Sixteen requests of sixteen kinds in one engine."""
    target, decoder = duo[0], make(duo[1])
    with Audited(target, decoder, kv_slots=6000, prefill_tokens=40) as engine:
        agree(together(engine, CROWD), said)
        assert engine.cost.accepted > 20
        assert engine.cost.drafted > 1.3 * engine.cost.accepted, "drafts are sometimes wrong"
    idle(decoder)


@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED.keys())
def test_one_at_a_time_hears_the_same(make: Make, duo: tuple[Toy, Toy], said: list[list[ft.Completion]]) -> None:
    decoder = make(duo[1])
    with Audited(duo[0], decoder, kv_slots=6000) as engine:
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


def compare(target: Model, draft: Model, decoders: dict[str, Make], asked: Sequence[Asked], gap: float, **options: Any) -> None:
    """Every decoder against plain decoding, all requests at once and one by one; ties are counted."""
    expected, tokens, flipped, accepted = plain(target, asked), 0, 0, 0
    for make in decoders.values():
        decoder = make(draft)
        with Audited(target, decoder, **{"kv_slots": 6000, "prefill_tokens": 64} | options) as engine:
            runs = [together(engine, asked)]
            if not options:
                engine.clear_cache()
                runs.append([engine.generate(prompt, **own) for prompt, own in asked])
            accepted += engine.cost.accepted
        idle(decoder)
        flipped += sum(flips(target, asked, outs, expected, gap) for outs in runs)
        tokens += sum(c.cost.kept for outs in runs for out in outs for c in out)
    assert accepted > 0.02 * tokens, "drafts were of use"
    assert flipped <= tokens * 10 / 1e6, f"{flipped} texts differ in {tokens} tokens"


def numbers(vocabulary: int, max_tokens: int = 40) -> list[Asked]:
    return crowd(range(1, vocabulary), NUMBERS * 2, max_tokens)


def test_a_real_model_in_float32(llamas: tuple[Model, Model]) -> None:
    compare(*llamas, FIXED, numbers(101), TIE)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"kv_slots": 150}], ids=["room", "no room"])
def test_a_real_model_at_its_own_pace(llamas: tuple[Model, Model], options: dict[str, Any]) -> None:
    """The machine's clock decides what is drafted, never what is said."""
    compare(*llamas, ADAPTIVE, numbers(101, max_tokens=80), TIE, **options)


def test_a_real_model_without_room(llamas: tuple[Model, Model]) -> None:
    compare(*llamas, FIXED, numbers(101), TIE, kv_slots=130, prefill_tokens=16)


@pytest.mark.parametrize("kind", [kind if kind in SOON else pytest.param(kind, marks=pytest.mark.slow) for kind in ZOO])
def test_every_architecture(kind: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Windows, soft caps, sinks, learnt positions, biases: a tree of drafts is masked as a text would be."""
    folder = checkpoint(kind)
    decoders = {name: FIXED[name] for name in ("several", "tree", "lookahead")} if kind in SOON else FIXED
    asked = numbers(97, max_tokens=30)[: 8 if kind in SOON else None]
    compare(ft.load(folder), perturbed(folder, tmp_path / "draft", 0.02), decoders, asked, TIE)
