"""The CUDA kernels without a card: their source, compiled for the host by emulation/emulation.h, against the oracle.

The same struct, launches, tables and reads as on a card; fragments, barriers and background copies as there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from random_views import random_views

from forethought.kernels import attention, cuda_attention, cuda_build, work
from forethought.kernels.cuda_attention import width_for
from forethought.kernels.rotary import Rotary
from forethought.kernels.work import Shape, work_for

EMULATION = Path(__file__).parent / "emulation"
FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
TOLERANCE = {FLOAT32: 1e-5, FLOAT16: 2e-3, BFLOAT16: 2e-2}
CPU = torch.device("cpu")
ROTARIES = [Rotary(torch.tensor([1.0, 0.2, 0.01]), interleaved) for interleaved in (False, True)]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the emulation with")
dtypes = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=lambda dtype: str(dtype)[6:])


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The emulated kernels of a width: compiled once, also where several processes test."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared

    def load(width):
        command = [*"g++ -std=c++17 -O2 -U_FORTIFY_SOURCE -w".split()]
        command += [*"-shared -fPIC -x c++".split(), f"-DWIDTH={width}", f"-I{EMULATION}"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(shared))
            library = cuda_build.built("attention.cu", command, [*EMULATION.iterdir()])
        cuda_attention.prepare(library)
        return library

    return load


@pytest.fixture(scope="session")
def emulated(library):
    """``attend`` by the emulated kernels, with a work list of any cut."""

    def attend(q, k, v, views, *, window=None, tile=4, splits=8, **options):
        shape = Shape(q.shape[1], k.shape[1], q.shape[2], v.shape[2], 2)
        few = cuda_attention.FEW * k.shape[1] // q.shape[1]
        made = work_for(views, window, CPU, tile=tile, splits=splits, shape=shape, few=few)
        options = {"scale": q.shape[2] ** -0.5, "softcap": None, "sinks": None, "rotary": None} | options
        return cuda_attention.launch(library(width_for(q.shape[2], v.shape[2])), q, k, v, made, stream=0, **options)

    return attend


@pytest.fixture
def agree(emulated, dense, write):
    def check(views, dtype, *, tile=4, splits=8, shape=None, **options):
        q, k, v = write.inputs(views, dtype, **({"dim": 64} | (shape or {})))
        options = {"scale": q.shape[2] ** -0.5} | options
        wanted, wanted_lse = dense(q, k, v, views, **options)
        out, lse = emulated(q, k, v, views, tile=tile, splits=splits, **options)
        assert out.dtype == dtype
        assert lse.dtype == torch.float32
        torch.testing.assert_close(out.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        torch.testing.assert_close(lse.double(), wanted_lse, rtol=0, atol=1e-5 if dtype == FLOAT32 else 2e-2)

    return check


def decode(write, *lengths):
    order = iter(np.random.default_rng(0).permutation(sum(lengths)).tolist())
    return write.views([write.Row([n - 1], [write.Part([next(order) for _ in range(n)])]) for n in lengths])


# ---- shapes -------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_block_edges(write, agree, dtype, dim):
    """One less, as many and one more slots than tiles and rings of tiles hold; rows about the 16 and 64 of the two kernels."""
    agree(decode(write, 1, 31, 32, 33, 63, 64, 65), dtype, shape={"dim": dim, "kv_heads": 1})
    agree(decode(write, 127, 129, 191, 193, 321), dtype, shape={"dim": dim, "kv_heads": 1, "shared": 1}, splits=1)
    for queries in (15, 16, 17, 63, 64, 65):
        views = write.views([write.Row(range(9, 9 + queries), [write.Part(range(9 + queries))])])
        agree(views, dtype, shape={"dim": dim, "kv_heads": 1, "shared": 1}, tile=100)


@dtypes
@pytest.mark.parametrize("dim", [8, 24, 32, 80, 96, 120, 192])
def test_head_sizes_between_the_widths(write, agree, dtype, dim):
    rows = [write.Row([40], [write.Part(range(41))]), write.Row([3, 4, 5], [write.Part(range(50, 56))])]
    agree(write.views(rows), dtype, shape={"dim": dim, "shared": 1})
    agree(write.views(rows), dtype, shape={"dim": dim, "dim_v": 64, "shared": 8})
    agree(write.views(rows), dtype, shape={"dim": 64, "dim_v": dim, "shared": 8})


@dtypes
@pytest.mark.parametrize(("kv_heads", "shared"), [(1, 1), (3, 1), (2, 5), (1, 16), (1, 71)])
def test_grouped_heads(write, agree, dtype, kv_heads, shared):
    agree(decode(write, 5, 70), dtype, shape={"kv_heads": kv_heads, "shared": shared})


@dtypes
def test_more_rows_than_a_block_takes(write, agree, dtype):
    """Items of 30 queries x 8 heads in four blocks, beside items of one query."""
    rows = [write.Row(range(50, 80), [write.Part(range(80))]), write.Row([20], [write.Part(range(80, 101))])]
    agree(write.views(rows), dtype, tile=30, shape={"kv_heads": 1, "shared": 8})


@dtypes
@pytest.mark.parametrize("splits", [1, 3, 100])
def test_splits_along_the_context(write, agree, dtype, splits):
    agree(decode(write, 700, 129, 64), dtype, splits=splits, shape={"kv_heads": 1})
    agree(decode(write, 700, 129, 64), dtype, splits=splits, shape={"kv_heads": 1}, sinks=torch.tensor([0.5, -torch.inf]))


@dtypes
def test_more_partial_results_than_a_warp_has_lanes(write, agree, dtype, monkeypatch):
    monkeypatch.setattr(work, "LEAST_RUN", 1)
    monkeypatch.setattr(work, "RUN_STEP", 1)
    for pieces in (31, 32, 33, 70):
        views = decode(write, 3 * pieces)
        agree(views, dtype, splits=pieces, shape={"kv_heads": 1}, sinks=torch.tensor([0.5, -torch.inf]))
        (made,) = views.plans.values()
        assert len(made.items) == pieces


@dtypes
def test_a_prefix_read_once(write, agree, dtype):
    rows = [write.Row([200 + i], [write.Part([*range(200), *range(200 + 10 * i, 201 + 11 * i)])]) for i in range(9)]
    views = write.views(rows)
    agree(views, dtype, tile=32, shape={"kv_heads": 1})
    (made,) = views.plans.values()
    assert made.slot_reads < 500  # not 1800


def test_no_queries_and_no_rows(write, agree):
    agree(write.views([]), FLOAT16)
    agree(write.views([write.Row([], [write.Part([0, 1])])]), FLOAT16)


@dtypes
def test_through_the_seam(write, dense, library, monkeypatch, dtype):
    """``attend(impl="cuda")`` as on a card, but for the library it finds there."""
    monkeypatch.setattr(cuda_attention, "refuses", lambda *_: None)
    monkeypatch.setattr(cuda_attention, "_library", lambda width, index: library(width))
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    own = [write.Part(range(500, 700), 3), write.Part(range(30, 40))]
    rows = [write.Row([i], [write.Part(range(i + 1))]) for i in (0, 70, 499)]
    rows.append(write.Row(range(5, 10), own, last=[[2 * i, i] for i in range(5, 10)]))
    views = write.views(rows)
    q, k, v = write.inputs(views, dtype, dim=128, shared=4)
    options = {"scale": 0.1, "window": 300, "softcap": 30.0, "sinks": torch.linspace(-1, 1, 8), "rotary": ROTARIES[0]}
    wanted, wanted_lse = dense(q, k, v, views, **options)
    out, lse = attention.attend(q, k, v, views, need_lse=True, impl="cuda", **options)
    torch.testing.assert_close(out.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=0, atol=2e-2)
    bare, nothing = attention.attend(q, k, v, views, impl="cuda", **options)
    assert torch.equal(bare, out)
    assert nothing is None


# ---- what is visible ------------------------------------------------------------------------------------------------------


TREES = [[-1, 0, 0, 1, 1, 2, 4], [-1, *[0] * 64], [-1, *range(64)], [-1, *[0] * 40, *[7] * 10, *[41] * 13, 63]]


@dtypes
@pytest.mark.parametrize("parents", TREES, ids=["two levels", "64 siblings", "path of 65", "last node has depth"])
def test_trees(write, agree, dtype, parents):
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    own = range(40, 40 + len(parents))
    row = write.Row([30 + depth for depth in depths], [write.Part([*range(30), *own])], parents=parents)
    stored = {**{i: i for i in range(30)}, **dict(zip(own, row.positions, strict=True))}
    beside = write.Row([4], [write.Part(range(200, 205))])
    for tile in (1, 7, 100):
        agree(write.views([row, beside], stored), dtype, tile=tile, shape={"kv_heads": 1})


@dtypes
@pytest.mark.parametrize("window", [1, 7, 64, 1000])
def test_windows(write, agree, dtype, window):
    rows = [write.Row([149], [write.Part(range(150))]), write.Row(range(60, 90), [write.Part(range(200, 290))])]
    agree(write.views(rows), dtype, window=window, tile=30)


@dtypes
@pytest.mark.parametrize("rotary", ROTARIES, ids=["halves", "interleaved"])
def test_rotated_parts(write, agree, dtype, rotary):
    """Parts at offsets of their own, near and far: the angle is exact at a hundred thousand positions."""
    parts = [write.Part(range(20), 100_000), write.Part(range(20, 50), -3), write.Part(range(50, 60), 30)]
    far = [parts[0], write.Part(range(60, 70), 100_010)]
    rows = [
        write.Row([39], [write.Part(range(9)), *parts[1:]], last=[[8, 29, 9]]),
        write.Row([100_020, 100_021], far, last=[[19, 8], [19, 9]]),
    ]
    agree(write.views(rows), dtype, rotary=rotary)
    agree(write.views(rows), dtype, rotary=Rotary(10000.0 ** -torch.linspace(0, 1, 32), rotary.interleaved))


@dtypes
@pytest.mark.parametrize("softcap", [0.7, 20.0])
def test_softcap_and_sinks(write, agree, dtype, softcap):
    views = decode(write, 5, 70)
    agree(views, dtype, softcap=softcap, scale=0.5)
    agree(views, dtype, softcap=softcap, sinks=torch.tensor([0.0, 3.0, -torch.inf, -2.0]))


@dtypes
def test_queries_that_see_nothing(write, emulated, dtype):
    """Output 0 and log-sum-exp -inf, or the sink's: hidden, with nothing to see, and among partial results that are merged."""
    hidden = write.Row([3], [write.Part(range(4)), write.Part(range(4, 9))], last=[[-1, -1]])
    half_hidden = write.Row([3, 4], [write.Part(range(4)), write.Part(range(4, 9))], last=[[-1, -1], [3, 4]])
    for row, merged in ((hidden, False), (half_hidden, True)):
        for blind in ([], [write.Row([7], [])]):
            views = write.views([row, *blind, write.Row([2], [write.Part(range(9, 12))])])
            q, k, v = write.inputs(views, dtype, dim=64)
            nothing = [0, *([len(row.positions)] if blind else [])]
            out, lse = emulated(q, k, v, views, splits=1)
            assert (next(iter(views.plans.values())).merge_ptr is not None) == merged
            assert (out[nothing] == 0).all()
            assert (lse[nothing] == -torch.inf).all()
            assert lse[-1].isfinite().all()
            sinks = torch.tensor([0.0, 3.0, -torch.inf, -2.0])
            out, lse = emulated(q, k, v, views, sinks=sinks, splits=1)
            assert (out[nothing] == 0).all()
            assert torch.allclose(lse[nothing], sinks.expand(len(nothing), -1))


