"""Prefill by the library, and the rest by somebody else, on random mixtures of everything that views can say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from chains import HERE, together

from forethought.kernels import prefill, reference
from forethought.kernels.rotary import Rotary

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data(), least=st.integers(1, 4), window=st.none() | st.integers(1, 30))
def test_random_calls(data: Any, least: int, window: int | None, write: Any, calls: Any) -> None:
    """Whatever views say: what is taken is computed as the reference does, and the rest is the rest."""
    views = data.draw(calls(write))
    if prefill.split(views, window, least, HERE) is None:
        return
    q, k, v = write.inputs(views, torch.float64)
    rotary = Rotary(torch.tensor([1.0, 0.3], dtype=torch.float64))
    wanted, _ = reference.attend(q, k, v, views, scale=q.shape[2] ** -0.5, window=window, rotary=rotary)
    torch.testing.assert_close(together(q, k, v, views, least, window, rotary=rotary), wanted, rtol=0, atol=1e-9)
