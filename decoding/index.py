"""The memory that Lookahead drafts from: token ids of finished texts, and of the running text itself.

Model-free: what followed the same tokens before is proposed again, after "Lookahead" (arXiv 2312.12728). An index remembers
whole texts, oldest first, and at most ``capacity`` tokens of them; running texts are lines, and a line that closes leaves its
output behind. What an index may cost and how good its drafts are is its kind's (``posting.py``, ``trie.py``); whatever it
proposes, a draft decides nothing. Files hold the texts alone, so that any kind of index reads any other's. One thread.

A file, all numbers little-endian: the magic ``FTINDEX\\n``; three uint32, the format's version, the header's length in
bytes and its CRC-32; the header, JSON (``fingerprint`` of the tokenizer or null, ``texts``, ``tokens``, ``sha256`` of what
follows); the lengths of the texts as uint32; their ids as int32, oldest text first.

Not here: which tokens end a text (the engine cuts), whose texts may be shared with whom (an index a tenant), calibration.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..checks import whole
from ..kernels.views import TREE_LIMIT
from .tree import Tree, best

MAGIC = b"FTINDEX\n"
VERSION = 1
_FIXED = len(MAGIC) + 12

BORDER = 4
"""How many tokens of the prompt are remembered in front of an output: what the longest key needs to reach across."""
EDGE = -1
"""Stands between texts, and in front of the first: no token is equal to it."""

MOST = 1 << 30
"""Tokens that an index may hold: places are numbers of 32 bits."""

Ids: TypeAlias = "array[int]"


def edged(ids: Iterable[int]) -> Ids:
    """The ids behind an edge. Raises ``ValueError`` for what is no token id: below 0, or of more than 31 bits."""
    try:
        text = array("i", (EDGE,))
        text.extend(ids)
    except OverflowError as error:
        raise ValueError(f"not a token id: {error}") from None
    if len(text) > 1 and min(text[1:]) < 0:
        raise ValueError(f"not a token id: {min(text)}")
    return text


class Line(ABC):
    """One running text. It sees itself and the index's memory; the memory sees it once it is closed."""

    def __init__(self, index: Index, prompt_ids: Sequence[int]) -> None:
        self._index = index
        self._ids = edged(prompt_ids)
        self._prompt = len(self._ids)
        self._open = True
        self._learn(1)

    @property
    def ids(self) -> list[int]:
        """Prompt and output so far; nothing once closed."""
        return self._ids[1:].tolist()

    def extend(self, ids: Sequence[int]) -> None:
        """Append tokens to the text; they can be retrieved at once."""
        if not self._open:
            raise RuntimeError("this line is closed")
        begin = len(self._ids)
        self._ids.extend(edged(ids)[1:])
        self._learn(begin)

    def draft(self, budget: int, depth: int | None = None) -> Tree:
        """What may follow: at most ``budget`` nodes, at most ``depth`` deep, best first.

        Scores estimate the probability of whole paths. A chain may be of any length, a tree has at most 64 nodes.
        """
        if not self._open:
            raise RuntimeError("this line is closed")
        depth = budget if depth is None else min(budget, depth)
        if depth < 1 or len(self._ids) < 2:
            return Tree()
        tree = self._grow(budget, depth)
        return best(tree, budget) if len(tree) > TREE_LIMIT else tree

    def close(self, remember: bool = True) -> None:
        """End the text. Its output, behind the prompt's last tokens, goes to the memory; all else is forgotten."""
        if not self._open:
            return
        self._open = False
        output = self._ids[max(1, self._prompt - BORDER) :] if len(self._ids) > self._prompt else ()
        self._ids = array("i")
        self._forget()
        if remember:
            self._index.observe(output)

    @abstractmethod
    def _learn(self, begin: int) -> None:
        """Take in the tokens from ``begin`` on of ``_ids``."""

    @abstractmethod
    def _grow(self, budget: int, depth: int) -> Tree:
        """The draft, best first; both numbers are at least 1, and there is a token to stand on."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop whatever was made of the text."""


