"""New tokens are normed, rotated and written: torch against a loop over channels, Triton against torch in float64."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch

from forethought.kernels.rotary import Rotary
from forethought.kernels.write import Norms, write

HALVES = {torch.float32: 1e-6, torch.float16: 4e-3}


def interpreted() -> bool:
    if not find_spec("triton"):
        return False
    from forethought.kernels.triton_attention import INTERPRETED

    return INTERPRETED


needs_interpreter = pytest.mark.skipif(not interpreted(), reason="needs Triton and its interpreter")


def call(tokens=3, heads=4, kv_heads=2, dim=8, width=8, interleaved=False, normed=True, dtype=torch.float64):
    """Arguments of ``write``, drawn in float64; the pool has room for seven tokens and is filled with sevens."""
    generator = torch.Generator().manual_seed(dim + width)
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, generator=generator, dtype=torch.float64)
    weights = torch.rand(2, dim, generator=generator, dtype=torch.float64) + 0.5
    frequencies = torch.tensor([1.0 / (i + 1) for i in range(width // 2)], dtype=torch.float64)
    cos, sin = Rotary(frequencies).cos_sin(torch.arange(tokens) + 5)
    if interleaved:
        cos, sin = cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)
    else:
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return {
        "qkv": qkv.to(dtype), "cos": cos.unsqueeze(1).to(dtype), "sin": sin.unsqueeze(1).to(dtype),
        "slots": torch.tensor([5, 0, 6, 2, 1])[:tokens],
        "k": torch.full((7, kv_heads, dim), 7.0, dtype=dtype), "v": torch.full((7, kv_heads, dim), 7.0, dtype=dtype),
        "norms": Norms(*weights.to(dtype), 1e-2) if normed else None, "interleaved": interleaved,
    }, Rotary(frequencies, interleaved)  # fmt: skip


cases = pytest.mark.parametrize(
    "options",
    [
        {},
        {"normed": False},
        {"interleaved": True},
        {"width": 4},
        {"width": 6, "interleaved": True, "normed": False},
        {"heads": 5, "kv_heads": 1, "dim": 80, "width": 80},
        {"tokens": 1, "heads": 1, "kv_heads": 1},
        {"tokens": 5, "heads": 9, "kv_heads": 3, "dim": 20, "width": 20},
        {"tokens": 0},
    ],
    ids=str,
)


@cases
def test_torch_against_a_loop(options):
    arguments, rotary = call(**options)
    q = write(**arguments)
    k, v, norms, qkv = (arguments[name] for name in ("k", "v", "norms", "qkv"))
    heads, kv_heads = q.shape[1], k.shape[1]
    for t, slot in enumerate(arguments["slots"].tolist()):
        for h in range(heads + kv_heads):
            x = qkv[t, h].tolist()
            if norms is not None:
                scale = 1 / math.sqrt(sum(a * a for a in x) / len(x) + norms.eps)
                x = [a * scale * w for a, w in zip(x, norms.q if h < heads else norms.k, strict=True)]
            wanted = rotary.rotate(torch.tensor([x], dtype=torch.float64), torch.tensor(t + 5))[0]
            torch.testing.assert_close(q[t, h] if h < heads else k[slot, h - heads], wanted)
        assert torch.equal(v[slot], qkv[t, heads + kv_heads :])
    others = [s for s in range(7) if s not in arguments["slots"].tolist()]
    assert (k[others] == 7).all()
    assert (v[others] == 7).all()


@needs_interpreter
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@cases
def test_triton_equals_torch(options, dtype):
    exact, mine = call(**options)[0], call(**options, dtype=dtype)[0]
    wanted, got = write(**exact, impl="torch"), write(**mine, impl="triton")
    assert got.dtype == dtype
    for a, b in ((got, wanted), (mine["k"], exact["k"]), (mine["v"], exact["v"])):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=HALVES[dtype])
    assert torch.equal(mine["v"][mine["slots"]], mine["qkv"][:, -mine["v"].shape[1] :])


@needs_interpreter
def test_triton_into_strided_pools():
    """K and V of one block, queries of a wider projection: as they are, without copies."""
    exact, mine = call(normed=False)[0], call(normed=False, dtype=torch.float32)[0]
    mine["k"], mine["v"] = torch.full((7, 2, 2, 8), 7.0).unbind(1)
    mine["qkv"] = torch.cat((mine["qkv"], torch.zeros(3, 2, 8)), 1)[:, :8]
    wanted, got = write(**exact), write(**mine, impl="triton")
    for a, b in ((got, wanted), (mine["k"], exact["k"]), (mine["v"], exact["v"])):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6)


def test_errors_name_the_value():
    arguments, _ = call()
    with pytest.raises(ValueError, match="impl='metal'"):
        write(**arguments, impl="metal")
    if interpreted():
        with pytest.raises(ValueError, match="float64"):
            write(**arguments, impl="triton")
        arguments, _ = call(dtype=torch.float32)
        with pytest.raises(ValueError, match="cos must be dense"):
            write(**arguments | {"cos": torch.zeros(3, 1, 16)[..., ::2]}, impl="triton")
        with pytest.raises(ValueError, match="shapes do not fit"):
            write(**arguments | {"v": torch.zeros(7, 2, 6)}, impl="triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{}, {"heads": 32, "kv_heads": 8, "dim": 128, "width": 128}, {"interleaved": True}], ids=str)
def test_on_a_card(options, dtype):
    """Triton and torch both come to what torch says in float64."""
    pytest.importorskip("triton")
    tolerance = {torch.bfloat16: 4e-2, torch.float16: 5e-3, torch.float32: 1e-5}[dtype]
    exact = call(**options)[0]
    wanted = write(**exact)
    for impl in ("triton", "torch"):
        mine = call(**options, dtype=dtype)[0]
        norms = mine["norms"]
        there = {name: x.cuda() for name, x in mine.items() if isinstance(x, torch.Tensor)}
        there |= {"norms": Norms(norms.q.cuda(), norms.k.cuda(), norms.eps), "interleaved": mine["interleaved"]}
        got = write(**there, impl=impl)
        for a, b in ((got, wanted), (there["k"], exact["k"]), (there["v"], exact["v"])):
            torch.testing.assert_close(a.double().cpu(), b, rtol=tolerance, atol=tolerance)
