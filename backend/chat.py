"""Chat messages to the text that a checkpoint's own template makes of them; no content can pretend to be a special token.

Where a content spells a special token, a mark is put behind the first character of that spelling before the template is rendered,
and the rendered text is cut at the marks: encoded part by part, the token cannot come of it. Without such a content the text is
exactly the template's, in one part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Characters that Unicode keeps free for uses inside a program."""
ROLES = frozenset({"system", "user", "assistant", "tool"})
SETTINGS = frozenset({"add_generation_prompt", "continue_final_message"})
"""What transformers itself takes, whatever the template."""
OURS = frozenset("messages conversation chat_template tokenize padding truncation max_length return_tensors return_dict".split())
"""What is given to transformers here."""


def render(tokenizer: Any, messages: Sequence[Any], options: Mapping[str, Any], specials: Collection[str]) -> list[str]:
    """``messages`` by the chat template, in parts of which none spells one of ``specials`` unless the template wrote it.

    A last message of the assistant is left open, to be continued; else the assistant's turn is opened. ``options`` are the
    template's own. Raises ``ValueError`` for messages or options that it refuses, ``TypeError`` for what is no message.
    """
    template = tokenizer.chat_template
    if not template:
        raise ValueError("this tokenizer has no chat template: give the prompt as text or token ids")
    source = "\n".join(template.values()) if isinstance(template, Mapping) else template
    chat = [_message(message, i, source) for i, message in enumerate(messages)]
    for name in options:
        if name in OURS:
            raise ValueError(f"chat: {name}={options[name]!r}: not for the template; that is what encoding a chat is for")
        if name not in SETTINGS and not re.search(rf"\b{re.escape(str(name))}\b", source):
            raise ValueError(f"chat: {name}={options[name]!r}: this chat template knows no {name!r}")
    prefill = chat[-1]["role"] == "assistant" and not chat[-1].get("tool_calls")
    settings = {"continue_final_message": prefill, "add_generation_prompt": not prefill} | dict(options)
    if settings["continue_final_message"] and not chat[-1]["content"]:  # a turn that is open and empty
        chat, settings = chat[:-1], settings | {"continue_final_message": False, "add_generation_prompt": True}
    mark = _mark([chat, settings], specials)
    if mark is not None:
        chat, settings = (_each_text(value, lambda text: mark.join(spell_out(text, specials))) for value in (chat, settings))
    try:
        text: str = tokenizer.apply_chat_template(chat, tokenize=False, **settings)
    except Exception as e:  # what tools and templates raise has no common kind
        raise ValueError(f"the chat template refuses these messages: {_clean(e, mark)}") from e
    return text.split(mark) if mark is not None else [text]


def spell_out(text: str, specials: Collection[str]) -> list[str]:
    """``text`` cut inside of every spelling of a special token, behind its first character."""
    pattern = _pattern(frozenset(specials))
    parts, start, at = [], 0, 0
    while pattern is not None and (match := pattern.search(text, at)):
        at = match.start() + 1
        parts.append(text[start:at])
        start = at
    return [*parts, text[start:]]


def before_special(text: str, specials: Collection[str]) -> tuple[str, str]:
    """``text`` up to the first special token, and from there on."""
    pattern = _pattern(frozenset(specials))
    match = pattern.search(text) if pattern is not None else None
    return (text, "") if match is None else (text[: match.start()], text[match.start() :])


def check_text(text: str, what: str) -> str:
    """``text``, if it is valid Unicode. Raises ``ValueError``, with the place, for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"{what}: half a surrogate pair, {text[e.start]!r}, at character {e.start}: no valid Unicode") from None
    return text


@lru_cache(maxsize=64)
def _pattern(specials: frozenset[str]) -> re.Pattern[str] | None:
    """Any special token of two characters or more; one of a single character cannot be cut."""
    spellings = sorted((special for special in specials if len(special) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spellings))) if spellings else None


def _message(message: Mapping[str, Any], i: int, template: str) -> dict[str, Any]:
    role, content = message["role"], message["content"]
    if not isinstance(role, str):
        raise TypeError(f"message {i}: role={role!r}: a string, not {type(role).__name__}")
    if role not in ROLES and not re.search(rf"""['"]{re.escape(role)}['"]""", template):
        raise ValueError(f"message {i}: role={role!r}: this chat template knows {', '.join(sorted(ROLES))}")
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        content = "".join(_text_part(part, i) for part in content)
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise TypeError(f"message {i}: content={content!r:.200}: a string or a list of parts, not {type(content).__name__}")
    _each_text(dict(message) | {"content": content}, lambda text: check_text(text, f"message {i}"))
    return dict(message) | {"content": content}


def _text_part(part: Any, i: int) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise ValueError(f"message {i}: {part!r:.200}: a part of a content is {{'type': 'text', 'text': …}}")
    return str(part["text"])


def _mark(value: Any, specials: Collection[str]) -> str | None:
    """A character that is nowhere in ``value``; None where nothing in it spells a special token."""
    texts: list[str] = []

    def note(text: str) -> str:
        texts.append(text)
        return text

    _each_text(value, note)
    if all(len(spell_out(text, specials)) == 1 for text in texts):
        return None
    mark = next((mark for mark in MARKS if not any(mark in text for text in texts)), None)
    if mark is None:
        raise ValueError("these messages spell special tokens and hold every noncharacter from U+FDD0 to U+FDEF")
    return mark


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """``value`` with every text in it changed, names of arguments among them, but for roles."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            change(key) if isinstance(key, str) else key: part if key == "role" else _each_text(part, change)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_each_text(part, change) for part in value]
    return value


def _clean(error: Exception, mark: str | None) -> str:
    said = str(error) or type(error).__name__
    return said if mark is None else said.replace(mark, "")
