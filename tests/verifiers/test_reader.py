"""The reader against a model whose logits are a function of exactly the tokens it is shown: no wrong slot goes unseen."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from lab import Toy, audit, hashed

from forethought.backend.batch import TokenBatch
from forethought.schema import Cost
from forethought.verifiers import reader as module
from forethought.verifiers.heads import LabelTokens
from forethought.verifiers.reader import Reader, Reading

GOOD, BAD = 3, 7
Text = tuple[list[int], list[int]]


def slow(toy: Toy, text: Text) -> list[float]:
    rules = [toy.rule(text[0][: place + 1]) for place in text[1]]
    return [float(logits[GOOD] - logits[BAD]) for logits in rules]


def reader(toy: Toy | None = None, **options: int) -> Reader:
    """One whose books are checked after every step."""
    made = Reader(toy or Toy(), LabelTokens(GOOD, BAD), **options)
    step = made.step

    def audited() -> bool:
        more = step()
        audit(made.pool, made._tree)
        assert made.pool.used == 0
        return more

    made.step = audited  # type: ignore[method-assign]
    return made


def read(made: Reader, *texts: Text) -> list[Reading]:
    return [future.result(30) for future in made.read(texts)]


def every(ids: Sequence[int], n: int = 1) -> Text:
    """``ids``, read at every ``n``-th token and the last."""
    return list(ids), sorted({*range(n - 1, len(ids), n), len(ids) - 1})


def family(rng: random.Random) -> list[Text]:
    """Texts that grow out of each other, some equal, some beginnings of others."""
    texts = [[rng.randrange(100) for _ in range(rng.randint(1, 60))]]
    while len(texts) < 30:
        stem = rng.choice(texts)
        texts.append([*stem[: rng.randint(1, len(stem))], *(rng.randrange(100) for _ in range(rng.randint(0, 25)))])
    return [(ids, sorted(rng.sample(range(len(ids)), rng.randint(1, min(4, len(ids)))))) for ids in texts]


@pytest.mark.parametrize("seed", range(12))
def test_logits_are_those_of_reading_everything_anew(seed: int) -> None:
    """Whatever shares the calls, however small they are, whatever was thrown out in between."""
    rng = random.Random(seed)
    texts, toy = family(rng), Toy()
    longest = max(places[-1] + 1 for _, places in texts)
    made = reader(toy, kv_slots=rng.choice([longest, longest + 1, 3 * longest, 4000]), call_tokens=rng.choice([1, 7, 64, 4096]))
    computed = 0
    for _ in range(4):
        some = rng.sample(texts, rng.randint(1, len(texts)))
        readings = read(made, *some)
        for text, reading in zip(some, readings, strict=True):
            assert reading.logits == pytest.approx(slow(toy, text), abs=1e-6)
            assert reading.cost.verifier + reading.cost.cached <= text[1][-1] + 1
        computed += sum(reading.cost.verifier for reading in readings)
    assert made.cost == Cost(verifier=toy.tokens, forwards=toy.calls, critical=toy.calls)
    assert computed == toy.tokens
    assert made.pool.used == 0


def test_nothing_is_read_twice_while_there_is_room() -> None:
    toy, rng = Toy(), random.Random(1)
    made = reader(toy)
    line = [rng.randrange(100) for _ in range(90)]
    for end in range(10, 91, 10):
        [reading] = read(made, every(line[:end], 10))
        assert (reading.cost.verifier, reading.cost.cached, reading.cost.forwards) == (10, end - 10, 1)
    assert toy.tokens == 90
    branches = [every([*line[:50], 99, i], 10) for i in range(20)]
    assert [reading.cost.verifier for reading in read(made, *branches)] == [2] * 20
    assert toy.tokens == 90 + 2 * 20
    assert toy.calls == 9 + 1
    assert [reading.cost for reading in read(made, *branches)] == [Cost(cached=52)] * 20
    assert toy.calls == 10


def test_what_many_begin_with_is_read_by_one_of_them() -> None:
    toy, stem = Toy(), list(range(40))
    made = reader(toy)
    readings = read(made, *[([*stem, i, i], [41]) for i in range(30)], ([*stem, 3, 3], [41]), (stem[:30], [29]))
    assert toy.calls == 2
    assert toy.tokens == 42 + 29 * 2 + 1, "of the shortest the last token again: its logits were not kept"
    assert [reading.cost.verifier for reading in readings] == [42, *[2] * 29, 0, 1]


def test_a_call_takes_so_many_tokens_and_no_more() -> None:
    toy, sizes = Toy(), list[int]()
    toy.before = lambda batch: sizes.append(len(batch.ids))
    rng = random.Random(2)
    read(reader(toy, call_tokens=64), *[every([rng.randrange(100) for _ in range(n)], 9) for n in (10, 200, 30, 20, 50, 5, 64)])
    assert max(sizes) == 64
    assert sum(sizes) == 379
    assert len(sizes) <= 10


def test_a_call_takes_no_more_than_the_pool_holds() -> None:
    toy, rng = Toy(), random.Random(5)
    made = reader(toy, kv_slots=100)
    read(made, *[every([i, *(rng.randrange(100) for _ in range(39))], 40) for i in range(9)])
    assert (toy.calls, toy.tokens) == (5, 360)


def test_what_was_not_used_for_longest_goes_first() -> None:
    rng = random.Random(3)
    first, second, third = ([rng.randrange(100) for _ in range(40)] for _ in range(3))
    made = reader(kv_slots=100)
    read(made, every(first, 40))
    read(made, every(second, 40))
    read(made, every([*first, 5], 41))
    read(made, every(third, 40))
    costs = [read(made, every([*ids, 6], 41))[0].cost for ids in (first, third, second)]
    assert [cost.cached for cost in costs[:2]] == [40, 40]
    assert costs[2].cached < 40


def test_known_logits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 10)
    made, toy = reader(), Toy()
    for i in range(8):
        text = every([i, *range(20)], 3)
        assert read(made, text)[0].logits == pytest.approx(slow(toy, text), abs=1e-6)
        assert len(made._known) <= 10


def test_a_fault_is_one_texts_own() -> None:
    toy, rng = Toy(), random.Random(4)

    def fail(batch: TokenBatch) -> None:
        if 77 in batch.ids:
            raise RuntimeError("seventy-seven")

    toy.before = fail
    made = reader(toy)
    texts = [every([rng.randrange(70) for _ in range(20)], 5) for _ in range(9)]
    texts[4][0][12] = 77
    futures = made.read(texts)
    for i, (future, text) in enumerate(zip(futures, texts, strict=True)):
        if i == 4:
            assert isinstance(future.exception(30), RuntimeError)
        else:
            assert future.result(30).logits == pytest.approx(slow(toy, text), abs=1e-6)
    toy.before = lambda batch: None
    assert read(made, texts[4])[0].logits == pytest.approx(slow(toy, texts[4]), abs=1e-6)


def test_a_number_that_is_none_is_one_texts_own_and_not_kept() -> None:
    rule = hashed(101)
    toy = Toy(lambda ids: rule(ids) if ids[-1] != 77 else np.full(101, math.nan, np.float32))
    made = reader(toy)
    texts: list[Text] = [([1, 2, 3], [2]), ([4, 77, 5], [0, 1]), ([6, 7], [1])]
    futures = made.read(texts)
    assert [isinstance(future.exception(30), FloatingPointError) for future in futures] == [False, True, False]
    assert made.pool.cached == 5
    toy.rule = rule
    assert read(made, texts[1])[0].logits == pytest.approx(slow(toy, texts[1]), abs=1e-6)


def test_from_many_threads_and_loops() -> None:
    toy = Toy()
    made, wrong = reader(toy, kv_slots=300, call_tokens=100), list[object]()

    def work(seed: int) -> None:
        rng = random.Random(seed)

        async def main() -> None:
            for text in family(rng):
                [future] = made.read([text])
                reading = await asyncio.wrap_future(future)
                if reading.logits != pytest.approx(slow(toy, text), abs=1e-6):
                    wrong.append(text)

        asyncio.run(main())

    threads = [threading.Thread(target=work, args=(seed % 4,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert made.pool.used == 0


def test_closing_ends_what_waits() -> None:
    toy, begun, go_on = Toy(), threading.Event(), threading.Event()

    def wait(batch: TokenBatch) -> None:
        begun.set()
        assert go_on.wait(30)

    toy.before = wait
    made = reader(toy, call_tokens=4)
    futures = made.read([every([i] * 4, 4) for i in range(5)])
    assert begun.wait(30)
    assert futures[3].running()
    made.close()
    go_on.set()
    assert len(futures[0].result(30).logits) == 1
    for future in futures[1:]:
        assert isinstance(future.exception(30), RuntimeError)
    with pytest.raises(RuntimeError, match="closed"):
        made.read([every([1])])


@pytest.mark.parametrize(
    ("text", "message"),
    [(([1, 2], []), r"places=\[\]"), (([1, 2], [2]), r"places=\[2\] of 2"), (([1, 2], [1, 0]), "ascending"),
     (([1, 2], [0, 0]), "ascending"), (([1, 2], [-1]), "places"), (([1] * 60, [50]), "51 tokens to read; there is room for 50")],
)  # fmt: skip
def test_wrong_places_are_named(text: Text, message: str) -> None:
    made = reader(kv_slots=50)
    with pytest.raises(ValueError, match=message):
        made.read([([1], [0]), text])
    assert len(read(made, ([1] * 60, [49]))[0].logits) == 1, "what is behind the last place is not looked at"


@pytest.mark.parametrize("options", [{"kv_slots": 0}, {"kv_slots": True}, {"call_tokens": 0}])
def test_wrong_sizes_are_named(options: dict[str, int]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        Reader(Toy(), LabelTokens(GOOD, BAD), **options)
