"""The shipped models: small, loadable by transformers alone, with the frozen tokenizer, and able to solve easy problems."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from forethought.nano import tokenizer as tok
from forethought.nano.judging import spoilt
from forethought.nano.problems import generate, read_answer
from forethought.nano.train import RECIPES, accuracy, build_model
from forethought.nano.train_prm import StepModel
from forethought.verifiers.process_reward import ProcessRewardModel

WEIGHTS = Path(tok.__file__).parent / "weights"
MODELS = sorted(RECIPES)


def parameters(name: str) -> int:
    return int(build_model(RECIPES[name]).num_parameters())


def test_sizes() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) <= 12 * 2**20
    assert sum(path.stat().st_size for path in files) <= 32 * 2**20
    assert parameters("nano") >= 4 * parameters("nano-draft")


@pytest.mark.parametrize("name", MODELS)
def test_an_ordinary_checkpoint_folder(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS / name)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert model.num_parameters() == parameters(name)
    end = tok.SPECIALS.index(tok.END)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == end
    assert model.generation_config.do_sample
    assert not [name for name, weight in model.named_parameters() if not weight.isfinite().all()]


@pytest.mark.parametrize("name", [*MODELS, "nano-prm"])
def test_ships_the_frozen_tokenizer(name: str) -> None:
    shipped, built = json.loads((WEIGHTS / name / "tokenizer.json").read_text("utf-8")), json.loads(tok.build().to_str())
    assert shipped == built
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / name)
    assert tokenizer.chat_template == tok.CHAT_TEMPLATE
    assert tokenizer.eos_token == tok.END


def test_nano_solves_most_easy_problems_from_chat_and_from_raw_text() -> None:
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS / "nano", dtype=torch.float32)
    assert sum(list(accuracy(model, 32).values())[:3]) / 3 >= 0.5
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "nano")
    right = 0
    for seed in range(6):
        problem = generate(1, seed, "test")
        inputs = tokenizer(problem.question, return_tensors="pt")
        written = tokenizer.decode(
            model.generate(inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=200, do_sample=False)[0]
        )
        assert "<think>" in written
        right += read_answer(written) == problem.answer
    assert right >= 3


def test_the_process_reward_model_is_laid_out_as_published_ones() -> None:
    folder = WEIGHTS / "nano-prm"
    with safe_open(folder / "model.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    width = RECIPES["nano"].width
    assert {name: list(weight.shape) for name, weight in weights.items() if name.startswith("score")} == {
        "score.0.weight": [width, width], "score.0.bias": [width], "score.2.weight": [2, width], "score.2.bias": [2],
    }  # fmt: skip
    assert set(weights) == set(StepModel(LlamaConfig.from_pretrained(folder)).state_dict())
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["LlamaForProcessRewardModel"]
    assert LlamaConfig.from_pretrained(folder).num_labels == 2


def test_the_process_reward_model_prefers_right_solutions_to_spoilt_ones() -> None:
    rng, judge = random.Random(0), ProcessRewardModel("nano-prm", aggregate="min")
    won = 0
    for seed in range(40):
        problem = generate(1 + seed % 8, seed, "test")
        pair = [problem.meta["solution"], spoilt(rng, problem).text]
        right, wrong = (verdict.score or 0.0 for verdict in asyncio.run(judge.ajudge(problem, pair)))
        won += right > wrong
    judge.close()
    assert won >= 34
