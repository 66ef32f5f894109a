"""From emitted tokens to text: stop rules, what a stream may show, and the completion with its bill."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..schema import Completion, Cost
from .request import Piece, Sample
from .text import Text, TextStream


def advance(sample: Sample, ids: Sequence[int]) -> int:
    """Append ``ids`` to the sample's output up to the first stop; returns how many were used and sets ``sample.finish``."""
    request, output = sample.request, sample.rows[0].output
    for used, token in enumerate(ids, 1):
        output.append(token)
        if token in request.stop_ids:
            sample.finish, sample.stop_reason = "stop", token
        elif sample.stream is not None:
            _read(sample, token)
        if sample.finish is None and len(output) >= request.max_tokens:
            sample.finish = "length"
        if sample.finish is not None:
            del sample.rows[0].logprobs[len(output) :]
            return used
    return len(ids)


def _read(sample: Sample, token: int) -> None:
    """Decode one more token and look for stop strings where it may have completed one."""
    assert sample.stream is not None
    longest = max(map(len, sample.request.stop_strings), default=0)
    start = max(0, len(sample.text) - longest)
    sample.text += sample.stream.push([token])
    if len(sample.rows[0].output) >= sample.request.min_tokens:
        found = [(at, stop) for stop in sample.request.stop_strings if (at := sample.text.find(stop, start)) >= 0]
        if found:
            sample.finish = "stop"
            sample.stop_at, sample.stop_reason = min(found)


def open_stream(sample: Sample, text: Text | None) -> None:
    """Start decoding as tokens come, for samples that are watched or stop at strings."""
    if text is not None and (sample.request.sink is not None or sample.request.stop_strings):
        sample.stream = TextStream(text)


def show(sample: Sample, completion: Completion | None = None) -> Piece:
    """What a stream may show since last time: never text that a stop string could still take back."""
    request, output = sample.request, sample.rows[0].output if sample.rows else []
    text = sample.text if completion is None else completion.text
    held = max(map(len, request.stop_strings), default=1) - 1 if completion is None else 0
    end = max(sample.shown, len(text) - held)
    piece = Piece(text[sample.shown : end], output[sample.shown_ids :], completion)
    sample.shown, sample.shown_ids = end, len(output)
    return piece


def complete(sample: Sample, text: Text | None, slot_bytes: int, error: Exception | None) -> Completion:
    """The completion of a finished sample."""
    request = sample.request
    row = sample.rows[0] if sample.rows else None
    output = row.output if row is not None else []
    cost = Cost(
        prompt=sample.prompt_computed, cached=sample.prompt_cached, kept=len(output), drafted=sample.drafted,
        accepted=sample.accepted, discarded=sample.discarded, injected=sample.injected, forwards=sample.forwards,
        critical=sample.forwards, peak_kv_bytes=max(0, sample.peak_slots - sample.shared_slots) * slot_bytes,
        seconds=time.perf_counter() - request.born,
    )  # fmt: skip
    return Completion(
        text=_text(sample, text, output), token_ids=list(output), finish_reason=sample.finish or "error",
        stop_reason=sample.stop_reason, logprobs=None if request.logprobs is None or row is None else list(row.logprobs),
        cost=cost, seed=request.seed, index=sample.index, error=None if error is None else f"{type(error).__name__}: {error}",
    )  # fmt: skip


def _text(sample: Sample, text: Text | None, output: list[int]) -> str:
    if text is None:
        return ""
    request, stop = sample.request, sample.stop_reason
    if isinstance(stop, int) and not request.include_stop:
        return text.decode(output[:-1])
    whole = text.decode(output)
    if isinstance(stop, str):
        return whole[: sample.stop_at + len(stop) * request.include_stop]
    return whole
