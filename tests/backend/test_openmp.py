"""Workers are given back by whoever waits, so that the thread that computes has the cores to itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import forethought as ft
from forethought.backend.loop import GRACE
from forethought.backend.openmp import release_workers

TASKS = Path("/proc/self/task")
pytestmark = pytest.mark.skipif(
    not TASKS.is_dir() or "libgomp" not in Path("/proc/self/maps").read_text(), reason="GNU OpenMP on Linux only"
)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def compute() -> None:
    torch.ones(1_000_000).exp()


def threads() -> int:
    return len(os.listdir(TASKS))


def gone(count: int) -> bool:
    """Whether no more than ``count`` threads are left, or soon will be: the kernel takes a moment to forget one."""
    end = time.monotonic() + 5
    while threads() > count and time.monotonic() < end:
        time.sleep(0.001)
    return threads() <= count


def test_workers_end_when_released_and_come_back() -> None:
    counts = []

    def run() -> None:
        counts.append(threads())
        for _ in range(2):
            compute()
            counts.append(threads())
            release_workers()
            assert gone(counts[0])
            counts.append(threads())
        release_workers()  # nothing to give back

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    own = counts[0]
    assert counts == [own, own + 1, own, own + 1, own]


def test_who_waits_for_an_engine_has_no_workers_and_neither_has_an_idle_engine() -> None:
    model = ft.load("nano")
    with ft.Engine(model, ft.Autoregressive(), kv_slots=4096) as engine:
        engine.generate([1, 2, 3], max_tokens=1)
        release_workers()
        time.sleep(4 * GRACE)
        alone = threads()
        compute()
        assert threads() == alone + 1
        during: list[int] = []

        def count(piece: object) -> None:
            during.append(threads())

        for piece in engine.stream([1, 2, 3], max_tokens=8, ignore_eos=True):
            count(piece)
        assert max(during) <= alone + 1  # the engine's own
        assert gone(alone)