@dtypes
def test_nan_reaches_who_sees_it_and_nobody_else(write, emulated, dtype):
    """In K of a slot, the queries that see the slot. In K and V of slots listed but behind a window, or after the last
    position that anyone sees, nobody."""
    chunk = write.Row(range(70, 80), [write.Part(range(80))])
    views = write.views([chunk, write.Row([5], [write.Part(range(100, 120))])])
    for tile in (1, 4, 100):
        q, k, v = write.inputs(views, dtype, dim=64)
        k[75] = torch.nan
        k[:10] = v[:10] = k[106:] = v[106:] = torch.nan
        out, lse = emulated(q, k, v, views, window=60, tile=tile)
        assert out[:5].isfinite().all()
        assert lse[:5].isfinite().all()
        assert out[5:10].isnan().all()
        assert lse[5:10].isnan().all()
        assert out[10].isfinite().all()


@dtypes
def test_slots_that_no_query_of_an_item_sees_are_not_read(write, emulated, dtype):
    """In the middle of a run, stored too late or too early, or on another branch: whatever is in them, it does no harm."""
    stored = dict.fromkeys(range(30), 20) | {7: 31, 8: 2, 9: 25}
    views = write.views([write.Row([25], [write.Part(range(30))])], stored)
    q, k, v = write.inputs(views, dtype, dim=64)
    k[7:9] = v[7:9] = torch.nan
    assert emulated(q, k, v, views, window=10)[0].isfinite().all()
    k[9] = torch.nan
    assert emulated(q, k, v, views, window=10)[0].isnan().all()

    views = write.views([write.Row([1, 2, 2, 3], [write.Part(range(5))], parents=[-1, 0, 0, 1])], {0: 0, 1: 1, 2: 2, 3: 2, 4: 3})
    q, k, v = write.inputs(views, dtype, dim=64)
    k[3] = v[3] = torch.nan
    out, _ = emulated(q, k, v, views, tile=1)
    assert out[[0, 1, 3]].isfinite().all()
    assert out[2].isnan().all()


