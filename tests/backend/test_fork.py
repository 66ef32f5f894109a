"""What a forked child has of its parent: no threads. Old engines say so at once, new ones work, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import Audited, Toy, slow_generate

import forethought as ft
from forethought import forks
from forethought.backend.loop import Loop

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="no fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


def in_child(work: Callable[[], object], seconds: float = 60) -> str:
    """What ``work`` gives in a forked child, or its error; a child that hangs is a failure."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = repr(work())
        except BaseException as e:
            said = f"{type(e).__name__}: {e}"
        os.write(write, said.encode()[:4000])
        os._exit(0)
    os.close(write)
    end = time.monotonic() + seconds
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(read)
            pytest.fail("the child hangs")
        time.sleep(0.005)
    with open(read, "rb") as said_by:
        return said_by.read().decode()


async def _all(pieces: Any) -> list[Any]:
    return [piece async for piece in pieces]


DOORS: dict[str, Callable[[ft.Engine], object]] = {
    "generate": lambda e: e.generate([1, 2], max_tokens=3),
    "agenerate": lambda e: asyncio.run(e.agenerate([1, 2], max_tokens=3)),
    "stream": lambda e: list(e.stream([1, 2], max_tokens=3)),
    "astream": lambda e: asyncio.run(_all(e.astream([1, 2], max_tokens=3))),
    "score": lambda e: e.score([1, 2], [[3]]),
    "ascore": lambda e: asyncio.run(e.ascore([1, 2], labels=[3, 4])),
    "clear_cache": lambda e: e.clear_cache(),
    "unfinished": lambda e: asyncio.run(e.aunfinished()),
}


@pytest.mark.parametrize("door", DOORS)
def test_an_engine_of_the_parent_says_so_at_every_door(door: str) -> None:
    toy = Toy(vocabulary=31)
    with Audited(toy, kv_slots=200) as engine:
        engine.generate([1, 2], max_tokens=3)
        said = in_child(lambda: DOORS[door](engine))
        assert said.startswith(f"RuntimeError: made in process {os.getpid()}"), said
        DOORS[door](engine)


def test_bills_can_be_read_and_ends_are_quiet_in_a_child() -> None:
    with Audited(Toy(vocabulary=31), kv_slots=200) as engine:
        engine.generate([1, 2], max_tokens=3)

        def leave() -> Any:
            with engine:
                forwards = engine.cost.forwards, engine.usage.steps
            engine.close()
            return forwards

        assert in_child(leave) == "(3, 3)"
        assert engine.generate([1, 2], max_tokens=3)


def test_a_new_engine_works_in_a_child_while_the_parent_decodes() -> None:
    toy = Toy(vocabulary=31)
    with Audited(toy, kv_slots=5000) as engine:
        busy = threading.Thread(target=lambda: engine.generate([3], n=2, max_tokens=800, temperature=1.0))
        busy.start()

        def anew() -> Any:
            with ft.Engine(toy, ft.Autoregressive(), kv_slots=200) as own:
                return own.generate([1, 2], max_tokens=5)[0].token_ids, len(list(own.stream([1, 2], max_tokens=5)))

        right = slow_generate(toy.rule, [1, 2], 5)
        for _ in range(2):
            assert in_child(anew).startswith(f"({right}, ")
        busy.join()


def test_a_stream_begun_before_the_fork_is_the_parents() -> None:
    toy = Toy(vocabulary=31)
    with Audited(toy, kv_slots=2000) as engine:
        stream = engine.stream([1], max_tokens=300)
        next(stream)
        assert in_child(lambda: list(stream)).startswith("RuntimeError: made in process")
        assert len([i for piece in stream for i in piece.token_ids]) > 250


def test_a_fork_waits_for_the_step_under_way_but_not_for_ever_on_its_own_thread() -> None:
    toy, said = Toy(vocabulary=31), list[str]()
    toy.before = lambda batch: said.append(in_child(lambda: "here")) if toy.calls == 2 else time.sleep(0.05)
    with Audited(toy, kv_slots=200) as engine:
        engine.generate([1], max_tokens=4)
        assert said == ["'here'"]
        stepping = list[bool]()
        toy.before = lambda batch: (stepping.append(True), time.sleep(0.02), stepping.clear())[0]  # type: ignore[func-returns-value]
        busy = threading.Thread(target=lambda: engine.generate([1], max_tokens=40))
        busy.start()
        assert [in_child(lambda: list(stepping)) for _ in range(8)] == ["[]"] * 8
        busy.join()


