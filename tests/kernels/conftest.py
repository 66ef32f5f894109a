"""The oracle that every attention kernel must equal, and a way to write down views row by row.

Both are handed out as fixtures, because test modules imported by path cannot import each other.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import accumulate
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from forethought.kernels.attention import attend
from forethought.kernels.rotary import Rotary
from forethought.kernels.views import Views, ancestor_bits


def sees(views: Views, row: int, t: int, p: int, i: int, window: int | None) -> bool:
    """The visibility rule: whether query ``t``, of ``row``, sees the ``i``-th listed slot, of part ``p``."""
    first, end = views.query_ptr[row], views.query_ptr[row + 1]
    first_part, end_part = views.part_ptr[row], views.part_ptr[row + 1]
    position = views.positions[t]
    stored = i - views.slot_ptr[p] if views.slot_positions is None else views.slot_positions[i]
    offset = 0 if views.offsets is None else views.offsets[p]
    if views.last is None:
        last = position - offset
    else:
        queries, parts = np.diff(views.query_ptr), np.diff(views.part_ptr)
        before = sum(queries[r] * parts[r] for r in range(row))
        last = views.last[before + (t - first) * parts[row] + (p - first_part)]
    if stored > last:
        return False
    j = i - (views.slot_ptr[end_part] - (end - first))
    if p == end_part - 1 and j >= 1 and views.tree is not None and not views.tree[t] >> (j - 1) & 1:
        return False
    return window is None or position - (stored + offset) < window


def turn(key: np.ndarray, by: int, rotary: Rotary) -> np.ndarray:
    """``key`` [heads, dim] rotated by that many positions: each pair of channels is a complex number."""
    out, half = key.copy(), len(rotary.frequencies)
    for i, frequency in enumerate(rotary.frequencies.tolist()):
        a, b = (2 * i, 2 * i + 1) if rotary.interleaved else (i, i + half)
        z = (key[:, a] + 1j * key[:, b]) * cmath.exp(1j * by * frequency)
        out[:, a], out[:, b] = z.real, z.imag
    return out


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    views: Views,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    rotary: Rotary | None = None,
) -> tuple[Tensor, Tensor]:
    """Masked softmax in float64, a query and a slot at a time. Keys are turned, where the kernels turn queries."""
    queries, keys, values = (x.double().cpu().numpy() for x in (q, k, v))
    views = replace(views, **{f.name: x.tolist() for f in fields(views) if isinstance(x := getattr(views, f.name), np.ndarray)})
    shared = q.shape[1] // k.shape[1]
    out = np.zeros((q.shape[0], q.shape[1], v.shape[2]))
    lse = np.full(q.shape[:2], -math.inf)
    for row in range(views.rows):
        for t in range(views.query_ptr[row], views.query_ptr[row + 1]):
            seen, turned = [], []
            for p in range(views.part_ptr[row], views.part_ptr[row + 1]):
                offset = 0 if views.offsets is None else views.offsets[p]
                for i in range(views.slot_ptr[p], views.slot_ptr[p + 1]):
                    if sees(views, row, t, p, i, window):
                        seen.append(views.slots[i])
                        turned.append(turn(keys[seen[-1]], offset, rotary) if offset and rotary else keys[seen[-1]])
            for h in range(q.shape[1]):
                scores = np.array([scale * (key[h // shared] @ queries[t, h]) for key in turned])
                if softcap is not None:
                    scores = softcap * np.tanh(scores / softcap)
                logits = scores if sinks is None else np.append(scores, float(sinks[h]))
                if logits.max(initial=-math.inf) > -math.inf:
                    lse[t, h] = logits.max() + np.log(np.exp(logits - logits.max()).sum())
                    out[t, h] = np.exp(scores - lse[t, h]) @ values[seen, h // shared]
    return torch.from_numpy(out), torch.from_numpy(lse)


@dataclass(frozen=True)
class Part:
    """Slots as one row lists them."""

    slots: Sequence[int]
    offset: int = 0


@dataclass(frozen=True)
class Row:
    """One row of a call: where its queries stand and the parts it sees, its own new tokens at the end of the last."""

    positions: Sequence[int]
    parts: Sequence[Part]
    parents: Sequence[int] | None = None
    """A tree, parent by parent; None: a chain."""
    last: Sequence[Sequence[int]] | None = None
    """[queries][parts]; None: causal."""


def views_of(rows: Sequence[Row], stored: Mapping[int, int] | None = None) -> Views:
    """The flat tables of ``rows``; ``stored`` gives the position of every slot whose position is not its index in its part."""
    parts = [part for row in rows for part in row.parts]
    offsets, trees = [part.offset for part in parts], [row.parents for row in rows]
    words = [np.full(len(row.positions), -1) if row.parents is None else ancestor_bits(row.parents) for row in rows]
    lasts = [causal(row) if row.last is None else [x for query in row.last for x in query] for row in rows]

    def ints(values: Sequence[int]) -> np.ndarray:
        return np.array(values, np.int64)

    def ends(counts: Sequence[int]) -> np.ndarray:
        return np.cumsum(ints([0, *counts]))

    return Views(
        positions=ints([x for row in rows for x in row.positions]),
        query_ptr=ends([len(row.positions) for row in rows]),
        part_ptr=ends([len(row.parts) for row in rows]),
        slot_ptr=ends([len(part.slots) for part in parts]),
        slots=ints([slot for part in parts for slot in part.slots]),
        slot_positions=None if stored is None else ints([stored.get(s, i) for part in parts for i, s in enumerate(part.slots)]),
        offsets=ints(offsets) if any(offsets) else None,
        last=ints([x for row in lasts for x in row]) if any(row.last is not None for row in rows) else None,
        tree=np.concatenate(words) if any(tree is not None for tree in trees) else None,
    )


def causal(row: Row) -> list[int]:
    return [position - part.offset for position in row.positions for part in row.parts]


TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def inputs(
    views: Views, dtype: torch.dtype, *, kv_heads: int = 2, shared: int = 2, dim: int = 8, dim_v: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, and a pool of K and V just large enough for ``views``, with NaN in every slot that no row lists."""
    generator = torch.Generator().manual_seed(seed)
    slots = int(views.slots.max(initial=0)) + 1
    q = torch.randn(views.queries, kv_heads * shared, dim, generator=generator, dtype=torch.float64)
    k = torch.randn(slots, kv_heads, dim, generator=generator, dtype=torch.float64)
    v = torch.randn(slots, kv_heads, dim_v or dim, generator=generator, dtype=torch.float64)
    unlisted = np.setdiff1d(np.arange(slots), views.slots)
    k[unlisted] = v[unlisted] = torch.nan
    return q.to(dtype), k.to(dtype), v.to(dtype)


