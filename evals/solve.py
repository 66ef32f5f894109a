"""``forethought solve``: one question to a model, its reasoning and answer as they come, then the bill.

The question goes through the checkpoint's chat template, where it has one. Plain text on stdout, nothing but it when piped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, cast

from omegaconf import DictConfig

from ..backend.engine import Engine
from ..backend.model import Model
from ..schema import Completion, Message, Prompt
from .config import build, compose, expand, options
from .terminal import Paint, amount, clean, waiting
from .watch import OPEN, follow


def solve(question: str, overrides: Sequence[str], *, multirun: bool = False, as_json: bool = False) -> int:
    """The exit code: 0, or 130 after Ctrl-C. Every combination of a sweep is composed before the first one runs."""
    question = sys.stdin.read() if question == "-" else question
    question = question.strip()
    if not question:
        raise ValueError("the question is empty")
    runs = expand(overrides) if multirun else [list(overrides)]
    for run, config in zip(runs, [compose("config", run) for run in runs], strict=True):
        if multirun and not as_json:
            print(Paint(sys.stdout).bold("── " + (" ".join(run) or "defaults")), flush=True)
        given = options(config)
        with open_engine(config) as engine:
            completion = _answer(engine, question, given, as_json)
        if completion.finish_reason == "cancelled":
            return 130
        if multirun and not as_json:
            print()
    return 0


def open_engine(config: DictConfig) -> Engine:
    """The model and decoder of a config, ready; the model last, because it may take long to load."""
    decoder = build(config.decoder)
    return Engine(load(config), decoder)


def load(config: DictConfig) -> Model:
    """The model of a config."""
    with waiting(f"loading {clean(str(config.model.get('name_or_path')))} …"):
        return cast("Model", build(config.model))


def _answer(engine: Engine, question: str, given: dict[str, Any], as_json: bool) -> Completion:
    prompt = ask(engine.model, question)
    if not as_json:
        ids = engine.encode(prompt, chat=given["chat"], parse_special=given["parse_special"])
        completion = follow(engine.stream(ids, **given | {"chat": None}), sys.stdout, thinking=opens_reasoning(engine, ids))
        if completion is None:
            engine.close()  # ends what was interrupted, and bills it
            completion = Completion("", [], "cancelled", cost=engine.cost, seed=given.get("seed"))
        print(Paint(sys.stdout).dim("\n" + bill(engine.model, completion, given, chat=not isinstance(prompt, str))))
        return completion
    completion = cast("Completion", engine.generate(prompt, **given)[0])
    print(
        json.dumps(
            {
                "model": engine.model.info.name,
                "question": question,
                "reasoning": completion.reasoning,
                "answer": completion.answer,
                "completion": completion.to_json(),
            }
        )
    )
    return completion


def ask(model: Model, question: str, start: str = "") -> Prompt:
    """The question as a chat message; as raw text for a checkpoint without a chat template. ``start``: of the answer."""
    if model.text is None:
        raise ValueError(f"{model.info.name} has no tokenizer, so it cannot be asked in words")
    if not model.text.tokenizer.chat_template:
        return f"{question}\n{start}" if start else question
    messages: list[Message] = [{"role": "user", "content": question}]
    if start:
        messages.append({"role": "assistant", "content": start})
    return messages


def opens_reasoning(engine: Engine, prompt: Sequence[int]) -> bool:
    """Whether the ``prompt`` ends in an open think tag, as some chat templates do."""
    text = engine.model.text
    return text is not None and str(text.tokenizer.decode(prompt)).rstrip().endswith(OPEN)


def bill(model: Model, completion: Completion, given: dict[str, Any], *, chat: bool = True) -> str:
    """What the answer cost and how to have it again, in one line. ``given``: the options it was asked with."""
    cost, temperature = completion.cost, given.get("temperature", model.info.defaults.temperature)
    parts = [
        f"{cost.kept} tokens in {cost.seconds:.2f} s, {amount(cost.kept / max(cost.seconds, 1e-9))} tokens/s",
        f"{cost.prompt + cost.cached} prompt tokens",
        f"{cost.forwards} forwards",
        f"{amount(cost.peak_kv_bytes, 'B')} KV",
        f"temperature {temperature:g}, seed {completion.seed}" if temperature else "greedy",
    ]
    if completion.finish_reason != "stop":
        parts.append({"length": "cut off at max_tokens", "cancelled": "cancelled"}.get(completion.finish_reason, "failed"))
    if not chat:
        parts.append("asked as raw text: no chat template")
    return f"{clean(model.info.name)}: {', '.join(parts)}"
