"""The one model call, on both implementations: whatever way tokens get behind a context, logits are those of plain text.

What is expected always comes from the same model computing one plain chain, which other tests compare with transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from forethought.backend.batch import Part, Row, TokenBatch
from forethought.backend.load import load
from forethought.backend.model import Model

OURS, ADAPTED = ("llama-yarn", "qwen2-window"), ("phi", "gemma3", "llama-gelu")
ROTARY, LEARNED = (*OURS, *ADAPTED), ("gpt2", "opt")
TEXT = np.random.default_rng(1).integers(1, 97, 40).tolist()

rotary = pytest.mark.parametrize("kind", ROTARY)
every = pytest.mark.parametrize("kind", [*ROTARY, *LEARNED])


@pytest.fixture(scope="module")
def model(checkpoint: Callable[..., Path]) -> Callable[[str], Model]:
    loaded: dict[str, Model] = {}
    return lambda kind: loaded.setdefault(kind, loaded.get(kind) or load(checkpoint(kind)))


@pytest.fixture
def lab(model: Callable[[str], Model], compute: Callable[..., Tensor], kind: str) -> SimpleNamespace:
    """A model, a pool, ``context(ids, **row)`` with committed tokens, and ``chain(ids)``: logits of plain text."""
    chosen = model(kind)
    pool = chosen.new_pool(300)

    def context(ids: list[int], **row: Any) -> Any:
        made = pool.new_context()
        if ids:
            compute(chosen, made, ids, **row)
        return made

    def chain(ids: list[int]) -> Tensor:
        made = pool.new_context()
        logits = compute(chosen, made, ids)
        made.release()
        return logits

    return SimpleNamespace(model=chosen, pool=pool, context=context, chain=chain, more=lambda *a, **k: compute(chosen, *a, **k))


def same(mine: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-4)


@every
def test_truncate_and_compute_again(lab: SimpleNamespace) -> None:
    context = lab.context(TEXT)
    assert context.truncate(11) == []
    assert (lab.pool.used, context.ids) == (11, TEXT[:11])
    same(lab.more(context, TEXT[11:]), lab.chain(TEXT)[11:])


@every
def test_forks_go_their_own_ways(lab: SimpleNamespace) -> None:
    trunk = lab.context(TEXT[:20])
    ways = [TEXT[20:30], TEXT[30:33]]
    forks = [trunk.fork() for _ in ways]
    assert lab.pool.used == 20
    batch = TokenBatch(lab.pool, [Row(fork, ids) for fork, ids in zip(forks, ways, strict=True)])
    logits = lab.model.forward(batch).logits.split([10, 3])
    batch.commit()
    for own, ids in zip(logits, ways, strict=True):
        same(own, lab.chain(TEXT[:20] + ids)[20:])
    trunk.release()
    same(lab.more(forks[0], TEXT[:3]), lab.chain(TEXT[:30] + TEXT[:3])[30:])


@every
@pytest.mark.parametrize("size", [9, 65])
def test_every_path_of_a_tree_is_a_chain(lab: SimpleNamespace, size: int) -> None:
    noise = np.random.default_rng(size)
    ids, parents = noise.integers(1, 97, size).tolist(), [-1, *(int(noise.integers(0, i)) for i in range(1, size))]
    context, other = lab.context(TEXT[:20]), lab.context(TEXT[5:17])
    batch = TokenBatch(lab.pool, [Row(other, TEXT[17:19]), Row(context, ids, parents=parents)])
    logits = lab.model.forward(batch).logits
    assert logits is not None
    same(logits[:2], lab.chain(TEXT[5:19])[12:])
    leaves = sorted(set(range(size)) - set(parents))
    path: list[int] = []
    for leaf in leaves:
        path = [leaf]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        same(logits[2:][path], lab.chain(TEXT[:20] + [ids[i] for i in path])[20:])
    batch.commit([None, np.array(path)])
    kept = TEXT[:20] + [ids[i] for i in path]
    assert context.ids == kept
    assert context.plain
    assert lab.pool.used == len(kept) + 14
    same(lab.more(context, TEXT[:4]), lab.chain(kept + TEXT[:4])[-4:])


@every
def test_only_asked_logits(lab: SimpleNamespace) -> None:
    rows = [
        Row(lab.pool.new_context(), TEXT[:5], logits=np.array([4])),
        Row(lab.pool.new_context(), TEXT[5:9], logits=np.array([], np.int64)),
        Row(lab.pool.new_context(), TEXT[9:12]),
    ]
    output = lab.model.forward(TokenBatch(lab.pool, rows, hidden=[1]))
    expected = torch.cat((lab.chain(TEXT[:5])[4:], lab.chain(TEXT[9:12])))
    same(output.logits, expected)
    assert len(output.hidden[1]) == 4
    none = lab.model.forward(TokenBatch(lab.pool, [Row(lab.pool.new_context(), TEXT[:3], logits=np.array([], np.int64))]))
    assert none.logits.shape == (0, 97)


@every
@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_is_not_there(layer: int, lab: SimpleNamespace) -> None:
    for asked in ({"hidden": [layer]}, {"taps": {layer: lambda x: None}}):
        batch = TokenBatch(lab.pool, [Row(lab.pool.new_context(), TEXT)], **asked)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"layer {layer}: .* has 0 to 2, its output"):
            lab.model.forward(batch)
        batch.rollback()


@every
def test_hidden_states_and_taps(lab: SimpleNamespace, kind: str, checkpoint: Any, own_code: Any) -> None:
    with torch.no_grad():
        ids = torch.tensor([TEXT], device=lab.model.info.device)
        expected = own_code(checkpoint(kind))(ids, output_hidden_states=True).hidden_states
    seen: dict[int, Tensor] = {}
    written: list[bool] = []

    def tap(x: Tensor) -> None:
        seen[1] = x.clone()
        written.extend(bool(lab.pool.k[i].any()) for i in range(2))

    taps = {0: lambda x: seen.update({0: x.clone()}), 1: tap, 2: lambda x: seen.update({2: x.clone()})}
    rows = [Row(lab.pool.new_context(), TEXT, logits=np.array([3, 39])), Row(lab.pool.new_context(), TEXT[:7])]
    output = lab.model.forward(TokenBatch(lab.pool, rows, hidden=[0, 1, 2], taps=taps))
    assert written == [True, False], "layer 1 ran before its tap"
    for layer in range(3):
        same(seen[layer][:40], expected[layer][0])
        same(output.hidden[layer][:2], expected[layer][0, [3, 39]])
        same(output.hidden[layer][2:], expected[layer][0, :7])


@every
def test_a_tap_that_raises_leaves_the_model_usable(lab: SimpleNamespace) -> None:
    def stop(_: Tensor) -> None:
        raise KeyboardInterrupt

    batch = TokenBatch(lab.pool, [Row(lab.pool.new_context(), TEXT)], taps={1: stop})
    with pytest.raises(KeyboardInterrupt):
        lab.model.forward(batch)
    batch.rollback()
    assert lab.pool.used == 0
    assert lab.chain(TEXT).isfinite().all()


NORMS = {"gpt2": "transformer.ln_f", "opt": "model.decoder.final_layer_norm", "phi": "model.final_layernorm"}


@every
def test_head_is_norm_and_lm_head(lab: SimpleNamespace, kind: str, checkpoint: Any, own_code: Any) -> None:
    own = own_code(checkpoint(kind))
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)).to(own.device)
    with torch.no_grad():
        expected = own.lm_head(own.get_submodule(NORMS.get(kind, "model.norm"))(x))
    same(lab.model.head(x), expected)
    same(lab.model.head(x[1, 2]), expected[1, 2])


@every
def test_embeddings_can_be_replaced(lab: SimpleNamespace) -> None:
    other = [*TEXT[:10], 50, *TEXT[11:20], 60]
    context, neighbour = lab.pool.new_context(), lab.pool.new_context()
    vectors = lab.model.embed(torch.tensor([50, 60], device=lab.model.info.device))
    rows = [Row(neighbour, TEXT[:4]), Row(context, TEXT[:21])]
    batch = TokenBatch(lab.pool, rows, embeddings=(torch.tensor([4 + 10, 4 + 20]), vectors))
    logits = lab.model.forward(batch).logits
    batch.commit()
    same(logits[:4], lab.chain(TEXT[:4]))
    same(logits[4:], lab.chain(other))
    assert not context.plain, "keys of a replaced embedding are no function of the ids"
    same(lab.more(context, TEXT[21:]), lab.chain(other + TEXT[21:])[21:])


@rotary
def test_a_moved_context_is_one_computed_there(lab: SimpleNamespace) -> None:
    assert lab.model.info.rotation
    context, there = lab.context(TEXT[:20]), lab.context(TEXT[:20], positions=np.arange(9, 29))
    witness = context.fork()
    context.rebase(9)
    for k, v in zip(lab.pool.k, lab.pool.v, strict=True):
        same(k[context.slots], k[there.slots])
        same(v[context.slots], v[there.slots])
    assert lab.pool.used == 60, "shared slots were copied, not overwritten"
    assert (context.next_position, context.plain) == (29, False)
    same(lab.more(context, TEXT[20:30]), lab.chain(TEXT[:30])[20:])
    same(lab.more(witness, TEXT[20:30]), lab.chain(TEXT[:30])[20:])
    context.rebase(-5)
    same(lab.more(context, TEXT[30:]), lab.chain(TEXT)[30:])


@rotary
@pytest.mark.parametrize("moved", [0, 13, -5])
def test_two_contexts_in_a_view_are_one_text(lab: SimpleNamespace, moved: int) -> None:
    """The second context was computed seeing the first; then both are stored elsewhere and seen through offsets."""
    first = lab.context(TEXT[:15])
    second = lab.context(TEXT[15:25], view=[Part(first)], positions=np.arange(15, 25))
    second.rebase(-15 if moved else 0)
    offset = 15 if moved else 0
    third = lab.pool.new_context()
    view = [Part(first, moved), Part(second, offset + moved)]
    logits = lab.more(third, TEXT[25:], view=view, positions=np.arange(25, 40) + moved)
    same(logits, lab.chain(TEXT)[25:])
    assert not third.plain


@every
def test_parts_end_where_they_are_told(lab: SimpleNamespace) -> None:
    """A part cut off at stored position 9 for one row, and query by query for another, in the call that writes it."""
    base = lab.context(TEXT[:6])
    whole = base.fork()
    rows = [
        Row(base, TEXT[6:15]),
        Row(lab.pool.new_context(), TEXT[15:18], view=[Part(base, last=9)], positions=np.arange(10, 13)),
        Row(lab.pool.new_context(), TEXT[10:12], view=[Part(base, last=np.array([-1, 3]))], positions=np.array([0, 4])),
    ]
    batch = TokenBatch(lab.pool, rows)
    mine = lab.model.forward(batch).logits.split([9, 3, 2])
    batch.commit()
    same(mine[0], lab.chain(TEXT[:15])[6:])
    same(mine[1], lab.chain(TEXT[:10] + TEXT[15:18])[10:])
    same(mine[2][0], lab.chain(TEXT[10:11])[0])
    same(lab.more(whole, TEXT[6:7]), lab.chain(TEXT[:7])[6:])


@pytest.mark.parametrize("kind", LEARNED)
def test_learned_positions_cannot_move(lab: SimpleNamespace) -> None:
    context = lab.context(TEXT[:5])
    assert not lab.model.info.rotation
    with pytest.raises(ValueError, match="no rotary position"):
        context.rebase(1)
    batch = TokenBatch(lab.pool, [Row(lab.pool.new_context(), [1], view=[Part(context, 3)], positions=np.array([8]))])
    with pytest.raises(ValueError, match="offset"):
        lab.model.forward(batch)
    batch.rollback()
    second = lab.context(TEXT[5:9], view=[Part(context)], positions=np.arange(5, 9))
    view = [Part(context), Part(second)]
    same(lab.more(lab.pool.new_context(), TEXT[9:12], view=view, positions=np.arange(9, 12)), lab.chain(TEXT[:12])[9:])


@pytest.mark.parametrize("kind", ["llama-yarn", "phi", "gpt2"])
def test_bad_calls_are_refused_and_leave_no_trace(lab: SimpleNamespace) -> None:
    for row, message in [
        (Row(lab.pool.new_context(), [97]), "token id 97"),
        (Row(lab.pool.new_context(), [-1]), "token id -1"),
        (Row(lab.pool.new_context(), [1], positions=np.array([256])), "position 256"),
    ]:
        batch = TokenBatch(lab.pool, [row])
        with pytest.raises(ValueError, match=message):
            lab.model.forward(batch)
        batch.rollback()
    assert lab.pool.used == 0


@pytest.mark.parametrize("kind", ["llama-yarn", "gemma3"])
def test_info(lab: SimpleNamespace, kind: str, checkpoint: Any, own_code: Any) -> None:
    info = lab.model.info
    assert (info.name, info.vocab_size, info.width, info.max_positions) == (kind, 97, 32, 256)
    assert info.parameters == sum(p.numel() for p in own_code(checkpoint(kind)).parameters())
    assert [(s.kv_heads, s.dim, s.dim_v) for s in info.layers] == [(2, 8, 8)] * 2
    assert lab.pool.slot_bytes == 2 * 2 * (8 + 8) * 4
