"""Counter-based randomness: every draw is a hash of what it is for, so it depends on nothing that shares the batch.

The key of a draw is (seed, sample, lane, output position); lanes keep purposes apart. Noise over a vocabulary is Gumbel,
so that ``argmax(log p + noise)`` is a draw from p. The mixing function is the 64-bit finaliser of MurmurHash3.
"""

from __future__ import annotations

import math
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_M1, _M2 = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53
_STEP = 0x9E3779B97F4A7C15


class Lane(IntEnum):
    """What a draw is for."""

    TARGET = 0
    DRAFT = 1
    COIN = 2
    RESIDUAL = 3
    CALLER = 4


def mix(*parts: int) -> int:
    """A 64-bit hash of whole numbers, order and count included."""
    state = len(parts)
    for part in parts:
        state = _finalise(((state + _STEP) ^ (part & _MASK)) & _MASK)
    return state


def _finalise(h: int) -> int:
    h ^= h >> 33
    h = h * _M1 & _MASK
    h ^= h >> 33
    h = h * _M2 & _MASK
    return h ^ h >> 33


def stream(seed: int, sample: int, lane: Lane, row: int = 0) -> int:
    """The key of one purpose of one of a sample's rows; combine it with a position by :func:`keys`."""
    return mix(seed, sample, lane, row)


def keys(streams: np.ndarray, positions: np.ndarray) -> Tensor:
    """[N] int64 keys of (stream, position) pairs; both [N] uint64."""
    h = streams ^ (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(_STEP)
    _rounds(h, np.empty_like(h))
    h ^= h >> np.uint64(33)
    return torch.from_numpy(h.view(np.int64))


def _rounds(h: np.ndarray, space: np.ndarray) -> None:
    """The finaliser of ``h`` uint64 in place, but for its last step, which changes lower bits alone; ``space`` is like ``h``."""
    for multiplier in (_M1, _M2):
        np.right_shift(h, np.uint64(33), out=space)
        np.bitwise_xor(h, space, out=h)
        np.multiply(h, np.uint64(multiplier), out=h)


def gumbel(key: Tensor, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise for ``key`` [N] and token ids [N, M] or [M]: float32 [N, M], the same on every device."""
    h = (tokens + 1) * _signed(_STEP) ^ key.unsqueeze(-1)
    for multiplier in (_M1, _M2):  # as in _rounds
        h ^= (h >> 33).bitwise_and_(0x7FFFFFFF)
        h *= _signed(multiplier)
    return _gumbel((h >> 32).bitwise_and_(0xFFFFFFFF))


def _gumbel(bits: Tensor) -> Tensor:
    # 32 bits as u in (0, 1): small u, where the winners are, keeps full precision in -log1p(-u).
    u = bits.to(torch.float32).add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    return u.neg_().log1p_().neg_().log_().neg_()


def hashes(key: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """What noise for ``key`` (one, or [M]) and ``tokens`` [M], both uint64, is made of: [M] uint32; the smaller, the more."""
    h = (tokens + np.uint64(1)) * np.uint64(_STEP) ^ key
    _rounds(h, np.empty_like(h))
    bits: np.ndarray = (h >> np.uint64(32)).astype(np.uint32)
    return bits


def hash_rows(keys: np.ndarray, vocabulary: int) -> np.ndarray:
    """:func:`hashes` of every token of ``vocabulary`` for each of ``keys`` [N] uint64: [N, vocabulary] uint32."""
    h = _steps(vocabulary) ^ keys[:, None]
    _rounds(h, np.empty_like(h))
    h >>= np.uint64(32)
    bits: np.ndarray = h.astype(np.uint32)
    return bits


def gumbel_of(bits: np.ndarray) -> np.ndarray:
    """The noise float32 that :func:`gumbel` makes of such ``bits``, of any shape."""
    u = bits.astype(np.float32)  # as in _gumbel; numpy is sooner begun, but its logarithms are others
    u += np.float32(0.5)
    u *= np.float32(2.0**-32)
    np.minimum(u, np.float32(1 - 2.0**-24), out=u)
    np.negative(u, out=u)
    torch.from_numpy(u).log1p_().neg_().log_().neg_()
    return u


def fewer_than(noise: np.ndarray) -> np.ndarray:
    """For ``noise`` [N]: a number [N] float64 that the bits of all larger noise are below."""
    # One per million and one more: what float32 may have rounded.
    with np.errstate(over="ignore"):
        below: np.ndarray = -np.expm1(-np.exp(-noise)) * (2.0**32 * (1 + 1e-6)) + 1
    return below


_BLOCK = 1 << 14
"""Tokens hashed at once: what is in between stays in the cache."""


def lucky(key: int, vocabulary: int, below: float) -> np.ndarray:
    """The tokens of ``vocabulary``, ascending, whose :func:`hashes` for ``key`` are below ``below``."""
    steps = _steps(vocabulary)
    # Nothing is shifted down to 32 bits: the limit is shifted up.
    limit = np.uint64((math.ceil(min(max(below, 1.0), 2.0**32)) << 32) - 1)
    found = np.empty(vocabulary, np.bool_)
    space = np.empty((2, min(_BLOCK, vocabulary)), np.uint64)
    for begin in range(0, vocabulary, _BLOCK):
        part = steps[begin : begin + _BLOCK]
        h, half = space[:, : len(part)]
        np.bitwise_xor(part, np.uint64(key), out=h)
        _rounds(h, half)
        np.less_equal(h, limit, out=found[begin : begin + _BLOCK])
    return np.flatnonzero(found)


@lru_cache(maxsize=4)
def _steps(vocabulary: int) -> np.ndarray:
    """What each token adds to a hash."""
    steps: np.ndarray = np.arange(1, vocabulary + 1, dtype=np.uint64) * np.uint64(_STEP)
    return steps


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
