"""What tests of the engine and of decoders stand on: a model that forgets nothing, slow references, and an audit.

:class:`Toy` is a model whose KV *is* its input: each slot holds a token id and a position, and the logits are a function of
exactly the ids that a row's view shows. So one wrong slot, one wrong position or one stale cache entry changes what comes
out, with none of the rounding that would excuse it, and a step costs microseconds.

Imported by test modules (``tests/conftest.py`` puts this folder on the path). Not a test.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import forethought as ft
from forethought.backend.batch import Ahead, Output, TokenBatch
from forethought.backend.kv import KVPool, LayerSpec
from forethought.backend.model import Defaults, Model, ModelInfo
from forethought.backend.prefix import PrefixTree
from forethought.backend.text import Text
from forethought.kernels.views import Views

MASK = (1 << 64) - 1
Rule = Callable[[list[int]], np.ndarray]
"""Ids so far -> logits [vocabulary], float32."""


# ---- models --------------------------------------------------------------------------------------------------------


def hashed(vocabulary: int, spread: float = 6.0) -> Rule:
    """Logits that look random and depend on every id and its place."""
    tokens = np.arange(vocabulary, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    powers = np.cumprod(np.full(4096, 0x100000001B3, np.uint64))

    def rule(ids: list[int]) -> np.ndarray:
        with np.errstate(over="ignore"):
            state = ((np.array(ids, np.uint64) + np.uint64(1)) * powers[: len(ids)]).sum()
            h = tokens ^ state * np.uint64(0xD6E8FEB86659FD93)
            for _ in range(2):
                h = (h ^ (h >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
        return ((h >> np.uint64(40)).astype(np.float32) * np.float32(spread / 2**24)).astype(np.float32)

    return rule


def scripted(vocabulary: int, follow: Callable[[list[int]], int]) -> Rule:
    """Logits of which ``follow(ids so far)`` is the largest by far."""

    def rule(ids: list[int]) -> np.ndarray:
        logits = np.zeros(vocabulary, np.float32)
        logits[follow(ids)] = 20.0
        return logits

    return rule


class Toy(Model):
    """See the module. ``tokens`` and ``calls`` count what it was asked; ``before`` runs at the start of each call.

    Two of three calls are made ahead, as on a device; ``foreseen`` counts those that were used.
    """

    def __init__(self, rule: Rule | None = None, *, vocabulary: int = 101, positions: int = 4096, text: Text | None = None,
                 defaults: Defaults | None = None) -> None:  # fmt: skip
        cpu = torch.device("cpu")
        self.rule, self.text = rule or hashed(vocabulary), text
        self.info = ModelInfo(
            "toy", vocabulary, 1, positions, 1, torch.float32, cpu, [LayerSpec(1, 1, 1, cpu)], defaults or Defaults()
        )  # fmt: skip
        self.tokens = self.calls = self.foreseen = 0
        self.before: Callable[[TokenBatch], None] = lambda batch: None
        self._ahead: Ahead | None = None

    def forward(self, batch: TokenBatch) -> Output:
        self.check(batch)
        self.before(batch)
        self.calls += 1
        self.tokens += len(batch.ids)
        self.foreseen += self._ahead is not None and batch.views is self._ahead.views
        ids = batch.ids.astype(np.float32)
        if batch.embeddings is not None:
            index, vectors = batch.embeddings
            ids[index.numpy()] = vectors[:, 0].numpy()
        pool = batch.pool
        pool.k[0][batch.slots, 0, 0] = torch.from_numpy(ids)
        pool.v[0][batch.slots, 0, 0] = torch.from_numpy(batch.positions.astype(np.float32))
        wanted = range(len(batch.ids)) if batch.wanted is None else batch.wanted.tolist()
        rows = np.searchsorted(batch.row_ptr, wanted, side="right") - 1
        logits = [self.rule(self._seen(batch.views, pool, int(r), t)) for r, t in zip(rows, wanted, strict=True)]
        return Output(torch.from_numpy(np.stack(logits)) if logits else torch.empty(0, self.info.vocab_size))

    def prepare(self, batch: TokenBatch) -> Ahead | None:
        self._ahead = Ahead.of(batch) if self.calls % 3 else None
        return self._ahead

    @staticmethod
    def _seen(views: Views, pool: KVPool, row: int, t: int) -> list[int]:
        """Token ids that query ``t`` sees, in order of position; fails where there are gaps or doubles."""
        first, end = int(views.query_ptr[row]), int(views.query_ptr[row + 1])
        assert views.part_ptr[row + 1] - views.part_ptr[row] == 1, "the toy reads views of one part"
        part = int(views.part_ptr[row])
        slots = views.slots[views.slot_ptr[part] : views.slot_ptr[part + 1]]
        ids, positions = pool.k[0][slots, 0, 0].numpy(), pool.v[0][slots, 0, 0].numpy().astype(np.int64)
        visible = positions <= views.positions[t]
        if views.tree is not None:
            word = int(views.tree[t])
            for j in range(1, end - first):
                visible[len(slots) - (end - first) + j] &= bool(word >> (j - 1) & 1)
        assert (positions[visible] == np.arange(visible.sum())).all(), f"row {row} sees positions {positions[visible].tolist()}"
        return [int(i) for i in ids[visible]]

    def embed(self, ids: Tensor) -> Tensor:
        return ids.float().unsqueeze(-1)

    def head(self, hidden: Tensor) -> Tensor:
        raise AssertionError("a toy says what its ids say: it has no hidden states to read")


def tiny_llama(folder: Any, **config: Any) -> Model:
    """A random Llama, loaded as a checkpoint is."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 101, "max_position_embeddings": 1024, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape | config)).save_pretrained(folder)
    return ft.load(folder)


