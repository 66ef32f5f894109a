"""The adapter against the same models' own code, and what it must refuse rather than compute wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forethought.backend.batch import Row, TokenBatch
from forethought.backend.hf import Adapter
from forethought.backend.load import load
from forethought.backend.model import Model

KINDS = (
    "gpt2", "opt", "opt-narrow", "phi", "phi3-longrope", "gemma2", "gemma3", "olmo2", "stablelm", "gpt-neox", "gpt-oss",
    "cohere2", "llama-gelu",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_generate(kind: str, checkpoint: Callable[..., Path], agrees: Callable[[Model, Path], None]) -> None:
    folder = checkpoint(kind)
    model = load(folder)
    assert isinstance(model, Adapter)
    agrees(model, folder)


@pytest.mark.parametrize(
    ("kind", "widths"),
    [
        ("gpt2", [None, None]),
        ("phi", [4, 4]),  # half of each head rotates
        ("gemma3", [8, 8]),  # tables of its own for the local layer
        ("gpt-neox", [2, 2]),
        ("cohere2", [8, 2]),  # the global layer has no positions: a rotation by nothing
        ("gpt-oss", [8, 8]),  # keys carry YaRN's factor
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotation_is_found(kind: str, widths: list[int | None], dtype: str, checkpoint: Callable[..., Path]) -> None:
    layers = load(checkpoint(kind), dtype=dtype).info.layers
    assert [layer.rotary and layer.rotary.width for layer in layers] == widths
    if kind == "gemma3":
        local, whole = (layer.rotary.frequencies for layer in layers if layer.rotary)
        assert not torch.equal(local, whole)
    interleaved = [layer.rotary.interleaved for layer in layers if layer.rotary]
    assert any(interleaved) == (kind == "cohere2")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bert", "not causal"),
        ("bloom", "ALiBi"),
        ("falcon-h1", "differ from those of its own code"),  # every layer also has a recurrent half
        ("gpt-j", "attention of ours"),
        ("jamba", "2 layers call transformers' attention interface 1 times"),
        ("llama4", "not causal"),  # chunked
        ("mamba", "recurrence"),
        ("qwen3-next", "attention interface"),
    ],
)
def test_what_a_pool_cannot_hold_is_refused(kind: str, reason: str, checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=reason):
        load(checkpoint(kind))


def test_encoder_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    T5ForConditionalGeneration(T5Config(vocab_size=97, d_model=32, num_layers=1, num_heads=2, d_ff=32)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoder-decoder"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("planted", "kind", "more"),
    [
        ({"scale": 0.3}, "phi", {}),
        ({"window": None}, "gemma2", {"sliding_window": 3}),
        ({"softcap": None}, "gemma2", {}),
        ({"sinks": None}, "gpt-oss", {}),
        ({"window": 2}, "gpt2", {}),
        ({"scale": 1.0}, "olmo2", {}),
        ({"softcap": 1.0}, "stablelm", {}),
    ],
)
def test_a_wrong_result_is_refused(
    planted: dict[str, Any], kind: str, more: dict[str, Any], dtype: str, checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check on loading sees a lost scale, window, softcap or sink, or one too many."""
    from forethought.backend import hf

    attend = hf.attend
    monkeypatch.setattr(hf, "attend", lambda *args, **options: attend(*args, **options | planted))
    with pytest.raises(ValueError, match="differ"):
        load(checkpoint(kind, **more), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_input_or_a_wrong_layer_is_refused(dtype: str, checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions one too far on, where they are learned; one head of one layer; keys in each other's slots."""
    from forethought.backend import hf
    from forethought.backend.batch import TokenBatch as Batch

    tensors, attend = Batch.tensors, hf.attend

    def moved(self: Any, device: Any) -> Any:
        ids, places, slots = tensors(self, device)
        return ids, places + 1, slots

    def exchanged(self: Any, device: Any) -> Any:
        ids, places, slots = tensors(self, device)
        return ids, places, slots.flip(0)

    def silent(*args: Any, **options: Any) -> Any:
        out, lse = attend(*args, **options)
        out[:, 0] = 0
        return out, lse

    for owner, name, fault in ((Batch, "tensors", moved), (Batch, "tensors", exchanged), (hf, "attend", silent)):
        with monkeypatch.context() as m:
            m.setattr(owner, name, fault)
            with pytest.raises(ValueError, match="differ"):
                load(checkpoint("gpt2"), dtype=dtype)


def test_roundings_that_add_up_over_layers_are_no_error(checkpoint: Any) -> None:
    """Many layers in bfloat16, whose logits differ between two right computations by more than a wrong one would."""
    assert load(checkpoint("gemma3", num_hidden_layers=24, layer_types=None), dtype="bfloat16").info.dtype == torch.bfloat16


def test_no_positions_where_results_would_depend_on_the_neighbours(checkpoint: Callable[..., Path]) -> None:
    model = load(checkpoint("phi3-longrope"))
    assert model.info.max_positions == 128, "beyond, LongRoPE rotates a whole batch by its longest row"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_a_layer_on_disk(kind: str, checkpoint: Callable[..., Path], reference: Callable[[Path], Any], decode: Any) -> None:
    """For a checkpoint of our own transformer too: a device map always means the adapter."""
    pytest.importorskip("accelerate")
    folder = checkpoint(kind)
    parts = ["wte", "wpe", "h.0", "ln_f"] if kind == "gpt2" else ["embed_tokens", "layers.0", "norm", "rotary_emb"]
    body, layer = ("transformer", "h.1") if kind == "gpt2" else ("model", "layers.1")
    places = {f"{body}.{part}": "cpu" for part in parts} | {f"{body}.{layer}": "disk", "lm_head": "cpu"}
    model, whole = load(folder, device_map=places), load(folder, device="cpu")
    assert isinstance(model, Adapter)
    assert next(model._model.get_submodule(f"{body}.{layer}").parameters()).is_meta
    start = reference(folder).texts[2][:9]
    assert decode(model, [start], new_tokens=8)[0][0] == reference(folder).texts[2][:17]
    x = torch.linspace(-1, 1, 96).view(3, 32)
    torch.testing.assert_close(model.head(x), whole.head(x))
    ids = torch.tensor([3, 5])
    assert torch.equal(model.embed(ids), whole.embed(ids))
    assert model.info.parameters == whole.info.parameters


def test_device_map_auto(checkpoint: Callable[..., Path], reference: Callable[[Path], Any], decode: Any) -> None:
    pytest.importorskip("accelerate")
    folder = checkpoint("gpt2")
    model = load(folder, device_map="auto")
    start = reference(folder).texts[2][:9]
    assert decode(model, [start], new_tokens=8)[0][0] == reference(folder).texts[2][:17]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, checkpoint: Callable[..., Path], own_code: Any, compute: Any) -> None:
    folder = checkpoint("gemma3", dtype=dtype)
    model = load(folder, dtype=dtype)
    assert model.info.dtype == dtype
    pool = model.new_pool(40)
    assert pool.k[0].dtype == dtype
    ids = np.random.default_rng(0).integers(1, 97, 40).tolist()
    logits = compute(model, pool.new_context(), ids)
    with torch.no_grad():
        own = own_code(folder, dtype)(torch.tensor([ids], device=logits.device)).logits[0]
    assert (logits.float() - own.float()).norm() < 0.02 * own.float().norm()
    assert load(folder, device="cpu").info.dtype == torch.float32, "on a CPU, unless asked for"


def test_two_adapters_side_by_side(checkpoint: Callable[..., Path], compute: Any) -> None:
    """A tap of one model may call another: neither takes the other's attention for its own."""
    outer, inner = load(checkpoint("gpt2")), load(checkpoint("phi"))
    expected = compute(inner, inner.new_pool(9).new_context(), [5, 6, 7]), compute(outer, outer.new_pool(9).new_context(), [1, 2])
    found = []
    pool = outer.new_pool(9)
    batch = TokenBatch(
        pool,
        [Row(pool.new_context(), [1, 2])],
        taps={1: lambda _: found.append(compute(inner, inner.new_pool(9).new_context(), [5, 6, 7]))},
    )
    assert torch.equal(outer.forward(batch).logits, expected[1])
    assert torch.equal(found[0], expected[0])
