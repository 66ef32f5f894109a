"""Decode steps of our own transformer, recorded once and replayed: CUDA graphs over tables at fixed addresses.

A step of up to 256 new tokens runs as the recording of the next larger size, whose padding writes to the pool's dump slot and
is cut off the result. Exact. One recording per pool, size and form: plain decoding of all sizes by a pool's first call, other
forms (trees, prefixes read once, taps, where a recording is split) when first met; all share one memory pool. Left to the plain
path are calls with replaced embeddings, logits asked of some tokens only (prefill), rotated parts, or more than the tables hold,
and what a tap calls while a replay is under way. Cost of a replay: one copy to the device, one launch a piece, and a copy of the
result; nothing waits. While a step of plain decoding is computed, the tables of the next one are made and sent, all but its
token ids.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from ..kernels import attention
from ..kernels.static import Form, StaticWork
from ..kernels.work import Shape, Tiling
from .batch import Ahead, NewTokens, Output, Stages, TokenBatch, walk
from .kv import KVPool

if TYPE_CHECKING:
    from .transformer import Transformer

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""New tokens of a recording."""
LISTED = 1 << 21
"""Slots that the rows of a step may list together: 16 MB on the device."""
WARM_UPS = 2
"""Runs before one is recorded: they compile kernels and make what is kept between calls."""

Run = Callable[[], Stages]


class Recorder(Protocol):
    """What records a run over fixed buffers, stage by stage, and gives back its replay, which returns the same buffers."""

    def __call__(self, run: Run) -> Run: ...


class CudaRecorder:
    """By ``torch.cuda.CUDAGraph``, on a stream of its own; all recordings share one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._alive: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, run: Run) -> Run:
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(current):  # which is so again if a recording breaks off
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)
            if not self._alive:  # the memory pool of recordings that are gone is gone with them
                self._pool = torch.cuda.graph_pool_handle()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    for _ in run():
                        pass
            current.wait_stream(self._stream)
            stages = run()
            recorded: list[tuple[torch.cuda.CUDAGraph, tuple[int, torch.Tensor] | None]] = []
            output: Output | None = None
            while output is None:
                graph, stop = torch.cuda.CUDAGraph(), None
                # Other engines' threads may allocate meanwhile: only what this one does is held against the recording.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    try:
                        stop = next(stages)
                    except StopIteration as end:
                        output = end.value
                recorded.append((graph, stop))
                self._alive.add(graph)

        def replay() -> Stages:
            for graph, stop in recorded:
                graph.replay()
                if stop is not None:
                    yield stop
            assert output is not None
            return output

        return replay


class _Key(NamedTuple):
    """What a pool's recording is of: most new tokens, form, and the layers whose input is given back, or tapped."""

    size: int
    form: Form
    hidden: tuple[int, ...]
    taps: tuple[int, ...]


def refuses(device: torch.device, impl: str = "auto") -> str | None:
    """Why no steps are recorded there; None: they are."""
    if device.type != "cuda":
        return f"{device}: only a GPU records"
    if attention.choose(impl, device)[0] == "torch":
        return "attention in plain torch asks the host about its tables"
    return None


