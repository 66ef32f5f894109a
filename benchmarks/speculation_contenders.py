"""Who is compared: engines of ours with one decoder or another, and transformers.generate with what makes it draft."""

from __future__ import annotations

import argparse
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from speculation_steps import SIZES, Ids, Tally, Watched

import forethought as ft
from forethought.backend.load import BUILT_IN

NGRAM_TOKENS = 10
PLAIN = "autoregressive"


class Contender(ABC):
    """Answers blocks of prompts, and keeps count in ``tally``, which :meth:`begin` makes anew."""

    def __init__(self, name: str) -> None:
        self.name, self.tally = name, Tally()

    def begin(self) -> None:
        """A repeat begins; not timed."""
        self.tally = Tally()

    @abstractmethod
    def run(self, prompts: Sequence[Ids]) -> None:
        """One block."""

    def end(self) -> None:
        """The repeat is over."""
        return None


@dataclass(frozen=True)
class Settings:
    """How long an answer may be, how its tokens are drawn, and how many fit an engine's KV pool."""

    tokens: int
    temperature: float
    kv_slots: int

    @classmethod
    def of(cls, options: argparse.Namespace, prompts: Sequence[Ids], batch: int) -> Settings:
        """With twice the slots that a block of ``batch`` can use, drafts included."""
        longest = max(map(len, prompts)) + options.tokens + max(SIZES)
        return cls(options.tokens, options.temperature, 2 * batch * longest)


class Ours(Contender):
    def __init__(self, name: str, model: ft.Model, make: Callable[[], ft.Decoder], settings: Settings) -> None:
        super().__init__(name)
        self.model, self.make, self.settings = model, make, settings

    def begin(self) -> None:
        super().begin()
        self.watched = Watched(self.make())
        self.engine = ft.Engine(self.model, self.watched, kv_slots=self.settings.kv_slots)

    def run(self, prompts: Sequence[Ids]) -> None:
        self.engine.clear_cache()
        options = {"max_tokens": self.settings.tokens, "temperature": self.settings.temperature, "seed": 0}
        start = time.perf_counter()
        answers = self.engine.generate(list(prompts), progress=False, **options)
        now = time.perf_counter()
        self.watched.close(now)
        tally = self.tally
        tally.seconds += now - start
        for completion in itertools.chain.from_iterable(answers):
            tally.outputs.append(completion.token_ids)
            tally.given += 1
            tally.drafted += completion.cost.drafted
            tally.accepted += completion.cost.accepted
            tally.drafting += completion.cost.drafting
        tally.forwards, tally.steps = self.watched.forwards, self.watched.steps

    def end(self) -> None:
        self.engine.close()


class Fed:
    """How many calls a transformers model has had, and of how many tokens."""

    def __init__(self, model: Any) -> None:
        self.calls = self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, positional: Any, named: dict[str, Any]) -> None:
        self.calls += 1
        self.tokens += named["input_ids"].shape[1]


class Peer(Contender):
    """transformers.generate, one request at a time. ``options``: what makes it draft."""

    def __init__(self, name: str, models: Models, settings: Settings, **options: Any) -> None:
        super().__init__(name)
        self.model, self.fed, self.drafts = models.peer, models.fed, models.peer_draft_fed
        stops = list(models.target.info.defaults.stop_ids)
        self.options = options | {"max_new_tokens": settings.tokens, "eos_token_id": stops or None, "pad_token_id": 0}
        if settings.temperature:
            self.options |= {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
        else:
            self.options |= {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}

    def run(self, prompts: Sequence[Ids]) -> None:
        tally = self.tally
        for prompt in prompts:
            calls, fed, drafting = self.fed.calls, self.fed.tokens, self.drafts.tokens if self.drafts else 0
            start = time.perf_counter()
            ids = torch.tensor([prompt], device=self.model.device)
            output: Ids = self.model.generate(ids, attention_mask=torch.ones_like(ids), **self.options)[0, len(prompt) :].tolist()
            tally.seconds += time.perf_counter() - start
            tally.outputs.append(output)
            calls, fed = self.fed.calls - calls, self.fed.tokens - fed
            tally.forwards += calls
            tally.drafted += fed - len(prompt) - (calls - 1)
            tally.accepted += len(output) - calls
            tally.drafting += self.drafts.tokens - drafting if self.drafts else 0


class Models:
    """The model and its draft model: ours, and transformers' where they are wanted."""

    def __init__(self, names: Sequence[str], target: str, draft: str | None, device: str, dtype: str = "auto") -> None:
        self.target = ft.load(target, device=device, dtype=dtype)
        self.draft = (
            ft.load(draft, device=device, dtype=dtype) if draft and {"speculative", "lookahead+draft"} & set(names) else None
        )
        self.peer = self._peer(target) if any(name.startswith("hf-") for name in names) else None
        self.peer_draft = self._peer(draft) if draft and "hf-assisted" in names else None
        self.fed = None if self.peer is None else Fed(self.peer)
        self.peer_draft_fed = None if self.peer_draft is None else Fed(self.peer_draft)

    def _peer(self, name: str) -> Any:
        path = BUILT_IN / name if (BUILT_IN / name).is_dir() else name
        peer = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=self.target.info.dtype)
        return peer.eval().to(self.target.info.device)


def contenders(names: Sequence[str], models: Models, settings: Settings, warm: Sequence[Ids]) -> list[Contender]:
    """Who is to run. ``warm``: what Lookahead remembers beforehand."""

    def lookahead() -> ft.Lookahead:
        decoder = ft.Lookahead()
        decoder.warm_up(warm)
        return decoder

    def drafting(*others: ft.Decoder, draft_tokens: int) -> ft.Decoder:
        return ft.Speculative([models.draft, *others], draft_tokens, tree=[1] * 16)  # type: ignore[list-item]

    ours: dict[str, Callable[[], ft.Decoder]] = {
        PLAIN: ft.Autoregressive,
        "lookahead": lookahead,
        "prompt_lookup": lambda: ft.PromptLookup(NGRAM_TOKENS),
        "speculative": lambda: drafting(draft_tokens=16),
        "lookahead+draft": lambda: drafting(lookahead(), draft_tokens=16),
    }
    theirs: dict[str, dict[str, Any]] = {
        "hf-plain": {},
        "hf-prompt-lookup": {"prompt_lookup_num_tokens": NGRAM_TOKENS},
        "hf-assisted": {"assistant_model": models.peer_draft},
    }
    return [
        Ours(name, models.target, ours[name], settings) if name in ours else Peer(name, models, settings, **theirs[name])
        for name in names
    ]