# ---- text ----------------------------------------------------------------------------------------------------------

PIECES = [b"he", b"ll", b"hell", b"lo", b"STOP", b"END. Then", b"ab", b"bc", b"\n\n", b"</think>", b"STOP\xe2"]


def byte_text() -> Text:
    """A byte-level tokenizer: id = byte for the first 256, then :data:`PIECES`, then ``<s>``, ``</s>``. Lossless on any UTF-8."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    shown = {byte: chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))}
    shown |= {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in shown)}
    vocabulary = {shown[byte]: byte for byte in range(256)}
    vocabulary |= {"".join(shown[b] for b in piece): 256 + i for i, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    turn = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    fast.chat_template = turn + "{% if add_generation_prompt %}assistant: {% endif %}"
    return Text(fast)


BOS, EOS = 256 + len(PIECES), 257 + len(PIECES)
TEXT_VOCABULARY = 258 + len(PIECES)


def spell(*parts: str | bytes | int) -> list[int]:
    """Token ids of parts: one of :data:`PIECES` (bytes), an id, or text byte by byte."""

    def ids(part: str | bytes | int) -> list[int]:
        if isinstance(part, str):
            return list(part.encode())
        return [256 + PIECES.index(part)] if isinstance(part, bytes) else [part]

    return [i for part in parts for i in ids(part)]


def reciting(prompt: Sequence[int], text: Sequence[int]) -> Toy:
    """A toy with a byte-level tokenizer that goes on from any prompt as long as ``prompt`` with ``text``, then with ``.``"""
    start, rest = len(prompt), list(text)
    rule = scripted(TEXT_VOCABULARY, lambda ids: rest[len(ids) - start] if len(ids) - start < len(rest) else ord("."))
    return Toy(rule, vocabulary=TEXT_VOCABULARY, text=byte_text())


# ---- slow references -----------------------------------------------------------------------------------------------


def murmur(h: int) -> int:
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & MASK
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & MASK
    return h ^ h >> 33


STEP = 0x9E3779B97F4A7C15


def slow_gumbel(seed: int, sample: int, position: int, token: int, lane: int = 0, row: int = 0) -> float:
    """The noise of one token at one place, in whole numbers and one float64 at the end."""
    parts = (seed, sample, lane, row)
    key = len(parts)
    for part in parts:
        key = murmur((key + STEP & MASK) ^ (part & MASK))
    key = murmur(key ^ (position + 1) * STEP & MASK)
    u = ((murmur(key ^ (token + 1) * STEP & MASK) >> 32) + 0.5) / 2**32
    return -math.log(-math.log1p(-min(u, 1 - 2.0**-24)))


def slow_noise_seed(seed: int, prompt: Sequence[int]) -> int:
    """What a request's noise is made from."""
    return int.from_bytes(hashlib.blake2b(f"{[seed, *prompt]}"[1:-1].replace(" ", "").encode(), digest_size=8).digest(), "big")


