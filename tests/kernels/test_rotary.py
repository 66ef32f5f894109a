"""Rotary embedding against rotations of complex numbers."""

from __future__ import annotations

import cmath

import pytest
import torch

from forethought.kernels.rotary import Rotary, rotate

FREQUENCIES = torch.tensor([1.0, 0.31, 0.007])


def slowly(x, position, frequencies, interleaved):
    """One vector: channel pairs as complex numbers, turned one by one."""
    out, half = x.tolist(), len(frequencies)
    for i, frequency in enumerate(frequencies.tolist()):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        z = complex(out[a], out[b]) * cmath.exp(1j * position * frequency)
        out[a], out[b] = z.real, z.imag
    return torch.tensor(out, dtype=torch.float64)


@pytest.fixture(params=[False, True], ids=["halves", "interleaved"])
def rotary(request):
    return Rotary(FREQUENCIES.double(), request.param)


@pytest.mark.parametrize("dim", [6, 9])
def test_rotation_is_the_complex_one(rotary, dim):
    """All channels, or the first 6 of 9: the others pass."""
    x, positions = torch.randn(5, 2, dim).double(), torch.tensor([0, 1, -7, 300, 20000])
    turned = rotary.rotate(x, positions)
    for t, position in enumerate(positions.tolist()):
        for h in range(2):
            want = slowly(x[t, h], position, rotary.frequencies, rotary.interleaved)
            torch.testing.assert_close(turned[t, h], want, rtol=0, atol=1e-10)
    assert torch.equal(turned[0], x[0])
    assert torch.equal(turned[..., rotary.width :], x[..., rotary.width :])


def test_turns_add_up_and_undo_each_other(rotary):
    x, there, back = torch.randn(4, 3, 8).double(), torch.tensor([5, 900, -3, 0]), torch.tensor([-5, 100, 3, 7])
    twice = rotary.rotate(rotary.rotate(x, there), back)
    torch.testing.assert_close(twice, rotary.rotate(x, there + back), rtol=0, atol=1e-10)
    torch.testing.assert_close(rotary.rotate(rotary.rotate(x, there), -there), x, rtol=0, atol=1e-10)


def test_scores_depend_on_distance_only(rotary):
    """Why a part can be moved: turning the query by -d is turning the keys by d."""
    q, k = torch.randn(1, 1, 8).double(), torch.randn(1, 1, 8).double()

    def score(i, j):
        return (rotary.rotate(q, torch.tensor([i])) * rotary.rotate(k, torch.tensor([j]))).sum()

    for d in (-40, 3, 1000):
        torch.testing.assert_close(score(12, 5 + d), score(12 - d, 5), rtol=0, atol=1e-10)


def test_cos_and_sin_are_never_scaled(rotary):
    cos, sin = rotary.cos_sin(torch.tensor([[0, 3], [10**5, -4]]))
    assert cos.shape == sin.shape == (2, 2, 3)
    torch.testing.assert_close(cos**2 + sin**2, torch.ones_like(cos), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_turned_in_float32(dtype):
    """Computed in its own dtype, an angle of thousands of radians would be noise."""
    rotary, x = Rotary(FREQUENCIES), torch.randn(1, 2, 6).to(dtype)
    turned = rotary.rotate(x, torch.tensor([4099]))
    assert turned.dtype == dtype
    want = rotary.rotate(x.float(), torch.tensor([4099]))
    torch.testing.assert_close(turned, want.to(dtype), rtol=0, atol=0)
    assert rotary.rotate(x.double(), torch.tensor([4099])).dtype == torch.float64


def test_a_table_made_beforehand_gives_the_same(rotary):
    x, positions = torch.randn(3, 2, 6).double(), torch.tensor([4, 0, 77])
    cos, sin = rotary.cos_sin(positions)
    assert torch.equal(rotate(x, cos[:, None], sin[:, None], rotary.interleaved), rotary.rotate(x, positions))