@dtypes
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_value_reaches_who_sees_it_and_nobody_else(write, emulated, dtype, bad):
    """In a chunk behind a context, and on one branch of a tree; the results of the others are what they are without."""
    tree = [-1, 0, 0, 1, 2, 3]
    stored = {i: i for i in range(100)} | {100 + i: 30 + depth for i, depth in enumerate([0, 1, 1, 2, 2, 3])}
    row = write.Row([30, 31, 31, 32, 32, 33], [write.Part([*range(30), *range(100, 106)])], parents=tree)
    views = write.views([write.Row(range(70, 80), [write.Part(range(80))]), row], stored)
    for tile in (1, 4, 100):
        for dim in (40, 64):
            q, k, v = write.inputs(views, dtype, dim=dim)
            clean, clean_lse = emulated(q, k, v, views, tile=tile)
            v[[75, 101], :, 5] = bad  # the second of a pair in one register
            out, lse = emulated(q, k, v, views, tile=tile)
            sees = [5, 6, 7, 8, 9, 11, 13, 15]
            blind = [0, 1, 2, 3, 4, 10, 12, 14]
            assert not out[sees, :, 5].isfinite().any()
            torch.testing.assert_close(out[blind], clean[blind], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
            assert torch.equal(lse, clean_lse)


@dtypes
def test_nan_and_infinity_in_queries(write, emulated, dtype):
    views = write.views([write.Row(range(5, 8), [write.Part(range(8))])])
    q, k, v = write.inputs(views, dtype, dim=64)
    q[1] = torch.nan
    out, lse = emulated(q, k, v, views)
    assert out[1].isnan().all()
    assert lse[1].isnan().all()
    assert out[[0, 2]].isfinite().all()


# ---- the pool -------------------------------------------------------------------------------------------------------------


@dtypes
def test_pools_with_strides(write, emulated, dtype):
    """K and V side by side in one pool, q cut out of a fused projection."""
    views = decode(write, 20, 70)
    q, k, v = write.inputs(views, dtype, dim=64)
    pool, fused = torch.stack((k, v), 1), torch.cat((q, q), 1)
    assert not pool[:, 0].is_contiguous()
    odd = torch.zeros(2, 4, 65, dtype=dtype)[..., :64]  # queries alone may lie as they like
    odd.copy_(q)
    for asked in (fused[:, :4], odd, q.transpose(0, 2).contiguous().transpose(0, 2)):
        for a, b in zip(emulated(asked, pool[:, 0], pool[:, 1], views), emulated(q, k, v, views), strict=True):
            assert torch.equal(a, b)


def test_pools_of_more_than_two_to_the_31_numbers(write, emulated):
    views = write.views([write.Row([2], [write.Part([2, 0, 1])])])
    q, k, v = write.inputs(views, FLOAT16, dim=64, kv_heads=1)
    wide = torch.empty((1 << 32) + 64, dtype=FLOAT16).as_strided((3, 1, 64), (1 << 31, 64, 1))  # hardly any of it is touched
    wide.copy_(k)
    for a, b in zip(emulated(q, wide, v, views), emulated(q, k, v, views), strict=True):
        assert torch.equal(a, b)


def test_what_16_byte_reads_cannot_reach_is_refused(write, emulated):
    views = decode(write, 20)
    q, k, v = write.inputs(views, FLOAT16, dim=64)
    for bad in (torch.zeros(20, 2, 65, dtype=FLOAT16)[..., :64], torch.zeros(20 * 128 + 1, dtype=FLOAT16)[1:].view(20, 2, 64)):
        with pytest.raises(ValueError, match=r"but k begins at \d+ with strides"):
            emulated(q, bad, v, views)
    with pytest.raises(ValueError, match="but v is"):
        emulated(q, k, v.float(), views)
    with pytest.raises(ValueError, match="a rotation of 66 channels for heads of 64"):
        emulated(q, k, v, views, rotary=Rotary(torch.ones(33)))


# ---- everything at once ---------------------------------------------------------------------------------------------------


def random_call(seed, write, agree):
    rng = np.random.default_rng(seed)
    dtype = [FLOAT32, FLOAT16, BFLOAT16][seed % 3]
    shape = {
        "kv_heads": int(rng.integers(1, 3)),
        "shared": int(rng.choice([1, 2, 4, 8])),
        "dim": int(rng.choice([32, 64, 64, 80, 128, 128, 256])),
        "seed": seed,
    }
    options = {
        "window": int(rng.integers(1, 40)) if rng.random() < 0.3 else None,
        "softcap": 20.0 if rng.random() < 0.2 else None,
        "sinks": torch.from_numpy(rng.normal(size=shape["kv_heads"] * shape["shared"])).float() if rng.random() < 0.3 else None,
        "tile": int(rng.choice([1, 3, 8, 100])),
        "splits": int(rng.choice([1, 8, 1000])),
    }
    views = random_views(rng, write, longest=int(rng.choice([10, 40, 150])))
    agree(views, dtype, rotary=ROTARIES[seed % 2], shape=shape, **options)


@pytest.mark.parametrize("tens", range(24))
def test_random_views(write, agree, tens, monkeypatch):
    monkeypatch.setattr(work, "LEAST_RUN", 3 + 20 * tens)
    monkeypatch.setattr(work, "RUN_STEP", 1)
    for seed in range(10 * tens, 10 * tens + 10):
        random_call(seed, write, agree)


@pytest.mark.slow
@pytest.mark.parametrize("hundreds", range(3, 13))
def test_many_more_random_views(write, agree, hundreds):
    for seed in range(100 * hundreds, 100 * hundreds + 100):
        random_call(seed, write, agree)
