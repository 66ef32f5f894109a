"""Value types that every part shares: problems, completions, verdicts, solutions, and the bill.

All are frozen dataclasses with JSON both ways (``to_json`` gives plain dicts, lists and scalars;
``from_json`` refuses unknown keys). Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""One chat message: ``{"role": "user" | "assistant" | "system" | "tool", "content": text}``.

A content may be in parts, ``[{"type": "text", "text": …}]``; further keys, such as ``tool_calls``, are the chat template's.
"""
Prompt: TypeAlias = "str | list[int] | list[Message]"
"""What a model is asked: raw text, token ids (used as they are), or chat messages (the model's own template)."""

FinishReason = Literal["stop", "length", "cancelled", "error"]
Status = Literal["correct", "wrong", "unknown", "error"]

THINK_END = "</think>"


class Json:
    """JSON both ways for a frozen dataclass; ``_nested`` says how to read fields that are not plain values."""

    _nested: Mapping[str, Callable[[Any], Any]] = {}

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars, ready for ``json.dumps``."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The value ``to_json`` wrote. Raises ``ValueError`` on an unknown key, ``TypeError`` on a missing one."""
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := set(data) - known:
            raise ValueError(f"{cls.__name__}: unknown keys {sorted(unknown)}")
        read = cls._nested
        return cls(**{k: read[k](v) if k in read and v is not None else v for k, v in data.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Json):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


@dataclass(frozen=True, slots=True)
class Cost(Json):
    """What an answer cost, everything included. Tokens unless said otherwise.

    ``a + b`` is one after the other (peak is the larger one); :meth:`parallel` is side by side.
    """

    prompt: int = 0
    """Prompt tokens computed. A prompt shared by several samples is billed once, to the first of them."""
    cached: int = 0
    """Prompt tokens whose KV was already there."""
    kept: int = 0
    """Tokens of the output."""
    drafted: int = 0
    accepted: int = 0
    """Drafted tokens that became output."""
    discarded: int = 0
    """Computed and thrown away: rejected drafts, recomputation after preemption, tokens past the end."""
    injected: int = 0
    """Tokens a method put into the context itself."""
    drafting: int = 0
    """Tokens that draft models computed; in no other count, :attr:`computed` and :meth:`flops` included."""
    probe: int = 0
    verifier: int = 0
    forwards: int = 0
    """Model calls the request took part in."""
    critical: int = 0
    """Model calls that had to happen one after another."""
    peak_kv_bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return self._combine(other, sequential=True)

    def _combine(self, other: Cost, *, sequential: bool) -> Cost:
        total: dict[str, Any] = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)}
        if sequential:
            total["peak_kv_bytes"] = max(self.peak_kv_bytes, other.peak_kv_bytes)
        else:
            total["critical"] = max(self.critical, other.critical)
            total["seconds"] = max(self.seconds, other.seconds)
        return Cost(**total)

    @staticmethod
    def parallel(costs: Iterable[Cost]) -> Cost:
        """Side by side: tokens, forwards and KV add up; wall seconds and the critical path are the longest one's."""
        total = Cost()
        for cost in costs:
            total = total._combine(cost, sequential=False)
        return total

    @property
    def computed(self) -> int:
        """Tokens put through the model."""
        return self.prompt + self.kept + self.discarded + self.injected + self.probe + self.verifier

    def flops(self, parameters: int) -> float:
        """Matrix-multiply FLOPs for a model of ``parameters`` weights: 2 per weight and computed token (attention left out)."""
        return 2.0 * parameters * self.computed


@dataclass(frozen=True, slots=True)
class Problem(Json):
    """A question with, where known, its answer."""

    id: str
    question: str
    answer: str | None = None
    task: str = ""
    level: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completion(Json):
    """What a model wrote after a prompt."""

    text: str
    """Without the stop token or string, unless ``include_stop`` was asked."""
    token_ids: list[int]
    """All tokens of the output, those that completed the stop included."""
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    """The token id or string that ended it; None when none did."""
    logprobs: list[float] | None = None
    """Natural log-probability of each token of ``token_ids``."""
    certainty: list[float] | None = None
    """At each token of ``token_ids``, how far the model's distribution was from a uniform one: KL(uniform || p) in nats."""
    cost: Cost = Cost()
    seed: int | None = None
    """The seed that repeats it."""
    index: int = 0
    """Sample number within its prompt."""
    error: str | None = None

    _nested = {"cost": Cost.from_json}

    @property
    def reasoning(self) -> str:
        """What stands before the last ``</think>``, without the tags; empty when there is none."""
        head, found, _ = self.text.rpartition(THINK_END)
        return head.removeprefix("<think>").strip() if found else ""

    @property
    def answer(self) -> str:
        """What stands after the last ``</think>``; the whole text when there is none."""
        return self.text.rpartition(THINK_END)[2].strip()


@dataclass(frozen=True, slots=True)
class Verdict(Json):
    """Who says an answer is right. ``unknown`` is an answer that could not be read or decided, never the same as wrong."""

    status: Status
    score: float | None = None
    reason: str = ""
    verifier: str = ""
    cost: Cost = Cost()
    answer: str | None = None
    """What was read as the candidate's answer, in a form that equal answers share where that can be told: votes go by it."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    _nested = {"cost": Cost.from_json}


@dataclass(frozen=True, slots=True)
class Candidate(Json):
    """One attempt at a problem: its text, the answer read from it, and what verifiers said."""

    text: str
    answer: str | None = None
    score: float | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    completion: Completion | None = None

    _nested = {"verdicts": lambda vs: [Verdict.from_json(v) for v in vs], "completion": Completion.from_json}


@dataclass(frozen=True, slots=True)
class Solution(Json):
    """What a strategy returns: the chosen answer, every candidate it saw, and the whole bill."""

    problem_id: str
    answer: str | None
    candidates: list[Candidate] = field(default_factory=list)
    chosen: int | None = None
    """Index of the chosen candidate."""
    cost: Cost = Cost()
    meta: Mapping[str, Any] = field(default_factory=dict)

    _nested = {"candidates": lambda cs: [Candidate.from_json(c) for c in cs], "cost": Cost.from_json}
