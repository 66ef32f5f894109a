"""Process reward models: a score for every step of a solution, from 0 to 1, and one of these for the whole.

Qwen2.5-Math-PRM, Math-Shepherd, RLHFlow, Skywork-o1 and the built-in ``nano-prm``, each in its published input format
(``prompts.py``), on our own model call: a step costs one pass over its own tokens (``reader.py``), however long what stands
before it is. Exact. Not here: training, and long thoughts that a model of 4096 positions has no room for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..backend.load import architecture, load, load_backbone
from ..schema import Problem
from .heads import Classifier, Head, LabelTokens
from .prompts import FORMATS, OF_ARCHITECTURE, Aggregate, Separated, Shown, Spoken
from .scored import Scored, check_threshold, sigmoid, tokenizer
from .verifier import StepScorer

AGGREGATES = ("last", "min", "prod", "mean")


class ProcessRewardModel(Scored, StepScorer):
    """The process reward model in ``name_or_path``, as :func:`forethought.load` takes it.

    ``format``: "qwen", "math-shepherd", "rlhflow", "skywork" or "nano"; None: what the checkpoint's architecture says, where
    that says it. ``aggregate``: how the scores of steps make one, "last", "min", "prod" or "mean"; None: as the format has it.
    It holds for :meth:`ajudge` and :meth:`ascore` alike: under "min" and "prod" a score can only fall as a solution grows.
    ``threshold``: verdicts are correct from this score on, wrong below; without it they are unknown, and only scored; so is a
    text without steps, or that is too long for the model. ``kv_slots``: tokens of KV kept between calls.

    Verdicts have every step's score in ``meta["steps"]``.
    """

    def __init__(
        self, name_or_path: str | Path, format: str | None = None, *, aggregate: Aggregate | None = None,
        threshold: float | None = None, kv_slots: int | None = None, device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto", impl: str = "auto",
    ) -> None:  # fmt: skip
        check_threshold(threshold)
        if aggregate is not None and aggregate not in AGGREGATES:
            raise ValueError(f"aggregate={aggregate!r}: one of {', '.join(AGGREGATES)}")
        chosen = OF_ARCHITECTURE.get(architecture(name_or_path)) if format is None else format
        if chosen not in FORMATS:
            said = f"{name_or_path}: its config does not say the format" if format is None else f"format={format!r}"
            raise ValueError(f"{said}; give one of {', '.join(FORMATS)}")
        self.format = FORMATS[chosen]
        self.aggregate: Aggregate = aggregate or self.format.aggregate
        head: Head
        if isinstance(self.format, Separated):
            prefix = self.format.head
            model, tensors, _ = load_backbone(name_or_path, prefix, device=device, dtype=dtype, impl=impl)
            head, self.text = Classifier.read(tensors, prefix, model.info.width), tokenizer(model)
        else:
            assert isinstance(self.format, Spoken)
            model = load(name_or_path, device=device, dtype=dtype, impl=impl)
            self.text = tokenizer(model)
            head = LabelTokens(*self.format.labels(self.text))
        self.show("1 + 1?", "1 + 1 = 2.\n\nSo 2.")  # refuses a tokenizer of another format
        super().__init__(model, head, setting=f"[{self.aggregate}]", threshold=threshold, kv_slots=kv_slots)

    async def ascore(self, problem: Problem, partials: Sequence[str]) -> list[float]:
        """The aggregate over the steps so far. What was read before is not read again."""
        scores = [verdict.score for verdict in await self.ajudge(problem, partials)]
        return [math.nan if score is None else score for score in scores]

    def show(self, question: str, candidate: str) -> Shown | None:
        steps = self.format.steps(candidate)
        return self.format.show(self.text, question, steps) if steps else None

    def score(self, logits: Sequence[float]) -> tuple[float, Mapping[str, Any]]:
        steps = [sigmoid(logit) for logit in logits]
        return aggregated(steps, self.aggregate), {"steps": steps}


def aggregated(scores: Sequence[float], rule: Aggregate) -> float:
    """One score of a solution from those of its steps, at least one."""
    if rule == "last":
        return scores[-1]
    if rule == "min":
        return min(scores)
    return math.prod(scores) if rule == "prod" else math.fsum(scores) / len(scores)
