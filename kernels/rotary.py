"""Rotary position embedding: a table of angles, applied and moved.

Cos and sin are never scaled: YaRN's attention factor belongs in the softmax scale, so that re-rotating a stored
key changes its position and nothing else. Source: RoFormer (arXiv 2104.09864); scalings are set where tables are made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotary:
    """The rotation of one layer: ``frequencies`` [width / 2] in radians per position; the first ``width`` channels rotate.

    ``interleaved`` pairs channels (0, 1), (2, 3), …; otherwise (0, width / 2), (1, width / 2 + 1), ….
    """

    frequencies: Tensor
    interleaved: bool = False

    @property
    def width(self) -> int:
        return 2 * len(self.frequencies)

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [..., width / 2] at ``positions`` [...], in the dtype of the frequencies."""
        angles = positions.to(self.frequencies.dtype)[..., None] * self.frequencies.to(positions.device)
        return angles.cos(), angles.sin()

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """``x`` [..., heads, dim] turned by ``positions`` [...] (negative turns back), computed in float32 or better."""
        cos, sin = self.cos_sin(positions)
        wide = torch.promote_types(x.dtype, self.frequencies.dtype)
        return rotate(x.to(wide), cos.to(wide).unsqueeze(-2), sin.to(wide).unsqueeze(-2), self.interleaved).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turn the first ``2 * cos.shape[-1]`` channels of ``x`` by the given angles; the rest pass."""
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    halves = (a * cos - b * sin, b * cos + a * sin)
    out = torch.stack(halves, -1).flatten(-2) if interleaved else torch.cat(halves, -1)
    return torch.cat((out, rest), -1) if rest.shape[-1] else out
