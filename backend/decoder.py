"""The decoder interface: the policy inside the engine's loop. One method a file, in ``decoding/``.

Each step the engine asks for a draft, runs one forward over everybody's new tokens, and asks for a decision.
Which KV stays and which tokens become text are separate answers. The engine knows no method by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from torch import Tensor

from ..schema import FinishReason
from .batch import Output
from .kv import KVPool
from .model import Model
from .request import Request, Row

Numbers: TypeAlias = Tensor | Sequence[int]
"""Whole numbers: a list, which is used as it is, or a tensor, which is read."""


@dataclass(slots=True)
class Draft:
    """Proposed tokens behind each row's root (its last token, whose KV is not there yet): a tree per row, flat.

    Whatever it is made of, it holds lists.
    """

    ids: Numbers
    """[N]"""
    parents: Numbers
    """[N], within the row: 0 is the root, ``j`` the row's ``j``-th drafted token; a parent comes before its child."""
    row_ptr: Numbers
    """[R + 1]"""
    log_q: Tensor | None = None
    """[N, vocabulary] or [N]: log-probabilities the tokens were drawn from, where a rule needs them."""

    def __post_init__(self) -> None:
        self.ids, self.parents, self.row_ptr = _list(self.ids), _list(self.parents), _list(self.row_ptr)

    def lists(self) -> tuple[list[int], list[int], list[int]]:
        """ids, parents and row pointers."""
        return _list(self.ids), _list(self.parents), _list(self.row_ptr)


@dataclass(slots=True)
class Decision:
    """What comes of a step, flat over the rows."""

    emitted: Numbers
    """[M] token ids that become text."""
    emitted_ptr: Numbers | None = None
    """[R + 1]; None: one token each."""
    kept: Numbers | None = None
    """[K], within the row (0 is the root): whose KV stays, a path from the root. None, with no draft: the root's."""
    kept_ptr: Numbers | None = None
    pending: Mapping[int, list[int]] = field(default_factory=dict)
    """Row index -> the tokens to feed next; default: the last one emitted. Those not emitted are billed as injected."""
    embeddings: Mapping[int, Tensor] = field(default_factory=dict)
    """Row index -> [width] vector that replaces the table look-up of the next root."""
    logprobs: Tensor | None = None
    """[M] of the emitted tokens."""
    certainty: Tensor | None = None
    """[M] of the distributions that the emitted tokens were decided on."""
    failed: Mapping[int, Exception] = field(default_factory=dict)
    """Row index -> why this row cannot go on; the others do."""

    def split(self, tokens: Sequence[int], vocabulary: int, draft: Draft | None = None) -> list[Share]:
        """Each row's share. ``tokens``: how many of each row the call had, root included; 0 for a row that only shares logits.

        Raises ``ValueError`` for a decision that does not fit: nothing may be committed on the word of a broken one.
        """
        emitted = _list(self.emitted)
        logprobs, certainty = ([] if found is None else found.tolist() for found in (self.logprobs, self.certainty))
        ends = _ends(self.emitted_ptr, len(tokens), len(emitted), "emitted")
        kept = None if self.kept is None else _list(self.kept)
        if kept is None and draft is not None and len(draft.ids):
            raise ValueError(f"{len(draft.ids)} drafted tokens, and the decision does not say in kept which of them stay")
        parents = [] if draft is None else draft.lists()[1]
        kept_ends = ends if kept is None else _ends(self.kept_ptr, len(tokens), len(kept), "kept")
        for name, found in (("logprobs", logprobs), ("certainty", certainty)):
            if found and len(found) != len(emitted):
                raise ValueError(f"{len(found)} {name} for {len(emitted)} emitted tokens")
        for ids in (emitted, *self.pending.values()):
            if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
                raise ValueError(f"the decoder gave token ids {ids}: the vocabulary has {vocabulary}")
        told = self.emitted_ptr is not None or logprobs or certainty or self.pending or self.embeddings or self.failed
        if kept is None and not told:
            return [Share([token], [], [], [token], None, None, None) for token in emitted]
        shares, start, first, begin = [], 0, 0, 0
        for i, (end, last) in enumerate(zip(ends, kept_ends, strict=True)):
            ids = emitted[start:end]
            pending = self.pending.get(i, ids[-1:])
            failed = self.failed.get(i)
            if not pending and failed is None:
                raise ValueError("a row that emits nothing must be given tokens to feed next")
            path = None if kept is None or not tokens[i] else kept[first:last]
            if path is not None and not _is_path(path, parents[begin : begin + tokens[i] - 1]):
                raise ValueError(f"kept={path}: a path from the root among the row's {tokens[i]} tokens")
            begin += max(0, tokens[i] - 1)
            shares.append(Share(ids, logprobs[start:end], certainty[start:end], pending, self.embeddings.get(i), path, failed))
            start, first = end, last
        return shares


