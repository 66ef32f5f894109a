"""Everything at once, from threads and event loops, for a while: what ends by itself is right, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lab import TEXT_VOCABULARY, Audited, Toy, byte_text, slow_generate

import forethought as ft

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.8, "seed": 4, "top_p": 0.9, "repetition_penalty": 1.2},
]


@dataclass
class Case:
    """A request and its right answers."""

    prompt: Any
    options: dict[str, Any]
    right: list[list[int]]

    def check(self, outs: list[ft.Completion]) -> None:
        assert [out.token_ids for out in outs] == self.right[: len(outs)]
        assert all(out.finish_reason == "length" for out in outs)

    def check_start(self, tokens: list[int]) -> None:
        assert tokens == self.right[0][: len(tokens)]


def cases(toy: Toy) -> list[Case]:
    found, text = [], byte_text()
    stem = "A few worked examples, the same for everybody. "
    prompts: list[Any] = [
        "hi",
        stem + "One?",
        stem + "Two and more?",
        [1, 2, 3],
        [7] * 30,
        [{"role": "user", "content": "hello"}],
    ]
    for i, prompt in enumerate(prompts):
        for j, settings in enumerate(SETTINGS):
            tokens = 3 + 5 * (i + j)
            ids = text.encode(prompt)
            right = [slow_generate(toy.rule, ids, tokens, sample=k, **settings) for k in range(3)]
            found.append(Case(prompt, {"max_tokens": tokens, **settings}, right))
    return found


class Crowd:
    """Threads and event loops that ask, watch, leave and score at random, for so long and for so many calls."""

    def __init__(self, engine: ft.Engine, toy: Toy, todo: list[Case], seconds: float, calls: int) -> None:
        self.engine, self.toy, self.todo = engine, toy, todo
        self.end, self.calls = time.monotonic() + seconds, calls
        self.errors: list[BaseException] = []
        self.finished = self.left = 0

    def run(self, threads: int, loops: int) -> None:
        workers = [threading.Thread(target=self._guard, args=(self._thread, i)) for i in range(threads)]
        workers += [threading.Thread(target=self._guard, args=(self._loop, 100 + i)) for i in range(loops)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(0.0, self.end - time.monotonic()) + 100)
            assert not worker.is_alive(), "somebody waits for ever"

    def _guard(self, work: Any, seed: int) -> None:
        try:
            work(random.Random(seed))
        except BaseException as e:
            self.errors.append(e)

    def _more(self) -> bool:
        return not self.errors and (time.monotonic() < self.end or self.finished < self.calls)

    def _thread(self, rng: random.Random) -> None:
        while self._more():
            case, n = rng.choice(self.todo), rng.randint(1, 3)
            kind = rng.randrange(7)
            if kind <= 2:
                case.check(self.engine.generate(case.prompt, n=n, **case.options))
            elif kind == 3:
                some = [case, *(other for other in self.todo if other.options == case.options)]
                for other, outs in zip(some, self.engine.generate([c.prompt for c in some], n=n, **case.options), strict=True):
                    other.check(outs)
            elif kind == 4:
                tokens, leave = list[int](), rng.randint(1, 30)
                for piece in self.engine.stream(case.prompt, **case.options):
                    tokens += piece.token_ids
                    if len(tokens) >= leave:
                        break
                case.check_start(tokens)
                self.left += 1
            elif kind == 5:
                self._score(self.engine.score(case.prompt, [case.right[0][:3]]), case)
            else:
                with pytest.raises(ValueError, match="n=0"):
                    self.engine.generate(case.prompt, n=0)
                if rng.random() < 0.2:
                    self.engine.clear_cache()
            self.finished += 1

    def _loop(self, rng: random.Random) -> None:
        async def main() -> None:
            await asyncio.gather(*(self._task(random.Random(rng.random())) for _ in range(4)))

        asyncio.run(main())

    async def _task(self, rng: random.Random) -> None:
        while self._more():
            case, n = rng.choice(self.todo), rng.randint(1, 3)
            kind = rng.randrange(5)
            if kind <= 1:
                case.check(await self.engine.agenerate(case.prompt, n=n, **case.options))
            elif kind == 2:
                task = asyncio.ensure_future(self.engine.agenerate(case.prompt, n=n, **case.options))
                await asyncio.sleep(rng.random() * 0.02)
                task.cancel()
                [result] = await asyncio.gather(task, return_exceptions=True)
                if not isinstance(result, asyncio.CancelledError):
                    case.check(result)
                self.left += 1
            elif kind == 3:
                tokens, leave = list[int](), rng.randint(1, 60)
                async for piece in self.engine.astream(case.prompt, **case.options):
                    tokens += piece.token_ids
                    if len(tokens) >= leave:
                        break
                case.check_start(tokens)
            else:
                self._score(await self.engine.ascore(case.prompt, [case.right[0][:3]]), case)
            self.finished += 1

    def _score(self, scores: list[ft.Score], case: Case) -> None:
        ids = self.engine.encode(case.prompt)
        logits = torch.from_numpy(self.toy.rule([*ids, *case.right[0][:1]]))
        assert scores[0].logprobs[1] == pytest.approx(logits.log_softmax(0)[case.right[0][1]].item(), abs=1e-4)


@pytest.mark.parametrize(("seconds", "calls"), [(0, 300), pytest.param(60, 300, marks=pytest.mark.slow)])
def test_everything_at_once(seconds: int, calls: int) -> None:
    toy = Toy(vocabulary=TEXT_VOCABULARY, text=byte_text())
    todo = cases(toy)
    toy.tokens = 0
    with Audited(toy, kv_slots=220, prefill_tokens=48, max_rows=24) as engine:
        crowd = Crowd(engine, toy, todo, seconds, calls)
        crowd.run(threads=8, loops=2)
        for error in crowd.errors:
            raise error
        assert crowd.finished >= calls
        assert crowd.left > 0
        assert engine.cost.discarded > 0, "the pool was not too small"
