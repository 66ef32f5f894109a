"""Where a growing text contains one of many strings first: all are looked for at once.

An automaton over characters (Aho and Corasick, 1975): it stands at the longest end of the text that begins some string, so each
character costs the same however many strings there are. Exact; twin: :func:`str.find` for each of them.
"""

from __future__ import annotations

from functools import lru_cache


class Stops:
    """Finds any of ``strings``, none of them empty. Immutable; a search's whole state is one number, 0 at first."""

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._next: dict[int, int] = {}
        parents, letters, self._depth, self._found = [0], [0], [0], [0]
        for string in strings:
            node = 0
            for letter in map(ord, string):
                child = self._next.get(node << 21 | letter)
                if child is None:
                    child = self._next[node << 21 | letter] = len(parents)
                    parents.append(node)
                    letters.append(letter)
                    self._depth.append(self._depth[node] + 1)
                    self._found.append(0)
                node = child
            self._found[node] = self._depth[node]
        self._fail = [0] * len(parents)
        for node in sorted(range(1, len(parents)), key=self._depth.__getitem__):
            if parents[node]:
                self._fail[node] = self._step(self._fail[parents[node]], letters[node])
            self._found[node] = self._found[node] or self._found[self._fail[node]]

    def _step(self, node: int, letter: int) -> int:
        while (child := self._next.get(node << 21 | letter)) is None and node:
            node = self._fail[node]
        return child or 0

    def read(self, state: int, piece: str) -> tuple[int, tuple[int, int] | None]:
        """The state behind ``piece``, and where in it the string that begins first begins and ends; of equals the shortest.

        Counted from the start of ``piece``, so a string that began before it begins below 0. None: none ends here.
        """
        best: tuple[int, int] | None = None
        for end, letter in enumerate(map(ord, piece), 1):
            state = self._step(state, letter)
            if (length := self._found[state]) and (best is None or end - length < best[0]):
                best = (end - length, end)
        return state, best

    def held(self, state: int) -> int:
        """How many characters at the end of the text may still turn out to begin a string."""
        return self._depth[state]


@lru_cache(maxsize=8)
def stops_of(strings: tuple[str, ...]) -> Stops:
    """One automaton for all requests that stop at the same strings."""
    return Stops(strings)
