"""A smaller model as a source of drafts: it reads what the target reads, and guesses on.

It runs on the same backend, with a pool, contexts and a prefix tree of its own; a row's context follows the row's text by
itself, whatever was accepted, rejected or skipped meanwhile. Cost: one forward of the draft model a level of the tree, all rows
together. Not here: what becomes of the drafts; a process or stream of its own (that is Mirror's).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..backend import batch as calls
from ..backend.batch import TokenBatch
from ..backend.kv import Context, KVPool
from ..backend.model import Model
from ..backend.prefix import PrefixTree, common
from ..backend.request import Request, Row
from ..checks import once, whole
from ..kernels.transfer import put, read
from . import noise
from .sampling import Nodes, Sampler
from .source import Source
from .tree import Tree

MIN_SHARED = 16
"""A row waits for another one's prompt to be computed if they share so many tokens."""
PREFILL = 2048
"""Tokens of lagging contexts computed in a call, at most."""


@dataclass(slots=True)
class _Line:
    """What the draft model has of a row: contexts that end differently, the row's own text first."""

    contexts: list[Context] = field(default_factory=list)
    agreed: int = 0
    """Tokens of the first context known to be the row's."""


@dataclass(slots=True)
class _Leaf:
    """A place to guess on from: node ``node`` of row ``row``'s tree, with the draft model's context up to its parent."""

    row: int
    node: int
    context: Context
    path: list[int]
    score: float