def slow_process(logits: Iterable[float], prompt: Sequence[int], output: Sequence[int], s: ft.Sampling) -> list[float]:
    """Log-probabilities to draw from, one token at a time, in float64."""
    x = [float(v) for v in logits]
    seen = {*prompt, *output}
    for token in range(len(x)):
        if token in seen:
            x[token] = x[token] * s.repetition_penalty if x[token] < 0 else x[token] / s.repetition_penalty
        count = output.count(token)
        x[token] -= s.frequency_penalty * count + s.presence_penalty * (count > 0)
        x[token] += s.logit_bias.get(token, 0.0)
    if s.temperature == 0:
        return [0.0 if token == x.index(max(x)) else -math.inf for token in range(len(x))]
    x = [v / s.temperature for v in x]
    if s.top_k:
        edge = sorted(x, reverse=True)[min(s.top_k, len(x)) - 1]
        x = [v if v >= edge else -math.inf for v in x]
    if s.top_p < 1:
        p, mass, kept = softmax(x), 0.0, set()
        for token in sorted(range(len(x)), key=lambda t: -x[t]):
            if mass < s.top_p:
                kept.add(token)
            mass += p[token]
        x = [v if token in kept else -math.inf for token, v in enumerate(x)]
    if s.min_p:
        p = softmax(x)
        x = [v if q >= s.min_p * max(p) else -math.inf for v, q in zip(x, p, strict=True)]
    total = math.log(sum(math.exp(v - max(x)) for v in x)) + max(x)
    return [v - total for v in x]


def softmax(x: Sequence[float]) -> list[float]:
    weights = [math.exp(v - max(x)) for v in x]
    return [w / sum(weights) for w in weights]


def slow_certainty(logits: Iterable[float]) -> float:
    """KL(uniform || p) over the tokens that have a probability, from its definition, in float64."""
    x = [float(v) for v in logits if v > -math.inf]
    return sum(math.log(1 / len(x) / p) / len(x) for p in softmax(x))


def slow_generate(rule: Rule, prompt: Sequence[int], tokens: int, *, seed: int = 0, sample: int = 0, stop: Sequence[int] = (),
                  **sampling: Any) -> list[int]:  # fmt: skip
    """What plain decoding gives: the whole text through the model again for every token."""
    settings, output, seed = ft.Sampling(**sampling), list[int](), slow_noise_seed(seed, prompt)
    while len(output) < tokens and (not output or output[-1] not in stop):
        scores = slow_process(rule([*prompt, *output]).tolist(), prompt, output, settings)
        noisy = [s if s == -math.inf else s + slow_gumbel(seed, sample, len(output), t) for t, s in enumerate(scores)]
        output.append(noisy.index(max(noisy)))
    return output


# ---- the audit -----------------------------------------------------------------------------------------------------


def audit(pool: KVPool, tree: PrefixTree | None = None) -> None:
    """Recount the pool from scratch; fails where its books are wrong."""
    idle, held, free = pool._refs == 0, pool._held, pool._free[: pool.free]
    assert (pool._refs >= 0).all()
    assert len(set(free.tolist())) == len(free), "a slot is free twice"
    assert set(free.tolist()) == set(np.flatnonzero(idle & ~held).tolist()), "free slots are those nobody counts on"
    assert pool.cached == int((idle & held).sum())
    assert pool.used == int((~idle).sum())
    assert pool.used + pool.cached + pool.free == pool.size
    if tree is not None:
        slots = [int(s) for node in tree._nodes() for s in node.slots]
        assert len(set(slots)) == len(slots), "a slot is in the tree twice"
        assert set(slots) == set(np.flatnonzero(held).tolist()), "the tree holds what it says it holds"


class Audited:
    """An engine whose books are checked after every step. ``with`` it, and all must be given back and well at the end."""

    def __init__(self, model: Model, decoder: ft.Decoder | None = None, **options: Any) -> None:
        self.engine = ft.Engine(model, decoder or ft.Autoregressive(), **options)
        self.faults: list[BaseException] = []
        self.peak = 0
        runner = self.engine._runner
        step = runner.step

        def audited() -> bool:
            more = step()
            self.peak = max(self.peak, self.engine.pool.used)
            try:
                audit(self.engine.pool, runner.tree)
            except AssertionError as e:
                self.faults.append(e)
            return more

        runner.step = audited  # type: ignore[method-assign]

    def __enter__(self) -> ft.Engine:
        return self.engine

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.engine._call(lambda: None).result()  # whatever was posted before has been done
        used = self.engine.pool.used
        self.engine.close()
        if error is None:
            assert not self.faults, self.faults[0]
            assert used == 0, "slots in use after the last request ended"
            assert self.engine.pool.free == self.engine.pool.size
