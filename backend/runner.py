"""The engine's loop: draft, forward, decide, settle, over everybody who is ready; and what happens when one of these fails.

A step has two halves. Computing may raise, and leaves no trace when it does: it is tried again sample by sample, and
only the one at fault ends. Settling keeps KV, turns tokens into text and ends what has ended; a fault there is one
sample's by construction. All on the engine's thread, which nothing that is raised here may end: hence ``BaseException``.
Cost per step: one forward over all new tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..kernels.transfer import put
from ..schema import Cost, FinishReason
from . import batch as calls
from .batch import Ahead, Output, TokenBatch
from .decoder import Decoder, Draft, Share
from .finish import advance, complete, open_stream, show
from .kv import KVPool, PoolFull
from .model import Model
from .prefix import PrefixTree
from .request import Request, Row, Sample
from .scheduler import Chunk, Scheduler
from .usage import Usage


@dataclass(slots=True)
class _Step:
    """One model call: who is in it, and what comes of it."""

    batch: TokenBatch
    samples: list[Sample]
    chunks: list[Chunk]
    draft: Draft | None
    rows: list[Row]
    """Those that decide, as far as they were computed in the batch's order: decoding rows, then rows whose prompt ends here,
    then rows of siblings that join."""
    owners: list[Sample]
    """[rows] whose they are."""
    joined: list[tuple[Sample, Sample]] = field(default_factory=list)
    """(sibling, leader): the sibling decides on the logits of its leader's prompt, and will share its KV."""
    shares: list[Share] = field(default_factory=list)
    """[rows] what was decided."""
    drafted: list[int] = field(default_factory=list)
    """[rows] tokens drafted."""


