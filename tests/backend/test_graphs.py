"""Recorded decode steps against the plain path: random rows, trees and sizes through the same tables; what is left to the
plain path; and what is recorded when. A recorder that keeps the run, and hands out the same buffers, stands for the card's."""

from __future__ import annotations

import asyncio
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forethought as ft
from forethought.backend import graphs
from forethought.backend.batch import Output, Part, Row, Stages, TokenBatch, walk
from forethought.backend.graphs import Graphs
from forethought.backend.kv import Context, KVPool
from forethought.backend.load import load
from forethought.backend.transformer import Transformer
from forethought.kernels import attention, static
from forethought.kernels.static import Form

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and attention.refused("triton", torch.device("cpu")) is not None,
    reason="needs Triton, or its interpreter",
)
VOCABULARY = 97


class FakeCard:
    """Records a run: its tensors stay where they are, and a replay writes them anew, as on a card, piece by piece; what is
    written into one between two pieces is what the second one reads."""

    def __init__(self) -> None:
        self.recorded: list[int] = []

    def __call__(self, run: graphs.Run) -> graphs.Run:
        stops: dict[int, torch.Tensor] = {}
        kept = walk(run(), defaultdict(lambda: lambda x: None), 0)
        tensors = [x for x in (kept.logits, *kept.hidden.values()) if x is not None]
        self.recorded.append(len(tensors[0]))
        for x in tensors:
            x.fill_(torch.nan)  # recording computes nothing

        def replay() -> Stages:
            stages = run()
            while True:
                try:
                    layer, x = next(stages)
                except StopIteration as end:
                    again = end.value
                    break
                stop = stops.setdefault(layer, torch.empty_like(x))
                stop.copy_(x)
                yield layer, stop
                x.copy_(stop)
            for x, y in zip(tensors, (x for x in (again.logits, *again.hidden.values()) if x is not None), strict=True):
                x.copy_(y)
            return kept

        return replay


@pytest.fixture
def recorded(checkpoint: Callable[..., Path]) -> Callable[..., Transformer]:
    """recorded(kind, sizes) -> a model that computes by recordings of these sizes: on a CPU fake ones."""

    def make(kind: str = "qwen3", sizes: tuple[int, ...] = (1, 2, 4, 8)) -> Transformer:
        model = load(checkpoint(kind), impl="triton", dtype="float32")
        assert isinstance(model, Transformer)
        on_cpu = model.info.device.type == "cpu"
        model._graphs = Graphs.of(model, FakeCard() if on_cpu else None, sizes)
        return model

    return make


def start(pool: KVPool, model: Transformer, lengths: list[int], shared: int = 0) -> list[Context]:
    """Contexts of these lengths, behind a prefix that all share."""
    rng = np.random.default_rng(len(lengths))
    first = pool.new_context()
    if shared:
        TokenBatch.commit(fed(model, pool, [Row(first, rng.integers(1, VOCABULARY, shared).tolist())]))
    contexts = [first.fork() for _ in lengths]
    fed(model, pool, [Row(c, rng.integers(1, VOCABULARY, n).tolist()) for c, n in zip(contexts, lengths, strict=True)]).commit()
    first.release()
    return contexts


def fed(model: Transformer, pool: KVPool, rows: list[Row]) -> TokenBatch:
    batch = TokenBatch(pool, rows)
    batch.wanted = np.arange(len(batch.ids))  # asks like a prefill: the plain path
    kept, model.impl = model.impl, "torch"  # faster than an interpreter
    model.forward(batch)
    model.impl = kept
    return batch


def plainly(model: Transformer, batch: TokenBatch) -> Output:
    kept, model._graphs = model._graphs, None
    try:
        return model.forward(batch)
    finally:
        model._graphs = kept


