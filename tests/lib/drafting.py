"""What tests of drafting decoders stand on: text that repeats itself, drafts that are sometimes wrong, a clock of their own.

Imported by test modules (``tests/conftest.py`` puts this folder on the path). Not a test.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lab import (
    EOS,
    TEXT_VOCABULARY,
    Audited,
    Rule,
    Toy,
    audit,
    byte_text,
    hashed,
    slow_gumbel,
    slow_noise_seed,
    slow_process,
    spell,
)
from torch import Tensor

import forethought as ft
from forethought.backend import batch as calls
from forethought.backend.batch import Output, TokenBatch
from forethought.backend.model import Defaults, Model
from forethought.decoding.draft_model import DraftModel
from forethought.decoding.speculation import Speculation

# ---- models ----------------------------------------------------------------------------------------------------------

LETTERS = [*b"abcdefghijklm ", *spell(b"he", b"STOP", b"\n\n"), EOS]


def babble(salt: int = 0, vocabulary: int = TEXT_VOCABULARY, alive: Sequence[int] = LETTERS, stray: float = 1.0) -> Rule:
    """Mostly a function of the last two ids, so that text repeats itself; a little of all ids, so that a wrong slot shows.

    Rules of different ``salt`` agree on the first part only: one drafts for the other, and is sometimes wrong.
    """
    near, far = hashed(vocabulary), hashed(vocabulary, stray)
    dead = np.full(vocabulary, -30.0, np.float32)
    dead[list(alive)] = [-2.0 if token == EOS else 0.0 for token in alive]

    def rule(ids: list[int]) -> np.ndarray:
        logits: np.ndarray = near([5, *ids[-2:]]) + far([salt, *ids]) + dead
        return logits

    return rule


def talker(salt: int = 0, positions: int = 4096) -> Toy:
    """A toy with a tokenizer that babbles, and ends with a special token."""
    rule, ends = babble(salt), Defaults(stop_ids=(EOS,))
    return Toy(rule, vocabulary=TEXT_VOCABULARY, positions=positions, text=byte_text(), defaults=ends)


def perturbed(folder: Path, to: Path, by: float, dtype: str = "auto") -> Model:
    """The checkpoint in ``folder`` with noise on every weight, ``by`` as large as the weights are."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    generator = torch.Generator().manual_seed(1)
    for file in to.glob("*.safetensors"):
        weights = load_file(file)
        for weight in weights.values():
            if weight.dim() > 1:
                weight += by * weight.float().std() * torch.randn(weight.shape, generator=generator)
        save_file(weights, file, metadata={"format": "pt"})
    return ft.load(to, dtype=dtype)


# ---- decoders --------------------------------------------------------------------------------------------------------

Make = Callable[[Model], Speculation]
FIXED: dict[str, Make] = {
    "lookahead": lambda draft: ft.Lookahead(16, adaptive=False),
    "trie": lambda draft: ft.Lookahead(16, index="trie", adaptive=False),
    "prompt lookup": lambda draft: ft.PromptLookup(6, adaptive=False),
    "chain": lambda draft: ft.Speculative(draft, 4, adaptive=False),
    "tree": lambda draft: ft.Speculative(draft, tree=[3, 2, 1], adaptive=False),
    "several": lambda draft: ft.Speculative([draft, ft.Lookahead(), ft.PromptLookup()], 12, tree=[2, 2], adaptive=False),
}
ADAPTIVE: dict[str, Make] = {
    "lookahead, adaptive": lambda draft: ft.Lookahead(16),
    "trie, adaptive": lambda draft: ft.Lookahead(16, index="trie"),
    "prompt lookup, adaptive": lambda draft: ft.PromptLookup(6),
    "chain, adaptive": lambda draft: ft.Speculative(draft, 4),
    "tree, adaptive": lambda draft: ft.Speculative(draft, tree=[3, 2, 1]),
    "several, adaptive": lambda draft: ft.Speculative([draft, ft.Lookahead(), ft.PromptLookup()], 12, tree=[2, 2]),
}
DECODERS = FIXED | ADAPTIVE
SAMPLING_RULES: dict[str, Make] = {
    "ratio": lambda draft: ft.Speculative(draft, 4, rule="ratio"),
    "block": lambda draft: ft.Speculative(draft, 4, rule="block"),
    "tree without replacement": lambda draft: ft.Speculative(draft, tree=[3, 2, 1], rule="tree"),
}


def idle(decoder: Speculation) -> None:
    """Fails if anything is kept of a row: an entry in a table, a line, a context, a slot of a draft model's pool."""
    for part in (decoder, *decoder.sources):
        assert not [name for name, value in vars(part).items() if isinstance(value, dict) and value]
        if isinstance(part, DraftModel) and part._pool is not None:
            audit(part._pool, part._cache)
            assert part._pool.used == 0


# ---- runs ------------------------------------------------------------------------------------------------------------

Asked = tuple[list[int], dict[str, Any]]
"""A prompt and its options."""
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "n": 2},
    {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2},
    {"presence_penalty": 0.5, "frequency_penalty": 0.3, "logprobs": "raw"},
    {"temperature": 1.0, "frequency_penalty": 0.4, "logprobs": "processed"},
    {"temperature": 0.7, "logit_bias": {97: 3.0, 98: -math.inf}},
    {"min_tokens": 25},
    {"temperature": 1.0, "min_tokens": 20, "stop": [98, 99, 100]},
    {"temperature": 1.3, "top_k": 5, "logprobs": "raw"},
    {"temperature": 1.0, "min_p": 0.1, "n": 3},
    {"ignore_eos": True, "stop": "STOP", "min_tokens": 15},
    {"temperature": 1.0, "stop": ["ja", "hehe"], "include_stop": True, "min_tokens": 5},
    {"logprobs": "processed", "ignore_eos": True},
    {"temperature": 0.6, "n": 4, "ignore_eos": True, "logprobs": "processed", "top_p": 0.8},
    {"max_tokens": 1, "logprobs": True},
    {"max_tokens": 2, "temperature": 1.0, "repetition_penalty": 1.1, "top_k": 8, "min_p": 0.05, "logit_bias": {105: -2.0}},
]


