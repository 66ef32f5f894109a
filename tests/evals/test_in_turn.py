"""When a problem of a run is begun: rows never run empty while problems are left, and no more are begun than that takes."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import cast

import pytest

from forethought.backend.engine import Engine
from forethought.evals import evaluate
from forethought.evals.evaluate import in_turn
from forethought.schema import Problem

ROWS = 32


class Pretended:
    """Gives each of ``ROWS`` rows a token a step; a draw is how many it takes, and what to call then."""

    max_rows = ROWS

    def __init__(self) -> None:
        self.waiting = deque[tuple[int, Callable[[], None]]]()
        self.running = list[tuple[int, Callable[[], None]]]()
        self.used = list[int]()
        self.most = 0

    async def aunfinished(self) -> int:
        return len(self.waiting) + len(self.running)

    def step(self) -> None:
        self.most = max(self.most, len(self.waiting) + len(self.running))
        while self.waiting and len(self.running) < ROWS:
            self.running.append(self.waiting.popleft())
        self.used.append(len(self.running))
        for left, done in self.running:
            if left == 1:
                done()
        self.running = [(left - 1, done) for left, done in self.running if left > 1]


def simulate(lengths: dict[str, list[int]], width: int, after: int = 0) -> tuple[Pretended, int]:
    """A run over problems whose draws have these ``lengths``, asked for ``width`` at a time; each is judged for ``after`` steps.

    The engine, and the most problems that were under way.
    """
    engine, under_way, most = Pretended(), 0, 0

    async def solve(problem: Problem) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        own = lengths[problem.id]
        for first in range(0, len(own), width):
            some = [asyncio.Event() for _ in own[first : first + width]]
            engine.waiting.extend((n, done.set) for n, done in zip(own[first : first + width], some, strict=True))
            for done in some:
                await done.wait()
        for _ in range(after):
            await asyncio.sleep(0)
        under_way -= 1

    async def main() -> None:
        problems = [Problem(name, "?") for name in lengths]
        whole = asyncio.create_task(in_turn(problems, solve, cast("Engine", engine), width))
        while not whole.done():
            assert len(engine.used) < 20_000, "it hangs"
            engine.step()
            for _ in range(4):  # everybody sees what a step has changed before the next one
                await asyncio.sleep(0)
        await whole

    asyncio.run(main())
    assert sum(engine.used) == sum(map(sum, lengths.values())), "every draw once"
    return engine, most


def drawn(problems: int, draws: int, stragglers: float) -> dict[str, list[int]]:
    rng = random.Random(0)
    return {f"p{i}": [200 if rng.random() < stragglers else rng.randint(10, 30) for _ in range(draws)] for i in range(problems)}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "PAUSE", 0)


@pytest.mark.parametrize("stragglers", [0.0, 0.02, 0.1])
@pytest.mark.parametrize(("draws", "width"), [(8, 8), (64, 64), (1, 1), (8, 2)])
def test_rows_are_full_until_nothing_is_left(draws: int, width: int, stragglers: float) -> None:
    engine, _ = simulate(drawn(800 // draws, draws, stragglers), width)
    steps = len(engine.used) - next(i for i, used in enumerate(reversed(engine.used)) if used == ROWS)
    assert sum(engine.used[:steps]) > 0.98 * ROWS * steps
    assert sum(engine.used[steps:]) < 1.5 * ROWS * 200, "the tail is what was under way"


@pytest.mark.parametrize("width", [1, 8, 64])
def test_no_more_are_asked_for_than_that_takes(width: int) -> None:
    engine, _ = simulate(drawn(640 // width, width, 0.02), width)
    assert engine.most <= 1.5 * ROWS + width


def test_problems_that_wait_for_something_else_are_not_without_end() -> None:
    _, most = simulate(drawn(400, 4, 0.0), 4, after=10_000)
    assert most == evaluate.MOST * ROWS // 4


def test_a_failure_ends_it() -> None:
    async def fail(problem: Problem) -> None:
        raise ZeroDivisionError(problem.id)

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(in_turn([Problem("p", "?")] * 3, fail, cast("Engine", Pretended()), 2))
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)
