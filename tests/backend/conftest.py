"""Small random checkpoints of many architectures, what transformers makes of them, and a bare decode loop over the model call.

Handed out as fixtures, because test modules imported by path cannot import each other. Checkpoints are made once a session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from forethought.backend.batch import Row, TokenBatch
from forethought.backend.model import Model

NEW_TOKENS = 64
SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
# Families whose config has other names for the same.
OTHERS = {
    "GPT2": {
        "vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3,
        "bos_token_id": None, "eos_token_id": None,
    },
    "OPT": SHAPE | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3},
    "Bloom": {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Mamba": {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}  # fmt: skip
WINDOWED = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA = {**WINDOWED, "head_dim": 8, "query_pre_attn_scalar": 16, "tie_word_embeddings": False}


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = rope("yarn", factor=8.0, original_max_position_embeddings=32)
LONG = rope("longrope", short_factor=[1.0] * 4, long_factor=[4.0] * 4, original_max_position_embeddings=128)

ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    # our own transformer
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("Llama", rope("linear", factor=4.0)),
    "llama-dynamic": ("Llama", {"max_position_embeddings": 128} | rope("dynamic", factor=2.0)),
    "llama-llama3": ("Llama", LLAMA3),
    "llama-yarn": ("Llama", YARN),
    "mistral": ("Mistral", {"sliding_window": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    # the adapter
    "gpt2": ("GPT2", {}),
    "opt": ("OPT", {}),
    "opt-narrow": ("OPT", {"word_embed_proj_dim": 16, "tie_word_embeddings": False, "do_layer_norm_before": False}),
    "phi": ("Phi", {"num_key_value_heads": 4}),
    "phi3-longrope": ("Phi3", LONG | {"original_max_position_embeddings": 128}),
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3Text", GEMMA),
    "olmo2": ("Olmo2", {}),
    "stablelm": ("StableLm", {"partial_rotary_factor": 0.5}),
    "gpt-neox": ("GPTNeoX", {}),
    "gpt-oss": ("GptOss", WINDOWED | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2} | YARN),
    "cohere2": ("Cohere2", WINDOWED | {"logit_scale": 0.5}),
    "llama-gelu": ("Llama", YARN | {"hidden_act": "gelu"}),
    # neither
    "bert": ("Bert", {}),
    "bloom": ("Bloom", {}),
    "falcon-h1": (
        "FalconH1",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "head_dim": 8},
    ),
    "gpt-j": ("GPTJ", {}),
    "jamba": ("Jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False}),
    "llama4": (
        "Llama4Text",
        {"head_dim": 8, "attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 48},
    ),
    "mamba": ("Mamba", {}),
    "qwen3-next": (
        "Qwen3Next",
        {"num_experts": 4, "num_experts_per_tok": 2, "linear_num_value_heads": 2, "linear_num_key_heads": 2},
    ),
}


def prompts(limit: int = 97) -> list[list[int]]:
    """Five, of unlike length."""
    noise = np.random.default_rng(0)
    return [noise.integers(1, limit, n).tolist() for n in (1, 3, 9, 20, 33)]


@dataclass(frozen=True)
class Reference:
    """What transformers makes of the prompts, greedily, in float32."""

    texts: list[list[int]]
    """Prompt and continuation."""
    logits: list[Tensor]
    """[tokens, vocabulary] of each text, by its own forward."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """checkpoint(kind, …) -> its folder. Options: ``dtype``, ``headless``, ``shards`` (largest file), settings."""
    root = tmp_path_factory.mktemp("zoo")

    @cache
    def make(kind: str, dtype: torch.dtype = torch.float32, headless: bool = False, shards: str = "1GB", **more: Any) -> Path:
        import transformers

        plain = dtype == torch.float32 and not headless and shards == "1GB" and not more
        folder = root / kind if plain else tmp_path_factory.mktemp(kind)
        family, settings = ZOO[kind]
        config = getattr(transformers, f"{family}Config")(**OTHERS.get(family, SHAPE) | settings | more)
        auto = transformers.AutoModel if headless else transformers.AutoModelForCausalLM
        torch.manual_seed(0)
        model = auto.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():  # norms, biases and sinks start out alike, and would hide a mix-up
                if weight.dim() == 1:
                    weight.add_(torch.randn_like(weight), alpha=0.2)
        model.to(dtype).save_pretrained(folder, max_shard_size=shards)
        return folder

    return make


@pytest.fixture(scope="session")
def own_code() -> Callable[..., Any]:
    """own_code(folder, dtype) -> the transformers model there, in eager float32 or ``dtype``, where ``load`` would put it."""

    @cache
    def read(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()
        return model.to("cuda" if torch.cuda.is_available() else "cpu")

    return read


@pytest.fixture(scope="session")
def reference(own_code: Callable[..., Any]) -> Callable[[Path], Reference]:
    """reference(folder) -> what ``generate`` makes of the five prompts there."""

    @cache
    def run(folder: Path) -> Reference:
        model, starts = own_code(folder), prompts()
        longest = max(map(len, starts))
        padded = torch.tensor([[0] * (longest - len(p)) + p for p in starts], device=model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in starts], device=model.device)
        with torch.no_grad():
            out = model.generate(padded, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
            texts = [p + row[longest:].tolist() for p, row in zip(starts, out, strict=True)]
            logits = [model(torch.tensor([text], device=model.device), use_cache=False).logits[0] for text in texts]
        for start, text, own in zip(starts, texts, logits, strict=True):
            assert len(text) == len(start) + NEW_TOKENS
            assert own[len(start) - 1 : -1].argmax(-1).tolist() == text[len(start) :], "too chaotic to compare"
        assert len({token for text in texts for token in text[-NEW_TOKENS:]}) > 8, "too degenerate to show a mistake"
        return Reference(texts, logits)

    return run


@pytest.fixture(scope="session")
def decode() -> Callable[..., tuple[list[list[int]], list[Tensor]]]:
    """decode(model, prompts, new_tokens, chunk) -> texts and the logits [tokens, vocabulary] of all of their tokens but the last.

    Greedy. Prompts are fed in pieces of up to ``chunk`` tokens, each next to whatever the other rows are doing.
    """

    def run(model: Model, starts: Sequence[list[int]], new_tokens: int = NEW_TOKENS, chunk: int = 7) -> Any:
        pool = model.new_pool(sum(map(len, starts)) + new_tokens * len(starts))
        contexts, texts = [pool.new_context() for _ in starts], [list(p) for p in starts]
        ends, logits = [len(p) + new_tokens for p in starts], [list[Tensor]() for _ in starts]
        while live := [r for r, text in enumerate(texts) if len(text) < ends[r]]:
            # Rows take pieces of different sizes, so that prefill and decoding share calls.
            rows = [Row(contexts[r], texts[r][contexts[r].size :][: chunk + r]) for r in live]
            batch = TokenBatch(pool, rows)
            out = model.forward(batch).logits
            batch.commit()
            for r, own in zip(live, out.split(batch.counts.tolist()), strict=True):
                logits[r].append(own)
                if contexts[r].size == len(texts[r]):
                    texts[r].append(int(own[-1].argmax()))
        for context in contexts:
            context.release()
        assert pool.free == pool.size
        return texts, [torch.cat(own) for own in logits]

    return run


@pytest.fixture(scope="session")
def compute() -> Callable[..., Tensor]:
    """compute(model, context, ids, **row) -> logits [tokens, vocabulary] of ``ids`` behind ``context``, committed."""

    def run(model: Model, context: Any, ids: Sequence[int], **row: Any) -> Tensor:
        batch = TokenBatch(context.pool, [Row(context, ids, **row)])
        logits = model.forward(batch).logits
        batch.commit()
        return logits

    return run


@pytest.fixture(scope="session")
def agrees(reference: Callable[[Path], Reference], decode: Callable[..., Any]) -> Callable[[Model, Path], None]:
    """agrees(model, folder): fails unless all prompts, together and alone, give the tokens of ``generate`` and its logits."""

    def check(model: Model, folder: Path) -> None:
        expected, starts = reference(folder), prompts()
        texts, logits = decode(model, starts, chunk=5)
        assert texts == expected.texts
        for mine, own in zip(logits, expected.logits, strict=True):
            torch.testing.assert_close(mine, own[:-1], rtol=0, atol=1e-4)
        for start, text in zip(starts, expected.texts, strict=True):
            assert decode(model, [start], chunk=64)[0] == [text]

    return check
