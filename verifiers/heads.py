"""What a reward model makes of a token: one logit, from the last hidden state or from two of its next-token logits.

The probability that all is well so far is the sigmoid of that logit, whichever kind it is: a softmax over two classes, or over
two label tokens, is the sigmoid of their difference. Computed in float32. Not here: where it is read, and how scores add up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend.batch import Output


class Head(ABC):
    """Reads model outputs."""

    hidden: bool
    """Whether it needs the last, normed hidden state rather than logits."""

    @abstractmethod
    def __call__(self, output: Output) -> Tensor:
        """Logits [N], float32, of the N asked tokens."""


@dataclass(frozen=True)
class LabelTokens(Head):
    """How much likelier the token ``good`` comes next than ``bad``."""

    good: int
    bad: int
    hidden = False

    def __call__(self, output: Output) -> Tensor:
        logits = output.logits
        assert logits is not None
        return logits[:, self.good].float() - logits[:, self.bad].float()


@dataclass(frozen=True)
class Classifier(Head):
    """Linear layers with ReLU between them; one label, or the second of two against the first."""

    layers: tuple[tuple[Tensor, Tensor | None], ...]
    """Weight [out, in] and bias [out], float32."""
    hidden = True

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], name: str, width: int) -> Classifier:
        """From ``name.weight`` or, of two layers, ``name.0.weight`` and ``name.2.weight``, with their biases where there are any.

        ``width``: of the model. Raises ``ValueError`` for tensors that are not there, left over, or do not fit.
        """
        stems = [name] if f"{name}.weight" in tensors else [f"{name}.0", f"{name}.2"]
        known = {f"{stem}.{part}" for stem in stems for part in ("weight", "bias")}
        shapes = {key: list(tensor.shape) for key, tensor in tensors.items()}
        if not all(f"{stem}.weight" in tensors for stem in stems) or set(tensors) - known:
            raise ValueError(f"a head {name}, or {name}.0 and {name}.2, is expected; the checkpoint has {shapes or 'none'}")
        layers = [(tensors[f"{stem}.weight"].float(), tensors.get(f"{stem}.bias")) for stem in stems]
        sizes = [width, *(len(weight) for weight, _ in layers)]
        for (weight, bias), ins, outs in zip(layers, sizes, sizes[1:], strict=False):
            if weight.shape != (outs, ins) or (bias is not None and bias.shape != (outs,)):
                raise ValueError(f"the head {name} does not fit a model of width {width}: {shapes}")
        if sizes[-1] not in (1, 2):
            raise ValueError(f"the head {name} has {sizes[-1]} labels: a score is made of 1 or 2")
        return cls(tuple((weight, None if bias is None else bias.float()) for weight, bias in layers))

    @torch.inference_mode()
    def __call__(self, output: Output) -> Tensor:
        x = next(iter(output.hidden.values())).float()
        for i, (weight, bias) in enumerate(self.layers):
            x = F.linear(F.relu(x) if i else x, weight, bias)
        return x[:, 0] if x.shape[1] == 1 else x[:, 1] - x[:, 0]
