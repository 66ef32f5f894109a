"""Who runs in the next step: admission, prompt sharing, room in the pool, preemption. Host bookkeeping only.

Admission is optimistic: a sample starts when its prompt fits now. When room runs out the cache is evicted first, then the
youngest sample is preempted, to be recomputed later; the oldest is never preempted, so it always finishes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..kernels.views import Ints
from .decoder import Decoder
from .kv import KVPool
from .prefix import PrefixTree, common
from .request import Row, Sample

MIN_SHARED = 16
"""From so many tokens on it pays to read a prefix from others' slots, away from the row's own, or to wait for it."""


class Chunk(NamedTuple):
    """The next ``take`` pending tokens of a sample's row; ``last`` if its logits decide in this step."""

    sample: Sample
    row: Row
    take: int
    last: bool


class Scheduler:
    """Waiting and running samples of one engine, each list oldest first.

    ``fail`` ends a sample on which the decoder raised here, so that the fault reaches no other.
    """

    def __init__(
        self, pool: KVPool, tree: PrefixTree, decoder: Decoder, max_rows: int, fail: Callable[[Sample, BaseException], None]
    ) -> None:
        self.pool, self.tree, self.decoder, self.max_rows, self.fail = pool, tree, decoder, max_rows, fail
        self.waiting: list[Sample] = []
        self.running: list[Sample] = []
        self._order = 0

    @property
    def room(self) -> int:
        """Slots that can be had without preempting anybody."""
        return self.pool.free + self.pool.cached

    def add(self, sample: Sample) -> None:
        """Queue ``sample``, as the youngest."""
        sample.order, self._order = self._order, self._order + 1
        self.waiting.append(sample)

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
            except BaseException as e:
                self.fail(sample, e)
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
        matches = [self._known(row) for row in sample.rows]
        new = sum(len(row.pending) - len(found) for row, found in zip(sample.rows, matches, strict=True))
        idle = sum(int(self.pool.idle_mask(found).sum()) for found in matches)
        if self.running and new + rows > self.room - idle:
            return False
        if all(len(row.pending) == len(row.prompt) for row in sample.rows):
            sample.request.leader = sample
        for row, found in zip(sample.rows, matches, strict=True):
            row.context.adopt(row.pending[: len(found)], found)
            row.pending = row.pending[len(found) :]
            if not row.computed:
                sample.prompt_cached += len(found)
                sample.shared_slots += len(found)
            row.computed = max(row.computed, len(found))
            self.decoder.admit(row)
        self.running.append(sample)
        return True

    def _known(self, row: Row) -> Ints:
        """Slots of the cached prefix of what ``row`` is to compute."""
        found = self.tree.match([] if row.view else row.pending[:-1])
        return found if len(found) >= min(MIN_SHARED, len(row.pending) // 2) else found[:0]

    def join(self, leader: Sample) -> list[Sample]:
        """Waiting siblings that may share the prompt ``leader`` has just computed, as far as they fit: opened and admitted."""
        leader.request.leader = None
        room = min(self.room - self._growth(), self.max_rows - sum(len(s.rows) for s in self.running))
        siblings: list[Sample] = []
        for sample in [s for s in self.waiting if s.request is leader.request and not s.rows]:
            if len(leader.rows) > room:
                break
            try:
                sample.rows = self.decoder.open(sample.request, sample.index, self.pool)
                if not _alike(sample.rows, leader.rows):
                    continue
                for row in sample.rows:
                    self.decoder.admit(row)
            except BaseException as e:
                self.fail(sample, e)
                continue
            room -= len(sample.rows)
            siblings.append(sample)
        if siblings:
            self.waiting = [s for s in self.waiting if s not in siblings]
            self.running = sorted(self.running + siblings, key=_age)
        return siblings

    @staticmethod
    def fork(leader: Sample, sibling: Sample) -> None:
        """Give ``sibling`` the KV of the prompt that ``leader`` computed, without what ``leader`` may have drafted behind it."""
        for mine, row in zip(leader.rows, sibling.rows, strict=True):
            row.context = mine.context.fork()
            row.context.truncate(len(row.prompt))
            sibling.prompt_cached += row.context.size
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
        fault: BaseException | None = None
        sample.note_peak()
        self.remember(sample)
        for row in sample.rows:
            try:
                self.decoder.preempt(row)
            except BaseException as e:
                fault = e
            row.computed = max(row.computed, row.context.size)
            row.pending = row.context.ids + row.pending
            row.context.release()
        self.leave(sample)
        self.waiting = sorted([*self.waiting, sample], key=_age)
        if fault is not None:
            self.fail(sample, fault)

    def leave(self, sample: Sample) -> None:
        """Take ``sample`` off every list."""
        self.running = [s for s in self.running if s is not sample]
        self.waiting = [s for s in self.waiting if s is not sample]
        if sample.request.leader is sample:
            sample.request.leader = None

    def remember(self, sample: Sample) -> None:
        """Leave a sample's KV to the prefix tree, where it is a function of its ids and its logits have been looked at."""
        if _feed(sample):
            return
        for row in sample.rows:
            if row.context.plain and row.context.size:
                self.tree.insert(row.context.ids, row.context.slots)

    def forget(self, sample: Sample) -> None:
        """Take out of the prefix tree what is broken in a sample's KV, so that it spoils no other."""
        for row in sample.rows:
            self.tree.forget(row.context.ids, self.pool.sound(row.context.slots))

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


def _alike(rows: Sequence[Row], others: Sequence[Row]) -> bool:
    """Whether rows have the same prompts and see nothing but them, so that they may share its KV."""
    return len(rows) == len(others) and all(
        a.prompt == b.prompt and not (a.view or b.view) for a, b in zip(rows, others, strict=True)
    )


def _age(sample: Sample) -> int:
    return sample.order