def same(model: Transformer, batch: TokenBatch, replays: int = 1) -> None:
    """The call's logits, hidden states, keys and values are those of the plain path, and it was a replay."""
    assert model._graphs is not None
    wanted = plainly(model, batch)
    new = torch.from_numpy(batch.slots).to(model.info.device)
    stored = [x[new].clone() for x in (*batch.pool.k, *batch.pool.v)]
    before = [x.clone() for x in (*batch.pool.k, *batch.pool.v)]
    for x in (*batch.pool.k, *batch.pool.v):
        x[new] = torch.nan
    count = model._graphs.replayed
    found = model.forward(batch)
    assert model._graphs.replayed - count == replays
    assert found.logits is not None
    assert found.logits.shape == (len(batch.ids), VOCABULARY)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=2e-5)
    assert list(found.hidden) == list(wanted.hidden)
    for layer, x in found.hidden.items():
        torch.testing.assert_close(x, wanted.hidden[layer], rtol=0, atol=2e-5)
    for x, own in zip((*batch.pool.k, *batch.pool.v), stored, strict=True):
        torch.testing.assert_close(x[new], own, rtol=0, atol=1e-5)
        x[new] = own
    for x, y in zip((*batch.pool.k, *batch.pool.v), before, strict=True):
        assert torch.equal(x, y), "a slot of somebody else was written"


@pytest.mark.parametrize("kind", ["qwen3", "qwen2-window", "mistral"])
def test_a_recorded_step_equals_the_plain_path(kind: str, recorded: Callable[..., Transformer]) -> None:
    """Rows come and go, contexts grow, chains and trees alternate; the tables are written over each time."""
    model = recorded(kind)
    pool = model.new_pool(600)
    contexts = start(pool, model, [3, 28, 17, 1])
    rng = np.random.default_rng(0)
    for step in range(8):
        drafts = bool(step % 3 == 2)
        some = rng.permutation(len(contexts))[: int(rng.integers(1, 3 if drafts else 5))]
        rows = []
        for r in some.tolist():
            count = int(rng.integers(1, 5)) if drafts else 1
            tree = None
            if count > 1 and rng.random() < 0.7:
                tree = [-1, *(int(rng.integers(0, i)) for i in range(1, count))]
            rows.append(Row(contexts[r], rng.integers(1, VOCABULARY, count).tolist(), tree))
        batch = TokenBatch(pool, rows, hidden=(1, 2) if step % 5 == 4 else ())
        same(model, batch)
        batch.commit([[0] for _ in rows])
    assert model._graphs is not None
    assert {key.form.masked for key in model._graphs._replays[pool]} == {False, True}