def _in_worker(seed: int) -> list[int]:
    with ft.Engine(_TOY, ft.Autoregressive(), kv_slots=200) as own:
        found: list[int] = own.generate([1, 2], max_tokens=5, temperature=1.0, seed=seed)[0].token_ids
        return found


_TOY = Toy(vocabulary=31)


def test_a_pool_of_forked_workers() -> None:
    with Audited(_TOY, kv_slots=200) as engine:
        engine.generate([1, 2], max_tokens=3)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map_async(_in_worker, range(6)).get(60)
        assert found == [engine.generate([1, 2], max_tokens=5, temperature=1.0, seed=seed)[0].token_ids for seed in range(6)]


def test_locks_that_another_thread_holds_are_new_in_a_child() -> None:
    class Held:
        def __init__(self) -> None:
            self.renewed = 0
            self.lock = threading.Lock()
            forks.in_children(self.renew)

        def renew(self) -> None:
            self.renewed += 1
            self.lock = threading.Lock()

    def one() -> None:
        held = Held()
        with held.lock, Loop._lock:
            said = in_child(lambda: (held.lock.acquire(timeout=1), held.renewed, Loop._lock.acquire(timeout=1)))
        assert said == "(True, 1, True)"
        assert held.renewed == 0

    before = len(forks._renewals)
    one()
    kept = Held()
    assert len(forks._renewals) == before + 1, "it goes with its object, when the next one comes"
    del kept


@pytest.mark.slow
def test_torch_works_in_a_child_after_parallel_work_in_the_parent() -> None:
    """GNU OpenMP has a child wait for workers that only its parent has."""
    program = """
import os, torch, forethought as ft
torch.set_num_threads(2)
model = ft.load("nano")
def text():
    with ft.Engine(model, ft.Autoregressive(), kv_slots=500) as engine:
        return engine.generate("1 + 1 = ", max_tokens=8, temperature=0)[0].text
big = torch.ones(600, 600)
(big @ big).sum()
with ft.Engine(model, ft.Autoregressive(), kv_slots=500) as engine:
    first = engine.generate("1 + 1 = ", max_tokens=8, temperature=0)[0].text
    child = os.fork()
    if not child:
        (big @ big).sum()
        print(text() == first, flush=True)
    else:
        os.waitpid(child, 0)
        print(engine.generate("1 + 1 = ", max_tokens=8, temperature=0)[0].text == first)
"""  # the child ends as any program does, with all that runs at an exit
    done = subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", program], capture_output=True, text=True,
                          timeout=120, check=False, env=os.environ | {"OMP_NUM_THREADS": "2"})  # fmt: skip
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["True", "True"], "")


@pytest.mark.slow
def test_an_engine_closed_at_the_interpreters_end_ends() -> None:
    program = f"""
import sys, atexit
sys.path.insert(0, {str(Path(__file__).parents[1] / "lib")!r})
def late():
    engine.close()
    try:
        engine.generate([1])
    except RuntimeError as e:
        print(e)
    try:
        other.generate([1])
    except RuntimeError as e:
        print(e)
atexit.register(late)
from lab import Toy
import forethought as ft
engine, other = (ft.Engine(Toy(vocabulary=31), ft.Autoregressive(), kv_slots=64) for _ in range(2))
engine.generate([1], max_tokens=3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "closed" in done.stdout
    assert "interpreter is ending" in done.stdout


def test_the_parents_loop_is_not_the_childs() -> None:
    mine = Loop.of(torch.device("cpu"))
    assert mine.alive
    assert in_child(lambda: (mine.alive, mine.here, Loop.of(torch.device("cpu")) is mine)) == "(False, False, False)"


def test_a_folder_outlives_a_childs_end_and_not_its_owners() -> None:
    """Weights that a device map put on disk are the parent's, whatever a child does at its end."""
    code = """
import os, sys
from pathlib import Path
from forethought.forks import OwnFolder
kept, dropped = OwnFolder(), OwnFolder()
child = os.fork()
if not child:
    del dropped
    sys.exit(0)  # as a program ends, with all it does then
os.waitpid(child, 0)
print(kept.name, Path(kept.name).is_dir(), Path(dropped.name).is_dir())
name = dropped.name
del dropped
print(Path(name).exists())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    name, *there = run.stdout.split()
    assert there == ["True", "True", "False"]
    assert not Path(name).exists()
