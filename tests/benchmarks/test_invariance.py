"""The benchmark of batch-invariant decoding runs, and in that mode no text depends on its company."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "invariance.py"


def test_small_run() -> None:
    command = [sys.executable, str(BENCHMARK), "--rows", "2", "--tokens", "4", "--rounds", "1", "--texts", "3"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])["models"]["nano"]
    assert found["texts"] == 3
    assert found["differ"]["invariant"] == 0
    [row] = found["speeds"]
    assert row["rows"] == 2
    assert 0 < row["least"] <= row["ratio"]
    assert row["ratio"] <= row["most"]