def crowd(alive: Sequence[int] = LETTERS, settings: Sequence[dict[str, Any]] = SETTINGS, max_tokens: int = 36) -> list[Asked]:
    """A ragged prompt for each of the settings, some with a common beginning."""
    rng = np.random.default_rng(0)
    stem = rng.choice(alive, 24).tolist()
    sizes = [1, 3, 7, 12, 20, 33, 48, 60]
    prompts = [rng.choice(alive, sizes[i % len(sizes)]).tolist() for i in range(len(settings))]
    prompts = [[*stem, *prompt[:15]] if i % 3 == 2 else prompt for i, prompt in enumerate(prompts)]
    # With these seeds stops of every kind are met.
    common: list[dict[str, Any]] = [{"max_tokens": max_tokens, "seed": 31 + i % 5} for i in range(len(settings))]
    return [(prompt, basic | own) for prompt, basic, own in zip(prompts, common, settings, strict=True)]


def together(engine: ft.Engine, asked: Iterable[Asked]) -> list[list[ft.Completion]]:
    """All requests at once, each with its own options."""

    async def main() -> list[list[ft.Completion]]:
        return list(await asyncio.gather(*(engine.agenerate(prompt, **options) for prompt, options in asked)))

    return asyncio.run(main())


def plain(model: Model, asked: Sequence[Asked], slots: int = 3000) -> list[list[ft.Completion]]:
    with Audited(model, kv_slots=slots) as engine:
        return together(engine, asked)


def texts(outs: Iterable[Iterable[ft.Completion]]) -> list[list[list[int]]]:
    return [[c.token_ids for c in out] for out in outs]


def agree(found: Iterable[Iterable[ft.Completion]], expected: Iterable[Iterable[ft.Completion]]) -> None:
    """Fails unless everything that a caller sees is the same, log-probabilities up to rounding."""
    for some, others in zip(found, expected, strict=True):
        for a, b in zip(some, others, strict=True):
            assert (a.token_ids, a.text, a.finish_reason, a.stop_reason) == (b.token_ids, b.text, b.finish_reason, b.stop_reason)
            assert a.logprobs == (None if b.logprobs is None else pytest.approx(b.logprobs, abs=1e-4))
            assert (a.cost.kept, a.index, a.seed, a.error) == (b.cost.kept, b.index, b.seed, b.error)
            assert a.cost.drafted - a.cost.accepted <= a.cost.discarded


def logits_behind(model: Model, lines: Sequence[Sequence[int]]) -> Tensor:
    """[lines, vocabulary] behind each whole line, by one plain forward."""
    pool = model.new_pool(sum(map(len, lines)))
    wanted = [np.array([len(line) - 1]) for line in lines]
    rows = [calls.Row(pool.new_context(), list(line), logits=last) for line, last in zip(lines, wanted, strict=True)]
    logits = model.forward(TokenBatch(pool, rows)).logits
    assert logits is not None
    return logits.float().cpu()


def flips(model: Model, asked: Sequence[Asked], found: Sequence[Sequence[ft.Completion]],
          expected: Sequence[Sequence[ft.Completion]], gap: float) -> int:  # fmt: skip
    """How many texts differ; each where the two tokens' scores, noise included, are closer than ``gap``, or this fails."""
    count = 0
    for (prompt, options), some, others in zip(asked, found, expected, strict=True):
        known = {k: v for k, v in options.items() if k in ft.Sampling.__dataclass_fields__}
        for a, b in zip(some, others, strict=True):
            at = next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y), None)
            if at is None:
                assert a.token_ids == b.token_ids
                continue
            before, greedy = b.token_ids[:at], not known.get("temperature")
            logits = logits_behind(model, [[*prompt, *before]])[0].tolist()
            scores = slow_process(logits, prompt, before, ft.Sampling(**known | ({"temperature": 1.0} if greedy else {})))
            if not greedy:
                seed = slow_noise_seed(b.seed or 0, prompt)
                scores = [s + slow_gumbel(seed, b.index, at, t) for t, s in enumerate(scores)]
            for stop in options.get("stop", []) if at < options.get("min_tokens", 0) else []:
                scores[stop] = -math.inf
            one, other = scores[a.token_ids[at]], scores[b.token_ids[at]]
            assert abs(one - other) < gap, f"token {at}: {a.token_ids[at]} scores {one}, {b.token_ids[at]} {other}"
            assert max(scores) - max(one, other) < gap, "another token is far better than both"
            count += 1
    return count


# ---- an invented clock -----------------------------------------------------------------------------------------------


class Clock:
    """Stands in for the module ``time`` where decoders look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def charge(self, monkeypatch: pytest.MonkeyPatch, model: Model, cost: Callable[[int], float]) -> None:
        """A call of ``model`` with q new tokens takes ``cost(q)`` seconds."""
        forward = model.forward

        def timed(batch: TokenBatch) -> Output:
            self.now += cost(len(batch.ids))
            return forward(batch)

        monkeypatch.setattr(model, "forward", timed)
