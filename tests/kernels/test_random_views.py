"""``attend`` equals dense masked softmax on random mixtures of everything that views can say."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from forethought.kernels import plan, reference
from forethought.kernels.rotary import Rotary

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

ROTARIES = [Rotary(torch.tensor([1.0, 0.2]), interleaved) for interleaved in (False, True)]
thresholds = st.fixed_dictionaries(
    {
        "SHARE_SLOTS": st.sampled_from([1, 8, 256]),
        "PAD_SLOTS": st.sampled_from([1, 2048]),
        "CHUNK": st.sampled_from([2, 65]),
        "MASK_CELLS": st.sampled_from([20, 1 << 22]),
    }
)
shapes = st.fixed_dictionaries(
    {
        "kv_heads": st.sampled_from([1, 2]),
        "shared": st.sampled_from([1, 2, 4, 8]),
        "dim": st.sampled_from([4, 6]),
        "dim_v": st.sampled_from([4, 6]),
        "seed": st.integers(0, 99),
    }
)
options = st.fixed_dictionaries(
    {},
    optional={
        "window": st.integers(1, 30),
        "softcap": st.sampled_from([0.7, 20.0]),
        "sinks": st.sampled_from([1.0, -torch.inf]),
        "scale": st.sampled_from([1.5, 0.1]),
    },
)


@settings(max_examples=200)
@given(st.data(), thresholds, st.sampled_from([1000, 1 << 21]), shapes, options, st.sampled_from(ROTARIES))
def test_attend_equals_the_oracle(agree, write, calls, data, thresholds, block, shape, options, rotary):
    views = data.draw(calls(write))
    if "sinks" in options:
        options["sinks"] = torch.full((shape["kv_heads"] * shape["shared"],), options["sinks"])
    with mock.patch.multiple(plan, **thresholds), mock.patch.object(reference, "BLOCK_BYTES", block):
        agree(views, rotary=rotary, shape=shape, **options)
