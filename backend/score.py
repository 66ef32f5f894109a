"""Log-probabilities of given text: a prompt computed once, its continuations behind forks of it.

Runs on the engine's thread between two steps, in calls of at most a prefill chunk that many short continuations share. Exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from ..kernels.transfer import put
from ..schema import Cost
from .batch import Row, TokenBatch
from .generator import Score
from .kv import Context, PoolFull
from .request import check_ids
from .runner import Runner
from .text import is_listed


def score_continuations(runner: Runner, prompt: list[int], continuations: Sequence[str | Sequence[int]]) -> list[Score]:
    """A score per continuation. Raises ``ValueError`` for empty input or what can never fit, ``FloatingPointError`` for NaN."""
    if not is_listed(continuations):
        raise TypeError(f"continuations={continuations!r}: a list of texts or of lists of token ids")
    texts = [_tokens(runner, prompt, continuation) for continuation in continuations]
    if not texts:
        return []
    _check(runner, prompt, len(prompt) + max(map(len, texts)))
    scores: list[Score] = []
    with _prompt(runner, prompt) as (base, cost):
        logprobs: list[list[float]] = [[] for _ in texts]
        calls = [0] * len(texts)
        for i, start, logits in _branches(runner, base, [[prompt[-1], *text[:-1]] for text in texts]):
            aims = put(texts[i][start : start + len(logits)], logits.device)
            logprobs[i] += _finite(logits.float().log_softmax(-1).gather(1, aims[:, None])[:, 0].tolist())
            calls[i] += 1
        for text, found, forwards in zip(texts, logprobs, calls, strict=True):
            # The prompt's last token is computed once more with each text, whose own last one need not be.
            own = Cost(probe=len(text) - (not scores), forwards=forwards, critical=forwards)
            scores.append(Score(text, found, own if scores else cost + own))
    for score in scores:
        runner.charge(score.cost)
    return scores


def score_labels(runner: Runner, prompt: list[int], labels: Sequence[str | int]) -> dict[str | int, float]:
    """Label -> its share of the next token's probability among the labels. Raises as :func:`score_continuations`."""
    if not is_listed(labels):
        raise TypeError(f"labels={labels!r}: a list of texts of one token each, or of token ids")
    ids = []
    for label in labels:
        tokens = _tokens(runner, prompt, label if isinstance(label, str) else [label])
        if len(tokens) != 1:
            raise ValueError(f"label {label!r} is {len(tokens)} tokens: a label is one")
        ids += tokens
    if len(set(ids)) != len(ids) or not ids:
        raise ValueError(f"labels {list(labels)!r}: at least one, all different tokens")
    _check(runner, prompt, len(prompt))
    with _prompt(runner, prompt) as (base, cost):
        [(_, _, logits)] = _branches(runner, base, [prompt[-1:]])
        shares = _finite(logits[-1, put(ids, logits.device)].float().softmax(0).tolist())
    runner.charge(cost + Cost(forwards=1, critical=1))
    return dict(zip(labels, shares, strict=True))


def _tokens(runner: Runner, prompt: list[int], continuation: str | Sequence[int]) -> list[int]:
    ids: list[int]
    text = runner.model.text
    if not isinstance(continuation, str):
        if not is_listed(continuation):
            raise TypeError(f"{continuation!r}: text or a list of token ids, not {type(continuation).__name__}")
        ids = [*continuation]
    elif text is None:
        raise ValueError(f"{runner.model.info.name} has no tokenizer: give token ids")
    else:
        ids = text.encode_continuation(continuation, prompt)
    if not ids:
        raise ValueError(f"continuation {continuation!r} has no tokens")
    return check_ids(ids, runner.model.info.vocab_size, "continuation")


def _check(runner: Runner, prompt: list[int], longest: int) -> None:
    if not prompt:
        raise ValueError("an empty prompt: nothing comes before the first token (give at least one, such as BOS)")
    positions = runner.model.info.max_positions
    if longest > min(positions, runner.pool.size):
        raise ValueError(f"{longest} tokens to score: the model has {positions} positions, the pool {runner.pool.size} slots")


def _finite(numbers: list[float]) -> list[float]:
    if any(x != x for x in numbers):
        raise FloatingPointError("the model's logits are NaN")
    return numbers


@contextmanager
def _prompt(runner: Runner, ids: list[int]) -> Iterator[tuple[Context, Cost]]:
    """The KV of a prompt but for its last token, found in the prefix tree or computed; left to it if all goes well."""
    context, found = runner.pool.new_context(), runner.tree.match(ids[:-1])
    context.adopt(ids[: len(found)], found)
    forwards, step = 0, runner.prefill_tokens
    try:
        for start in range(len(found), len(ids) - 1, step):
            _call(runner, [Row(context, ids[start : min(start + step, len(ids) - 1)], logits=np.empty(0, np.int64))])
            forwards += 1
        yield context, Cost(prompt=len(ids) - len(found), cached=len(found), forwards=forwards, critical=forwards)
        runner.tree.insert(context.ids, context.slots)
    except FloatingPointError:
        runner.tree.forget(context.ids, runner.pool.sound(context.slots))
        raise
    finally:
        context.release()


def _branches(runner: Runner, base: Context, texts: Sequence[list[int]]) -> Iterator[tuple[int, int, Tensor]]:
    """Compute ``texts`` behind forks of ``base``; yields (text, first token, logits [n, vocabulary]) of each piece of each."""
    budget = max(1, min(runner.prefill_tokens, runner.pool.size - base.size))
    for group in _groups([len(text) for text in texts], budget):
        forks = [base.fork() for _ in group]
        try:
            longest = max(len(texts[i]) for i in group)
            for start in range(0, longest, budget):
                parts = [texts[i][start : start + budget] for i in group]
                logits = _call(runner, [Row(fork, part) for fork, part in zip(forks, parts, strict=True)])
                for i, piece in zip(group, logits.split([len(part) for part in parts]), strict=True):
                    yield i, start, piece
        finally:
            for fork in forks:
                fork.release()


def _groups(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Texts that share calls, in order: at most ``budget`` tokens together, or a single longer one."""
    group: list[int] = []
    for i, length in enumerate(lengths):
        if group and sum(lengths[j] for j in group) + length > budget:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _call(runner: Runner, rows: list[Row]) -> Tensor:
    slots = sum(len(row.ids) for row in rows)
    if not runner.make_free(slots):
        raise PoolFull(f"{slots} slots needed to score, {runner.pool.free} free of {runner.pool.size}")
    batch = TokenBatch(runner.pool, rows, invariant=runner.batch_invariant)
    try:
        logits = runner.call(batch).logits
    except BaseException:
        batch.rollback()
        raise
    batch.commit()
    if logits is None:
        raise ValueError(f"{runner.model.info.name} is a backbone without an LM head: it scores no text")
    return logits
