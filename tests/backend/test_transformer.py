"""Our own decoder against transformers' code on the same weights: every rotation, window, head and file layout it reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forethought.backend.batch import Row, TokenBatch
from forethought.backend.checkpoint import Checkpoint
from forethought.backend.load import load
from forethought.backend.model import Model
from forethought.backend.transformer import Transformer

KINDS = (
    "llama", "llama-tied", "llama-biases", "llama-linear", "llama-dynamic", "llama-llama3", "llama-yarn", "mistral", "qwen2",
    "qwen2-window", "qwen3",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_generate(kind: str, checkpoint: Callable[..., Path], agrees: Callable[[Model, Path], None]) -> None:
    folder = checkpoint(kind)
    model = load(folder)
    assert isinstance(model, Transformer)
    agrees(model, folder)


def test_dynamic_rotation_beyond_the_original_length(checkpoint: Any, own_code: Any, decode: Any, compute: Any) -> None:
    """As decoding token by token with a cache rotates; and no way of cutting a prompt changes it."""
    folder = checkpoint("llama-dynamic", max_position_embeddings=32)
    model = load(folder)
    assert model.info.max_positions == 64
    assert not model.info.rotation
    start = [5, 80, 33]
    ids = torch.tensor([start], device=model.info.device)
    own = own_code(folder).generate(ids, max_new_tokens=60, do_sample=False, pad_token_id=0)[0].tolist()
    texts, logits = decode(model, [start], new_tokens=60)
    assert texts == [own]
    for cut in (1, 40, 62):
        context = model.new_pool(63).new_context()
        pieces = [compute(model, context, piece) for piece in (own[:cut], own[cut:]) if piece]
        torch.testing.assert_close(torch.cat(pieces)[:62], logits[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("scaling", "limit"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 2.0}, 128),
        ({"rope_type": "yarn", "factor": 4.0}, 256),  # as in Qwen2.5's: the config still says the original length
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}, 64),
        ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}, 128),
    ],
)
def test_how_far_a_scaling_reaches(scaling: dict[str, Any], limit: int, checkpoint: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("llama"), tmp_path / "mine"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 1e4, **scaling}}
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).info.max_positions == limit
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    # The adapter cannot go where dynamic scaling looks at a whole batch.
    assert load(folder).info.max_positions == (64 if scaling["rope_type"] == "dynamic" else limit)


def test_shards(checkpoint: Any, agrees: Any) -> None:
    folder = checkpoint("qwen3", shards="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    agrees(load(folder), folder)


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen3"])
def test_a_backbone_gives_hidden_states_only(kind: str, checkpoint: Any) -> None:
    from transformers import AutoModel

    folder = checkpoint(kind, headless=True)
    model = load(folder, device="cpu")
    pool = model.new_pool(5)
    output = model.forward(TokenBatch(pool, [Row(pool.new_context(), [1, 2, 3, 4, 5], logits=np.array([1, 4]))], hidden=[2]))
    with torch.no_grad():
        own = AutoModel.from_pretrained(folder)(torch.tensor([[1, 2, 3, 4, 5]])).last_hidden_state[0, [1, 4]]
    assert output.logits is None
    torch.testing.assert_close(output.hidden[2], own, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="without an LM head"):
        model.head(output.hidden[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@torch.no_grad()
def test_precisions(dtype: torch.dtype, checkpoint: Any, own_code: Any, compute: Any) -> None:
    """The checkpoint's own precision, another one, and what "auto" makes of it on a CPU."""
    folder = checkpoint("qwen3", dtype=dtype)
    ids = np.random.default_rng(0).integers(1, 97, 40).tolist()
    text = torch.tensor([ids], device=own_code(folder).device)
    exact = own_code(folder, torch.float64)(text).logits[0]
    for asked in ("auto", dtype, str(dtype).removeprefix("torch."), torch.float32):
        model = load(folder, dtype=asked)
        on_cpu = model.info.device.type == "cpu"
        used = torch.float32 if asked == "auto" and on_cpu else dtype if isinstance(asked, str) else asked
        assert model.info.dtype == model.new_pool(1).k[0].dtype == used
        error, own_error = (
            (logits.double() - exact).norm()
            for logits in (
                compute(model, model.new_pool(40).new_context(), ids),
                own_code(folder, used)(text).logits[0],
            )
        )
        assert error < 1.5 * own_error + 1e-6 * exact.norm(), "less precise than transformers"


def test_what_the_block_does_not_compute_is_said(checkpoint: Any) -> None:
    from safetensors.torch import load_file
    from transformers import AutoConfig

    folder = checkpoint("llama")
    tensors = load_file(folder / "model.safetensors")

    def build(weights: dict[str, torch.Tensor], **settings: Any) -> Transformer:
        config = AutoConfig.from_pretrained(folder)
        for name, value in settings.items():
            setattr(config, name, value)
        return Transformer(config, Checkpoint(weights), name="x", device=torch.device("cpu"), dtype=torch.float32)

    assert build(tensors).info.parameters == sum(t.numel() for t in tensors.values())
    without = {name: t for name, t in tensors.items() if "layers.1.mlp.up_proj" not in name}
    for weights, settings, message in [
        (without, {}, "no tensor layers.1.mlp.up_proj.weight"),
        ({n: t for n, t in tensors.items() if n != "lm_head.weight"}, {}, "no tensor lm_head.weight"),
        (tensors, {"attention_bias": True}, "no tensor layers.0.self_attn.q_proj.bias"),
        (tensors | {"model.layers.0.extra.weight": torch.ones(1)}, {}, "no place for: layers.0.extra.weight"),
        (tensors, {"num_hidden_layers": 1}, "no place for: layers.1"),
        (tensors, {"num_key_value_heads": 4}, r"k_proj.weight has shape \(16, 32\); the config says \(32, 32\)"),
        (tensors, {"vocab_size": 98}, "embed_tokens.weight has shape"),
        (tensors, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (tensors, {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type='longrope'"),
        (tensors, {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(weights, **settings)
