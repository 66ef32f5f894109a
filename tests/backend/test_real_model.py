"""A real model says what transformers says: the same tokens, greedy, in float32, whichever way its checkpoint is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from real_model import LONG, PROMPTS, Expected

import forethought as ft
from forethought.backend.hf import Adapter
from forethought.backend.transformer import Transformer

pytestmark = pytest.mark.slow
NEW = 32
DECODERS: dict[str, Callable[[], ft.Decoder]] = {
    "plain": ft.Autoregressive, "lookahead": ft.Lookahead, "prompt_lookup": lambda: ft.PromptLookup(8),
}  # fmt: skip


@pytest.fixture(scope="module")
def expected(smollm: Path) -> Expected:
    return Expected(smollm, PROMPTS, NEW)


@pytest.fixture(scope="module", params=["transformer", "adapter"])
def model(request: pytest.FixtureRequest, smollm: Path) -> ft.Model:
    own = ft.load(smollm, device="cpu", dtype="float32")
    assert isinstance(own, Transformer)
    if request.param == "transformer":
        return own
    config = transformers.AutoConfig.from_pretrained(smollm)
    return Adapter.load(
        smollm, config, device=torch.device("cpu"), dtype=torch.float32, device_map=None, trust_remote_code=False,
        name="smollm2-135m", defaults=own.info.defaults, text=own.text,
    )  # fmt: skip


@pytest.fixture(params=list(DECODERS))
def engine(request: pytest.FixtureRequest, model: ft.Model) -> Iterator[ft.Engine]:
    with ft.Engine(model, DECODERS[request.param]()) as engine:
        yield engine


def test_prompts_are_what_they_are_said_to_be(expected: Expected) -> None:
    assert len(PROMPTS) == 10
    assert [i for i, ids in enumerate(expected.prompts) if len(ids) > 1000] == list(LONG)
    assert sum(map(len, expected.answers)) > 200, "shorter answers prove less"


def test_tokens_and_text_are_those_of_transformers(expected: Expected, engine: ft.Engine) -> None:
    """All prompts at once, as words; then one by one, when they are cached and what was said may be remembered."""
    assert [engine.encode(prompt) for prompt in PROMPTS] == expected.prompts
    together = engine.generate(list(PROMPTS), max_tokens=NEW, temperature=0, progress=False)
    expected.agrees([completion.token_ids for (completion,) in together])
    alone = [engine.generate(ids, max_tokens=NEW, temperature=0, progress=False)[0] for ids in expected.prompts]
    expected.agrees([completion.token_ids for completion in alone])
    for completion in alone:
        assert completion.text == expected.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
