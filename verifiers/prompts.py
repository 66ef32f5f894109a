"""How reward models are shown a solution: as token ids, and the places among them where scores are read.

Places come from how the ids are made, never from looking for separators in text that a model wrote; what it spells like a
special token is broken up, so that it stays text. The formats are those of the models' cards.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..backend.text import Text
from ..schema import Message
from .steps import steps_of

Aggregate = Literal["last", "min", "prod", "mean"]
Shown: TypeAlias = tuple[list[int], list[int]]
"""Token ids, and the place of each score."""

STEP_BY_STEP = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Format(ABC):
    """One published input format. A score for the steps up to each one is read at that step's last token."""

    aggregate: Aggregate
    """How the scores of steps make one, if nothing else is said."""

    def steps(self, text: str) -> list[str]:
        """Steps of a whole or half-written model output."""
        return steps_of(text)

    @abstractmethod
    def show(self, text: Text, question: str, steps: Sequence[str]) -> Shown:
        """``steps``, at least one, as answers to ``question``. Raises ``ValueError`` for a tokenizer that lacks what it takes."""


@dataclass(frozen=True)
class Separated(Format):
    """Every step closed by one token, its score there. ``chat``: the assistant's turn, else plain text behind the question."""

    separator: str
    head: str = "score"
    """What the tensors of the head are called."""
    chat: bool = True
    system: str | None = None

    def steps(self, text: str) -> list[str]:
        if self.separator != "\n":
            return steps_of(text)
        return [line for step in steps_of(text) for line in re.split(r"\s*\n\s*", step)]

    def show(self, text: Text, question: str, steps: Sequence[str]) -> Shown:
        close = _only(text, self.separator)
        if self.chat:
            chat: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
            ids = text.encode([*chat, {"role": "user", "content": question}])
        else:
            ids = text.encode((text.tokenizer.bos_token or "") + question + "\n")
        places = []
        for step in steps:
            ids += text.encode_continuation(_broken(text, step))
            places.append(len(ids))
            ids.append(close)
        return ids, places


@dataclass(frozen=True)
class Spoken(Format):
    """The language model itself says next, after each step, whether it is ``good`` or ``bad``."""

    good: str = "+"
    bad: str = "-"

    def labels(self, text: Text) -> tuple[int, int]:
        """The tokens of ``good`` and ``bad``."""
        return text.encode_continuation(self.good)[-1], text.encode_continuation(self.bad)[-1]


@dataclass(frozen=True)
class Tagged(Spoken):
    """Plain text, steps numbered, each with a ``tag`` behind it where the label would come next."""

    tag: str = "ки"

    def show(self, text: Text, question: str, steps: Sequence[str]) -> Shown:
        lines, ends, whole = [], list[int](), f"{question} "
        for i, step in enumerate(steps, 1):
            numbered = step if re.match(r"Step \d+:", step) else f"Step {i}: {step}"
            lines.append(f"{_broken(text, numbered)} {self.tag}")
            whole += ("\n" if ends else "") + lines[-1]
            ends.append(len(whole))
        return _ending(text, whole, ends, specials=True)


@dataclass(frozen=True)
class Turns(Spoken):
    """A chat: the user gives a step (the first behind the question), the assistant answers, ``good`` so far."""

    def show(self, text: Text, question: str, steps: Sequence[str]) -> Shown:
        chat, ends, whole = list[dict[str, str]](), list[int](), ""
        for step in steps:
            broken = _broken(text, step)
            chat.append({"role": "user", "content": broken if chat else f"{question} {broken}"})
            whole, before = _render(text, chat, to_go_on=True), whole
            if not whole.startswith(before):
                raise ValueError("this chat template shows earlier turns otherwise than the last one: no scores of steps")
            ends.append(len(whole))
            chat.append({"role": "assistant", "content": self.good})
        return _ending(text, whole + self.good, ends, specials=False)  # the last turn's end is cut as all others are


FORMATS: dict[str, Format] = {
    # Qwen2.5-Math-PRM, arXiv 2501.07301
    "qwen": Separated("prod", "<extra_0>", system=STEP_BY_STEP),
    # the built-in one
    "nano": Separated("min", "<|step|>"),
    # Skywork-o1-Open-PRM
    "skywork": Separated("last", "\n", head="v_head.summary", chat=False),
    # Math-Shepherd, arXiv 2312.08935
    "math-shepherd": Tagged("min"),
    # RLHFlow's Llama3.1-8B-PRM
    "rlhflow": Turns("mean"),
}
OF_ARCHITECTURE = {"Qwen2ForProcessRewardModel": "qwen", "LlamaForProcessRewardModel": "nano"}


def show_answer(text: Text, question: str, answer: str, pad: int | None) -> Shown:
    """A chat of one question and one answer, as outcome reward models take it; read at its last token that is not ``pad``."""
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": _broken(text, answer)}]
    ids = text.encode_continuation(_render(text, chat, to_go_on=False))
    return ids, [max(i for i, token in enumerate(ids) if token != pad)]


def _render(text: Text, chat: Sequence[Any], *, to_go_on: bool) -> str:
    if not text.tokenizer.chat_template:
        raise ValueError("this tokenizer has no chat template, and the reward model's format is a chat")
    rendered: str = text.tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=to_go_on)
    return rendered


def _broken(text: Text, written: str) -> str:
    """``written`` with a space inside of whatever would be read as a special token."""
    for special in text.tokenizer.get_added_vocab():
        if len(special) > 1 and special.strip() and special in written:
            written = written.replace(special, f"{special[0]} {special[1:]}")
    return written


def _only(text: Text, token: str) -> int:
    ids = text.encode_continuation(token)
    if len(ids) != 1:
        raise ValueError(f"{token!r} is {len(ids)} tokens of this tokenizer: it is of another format's")
    return ids[0]


def _ending(text: Text, whole: str, ends: Sequence[int], *, specials: bool) -> Shown:
    """Token ids of ``whole``, and the tokens that end at characters ``ends``."""
    read = text.tokenizer(whole, add_special_tokens=specials, return_offsets_mapping=True)
    token_at = {stop: i for i, (start, stop) in enumerate(read["offset_mapping"]) if stop > start}
    for end in ends:
        if end not in token_at:
            raise ValueError(f"this tokenizer joins {whole[max(0, end - 8) : end + 8]!r} across the end of a step")
    return list(read["input_ids"]), [token_at[end] for end in ends]