class Graphs:
    """The recordings of one model. Belongs to the thread that computes with it."""

    def __init__(
        self, model: Transformer, tiling: Callable[[Shape, torch.device, int], Tiling], recorder: Recorder,
        sizes: Sequence[int] = SIZES,
    ) -> None:  # fmt: skip
        # The model holds this, so a strong reference back would leave both to the garbage collector, with all their memory.
        self._model, self._tiling, self._recorder = weakref.ref(model), tiling, recorder
        self._sizes = sorted(sizes)
        self._works: dict[int, StaticWork] = {}
        self._logits: torch.Tensor | None = None
        self._replays: weakref.WeakKeyDictionary[KVPool, dict[_Key, Run]]
        self._replays = weakref.WeakKeyDictionary()
        self._replaying = False
        self.failure: Exception | None = None
        """Why a step could not be recorded; none is from then on."""
        self.replayed = 0
        """Calls that were replays."""
        self.prepared = 0
        """Those of them whose tables were sent before their tokens were known."""

    @property
    def tokens(self) -> int:
        """New tokens of the largest recording."""
        return self._sizes[-1]

    @classmethod
    def of(cls, model: Transformer, recorder: Recorder | None = None, sizes: Sequence[int] = SIZES) -> Graphs | None:
        """None where attention runs in plain torch, which asks the host about its tables."""
        info, dim = model.info, model.dim
        twin = attention.fast_twin(model.impl, info.device, info.dtype, dim, dim)
        return None if twin is None else cls(model, twin.tiling, recorder or CudaRecorder(info.device), sizes)

    def forward(self, batch: TokenBatch) -> Output | None:
        """What ``model.forward`` returns, or None for a call that no recording computes. The batch has been checked."""
        tokens = len(batch.ids)
        if self.failure is not None or self._replaying or batch.embeddings is not None or batch.wanted is not None:
            return None
        if tokens > self._sizes[-1]:
            return None
        try:
            replay = self._find(batch)
        except Exception as error:  # for want of memory, say: what is not recorded may still run
            self._replays.clear()
            self.failure = error
            warnings.warn(f"decode steps are not recorded from here on: {type(error).__name__}: {error}", stacklevel=2)
            return None
        if replay is None:
            return None
        self._replaying = True
        try:
            output = walk(replay(), batch.taps, tokens)
        finally:
            self._replaying = False
        self.replayed += 1
        # Copies, because the next replay writes to the same place.
        logits = None if output.logits is None else output.logits[:tokens].clone()
        return Output(logits, {layer: x[:tokens].clone() for layer, x in output.hidden.items()})

    def _find(self, batch: TokenBatch) -> Run | None:
        """The recording of this step, made where there is none yet, with its tables on the device. None: they do not fit."""
        replays = self._replays.get(batch.pool)
        if replays is None:
            replays = self._record_all(batch.pool, batch.hidden)
        work = self._work(len(batch.ids))
        form = work.held(batch.views)
        if form is not None:
            work.tell(batch.ids)
            self.prepared += 1
        else:
            form = work.fill(batch.ids, batch.positions, batch.slots, batch.pool.size, batch.views)
            if form is None:
                return None
        key = _Key(work.queries, form, batch.hidden, tuple(sorted(batch.taps)))
        if key not in replays:
            replays[key] = self._record(work, key, batch.pool)
        return replays[key]

    def prepare(self, batch: TokenBatch) -> Ahead | None:
        """What ``model.prepare`` returns: its tables are sent behind the call under way, which reads those before."""
        known = batch.pool in self._replays and not self._replaying
        ahead = Ahead.of(batch) if known and len(batch.ids) <= self._sizes[-1] else None
        if ahead is not None:
            self._work(len(ahead.slots)).fill(None, ahead.views.positions, ahead.slots, batch.pool.size, ahead.views)
        return ahead

    def _work(self, tokens: int) -> StaticWork:
        return self._works[next(size for size in self._sizes if size >= tokens)]

    def _record_all(self, pool: KVPool, hidden: tuple[int, ...]) -> dict[_Key, Run]:
        """Plain decoding of every size, the largest first: the smaller ones then live in memory that it has taken."""
        model, arena, found = self._owner, None, {}
        spec, info = model.info.layers[0], model.info
        shape = Shape(model.heads, spec.kv_heads, spec.dim, spec.dim_v, info.dtype.itemsize)
        for size in reversed(self._sizes):
            if size not in self._works:
                slots = min(LISTED, size * info.max_positions)
                tiling = self._tiling(shape, info.device, size)
                self._works[size] = StaticWork(size, slots, model.windows, shape, tiling, info.device, arena)
            work = self._works[size]
            arena = work.arena
            work.clear(pool.size)
            key = _Key(size, Form(masked=False, large=False), hidden, ())
            found[key] = self._record(work, key, pool)
        self._replays[pool] = found
        return found

    def _record(self, work: StaticWork, key: _Key, pool: KVPool) -> Run:
        model, views = self._model, work.views(key.form)
        tables = len(views.plans)
        if self._logits is None and self._owner.has_head:  # one place for all: each result is copied before the next replay
            info = self._owner.info
            self._logits = torch.empty(self.tokens, info.vocab_size, dtype=info.dtype, device=info.device)
        logits = None if self._logits is None else self._logits[: work.queries]
        tokens = NewTokens(work.ids, work.positions, work.new_slots, views, pool.k_and_dump, pool.v_and_dump, logits)

        def run() -> Stages:
            found = model()
            assert found is not None
            return found.stages(tokens, key.hidden, key.taps)

        replay = self._recorder(run)
        if any(name[0] == "work" for name in list(views.plans)[tables:]):
            raise RuntimeError("attention read tables of its own in a recording, whose contents nobody will renew")
        return replay

    @property
    def _owner(self) -> Transformer:
        found = self._model()
        assert found is not None
        return found
