"""What a step of decoding takes: T measured by itself, and every step of an engine as a decoder around its decoder sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import forethought as ft
from forethought.backend.batch import Output, Row, TokenBatch
from forethought.backend.decoder import Decision, Draft
from forethought.backend.kv import Context, KVPool
from forethought.backend.request import Request
from forethought.backend.request import Row as Line

Ids = list[int]
SIZES = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 64)
"""New tokens a row that T is measured at."""


@dataclass(frozen=True)
class Table:
    """T: median seconds of a call; ``seconds[i][j]`` for ``rows[i]`` rows of ``sizes[j]`` new tokens. Linear in between."""

    rows: Sequence[int]
    sizes: Sequence[int]
    seconds: Sequence[Sequence[float]]

    def __call__(self, rows: float, size: float) -> float:
        at_size = [float(np.interp(size, self.sizes, line)) for line in self.seconds]
        return float(np.interp(rows, self.rows, at_size))


class Clock:
    """Measures T behind ``prompt`` tokens computed at once and ``written`` ones computed one by one, all rows together."""

    def __init__(self, model: ft.Model, prompt: int, written: int, rows: Sequence[int], sizes: Sequence[int]) -> None:
        self.model, self.rows, self.sizes = model, rows, sizes
        self._draw = np.random.default_rng(0)
        self._contexts = [self._fill(count, prompt, written) for count in rows]
        self._seconds: list[list[list[float]]] = [[] for _ in rows]

    def _ids(self, count: int) -> Ids:
        return self._draw.integers(0, self.model.info.vocab_size, count).tolist()  # type: ignore[no-any-return]

    def _fill(self, count: int, prompt: int, written: int) -> list[Context]:
        pool = self.model.new_pool(count * (prompt + written + max(self.sizes)))
        contexts = [pool.new_context() for _ in range(count)]
        for rows in (*([Row(context, self._ids(prompt))] for context in contexts), *([] for _ in range(written))):
            call = TokenBatch(pool, rows or [Row(context, self._ids(1)) for context in contexts])
            self.model.forward(call)
            call.commit()
        return contexts

    def take_turn(self, times: int) -> None:
        """Every size ``times`` times, and once before: what others left in the caches is theirs."""
        for contexts, rounds in zip(self._contexts, self._seconds, strict=True):
            rounds += [[self._call(contexts, size) for size in self.sizes] for _ in range(times + 1)][1:]

    def _call(self, contexts: Sequence[Context], size: int) -> float:
        drafts = [self._ids(size) for _ in contexts]
        start = time.perf_counter()
        call = TokenBatch(contexts[0].pool, [Row(context, ids) for context, ids in zip(contexts, drafts, strict=True)])
        logits = self.model.forward(call).logits
        assert logits is not None
        logits.argmax(-1).tolist()
        call.rollback()
        return time.perf_counter() - start

    def table(self) -> Table:
        """Medians since the last table."""
        seconds, self._seconds = self._seconds, [[] for _ in self.rows]
        return Table(self.rows, self.sizes, np.median(seconds, 1).tolist())


# ---- what is compared -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Step:
    """One call after the prompts, all rows together."""

    rows: int
    drafted: int
    tokens: int = 0
    """That became text."""
    drafting: float = 0.0
    """Seconds before the call."""
    seconds: float = 0.0
    """From the beginning of this step's drafting to that of the next one's."""


@dataclass(slots=True)
class Tally:
    """What a contender did in one repeat."""

    seconds: float = 0.0
    outputs: list[Ids] = field(default_factory=list)
    given: int = 0
    """Tokens that came of calls which are not in ``forwards``."""
    forwards: int = 0
    """Calls that could have verified a draft, request by request."""
    drafted: int = 0
    accepted: int = 0
    drafting: int = 0
    """Tokens that the draft model computed."""
    steps: list[Step] = field(default_factory=list)
    """Those that computed no prompts beside."""

    @property
    def tokens(self) -> int:
        return sum(map(len, self.outputs))

    @property
    def mat(self) -> float:
        """Mean accepted tokens, and the one that every call adds."""
        return (self.tokens - self.given) / max(1, self.forwards)

    @property
    def overall(self) -> float:
        """Tokens a second, prompts included."""
        return self.tokens / self.seconds

    @property
    def speed(self) -> float:
        """Tokens a second of decoding alone."""
        return rate(self.steps, lambda step: step.seconds)

    def allowed(self, table: Table) -> float:
        """The same by ``table`` and the time that drafting took."""
        return rate(self.steps, lambda step: told(step, table))


def told(step: Step, table: Table) -> float:
    """What ``table`` says a step takes, in seconds."""
    return table(step.rows, 1 + step.drafted / step.rows) + step.drafting


def rate(steps: Sequence[Step], seconds: Callable[[Step], float]) -> float:
    if not steps:
        raise ValueError("no step of decoding alone: longer outputs are needed")
    return sum(step.tokens for step in steps) / sum(map(seconds, steps))


class Watched(ft.Decoder):
    """``inner``, and what its steps were."""

    def __init__(self, inner: ft.Decoder) -> None:
        self.inner, self.exact, self.hidden = inner, inner.exact, inner.hidden
        self.steps: list[Step] = []
        self.forwards = 0
        self._now: Step | None = None
        self._start = 0.0
        self._alone = False

    def bind(self, model: ft.Model) -> None:
        self.inner.bind(model)

    def open(self, request: Request, sample: int, pool: KVPool) -> list[Line]:
        return self.inner.open(request, sample, pool)

    def slots(self, request: Request, pool: KVPool) -> dict[KVPool, int]:
        return self.inner.slots(request, pool)

    def admit(self, row: Line) -> None:
        self.inner.admit(row)

    def draft(self, rows: Sequence[Line], budget: int) -> Draft | None:
        start = time.perf_counter()
        self.close(start)
        draft = self.inner.draft(rows, budget)
        self._now = Step(len(rows), 0 if draft is None else len(draft.ids), drafting=time.perf_counter() - start)
        self._start, self._alone = start, False
        self.forwards += len(rows)
        return draft

    def decide(self, rows: Sequence[Line], draft: Draft | None, output: Output) -> Decision:
        if self._now is not None:
            self._alone = output.tokens == self._now.rows + self._now.drafted
        return self.inner.decide(rows, draft, output)

    def observe(self, row: Line, ids: Sequence[int]) -> None:
        if self._now is not None:
            self._now.tokens += len(ids)
        self.inner.observe(row, ids)

    def preempt(self, row: Line) -> None:
        self.inner.preempt(row)

    def release(self, row: Line, outcome: Any) -> None:
        self.inner.release(row, outcome)

    def close(self, now: float) -> None:
        """The step under way, if there is one, is over."""
        step, self._now = self._now, None
        if step is not None and self._alone:
            step.seconds = now - self._start
            self.steps.append(step)
