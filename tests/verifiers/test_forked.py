"""Verifiers in a forked child: their threads, places and worker processes are the parent's, and are made anew."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable

import pytest

import forethought as ft
from forethought.verifiers import asserts
from forethought.verifiers.exact import Form
from forethought.verifiers.process import Gate
from forethought.verifiers.sandbox import Sandbox
from forethought.verifiers.symbolic import installed

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

ADDS = ft.Problem("p", "?", meta={"tests": {"hidden": [[[1], 2], [[2], 3]]}, "entry_point": "f"})
RIGHT = "```python\ndef f(x):\n    return x + 1\n```"
PAIR = (Form("(x+1)^2", False), Form("x^2+2x+1", False))
SLOW = "```python\nimport time\ndef f(x):\n    time.sleep(0.5)\n    return x + 1\n```"


def in_child(work: Callable[[], object]) -> str:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, repr(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    for _ in range(3000):
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            with open(read, "rb") as said:
                return said.read().decode()
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


def statuses(judge: ft.Verifier, problem: ft.Problem, *texts: str) -> list[str]:
    return [verdict.status for verdict in asyncio.run(judge.ajudge(problem, texts))]


def test_programs_run_in_a_child_while_the_parents_run() -> None:
    code, said = ft.Code(sandbox=Sandbox("none", workers=1)), list[str]()
    assert statuses(code, ADDS, RIGHT) == ["correct"]
    parent = threading.Thread(target=lambda: said.extend(statuses(code, ADDS, SLOW)))
    parent.start()
    time.sleep(0.2)  # the only place is taken, by a thread that the child has not
    assert in_child(lambda: statuses(code, ADDS, RIGHT, "none")) == "['correct', 'unknown']"
    parent.join()
    assert said == ["correct"]
    code.close()


def test_places_and_locks_are_free_in_a_child() -> None:
    gate = Gate(1)

    def enter() -> bool:
        with gate.enter(alone=True), asserts._PARSING:
            return True

    with gate.enter(alone=False), asserts._PARSING:
        assert in_child(enter) == "True"
    assert enter()


@pytest.mark.skipif(not installed(), reason="math-verify is not installed")
def test_a_child_never_reads_the_answers_of_its_parents_worker() -> None:
    maths = ft.Maths(symbolic=True)
    assert maths.symbolic is not None
    assert maths.symbolic.compare(PAIR).relation == "same"
    worker = maths.symbolic._process
    assert worker is not None

    def ask() -> tuple[str, bool]:
        assert maths.symbolic is not None
        alone = maths.symbolic._process is None
        found = maths.symbolic.compare(PAIR).relation
        maths.close()
        return found, alone

    with maths.symbolic._lock:  # as while it is asked something
        assert in_child(ask) == "('same', True)"
    assert worker.poll() is None, "the parent's lives on"
    assert maths.symbolic.compare(PAIR).relation == "same"
    assert maths.symbolic._process is worker
    maths.close()