@once("model", "sampled")
class DraftModel(Source):
    """Chains, or trees of ``fans[d]`` children for each node of depth d, from ``model``.

    ``sampled``: children are drawn from the model's own law, for rules that weigh it; else picked for target matching.
    """

    def __init__(self, model: Model, fans: Sequence[int], *, sampled: bool = False, kv_slots: int | None = None) -> None:
        self.model, self.fans, self.sampled = model, [whole("fans", fan, 1) for fan in fans], sampled
        self._kv_slots = None if kv_slots is None else whole("kv_slots", kv_slots, 1)
        self.laws: list[dict[int, npt.NDArray[np.float64]]] = []
        """Of each row of the last proposal: node -> what its children were drawn from [vocabulary], if ``sampled``."""
        self._lock = threading.Lock()  # whoever brings a request asks for its slots
        self._pool: KVPool | None = None
        self._cache: PrefixTree | None = None
        self._lines: dict[int, _Line] = {}
        self._vocabulary = model.info.vocab_size
        self._sampler = Sampler()

    def bind(self, model: Model) -> None:
        mine, name = self.model.text, self.model.info.name
        if model.text is not None and mine is not None:
            if mine.fingerprint != model.text.fingerprint:
                raise ValueError(f"{name} cannot draft for {model.info.name}: their tokenizers number other pieces")
        elif model.info.vocab_size != self.model.info.vocab_size:
            raise ValueError(
                f"{name} has {self.model.info.vocab_size} tokens, {model.info.name} {model.info.vocab_size}, and there are no "
                "tokenizers to tell whether only padding differs"
            )
        self._vocabulary = model.info.vocab_size

    def models(self) -> list[Model]:
        return [self.model]

    def slots(self, request: Request, pool: KVPool) -> dict[KVPool, int]:
        need = min(len(request.prompt) + request.max_tokens, self.model.info.max_positions)
        return {self._own(pool): need}

    def _own(self, pool: KVPool) -> KVPool:
        """The draft model's pool, as large as the engine's unless it was said."""
        with self._lock:
            if self._pool is None:
                self._pool = self.model.new_pool(self._kv_slots or pool.size)
                self._cache = PrefixTree(self._pool)
            return self._pool

    # ---- following the rows ---------------------------------------------------------------------------------------------

    def _follow(self, row: Row, line: _Line) -> list[int]:
        """Keep of ``line`` what is the row's text; return the tokens of it that are still to be computed, at least the last."""
        text = [*row.prompt, *row.output]
        shared = [line.agreed + common(c.ids[line.agreed :], text[line.agreed : -1]) for c in line.contexts]
        if not shared:
            line.contexts = [self._pool_of(row).new_context()]
            line.agreed = 0
            shared = [0]
        best = max(range(len(shared)), key=lambda i: shared[i])
        for i, context in enumerate(line.contexts):
            if i != best:
                context.release()
        context = line.contexts[best]
        line.contexts, line.agreed = [context], shared[best]
        context.truncate(shared[best])
        if not context.size and self._cache is not None:
            found = self._cache.match(text[:-1])
            context.adopt(text[: len(found)], found)
            line.agreed = len(found)
        return text[context.size :]

    def _pool_of(self, row: Row) -> KVPool:
        return self._own(row.context.pool)

    def _make_room(self, need: int, rows: Sequence[Row]) -> bool:
        """Free ``need`` slots: from the cache, then from rows that are not asked for."""
        pool, cache = self._pool, self._cache
        if pool is None or cache is None:
            return False
        if pool.free < need:
            cache.evict(max(need - pool.free, pool.size // 16))  # not at every token
        asked = {id(row) for row in rows}
        for key in [key for key in self._lines if key not in asked]:
            if pool.free >= need:
                break
            self._drop(key)
            cache.evict(need - pool.free)
        return pool.free >= need

    def _drop(self, key: int) -> None:
        for context in self._lines.pop(key, _Line()).contexts:
            context.release()

    def _catch_up(self, rows: Sequence[Row], wanted: Sequence[int]) -> dict[int, list[int]]:
        """Bring the contexts of rows ``wanted`` up to their last tokens; returns these, still to be fed, of the rows that are."""
        ready: dict[int, list[int]] = {}
        self.late = 0.0
        while wanted:
            late: list[int] = []
            call: list[tuple[int, list[int]]] = []
            room = PREFILL
            for i in wanted:
                row, line = rows[i], self._lines.setdefault(id(rows[i]), _Line())
                todo = self._follow(row, line)
                if len(row.prompt) + len(row.output) + len(self.fans) > self.model.info.max_positions or not self._reads(todo):
                    continue
                if len(todo) <= 1 + len(self.fans):
                    line.agreed = line.contexts[0].size
                    ready[i] = todo
                    continue
                late.append(i)  # a prompt, or a row that was preempted or not asked for long
                if room and not any(common(todo, other) >= MIN_SHARED for _, other in call):
                    call.append((i, todo[: min(room, len(todo) - 1)]))
                    room -= len(call[-1][1])
            start = time.perf_counter()
            if call and not self._feed(rows, call):
                break
            self.late += time.perf_counter() - start
            wanted = late
        return ready

    def _feed(self, rows: Sequence[Row], call: Sequence[tuple[int, list[int]]]) -> bool:
        """Compute some tokens of some rows, for nothing but their KV; False if there is no room."""
        if not self._make_room(sum(len(ids) for _, ids in call), rows):
            return False
        made = [calls.Row(self._lines[id(rows[i])].contexts[0], ids, logits=np.array([], np.int64)) for i, ids in call]
        self._run(made, [rows[i] for i, _ in call])
        for i, _ in call:
            line = self._lines[id(rows[i])]
            line.agreed = line.contexts[0].size
            if self._cache is not None:
                self._cache.insert(line.contexts[0].ids, line.contexts[0].slots)
        return True

    def _reads(self, ids: Sequence[int]) -> bool:
        return max(ids) < self.model.info.vocab_size

    def _run(self, made: Sequence[calls.Row], rows: Sequence[Row]) -> Tensor:
        """One call, kept whole and billed to ``rows``; its logits, as wide as the target's."""
        call = TokenBatch(made[0].context.pool, made)
        try:
            logits = self.model.forward(call).logits
        except BaseException:
            call.rollback()
            raise
        call.commit()
        for row, one in zip(rows, made, strict=True):
            row.drafting += len(one.ids)
        if logits is None:
            raise ValueError(f"{self.model.info.name} is a backbone without an LM head: it drafts nothing")
        more = self._vocabulary - logits.shape[1]
        if more > 0:
            return torch.nn.functional.pad(logits, (0, more), value=-torch.inf)
        return logits[:, : self._vocabulary] if more else logits

    # ---- proposing ------------------------------------------------------------------------------------------------------

    def propose(self, rows: Sequence[Row], nodes: int, depths: Sequence[int], floor: float) -> list[Tree]:
        trees = [Tree() for _ in rows]
        self.laws = [{} for _ in rows]
        feeds = self._catch_up(rows, [i for i, depth in enumerate(depths) if depth > 0])
        leaves = [_Leaf(i, 0, self._lines[id(rows[i])].contexts[0], [], 1.0) for i in feeds]
        for level, fan in enumerate(self.fans):
            leaves = [leaf for leaf in leaves if level < depths[leaf.row] and len(trees[leaf.row]) < nodes]
            new = [leaf.path[-1:] or feeds[leaf.row] for leaf in leaves]
            if not leaves or not self._make_room(sum(map(len, new)), rows):
                break
            only = max(map(len, new)) == 1
            made = [
                calls.Row(leaf.context, ids, logits=None if only else np.array([len(ids) - 1]))
                for leaf, ids in zip(leaves, new, strict=True)
            ]
            logits = self._run(made, [rows[leaf.row] for leaf in leaves])
            guesses = self._guess(rows, logits, leaves, fan)
            leaves = [new for leaf, found in zip(leaves, guesses, strict=True)
                      for new in self._grow(rows, trees[leaf.row], leaf, found, nodes, floor)]  # fmt: skip
        return trees

    def _grow(self, rows: Sequence[Row], tree: Tree, leaf: _Leaf, found: list[tuple[int, float]], nodes: int, floor: float,
              ) -> list[_Leaf]:  # fmt: skip
        """Add a leaf's children; returns those to go on from."""
        grown, stops = [], rows[leaf.row].request.stop_ids
        for rank, (token, share) in enumerate(found[: nodes - len(tree)]):
            if not share > 0:  # nor where the draft model's logits are NaN
                break
            # Whether a sampled node stays must not depend on its value: its score is its place.
            score = 0.9 ** len(tree) if self.sampled else leaf.score * share
            node = tree.add(token, leaf.node, score)
            if score > floor and token not in stops:
                context = leaf.context.fork() if rank else leaf.context
                if rank:
                    self._lines[id(rows[leaf.row])].contexts.append(context)
                grown.append(_Leaf(leaf.row, node, context, [*leaf.path, token], score))
        return grown

    def _guess(self, rows: Sequence[Row], logits: Tensor, leaves: Sequence[_Leaf], fan: int) -> list[list[tuple[int, float]]]:
        """At each leaf the ``fan`` likeliest tokens, best first, and the draft model's probabilities of them.

        Likeliest under the noise that the target will draw with; or, ``sampled``, under noise of their own, which makes them
        draws without replacement.
        """
        nodes = Nodes([(leaf.row, leaf.path) for leaf in leaves])
        if not self.sampled:
            ids, shares = self._sampler.guess(rows, logits, nodes, fan)
            return [list(zip(*pair, strict=True)) for pair in zip(ids, shares, strict=True)]
        law = self._sampler.process(rows, logits, nodes)
        keys = []
        for leaf in leaves:
            row = rows[leaf.row]
            stream = noise.stream(row.request.noise_seed, row.sample, noise.Lane.DRAFT, row.index)
            keys.append(noise.mix(stream, len(row.output), len(leaf.path)))  # of this round alone
        key = put(np.array(keys, np.uint64).view(np.int64), law.device)
        noisy, law = law + noise.gumbel(key, torch.arange(law.shape[1], device=law.device)), law.exp()
        for leaf, one in zip(leaves, law.double().cpu().numpy(), strict=True):
            self.laws[leaf.row][leaf.node] = one
        best = noisy.topk(min(fan, noisy.shape[1]), -1).indices
        ids, shares = (x.tolist() for x in read(best, law.gather(1, best)))
        return [list(zip(*pair, strict=True)) for pair in zip(ids, shares, strict=True)]

    # ---- coming and going -----------------------------------------------------------------------------------------------

    def suspend(self, row: Row) -> None:
        self._drop(id(row))

    def stop(self, row: Row, finished: bool) -> None:
        line = self._lines.get(id(row))
        if line is not None and self._cache is not None and line.contexts:
            text, context = [*row.prompt, *row.output], line.contexts[0]
            context.truncate(common(context.ids, text))
            self._cache.insert(context.ids, context.slots)
        self._drop(id(row))
