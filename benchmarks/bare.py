"""The bare loop: the least code that decodes a Llama or Qwen3 block in eager torch, as fast as eager goes.

One prompt, any number of greedy copies of it, a fixed number of tokens. The prompt is computed once, its keys and values
are copied to every row, and all rows move in step through one contiguous cache [rows, 2 * kv_heads, positions, dim], keys
before values. No pool, no scheduler, no sampling, no stopping: what an engine adds to this loop is the price of those.

What is done for speed: weights that read the same input are one matrix; on a CPU float32 matrices lie [in, out], which is
faster there than the checkpoint's [out, in] (bfloat16 is not); the residual is added by the matrix product; queries, keys
and values are turned in one go (values by the angle zero), so that the cache takes one write; query heads that share a KV
head are its queries in SDPA; the RMS norm takes four passes on a CPU, where the library's takes eight. What the engine's
own block does for speed this loop does too, or it would be no ceiling.
Not done: anything compiled, captured or written outside torch; reading a prompt that rows share once for all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Block(NamedTuple):
    """Weights of one layer; matrices are applied as ``x @ w``."""

    attention_norm: Tensor
    qkv: Tensor
    qk_norms: tuple[Tensor, Tensor] | None
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Bare:
    """Greedy decoding with the weights of a transformers Llama or Qwen3 ``model``, in at most ``rows`` x ``positions`` tokens."""

    def __init__(self, model: Any, rows: int, positions: int) -> None:
        config, backbone = model.config, model.model
        self.heads, self.kv_heads, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.eps = config.rms_norm_eps
        self.small = torch.tensor(self.eps)
        self.embedding, self.norm = backbone.embed_tokens.weight.detach(), backbone.norm.weight.detach()
        self.head = _matrix(model.lm_head.weight)
        self.blocks = []
        for layer in backbone.layers:
            a, m = layer.self_attn, layer.mlp
            norms = (a.q_norm.weight.detach(), a.k_norm.weight.detach()) if config.model_type == "qwen3" else None
            self.blocks.append(Block(
                layer.input_layernorm.weight.detach(), _matrix(a.q_proj.weight, a.k_proj.weight, a.v_proj.weight), norms,
                _matrix(a.o_proj.weight), layer.post_attention_layernorm.weight.detach(),
                _matrix(m.gate_proj.weight, m.up_proj.weight), _matrix(m.down_proj.weight),
            ))  # fmt: skip
        like, turned, cached = self.embedding, self.heads + self.kv_heads, 2 * self.kv_heads
        cos, sin = backbone.rotary_emb(like, torch.arange(positions, device=like.device)[None])  # [1, positions, dim]
        first = torch.arange(self.dim, device=like.device) < self.dim // 2
        self.cos = like.new_ones(positions, self.heads + cached, self.dim)
        self.sin = torch.zeros_like(self.cos)
        self.cos[:, :turned], self.sin[:, :turned] = cos[0][:, None], torch.where(first, -sin, sin)[0][:, None]
        self.cache = [like.new_zeros(rows, cached, positions, self.dim) for _ in self.blocks]

    @torch.inference_mode()
    def generate(self, prompt: list[int], rows: int, new: int) -> list[list[int]]:
        """``new`` token ids for each of ``rows`` copies of ``prompt``."""
        device = self.embedding.device
        token = self.forward(torch.tensor([prompt], device=device), 0)
        for cache in self.cache:
            cache[1:rows, :, : len(prompt)] = cache[:1, :, : len(prompt)]
        token = token.expand(rows, 1)
        tokens = [token]
        for position in range(len(prompt), len(prompt) + new - 1):
            token = self.forward(token, position)
            tokens.append(token)
        return torch.cat(tokens, 1).tolist()

    def forward(self, ids: Tensor, start: int) -> Tensor:
        """Next token [rows, 1] after ``ids`` [rows, n] at positions from ``start``; a prompt (n > 1) starts at 0."""
        rows, n = ids.shape
        stop, heads = start + n, self.heads
        cos, sin = self.cos[start:stop], self.sin[start:stop]
        x = F.embedding(ids.reshape(-1), self.embedding)
        for block, cache in zip(self.blocks, self.cache, strict=True):
            qkv = torch.mm(self._rms(x, block.attention_norm), block.qkv).view(rows, n, -1, self.dim)
            if block.qk_norms is not None:
                q, k, v = qkv.split((heads, self.kv_heads, self.kv_heads), 2)
                q, k = (self._rms(y, w) for y, w in zip((q, k), block.qk_norms, strict=True))
                qkv = torch.cat((q, k, v), 2)
            qkv = torch.addcmul(qkv * cos, qkv.roll(self.dim // 2, -1), sin)
            cache[:rows, :, start:stop] = qkv[:, :, heads:].transpose(1, 2)
            k, v = cache[:rows, :, :stop].split(self.kv_heads, 1)
            q = qkv[:, :, :heads]
            if n == 1:
                out = F.scaled_dot_product_attention(q.view(rows, self.kv_heads, -1, self.dim), k, v)
            else:
                out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
            x = torch.addmm(x, out.reshape(rows * n, -1), block.out)
            gate, up = torch.mm(self._rms(x, block.mlp_norm), block.gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate) * up, block.down)
        last = self._rms(x.view(rows, n, -1)[:, -1], self.norm)
        return torch.mm(last, self.head).argmax(-1, keepdim=True)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x.device.type != "cpu":
            return F.rms_norm(x, weight.shape, weight, self.eps)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * torch.addcmul(self.small, length, length, value=1 / x.shape[-1]).rsqrt_()).mul_(weight)


def _matrix(*weights: Tensor) -> Tensor:
    """[in, sum of out]: several checkpoint matrices [out, in] that read the same input, as one."""
    whole = weights[0].detach() if len(weights) == 1 else torch.cat([w.detach() for w in weights])
    return whole.t().contiguous() if whole.dtype == torch.float32 and whole.device.type == "cpu" else whole.t()
