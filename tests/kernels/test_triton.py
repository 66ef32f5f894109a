"""The Triton twin equals dense masked softmax in float64: in Triton's interpreter here, on a card in ``test_card.py``."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch

from forethought.kernels import work
from forethought.kernels.attention import attend
from forethought.kernels.rotary import Rotary
from forethought.kernels.tuning import Config, Tuning

pytest.importorskip("triton")
from forethought.kernels import triton_attention

pytestmark = pytest.mark.skipif(not triton_attention.INTERPRETED, reason="triton was imported without its interpreter")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
ROTARIES = [Rotary(torch.tensor([1.0, 0.2]), interleaved) for interleaved in (False, True)]
BLOCK = 16


def tuning(rows: int = 32, splits: int = 2) -> Tuning:
    """Tiles of 16 slots, and of 16 or ``rows`` rows."""
    configs = [Config(64, size, tall, BLOCK, 4, 1, splits) for size in (2, 4) for tall in (16, rows)]
    return Tuning("test", (0, 0), False, tuple(configs))


@pytest.fixture
def equal(dense, write):
    """``equal(views, ...)``: the twin equals the oracle, output and log-sum-exp, in float32 or as asked."""

    def check(views, *, dtype=torch.float32, rows=32, splits=2, run=16, shape=None, sinks=None, lone=True, **options):
        views.plans.clear()
        q, k, v = write.inputs(views, dtype, **(shape or {}))
        options = {"scale": q.shape[2] ** -0.5, "sinks": sinks} | options
        want = dense(q, k, v, views, **options)
        with (
            mock.patch.object(triton_attention, "_machine", return_value=(tuning(rows, splits), 1)),
            mock.patch.multiple(work, LEAST_RUN=run, RUN_STEP=min(run, work.RUN_STEP)),
        ):
            out, lse = attend(q, k, v, views, need_lse=True, impl="triton", **options)
            if lone:
                bare, nothing = attend(q, k, v, views, impl="triton", **options)
                assert torch.equal(bare, out)
                assert nothing is None
        assert out.dtype == dtype
        assert lse.dtype == torch.float32
        for got, expected in ((out, want[0]), (lse, want[1])):
            torch.testing.assert_close(got.double(), expected, rtol=0, atol=TOLERANCE[dtype])

    return check


@pytest.mark.slow
def test_random_views(equal, write, calls):
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    shapes = st.fixed_dictionaries(
        {
            "kv_heads": st.sampled_from([1, 2]),
            "shared": st.sampled_from([1, 2, 3, 4]),
            "dim": st.sampled_from([4, 6, 16, 20]),
            "dim_v": st.sampled_from([4, 6, 16, 20]),
            "seed": st.integers(0, 99),
        }
    )
    launches = st.fixed_dictionaries(
        {"rows": st.sampled_from([16, 32]), "splits": st.sampled_from([1, 2, 9]), "run": st.sampled_from([4, 16, 128])}
    )
    options = st.fixed_dictionaries(
        {},
        optional={
            "window": st.integers(1, 30),
            "softcap": st.sampled_from([0.7, 20.0]),
            "sinks": st.sampled_from([1.0, -math.inf]),
            "scale": st.sampled_from([1.0, 0.1]),
        },
    )

    @hypothesis.settings(max_examples=300)
    @hypothesis.given(st.data(), st.sampled_from(list(TOLERANCE)), shapes, launches, options, st.sampled_from(ROTARIES))
    def holds(data, dtype, shape, launch, options, rotary):
        views = data.draw(calls(write))
        if "sinks" in options:
            options["sinks"] = torch.full((shape["kv_heads"] * shape["shared"],), options["sinks"])
        equal(views, dtype=dtype, shape=shape, rotary=rotary, lone=False, **launch, **options)

    holds()


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 1])
@pytest.mark.parametrize("queries", [1, 3, 17])
def test_block_edges(equal, write, length, queries):
    length = max(length, queries)
    row = write.Row(range(length - queries, length), [write.Part(range(length))])
    equal(write.views([row]), run=128, shape={"kv_heads": 1})
    equal(write.views([row]), dtype=torch.float16, window=BLOCK - 1, splits=9, shape={"kv_heads": 1})


@pytest.mark.parametrize("shared", [1, 5, 16, 40])
def test_groups_up_to_more_than_a_tile(equal, write, shared):
    rows = [write.Row([3], [write.Part(range(4))]), write.Row([0, 1, 2], [write.Part([4, 5, 6])])]
    equal(write.views(rows), shape={"kv_heads": 2, "shared": shared, "dim": 8, "dim_v": 5})


@pytest.mark.parametrize(("dim", "dim_v"), [(32, 80), (96, 64), (256, 256), (192, 128)])
def test_head_sizes(equal, write, dim, dim_v):
    equal(write.views([write.Row([20], [write.Part(range(21))])]), shape={"dim": dim, "dim_v": dim_v, "kv_heads": 1})


@pytest.mark.parametrize("parents", [[-1, *[0] * 64], [-1, *range(64)], [-1, *[0] * 40, *[7] * 10, *[41] * 13, 63]])
def test_trees_of_64_bits(equal, write, parents):
    depth = [0] * 65
    for i in range(1, 65):
        depth[i] = depth[parents[i]] + 1
    stored = dict(enumerate([3 + d for d in depth])) | {100: 0, 101: 1, 102: 2}
    row = write.Row([stored[i] for i in range(65)], [write.Part([100, 101, 102, *range(65)])], parents=parents)
    equal(write.views([row], stored), shape={"kv_heads": 1, "dim": 4}, rows=64)


def test_a_long_chain_beside_a_tree(equal, write):
    stored = dict(enumerate(range(70))) | {80: 0, 81: 1, 82: 1}
    rows = [write.Row(range(70), [write.Part(range(70))]), write.Row([0, 1, 1], [write.Part([80, 81, 82])], parents=[-1, 0, 0])]
    equal(write.views(rows, stored), shape={"kv_heads": 1, "dim": 4}, rows=64)


def test_a_shared_prefix_with_suffixes_turned_apart(equal, write):
    rows = [write.Row([40 + r], [write.Part(range(40), r), write.Part([50 + r], 40 + r)], last=[[39 - r, 0]]) for r in range(6)]
    for rotary in ROTARIES:
        equal(write.views(rows), rotary=rotary, shape={"dim": 6, "kv_heads": 1}, run=8, sinks=torch.tensor([0.5, -1.0]))


def test_what_sees_nothing(equal, write):
    rows = [write.Row([3, 4], [write.Part([0, 1, 2, 3, 4])], last=[[-1], [2]])]
    rows += [write.Row([0], []), write.Row([], [write.Part([7])])]
    for sinks in (None, torch.tensor([1.0, -math.inf])):
        equal(write.views(rows), shape={"kv_heads": 1}, sinks=sinks)
        equal(write.views(rows[:1]), shape={"kv_heads": 1}, sinks=sinks, splits=9, run=1)
        equal(write.views(rows[1:]), shape={"kv_heads": 1}, sinks=sinks)
    equal(write.views([]))
    equal(write.views([write.Row([], [write.Part([0, 1])])]))


@pytest.mark.parametrize("where", ["k", "v"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_reaches_those_who_see_it_and_only_those(write, where, value):
    """A chunk of eight tokens, and a row that shares its first four: token 5 is spoilt."""
    rows = [write.Row(range(8), [write.Part(range(8))]), write.Row([4], [write.Part([0, 1, 2, 3, 20])])]
    views = write.views(rows)
    q, k, v = (x.abs() for x in write.inputs(views, torch.float32))
    clean, clean_lse = attend(q, k, v, views, scale=1.0, need_lse=True, impl="triton")
    {"k": k, "v": v}[where][5] = value
    out, lse = attend(q, k, v, views, scale=1.0, need_lse=True, impl="triton")
    blind = [0, 1, 2, 3, 4, 8]
    assert not out[5:8].isfinite().any()
    assert torch.equal(out[blind], clean[blind])
    assert torch.equal(lse[blind], clean_lse[blind])


def test_pools_as_the_engine_has_them(write, dense):
    """Queries that are a slice of a wider projection, K and V of strided pools, slots far apart."""
    views = write.views([write.Row([2, 3], [write.Part([9, 0, 5, 2])])])
    whole, pool = torch.randn(2, 6, 8), torch.randn(10, 2, 2, 8)
    q, k, v = whole[:, :4], pool[:, 0], pool[:, 1]
    out, _ = attend(q, k, v, views, scale=0.5, impl="triton")
    torch.testing.assert_close(out.double(), dense(q, k, v, views, scale=0.5)[0], rtol=0, atol=1e-5)
    turned = torch.randn(8, 4, 2).permute(2, 1, 0)
    out, _ = attend(turned, k, v, views, scale=0.5, impl="triton")
    torch.testing.assert_close(out.double(), dense(turned, k, v, views, scale=0.5)[0], rtol=0, atol=1e-5)


def test_a_pool_of_more_than_two_to_the_31_numbers(write, tmp_path):
    """Of a file that is all hole but for two slots."""
    views = write.views([write.Row([1], [write.Part([0, 1])])])
    q, k, v = write.inputs(views, torch.float16, kv_heads=1)
    whole = torch.from_file(str(tmp_path / "pool"), shared=True, size=(1 << 31) + 8, dtype=torch.float16)
    far = whole.as_strided((2, 1, 8), (1 << 31, 8, 1))
    far.copy_(k)
    for a, b in ((far, v), (k, far)):
        small, large = (attend(q, *pair, views, scale=0.3, impl="triton")[0] for pair in ((a.clone(), b.clone()), (a, b)))
        assert torch.equal(small, large)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float64}, "float64"),
        ({"dtype": torch.bfloat16}, "bfloat16: Triton's interpreter"),
        ({"dim": 257}, "head size 257: 1 to 256"),
        ({"dim_v": 300}, "head size 300"),
        ({"k": torch.zeros(1, 2, 8, dtype=torch.float16)}, r"q is torch.float32 on cpu, but k is torch.float16"),
        ({"v": torch.zeros(8, 2, 1).permute(2, 1, 0)}, "dense"),
        ({"rotary": Rotary(torch.ones(5))}, "a rotation of 10 channels for heads of 8"),
    ],
)
def test_what_is_not_supported_is_named(write, change, message):
    views = write.views([write.Row([3], [write.Part([0], 3)])])
    dtype, dim, dim_v = change.get("dtype", torch.float32), change.get("dim", 8), change.get("dim_v", 8)
    k = change.get("k", torch.zeros(1, 2, dim, dtype=dtype))
    v = change.get("v", torch.zeros(1, 2, dim_v, dtype=dtype))
    rotary = change.get("rotary", Rotary(torch.ones(2)))
    with pytest.raises(ValueError, match=message):
        attend(torch.zeros(1, 2, dim, dtype=dtype), k, v, views, scale=1.0, rotary=rotary, impl="triton")


def test_what_triton_compiles_with(monkeypatch, tmp_path):
    """Asked for before anything else of a card: a launch without it would raise."""
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh")
    compiler.chmod(0o755)
    monkeypatch.setattr(triton_attention, "INTERPRETED", False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(triton_attention.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    for lacking, cc in (("C compiler", ""), ("Python.h", str(compiler))):
        monkeypatch.setenv("CC", cc)
        triton_attention._lacking.cache_clear()
        assert lacking in triton_attention.refuses(torch.device("cuda", 0))
    (tmp_path / "Python.h").touch()
    triton_attention._lacking.cache_clear()
    assert triton_attention._lacking() is None
    triton_attention._lacking.cache_clear()
