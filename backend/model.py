"""The one model interface that every method stands on: new tokens behind contexts in, logits and hidden states out.

Two implementations: ``transformer.py``, our own decoder for the Llama family, and ``hf.py``, the adapter for the rest.
A model owns weights only; KV lives in pools, of which a model may have several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batch import Ahead, Output, TokenBatch
from .kv import KVPool, LayerSpec

if TYPE_CHECKING:
    from .text import Text


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a checkpoint says about its own decoding (``generation_config.json``); None where it says nothing."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    """Tokens that are never drawn."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the rest of the house needs to know about a model."""

    name: str
    vocab_size: int
    width: int
    max_positions: int
    parameters: int
    """All weights, embedding and head counted once if tied."""
    dtype: torch.dtype
    device: torch.device
    """Where ids go in and logits come out."""
    layers: Sequence[LayerSpec]
    defaults: Defaults = field(default_factory=Defaults)

    @property
    def rotation(self) -> bool:
        """Whether keys are rotary in every layer, so that parts may have offsets and contexts be moved."""
        return all(layer.rotary is not None for layer in self.layers)


class Model(ABC):
    """A causal language model over a KV pool. Stateless between calls; safe to share between engines of one thread."""

    info: ModelInfo
    text: Text | None
    """The checkpoint's tokenizer; None for one without."""
    recorded_tokens: int = 0
    """New tokens of the largest call that is recorded and replayed; 0: none is."""

    @abstractmethod
    def forward(self, batch: TokenBatch) -> Output:
        """Compute the new tokens of ``batch``, writing their K and V to its slots.

        Returns logits and hidden states of the asked tokens. The batch is not committed.
        Raises ``ValueError`` for positions past ``info.max_positions`` and views the model cannot read.
        """

    def prepare(self, batch: TokenBatch) -> Ahead | None:
        """While a device computes ``batch``: the call that follows in plain decoding, made ready but for its token ids.

        None where nothing is gained by it: a CPU computes before ``forward`` returns.
        """
        return None

    def refuses_invariance(self) -> str | None:
        """Why its results for a token must depend on what else is in a call; None: a ``TokenBatch`` can ask that they do not."""
        return f"{type(self).__name__} has no batch-invariant form"

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [..., width] of token ids [...]."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] of a residual stream [..., width]: final norm and LM head."""

    def new_pool(self, slots: int) -> KVPool:
        """An empty pool of ``slots`` KV slots for this model."""
        return KVPool(self.info.layers, slots, self.info.dtype)

    def check(self, batch: TokenBatch) -> None:
        """Refuse, with the value in the message, what no model can compute."""
        info, ids = self.info, batch.ids.tolist()
        if (last := max(batch.positions.tolist())) >= info.max_positions:
            raise ValueError(f"position {last}: {info.name} has {info.max_positions} positions")
        if not 0 <= min(ids) <= max(ids) < info.vocab_size:
            bad = next(i for i in ids if not 0 <= i < info.vocab_size)
            raise ValueError(f"token id {bad} outside a vocabulary of {info.vocab_size}")
        if batch.hidden or batch.taps:
            for layer in (*batch.hidden, *batch.taps):
                if not 0 <= layer <= len(info.layers):
                    raise ValueError(f"layer {layer}: {info.name} has 0 to {len(info.layers)}, its output")
        if batch.views.offsets is not None and not info.rotation and batch.views.offsets.any():
            raise ValueError(f"{self.info.name} has keys without rotary position: its views take no offsets")
