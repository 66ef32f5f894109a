"""The fast twins of attention on a card: the random views of the emulation, long contexts, no waiting for the host, graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_views import random_views

from forethought.kernels import attention
from forethought.kernels.rotary import Rotary
from forethought.kernels.views import Views

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
TOLERANCE = {FLOAT32: 2e-5, FLOAT16: 2e-3, BFLOAT16: 2e-2}
ROTARIES = [Rotary(torch.tensor([1.0, 0.2, 0.01]), interleaved) for interleaved in (False, True)]
dtypes = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=lambda dtype: str(dtype)[6:])


@pytest.fixture(autouse=True, params=["cuda", "triton"])
def implementation(request, monkeypatch):
    """Which one :func:`attend` runs."""
    if request.param not in attention.IMPLEMENTATIONS:
        pytest.skip(f"no impl={request.param!r}")
    if (why := attention.refused(request.param, torch.device("cuda"))) is not None:
        pytest.skip(f"{request.param}: {why}")
    monkeypatch.setitem(globals(), "IMPLEMENTATION", request.param)


IMPLEMENTATION = ""


def on_card(*tensors):
    return tuple(x.cuda() for x in tensors)


def attend(q, k, v, views, **options):
    return attention.attend(q, k, v, views, impl=IMPLEMENTATION, need_lse=True, **options)


@dtypes
@pytest.mark.parametrize("dim", [32, 64, 80, 128, 256])
def test_random_views(write, dense, dtype, dim):
    # Each view is a kernel of its own or two for Triton, which takes a second to compile one.
    for seed in range(20 if IMPLEMENTATION == "cuda" else 3):
        rng = np.random.default_rng(seed)
        shape = {"kv_heads": int(rng.integers(1, 3)), "shared": int(rng.choice([1, 2, 4, 8])), "dim": dim, "seed": seed}
        options = {
            "scale": dim**-0.5,
            "rotary": ROTARIES[seed % 2],
            "window": int(rng.integers(1, 40)) if rng.random() < 0.3 else None,
            "softcap": 20.0 if rng.random() < 0.2 else None,
            "sinks": None,
        }
        if rng.random() < 0.3:
            options["sinks"] = torch.from_numpy(rng.normal(size=shape["kv_heads"] * shape["shared"])).float()
        views = random_views(rng, write)
        q, k, v = write.inputs(views, dtype, **shape)
        wanted, wanted_lse = dense(q, k, v, views, **options)
        q, k, v = on_card(q, k, v)
        if options["sinks"] is not None:
            options["sinks"] = options["sinks"].cuda()
        out, lse = attend(q, k, v, views, **options)
        torch.testing.assert_close(out.double().cpu(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        torch.testing.assert_close(lse.double().cpu(), wanted_lse, rtol=0, atol=1e-4 if dtype == FLOAT32 else 2e-2)


def decode_views(rows: int, context: int, queries: int = 1, shared: int = 0) -> Views:
    """Rows of ``queries`` new tokens over ``context`` slots, the first ``shared`` of them the same; slots lie scattered."""
    order = np.random.default_rng(0).permutation(shared + rows * (context - shared))
    own = order[shared:].reshape(rows, context - shared)
    slots = np.concatenate((np.tile(order[:shared], (rows, 1)), own), 1).reshape(-1)
    each = np.arange(rows + 1)
    positions = np.tile(np.arange(context - queries, context), rows)
    return Views(positions=positions, query_ptr=each * queries, part_ptr=each, slot_ptr=each * context, slots=slots)


@dtypes
@pytest.mark.parametrize(
    ("rows", "context", "queries", "shared"), [(1, 16384, 1, 0), (8, 4001, 1, 0), (1, 4096, 65, 0), (64, 2100, 1, 2048)]
)
def test_long_contexts(dtype, rows, context, queries, shared):
    """Against float64 on the card itself: relative error of the whole under 1e-2."""
    views = decode_views(rows, context, queries, shared)
    slots = int(views.slots.max()) + 1
    torch.manual_seed(0)
    q = torch.randn(rows * queries, 32, 128, device="cuda").to(dtype)
    k, v = (torch.randn(slots, 8, 128, device="cuda").to(dtype) for _ in "kv")
    out, lse = attend(q, k, v, views, scale=128**-0.5)
    index = torch.from_numpy(views.slots).cuda().view(rows, context)
    relative, absolute = (1e-5, 1e-4) if dtype == FLOAT32 else (1e-2, 1e-2)
    for r in range(rows):
        mine = slice(r * queries, (r + 1) * queries)
        keys, values = (x[index[r]].double().repeat_interleave(4, 1).transpose(0, 1) for x in (k, v))
        scores = q[mine].double().transpose(0, 1) @ keys.transpose(1, 2) * 128**-0.5
        hidden = torch.ones(queries, context, dtype=torch.bool, device="cuda").triu(context - queries + 1)
        scores = scores.masked_fill(hidden, -torch.inf)
        wanted = (scores.softmax(-1) @ values).transpose(0, 1)
        assert (out[mine] - wanted).norm() < relative * wanted.norm()
        assert (lse[mine] - scores.logsumexp(-1).transpose(0, 1)).abs().max() < absolute


@dtypes
def test_same_bits_every_time(dtype):
    views = decode_views(8, 3000)
    q, k, v = (torch.randn(n, h, 128, device="cuda").to(dtype) for n, h in ((8, 16), (24000, 4), (24000, 4)))
    first = attend(q, k, v, views, scale=0.1)
    for _ in range(20):
        for a, b in zip(attend(q, k, v, views, scale=0.1), first, strict=True):
            assert torch.equal(a, b)


def test_no_call_waits_for_the_card():
    """Neither one that makes a new work list nor one that has it."""
    q, k, v = (torch.randn(n, h, 64, device="cuda").half() for n, h in ((8, 16), (24000, 4), (24000, 4)))
    rotary = Rotary(torch.tensor([1.0, 0.1]))
    attend(q, k, v, decode_views(8, 3000), scale=0.1, rotary=rotary)  # compiles
    mode = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        views = decode_views(8, 3000)
        for _ in range(2):
            attend(q, k, v, views, scale=0.1, rotary=rotary)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@dtypes
def test_replayed_from_a_graph(dtype):
    views = decode_views(4, 1000, queries=3)
    q, k, v = (torch.randn(n, h, 128, device="cuda").to(dtype) for n, h in ((12, 16), (4000, 4), (4000, 4)))
    attend(q, k, v, views, scale=0.1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = attend(q, k, v, views, scale=0.1)
    for x in (q, k, v):
        x.normal_()
    graph.replay()
    for a, b in zip((out, lse), attend(q, k, v, views, scale=0.1), strict=True):
        assert torch.equal(a, b)


def test_on_a_stream_of_its_own():
    views = decode_views(4, 1000)
    q, k, v = (torch.randn(n, h, 64, device="cuda").half() for n, h in ((4, 8), (4000, 8), (4000, 8)))
    wanted, _ = attend(q, k, v, views, scale=0.1)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        out, _ = attend(q, k, v, views, scale=0.1)
    stream.synchronize()
    assert torch.equal(out, wanted)


def test_a_pool_of_more_than_two_to_the_31_numbers():
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GB of device memory")
    views = decode_views(1, 3)
    q, k, v = (torch.randn(n, h, 64, device="cuda").half() for n, h in ((1, 2), (3, 1), (3, 1)))
    wide = torch.empty((1 << 32) + 64, dtype=FLOAT16, device="cuda").as_strided((3, 1, 64), (1 << 31, 64, 1))
    wide.copy_(k)
    for a, b in zip(attend(q, wide, v, views, scale=0.1), attend(q, k, v, views, scale=0.1), strict=True):
        assert torch.equal(a, b)
