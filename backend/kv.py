"""The KV pool: keys and values of every layer in numbered slots, and contexts, the sequences that share them.

A slot is free, cached (only the prefix tree holds it) or used (contexts count on it); ``used + cached + free == size``
holds at every moment. Host work only, but for :meth:`KVPool.rebase`. Not here: which slots to evict, and when.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..checks import whole
from ..kernels.rotary import Rotary
from ..kernels.views import Ints

RUN = 16
"""So many slots at once are given out where most are free side by side, with room to grow by :data:`GROWTH`: no gather then."""
GROWTH = 256
BOOKS = 16
"""Bytes that a slot takes in the books."""
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes: types that numpy has, to move what it knows no type for."""


class PoolFull(RuntimeError):
    """More slots were asked for than are free."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What one layer keeps per slot. ``rotary`` is None where keys carry no rotary position."""

    kv_heads: int
    dim: int
    dim_v: int
    device: torch.device
    rotary: Rotary | None = None


class KVPool:
    """``size`` slots of K [size, kv_heads, dim] and V [size, kv_heads, dim_v] for each layer, with reference counts."""

    def __init__(self, layers: Sequence[LayerSpec], size: int, dtype: torch.dtype) -> None:
        size = whole("kv_slots", size, 1)
        self.layers, self.size, self.dtype = tuple(layers), size, dtype
        self._demand_memory()
        # One block [layers, size + 1, kv_heads, dim] for all tensors of one shape and device: what moves then moves at once.
        keys = [(s.kv_heads, s.dim, s.device) for s in layers]
        values = [(s.kv_heads, s.dim_v, s.device) for s in layers]
        self._blocks: list[torch.Tensor] = []
        parts: dict[tuple[int, int, torch.device], Iterator[torch.Tensor]] = {}
        for (heads, dim, device), count in Counter([*keys, *values]).items():
            self._blocks.append(torch.zeros(count, size + 1, heads, dim, dtype=dtype, device=device))
            parts[heads, dim, device] = iter(self._blocks[-1].unbind())
        self.k_and_dump, self.v_and_dump = ([next(parts[shape]) for shape in shapes] for shapes in (keys, values))
        """With one row more, slot ``size``: what nobody wants is written there, and nobody reads it."""
        self.k, self.v = ([x[:size] for x in layers] for layers in (self.k_and_dump, self.v_and_dump))
        self._arrays = [block.view(_WHOLE[block.itemsize]).numpy() if block.is_cpu else None for block in self._blocks]
        """The same for numpy, which moves a few slots sooner; on a CPU only."""
        self.compact = all(s.device.type == "cpu" for s in layers)
        """Whether slots side by side are worth a copy: there they are read in place, elsewhere one by one all the same."""
        self._refs = np.zeros(size, np.int32)
        self._held = np.zeros(size, np.bool_)
        self._free = np.arange(size - 1, -1, -1, dtype=np.int64)  # a stack; popped in ascending order, so that runs stay together
        self._loose = self._returned = 0  # on top since the top, and since the whole, was last in order
        self._top = size
        self._cached = 0

    def _demand_memory(self) -> None:
        """Raises ``ValueError`` for more than a CPU's memory: the system would promise it, and end the process later."""
        slot = sum(s.kv_heads * (s.dim + s.dim_v) for s in self.layers if s.device.type == "cpu") * self.dtype.itemsize
        need, there = self.size * (slot + BOOKS), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if need > there:
            raise ValueError(f"kv_slots={self.size}: {need / 1e9:.1f} GB, and this machine has {there / 1e9:.1f} GB of memory")

    @property
    def free(self) -> int:
        return self._top

    @property
    def cached(self) -> int:
        return self._cached

    @property
    def used(self) -> int:
        return self.size - self._top - self._cached

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot, all layers."""
        return sum(s.kv_heads * (s.dim + s.dim_v) for s in self.layers) * self.dtype.itemsize

    def new_context(self) -> Context:
        """An empty sequence on this pool."""
        return Context(self)

    def allocate(self, n: int) -> Ints:
        """``n`` free slots, counted once each. Raises :class:`PoolFull`, changing nothing, when there are fewer."""
        slots = self.upcoming(n)
        self._top -= n
        self._refs[slots] = 1
        return slots

    def upcoming(self, n: int) -> Ints:
        """What :meth:`allocate` would give if it was asked now; puts the free slots in order, as that does."""
        if n > self._top:
            raise PoolFull(f"{n} slots asked, {self._top} free of {self.size} ({self.used} used, {self._cached} cached)")
        if n >= RUN and self._loose:
            self._order(n + GROWTH)
        return self._free[self._top - n : self._top][::-1].copy()

    def retain(self, slots: Ints) -> None:
        """One more context counts on ``slots`` (no slot twice)."""
        if self._cached:
            self._cached -= int(np.count_nonzero(self._refs[slots] == 0))
        self._refs[slots] += 1

    def release(self, slots: Ints) -> None:
        """One context fewer counts on ``slots`` (no slot twice)."""
        if not len(slots):
            return
        left, gone = self._refs[slots] - 1, slots
        if left.any():
            if (left < 0).any():
                raise ValueError(f"slots {slots[left < 0].tolist()} released more often than taken")
            gone = slots[left == 0]
        self._refs[slots] = left
        kept = int(np.count_nonzero(self._held[gone])) if len(gone) else 0
        self._cached += kept
        self._push(gone[~self._held[gone]] if kept else gone)

    def discard(self, slots: Ints) -> None:
        """Free ``slots`` that came of :meth:`allocate` and that nobody else counts on yet: those of a call under way."""
        self._refs[slots] = 0
        self._push(slots)

    def hold(self, slots: Ints) -> None:
        """The prefix tree keeps ``slots``, used or not, until :meth:`drop`."""
        if self._held[slots].any():
            raise ValueError(f"slots {slots[self._held[slots]].tolist()} are held already")
        self._held[slots] = True
        self._cached += int(np.count_nonzero(self._refs[slots] == 0))

    def drop(self, slots: Ints) -> int:
        """The prefix tree lets go of ``slots``; returns how many became free."""
        self._held[slots] = False
        idle = slots[self._refs[slots] == 0]
        self._cached -= len(idle)
        self._push(idle)
        return len(idle)

    def shared(self, slots: Ints) -> np.ndarray:
        """[n] bool: who else counts on each slot, a context or the prefix tree."""
        return (self._refs[slots] > 1) | self._held[slots]

    def idle_mask(self, slots: Ints) -> np.ndarray:
        """[n] bool: which of ``slots`` no context counts on."""
        idle: np.ndarray = self._refs[slots] == 0
        return idle

    def sound(self, slots: Ints) -> int:
        """How many of ``slots``, from the first on, hold finite numbers in every layer."""
        good = np.ones(len(slots), np.bool_)
        for tensor in (*self.k, *self.v):
            good &= tensor[torch.from_numpy(slots).to(tensor.device)].isfinite().flatten(1).all(1).cpu().numpy()
        return len(slots) if good.all() else int(good.argmin())

    def rebase(self, slots: Ints, offset: int) -> Ints:
        """Move the keys of ``slots`` by ``offset`` positions: re-rotated in float32, copied first where shared.

        Takes over the caller's count on ``slots`` and returns the slots that now hold the result.
        Raises ``ValueError`` for a model whose keys are not rotary.
        """
        if any(s.rotary is None for s in self.layers):
            raise ValueError("keys of this model carry no rotary position: they cannot be moved")
        moved = slots.copy()
        copied = self.shared(slots)
        if copied.any():
            moved[copied] = self.allocate(int(copied.sum()))
        for spec, k, v in zip(self.layers, self.k, self.v, strict=True):
            assert spec.rotary is not None
            source, target = torch.from_numpy(slots).to(spec.device), torch.from_numpy(moved).to(spec.device)
            k[target] = spec.rotary.rotate(k[source].float(), torch.full_like(source, offset)).to(k.dtype)
            if copied.any():
                v[target] = v[source]
        self.release(slots[copied])
        return moved

    def move(self, source: Ints, target: Ints) -> None:
        """Copy what slots ``source`` hold to ``target``."""
        for block, array in zip(self._blocks, self._arrays, strict=True):
            if array is not None:
                array[:, target] = array[:, source]
            else:
                index, onto = (torch.from_numpy(slots).to(block.device) for slots in (source, target))
                block.index_copy_(1, onto, block.index_select(1, index))

    def _order(self, more: int) -> None:
        """Sort what came back, with ``more`` slots below it or all of them now and then, and put the longest run on top."""
        whole = self._returned >= self.size // 64
        top = self._free[0 if whole else max(0, self._top - self._loose - more) : self._top]
        rising = np.sort(top)
        breaks = np.flatnonzero(np.diff(rising, prepend=-2, append=self.size + 1) != 1)
        first = int(breaks[np.diff(breaks).argmax()])
        top[:] = np.concatenate((rising[:first][::-1], rising[first:][::-1]))
        self._loose, self._returned = 0, 0 if whole else self._returned

    def _push(self, slots: Ints) -> None:
        self._free[self._top : self._top + len(slots)] = slots[::-1]
        self._top += len(slots)
        self._loose += len(slots)
        self._returned += len(slots)


class Context:
    """What a sequence remembers: ordered slots, the token ids they stand for, and where they are stored.

    In a *plain* context slot ``i`` stands for token ``i`` at position ``i`` and was computed causally from the ones
    before: only such a context is a function of its ids, so only its slots may enter a prefix tree.
    """

    __slots__ = ("_positions", "_slots", "_spans", "_staged_at", "edits", "ids", "pending", "plain", "pool", "size")

    def __init__(self, pool: KVPool) -> None:
        self.pool = pool
        self.ids: list[int] = []
        self.size = 0
        """Slots committed."""
        self.pending = 0
        """Slots staged by the call under way, right behind the committed ones."""
        self.plain = True
        self.edits = 0
        """How often slots of it, committed or staged, were given back or exchanged."""
        self._slots: Ints = np.empty(64, np.int64)
        self._positions: Ints | None = None
        self._staged_at: Ints | None = None
        """Where the staged slots are stored, if all others are at 0, 1, 2, … and these may not be the next."""
        self._spans: list[int] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def slots(self) -> Ints:
        """[size] committed slots."""
        return self._slots[: self.size]

    @property
    def staged(self) -> Ints:
        """[size + pending] committed slots and those of the call under way."""
        return self._slots[: self.size + self.pending]

    @property
    def next_position(self) -> int:
        return self.size if self._positions is None else int(self._positions[self.size - 1]) + 1 if self.size else 0

    @property
    def in_order(self) -> bool:
        """Whether every slot is stored at 0, 1, 2, …, those of the call under way too."""
        return self._positions is None and self._staged_at is None

    def stored_positions(self) -> Ints:
        """[size + pending] position each slot is stored at."""
        n = self.size + self.pending
        if self._staged_at is not None:
            return np.concatenate((np.arange(self.size), self._staged_at))
        return np.arange(n) if self._positions is None else self._positions[:n]

    def stage(self, slots: Ints, positions: Ints | None = None) -> None:
        """Put ``slots`` behind the committed ones for one call; they stay tentative until :meth:`commit`.

        ``positions``: where their keys are stored, if not at the next positions in order.
        """
        if self.pending:
            raise ValueError("a context takes new tokens from one row of a call at a time")
        n = self.size + len(slots)
        if n > len(self._slots):
            self._slots = np.concatenate((self._slots, np.empty(max(n, len(self._slots)), np.int64)))
        self._slots[self.size : n] = slots
        if self._positions is None:
            self._staged_at = None if positions is None else np.asarray(positions)
        else:
            if len(self._positions) < len(self._slots):
                self._positions = np.concatenate((self._positions, np.empty(len(self._slots) - len(self._positions), np.int64)))
            start = self.next_position
            self._positions[self.size : n] = np.arange(start, start + len(slots)) if positions is None else positions
        self.pending = len(slots)

    def commit(self, ids: Sequence[int], kept: Sequence[int] | None = None, spans: Sequence[int] | None = None) -> None:
        """Keep the staged slots ``kept`` (indices among them, in order; None: all), standing for ``ids``; free the rest.

        ``spans``: how many ids each kept slot stands for, where that is not one.
        """
        first, count = self.size, self.pending if kept is None else len(kept)
        ahead = self._staged_at if kept is None or self._staged_at is None else self._staged_at[kept]
        if (sum(spans) if spans is not None else count) != len(ids):
            raise ValueError(f"{len(ids)} token ids for {count} kept slots" + (f" of spans {list(spans)}" if spans else ""))
        if kept is not None and count and kept[-1] == count - 1:  # the first ones, in order: nothing moves
            self.pool.discard(self._slots[first + count : first + self.pending])
        elif kept is not None:
            staged, path = self._slots[first : first + self.pending].copy(), np.array(kept, np.int64)
            if self.pool.compact:  # what is kept moves to the front, and the slots of a text stay side by side
                there = next((i for i, node in enumerate(kept) if node != i), count)
                self.pool.move(staged[path[there:]], staged[there:count])
                thrown = staged[count:]
            else:
                self._slots[first : first + count] = staged[path]
                thrown = np.delete(staged, path)
            if self._positions is not None:
                self._positions[first : first + count] = self._positions[first + path]
            self.pool.discard(thrown)
        self.edits += count < self.pending
        self.pending, self._staged_at = 0, None
        self.size += count
        if spans is not None and (self._spans is not None or any(n != 1 for n in spans)):
            if self._spans is None:
                self._spans = [1] * first
            self.plain = False
        if self._spans is not None:
            self._spans.extend([1] * count if spans is None else spans)
        self.ids.extend(ids)
        if ahead is not None and (ahead != np.arange(first, self.size)).any():
            self._positions = np.concatenate((np.arange(first), ahead, np.empty(len(self._slots) - self.size, np.int64)))
            self.plain = False
        elif self._positions is not None and self.plain:
            self.plain = bool((self._positions[first : self.size] == np.arange(first, self.size)).all())
            if self.plain:
                self._positions = None  # they are 0, 1, 2, … again, as where nothing is said

    def rollback(self) -> None:
        """Forget what the call under way staged."""
        self.edits += 1
        self.pool.discard(self._slots[self.size : self.size + self.pending])
        self.pending, self._staged_at = 0, None

    def adopt(self, ids: Sequence[int], slots: Ints) -> None:
        """Start with a cached prefix: slots that stand for ``ids``, one each, counted here once more."""
        self.pool.retain(slots)
        self.stage(slots)
        self.commit(ids)

    def fork(self) -> Context:
        """A context that shares every committed slot with this one and goes its own way from here."""
        twin = Context(self.pool)
        self.pool.retain(self.slots)
        twin._slots = self._slots.copy()
        twin._positions = None if self._positions is None else self._positions.copy()
        twin._spans = None if self._spans is None else list(self._spans)
        twin.ids, twin.size, twin.plain = list(self.ids), self.size, self.plain
        return twin

    def truncate(self, tokens: int) -> list[int]:
        """Keep the first ``tokens`` token ids. A slot that stands for several tokens cannot be cut: it is dropped whole,
        and the ids of it that were to stay are returned, to be computed again."""
        if not 0 <= tokens <= len(self.ids):
            raise ValueError(f"cannot keep {tokens} of {len(self.ids)} tokens")
        self.edits += 1
        size, covered = tokens, tokens
        if self._spans is not None:
            ends = np.cumsum(self._spans)
            size = int(np.searchsorted(ends, tokens, side="right"))
            covered = int(ends[size - 1]) if size else 0
            del self._spans[size:]
        gone = self._slots[size : self.size].copy()
        again = self.ids[covered:tokens]
        del self.ids[covered:]
        self.size = size
        self.pool.release(gone)
        return again

    def rebase(self, offset: int) -> None:
        """Move the whole context by ``offset`` positions; it is no longer plain."""
        moved = self.pool.rebase(self.slots, offset)
        self.edits += 1
        positions = self.stored_positions() + offset
        self._slots[: self.size] = moved
        self._positions = np.concatenate((positions, np.empty(len(self._slots) - self.size, np.int64)))
        self.plain = self.plain and offset == 0

    def release(self) -> None:
        """Give everything back; the context is empty again."""
        if self.pending:
            self.rollback()
        gone = self.slots.copy()
        self.edits += 1
        self.ids, self.size, self.plain = [], 0, True
        self._positions, self._spans = None, None
        self.pool.release(gone)
