"""The engine: one loop that serves any number of requests on one model with one decoder.

Continuous batching: draft, forward, decide, commit, over everybody who is ready. Shared prefixes are computed once,
a request can be cancelled at any moment, and a fault in one request leaves the others and every slot accounted for.
The cost per step is one forward over all new tokens. Not here: how tokens are chosen (``decoding/``), several devices.
"""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
import torch

from ..kernels.views import Ints
from ..schema import Completion, Cost, FinishReason, Prompt
from . import batch as calls
from .batch import Output, TokenBatch
from .decoder import Decision, Decoder, Draft
from .finish import advance, complete, show
from .generator import GenerationError, Generator, Score, progress_bar
from .kv import KVPool, PoolFull
from .loop import Loop
from .model import Model
from .prefix import PrefixTree
from .request import Piece, Request, Row, Sample, Sampling, draw_seed, split_stops
from .scheduler import Chunk, Scheduler
from .score import score_continuations, score_labels

T = TypeVar("T")

POOL_BYTES = 1 << 30
"""KV memory an engine takes on a CPU when not told how much."""
GPU_SHARE = 0.6
"""Share of a GPU's free memory it takes likewise."""


class Engine(Generator):
    """Serves ``model`` with ``decoder``. Thread-safe; ``close()`` or ``with`` ends it.

    ``kv_slots``: size of the KV pool in tokens; default: what 1 GiB (on a GPU 60 % of free memory) holds, at most 64 full
    contexts. ``prefill_tokens``: prompt tokens computed per step beside decoding. ``max_rows``: rows decoding at once.

    Sampling defaults come from the checkpoint's generation_config; where it is silent decoding is greedy.
    """

    def __init__(
        self, model: Model, decoder: Decoder, *, kv_slots: int | None = None, prefill_tokens: int = 512, max_rows: int = 256
    ) -> None:
        if prefill_tokens < 1 or max_rows < 1:
            raise ValueError(f"prefill_tokens={prefill_tokens}, max_rows={max_rows}: at least 1")
        self.model, self.decoder, self.prefill_tokens = model, decoder, prefill_tokens
        self.pool: KVPool = model.new_pool(_default_slots(model) if kv_slots is None else kv_slots)
        self.tree = PrefixTree(self.pool)
        self._scheduler = Scheduler(self.pool, self.tree, decoder, model.text, max_rows)
        self._inbox: deque[Request | Callable[[], None]] = deque()
        self._cancelled: deque[Request] = deque()
        self._loop = Loop.of(model.info.device)
        self._closed = False
        self._cost, self._forwards = Cost(), 0

    # ---- the doors -------------------------------------------------------------------------------------------------

    @property
    def cost(self) -> Cost:
        """Everything this engine has computed so far; ``forwards`` are real model calls, shared by all requests."""
        return replace(self._cost, forwards=self._forwards, critical=self._forwards)

    def clear_cache(self) -> None:
        """Forget all cached prefixes."""
        self._call(self.tree.clear).result()

    def close(self) -> None:
        """Cancel what runs, wait until it has ended, refuse new work."""
        if not self._closed:
            self._closed = True
            self._call(self._end).result()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def generate(self, prompts: Any, *, progress: bool | None = None, **options: Any) -> Any:
        single, requests = self._requests(prompts, options)
        done: queue.SimpleQueue[None] = queue.SimpleQueue()
        for request in requests:
            request.future.add_done_callback(lambda _: done.put(None))
        try:
            self._submit(requests)
            with progress_bar(len(requests), progress) as bar:
                for _ in requests:
                    done.get()
                    bar.update()
        except KeyboardInterrupt:
            self._cancel(requests)
        return _answer(single, requests, [request.future.result() for request in requests])

    async def agenerate(self, prompts: Any, **options: Any) -> Any:
        single, requests = self._requests(prompts, options)
        self._submit(requests)
        try:
            results = await asyncio.gather(*(asyncio.wrap_future(request.future) for request in requests))
        except BaseException:
            self._cancel(requests)
            raise
        return _answer(single, requests, results)

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Piece]:
        request = self._request(prompt, **options)
        pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._open_stream(request, pieces.put, lambda: pieces.put(None))
        return self._read_stream(request, pieces)

    def _read_stream(self, request: Request, pieces: queue.SimpleQueue[Piece | None]) -> Iterator[Piece]:
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            _answer(True, [request], [request.future.result()])
        finally:
            self._cancel([request])

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[Piece]:
        request = self._request(prompt, **options)
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | None]()

        def put(piece: Piece | None) -> None:
            with suppress(RuntimeError):  # the consumer's loop is closed: nobody listens
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        self._open_stream(request, put, lambda: put(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            _answer(True, [request], [request.future.result()])
        finally:
            self._cancel([request])

    async def ascore(self, prompt: Prompt, continuations: Any = None, *, labels: Any = None) -> Any:
        return await asyncio.wrap_future(self._score(prompt, continuations, labels))

    def score(self, prompt: Prompt, continuations: Any = None, *, labels: Any = None) -> Any:
        return self._score(prompt, continuations, labels).result()

    # ---- requests --------------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; a prompt of ids needs no tokenizer."""
        if self.model.text is not None:
            return self.model.text.encode(prompt)
        if not isinstance(prompt, list) or not all(isinstance(i, int) for i in prompt):
            raise ValueError(f"{self.model.info.name} has no tokenizer: give token ids")
        return [int(i) for i in prompt]  # type: ignore[arg-type]

    def _requests(self, prompts: Any, options: dict[str, Any]) -> tuple[bool, list[Request]]:
        """One request per prompt; also whether a single prompt was given bare."""
        bare = isinstance(prompts, str) or (
            isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], int | dict)
        )
        if not isinstance(prompts, str | Sequence):
            raise TypeError(f"prompts are text, token ids or chat messages, or a list of these, not {type(prompts).__name__}")
        return bare, [self._request(cast(Prompt, prompt), **options) for prompt in ([prompts] if bare else prompts)]

    def _request(
        self,
        prompt: Prompt,
        *,
        n: int = 1,
        max_tokens: int | None = None,
        min_tokens: int = 0,
        stop: Any = None,
        include_stop: bool = False,
        ignore_eos: bool = False,
        logprobs: Any = None,
        seed: int | None = None,
        **sampling: Any,
    ) -> Request:
        if self._closed:
            raise RuntimeError("this engine is closed")
        info = self.model.info
        known = Sampling.__dataclass_fields__
        if unknown := sorted(set(sampling) - set(known)):
            raise TypeError(f"unknown option {unknown[0]!r}; sampling options: {', '.join(known)}")
        ids = self.encode(prompt)
        limit = min(info.max_positions, self.pool.size) - len(ids)
        if ids and limit < 1:
            raise ValueError(
                f"a prompt of {len(ids)} tokens leaves no room: {info.max_positions} positions, a pool of {self.pool.size} slots"
            )
        stop_ids, stop_strings = split_stops(stop)
        if stop_strings and self.model.text is None:
            raise ValueError(f"stop={stop!r}: {info.name} has no tokenizer, so stops are token ids")
        default = limit if info.defaults.max_tokens is None else min(limit, info.defaults.max_tokens)
        request = Request(
            prompt=ids, n=n, sampling=Sampling.resolve(info.defaults, sampling),
            max_tokens=default if max_tokens is None else max_tokens, min_tokens=min_tokens, stop_ids=stop_ids if ignore_eos else stop_ids | set(info.defaults.stop_ids),
            stop_strings=stop_strings, include_stop=include_stop, logprobs="raw" if logprobs is True else logprobs or None,
            seed=draw_seed() if seed is None else seed,
        )  # fmt: skip
        if len(ids) + request.max_tokens > info.max_positions:
            raise ValueError(
                f"{len(ids)} prompt tokens + max_tokens={request.max_tokens} exceed the model's {info.max_positions} positions"
            )
        for pool, slots in self.decoder.slots(request, self.pool).items():
            if slots > pool.size:
                raise ValueError(
                    f"{len(ids)} prompt tokens + max_tokens={request.max_tokens} can need {slots} slots of a pool of {pool.size}"
                )
        return request

    def _submit(self, requests: Sequence[Request]) -> None:
        for request in requests:
            request.future.set_running_or_notify_cancel()  # from here on only the engine ends it
        self._inbox.extend(requests)
        self._loop.wake(self)

    def _open_stream(self, request: Request, put: Callable[[Piece], None], end: Callable[[], None]) -> None:
        if request.n != 1:
            raise ValueError(f"n={request.n}: a stream is of one sample")
        request.sink = put
        request.future.add_done_callback(lambda _: end())
        self._submit([request])

    def _cancel(self, requests: Sequence[Request]) -> None:
        self._cancelled.extend(r for r in requests if not r.future.done())
        self._loop.wake(self)

    def _score(self, prompt: Prompt, continuations: Any, labels: Any) -> Future[list[Score]] | Future[dict[str | int, float]]:
        if (continuations is None) == (labels is None):
            raise TypeError("score takes continuations or labels, one of them")
        ids = self.encode(prompt)
        if labels is not None:
            return self._call(lambda: score_labels(self, ids, labels))
        return self._call(lambda: score_continuations(self, ids, continuations))

    def _call(self, work: Callable[[], T]) -> Future[T]:
        """Run ``work`` on the engine's thread between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as e:
                future.set_exception(e)

        if self._loop.here:
            run()
        else:
            self._inbox.append(run)
            self._loop.wake(self)
        return future

    # ---- the loop, on the engine's thread ------------------------------------------------------------------------------

    def step(self) -> bool:
        """Take in what came, run one model call; whether there is more to do. Called by the device's loop only."""
        scheduler = self._scheduler
        try:
            self._take_in()
            scheduler.admit(self.prefill_tokens)
            scheduler.make_room()
            while scheduler.faults:
                self._finish(scheduler.faults[-1][0], "error", scheduler.faults.pop()[1])
            if scheduler.running:
                self._guarded(*scheduler.split())
        except Exception as e:  # a defect of the engine itself: end what it had, stay alive
            for sample in [*scheduler.running, *scheduler.waiting]:
                self._finish(sample, "error", e)
        return bool(scheduler.running or scheduler.waiting or self._inbox or self._cancelled)

    def _take_in(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            if callable(item):
                item()
            elif self._closed:
                item.future.set_exception(RuntimeError("this engine is closed"))
            else:
                self._scheduler.add(item)
        while self._cancelled:
            request = self._cancelled.popleft()
            for sample in [s for s in (*self._scheduler.running, *self._scheduler.waiting) if s.request is request]:
                self._finish(sample, "cancelled")

    def _end(self) -> None:
        for sample in [*self._scheduler.running, *self._scheduler.waiting]:
            self._finish(sample, "cancelled")
        self.tree.clear()

    def _guarded(self, decoding: list[Sample], feeding: list[Sample]) -> None:
        """One call; when it fails, each sample alone, so that a fault ends only the sample it belongs to."""
        try:
            self._advance(decoding, feeding)
        except Exception as e:
            samples = decoding + feeding
            if len(samples) == 1:
                self._finish(samples[0], "error", e)
                return
            for sample in samples:
                if sample in self._scheduler.running:
                    self._guarded([sample] if sample in decoding else [], [sample] if sample in feeding else [])

    def _advance(self, decoding: list[Sample], feeding: list[Sample]) -> None:
        scheduler = self._scheduler
        rows = [row for sample in decoding for row in sample.rows]
        room = scheduler.room - len(rows)
        draft = self.decoder.draft(rows, max(0, room - bool(feeding))) if rows else None
        drafted = 0 if draft is None else len(draft.ids)
        chunks = scheduler.chunks(feeding, min(self.prefill_tokens, room - drafted)) if feeding else []
        total = len(rows) + drafted + sum(chunk.take for chunk in chunks)
        if not total or not scheduler.reserve(total):
            raise PoolFull(f"{total or 1} slots needed, {scheduler.room} of {self.pool.size} can be had")
        batch = TokenBatch(self.pool, _batch_rows(rows, draft, chunks), hidden=self.decoder.hidden)
        if any(row.vector is not None for row in rows):
            at = [i for i, row in enumerate(rows) if row.vector is not None]
            vectors = torch.stack([row.vector for row in rows if row.vector is not None])
            batch.embeddings = torch.from_numpy(batch.row_ptr[at]).to(vectors.device), vectors
        done = [chunk for chunk in chunks if chunk.last]
        deciding, owners = rows + [c.row for c in done], [s for s in decoding for _ in s.rows] + [c.sample for c in done]
        joined: list[Sample] = []
        decision: Decision | None = None
        try:
            output = self.call(batch)
            if deciding:
                sources = [-1] * len(deciding)
                for leader in dict.fromkeys(s for s in owners if s.request.leader is s):
                    places = {id(row): i for i, row in enumerate(deciding)}
                    for sibling in scheduler.join(leader):
                        joined.append(sibling)
                        deciding += sibling.rows
                        owners += [sibling] * len(sibling.rows)
                        sources += [places[id(row)] for row in leader.rows]
                decision = self._decide(deciding, sources, draft, output)
        except BaseException:
            batch.rollback()
            scheduler.unjoin(joined)
            raise
        batch.commit(_kept(decision, len(rows), len(chunks)))
        for chunk in chunks:
            chunk.row.pending = chunk.row.pending[chunk.take :]
        for sample in dict.fromkeys([*decoding, *(chunk.sample for chunk in chunks), *joined]):
            sample.forwards += 1
        if decision is None:
            return
        failed = {id(owners[i]) for i in decision.failed}
        leaders = {id(s.request): s for s in owners if s not in joined}
        for sibling in joined:
            scheduler.fork(leaders[id(sibling.request)], sibling)
        for chunk in done:
            if id(chunk.sample) not in failed:
                scheduler.remember(chunk.row)
        for i, error in decision.failed.items():
            if owners[i].finish is None:
                self._finish(owners[i], "error", error)
        self._apply(deciding, owners, draft, decision)

    def _decide(self, rows: list[Row], sources: list[int], draft: Draft | None, output: Output) -> Decision:
        """Ask the decoder. ``sources``: for a sibling's row, the leader's row whose logits it shares; -1 for the others."""
        computed = sources.count(-1)
        if draft is not None:
            more = len(rows) + 1 - len(draft.row_ptr)
            draft = Draft(draft.ids, draft.parents, torch.cat((draft.row_ptr, draft.row_ptr[-1:].expand(more))), draft.log_q)
        if computed < len(rows):
            counts = torch.ones(computed, dtype=torch.int64)
            if draft is not None:
                counts += draft.row_ptr.diff()[:computed]
            roots = counts.cumsum(0) - counts
            assert output.logits is not None
            index = torch.cat((torch.arange(len(output.logits)), roots[sources[computed:]])).to(output.logits.device)
            output = Output(output.logits[index], {layer: h[index] for layer, h in output.hidden.items()})
        return self.decoder.decide(rows, draft, output)

    def _apply(self, rows: list[Row], owners: list[Sample], draft: Draft | None, decision: Decision) -> None:
        """Turn a decision into text, stops and the next step's tokens."""
        emitted = decision.emitted.tolist()
        logprobs = None if decision.logprobs is None else decision.logprobs.tolist()
        ptr = list(range(len(rows) + 1)) if decision.emitted_ptr is None else decision.emitted_ptr.tolist()
        drafted = [0] * len(rows) if draft is None else draft.row_ptr.diff().tolist()
        for i, (row, sample) in enumerate(zip(rows, owners, strict=True)):
            if sample.finish is not None:
                continue
            ids = emitted[ptr[i] : ptr[i + 1]]
            if logprobs is not None:
                row.logprobs.extend(logprobs[ptr[i] : ptr[i + 1]])
            fed = decision.pending.get(i)
            row.pending, row.vector = ids[-1:] if fed is None else fed, decision.embeddings.get(i)
            if fed is not None:
                sample.injected += len(fed) - (fed[-1:] == ids[-1:])
            if row.lane:
                row.output.extend(ids)
                self._observe(sample, row, ids)
                continue
            used = advance(sample, ids)
            sample.drafted += drafted[i]
            accepted = min(used, max(0, len(ids) - 1)) if drafted[i] else 0
            sample.accepted += accepted
            sample.discarded += drafted[i] - accepted
            self._observe(sample, row, ids[:used])
        for sample in dict.fromkeys(owners):
            if sample.finish is not None and sample.index not in sample.request.results:
                self._finish(sample, sample.finish)
            elif sample.request.sink is not None and sample.finish is None:
                sample.request.sink(show(sample))

    def _observe(self, sample: Sample, row: Row, ids: list[int]) -> None:
        try:
            self.decoder.observe(row, ids)
        except Exception as e:
            self._finish(sample, "error", e)

    def _finish(self, sample: Sample, outcome: FinishReason, error: Exception | None = None) -> None:
        """End a sample: give back its KV, write its completion, and answer the request when it was the last."""
        request = sample.request
        sample.finish = outcome
        for row in sample.rows:
            sample.peak_slots += row.context.size
            try:
                self.decoder.release(row, outcome)
            except Exception as e:
                error = error or e
            if error is None:
                self._scheduler.remember(row)
            row.context.release()
        self._scheduler.leave(sample)
        completion = complete(sample, self.model.text, self.pool.slot_bytes, error)
        self._cost += completion.cost
        request.results[sample.index] = completion
        request.failure = request.failure or error
        if request.sink is not None:
            request.sink(show(sample, completion))
        if len(request.results) == request.n:
            request.future.set_result([request.results[i] for i in range(request.n)])

    def call(self, batch: TokenBatch) -> Output:
        """One counted model call, on the engine's thread."""
        self._forwards += 1
        return self.model.forward(batch)

    def make_free(self, slots: int) -> bool:
        """Free ``slots`` slots, from the cache, then from the youngest samples; whether it could be done. Engine's thread only."""
        scheduler = self._scheduler
        while scheduler.room < slots and scheduler.running:
            scheduler.preempt(scheduler.running[-1])
        return scheduler.reserve(slots)


def _answer(single: bool, requests: Sequence[Request], results: list[list[Completion]]) -> Any:
    failure = next((request.failure for request in requests if request.failure is not None), None)
    if failure is not None:
        raise GenerationError(f"{type(failure).__name__}: {failure}", results) from failure
    return results[0] if single else results


def _batch_rows(rows: list[Row], draft: Draft | None, chunks: list[Chunk]) -> list[calls.Row]:
    """The model call's rows: roots with their drafts, then pieces of prompts."""
    if draft is None:
        made = [calls.Row(row.context, row.pending, view=row.view) for row in rows]
    else:
        ids, parents, ptr = draft.ids.tolist(), draft.parents.tolist(), draft.row_ptr.tolist()
        made = []
        for i, row in enumerate(rows):
            own = parents[ptr[i] : ptr[i + 1]]
            tree = None if own == list(range(len(own))) else [-1, *own]
            made.append(calls.Row(row.context, row.pending + ids[ptr[i] : ptr[i + 1]], tree, row.view))
    for chunk in chunks:
        wanted = np.array([chunk.take - 1] if chunk.last else [], np.int64)
        made.append(calls.Row(chunk.row.context, chunk.row.pending[: chunk.take], view=chunk.row.view, logits=wanted))
    return made


def _kept(decision: Decision | None, rows: int, chunks: int) -> list[Ints | None] | None:
    """Per batch row, which new tokens stay; None: all of everybody's."""
    if decision is None or decision.kept is None or decision.kept_ptr is None:
        return None
    kept, ptr = decision.kept.cpu().numpy(), decision.kept_ptr.tolist()
    return [*(kept[ptr[i] : ptr[i + 1]] for i in range(rows)), *([None] * chunks)]


def _default_slots(model: Model) -> int:
    slot = model.new_pool(1).slot_bytes
    device = model.info.device
    room = int(GPU_SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else POOL_BYTES
    return max(1, min(room // slot, 64 * model.info.max_positions))
