"""Every verifier's config builds: by itself, or with the run's model where it has none of its own."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from rewards import PROBLEM, SOLUTIONS, body, mlp, save
from transformers import AutoTokenizer

from forethought import Autoregressive, Engine, load
from forethought.backend.load import BUILT_IN
from forethought.evals.config import build, compose
from forethought.verifiers.generative import GenerativeVerifier
from forethought.verifiers.process_reward import ProcessRewardModel


@pytest.mark.parametrize("option", ["maths", "visible"])
def test_checkers_build(option: str) -> None:
    build(compose("eval", [f"verifier={option}"]).verifier).close()


def test_a_process_reward_model_builds_from_any_folder(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUILT_IN / "nano")
    save(tmp_path, body("Llama", len(tokenizer)), tokenizer, "LlamaForProcessRewardModel", score=mlp(32, 2))
    node = compose("score", ["verifier=nano-prm", f"verifier.name_or_path={tmp_path}", "verifier.aggregate=mean"]).verifier
    verifier = build(node)
    assert isinstance(verifier, ProcessRewardModel)
    verdicts = asyncio.run(verifier.ajudge(PROBLEM, SOLUTIONS))
    assert [verdict.score is None for verdict in verdicts] == [not text for text in SOLUTIONS]
    assert {verdict.verifier for verdict in verdicts} == {f"{tmp_path.name}[mean]"}
    verifier.close()


def test_a_generative_verifier_asks_the_runs_model_or_its_own() -> None:
    made = build(compose("eval", ["verifier=genrm", "verifier.chains=0"]).verifier)
    assert isinstance(made, partial)
    with Engine(load("nano-draft"), Autoregressive()) as engine:
        verifier = made(lm=engine)
        assert isinstance(verifier, GenerativeVerifier)
        assert verifier.name == "genrm[nano-draft, 0]"
        [verdict] = asyncio.run(verifier.ajudge(PROBLEM, ["31"]))
        assert 0 < (verdict.score or 0.0) < 1
        verifier.close()
        assert engine.generate("1", max_tokens=1), "the run's engine goes on"
        other = build(compose("eval", ["verifier=genrm", "verifier.model=nano"]).verifier)(lm=engine)
        assert other.name == "genrm[nano, 4]"
        other.close()
