"""One thread a device: nobody's work is forgotten, nobody's is starved, and who is idle costs nothing."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from pathlib import Path

import pytest
import torch
from lab import Audited, Toy, slow_generate

import forethought as ft
from forethought.backend.loop import Loop

CPU = torch.device("cpu")


class Worker:
    """Does what is posted to it, one piece a step."""

    def __init__(self, loop: Loop, name: str = "", log: list[str] | None = None) -> None:
        self.loop, self.name, self.log = loop, name, log
        self.inbox: deque[int] = deque()
        self.done: list[int] = []
        self.steps = 0

    def post(self, item: int) -> None:
        self.inbox.append(item)
        self.loop.wake(self)

    def step(self) -> bool:
        self.steps += 1
        assert self.loop.here
        if self.inbox:
            self.done.append(self.inbox.popleft())
            if self.log is not None:
                self.log.append(self.name)
        return bool(self.inbox)


def until(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "work was forgotten"
        time.sleep(0.001)


def test_a_device_has_one_loop_whatever_it_is_called() -> None:
    assert Loop.of(CPU) is Loop.of(torch.device("cpu:0")) is Loop.of(torch.device("cpu", 0))
    assert not Loop.of(CPU).here
    here: list[bool] = []
    worker = Worker(Loop.of(CPU))
    worker.step = lambda: here.append(Loop.of(CPU).here) or False  # type: ignore[func-returns-value, method-assign]
    worker.loop.wake(worker)
    until(lambda: here)
    assert here[0]


def test_loops_are_made_once_however_many_ask() -> None:
    found: list[Loop] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        found.append(Loop.of(torch.device("meta")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


def test_no_wake_is_lost() -> None:
    """Work posted at the very moment that a worker goes idle."""
    worker = Worker(Loop("test"))
    threads = [threading.Thread(target=lambda: [worker.post(i) for i in range(3000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: len(worker.done) == 12_000)
    for i in range(300):  # one at a time, each into an idle loop
        worker.post(i)
        until(lambda i=i: len(worker.done) == 12_001 + i)


def test_work_that_comes_between_the_last_look_and_going_idle_is_done() -> None:
    class Late(Worker):
        def step(self) -> bool:
            more = super().step()
            if self.steps == 1:
                self.post(2)  # it is still on the list, so waking it changes nothing
            return more

    worker = Late(Loop("test"))
    worker.post(1)
    until(lambda: worker.done == [1, 2])


def test_workers_take_turns() -> None:
    loop, log = Loop("test"), list[str]()
    one, two = Worker(loop, "a", log), Worker(loop, "b", log)
    gate = threading.Event()
    block = Worker(loop)
    block.step = lambda: bool(gate.wait(10)) and False  # type: ignore[method-assign]
    loop.wake(block)
    for i in range(50):
        one.inbox.append(i)
        two.inbox.append(i)
    loop.wake(one)
    loop.wake(two)
    gate.set()
    until(lambda: len(log) == 100)
    assert all(log[i] != log[i + 1] for i in range(0, 98, 2)), "nobody goes twice while another waits"


def test_an_idle_loop_does_nothing() -> None:
    worker = Worker(Loop("test"))
    worker.post(1)
    until(lambda: worker.done)
    time.sleep(0.02)
    steps = worker.steps
    time.sleep(0.1)
    assert worker.steps == steps


def test_an_idle_engine_that_nobody_holds_goes_away() -> None:
    engine = ft.Engine(Toy(vocabulary=31), ft.Autoregressive(), kv_slots=64)
    engine.generate([1, 2], max_tokens=5)
    gone = weakref.ref(engine)
    del engine
    until(lambda: gc.collect() is not None and gone() is None)


def test_engines_of_one_device_share_its_thread() -> None:
    threads: set[int] = set()
    toys = [Toy(vocabulary=31) for _ in range(3)]
    for toy in toys:
        toy.before = lambda batch: threads.add(threading.get_ident())
    with Audited(toys[0], kv_slots=64) as a, Audited(toys[1], kv_slots=64) as b, Audited(toys[2], kv_slots=64) as c:
        for engine in (a, b, c):
            assert engine.generate([1, 2], max_tokens=5)[0].token_ids == slow_generate(toys[0].rule, [1, 2], 5)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.slow
def test_a_program_may_end_with_requests_under_way() -> None:
    """The interpreter shuts down in the middle of a step, without a crash and without waiting for the end."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "lib")!r})
from lab import Toy
import forethought as ft
engine = ft.Engine(Toy(vocabulary=31), ft.Autoregressive(), kv_slots=100000)
streams = [engine.stream([i], max_tokens=4000) for i in range(8)]
print([next(stream).token_ids for stream in streams])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
