"""A decoder of the Llama family (Llama, Mistral, Qwen2, Qwen3) read from any Hugging Face checkpoint.

Flat ragged tokens, fused QKV and gate/up weights, K and V written to pool slots, attention through the one seam.
Per token it reads all weights once and its view's KV. Not here: training, quantisation, other blocks (see ``hf.py``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import invariant
from ..kernels.attention import attend
from ..kernels.rotary import Rotary
from ..kernels.transfer import numbered, put
from ..kernels.write import Norms, rms, write
from .batch import Ahead, NewTokens, Output, Stages, TokenBatch, walk
from .checkpoint import EMBEDDING, HEAD, Checkpoint
from .graphs import Graphs
from .kv import LayerSpec
from .model import Defaults, Model, ModelInfo
from .rope import KINDS, angles, rope
from .text import Text

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
HEADLESS = {"llama": "LlamaModel", "mistral": "MistralModel", "qwen2": "Qwen2Model", "qwen3": "Qwen3Model"}
"""Model type -> its class without an LM head."""

COPIED_BYTES = 1 << 26
"""A tied head is kept a second time, turned, if it is no larger."""


def supports(config: Any) -> bool:
    """Whether this block computes what ``config`` describes."""
    if not config.architectures or config.architectures[0] not in (*ARCHITECTURES, *HEADLESS.values()):
        return False
    settings = config.rope_parameters
    whole = settings.get("rope_type", "default") in KINDS and settings.get("partial_rotary_factor", 1.0) == 1.0
    return whole and config.hidden_act == "silu" and getattr(config, "quantization_config", None) is None


@dataclass(frozen=True, slots=True)
class Linear:
    """``x @ weight + bias``, weight [in, out]."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def fused(cls, weights: list[Tensor], biases: list[Tensor]) -> Linear:
        """From checkpoint matrices [out, in] that read the same input."""
        whole = weights[0] if len(weights) == 1 else torch.cat(weights)
        return cls(_turned(whole), torch.cat(biases) if biases else None)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """``residual`` plus the product."""
        out = torch.addmm(residual, x, self.weight)
        return out if self.bias is None else out + self.bias

    def alone(self, x: Tensor) -> Tensor:
        """The product, no row of which depends on the others."""
        return invariant.product(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Block:
    """Weights of one layer, fused where they read the same input."""

    attention_norm: Tensor
    qkv: Linear
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    norms: Norms | None
    window: int | None


class Transformer(Model):
    """Our own decoder, from a transformers config and tensors named as in a checkpoint.

    Raises ``ValueError`` naming the tensor or setting that is missing or does not fit.
    """

    def __init__(self, config: Any, weights: Checkpoint, *, name: str, device: torch.device, dtype: torch.dtype,
                 defaults: Defaults | None = None, text: Text | None = None, impl: str = "auto",
                 graphs: bool = True) -> None:  # fmt: skip
        if config.hidden_act != "silu":
            raise ValueError(f"hidden_act={config.hidden_act!r}: this block is gated SiLU; load it with the adapter")
        self.text, self.impl, device = text, impl, numbered(device)
        self._write_impl = impl if impl in ("torch", "triton") else "auto"
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        frequencies, factor, self.max_positions = rope(config, self.dim)
        self.scale = factor * factor / self.dim**0.5
        cos, sin = angles(config, frequencies, self.max_positions)
        # One table [positions, 2, dim]: cos twice over, and sin with the sign of the half it is added to.
        self._rotation = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1).to(device, dtype)
        weights = weights.on(device, dtype)
        self._embedding, head = self._ends(config, weights)
        self._norm = weights.read("norm.weight", (config.hidden_size,))
        self._head = None if head is None else _turned(head, head is self._embedding)
        self._blocks = [self._block(config, weights, i) for i in range(config.num_hidden_layers)]
        weights.finish()
        spec = LayerSpec(self.kv_heads, self.dim, self.dim, device, rope_spec(config, frequencies))
        self.info = ModelInfo(name, config.vocab_size, config.hidden_size, self.max_positions, weights.parameters, dtype, device,
                              [spec] * config.num_hidden_layers, defaults or Defaults())  # fmt: skip
        self._graphs = Graphs.of(self) if graphs and device.type == "cuda" else None
        self.recorded_tokens = 0 if self._graphs is None else self._graphs.tokens

    @staticmethod
    def _ends(config: Any, weights: Checkpoint) -> tuple[Tensor, Tensor | None]:
        """Embedding and LM head."""
        shape, headless = (config.vocab_size, config.hidden_size), any(a in HEADLESS.values() for a in config.architectures or ())
        if config.tie_word_embeddings and not headless:
            return weights.tied(shape)
        return weights.read(EMBEDDING, shape), None if headless else weights.read(HEAD, shape)

    @property
    def has_head(self) -> bool:
        """Whether it gives logits."""
        return self._head is not None

    @property
    def windows(self) -> list[int | None]:
        """Sliding window of each layer."""
        return [block.window for block in self._blocks]

    def _block(self, config: Any, weights: Checkpoint, i: int) -> Block:
        width, inner, kind = config.hidden_size, config.intermediate_size, config.model_type
        queries, keys = self.heads * self.dim, self.kv_heads * self.dim
        shapes = {
            "input_layernorm": (width,), "post_attention_layernorm": (width,),
            "self_attn.q_norm": (self.dim,), "self_attn.k_norm": (self.dim,),
            "self_attn.q_proj": (queries, width), "self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, queries),
            "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner),
        }  # fmt: skip

        def weight(name: str) -> Tensor:
            return weights.read(f"layers.{i}.{name}.weight", shapes[name])

        def linear(biased: bool, *names: str) -> Linear:
            biases = [weights.read(f"layers.{i}.{name}.bias", shapes[name][:1]) for name in names if biased]
            return Linear.fused([weight(name) for name in names], biases)

        biased, mlp_biased = getattr(config, "attention_bias", False), getattr(config, "mlp_bias", False)
        qkv, gate_up = [f"self_attn.{n}_proj" for n in "qkv"], ["mlp.gate_proj", "mlp.up_proj"]
        return Block(
            attention_norm=weight("input_layernorm"),
            qkv=linear(biased or kind == "qwen2", *qkv), out=linear(biased, "self_attn.o_proj"),
            mlp_norm=weight("post_attention_layernorm"),
            gate_up=linear(mlp_biased, *gate_up), down=linear(mlp_biased, "mlp.down_proj"),
            norms=Norms(weight("self_attn.q_norm"), weight("self_attn.k_norm"), self.eps) if kind == "qwen3" else None,
            window=_window(config, i),
        )  # fmt: skip

    @torch.inference_mode()
    def forward(self, batch: TokenBatch) -> Output:
        self.check(batch)
        if self._graphs is not None and (output := self._graphs.forward(batch)) is not None:
            return output
        tokens = NewTokens(*batch.tensors(self.info.device), batch.views, batch.pool.k, batch.pool.v, invariant=batch.invariant)
        return walk(self.stages(tokens, batch.hidden, batch.taps, batch), batch.taps, len(batch.ids))

    @torch.inference_mode()
    def prepare(self, batch: TokenBatch) -> Ahead | None:
        return None if self._graphs is None else self._graphs.prepare(batch)

    def refuses_invariance(self) -> str | None:
        device, dtype = self.info.device, self.info.dtype
        if device.type != "cpu":
            return f"it is made for a CPU, not for {device}"
        if self.impl not in ("auto", "torch"):
            return f"impl={self.impl!r} has no batch-invariant form, plain torch has"
        if not invariant.holds(dtype, torch.get_num_threads()):
            return f"this CPU's products in {dtype} depend on their rows even at a fixed size"
        return None

    def stages(
        self, tokens: NewTokens, hidden: Collection[int], taps: Collection[int], batch: TokenBatch | None = None
    ) -> Stages:
        """Logits, and the ``hidden`` states, of all ``tokens``, or of those wanted in ``batch``; stops at layers ``taps``."""
        x = self._embedding.index_select(0, tokens.ids)
        wanted = None
        if batch is not None:
            wanted = None if batch.wanted is None else put(batch.wanted, self.info.device)
            if batch.embeddings is not None:
                index, vectors = batch.embeddings
                x[index] = vectors.to(x)
        cos, sin = self._rotation.index_select(0, tokens.positions).unsqueeze(2).unbind(1)
        kept: dict[int, Tensor] = {}
        for i, block in enumerate(self._blocks):
            if i in taps:
                yield i, x
            if i in hidden:
                kept[i] = x if wanted is None else x[wanted]
            mixed = self._attention(block, x, cos, sin, tokens, i)
            x = x + block.out.alone(mixed) if tokens.invariant else block.out.onto(x, mixed)
            inner = self._mlp(block, x, tokens.invariant)
            x = x + block.down.alone(inner) if tokens.invariant else block.down.onto(x, inner)
        if wanted is not None and len(self._blocks) not in taps:
            x = x.index_select(0, wanted)
        x = self._rms(x, self._norm)
        if (last := len(self._blocks)) in taps:
            yield last, x
            x = x if wanted is None else x.index_select(0, wanted)
        if last in hidden:
            kept[last] = x
        if self._head is None or not tokens.invariant:
            return Output(None if self._head is None else torch.mm(x, self._head, out=tokens.logits), kept)
        return Output(invariant.product(x, self._head), kept)

    def _attention(self, block: Block, x: Tensor, cos: Tensor, sin: Tensor, tokens: NewTokens, i: int) -> Tensor:
        """The attention's output [T, heads * dim], before its projection."""
        x = self._rms(x, block.attention_norm)
        qkv = (block.qkv.alone(x) if tokens.invariant else block.qkv(x)).view(-1, self.heads + 2 * self.kv_heads, self.dim)
        k, v = tokens.k[i], tokens.v[i]
        q = write(qkv, cos, sin, tokens.slots, k, v, norms=block.norms, impl=self._write_impl)
        if tokens.invariant:
            return invariant.attend(q, k, v, tokens.views, scale=self.scale, window=block.window).flatten(1)
        rotary = self.info.layers[i].rotary
        out, _ = attend(q, k, v, tokens.views, scale=self.scale, window=block.window, rotary=rotary, impl=self.impl)
        return out.flatten(1)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms(x, weight, self.eps)

    def _mlp(self, block: Block, x: Tensor, alone: bool) -> Tensor:
        """The gated units [T, intermediate], before their projection."""
        x = self._rms(x, block.mlp_norm)
        gate, up = (block.gate_up.alone(x) if alone else block.gate_up(x)).chunk(2, -1)
        return F.silu(gate) * up

    @torch.inference_mode()
    def embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._embedding)

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        if self._head is None:
            raise ValueError(f"{self.info.name} is a backbone without an LM head")
        return self._rms(hidden, self._norm) @ self._head


def _turned(weight: Tensor, twice: bool = False) -> Tensor:
    """``weight`` [out, in] as [in, out]. ``twice``: the original stays in use, so a copy costs memory."""
    # On a CPU float32 products are faster over [in, out] in memory; other types and devices take either.
    faster = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return weight.t().contiguous() if faster and not (twice and weight.nbytes > COPIED_BYTES) else weight.t()


def rope_spec(config: Any, frequencies: Tensor) -> Rotary | None:
    """How keys can be moved; None for dynamic scaling, where the angle per position is not constant."""
    return None if (config.rope_parameters or {}).get("rope_type") == "dynamic" else Rotary(frequencies)


def _window(config: Any, layer: int) -> int | None:
    """Sliding window of one layer, as transformers reads the config: Llama has none, all layers of Mistral have one."""
    window: int | None = getattr(config, "sliding_window", None)
    if window is None or config.model_type == "llama" or not getattr(config, "use_sliding_window", True):
        return None
    types = None if config.model_type == "mistral" else getattr(config, "layer_types", None)
    return window if types is None or types[layer] == "sliding_attention" else None
