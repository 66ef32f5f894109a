"""Reads a reward model at places of token sequences, each token once: a text that grows pays only for what is new.

Sequences of all callers share model calls on the device's one thread. The KV of what was read stays in a prefix tree, least
recently used tokens go first; logits read before are remembered, for a causal model they cannot change. Exact. Not here: what
the sequences and the logits mean.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from ..backend.batch import Row, TokenBatch
from ..backend.engine import POOL_BYTES
from ..backend.kv import Context
from ..backend.loop import Loop
from ..backend.model import Model
from ..backend.openmp import release_workers
from ..backend.prefix import PrefixTree
from ..checks import whole
from ..schema import Cost
from .heads import Head

REMEMBERED = 1 << 17
"""Logits kept, those asked for least recently go first."""
SHARED = 16
"""A sequence waits for another that is being read if it has so many more tokens in common with it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read."""

    logits: list[float]
    cost: Cost
    """``verifier``: tokens computed; ``cached``: those that were not computed again."""


@dataclass(eq=False, slots=True)
class _Job:
    ids: list[int]
    places: list[int]
    keys: list[bytes]
    """Of the tokens up to each place."""
    future: Future[Reading] = field(default_factory=Future)
    logits: dict[int, float] = field(default_factory=dict)
    """By place, those known so far."""
    end: int = 0
    """Tokens up to the last place that was not known."""
    start: int = 0
    """Tokens whose KV is found rather than computed."""
    calls: int = 0


class Reader:
    """``head`` on ``model``. Thread-safe; ``close()`` ends it.

    ``kv_slots``: tokens of KV kept; default: what 1 GiB holds, at most 16 full contexts. ``call_tokens``: new tokens a model
    call takes at most.
    """

    def __init__(self, model: Model, head: Head, *, kv_slots: int | None = None, call_tokens: int = 2048) -> None:
        call_tokens = whole("call_tokens", call_tokens, 1)
        kv_slots = None if kv_slots is None else whole("kv_slots", kv_slots, 1)
        if kv_slots is None:
            kv_slots = max(1, min(POOL_BYTES // model.new_pool(1).slot_bytes, 16 * model.info.max_positions))
        self.model, self.head, self.call_tokens = model, head, call_tokens
        self.pool = model.new_pool(kv_slots)
        self.longest = min(model.info.max_positions, kv_slots)
        """Tokens that a sequence may have."""
        self.cost = Cost()
        """Everything computed so far; ``forwards`` are real model calls, each counted once however many shared it."""
        self._hidden = (len(model.info.layers),) if head.hidden else ()
        self._tree = PrefixTree(self.pool)
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._inbox: deque[list[_Job]] = deque()
        self._waiting: list[_Job] = []
        self._closed = False
        self._loop = Loop.of(model.info.device)

    def read(self, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Future[Reading]]:
        """For each (token ids, places) the logits at the places, ascending indices of ids; what is behind the last is ignored.

        Raises ``ValueError`` for places that are not there and for more than :attr:`longest` tokens up to the last. A future
        fails with ``FloatingPointError`` where the model's numbers are not finite.
        """
        if self._closed:
            raise RuntimeError("this reader is closed")
        self._loop.demand()
        jobs = []
        for ids, places in texts:
            if not places or list(places) != sorted(set(places)) or not 0 <= places[0] <= places[-1] < len(ids):
                raise ValueError(f"places={list(places)!r} of {len(ids)} tokens: at least one, ascending")
            if places[-1] >= self.longest:
                raise ValueError(f"{places[-1] + 1} tokens to read; there is room for {self.longest}")
            jobs.append(_Job(list(ids[: places[-1] + 1]), list(places), _keys(ids, places)))
        release_workers()  # the caller waits, the loop's thread computes
        self._inbox.append(jobs)
        self._loop.wake(self)
        return [job.future for job in jobs]

    def close(self) -> None:
        """Refuse new work, fail what waits, forget what was read."""
        self._closed = True
        if self._loop.alive:
            self._loop.wake(self)

    # ---- on the loop's thread ------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """One group of sequences; whether more wait. Called by the device's loop only."""
        while self._inbox:
            self._waiting += [job for job in self._inbox.popleft() if job.future.set_running_or_notify_cancel()]
        if self._closed:
            for job in self._waiting:
                job.future.set_exception(RuntimeError("this reader is closed"))
            self._waiting = []
            self._known.clear()
            self._tree.clear()
        elif group := self._group():
            self._guarded(group)
        return bool(self._waiting or self._inbox)

    def _group(self) -> list[_Job]:
        """Take from those who wait as many as a call has room for; answer those who ask for nothing new."""
        group, waiting, tokens, slots = list[_Job](), list[_Job](), 0, 0
        for i, job in enumerate(self._waiting):
            missing = self._recall(job)
            if not missing:
                self._answer(job, Cost(cached=len(job.ids)))
                continue
            job.start, job.end = min(len(self._tree.match(job.ids)), missing[0]), missing[-1] + 1
            beyond = job.start + SHARED
            if any(job.ids[:beyond] == other.ids[:beyond] for other in group):
                waiting.append(job)
                continue
            tokens, slots = tokens + job.end - job.start, slots + job.end
            if group and (tokens > self.call_tokens or slots > self.pool.size):
                waiting += self._waiting[i:]
                break
            group.append(job)
        self._waiting = waiting
        return group

    def _recall(self, job: _Job) -> list[int]:
        """Look up what was read before; the places that were not."""
        for place, key in zip(job.places, job.keys, strict=True):
            if key in self._known:
                self._known.move_to_end(key)
                job.logits[place] = self._known[key]
        return [place for place in job.places if place not in job.logits]

    def _guarded(self, group: list[_Job]) -> None:
        """Read a group. If that fails the first is tried once more by itself, so that what is wrong with one ends with it."""
        begin = time.perf_counter()
        try:
            self._read(group)
        except BaseException as e:
            if len(group) == 1:
                group[0].future.set_exception(e)
            else:
                self._waiting = group[1:] + self._waiting
                self._guarded(group[:1])
            return
        seconds = time.perf_counter() - begin
        for job in group:
            self._answer(job, Cost(
                verifier=job.end - job.start, cached=job.start, forwards=job.calls, critical=job.calls,
                peak_kv_bytes=job.end * self.pool.slot_bytes, seconds=seconds,
            ))  # fmt: skip

    def _read(self, group: list[_Job]) -> None:
        contexts = [self.pool.new_context() for _ in group]
        try:
            for job, context in zip(group, contexts, strict=True):
                found = self._tree.match(job.ids[: job.start])
                context.adopt(job.ids[: len(found)], found)
                job.start, job.calls = len(found), 0
            while left := [pair for pair in zip(group, contexts, strict=True) if pair[1].size < pair[0].end]:
                self._call(left)
            for job, context in zip(group, contexts, strict=True):
                if all(map(math.isfinite, job.logits.values())):
                    self._tree.insert(context.ids, context.slots)
        finally:
            for context in contexts:
                context.release()

    def _call(self, left: Sequence[tuple[_Job, Context]]) -> None:
        """One model call over the next tokens, in order, as far as it has room."""
        rows, asked, room = list[Row](), list[tuple[_Job, int]](), self.call_tokens
        for job, context in left:
            first, last = context.size, min(job.end, context.size + room)
            if first == last:
                break
            places = [place for place in job.places if first <= place < last and place not in job.logits]
            rows.append(Row(context, job.ids[first:last], logits=np.array(places, np.int64) - first))
            asked += [(job, place) for place in places]
            job.calls += 1
            room -= last - first
        new = self.call_tokens - room
        if new > self.pool.free:
            self._tree.evict(max(new - self.pool.free, self.pool.size // 64))
        batch = TokenBatch(self.pool, rows, hidden=self._hidden)
        try:
            logits = self.head(self.model.forward(batch)).tolist()
        except BaseException:
            batch.rollback()
            raise
        batch.commit()
        self.cost += Cost(verifier=new, forwards=1, critical=1)
        for (job, place), logit in zip(asked, logits, strict=True):
            job.logits[place] = logit

    def _answer(self, job: _Job, cost: Cost) -> None:
        logits = [job.logits[place] for place in job.places]
        if not all(map(math.isfinite, logits)):
            job.future.set_exception(FloatingPointError(f"{self.model.info.name}: a score that is not a finite number"))
            return
        self._known.update(zip(job.keys, logits, strict=True))
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        job.future.set_result(Reading(logits, cost))


def _keys(ids: Sequence[int], places: Sequence[int]) -> list[bytes]:
    """What tells the sequences up to each place apart."""
    digest, keys, begin = hashlib.blake2b(digest_size=16), [], 0
    for place in places:
        digest.update(np.array(ids[begin : place + 1], np.int64).tobytes())
        keys.append(digest.copy().digest())
        begin = place + 1
    return keys
