"""Rotary angles as a checkpoint's config asks for them: default, linear, dynamic, llama3 and YaRN scaling.

Frequencies of the scaled kinds come from transformers' own functions; angles are unscaled (YaRN's factor is returned
beside them, for the softmax scale). Dynamic scaling is computed position by position, as decoding one token at a time does,
so that a result does not depend on how a prompt was cut into chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


def rope(config: Any, dim: int) -> tuple[Tensor, float, int]:
    """Frequencies [dim / 2] in radians per position, YaRN's attention factor (else 1), and how many positions the model has."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = config.rope_parameters
    kind = settings.get("rope_type", "default")
    if kind not in KINDS:
        raise ValueError(f"rope_type={kind!r}: one of {', '.join(KINDS)}; other kinds run through the adapter")
    if settings.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor={settings['partial_rotary_factor']}: this block rotates whole heads")
    limit = positions(settings, config.max_position_embeddings)
    plain = 1.0 / settings["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
    if kind in ("default", "dynamic"):
        return plain, 1.0, limit
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return frequencies, float(factor), limit


def positions(settings: dict[str, Any], limit: int) -> int:
    """How many positions a scaling makes of a config's ``max_position_embeddings``, which seldom says so itself."""
    kind, factor = settings.get("rope_type", "default"), settings.get("factor") or 1.0
    if kind == "yarn":
        return max(limit, int(settings.get("original_max_position_embeddings", limit) * factor))
    return int(limit * factor) if kind in ("linear", "dynamic") else limit


def angles(config: Any, frequencies: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each [length, dim / 2] float32."""
    settings = config.rope_parameters
    steps = torch.arange(length, dtype=torch.float32)[:, None]
    table = steps * frequencies
    original = config.max_position_embeddings
    if settings.get("rope_type") == "dynamic" and length > original:
        half, factor = len(frequencies), settings["factor"]
        seen = steps[original:] + 1
        base = settings["rope_theta"] * (factor * seen / original - (factor - 1)) ** (half / (half - 1))
        table[original:] = steps[original:] * base ** -(torch.arange(half) / half)
    return table.cos(), table.sin()
