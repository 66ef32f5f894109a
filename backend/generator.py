"""What strategies see of anything that writes text: generate, stream, score, each awaited or not.

Implementations: the local engine; a server client and wrapping methods later. Prompts are text, token ids or chat messages.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..schema import Completion, Cost, Prompt
from .request import Piece


class GenerationError(RuntimeError):
    """Some sample could not be finished. ``results`` has every completion, the failed ones with ``finish_reason`` "error"."""

    def __init__(self, message: str, results: list[list[Completion]]) -> None:
        super().__init__(message, results)  # both, or a copy by pickle could not be made
        self.results = results

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a continuation is: log-probabilities of its tokens under the model itself (temperature 1, no filters)."""

    token_ids: list[int]
    logprobs: list[float]
    cost: Cost = field(default_factory=Cost)

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation."""
        return sum(self.logprobs)


class Generator(ABC):
    """Writes and scores text. The sync doors work in scripts and inside a running event loop, which they block.

    Options of ``generate``, ``stream`` and their awaited twins: ``n`` samples a prompt; ``max_tokens`` (default: the model's own,
    else all the room there is); ``min_tokens``; ``stop``: strings and token ids, beside the checkpoint's own end tokens unless
    ``ignore_eos``; ``include_stop`` leaves the stop in the text; ``logprobs``: "raw" (of the model) or "processed" (of what was
    sampled from); ``certainty``: whether to say how certain the model was at each token; ``seed``: None draws one, and the
    completion records it; ``first``: number of the first sample, so that the samples of one seed can be drawn in several calls;
    ``chat``: what a chat template is given beside the messages, such as ``{"enable_thinking": False, "tools": […]}``;
    ``parse_special``: whether prompt text that spells a special token becomes that token: None, raw text does, as it is how a
    chat rendered by hand is given, and the contents of messages do not, so that none can end its turn; and the fields of
    :class:`Sampling`. A stop string that is the text of a special token stops at that token too. A last message of the
    assistant is continued.

    Randomness follows from the seed, the prompt's token ids and the sample's number: with one seed many prompts get noise of
    their own each, and a prompt's texts are the same whatever else is asked in the call.
    """

    @abstractmethod
    def generate(self, prompts: Any, *, progress: bool | None = None, **options: Any) -> Any:
        """Completions of one prompt (a list of ``n``) or of a list of prompts (a list of such lists, in order).

        ``progress``: a progress bar; None shows one for several prompts on a terminal. Ctrl-C cancels and returns what there is.
        Raises ``ValueError`` or ``TypeError`` for bad input, before any work; :class:`GenerationError` if a sample failed.
        """

    @abstractmethod
    async def agenerate(self, prompts: Any, **options: Any) -> Any:
        """As :meth:`generate`; cancelling the task cancels the requests."""

    @abstractmethod
    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Piece]:
        """Pieces of one completion as they come; the last carries it whole. Closing the iterator cancels the request."""

    @abstractmethod
    def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[Piece]:
        """As :meth:`stream`."""

    @abstractmethod
    def score(self, prompt: Prompt, continuations: Any = None, *, labels: Any = None, **encoding: Any) -> Any:
        """With ``continuations`` (texts or token ids): a :class:`Score` each. A text becomes ids that show it behind the prompt.

        With ``labels`` (texts of one token each, or token ids): the model's distribution over just these as the next token.
        ``encoding``: ``chat`` and ``parse_special``, as of ``generate``.
        """

    @abstractmethod
    async def ascore(self, prompt: Prompt, continuations: Any = None, *, labels: Any = None, **encoding: Any) -> Any:
        """As :meth:`score`."""


def progress_bar(total: int, progress: bool | None) -> Any:
    """A bar over ``total`` prompts; None: only for several, on a terminal."""
    from tqdm import tqdm

    shown = progress if progress is not None else total > 1 and sys.stderr.isatty()
    return tqdm(total=total, disable=not shown, unit="prompt", leave=False)
