"""The benchmark of repeated sampling runs, both sides make as many draws, and all time is somewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forethought.backend.usage import PARTS

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "sampling.py"


def test_quick_run(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(tmp_path / "row.json")]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result == json.loads((tmp_path / "row.json").read_text())
    whole, subset = result["whole"], result["subset"]
    assert whole["draws"] == 12
    assert whole["tokens"] <= 12 * 24
    assert 24 <= whole["forwards"] <= 28, "one that gives first tokens, then one a token; prompts may come in several"
    assert sum(whole[f"{part}_seconds"] for part in PARTS) >= whole["wall_seconds"], "the engine is a little older than the run"
    assert subset["draws"] == 6
    assert subset["tokens"] <= 6 * 24
    assert subset["transformers_tokens"] <= 6 * 24
    assert subset["x_transformers_min"] <= subset["x_transformers"] <= subset["x_transformers_max"]


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (["--samples", "0"], "--samples 0: at least 1"),
        (["--quick", "sampling.temperature=0"], "temperature (above 0)"),
    ],
)
def test_refusals(options: list[str], refusal: str) -> None:
    run = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True)
    assert run.returncode
    assert refusal in run.stderr
