"""A checkpoint to run commands on: random weights, the nano tokenizer, and a chat template, or none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from forethought.backend.load import BUILT_IN


def _make(folder: Path, *, template: bool = True) -> Path:
    """A random Llama of two layers that speaks nano's vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from forethought.nano import tokenizer as nano

    logging.disable_progress_bar()
    tokenizer = nano.load()
    if not template:
        tokenizer.chat_template = None
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """Makes a random checkpoint in a folder."""
    return _make


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random checkpoint named tiny, as it is written on the command line."""
    return str(_make(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def nano() -> None:
    """The built-in models must be there."""
    if not (BUILT_IN / "nano" / "model.safetensors").exists():
        pytest.skip("the weights of nano are not there")
