"""Plain decoding: transformers' own tokens when greedy, the slow twin's when sampled, one forward a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lab import Audited, slow_generate, tiny_llama

import forethought as ft
from forethought.backend.model import Model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return tiny_llama(folder)


@pytest.fixture(scope="module")
def theirs(model: Model, folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, 101, n).tolist() for n in (1, 4, 11, 30, 70)]


def test_greedy_tokens_are_those_of_transformers(model: Model, theirs: Any) -> None:
    with Audited(model, kv_slots=4000, prefill_tokens=32) as engine:
        outs = engine.generate(prompts(), max_tokens=40)
        alone = [engine.generate(prompt, max_tokens=40) for prompt in prompts()]
    for prompt, together, single in zip(prompts(), outs, alone, strict=True):
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=0)[0, len(prompt) :]
        assert together[0].token_ids == single[0].token_ids == expected.tolist()


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2}])
def test_sampled_tokens_are_those_of_the_slow_twin(model: Model, theirs: Any, options: dict[str, Any]) -> None:
    """Logits by transformers, all of the text again for every token; processing and noise by the slow references."""

    def rule(ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            logits: np.ndarray = theirs(torch.tensor([ids])).logits[0, -1].numpy()
        return logits

    with Audited(model, kv_slots=4000) as engine:
        outs = engine.generate(prompts()[:3], n=2, max_tokens=12, seed=8, **options)
    for prompt, samples in zip(prompts(), outs, strict=False):
        for i, out in enumerate(samples):
            assert out.token_ids == slow_generate(rule, prompt, 12, seed=8, sample=i, **options)


def test_one_forward_a_token_and_nothing_thrown_away(model: Model) -> None:
    with Audited(model, kv_slots=4000) as engine:
        [out] = engine.generate([1, 2, 3], max_tokens=17)
        assert out.cost.forwards == engine.cost.forwards == 17
        assert (out.cost.kept, out.cost.discarded, out.cost.drafted, out.cost.injected) == (17, 0, 0, 0)
    assert ft.Autoregressive.exact
