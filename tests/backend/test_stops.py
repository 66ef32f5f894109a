"""All stop strings are found at once, as if each were looked for alone."""

from __future__ import annotations

import random

import pytest

from forethought.backend.stops import Stops


def slow(strings: tuple[str, ...], text: str, read: int) -> tuple[int, int] | None:
    """Among the ends in ``text[read:]``: the string that begins first, the shortest of these."""
    found = [(end - len(s), end) for s in strings for end in range(read + 1, len(text) + 1) if text[:end].endswith(s)]
    return min(found, default=None)


@pytest.mark.parametrize("seed", range(40))
def test_any_strings_in_any_portions(seed: int) -> None:
    dice = random.Random(seed)
    strings = tuple("".join(dice.choices("ab\U0001f600", k=dice.randint(1, 5))) for _ in range(dice.randint(1, 6)))
    stops, text, state = Stops(strings), "", 0
    for _ in range(30):
        piece, read = "".join(dice.choices("abc\U0001f600", k=dice.randint(0, 6))), len(text)
        text += piece
        state, found = stops.read(state, piece)
        assert (None if found is None else (found[0] + read, found[1] + read)) == slow(strings, text, read)
        longest = max(n for n in range(len(text) + 1) if any(s.startswith(text[len(text) - n :]) for s in strings) or n == 0)
        assert stops.held(state) == longest


def test_thousands_cost_a_character_no_more_than_a_few() -> None:
    dice = random.Random(0)
    words = tuple("".join(dice.choices("abcdefgh", k=12)) for _ in range(20_000))
    stops, steps = Stops(words), 0
    step = stops._step

    def counted(node: int, letter: int) -> int:
        nonlocal steps
        steps += 1
        return step(node, letter)

    stops._step = counted  # type: ignore[method-assign]
    _, found = stops.read(0, "x" * 500 + words[77])
    assert found == (500, 512)
    assert steps == 512