def _is_path(path: list[int], parents: list[int]) -> bool:
    """Whether ``path`` goes from the root along ``parents``, those of tokens 1, 2, …"""
    last = -1
    for node in path:
        if not 0 <= node <= len(parents) or (parents[node - 1] if node else -1) != last:
            return False
        last = node
    return True


class Share(NamedTuple):
    """What a decision says of one row, on the host."""

    ids: list[int]
    logprobs: list[float]
    certainty: list[float]
    pending: list[int]
    vector: Tensor | None
    kept: list[int] | None
    failed: Exception | None


def _list(numbers: Numbers) -> list[int]:
    if isinstance(numbers, list):
        return numbers
    return list(numbers) if isinstance(numbers, Sequence) else numbers.tolist()


def _ends(ptr: Numbers | None, rows: int, items: int, name: str) -> Sequence[int]:
    """One past each row's last item."""
    if ptr is None:
        if items != rows:
            raise ValueError(f"{name}: {items} tokens for {rows} rows; say in {name}_ptr whose they are")
        return range(1, rows + 1)
    found = _list(ptr)
    if len(found) != rows + 1 or found != sorted(found) or (found[0], found[-1]) != (0, items):
        raise ValueError(f"{name}_ptr={found}: does not share {items} tokens out to {rows} rows")
    return found[1:]


class Decoder(ABC):
    """How tokens are made. One instance serves one engine; all calls come from its thread."""

    exact: bool = True
    """Whether output follows the model's own (processed) distribution."""
    hidden: tuple[int, ...] = ()
    """Layers whose input the decisions need, in ``Output.hidden``."""

    fixed_draft: int = 0
    """Tokens that it drafts a row whenever it drafts, where text depends on that: no more rows run than memory allows."""

    def bind(self, model: Model) -> None:
        """Once, by the engine that is built on it. Raises ``ValueError``, with the reason, where it cannot serve ``model``."""
        return None

    def models(self) -> Sequence[Model]:
        """Models beside the engine's, each with a pool as large as the engine's: their memory is planned for too."""
        return ()

    def open(self, request: Request, sample: int, pool: KVPool) -> list[Row]:
        """The rows that make one sample; the first one's output is the completion's."""
        prompt = list(request.prompt)
        return [Row(request, sample, 0, prompt, pool.new_context(), list(prompt))]

    def slots(self, request: Request, pool: KVPool) -> dict[KVPool, int]:
        """The most slots one sample may ever need, per pool; asked before the request is taken."""
        return {pool: len(request.prompt) + request.max_tokens}

    def admit(self, row: Row) -> None:
        """``row`` starts, or starts again after preemption; its prompt and output so far are in it."""
        return None

    def draft(self, rows: Sequence[Row], budget: int) -> Draft | None:
        """Proposals for ``rows``, at most ``budget`` tokens in all; None for none.

        No deeper than tokens are still to come, less the one that every step gives; a row's tree has at most 64 tokens unless
        it is a chain. A step that failed is tried again row by row: what is asked here and in ``decide`` may not yet count
        as having happened; ``observe`` says what has.
        """
        return None

    @abstractmethod
    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        """What becomes of the step. ``output`` has one logits row per root and drafted token, row by row, root first.

        Rows that just finished their prompt have only a root. With ``draft`` None every row has.
        """

    def observe(self, row: Row, ids: Sequence[int]) -> None:
        """``ids`` became text of ``row`` (already in ``row.output``)."""
        return None

    def preempt(self, row: Row) -> None:
        """``row`` loses its KV and will be admitted again, recomputed from its token ids.

        What is not a function of these (replaced embeddings, slots that stand for several tokens) is the decoder's to restore.
        """
        return None

    def release(self, row: Row, outcome: FinishReason) -> None:
        """``row`` is over; give back what belongs to it."""
        return None
