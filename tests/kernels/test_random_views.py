"""``attend`` equals dense masked softmax on random mixtures of everything that views can say."""

from __future__ import annotations

from itertools import accumulate
from unittest import mock

import pytest
import torch

from forethought.kernels import plan, reference
from forethought.kernels.rotary import Rotary

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

ROTARIES = [Rotary(torch.tensor([1.0, 0.2]), interleaved) for interleaved in (False, True)]
small = st.integers(0, 12)


@st.composite
def calls(draw, write):
    """Views of up to five rows: decode rows, chunks, trees and rows that ask nothing, with up to two parts before the last,
    each a prefix of a common context or all that an earlier row has, its new tokens of this call included."""
    trees, fused, moved, hiding = (draw(st.booleans()) for _ in range(4))
    free = iter(draw(st.permutations(range(400))) if draw(st.booleans()) else range(400))
    stored: dict[int, int] = {}

    def store(count, start):
        """``count`` fresh slots from position ``start`` on."""
        steps = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count)) if fused else [1] * count
        slots = [next(free) for _ in range(count)]
        stored.update(zip(slots, accumulate(steps[:-1], initial=start), strict=False))
        return slots

    def after(slots):
        return stored[slots[-1]] + 1 if slots else 0

    def offset():
        return draw(st.integers(-15, 15)) if moved else 0

    contexts = [store(draw(st.integers(1, 20)), 0) for _ in range(2)]
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        parts = []
        for _ in range(draw(st.integers(0, 2))):
            seen = draw(st.sampled_from(contexts))
            parts.append(write.Part(seen[: draw(st.sampled_from([0, len(seen) // 2, len(seen)]))], offset()))
        past = list(draw(st.sampled_from(contexts))) if draw(st.booleans()) else []
        past += store(draw(small), after(past))
        count, parents = draw(st.sampled_from([0, 1, 1, 1, 2, 3, 9])), None
        if trees and count and draw(st.booleans()):
            parents = [-1, *(draw(st.integers(0, i)) for i in range(count - 1))]
            depths = [0]
            for parent in parents[1:]:
                depths.append(depths[parent] + 1)
            new = [next(free) for _ in range(count)]
            stored.update((slot, after(past) + depth) for slot, depth in zip(new, depths, strict=True))
        else:
            new = store(count, after(past))
        parts.append(write.Part([*past, *new], by := offset()))
        last = None
        if hiding and draw(st.booleans()):
            last = [[draw(st.integers(-1, 30)) for _ in parts] for _ in new]
        rows.append(write.Row([stored[slot] + by for slot in new], parts, parents, last))
        contexts.append([*past, *new])
    return write.views(rows, stored if trees or fused or draw(st.booleans()) else None)


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
def test_attend_equals_the_oracle(agree, write, data, thresholds, block, shape, options, rotary):
    views = data.draw(calls(write))
    if "sinks" in options:
        options["sinks"] = torch.full((shape["kv_heads"] * shape["shared"],), options["sinks"])
    with mock.patch.multiple(plan, **thresholds), mock.patch.object(reference, "BLOCK_BYTES", block):
        agree(views, rotary=rotary, shape=shape, **options)
