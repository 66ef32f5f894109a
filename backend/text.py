"""Text to token ids and back, the same way everywhere: BOS exactly once, and streams that never show half a character."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ..schema import Prompt


class Text:
    """A checkpoint's tokenizer. ``tokenizer`` is any fast transformers tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokens and their ids: equal for tokenizers that number the same pieces alike, whatever their names."""
        pieces = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return hashlib.sha256(json.dumps(pieces).encode()).hexdigest()

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: ids as they are; text with the tokenizer's own BOS, once; messages by the chat template.

        Raises ``ValueError`` for messages to a tokenizer without a template, ``TypeError`` for any other type of prompt.
        """
        if isinstance(prompt, str):
            bos = self.tokenizer.bos_token
            return self._ids(prompt, specials=not (bos and prompt.startswith(bos)))
        if not isinstance(prompt, Sequence):
            raise TypeError(f"a prompt is text, token ids or chat messages, not {type(prompt).__name__}")
        if all(isinstance(i, int) for i in prompt):
            return [int(i) for i in prompt]  # type: ignore[arg-type]
        if not all(isinstance(m, dict) and "role" in m and "content" in m for m in prompt):
            raise TypeError("a chat prompt is a list of {'role': …, 'content': …}")
        if not self.tokenizer.chat_template:
            raise ValueError("this tokenizer has no chat template: give the prompt as text or token ids")
        return self._ids(self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True), specials=False)

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of text that goes on from a prompt: nothing is added."""
        return self._ids(text, specials=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _ids(self, text: str, specials: bool) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=specials)
        return ids


class TextStream:
    """Text of a growing token list, piece by piece; pieces joined equal the text of the whole.

    A piece is held back while it may still change: it ends in half a character. (Byte fallback, as in Llama 2, turns whole
    characters to U+FFFD when an invalid byte follows them; what was shown of such is not taken back.)
    """

    def __init__(self, text: Text) -> None:
        self._text, self._ids = text, list[int]()
        self._prefix = self._read = 0

    def push(self, ids: Sequence[int]) -> str:
        """The new text that ``ids`` complete."""
        self._ids.extend(ids)
        before = self._text.decode(self._ids[self._prefix : self._read])
        now = self._text.decode(self._ids[self._prefix :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """What was held back, as it stands."""
        before = self._text.decode(self._ids[self._prefix : self._read])
        now = self._text.decode(self._ids[self._prefix :])
        self._prefix = self._read = len(self._ids)
        return now[len(before) :]