class Runner:
    """Everything of an engine that lives on its thread: the pool, who uses it, and the bill.

    ``most_decided``: most tokens that a step decides on, drafted ones included, for want of memory; None: any number.
    """

    def __init__(
        self, model: Model, decoder: Decoder, pool: KVPool, prefill_tokens: int, max_rows: int, most_decided: int | None = None,
        batch_invariant: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.decoder, self.pool, self.prefill_tokens = model, decoder, pool, prefill_tokens
        self.most_decided, self.batch_invariant = most_decided, batch_invariant
        self.tree = PrefixTree(pool)
        self.scheduler = Scheduler(pool, self.tree, decoder, max_rows, lambda sample, error: self.finish(sample, "error", error))
        self.usage = Usage(max_rows)
        self._ahead: Ahead | None = None
        """Of the next step, made while the device computed the last one."""
        self._bill, self._forwards = Cost(), 0

    @property
    def cost(self) -> Cost:
        """Everything computed so far; ``forwards`` are real model calls, each counted once however many shared it."""
        return replace(self._bill, forwards=self._forwards, critical=self._forwards)

    @property
    def unfinished(self) -> int:
        """Samples that have not ended."""
        return len(self.scheduler.running) + len(self.scheduler.waiting)

    def charge(self, cost: Cost) -> None:
        """Add to the bill."""
        self._bill += cost

    def call(self, batch: TokenBatch, decoding: int = 0) -> Output:
        """One counted model call; ``decoding``: how many of its tokens are no prompt's."""
        self._forwards += 1
        self.usage.lap("other")
        output = self.model.forward(batch)
        self.usage.call(decoding / len(batch.ids))
        output.tokens = len(batch.ids)
        return output

    def make_free(self, slots: int) -> bool:
        """Free ``slots`` slots, from the cache and then from the youngest samples; whether it could be done."""
        scheduler = self.scheduler
        while scheduler.room < slots and scheduler.running:
            scheduler.preempt(scheduler.running[-1])
        return scheduler.reserve(slots)

    def add(self, request: Request) -> None:
        """Queue all samples of ``request``, or none if one raises."""
        numbers = range(request.first, request.first + request.n)
        for sample in [Sample(request, index, stream=open_stream(request, self.model.text)) for index in numbers]:
            self.scheduler.add(sample)

    def step(self) -> bool:
        """One model call for whoever is ready; whether anybody is left."""
        scheduler = self.scheduler
        try:
            scheduler.admit(self.prefill_tokens)
            scheduler.make_room()
            if scheduler.running:
                self._guarded(*scheduler.split())
        except BaseException as e:  # a defect of the engine itself: end what it had, stay alive
            self.end(None, "error", e)
        return bool(scheduler.running or scheduler.waiting)

    def end(self, requests: Sequence[Request] | None, outcome: FinishReason, error: BaseException | None = None) -> None:
        """End the samples of ``requests``; None: everybody's."""
        chosen = None if requests is None else set(map(id, requests))
        for sample in [*self.scheduler.running, *self.scheduler.waiting]:
            if chosen is None or id(sample.request) in chosen:
                self.finish(sample, outcome, error)

    def _guarded(self, decoding: list[Sample], feeding: list[Sample]) -> None:
        samples = decoding + feeding
        leaders = [sample for sample in samples if sample.request.leader is sample]
        try:
            step = self._compute(decoding, feeding)
        except BaseException as e:
            joined = any(leader.request.leader is not leader for leader in leaders)  # the fault may be a sibling's
            if len(samples) == 1 and not joined:
                self.finish(samples[0], "error", e)
                return
            for sample in samples:
                self.scheduler.make_room()
                if sample in self.scheduler.running:
                    self._guarded([sample] if sample in decoding else [], [sample] if sample in feeding else [])
        else:
            self._settle(step)

    # ---- computing: may raise, and then has changed nothing -------------------------------------------------------------

    def _compute(self, decoding: list[Sample], feeding: list[Sample]) -> _Step:
        rows = [row for sample in decoding for row in sample.rows]
        draft, chunks = self._plan(rows, feeding)
        done = [chunk for chunk in chunks if chunk.last]
        ahead, self._ahead = self._ahead, None
        step = _Step(
            batch=TokenBatch(self.pool, _batch_rows(rows, draft, chunks), hidden=self.decoder.hidden, ahead=ahead,
                             invariant=self.batch_invariant),
            samples=[*decoding, *dict.fromkeys([chunk.sample for chunk in chunks])], chunks=chunks, draft=draft,
            rows=rows + [chunk.row for chunk in done],
            owners=[sample for sample in decoding for _ in sample.rows] + [chunk.sample for chunk in done],
        )  # fmt: skip
        try:
            step.batch.embeddings = _vectors(step)
            output = self.call(step.batch, len(step.batch.ids) - sum(chunk.take for chunk in chunks))
            if draft is None:
                self._ahead = self.model.prepare(step.batch)
            if step.rows:
                self._decide(step, output)
        except BaseException:
            step.batch.rollback()
            for sibling, _ in step.joined:
                self.scheduler.preempt(sibling)
            raise
        return step

    def _plan(self, rows: list[Row], feeding: list[Sample]) -> tuple[Draft | None, list[Chunk]]:
        """What to compute beside the roots of ``rows``: drafts, then prompts, as far as room can be had."""
        scheduler = self.scheduler
        room = scheduler.room - len(rows)
        draft = None
        if rows:
            self.usage.lap("other")
            draft = self.decoder.draft(rows, self._draftable(room, feeding))
            self.usage.lap("drafting")
        drafted = 0 if draft is None else len(draft.ids)
        chunks = scheduler.chunks(feeding, min(self.prefill_tokens, room - drafted)) if feeding else []
        total = len(rows) + drafted + sum(chunk.take for chunk in chunks)
        if not total or not scheduler.reserve(total):
            raise PoolFull(f"{total or 1} slots needed, {scheduler.room} of {self.pool.size} can be had")
        return draft, sorted(chunks, key=lambda chunk: not chunk.last)

    def _draftable(self, room: int, feeding: list[Sample]) -> int:
        """Tokens that may be drafted: each takes one of ``room`` slots, of which feeding needs one, and memory for its logits."""
        most = room - bool(feeding)
        if self.most_decided is not None:
            samples = self.scheduler.running
            running = sum(len(sample.rows) for sample in samples)
            joining = sum((sample.request.n - 1) * len(sample.rows) for sample in samples if self._leads_here(sample))
            most = min(most, self.most_decided - running - joining)
        return max(0, most)

    def _leads_here(self, sample: Sample) -> bool:
        """Whether siblings may join in this step, in which the prompt of ``sample`` can end."""
        return sample.request.leader is sample and sum(len(row.pending) for row in sample.rows) <= self.prefill_tokens

    def _decide(self, step: _Step, output: Output) -> None:
        """Ask the decoder: about the rows computed, and about siblings of those that have just computed their prompt."""
        draft, computed = step.draft, len(step.rows)
        sources: list[int] = []
        for leader in dict.fromkeys([sample for sample in step.owners if sample.request.leader is sample]):
            places = {id(row): i for i, row in enumerate(step.rows)}
            for sibling in self.scheduler.join(leader):
                step.joined.append((sibling, leader))
                step.rows += sibling.rows
                step.owners += [sibling] * len(sibling.rows)
                sources += [places[id(row)] for row in leader.rows]
        step.drafted = [0] * len(step.rows)
        if draft is not None:
            ends = draft.lists()[2]
            if more := len(step.rows) + 1 - len(ends):  # rows that were not there when it was made
                ends = ends + ends[-1:] * more
                draft = Draft(draft.ids, draft.parents, ends, draft.log_q)
            step.drafted = [end - begin for begin, end in pairwise(ends)]
        tokens = [1 + drafted for drafted in step.drafted[:computed]]
        if sources:
            output = _repeat(output, tokens, sources)
        self.usage.lap("other")
        decision = self.decoder.decide(step.rows, draft, output)
        step.shares = decision.split(tokens + [0] * len(sources), self.model.info.vocab_size, draft)
        self.usage.lap("sampling")

    # ---- settling: whatever goes wrong here is one sample's -------------------------------------------------------------

    def _settle(self, step: _Step) -> None:
        self.usage.step(len(step.rows), bool(self.scheduler.waiting))
        self._keep(step)
        for sibling, leader in step.joined:
            try:
                self.scheduler.fork(leader, sibling)
            except BaseException as e:
                self.finish(sibling, "error", e)
        for sample, share in zip(step.owners, step.shares, strict=True):
            if share.failed is not None:
                self.finish(sample, "error", share.failed)
        for chunk in step.chunks:
            if chunk.last and chunk.sample.finish is None:
                self.scheduler.remember(chunk.sample)
        for row, sample, share, drafted in zip(step.rows, step.owners, step.shares, step.drafted, strict=True):
            if sample.finish is None:
                try:
                    self._take(row, sample, share, drafted)
                except BaseException as e:
                    self.finish(sample, "error", e)
        for sample in dict.fromkeys(step.owners):
            if sample.finish is not None:
                self.finish(sample, sample.finish)
            elif sample.request.sink is not None:
                sample.request.sink(show(sample))

    def _keep(self, step: _Step) -> None:
        """Commit what stays of the call's KV, and count what was computed."""
        decoding = len(step.batch.rows) - len(step.chunks)
        for row, sample in zip(step.rows[:decoding], step.owners, strict=False):
            if row.context.size < len(row.prompt):
                _count(sample, row, 1)
        for chunk in step.chunks:
            _count(chunk.sample, chunk.row, chunk.take)
        if step.draft is not None:
            for sample, drafted in zip(step.owners, step.drafted, strict=True):
                sample.drafted += drafted
                sample.discarded += drafted  # until it is accepted
        step.batch.commit([*[share.kept for share in step.shares[:decoding]], *[None for _ in step.chunks]])
        for chunk in step.chunks:
            chunk.row.pending = chunk.row.pending[chunk.take :]
        for sample in step.samples:
            sample.forwards += 1
        for sibling, _ in step.joined:
            sibling.forwards += 1

    def _take(self, row: Row, sample: Sample, share: Share, drafted: int) -> None:
        """Carry out what was decided about a row: its text, its next tokens, its bill."""
        ids = share.ids
        row.pending, row.vector = share.pending, share.vector
        row.logprobs += share.logprobs
        row.certainty += share.certainty
        if len(share.pending) > 1 or share.pending != ids[-1:]:
            sample.injected += (Counter(share.pending) - Counter(ids)).total()
        used = len(ids)
        if row.index:
            row.output += ids
            sample.injected += used
        else:
            used = advance(sample, ids)
        if drafted and share.kept is not None:
            accepted = min(used, len(share.kept) - 1)
            sample.accepted += accepted
            sample.discarded -= accepted
        self.decoder.observe(row, ids[:used])

    def finish(self, sample: Sample, outcome: FinishReason, error: BaseException | None = None) -> None:
        """End a sample: give back its KV, write its completion, and answer the request when it was the last."""
        request = sample.request
        if sample.index in request.results:
            return
        sample.note_peak()
        if error is None:
            self.scheduler.remember(sample)
        elif isinstance(error, FloatingPointError):
            self.scheduler.forget(sample)
        for row in sample.rows:
            try:
                self.decoder.release(row, outcome)
            except BaseException as e:
                error = error or e
            row.context.release()
        self.scheduler.leave(sample)
        sample.finish = outcome if error is None else "error"
        try:
            completion = complete(sample, self.model.text, self.pool.slot_bytes, error)
        except BaseException as e:  # the tokenizer's: it cannot decode these tokens
            error, sample.finish = error or e, "error"
            completion = complete(sample, None, self.pool.slot_bytes, error)
        self.charge(completion.cost)
        request.results[sample.index] = completion
        request.failure = request.failure or error
        if request.sink is not None:
            request.sink(show(sample, completion))
        if len(request.results) == request.n:
            request.future.set_result([request.results[i] for i in sorted(request.results)])


def _batch_rows(rows: list[Row], draft: Draft | None, chunks: list[Chunk]) -> list[calls.Row]:
    """The model call's rows: roots with their drafts, then pieces of prompts."""
    if draft is None:
        made = [calls.Row(row.context, row.pending, view=row.view) for row in rows]
    else:
        ids, parents, ptr = draft.lists()
        made = []
        for i, row in enumerate(rows):
            own = parents[ptr[i] : ptr[i + 1]]
            tree = None if own == list(range(len(own))) else [-1, *own]
            made.append(calls.Row(row.context, row.pending + ids[ptr[i] : ptr[i + 1]], tree, row.view))
    for chunk in chunks:
        wanted = np.array([chunk.take - 1] if chunk.last else [], np.int64)
        made.append(calls.Row(chunk.row.context, chunk.row.pending[: chunk.take], view=chunk.row.view, logits=wanted))
    return made


def _vectors(step: _Step) -> tuple[Tensor, Tensor] | None:
    """Embeddings that decoders gave in place of the last pending token's: (token index [M], vectors [M, width])."""
    given = [(i, row) for i, row in enumerate(step.rows) if row.vector is not None]
    if not given:
        return None
    vectors = torch.stack([row.vector for _, row in given if row.vector is not None])
    places = [int(step.batch.row_ptr[i]) + len(row.pending) - 1 for i, row in given]
    return put(places, vectors.device), vectors


def _repeat(output: Output, tokens: Sequence[int], sources: Sequence[int]) -> Output:
    """``output``, with what the roots of rows ``sources`` got once more at its end. ``tokens``: of each row, root included."""
    counts = torch.tensor(tokens)
    roots = counts.cumsum(0) - counts
    index = torch.cat((torch.arange(int(counts.sum())), roots[sources]))

    def pick(results: Tensor) -> Tensor:
        return results[put(index, results.device)]

    logits = None if output.logits is None else pick(output.logits)
    return Output(logits, {layer: pick(hidden) for layer, hidden in output.hidden.items()}, output.tokens)


def _count(sample: Sample, row: Row, tokens: int) -> None:
    """Bill the next ``tokens`` of a row's line: its prompt the first time, waste when computed again."""
    start, end = row.context.size, row.context.size + tokens
    again = max(0, min(end, row.computed) - start)
    sample.discarded += again
    sample.prompt_computed += max(0, min(end, len(row.prompt)) - start - again)
    row.computed = max(row.computed, end)
