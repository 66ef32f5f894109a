"""What is asked of an engine and what it keeps about it: sampling settings, requests, samples and their rows.

Everything a caller can get wrong is checked here, before any work, with the value in the message.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ..checks import flag, is_whole, number, token_ids, whole
from ..schema import Completion, FinishReason
from .batch import Part
from .chat import check_text
from .kv import Context
from .model import Defaults
from .stops import Stops, stops_of
from .text import TextStream

LARGEST = 1e30
"""Of what changes logits: so much more and their float32 would run over."""
MOST_SAMPLES = 1 << 16
"""Of one prompt in one call; with ``first`` the next call goes on."""
MOST_SEED = 1 << 63
"""Noise is a hash of numbers of 64 bits."""

Stop = int | str
Logprobs = Literal["raw", "processed"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn from the model's logits, in this order: penalties and bias, temperature, top-k, top-p, min-p.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off. ``repetition_penalty`` divides (or, below zero,
    multiplies) logits of tokens in prompt or output; ``presence_penalty`` and ``frequency_penalty`` are subtracted once and per
    occurrence in the output. ``logit_bias`` adds to single logits.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def demand(name: str, ok: Callable[[float], bool], what: str) -> None:
            object.__setattr__(self, name, number(name, getattr(self, name), ok, what))

        demand("temperature", lambda x: x == 0 or 1e-6 <= x <= LARGEST, "0 (greedy) or a number from 1e-6 to 1e30")
        object.__setattr__(self, "top_k", whole("top_k", self.top_k, 0))
        demand("top_p", lambda x: 0 < x <= 1, "above 0, at most 1 (off)")
        demand("min_p", lambda x: 0 <= x <= 1, "from 0 (off) to 1")
        demand("repetition_penalty", lambda x: 1 / LARGEST <= x <= LARGEST, "a number from 1e-30 to 1e30; 1 is off")
        demand("presence_penalty", lambda x: abs(x) <= LARGEST, "a number from -1e30 to 1e30")
        demand("frequency_penalty", lambda x: abs(x) <= LARGEST, "a number from -1e30 to 1e30")
        if not isinstance(self.logit_bias, Mapping):
            raise TypeError(f"logit_bias={self.logit_bias!r}: a mapping of token ids to numbers")
        biases = [_bias(token, bias) for token, bias in self.logit_bias.items()]
        ids = token_ids(list(self.logit_bias), "logit_bias")
        object.__setattr__(self, "logit_bias", dict(zip(ids, biases, strict=True)))

    @property
    def edits_logits(self) -> bool:
        """Whether anything but temperature and filters changes the logits."""
        penalties = self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return penalties or bool(self.logit_bias)

    @classmethod
    def resolve(cls, defaults: Defaults, given: Mapping[str, Any]) -> Sampling:
        """The caller's settings, else the checkpoint's, else this class's."""
        own = {name: getattr(defaults, name) for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}
        chosen = {k: v for k, v in own.items() if v is not None} | {k: v for k, v in given.items() if v is not None}
        if defaults.suppressed and isinstance(bias := chosen.get("logit_bias", {}), Mapping):
            chosen["logit_bias"] = dict.fromkeys(defaults.suppressed, -math.inf) | dict(bias)
        return cls(**chosen)


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a stream; the last one carries the whole completion."""

    text: str
    token_ids: list[int]
    completion: Completion | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(eq=False, slots=True)
class Request:
    """One prompt, ``n`` samples of it."""

    prompt: list[int]
    n: int
    sampling: Sampling
    max_tokens: int
    min_tokens: int
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    include_stop: bool
    logprobs: Logprobs | None
    seed: int
    first: int = 0
    """Number of the first sample: with the same seed, a sample of one number is the same text whoever asks for it."""
    noise_seed: int = field(init=False)
    """What its noise is made from: a hash of ``seed`` and the prompt, so that unlike prompts of one seed have unlike noise."""
    certainty: bool = False
    """Whether its completions say how certain the model was at each token."""
    stop_names: Mapping[int, str] = field(default_factory=dict)
    """Stop ids that were asked for by the text of a special token, and that text."""
    sink: Callable[[Piece], None] | None = None
    stops: Stops | None = None
    """Looks for ``stop_strings``; of all samples."""
    future: Future[list[Completion]] = field(default_factory=Future)
    results: dict[int, Completion] = field(default_factory=dict)
    leader: Sample | None = None
    """The sample that is prefilling the prompt for all."""
    failure: BaseException | None = None
    born: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.stops = stops_of(self.stop_strings) if self.stop_strings else None
        if not self.prompt:
            raise ValueError("an empty prompt: there is nothing to continue (give at least one token, such as BOS)")
        self.n = whole("n", self.n, 1, MOST_SAMPLES)
        self.first = whole("first", self.first, 0, MOST_SEED - self.n)
        self.max_tokens = whole("max_tokens", self.max_tokens, 1)
        self.min_tokens = whole("min_tokens", self.min_tokens, 0)
        self.seed = whole("seed", self.seed, -MOST_SEED, MOST_SEED)
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens}: from 0 to max_tokens={self.max_tokens}")
        if self.logprobs not in (None, "raw", "processed"):
            raise ValueError(f"logprobs={self.logprobs!r}: None, 'raw' (of the model) or 'processed' (what was sampled from)")
        for name in ("certainty", "include_stop"):
            flag(name, getattr(self, name))
        line = ",".join(map(str, (self.seed, *self.prompt)))
        self.noise_seed = int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "big")


def check_ids(ids: Iterable[int], vocabulary: int, what: str) -> list[int]:
    """``ids`` as plain integers; refuses, with the value in the message, what is no token id of the model."""
    found = token_ids(ids, what)
    for i in found:
        if not 0 <= i < vocabulary:
            raise ValueError(f"{what}: token id {i} outside a vocabulary of {vocabulary}")
    return found


def _bias(token: Any, bias: Any) -> float:
    try:
        return number("bias", bias, lambda x: abs(x) <= LARGEST or x == -math.inf, "from -1e30 to 1e30, or -inf")
    except (TypeError, ValueError) as error:
        raise type(error)(f"logit_bias of token {token}: {error}") from None


def split_stops(stop: Stop | Iterable[Stop] | None) -> tuple[frozenset[int], tuple[str, ...]]:
    """Token ids and strings of a ``stop`` argument. Raises ``TypeError`` for anything else, ``ValueError`` for an empty one."""
    items: Sequence[Any] = () if stop is None else list(stop) if isinstance(stop, list | tuple | set | frozenset) else [stop]
    for item in items:
        if not isinstance(item, str) and not is_whole(item):
            raise TypeError(f"stop={item!r}: a stop is a string or a token id, not {type(item).__name__}")
        if item == "":
            raise ValueError("stop='': an empty string is everywhere")
    strings = dict.fromkeys(check_text(item, "stop") for item in items if isinstance(item, str))
    return frozenset(int(i) for i in items if not isinstance(i, str)), tuple(strings)


def draw_seed() -> int:
    """A fresh seed, for callers who gave none; recorded in the completion."""
    return secrets.randbits(63)


def seed_of(*parts: object) -> int:
    """A seed of 63 bits that depends on all of ``parts``, such as a run's seed and a problem's id, and on nothing else."""
    digest = hashlib.sha256("\x1f".join(map(repr, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(eq=False, slots=True)
class Row:
    """One line of tokens in the making; what a decoder works on."""

    request: Request
    sample: int
    """Which of the request's samples."""
    index: int
    """Which of the sample's rows."""
    prompt: list[int]
    context: Context
    pending: list[int]
    """Tokens whose KV is not there yet, next in line; the last one's logits decide. With ``context.ids``: the whole line."""
    computed: int = 0
    """How much of the line was ever computed or found: computing it again is waste."""
    output: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    certainty: list[float] = field(default_factory=list)
    view: Sequence[Part] = ()
    """Other contexts this row sees before its own."""
    vector: Tensor | None = None
    """[width] what to feed in place of the last pending token's embedding."""
    drafting: int = 0
    """Tokens that draft models computed for it."""
    state: Any = None
    """The decoder's own."""


@dataclass(eq=False, slots=True)
class Sample:
    """The rows of one draw, scheduled as one: admitted, preempted and finished together."""

    request: Request
    index: int
    stream: TextStream | None = None
    """Decodes as tokens come, for samples that are watched or stop at strings."""
    order: int = 0
    """Age: lower is older."""
    rows: list[Row] = field(default_factory=list)
    text: str = ""
    """What ``stream`` has completed so far."""
    shown: int = 0
    """Characters and tokens already streamed."""
    shown_ids: int = 0
    prompt_computed: int = 0
    prompt_cached: int = 0
    drafted: int = 0
    accepted: int = 0
    discarded: int = 0
    injected: int = 0
    forwards: int = 0
    shared_slots: int = 0
    """Slots it found or was given, computed by somebody else."""
    peak_slots: int = 0
    """The most slots it held beside these."""
    stop_reason: Stop | None = None
    stop_at: int | None = None
    """Where in ``text`` the stop string begins; None where a token stopped it."""
    stop_state: int = 0
    """Of the search for stop strings."""
    finish: FinishReason | None = None

    def note_peak(self) -> None:
        """To be called before its slots are given back."""
        self.peak_slots = max(self.peak_slots, sum(row.context.size for row in self.rows) - self.shared_slots)
