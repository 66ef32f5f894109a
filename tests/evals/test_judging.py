"""The clock of things that overlap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from forethought.evals import judging
from forethought.evals.judging import Clock


def test_a_clock_counts_seconds_that_overlap_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter([1.0, 4.0, 10.0, 10.5, 12.0])
    monkeypatch.setattr(judging.time, "perf_counter", lambda: next(times))
    clock = Clock()
    first, second = clock.running(), clock.running()
    first.__enter__()  # at 1
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)  # at 4
    assert clock.seconds == 3
    with suppress(KeyError), clock.running():  # at 10
        assert clock.seconds == 3.5
        raise KeyError
    assert clock.seconds == 5
