"""The command line gives what transformers gives on a real model: the same tokens and text, greedy, in float32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_model import PROMPTS, Expected, ask

from forethought.evals.cli import main

pytestmark = pytest.mark.slow
NEW = 24
QUESTIONS = [prompt.strip() if isinstance(prompt, str) else prompt[-1]["content"] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def expected(smollm: Path) -> Expected:
    return Expected(smollm, [ask(question) for question in QUESTIONS], NEW)


def options(smollm: Path, decoder: str) -> list[str]:
    draft = [f"decoder.draft.name_or_path={smollm}", "decoder.draft.dtype=float32"] if decoder == "speculative" else []
    return [f"model={smollm}", "model.device=cpu", "model.dtype=float32", "sampling=greedy", f"max_tokens={NEW}",
            f"decoder={decoder}", *draft, "--json"]  # fmt: skip


@pytest.mark.parametrize(
    ("decoder", "every"), [("autoregressive", 1), ("lookahead", 3), ("prompt_lookup", 3), ("speculative", 3)]
)
def test_solve(expected: Expected, smollm: Path, decoder: str, every: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Each question by itself, as the command line asks it; the last ones are long."""
    asked = range(9, -1, -every)
    answers = list(expected.answers)
    for i in asked:
        assert main(["solve", QUESTIONS[i], *options(smollm, decoder)]) == 0
        completion = json.loads(capsys.readouterr().out)["completion"]
        answers[i] = completion["token_ids"]
        assert completion["text"] == expected.tokenizer.decode(answers[i], skip_special_tokens=True)
    expected.agrees(answers)


def test_solve_in_a_process_of_its_own(expected: Expected, smollm: Path) -> None:
    """The question comes through a pipe."""
    command = [sys.executable, "-m", "forethought.evals.cli", "solve", "-", *options(smollm, "lookahead")]
    run = subprocess.run(command, input=QUESTIONS[4], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    answers = list(expected.answers)
    answers[4] = json.loads(run.stdout)["completion"]["token_ids"]
    expected.agrees(answers)
