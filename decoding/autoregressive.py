"""Plain decoding: one token per forward, the baseline of everything else.

Exact. Cost per token: one forward. It drafts nothing and keeps no state of its own; see ``sampling.py`` for how a token is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..backend.batch import Output
from ..backend.decoder import Decision, Decoder, Draft
from ..backend.request import Row
from .sampling import Sampler


class Autoregressive(Decoder):
    """One token at a time."""

    def __init__(self) -> None:
        self._sampler = Sampler()

    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        if output.logits is None:
            raise ValueError("this model is a backbone without an LM head: it writes no text")
        drawn = self._sampler.draw(rows, output.logits)
        return Decision(emitted=drawn.tokens, logprobs=drawn.logprobs, certainty=drawn.certainty, failed=drawn.failed)
