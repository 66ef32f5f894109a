"""From emitted tokens to text: stop rules, what a stream may show, and the completion with its bill."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..schema import Completion, Cost
from .request import Piece, Request, Sample
from .text import Text, TextStream


def advance(sample: Sample, ids: Sequence[int]) -> int:
    """Append ``ids`` to the sample's output up to the first stop; returns how many were used and sets ``sample.finish``."""
    request, output = sample.request, sample.rows[0].output
    for used, token in enumerate(ids, 1):
        output.append(token)
        if token in request.stop_ids:
            sample.finish, sample.stop_reason = "stop", request.stop_names.get(token, token)
        elif len(output) >= request.max_tokens:
            sample.finish = "length"
        if sample.stream is not None:
            _read(sample, sample.stream, token)
        if sample.finish is not None:
            del sample.rows[0].logprobs[len(output) :]
            del sample.rows[0].certainty[len(output) :]
            return used
    return len(ids)


def _read(sample: Sample, stream: TextStream, token: int) -> None:
    """Decode one more token and look for stop strings that it completes."""
    read = len(sample.text)
    if sample.stop_reason is None:
        sample.text += stream.push([token])
    if sample.finish is not None:
        sample.text += stream.flush()
    if (stops := sample.request.stops) is None or len(sample.text) == read:
        return
    sample.stop_state, found = stops.read(sample.stop_state, sample.text[read:])
    if found is not None and len(sample.rows[0].output) >= sample.request.min_tokens:
        start, end = read + found[0], read + found[1]
        sample.finish, sample.stop_at, sample.stop_reason = "stop", start, sample.text[start:end]


def open_stream(request: Request, text: Text | None) -> TextStream | None:
    """A decoder of tokens as they come, for a sample that is watched or stops at strings."""
    if text is None or (request.sink is None and not request.stop_strings):
        return None
    return TextStream(text, request.prompt)


def show(sample: Sample, completion: Completion | None = None) -> Piece:
    """What a stream may show since last time: never text that a stop string could still take back."""
    request, output = sample.request, sample.rows[0].output if sample.rows else []
    text = sample.text if completion is None else completion.text
    held = request.stops.held(sample.stop_state) if completion is None and request.stops is not None else 0
    end = max(sample.shown, len(text) - held)
    piece = Piece(text[sample.shown : end], output[sample.shown_ids :], completion)
    sample.shown, sample.shown_ids = end, len(output)
    return piece


def complete(sample: Sample, text: Text | None, slot_bytes: int, error: BaseException | None) -> Completion:
    """The completion of a finished sample."""
    request = sample.request
    row = sample.rows[0] if sample.rows else None
    output = row.output if row is not None else []
    cost = Cost(
        prompt=sample.prompt_computed, cached=sample.prompt_cached, kept=len(output), drafted=sample.drafted,
        accepted=sample.accepted, discarded=sample.discarded, injected=sample.injected,
        drafting=sum(row.drafting for row in sample.rows), forwards=sample.forwards,
        critical=sample.forwards, peak_kv_bytes=sample.peak_slots * slot_bytes,
        seconds=time.perf_counter() - request.born,
    )  # fmt: skip
    return Completion(
        text=_text(sample, text, output), token_ids=list(output), finish_reason=sample.finish or "error",
        stop_reason=sample.stop_reason, logprobs=None if request.logprobs is None or row is None else list(row.logprobs),
        certainty=list(row.certainty) if request.certainty and row is not None else None,
        cost=cost, seed=request.seed, index=sample.index, error=None if error is None else f"{type(error).__name__}: {error}",
    )  # fmt: skip


def _text(sample: Sample, text: Text | None, output: list[int]) -> str:
    if text is None:
        return ""
    request, stop = sample.request, sample.stop_reason
    if stop is None:
        return text.decode_behind(request.prompt, output)
    if sample.stop_at is not None and isinstance(stop, str):
        return text.decode_behind(request.prompt, output)[: sample.stop_at + len(stop) * request.include_stop]
    if isinstance(stop, int) and request.include_stop:
        return text.decode_behind(request.prompt, output)
    named = stop if isinstance(stop, str) and request.include_stop else ""
    return text.decode_behind(request.prompt, output[:-1]) + named
