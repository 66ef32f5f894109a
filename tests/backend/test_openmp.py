"""Workers are given back by whoever waits, so that the thread that computes has the cores to itself.

In processes of their own: threads are counted, and those that other tests leave behind would count too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GNU = sys.platform == "linux" and torch.backends.openmp.is_available() and "libgomp" in Path("/proc/self/maps").read_text()
pytestmark = pytest.mark.skipif(not GNU, reason="GNU OpenMP on Linux only")

PREAMBLE = """
import json, os, time
import torch
import forethought as ft
from forethought.backend.loop import GRACE
from forethought.backend.openmp import release_workers

torch.set_num_threads(2)
counts = []

def compute():
    torch.ones(1_000_000).exp()

def count():
    \"\"\"Threads, once those that end have ended: the kernel takes a moment to forget one.\"\"\"
    last, end = -1, time.monotonic() + 5
    while (now := len(os.listdir("/proc/self/task"))) != last and time.monotonic() < end:
        last = now
        time.sleep(0.02)
    counts.append(now)
"""


def counted(program: str) -> list[int]:
    """``counts`` as ``program`` leaves it, less the first one."""
    done = subprocess.run(
        [sys.executable, "-c", f"{PREAMBLE}\n{program}\nprint(json.dumps(counts))"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *others = json.loads(done.stdout)
    return [other - first for other in others]


def test_workers_end_when_released_and_come_back() -> None:
    program = """
count()
for _ in range(2):
    compute()
    count()
    release_workers()
    count()
release_workers()  # nothing to give back
count()
"""
    assert counted(program) == [1, 0, 1, 0, 0]


def test_who_waits_for_an_engine_has_no_workers_and_neither_has_an_idle_engine() -> None:
    program = """
engine = ft.Engine(ft.load("nano", device="cpu"), ft.Autoregressive(), kv_slots=4096)
prompt = list(range(1, 400))
engine.generate(prompt, max_tokens=1)
release_workers()
time.sleep(4 * GRACE)
count()
compute()
count()
pieces = engine.stream(prompt, max_tokens=1000, ignore_eos=True)
next(pieces)
count()
pieces.close()
engine.clear_cache()
time.sleep(4 * GRACE)
count()
"""
    # The caller's own; the engine's instead; nobody's.
    assert counted(program) == [1, 1, 0]