class Index(ABC):
    """Finished texts, shared by all lines; the oldest go when there are more than ``capacity`` tokens.

    ``fingerprint`` names the tokenizer that the ids belong to, None if unknown.
    """

    def __init__(self, capacity: int = 1_000_000, fingerprint: str | None = None) -> None:
        self.capacity = whole("capacity", capacity, 0, MOST)
        self.fingerprint = fingerprint
        self._lengths: deque[int] = deque()
        self._tokens = 0

    @property
    def tokens(self) -> int:
        """Remembered tokens."""
        return self._tokens

    def observe(self, ids: Iterable[int]) -> None:
        """Remember a finished text; of one that is longer than the capacity, its end."""
        text = edged(ids)[1:]
        text = text[max(0, len(text) - self.capacity) :]
        if not text:
            return
        while self._tokens + len(text) > self.capacity:
            length = self._lengths.popleft()
            self._tokens -= length
            self._evict(length)
        self._lengths.append(len(text))
        self._tokens += len(text)
        self._insert(text)

    def draft(self, context_ids: Sequence[int], budget: int, depth: int | None = None) -> Tree:
        """``Line.draft`` for a context that is known once and as a whole."""
        line = self.open(context_ids)
        tree = line.draft(budget, depth)
        line.close(remember=False)
        return tree

    def save(self, path: str | Path) -> None:
        """Write the texts to a file: the new one is there as a whole, or the old one still is.

        A process killed in here may leave ``.NAME.PID.tmp`` beside it.
        """
        path = Path(path)
        lengths = np.array(self._lengths, dtype="<u4").tobytes()
        ids = np.array([token for text in self.texts() for token in text], dtype="<i4").tobytes()
        header = {"fingerprint": self.fingerprint, "texts": len(self._lengths), "tokens": self._tokens}
        words = json.dumps(header | {"sha256": hashlib.sha256(lengths + ids).hexdigest()}).encode()
        numbers = np.array([VERSION, len(words), zlib.crc32(words)], dtype="<u4").tobytes()
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(unfinished, "wb") as file:
                for part in (MAGIC, numbers, words, lengths, ids):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load(self, path: str | Path) -> None:
        """Replace the memory by a file's texts. Raises ``ValueError``, and changes nothing, if the file is not whole, not of
        this format, or of another tokenizer; a fingerprint that is unknown here is taken over."""
        fingerprint, texts = read(Path(path))
        if None not in (self.fingerprint, fingerprint) and fingerprint != self.fingerprint:
            raise ValueError(f"{path}: token ids of tokenizer {fingerprint!r}, this index is for {self.fingerprint!r}")
        self.clear()
        self.fingerprint = self.fingerprint if fingerprint is None else fingerprint
        for text in texts:
            self.observe(text)

    def clear(self) -> None:
        """Forget every finished text; running ones go on."""
        self._lengths.clear()
        self._tokens = 0
        self._reset()

    @abstractmethod
    def open(self, prompt_ids: Sequence[int]) -> Line:
        """A running text, its prompt taken in at once."""

    @abstractmethod
    def texts(self) -> Iterator[list[int]]:
        """The remembered texts, oldest first."""

    @abstractmethod
    def _insert(self, text: Ids) -> None:
        """Remember a text, which is not empty; there is room for it."""

    @abstractmethod
    def _evict(self, length: int) -> None:
        """Forget the oldest text, of ``length`` tokens."""

    @abstractmethod
    def _reset(self) -> None:
        """Forget all texts."""


def read(path: Path) -> tuple[str | None, list[list[int]]]:
    """A file's fingerprint and texts, oldest first. Raises ``ValueError`` that names what is wrong with the file."""
    data = path.read_bytes()
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{path}: not an index: its magic is {data[: len(MAGIC)]!r}, not {MAGIC!r}")
    if len(data) < _FIXED:
        raise ValueError(f"{path}: truncated: {len(data)} bytes do not even hold the fixed part")
    version, size, crc = np.frombuffer(data, "<u4", 3, len(MAGIC)).tolist()
    if version != VERSION:
        raise ValueError(f"{path}: format version {version}, this reads version {VERSION}")
    words = data[_FIXED : _FIXED + size]
    if len(words) < size:
        raise ValueError(f"{path}: truncated: a header of {size} bytes, {len(words)} are there")
    if zlib.crc32(words) != crc:
        raise ValueError(f"{path}: corrupt: the header's checksum differs")
    header = json.loads(words)
    count, tokens, body = header["texts"], header["tokens"], data[_FIXED + size :]
    if len(body) != 4 * (count + tokens):
        raise ValueError(f"{path}: truncated or longer than it says: {len(body)} bytes of texts, not {4 * (count + tokens)}")
    if hashlib.sha256(body).hexdigest() != header["sha256"]:
        raise ValueError(f"{path}: corrupt: the texts' checksum differs")
    ends = np.cumsum(np.frombuffer(body, "<u4", count), dtype=np.int64)
    ids = np.frombuffer(body, "<i4", tokens, 4 * count)
    return header["fingerprint"], [text.tolist() for text in np.split(ids, ends[:-1])] if count else []
