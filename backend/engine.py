"""The engine: any number of requests, from any thread or event loop, on one model with one decoder.

Continuous batching, shared prefixes, streams, cancellation, and a bill. A request can be cancelled at any moment, and a fault
in one leaves the others and every slot accounted for. This file is the doors, on the callers' threads; ``runner.py`` is the loop
behind them. Not here: how tokens are chosen (``decoding/``), several devices.
"""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from numbers import Integral
from typing import Any, TypeVar, cast

from ..checks import flag, instance, once, whole
from ..schema import Completion, Cost, Prompt
from .decoder import Decoder
from .generator import GenerationError, Generator, Score, progress_bar
from .kv import KVPool
from .loop import Loop
from .memory import GPU_MEMORY_UTILIZATION, MemoryPlan, most_decided, share_out
from .model import Model
from .openmp import release_workers
from .request import Piece, Request, Sampling, check_ids, draw_seed, split_stops
from .runner import Runner
from .score import score_continuations, score_labels
from .text import is_listed
from .usage import Usage

T = TypeVar("T")

POOL_BYTES = 1 << 30
"""KV memory an engine takes on a CPU when not told how much."""


@once("model", "decoder", "pool", "memory", "max_rows")
class Engine(Generator):
    """Serves ``model`` with ``decoder``. Thread-safe; ``close()`` or ``with`` ends it. A forked child needs its own.

    ``kv_slots``: size of the KV pool in tokens; default: on a CPU what 1 GiB holds, at most 64 full contexts, on a GPU what is
    left when weights, steps and pool together fill ``gpu_memory_utilization`` of it (:attr:`memory` says how).
    ``prefill_tokens``: prompt tokens computed per step beside decoding. ``max_rows``: rows decoding at once; on a GPU, where
    memory is kept for the logits of so many tokens, drafted ones are cut to that, and a decoder that always drafts has fewer
    rows. ``batch_invariant``: text and log-probabilities of a request are the same bits whatever shares the batch, is cached, or
    was drafted, however prompts are cut and whoever is preempted, for one dtype, device, number of threads and build of torch;
    slower; ``ValueError`` for a model or decoder that cannot. Without it that holds up to rounding, which in bfloat16 can change
    a token.

    Sampling defaults come from the checkpoint's generation_config; where it is silent decoding is greedy.
    """

    def __init__(
        self, model: Model, decoder: Decoder, *, kv_slots: int | None = None, prefill_tokens: int = 512, max_rows: int = 256,
        gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION, batch_invariant: bool = False,
    ) -> None:  # fmt: skip
        instance("model", model, Model, "a Model, as forethought.load('nano') gives")
        instance("decoder", decoder, Decoder, "a Decoder, as Autoregressive() makes")
        prefill_tokens = whole("prefill_tokens", prefill_tokens, 1)
        max_rows = whole("max_rows", max_rows, 1)
        kv_slots = None if kv_slots is None else whole("kv_slots", kv_slots, 1)
        if flag("batch_invariant", batch_invariant) and (why := model.refuses_invariance()) is not None:
            raise ValueError(f"batch_invariant=True: {why}")
        if batch_invariant and decoder.fixed_draft:
            raise ValueError(f"batch_invariant=True: under this rule of {type(decoder).__name__} text depends on what is drafted")
        self.model, self.decoder = model, decoder
        self.memory: tuple[MemoryPlan, ...] = share_out(
            [model, *decoder.models()], utilization=gpu_memory_utilization, tokens=prefill_tokens, rows=max_rows,
            kv_slots=kv_slots,
        )  # fmt: skip
        """What becomes of the memory of each GPU in use; none on a CPU."""
        decided = most_decided(max_rows) if self.memory else None
        self.max_rows = max_rows if decided is None else max(1, min(max_rows, decided // (1 + decoder.fixed_draft)))
        if kv_slots is None:
            kv_slots = self.memory[0].slots if self.memory else _slots_on_cpu(model)
        self.pool: KVPool = model.new_pool(kv_slots)
        decoder.bind(model)  # last: with a model that has no room here it may still serve another engine
        self._runner = Runner(model, decoder, self.pool, prefill_tokens, self.max_rows, decided, batch_invariant)
        self._inbox: deque[Callable[[], None]] = deque()
        """What the engine's thread is to do before its next step, in order."""
        self._loop = Loop.of(model.info.device)
        self._closed = False

    # ---- the doors -------------------------------------------------------------------------------------------------

    @property
    def cost(self) -> Cost:
        """Everything this engine has computed for what has ended; ``forwards`` are real model calls, shared by all requests."""
        return self._runner.cost

    @property
    def usage(self) -> Usage:
        """Where this engine's rows and seconds went so far: a copy."""
        return self._runner.usage.copy()

    async def aunfinished(self) -> int:
        """How many samples have been asked for, by whomever, and have not ended; one that waits for a row counts too."""
        return await asyncio.wrap_future(self._call(lambda: self._runner.unfinished))

    def clear_cache(self) -> None:
        """Forget all cached prefixes."""
        self._call(self._runner.tree.clear).result()

    def close(self) -> None:
        """Cancel what runs, wait until it has ended, refuse new work. In a forked child there is nothing to end."""
        if self._loop.alive:
            self._loop.demand()
            self._closed = True
            self._call(self._end).result()
        self._closed = True

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def generate(self, prompts: Any, *, progress: bool | None = None, **options: Any) -> Any:
        single, requests = self._requests(prompts, options)
        done: queue.SimpleQueue[None] = queue.SimpleQueue()
        for request in requests:
            request.future.add_done_callback(lambda _: done.put(None))
        self._submit(requests)
        try:
            with progress_bar(len(requests), progress) as bar:
                for _ in requests:
                    done.get()
                    bar.update()
        except KeyboardInterrupt:
            self._cancel(requests)
        except BaseException:
            self._cancel(requests)
            raise
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
        return self._pieces(self._one_sample(prompt, options))

    def _pieces(self, request: Request) -> Iterator[Piece]:
        pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._watch(request, pieces.put)
        try:
            while (piece := pieces.get()) is not None:
                yield piece
                self._loop.demand()
            _answer(True, [request], [request.future.result()])
        finally:
            self._cancel([request])

    def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[Piece]:
        return self._apieces(self._one_sample(prompt, options))

    async def _apieces(self, request: Request) -> AsyncIterator[Piece]:
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | None]()

        def put(piece: Piece | None) -> None:
            with suppress(RuntimeError):  # the consumer's loop is closed: nobody listens
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        self._watch(request, put)
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            _answer(True, [request], [request.future.result()])
        finally:
            self._cancel([request])

    def score(self, prompt: Prompt, continuations: Any = None, *, labels: Any = None, **encoding: Any) -> Any:
        return self._score(prompt, continuations, labels, encoding).result()

    async def ascore(self, prompt: Prompt, continuations: Any = None, *, labels: Any = None, **encoding: Any) -> Any:
        return await asyncio.wrap_future(self._score(prompt, continuations, labels, encoding))

    # ---- requests --------------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt, *, chat: Mapping[str, Any] | None = None, parse_special: bool | None = None) -> list[int]:
        """Token ids of a prompt; a prompt of ids needs no tokenizer. Options as of ``generate``.

        Refuses ids that the model does not have.
        """
        if chat is not None and not isinstance(chat, Mapping):
            raise TypeError(f"chat={chat!r}: a mapping of a chat template's options, not {type(chat).__name__}")
        if parse_special is not None and not isinstance(parse_special, bool):
            raise TypeError(f"parse_special={parse_special!r}: None, True or False, not {type(parse_special).__name__}")
        if self.model.text is not None:
            ids = self.model.text.encode(prompt, chat=chat, parse_special=parse_special)
        elif not isinstance(prompt, str) and not is_listed(prompt):
            raise TypeError(f"a prompt is text, token ids or chat messages, not {type(prompt).__name__}")
        elif isinstance(prompt, str) or any(isinstance(i, str | Mapping) for i in prompt):
            raise ValueError(f"{self.model.info.name} has no tokenizer: give token ids")
        else:
            ids = list(cast(Sequence[int], prompt))
        return check_ids(ids, self.model.info.vocab_size, "prompt")

    def _requests(self, prompts: Any, options: dict[str, Any]) -> tuple[bool, list[Request]]:
        """One request per prompt; also whether a single prompt was given bare."""
        if not isinstance(prompts, str) and not is_listed(prompts):
            raise TypeError(f"prompts are text, token ids or chat messages, or a list of these, not {type(prompts).__name__}")
        bare = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral | Mapping))
        return bare, [self._request(cast(Prompt, prompt), **options) for prompt in ([prompts] if bare else prompts)]

    def _one_sample(self, prompt: Prompt, options: dict[str, Any]) -> Request:
        request = self._request(prompt, **options)
        if request.n != 1:
            raise ValueError(f"n={request.n}: a stream is of one sample")
        return request

    def _request(
        self,
        prompt: Prompt,
        *,
        n: int = 1,
        max_tokens: int | None = None,
        min_tokens: int | None = None,
        stop: Any = None,
        include_stop: bool = False,
        ignore_eos: bool = False,
        logprobs: Any = None,
        seed: int | None = None,
        first: int = 0,
        certainty: bool = False,
        chat: Mapping[str, Any] | None = None,
        parse_special: bool | None = None,
        **sampling: Any,
    ) -> Request:
        self._demand()
        info, known = self.model.info, Sampling.__dataclass_fields__
        if unknown := sorted(set(sampling) - set(known)):
            raise TypeError(f"unknown option {unknown[0]!r}; sampling options: {', '.join(known)}")
        ids = self.encode(prompt, chat=chat, parse_special=parse_special)
        stop_ids, stop_strings = split_stops(stop)
        specials = {} if self.model.text is None or not stop_strings else self.model.text.specials
        stop_names = {specials[string]: string for string in stop_strings if string in specials}
        check_ids([*stop_ids, *stop_names], info.vocab_size, "stop")
        if stop_strings and self.model.text is None:
            raise ValueError(f"stop={stop!r}: {info.name} has no tokenizer, so stops are token ids")
        room = min(info.max_positions, self.pool.size) - len(ids)
        if room < 1:
            raise ValueError(
                f"a prompt of {len(ids)} tokens leaves no room: {info.max_positions} positions, a pool of {self.pool.size} slots"
            )
        flag("ignore_eos", ignore_eos)
        if max_tokens is None:
            max_tokens = room if info.defaults.max_tokens is None else min(room, info.defaults.max_tokens)
        max_tokens = whole("max_tokens", max_tokens, 1)
        if min_tokens is None:
            min_tokens = min(info.defaults.min_tokens, max_tokens)
        own_stops = () if ignore_eos else (i for i in info.defaults.stop_ids if i < info.vocab_size)
        request = Request(
            prompt=ids, n=n, sampling=Sampling.resolve(info.defaults, sampling), max_tokens=max_tokens, min_tokens=min_tokens,
            stop_ids=stop_ids.union(own_stops, stop_names), stop_strings=stop_strings, include_stop=include_stop,
            stop_names={i: name for i, name in stop_names.items() if i not in stop_ids},
            logprobs="raw" if logprobs is True else logprobs or None, seed=draw_seed() if seed is None else seed,
            first=first, certainty=certainty,
        )  # fmt: skip
        check_ids(request.sampling.logit_bias, info.vocab_size, "logit_bias")
        asked = f"{len(ids)} prompt tokens + max_tokens={max_tokens}"
        if len(ids) + max_tokens > info.max_positions:
            raise ValueError(f"{asked} exceed the model's {info.max_positions} positions")
        for pool, slots in self.decoder.slots(request, self.pool).items():
            if slots > pool.size:
                raise ValueError(f"{asked} can need {slots} slots of a pool of {pool.size}")
        return request

    def _demand(self) -> None:
        """Raises ``RuntimeError`` where this engine takes no work."""
        if self._closed:
            raise RuntimeError("this engine is closed")
        self._loop.demand()

    def _submit(self, requests: Sequence[Request]) -> None:
        self._loop.demand()
        release_workers()  # the caller waits, the engine's thread computes
        for request in requests:
            request.future.set_running_or_notify_cancel()  # from here on only the engine ends it
        self._post(lambda: self._take_in(requests))

    def _watch(self, request: Request, put: Callable[[Piece | None], None]) -> None:
        """Submit ``request``; its pieces are ``put`` as they come, and None at the end."""
        request.sink = put
        request.future.add_done_callback(lambda _: put(None))
        self._submit([request])

    def _cancel(self, requests: Sequence[Request]) -> None:
        """End those of ``requests`` that still run. By the same queue as they came, so never ahead of them."""
        if self._loop.alive and not all(request.future.done() for request in requests):
            self._post(lambda: self._runner.end(requests, "cancelled"))

    def _score(
        self, prompt: Prompt, continuations: Any, labels: Any, encoding: dict[str, Any]
    ) -> Future[list[Score]] | Future[dict[str | int, float]]:
        self._demand()
        if (continuations is None) == (labels is None):
            raise TypeError("score takes continuations or labels, one of them")
        ids = self.encode(prompt, **encoding)
        if labels is not None:
            return self._call(lambda: score_labels(self._runner, ids, labels))
        return self._call(lambda: score_continuations(self._runner, ids, continuations))

    def _call(self, work: Callable[[], T]) -> Future[T]:
        """Run ``work`` on the engine's thread between two steps."""
        self._loop.demand()
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work()
            except BaseException as e:
                future.set_exception(e)
            else:
                future.set_result(result)

        release_workers()
        self._post(run)
        return future

    def _post(self, work: Callable[[], None]) -> None:
        self._inbox.append(work)
        self._loop.wake(self)

    # ---- on the engine's thread --------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Do what was posted, then one step; whether there is more to do. Called by the device's loop only."""
        self._runner.usage.wake()
        while self._inbox:
            self._inbox.popleft()()
        more = self._runner.step() or bool(self._inbox)
        self._runner.usage.rest()
        return more

    def _take_in(self, requests: Sequence[Request]) -> None:
        for request in requests:
            try:
                if self._closed:
                    raise RuntimeError("this engine is closed")
                self._runner.add(request)
            except BaseException as e:
                request.future.set_exception(e)

    def _end(self) -> None:
        self._runner.end(None, "cancelled")
        self._runner.tree.clear()


def _answer(single: bool, requests: Sequence[Request], results: list[list[Completion]]) -> Any:
    failure = next((request.failure for request in requests if request.failure is not None), None)
    if failure is not None:
        raise GenerationError(f"{type(failure).__name__}: {failure}", results) from failure
    return results[0] if single else results


def _slots_on_cpu(model: Model) -> int:
    return max(1, min(POOL_BYTES // model.new_pool(1).slot_bytes, 64 * model.info.max_positions))
