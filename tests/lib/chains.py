"""Prefill as on a card, on a CPU: the chains by the library, the rest by plain torch. Not a test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from forethought.kernels import prefill, reference
from forethought.kernels.views import Views

HERE = torch.device("cpu")


def together(q: Tensor, k: Tensor, v: Tensor, views: Views, least: int, window: int | None = None, **options: Any) -> Tensor:
    """The output of a call of which some row is a chain of ``least`` queries."""
    scale = q.shape[2] ** -0.5
    found = prefill.split(views, window, least, HERE)
    assert found is not None

    def others(q: Tensor, views: Views) -> Tensor:
        views.check(len(k))
        return reference.attend(q, k, v, views, scale=scale, window=window, **options)[0]

    return prefill.attend(q, k, v, found, scale, others)
