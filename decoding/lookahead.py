"""Lookahead: drafts from what was read and written before, in a tree of many branches (arXiv 2312.12728).

The running request's own text and a bounded memory of finished answers are searched for the longest suffix of the text so far;
what followed it there is the draft. Exact. Cost: some tens of microseconds a row and step (see ``index.py``), no model; memory
linear in the tokens remembered. Not to be mixed up with Jacobi "lookahead decoding" (arXiv 2402.02057), which this is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from ..backend.model import Model
from ..backend.request import Row
from ..checks import flag, once
from .index import BORDER, Index, Line
from .posting import Posting
from .source import Source
from .speculation import Speculation
from .tree import Tree
from .trie import Trie


class History(Source):
    """Drafts from an index: a line a row, kept through preemption; what finishes is remembered."""

    def __init__(self, index: Index, remember: bool = True) -> None:
        self.index, self.remember = index, remember
        self._lines: dict[int, tuple[Line, int]] = {}  # and how much of the row's output it has

    def bind(self, model: Model) -> None:
        own = None if model.text is None else model.text.fingerprint
        if self.index.fingerprint is None:
            self.index.fingerprint = own
        elif own is not None and own != self.index.fingerprint:
            raise ValueError(f"the index holds ids of another tokenizer than {model.info.name}'s")

    def propose(self, rows: Sequence[Row], nodes: int, depths: Sequence[int], floor: float) -> list[Tree]:
        return [self._line(row).draft(nodes, depth) if depth > 0 else Tree() for row, depth in zip(rows, depths, strict=True)]

    def _line(self, row: Row) -> Line:
        """The row's line, with all of its output."""
        line, seen = self._lines.get(id(row)) or (self.index.open(row.prompt), 0)
        if seen < len(row.output):
            line.extend(row.output[seen:])
        self._lines[id(row)] = line, len(row.output)
        return line

    def stop(self, row: Row, finished: bool) -> None:
        keep = finished and self.remember and bool(row.output)
        if id(row) in self._lines:
            self._line(row).close(remember=keep)
            del self._lines[id(row)]
        elif keep:  # nothing was ever drafted for it: no line is made for its own sake
            self.index.observe([*row.prompt[-BORDER:], *row.output])


@once("index")
class Lookahead(Speculation):
    """Drafts of at most ``draft_tokens`` nodes a row from ``index``: "posting"; "trie", the paper's; or one of yours.

    All requests of the engine share the index. ``remember``: whether finished answers go into it. ``capacity``: tokens it holds.
    """

    def __init__(
        self, draft_tokens: int = 16, *, index: Index | Literal["posting", "trie"] = "posting", capacity: int = 1_000_000,
        remember: bool = True, adaptive: bool = True,
    ) -> None:  # fmt: skip
        kinds: dict[str, type[Index]] = {"posting": Posting, "trie": Trie}
        flag("remember", remember)
        if isinstance(index, str) and index not in kinds:
            raise ValueError(f"index={index!r}: one of {', '.join(kinds)}, or an Index")
        if not isinstance(index, str | Index):
            raise TypeError(f"index={index!r}: one of {', '.join(kinds)}, or an Index, not {type(index).__name__}")
        self.index: Index = kinds[index](capacity) if isinstance(index, str) else index
        super().__init__([History(self.index, remember)], draft_tokens, adaptive=adaptive)

    def warm_up(self, texts: Iterable[Sequence[int]]) -> int:
        """Remember texts, each a sequence of token ids; returns how many tokens the index now holds."""
        for ids in texts:
            self.index.observe(ids)
        return self.index.tokens
