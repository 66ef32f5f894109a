"""What proposes drafts: the interface that histories, n-grams and draft models share.

A source never decides anything. It works from what its rows say already (``row.prompt`` and ``row.output``), so a step that
is tried again, a row that was preempted and one that skipped some rounds all look the same to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..backend.kv import KVPool
from ..backend.model import Model
from ..backend.request import Request, Row
from .tree import Tree


class Source(ABC):
    """Proposes trees for the rows of one engine; all calls come from its thread."""

    late: float = 0.0
    """Seconds of the last proposal that went into texts it had not followed: they are no price of proposals."""

    def bind(self, model: Model) -> None:
        """Once, before anything else: the model whose tokens are to be guessed. Raises ``ValueError`` where that cannot be."""
        return None

    def models(self) -> Sequence[Model]:
        """Models it computes with, each with a pool as large as the engine's."""
        return ()

    def slots(self, request: Request, pool: KVPool) -> dict[KVPool, int]:
        """The most slots of its own pools that one sample may ever need. ``pool``: the engine's."""
        return {}

    def start(self, row: Row) -> None:
        """``row`` is admitted, perhaps not for the first time."""
        return None

    @abstractmethod
    def propose(self, rows: Sequence[Row], nodes: int, depths: Sequence[int], floor: float) -> list[Tree]:
        """A tree for each of ``rows``: at most ``nodes`` nodes, at most ``depths[i]`` deep, best first.

        Below a score of ``floor`` nodes do not pay. A row of which nothing is known gets an empty tree.
        """

    def suspend(self, row: Row) -> None:
        """``row`` is preempted: what it holds that can be had again is to be given back."""
        return None

    def stop(self, row: Row, finished: bool) -> None:
        """``row`` is over; ``finished``: by itself, not by an error or a cancellation. It may never have started."""
        return None
