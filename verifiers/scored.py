"""What reward models of all kinds share as verifiers: candidates shown to one model, its logits made scores, scores verdicts.

A candidate that cannot be shown or read is unknown, with the reason; one that the model makes no number of is an error.
"""

from __future__ import annotations

import asyncio
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ..backend.model import Model
from ..backend.text import Text
from ..checks import number
from ..schema import Cost, Problem, Status, Verdict
from .heads import Head
from .prompts import Shown
from .reader import Reader, Reading
from .verifier import Verifier


class Scored(Verifier):
    """Base of verifiers that read logits off ``model``. ``threshold``: None leaves every verdict unknown, and only scored."""

    def __init__(self, model: Model, head: Head, *, setting: str, threshold: float | None, kv_slots: int | None) -> None:
        self.reader = Reader(model, head, kv_slots=kv_slots)
        self.threshold = threshold
        self.parameters = model.info.parameters
        self.name = model.info.name + setting + ("" if threshold is None else f">={threshold:g}")

    @property
    def cost(self) -> Cost:
        """Everything computed so far, by whomever it was asked; ``forwards`` are real model calls."""
        return self.reader.cost

    async def ajudge(self, problem: Problem, candidates: Sequence[str]) -> list[Verdict]:
        """Scored verdicts, with what each cost beyond what was read before."""
        found = [self._shown(problem, candidate) for candidate in candidates]
        futures = self.reader.read([shown for shown in found if not isinstance(shown, Verdict)])
        read = iter(await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True))
        return [shown if isinstance(shown, Verdict) else self._verdict(next(read)) for shown in found]

    def close(self) -> None:
        """Forget what was read, and read no more."""
        self.reader.close()

    @abstractmethod
    def show(self, question: str, candidate: str) -> Shown | None:
        """Token ids of a candidate and the places to read; None where there is nothing to judge."""

    @abstractmethod
    def score(self, logits: Sequence[float]) -> tuple[float, Mapping[str, Any]]:
        """The score of a candidate from the logits at its places, and what else its verdict tells."""

    def _shown(self, problem: Problem, candidate: str) -> Shown | Verdict:
        """What to read, or the verdict where there is nothing to."""
        try:
            shown = self.show(problem.question, candidate)
        except ValueError as e:
            return Verdict("error", None, str(e), self.name)
        if shown is None:
            return Verdict("unknown", None, "nothing to judge", self.name)
        if (tokens := shown[1][-1] + 1) > self.reader.longest:
            return Verdict("unknown", None, f"{tokens} tokens; there is room for {self.reader.longest}", self.name)
        return shown

    def _verdict(self, read: Reading | BaseException) -> Verdict:
        if isinstance(read, FloatingPointError):
            return Verdict("error", None, str(read), self.name)
        if isinstance(read, BaseException):
            raise read
        score, meta = self.score(read.logits)
        status: Status = "unknown"
        if self.threshold is not None:
            status = "correct" if score >= self.threshold else "wrong"
        return Verdict(status, score, "", self.name, read.cost, meta=meta)


def tokenizer(model: Model) -> Text:
    """The model's. Raises ``ValueError`` for one without."""
    if model.text is None:
        raise ValueError(f"{model.info.name} has no tokenizer, and a reward model reads text")
    return model.text


def check_threshold(threshold: float | None, *, probability: bool = True) -> None:
    """Raises ``ValueError`` for one that no score is compared with in earnest."""
    if threshold is not None:
        within, what = ((0.0, 1.0), "from 0 to 1, as scores are") if probability else ((-math.inf, math.inf), "a finite number")
        number("threshold", threshold, lambda x: within[0] <= x <= within[1] and math.isfinite(x), what)


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow."""
    small = math.exp(-abs(logit))
    return (1.0 if logit >= 0 else small) / (1.0 + small)
