"""What runs on an engine's own thread must not wait for it: every blocking door says so at once, and the engine goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from lab import Audited, Toy, slow_generate

import forethought as ft
from forethought.backend.request import Row


async def _all(pieces: Any) -> list[Any]:
    return [piece async for piece in pieces]


DOORS: dict[str, Callable[[ft.Engine], object]] = {
    "generate": lambda e: e.generate([1], max_tokens=3),
    "agenerate": lambda e: asyncio.run(e.agenerate([1], max_tokens=3)),
    "stream": lambda e: list(e.stream([1], max_tokens=3)),
    "astream": lambda e: asyncio.run(_all(e.astream([1], max_tokens=3))),
    "score": lambda e: e.score([1], [[3]]),
    "ascore": lambda e: asyncio.run(e.ascore([1], [[3]])),
    "clear_cache": lambda e: e.clear_cache(),
    "close": lambda e: e.close(),
    "unfinished": lambda e: asyncio.run(e.aunfinished()),
}


class Asking(ft.Autoregressive):
    """Calls ``door`` once, in ``hook``."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook, self.door, self.said = hook, lambda: None, list[str]()

    def _ask(self, hook: str) -> None:
        if hook == self.hook and not self.said:
            try:
                self.said.append(f"done: {self.door()}")  # type: ignore[func-returns-value]
            except RuntimeError as e:
                self.said.append(str(e))

    def admit(self, row: Row) -> None:
        self._ask("admit")

    def draft(self, rows: Sequence[Row], budget: int) -> None:
        self._ask("draft")

    def observe(self, row: Row, ids: Sequence[int]) -> None:
        self._ask("observe")

    def release(self, row: Row, outcome: Any) -> None:
        self._ask("release")


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.parametrize("other", [False, True], ids=["itself", "another engine of the device"])
@pytest.mark.parametrize("hook", ["admit", "draft", "observe", "release"])
@pytest.mark.parametrize("door", DOORS)
def test_a_door_in_a_callback_says_so(door: str, hook: str, other: bool) -> None:
    toy, decoder = Toy(vocabulary=31), Asking(hook)
    with Audited(toy, decoder, kv_slots=200) as engine, Audited(toy, kv_slots=200) as neighbour:
        decoder.door = lambda: DOORS[door](neighbour if other else engine)  # type: ignore[assignment, return-value]
        assert engine.generate([1, 2], max_tokens=5)[0].token_ids == slow_generate(toy.rule, [1, 2], 5)
        assert decoder.said
        assert decoder.said[0].startswith("called on the thread that serves the device"), decoder.said
        for one in (engine, neighbour):
            assert one.generate([1, 2], max_tokens=5)[0].token_ids == slow_generate(toy.rule, [1, 2], 5)


def test_a_strategy_in_a_callback_says_so() -> None:
    toy, decoder = Toy(vocabulary=31), Asking("draft")
    with Audited(toy, decoder, kv_slots=200) as engine:
        strategy = ft.BestOfN(engine, 2, ask=lambda problem: [1], read=lambda text: text, max_tokens=3)
        decoder.door = lambda: strategy.solve(ft.Problem("p", "?"))  # type: ignore[assignment, return-value]
        engine.generate([1, 2], max_tokens=5)
        assert decoder.said[0].startswith("called on the thread")


ASSIGNED = {"model": None, "decoder": ft.Autoregressive(), "pool": None, "memory": (), "max_rows": 5, "cost": None, "usage": None}


@pytest.mark.parametrize("name", ASSIGNED)
def test_what_would_change_nothing_cannot_be_assigned(name: str) -> None:
    with Audited(Toy(vocabulary=31), kv_slots=64) as engine:
        before = getattr(engine, name)
        with pytest.raises(AttributeError, match=name):
            setattr(engine, name, ASSIGNED[name])
        assert name == "usage" or getattr(engine, name) == before


@pytest.mark.parametrize("name", ["draft_tokens", "adaptive", "sources", "index", "pace"])
def test_a_drafting_decoder_is_what_it_was_built_as(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        setattr(ft.Lookahead(), name, 1)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": "nano"}, TypeError, "model='nano'"),
    ({"model": None}, TypeError, "model=None"),
    ({"model": Toy}, TypeError, "model=Toy: a class"),
    ({"decoder": ft.Lookahead}, TypeError, "decoder=Lookahead: a class"),
    ({"decoder": None}, TypeError, "decoder=None"),
    ({"decoder": "lookahead"}, TypeError, "decoder='lookahead'"),
    ({"kv_slots": 0}, ValueError, "kv_slots=0"),
    ({"kv_slots": 2.5}, TypeError, "kv_slots=2.5"),
    ({"kv_slots": True}, TypeError, "kv_slots=True"),
    ({"kv_slots": 10**15}, ValueError, "kv_slots=1000000000000000: .* this machine has"),
    ({"max_rows": 0}, ValueError, "max_rows=0"),
    ({"max_rows": 1.5}, TypeError, "max_rows=1.5"),
    ({"max_rows": "8"}, TypeError, "max_rows='8'"),
    ({"prefill_tokens": 0}, ValueError, "prefill_tokens=0"),
    ({"prefill_tokens": float("inf")}, TypeError, "prefill_tokens=inf"),
    ({"gpu_memory_utilization": 1.5}, ValueError, "gpu_memory_utilization=1.5"),
    ({"gpu_memory_utilization": "0.9"}, TypeError, "gpu_memory_utilization='0.9'"),
    ({"gpu_memory_utilization": float("nan")}, ValueError, "gpu_memory_utilization=nan"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=[str(case[0]) for case in WRONG])
def test_an_engine_that_cannot_be_is_refused_and_its_decoder_can_still_serve(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    toy = Toy(vocabulary=31)
    given: dict[str, Any] = {"model": toy, "decoder": ft.Lookahead()} | options
    with pytest.raises(error, match=message):
        ft.Engine(**given)
    if isinstance(given["decoder"], ft.Decoder):
        with ft.Engine(toy, given["decoder"], kv_slots=64) as engine:
            assert engine.generate([1], max_tokens=3)[0].token_ids == slow_generate(toy.rule, [1], 3)


HUGE: list[tuple[Callable[[int], object], str]] = [
    (lambda n: ft.PromptLookup(n), "draft_tokens"),
    (lambda n: ft.PromptLookup(max_ngram=n), "max_ngram"),
    (lambda n: ft.Lookahead(n), "draft_tokens"),
    (lambda n: ft.Lookahead(capacity=n), "capacity"),
    (lambda n: ft.Speculative(ft.Lookahead(), n), "draft_tokens"),
    (lambda n: ft.Speculative(Toy(), tree=[n]), "tree"),
    (lambda n: ft.Speculative(Toy(), tree=[2, n]), "tree"),
]


@pytest.mark.parametrize(("build", "name"), HUGE)
@pytest.mark.parametrize("size", [10**9 * 3, 10**30, 0.5, True, "4"])
def test_absurd_sizes_are_refused_when_they_are_said(build: Callable[[Any], object], name: str, size: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        build(size)
