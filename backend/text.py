"""Text to token ids and back, the same way everywhere, and always in the context of what stands before.

The text of token ids ``after`` behind ids ``before`` is what decoding both together shows beyond decoding ``before`` alone: so
SentencePiece's first space and WordPiece's glue come out as they stand in the whole. It is a function of these ids and nothing
else; a stream's pieces join to it. Special tokens show nothing, an invalid byte is one U+FFFD and spoils no neighbour, and
transformers' clean-up of spaces, by which a text would depend on what comes behind it, is never applied. A character that the
prompt left half belongs to the output that completes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from numbers import Integral
from typing import Any

from ..checks import token_ids
from ..schema import Prompt
from .chat import before_special, check_text, render, spell_out

HALF = "\ufffd"
"""How half a character is shown."""
ANCHORS = ("\n", ".", "a")
"""Texts to encode others behind, for tokenizers that put a space before the first word."""


class Text:
    """A checkpoint's tokenizer. ``tokenizer`` is any fast transformers tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise TypeError(f"tokenizer={tokenizer!r:.100}: a fast transformers tokenizer, not {type(tokenizer).__name__}")
        self.tokenizer = tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokens and their ids: equal for tokenizers that number the same pieces alike, whatever their names."""
        pieces = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return hashlib.sha256(json.dumps(pieces).encode()).hexdigest()

    @cached_property
    def specials(self) -> dict[str, int]:
        """The special tokens: how they are spelled, and their ids."""
        return {token.content: i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    @cached_property
    def silent(self) -> frozenset[int]:
        """Ids of the special tokens, which text does not show."""
        return frozenset(self.specials.values())

    @cached_property
    def _bytes(self) -> dict[int, int]:
        """Token id -> byte, where single bytes are tokens such as ``<0x0A>``."""
        vocabulary = self.tokenizer.get_vocab()
        found = {vocabulary[name]: byte for byte in range(256) if (name := f"<0x{byte:02X}>") in vocabulary}
        return found if len(found) == 256 and self._plain([vocabulary["<0x00>"]]) == "\0" else {}

    # ---- to ids ----------------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt, *, chat: Mapping[str, Any] | None = None, parse_special: bool | None = None) -> list[int]:
        """Token ids of a prompt: ids as they are; text with the tokenizer's own BOS, once; messages by the chat template.

        ``chat``: what the chat template is given beside the messages, such as ``{"enable_thinking": False, "tools": […]}``. A
        last message of the assistant is continued. ``parse_special``: whether text that spells a special token becomes that
        token. None: in a raw text, which is the model's whole input and often a chat rendered by hand, it does; in messages,
        whose contents must not be able to end their turn, it does not.

        Raises ``ValueError`` for text that is not valid Unicode and for messages that the template refuses, ``TypeError`` for
        any other type of prompt.
        """
        if isinstance(prompt, str):
            if chat:
                raise ValueError(f"chat={dict(chat)!r}: options of a chat template, and the prompt is raw text")
            bos = self.tokenizer.bos_token
            parse = parse_special is not False
            return self._read(prompt, parse, specials=not (parse and bos and prompt.startswith(bos)))
        if not is_listed(prompt):
            raise TypeError(f"a prompt is text, token ids or chat messages, not {type(prompt).__name__}")
        if all(isinstance(i, Integral) for i in prompt):
            if chat:
                raise ValueError(f"chat={dict(chat)!r}: options of a chat template, and the prompt is token ids")
            return token_ids(prompt, "prompt")
        if not all(isinstance(m, Mapping) and "role" in m and "content" in m for m in prompt):
            raise TypeError(f"{prompt!r:.200}: a chat prompt is a list of {{'role': …, 'content': …}}")
        parts = render(self.tokenizer, prompt, chat or {}, () if parse_special else self.specials)
        return self._join(parts, specials=False)

    def encode_continuation(self, text: str, before: Sequence[int] = (), *, parse_special: bool | None = None) -> list[int]:
        """Token ids of text that goes on from ids ``before``: decoded behind these, they show ``text`` and nothing else.

        No token goes across the seam. Without ``before`` the text is encoded as it is, and nothing is added. ``parse_special``
        as in :meth:`encode`; None does. Raises ``ValueError`` where no such ids are found.
        """
        if not before or not text:
            return self._read(text, parse_special is not False, specials=False)
        if parse_special is False:
            return self._join(spell_out(text, self.specials), specials=False, before=before)
        found, exact = self._behind(before, check_text(text, "text"))
        if not exact:
            shown = self._shown(self.tail(before), found)
            raise ValueError(f"{text!r:.200} cannot be put behind this prompt: the tokenizer reads it back as {shown!r:.200}")
        return found

    def _read(self, text: str, parse: bool, *, specials: bool) -> list[int]:
        check_text(text, "text")
        return self._join([text] if parse else spell_out(text, self.specials), specials=specials)

    def _join(self, parts: Sequence[str], *, specials: bool, before: Sequence[int] = ()) -> list[int]:
        """Token ids of a text in parts, no token across their seams."""
        line = list(before)
        for i, part in enumerate(parts):
            if before or i:
                head, rest = before_special(part, self.specials)
                line += (self._behind(line, head)[0] if head else []) + (self._ids(rest, specials=False) if rest else [])
            else:
                line += self._ids(part, specials)
        return line[len(before) :]

    def _behind(self, before: Sequence[int], text: str) -> tuple[list[int], bool]:
        """Token ids for ``text`` behind ``before``, and whether they show it, as far as the tokenizer can tell texts apart."""
        tail, normalizer = self.tail(before), self._normalizer
        candidates = []
        for ids in self._candidates(text):
            if (shown := self._shown(tail, ids)) == text:
                return ids, True
            candidates.append((ids, shown))
        for ids, shown in candidates:
            if normalizer is not None and normalizer.normalize_str(shown) == normalizer.normalize_str(text):
                return ids, True
        return candidates[0][0], False

    @cached_property
    def _normalizer(self) -> Any:
        return self.tokenizer.backend_tokenizer.normalizer if self.tokenizer.is_fast else None

    def _candidates(self, text: str) -> Iterator[list[int]]:
        yield self._ids(text, specials=False)
        if text[0] == " " and len(text) > 1:
            yield self._ids(text[1:], specials=False)
        for anchor in ANCHORS:
            head, whole = self._ids(anchor, specials=False), self._ids(anchor + text, specials=False)
            if whole[: len(head)] == head and len(whole) > len(head):
                yield whole[len(head) :]

    def _shown(self, before: list[int], ids: list[int]) -> str:
        """What ``ids`` show behind ``before``, special tokens too."""
        return added(self._plain(before, specials=True), self._plain([*before, *ids], specials=True))

    def _ids(self, text: str, specials: bool) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=specials)
        return ids

    # ---- to text ---------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids with nothing before them."""
        text = self._plain(ids)
        return self._mended(ids, text) if HALF in text and self._bytes else text

    def decode_behind(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Text of ``ids`` behind ``before``."""
        tail = self.tail(before)
        return added(self.decode(tail), self.decode([*tail, *ids]))

    def tail(self, before: Sequence[int]) -> list[int]:
        """As much of the end of ``before`` as what comes behind it can depend on."""
        tail: list[int] = []
        for wanted in (8, 64):
            tail = []
            for i in reversed(before):
                if i not in self.silent:
                    tail.append(i)
                    if len(tail) == wanted:
                        break
            tail.reverse()
            if (text := self.decode(tail)) and HALF not in text:
                break
        return tail

    @cached_property
    def _backend(self) -> Any:
        """What decodes for the tokenizer, where its class adds nothing but checks, which cost as much again; else None."""
        from transformers import PreTrainedTokenizerFast

        own = type(self.tokenizer)
        theirs = (PreTrainedTokenizerFast.decode, PreTrainedTokenizerFast._decode)
        plain = self.tokenizer.is_fast and (own.decode, own._decode) == theirs
        return self.tokenizer.backend_tokenizer if plain else None

    def _plain(self, ids: Sequence[int], *, specials: bool = False) -> str:
        if self._backend is not None:
            shown: str = self._backend.decode(ids, skip_special_tokens=not specials)
            return shown
        text: str = self.tokenizer.decode(ids, skip_special_tokens=not specials, clean_up_tokenization_spaces=False)
        return text

    def _mended(self, ids: Sequence[int], text: str) -> str:
        """``text`` of ``ids``, in which an invalid byte took all bytes next to it with it, with these read one character each."""
        zero = next(i for i, byte in self._bytes.items() if byte == 0)
        runs, line, within = list[bytearray](), list[int](), False
        for i in ids:
            if i in self.silent:
                continue
            if i in self._bytes:
                if not within:
                    runs.append(bytearray())
                    line.append(zero)
                runs[-1].append(self._bytes[i])
            else:
                line.append(i)
            within = i in self._bytes
        parts = self._plain(line).split("\0")
        if len(parts) != len(runs) + 1:  # a token with a zero byte of its own
            return text
        return parts[0] + "".join(run.decode(errors="replace") + part for run, part in zip(runs, parts[1:], strict=True))


def is_listed(value: Any) -> bool:
    """Whether ``value`` is a list or the like, and not text or bytes."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def added(old: str, now: str) -> str:
    """What ``now`` has behind ``old``, but for half a character at its end that ``now`` has whole."""
    if now.startswith(old):
        return now[len(old) :]
    return now[next((i for i, (a, b) in enumerate(zip(old, now, strict=False)) if a != b), len(now)) :]


class TextStream:
    """:meth:`Text.decode_behind` of a growing list of ids, piece by piece; each token costs the same.

    A piece is held back while it may still change: it ends in half a character.
    """

    KEPT = 4
    """Tokens that are decoded again for those behind them."""

    def __init__(self, text: Text, before: Sequence[int] = ()) -> None:
        self._text, self._before = text, before
        self._ids: list[int] = []
        self._shown: str | None = None
        """The text of ``_ids`` as far as it was shown; None until there is one to show."""
        self._pending = 0

    def _begin(self) -> str:
        if self._shown is None:
            self._ids = self._text.tail(self._before)
            self._shown = self._text.decode(self._ids)
        return self._shown

    def push(self, ids: Sequence[int]) -> str:
        """The new text that ``ids`` complete."""
        new = [i for i in ids if i not in self._text.silent]
        if not new:
            return ""
        before = self._begin()
        self._ids += new
        self._pending += len(new)
        now = self._text.decode(self._ids)
        half = now.endswith(HALF)
        if half and self._pending < 4:  # a character has four bytes at most
            return ""
        if now == before and now:
            del self._ids[-self._pending :]  # they show nothing
        if not half:
            self._pending = 0
        known = now[: len(now) - half]
        if len(known) < len(before):
            return ""
        piece, self._shown = added(before, known), known
        if len(self._ids) > 2 * self.KEPT and (tail := self._text.decode(self._ids[-self.KEPT :])):
            self._ids, self._shown = self._ids[-self.KEPT :], tail[: len(tail) - half]
        return piece

    def flush(self) -> str:
        """What was held back, as it stands."""
        before = self._begin()
        now = self._text.decode(self._ids)
        self._shown, self._pending = now, 0
        return added(before, now)
