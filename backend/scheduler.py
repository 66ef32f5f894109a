"""Who runs in the next step: admission, prompt sharing, room in the pool, preemption. Host bookkeeping only.

Admission is optimistic: a sample starts when its prompt fits now. When room runs out the cache is evicted first, then the
youngest sample is preempted, to be recomputed later; the oldest is never preempted, so it always finishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .decoder import Decoder
from .finish import open_stream
from .kv import KVPool
from .prefix import PrefixTree, common
from .request import Request, Row, Sample
from .text import Text

MIN_SHARED = 16
"""Waiting for somebody else's prefill pays from so many shared prompt tokens."""


class Chunk(NamedTuple):
    """The next ``take`` pending tokens of a sample's row; ``last`` if its logits decide in this step."""

    sample: Sample
    row: Row
    take: int
    last: bool


class Scheduler:
    """Waiting and running samples of one engine, each list oldest first."""

    def __init__(self, pool: KVPool, tree: PrefixTree, decoder: Decoder, text: Text | None, max_rows: int) -> None:
        self.pool, self.tree, self.decoder, self.text, self.max_rows = pool, tree, decoder, text, max_rows
        self.waiting: list[Sample] = []
        self.running: list[Sample] = []
        self.faults: list[tuple[Sample, Exception]] = []
        """Samples on which the decoder raised outside a step; the engine ends them."""
        self._order = 0

    @property
    def room(self) -> int:
        """Slots that can be had without preempting anybody."""
        return self.pool.free + self.pool.cached

    def add(self, request: Request) -> None:
        """Queue all samples of ``request``."""
        for index in range(request.n):
            sample = Sample(request, index, self._order)
            open_stream(sample, self.text)
            self.waiting.append(sample)
            self._order += 1

    def admit(self, prefill_budget: int) -> None:
        """Start waiting samples, oldest first, while their prompts fit and no more prefill is queued than one call takes."""
        if not self.waiting:
            return
        queued = sum(_feed(sample) for sample in self.running)
        rows = sum(len(sample.rows) for sample in self.running)
        held_back: list[Sample] = []
        for at, sample in enumerate(self.waiting):
            if queued >= prefill_budget or rows >= self.max_rows:
                held_back.extend(self.waiting[at:])
                break
            if sample.request.leader is not None or self._wait_for_prefix(sample):
                held_back.append(sample)
                continue
            try:
                started = self._start(sample, rows)
            except Exception as e:  # the decoder's own; it must not reach the others
                self.faults.append((sample, e))
                continue
            if not started:
                held_back.extend(self.waiting[at:])
                break
            rows += len(sample.rows)
            queued += _feed(sample)
        self.waiting = held_back
        self.running.sort(key=_age)

    def _wait_for_prefix(self, sample: Sample) -> bool:
        """Whether a prefill under way is computing a prefix that this prompt could soon have from the tree."""
        prompt = sample.request.prompt
        best = max((common(row.prompt, prompt) for s in self.running if _feed(s) for row in s.rows), default=0)
        return best >= MIN_SHARED and best > len(self.tree.match(prompt)) + MIN_SHARED

    def _start(self, sample: Sample, rows: int) -> bool:
        """Open the sample's rows on cached KV where there is some; False, running nothing, when its prompt does not fit now."""
        if not sample.rows:
            sample.rows = self.decoder.open(sample.request, sample.index, self.pool)
        texts = [row.prompt + row.output for row in sample.rows]
        matches = [self.tree.match([] if row.view else ids[:-1]) for row, ids in zip(sample.rows, texts, strict=True)]
        new = sum(len(ids) - len(found) for ids, found in zip(texts, matches, strict=True))
        idle = sum(int(self.pool.idle_mask(found).sum()) for found in matches)
        if self.running and new + rows > self.room - idle:
            return False
        for row, ids, found in zip(sample.rows, texts, matches, strict=True):
            row.context.adopt(ids[: len(found)], found)
            row.pending = ids[len(found) :]
            sample.shared_slots += len(found)
            if sample.ran:
                sample.discarded += len(row.pending) - 1
            else:
                sample.prompt_cached += len(found)
                sample.prompt_computed += len(row.pending)
            self.decoder.admit(row)
        self.running.append(sample)
        if not sample.ran:
            sample.request.leader = sample
        sample.ran = True
        return True

    def join(self, leader: Sample) -> list[Sample]:
        """Waiting siblings that may share the prompt ``leader`` has just computed, as far as they fit: opened and admitted."""
        leader.request.leader = None
        room = min(self.room - self._growth(), self.max_rows - sum(len(s.rows) for s in self.running))
        siblings: list[Sample] = []
        for sample in self.waiting:
            if sample.request is not leader.request or sample.rows:
                continue
            rows = self.decoder.open(sample.request, sample.index, self.pool)
            alike = len(rows) == len(leader.rows) and all(a.prompt == b.prompt for a, b in zip(rows, leader.rows, strict=True))
            if not alike or len(rows) > room:
                break
            room -= len(rows)
            sample.rows, sample.ran = rows, True
            siblings.append(sample)
            for row in rows:
                self.decoder.admit(row)
        if siblings:
            self.waiting = [s for s in self.waiting if not s.rows or s not in siblings]
            self.running = sorted(self.running + siblings, key=_age)
        return siblings

    def unjoin(self, siblings: Sequence[Sample]) -> None:
        """Undo :meth:`join`: the siblings wait again, and will compute or find their prompt by themselves."""
        for sample in siblings:
            self.leave(sample)
            sample.rows, sample.ran = [], False
        self.waiting = sorted([*self.waiting, *siblings], key=_age)

    @staticmethod
    def fork(leader: Sample, sibling: Sample) -> None:
        """Give ``sibling`` the KV of the prompt that ``leader`` computed."""
        for mine, row in zip(leader.rows, sibling.rows, strict=True):
            row.context = mine.context.fork()
            sibling.prompt_cached += len(row.prompt)
            sibling.shared_slots += row.context.size

    def make_room(self) -> None:
        """Preempt the youngest until every running sample can take a step."""
        while len(self.running) > 1 and self.room < self._growth():
            self.preempt(self.running[-1])

    def _growth(self) -> int:
        """Slots the next step needs at least: one a decoding row, and one to get on with feeding."""
        feeding = [sample for sample in self.running if _feed(sample)]
        return sum(len(sample.rows) for sample in self.running) - sum(len(s.rows) for s in feeding) + bool(feeding)

    def preempt(self, sample: Sample) -> None:
        """Take a sample's KV away; it waits in front of all younger ones and will be computed again."""
        for row in sample.rows:
            try:
                self.decoder.preempt(row)
            except Exception as e:
                self.faults.append((sample, e))
            self.remember(row)
            row.context.release()
        self.leave(sample)
        sample.shared_slots = 0
        self.waiting = sorted([*self.waiting, sample], key=_age)

    def leave(self, sample: Sample) -> None:
        """Take ``sample`` off every list."""
        self.running = [s for s in self.running if s is not sample]
        self.waiting = [s for s in self.waiting if s is not sample]
        if sample.request.leader is sample:
            sample.request.leader = None

    def remember(self, row: Row) -> None:
        """Leave a row's KV to the prefix tree, if it is a function of its ids."""
        if row.context.plain and row.context.size and not row.view:
            self.tree.insert(row.context.ids, row.context.slots)

    def reserve(self, slots: int) -> bool:
        """Evict until ``slots`` are free; whether they are."""
        if self.pool.free < slots:
            self.tree.evict(max(slots - self.pool.free, self.pool.size // 64))
        return self.pool.free >= slots

    def chunks(self, samples: Sequence[Sample], budget: int) -> list[Chunk]:
        """What to feed of ``samples``, at most ``budget`` tokens. A sample's rows reach their last tokens in one step."""
        chunks = []
        for sample in samples:
            whole = sum(len(row.pending) for row in sample.rows) <= budget
            for row in sample.rows:
                take = min(len(row.pending) - (not whole), budget)
                if take > 0:
                    budget -= take
                    chunks.append(Chunk(sample, row, take, whole))
        return chunks

    def split(self) -> tuple[list[Sample], list[Sample]]:
        """Running samples that decode, and those still being fed."""
        decoding: list[Sample] = []
        feeding: list[Sample] = []
        for sample in self.running:
            (feeding if _feed(sample) else decoding).append(sample)
        return decoding, feeding


def _feed(sample: Sample) -> int:
    """Tokens to compute before the sample decodes; 0 once every row has but one pending."""
    rows = sample.rows
    if len(rows) == 1:
        n = len(rows[0].pending)
        return n if n > 1 else 0
    total = sum(len(row.pending) for row in rows)
    return total if total > len(rows) else 0


def _age(sample: Sample) -> int:
    return sample.order