def assert_agree(
    views: Views,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    rotary: Rotary | None = None,
    device: str = "cpu",
    shape: Mapping[str, int] | None = None,
    **options: object,
) -> None:
    """``attend`` equals the oracle on random numbers, in each of ``dtypes``; with and without asking for the log-sum-exp."""
    views.check(int(views.slots.max(initial=0)) + 1)
    for dtype in dtypes:
        q, k, v = inputs(views, dtype, **(shape or {}))
        if rotary is not None and dtype == torch.float64:
            rotary = Rotary(rotary.frequencies.double(), rotary.interleaved)
        options = {"scale": q.shape[2] ** -0.5} | options
        expected = dense_attention(q, k, v, views, rotary=rotary, **options)
        q, k, v = q.to(device), k.to(device), v.to(device)
        out, lse = attend(q, k, v, views, rotary=rotary, need_lse=True, **options)
        with torch.inference_mode():
            bare, nothing = attend(q, k, v, views, rotary=rotary, **options)
        assert out.dtype == bare.dtype == dtype
        assert nothing is None
        for got, want in ((out, expected[0]), (bare, expected[0]), (lse, expected[1])):
            torch.testing.assert_close(got.double().cpu(), want, rtol=0, atol=TOLERANCE[dtype])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are tiny: more threads only wait for each other, for seconds where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def dense() -> Callable[..., tuple[Tensor, Tensor]]:
    """:func:`dense_attention`"""
    return dense_attention


@pytest.fixture(scope="session", params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def agree(request: pytest.FixtureRequest) -> Callable[..., None]:
    """:func:`assert_agree`, on each device of this machine."""
    return partial(assert_agree, device=request.param)


@pytest.fixture(scope="session")
def write() -> SimpleNamespace:
    """How to write views: ``write.Part``, ``write.Row``, ``write.views(rows)``, and ``write.inputs(views, dtype)`` for them."""
    return SimpleNamespace(Part=Part, Row=Row, views=views_of, inputs=inputs)


@pytest.fixture(scope="session")
def rule() -> Callable[..., bool]:
    """:func:`sees`"""
    return sees


@pytest.fixture(scope="session")
def calls() -> Callable[..., object]:
    """A hypothesis strategy: ``calls(write)`` draws random mixtures of everything that views can say."""
    st = pytest.importorskip("hypothesis.strategies")

    @st.composite
    def random_calls(draw, write):
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
            past += store(draw(st.integers(0, 12)), after(past))
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

    return random_calls
