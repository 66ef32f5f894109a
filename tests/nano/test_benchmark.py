"""The statistics of ``benchmarks/nano.py`` against their definitions."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "nano.py"
    spec = importlib.util.spec_from_file_location("benchmark_nano", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_nano"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_slope_is_that_of_least_squares(benchmark: ModuleType) -> None:
    rng = np.random.default_rng(0)
    levels, values = rng.integers(1, 9, 50).astype(float), rng.random(50)
    assert benchmark.slope(levels, values) == pytest.approx(np.polyfit(levels, values, 1)[0])
    assert benchmark.slope(np.ones(3), np.arange(3.0)) == 0


def test_intervals_cover(benchmark: ModuleType) -> None:
    values = np.random.default_rng(1).random(400)
    estimate = benchmark.resampled(lambda i: values[i].mean(), 400)
    assert estimate.value == pytest.approx(values.mean())
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
