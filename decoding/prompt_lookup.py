"""Prompt lookup: what followed the last tokens where they stood first. The cheapest source, kept for comparison.

As in transformers (``prompt_lookup_num_tokens``): of the last n tokens, n from ``max_ngram`` down to 1, the first place in the
prompt and output where they stand is found, and what follows there is the draft. Exact. Cost: a few dictionary look-ups a step,
O(n) memory in the request's own tokens; nothing outlives a request. Not here: frequencies, trees, other requests (Lookahead).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..backend.request import Row
from ..checks import once, whole
from .source import Source
from .speculation import Speculation
from .tree import Tree

LONGEST = 64
"""Of n-grams: a token costs as many look-ups, each of as many tokens."""


class _Text:
    """A row's tokens, and where each of its n-grams first ended."""

    def __init__(self, ngrams: int) -> None:
        self.ids: list[int] = []
        self._first: list[dict[tuple[int, ...], int]] = [{} for _ in range(ngrams)]

    def extend(self, ids: Sequence[int]) -> None:
        for token in ids:
            self.ids.append(token)
            end = len(self.ids)
            for n, first in enumerate(self._first, 1):
                if end >= n:
                    first.setdefault(tuple(self.ids[end - n :]), end)

    def follow(self, count: int) -> list[int]:
        """At most ``count`` tokens from behind the first place of the longest n-gram that was there before."""
        for n in range(len(self._first), 0, -1):
            end = self._first[n - 1].get(tuple(self.ids[-n:]), len(self.ids)) if len(self.ids) >= n else len(self.ids)
            if end < len(self.ids):
                return self.ids[end : end + count]
        return []


@once("max_ngram")
class NGrams(Source):
    """Drafts from the row's own prompt and output."""

    def __init__(self, max_ngram: int) -> None:
        self.max_ngram = whole("max_ngram", max_ngram, 1, LONGEST)
        self._texts: dict[int, _Text] = {}

    def propose(self, rows: Sequence[Row], nodes: int, depths: Sequence[int], floor: float) -> list[Tree]:
        trees = []
        for row, depth in zip(rows, depths, strict=True):
            text = self._texts.get(id(row))
            if text is None:
                text = self._texts[id(row)] = _Text(self.max_ngram)
                text.extend(row.prompt)
            text.extend(row.output[len(text.ids) - len(row.prompt) :])
            found = text.follow(max(0, min(nodes, depth)))
            trees.append(Tree.chain(found, [0.8 ** (i + 1) for i in range(len(found))]))
        return trees

    def stop(self, row: Row, finished: bool) -> None:
        self._texts.pop(id(row), None)


class PromptLookup(Speculation):
    """Drafts of at most ``draft_tokens`` from the request's own text, found by its last ``max_ngram`` tokens or fewer."""

    def __init__(self, draft_tokens: int = 10, *, max_ngram: int = 2, adaptive: bool = True) -> None:
        super().__init__([NGrams(max_ngram)], draft_tokens, adaptive=adaptive)
