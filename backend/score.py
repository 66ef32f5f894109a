"""Log-probabilities of given text: a prompt computed once, its continuations behind forks of it.

Runs on the engine's thread between two steps, in calls no larger than a prefill chunk. Exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..schema import Cost
from .batch import Row, TokenBatch
from .generator import Score
from .kv import Context, PoolFull

if TYPE_CHECKING:
    from .engine import Engine


def score_continuations(engine: Engine, prompt: list[int], continuations: Sequence[str | Sequence[int]]) -> list[Score]:
    """A score per continuation. Raises ``ValueError`` for empty input or what can never fit."""
    if isinstance(continuations, str):
        raise TypeError("continuations are a list, not one text")
    texts = [_tokens(engine, continuation) for continuation in continuations]
    longest = len(prompt) + max(map(len, texts), default=0)
    _check(engine, prompt, longest)
    scores: list[Score] = []
    with _Prompt(engine, prompt) as base:
        for text in texts:
            branch = base.context.fork()
            try:
                logprobs, forwards = base.feed(branch, [prompt[-1], *text[:-1]], text)
            finally:
                branch.release()
            cost = Cost(probe=len(text), forwards=forwards, critical=forwards)
            scores.append(Score(text, logprobs, cost if scores else cost + base.cost))
    return scores


def score_labels(engine: Engine, prompt: list[int], labels: Sequence[str | int]) -> dict[str | int, float]:
    """Label -> its share of the next token's probability among the labels."""
    ids = []
    for label in labels:
        tokens = [label] if isinstance(label, int) else _tokens(engine, label)
        if len(tokens) != 1:
            raise ValueError(f"label {label!r} is {len(tokens)} tokens: a label is one")
        ids.append(tokens[0])
    if len(set(ids)) != len(ids) or not ids:
        raise ValueError(f"labels {list(labels)!r}: at least one, all different tokens")
    _check(engine, prompt, len(prompt))
    with _Prompt(engine, prompt) as base:
        branch = base.context.fork()
        try:
            [logits] = base.logits(branch, prompt[-1:])
        finally:
            branch.release()
    shares = logits[-1, torch.tensor(ids, device=logits.device)].float().softmax(0).tolist()
    return dict(zip(labels, shares, strict=True))


def _tokens(engine: Engine, continuation: str | Sequence[int]) -> list[int]:
    if not isinstance(continuation, str):
        ids = [int(i) for i in continuation]
    elif engine.model.text is None:
        raise ValueError(f"{engine.model.info.name} has no tokenizer: give token ids")
    else:
        ids = engine.model.text.encode_continuation(continuation)
    if not ids:
        raise ValueError(f"continuation {continuation!r} has no tokens")
    return ids


def _check(engine: Engine, prompt: list[int], longest: int) -> None:
    if not prompt:
        raise ValueError("an empty prompt: nothing comes before the first token (give at least one, such as BOS)")
    if longest > min(engine.model.info.max_positions, engine.pool.size):
        raise ValueError(
            f"{longest} tokens to score: {engine.model.info.max_positions} positions, a pool of {engine.pool.size} slots"
        )


class _Prompt:
    """A prompt's KV but for its last token, found in the prefix tree or computed, and left to it afterwards."""

    def __init__(self, engine: Engine, ids: list[int]) -> None:
        self.engine, self.ids = engine, ids
        self.context = engine.pool.new_context()
        self.cost = Cost()

    def __enter__(self) -> _Prompt:
        found = self.engine.tree.match(self.ids[:-1])
        self.context.adopt(self.ids[: len(found)], found)
        rest = self.ids[len(found) : -1]
        try:
            forwards = sum(1 for _ in self.logits(self.context, rest, wanted=False)) if rest else 0
        except BaseException:
            self.context.release()
            raise
        self.cost = Cost(prompt=len(rest) + 1, cached=len(found), forwards=forwards, critical=forwards)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.context.size:
            self.engine.tree.insert(self.context.ids, self.context.slots)
        self.context.release()

    def logits(self, context: Context, ids: Sequence[int], wanted: bool = True) -> Iterator[torch.Tensor]:
        """Compute ``ids`` behind ``context``, chunk by chunk; the logits of each chunk."""
        step = self.engine.prefill_tokens
        for start in range(0, len(ids), step):
            piece = list(ids[start : start + step])
            if not self.engine.make_free(len(piece)):
                raise PoolFull(f"{len(piece)} slots needed to score, {self.engine.pool.free} free of {self.engine.pool.size}")
            row = Row(context, piece, logits=None if wanted else np.empty(0, np.int64))
            batch = TokenBatch(self.engine.pool, [row])
            try:
                output = self.engine.call(batch)
            except BaseException:
                batch.rollback()
                raise
            batch.commit()
            if output.logits is None:
                raise ValueError(f"{self.engine.model.info.name} is a backbone without an LM head: it scores no text")
            yield output.logits

    def feed(self, context: Context, ids: Sequence[int], targets: Sequence[int]) -> tuple[list[float], int]:
        """Log-probability of each of ``targets`` as the next token after that of ``ids``; and how many calls it took."""
        found: list[float] = []
        calls = 0
        for logits in self.logits(context, ids):
            aims = torch.tensor(targets[len(found) : len(found) + len(logits)], device=logits.device)
            found += logits.float().log_softmax(-1).gather(1, aims[:, None])[:, 0].tolist()
            calls += 1
        return found, calls