def test_prefixes_read_once(recorded: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows over one long prefix: an item with more queries than a small tile takes."""
    from forethought.kernels import triton_attention

    tiling = triton_attention.tiling
    monkeypatch.setattr(triton_attention, "tiling", lambda *about: tiling(*about)._replace(few=2))
    model = recorded("qwen3", sizes=(10,))
    pool = model.new_pool(500)
    contexts = start(pool, model, [1 + r % 3 for r in range(10)], shared=70)
    for count in (10, 6):
        batch = TokenBatch(pool, [Row(c, [7 + r]) for r, c in enumerate(contexts[:count])])
        same(model, batch)
        batch.commit()
    assert model._graphs is not None
    assert {key.form for key in model._graphs._replays[pool]} == {Form(False, False), Form(False, True)}


def test_the_largest_size_is_recorded_first_and_each_once(recorded: Callable[..., Transformer]) -> None:
    model = recorded(sizes=(1, 4, 2))
    pool, card = model.new_pool(60), FakeCard()
    contexts = start(pool, model, [3, 5, 2])
    model._graphs = Graphs.of(model, card, (1, 4, 2))
    for count in (1, 3, 2, 3, 1):
        batch = TokenBatch(pool, [Row(c, [5]) for c in contexts[:count]])
        same(model, batch)
        batch.commit()
    assert card.recorded == [4, 2, 1]
    batch = TokenBatch(pool, [Row(contexts[0], [5, 6], [-1, 0])])
    same(model, batch)
    batch.rollback()
    assert card.recorded == [4, 2, 1, 2]
    other = model.new_pool(20)
    same(model, TokenBatch(other, [Row(start(other, model, [3])[0], [5])]))
    assert card.recorded == [4, 2, 1, 2, 4, 2, 1]


def test_recordings_end_with_their_pool(recorded: Callable[..., Transformer]) -> None:
    model = recorded(sizes=(1,))
    assert model._graphs is not None
    pool = model.new_pool(20)
    model.forward(TokenBatch(pool, [Row(pool.new_context(), [5])]))
    assert len(model._graphs._replays) == 1
    del pool
    assert len(model._graphs._replays) == 0


def test_a_recording_is_split_where_it_is_tapped(recorded: Callable[..., Transformer]) -> None:
    """Taps see the tokens of the call, in order, before the rest is computed, which reads what they write."""
    model, card = recorded(sizes=(1, 4)), FakeCard()
    model._graphs = Graphs.of(model, card if model.info.device.type == "cpu" else None, (1, 4))
    pool = model.new_pool(60)
    contexts = start(pool, model, [3, 5, 2])
    seen: list[tuple[int, torch.Tensor]] = []
    factor = 1.0

    def tap(layer: int) -> Callable[[torch.Tensor], None]:
        def tapped(x: torch.Tensor) -> None:
            x *= factor
            seen.append((layer, x.clone()))

        return tapped

    last = len(model.info.layers)
    for layers, changed in [((1,), 1.0), ((0, 1, last), 1.0), ((1,), 2.0), ((last,), 0.5), ((), 1.0)]:
        factor = changed
        for rows in ([Row(contexts[0], [5])], [Row(c, [5 + i]) for i, c in enumerate(contexts)]):
            batch = TokenBatch(pool, rows, taps={layer: tap(layer) for layer in reversed(layers)}, hidden=(1,))
            seen.clear()
            same(model, batch)
            assert [layer for layer, _ in seen] == [*layers, *layers]
            for (_, x), (_, y) in zip(seen[: len(layers)], seen[len(layers) :], strict=True):
                assert x.shape == (len(rows), model.info.width)
                torch.testing.assert_close(x, y, rtol=0, atol=2e-5)
            batch.rollback()
    if model.info.device.type == "cpu":
        assert len(card.recorded) == 2 * 4, "each size with each set of taps, once"


def test_a_tap_may_call_the_model(recorded: Callable[..., Transformer]) -> None:
    """What is under way keeps its tables: such a call is not a replay."""
    model = recorded(sizes=(1, 2))
    pool = model.new_pool(40)
    contexts = start(pool, model, [3, 5, 8])
    inner: list[Any] = []

    def tap(x: torch.Tensor) -> None:
        batch = TokenBatch(pool, [Row(c, [6]) for c in contexts[1:]])
        inner.append(model.forward(batch).logits)
        batch.rollback()

    batch = TokenBatch(pool, [Row(contexts[0], [5])], taps={1: tap})
    wanted, found = plainly(model, batch).logits, model.forward(batch).logits
    assert model._graphs is not None
    assert model._graphs.replayed == 1
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    torch.testing.assert_close(inner[0], inner[1], rtol=0, atol=2e-5)


def test_a_tap_that_fails_spoils_no_other_step(recorded: Callable[..., Transformer]) -> None:
    def fail(x: torch.Tensor) -> None:
        raise RuntimeError("seen enough")

    model = recorded(sizes=(1,))
    pool = model.new_pool(20)
    [context] = start(pool, model, [3])
    for taps in ({1: fail}, {1: lambda x: None}, {1: fail}, {}):
        batch = TokenBatch(pool, [Row(context, [5])], taps=taps)  # type: ignore[arg-type]
        if taps.get(1) is fail:
            with pytest.raises(RuntimeError, match="seen enough"):
                model.forward(batch)
        else:
            same(model, batch)
        batch.rollback()


@pytest.mark.parametrize("after", [0, 2])
def test_what_cannot_be_recorded_runs_all_the_same(after: int, recorded: Callable[..., Transformer]) -> None:
    """It is said once, and not tried again."""
    model, card, asked = recorded(), FakeCard(), 0

    def recorder(run: graphs.Run) -> graphs.Run:
        nonlocal asked
        asked += 1
        if asked > after:
            raise MemoryError("the card is full")
        return card(run)

    model._graphs = Graphs.of(model, recorder, (1, 2))
    pool = model.new_pool(60)
    contexts = start(pool, model, [3, 5])
    rows = [Row(contexts[0], [5, 6], [-1, 0]), Row(contexts[1], [5, 6])]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for row in 3 * rows:
            batch = TokenBatch(pool, [row])
            wanted, found = plainly(model, batch).logits, model.forward(batch).logits
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
            assert model.prepare(batch) is None
            batch.rollback()
    ours = [str(x.message) for x in said if x.category is UserWarning]
    assert ours == ["decode steps are not recorded from here on: MemoryError: the card is full"]
    assert asked == after + 1


def test_a_device_by_another_name(checkpoint: Callable[..., Path]) -> None:
    """Tensors on "cpu:0" say "cpu", as those on "cuda" say "cuda:0": tables are found by what tensors say."""
    model = load(checkpoint("qwen3"), impl="triton", dtype="float32", device="cuda" if torch.cuda.is_available() else "cpu:0")
    assert isinstance(model, Transformer)
    assert model.info.device == model.embed(torch.tensor([1], device=model.info.device)).device
    model._graphs = Graphs.of(model, None if torch.cuda.is_available() else FakeCard(), (1, 2))
    pool = model.new_pool(60)
    [context] = start(pool, model, [9])
    same(model, TokenBatch(pool, [Row(context, [5])]))


def test_a_recording_reads_the_tables_that_are_renewed(
    recorded: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where attention looks for its tables under another name it would make its own, of what is there while recording."""
    model = recorded(sizes=(1,))
    pool = model.new_pool(20)
    batch = TokenBatch(pool, [Row(pool.new_context(), [5])])
    wanted = plainly(model, batch).logits
    monkeypatch.setattr(static, "work_key", lambda window, device, tiling, shape: ("work", "elsewhere"))
    with pytest.warns(UserWarning, match="tables of its own"):
        found = model.forward(batch).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def test_what_no_recording_computes(recorded: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch) -> None:
    model = recorded(sizes=(1, 2))
    pool = model.new_pool(80)
    contexts = start(pool, model, [30, 5, 3])
    vector = torch.ones(1, model.info.width, device=model.info.device)
    index = torch.tensor([0], device=model.info.device)
    calls: dict[str, Callable[[], TokenBatch]] = {
        "embeddings": lambda: TokenBatch(pool, [Row(contexts[0], [5])], embeddings=(index, vector)),
        "prefill": lambda: TokenBatch(pool, [Row(contexts[0], [5, 6], logits=np.array([1]))]),
        "rotated": lambda: TokenBatch(pool, [Row(contexts[0], [5], view=[Part(contexts[1], 3)])]),
        "large": lambda: TokenBatch(pool, [Row(c, [5]) for c in contexts]),
    }
    for make in calls.values():
        batch = make()
        same_plain(model, batch)
        batch.rollback()
    monkeypatch.setattr(graphs, "LISTED", 20)
    model._graphs = Graphs.of(model, FakeCard(), (1, 2))
    batch = TokenBatch(pool, [Row(contexts[0], [5])])
    same_plain(model, batch)
    batch.rollback()
    same(model, TokenBatch(pool, [Row(contexts[1], [5])]))


def same_plain(model: Transformer, batch: TokenBatch) -> None:
    wanted = plainly(model, batch).logits
    assert model._graphs is not None
    count = model._graphs.replayed
    found = model.forward(batch).logits
    assert model._graphs.replayed == count
    assert found is not None
    assert torch.equal(found, wanted)


def test_results_outlive_the_next_replay(recorded: Callable[..., Transformer]) -> None:
    model = recorded(sizes=(1,))
    pool = model.new_pool(20)
    batch = TokenBatch(pool, [Row(pool.new_context(), [5])], hidden=(2,))
    first = model.forward(batch)
    kept: Any = (first.logits.clone(), first.hidden[2].clone())  # type: ignore[union-attr]
    batch.commit()
    model.forward(TokenBatch(pool, [Row(pool.new_context(), [9])], hidden=(2,)))
    assert torch.equal(first.logits, kept[0])  # type: ignore[arg-type]
    assert torch.equal(first.hidden[2], kept[1])


def test_plain_torch_and_graphs_off_record_nothing(checkpoint: Callable[..., Path]) -> None:
    for options in ({"impl": "torch"}, {"graphs": False}):
        model = load(checkpoint("llama"), **options)  # type: ignore[arg-type]
        assert isinstance(model, Transformer)
        assert model._graphs is None
    model = load(checkpoint("llama"), impl="torch")
    assert isinstance(model, Transformer)
    assert Graphs.of(model) is None


@pytest.mark.parametrize("drafting", [False, True])
def test_an_engine_replays_all_steps_without_prompts(drafting: bool, recorded: Callable[..., Transformer]) -> None:
    """Rows that start together and end apart; the tokens are those of the plain path."""
    model = recorded("qwen3", sizes=(2, 8))
    prompts = [[5, 6, 7] * 3, [9, 8, 5, 6]]
    counted = model._graphs
    assert counted is not None
    found = {}
    for graphs_ in (counted, None):
        model._graphs = graphs_
        decoder = ft.Lookahead(3, adaptive=False) if drafting else ft.Autoregressive()
        with ft.Engine(model, decoder, kv_slots=60) as engine:
            waiting = [engine.agenerate(p, max_tokens=4 + 2 * i, temperature=0.7, seed=i) for i, p in enumerate(prompts)]
            found[graphs_] = [answers[0].token_ids for answers in asyncio.run(together(waiting))]
            if graphs_ is not None:
                prefills = engine.cost.forwards - counted.replayed
                assert 1 <= prefills <= len(prompts) < counted.replayed
                assert drafting or counted.prepared >= counted.replayed - 3, "first, and after somebody came or went"
    assert found[counted] == found[None]


def test_tables_made_ahead_and_recorded_over(recorded: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pool's first step clears the tables, and then does not fit into them."""
    monkeypatch.setattr(graphs, "LISTED", 20)
    model = recorded(sizes=(1,))
    mine, other = model.new_pool(40), model.new_pool(40)
    [context], [long] = start(mine, model, [5]), start(other, model, [30])
    batch = TokenBatch(mine, [Row(context, [5])])
    model.forward(batch)
    ahead = model.prepare(batch)
    batch.commit()
    second = TokenBatch(other, [Row(long, [5])])
    same_plain(model, second)
    third = TokenBatch(mine, [Row(context, [6])], ahead=ahead)
    assert ahead is not None
    assert third.views is ahead.views
    same(model, third)


def test_tables_made_ahead_and_overwritten(recorded: Callable[..., Transformer]) -> None:
    """Two engines on one model take turns, a third asks in between: the tables that one sent are the other's when it is its
    turn again."""
    model = recorded("qwen3", sizes=(1, 2))
    counted, found = model._graphs, {}
    assert counted is not None
    for graphs_ in (counted, None):
        model._graphs = graphs_
        with ft.Engine(model, ft.Autoregressive(), kv_slots=60) as one, ft.Engine(model, ft.Autoregressive(), kv_slots=60) as two:
            waiting = [e.agenerate([5, 6, 7 + i], max_tokens=9, temperature=0.7, seed=i) for i, e in enumerate((one, two))]
            found[graphs_] = [answers[0].token_ids for answers in asyncio.run(together(waiting))]
            if graphs_ is not None:
                assert counted.prepared < counted.replayed - 9
            scored = one.ascore([5, 6, 7], [[8, 9], [3]])
            waiting = [one.agenerate([4, 6], max_tokens=9, seed=1), scored, one.agenerate([4, 6, 9], max_tokens=5, seed=1)]
            answers = asyncio.run(together(waiting))
            found[graphs_] += [answers[i][0].token_ids for i in (0, 2)]
    assert found[counted] == found[None]


async def together(answers: list[Any]) -> list[Any]:
    return list(await asyncio.gather(*answers))
