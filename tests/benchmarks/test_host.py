"""The benchmark of the host's part runs, and prepares in one contender what it does not in the other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "host.py"


def test_quick_run(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    settings = {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["rows"], row["impl"]) for row in rows] == [(1, "ahead"), (1, "at once"), (3, "ahead"), (3, "at once")]
    for row in rows:
        assert row["steps"] == 4
        assert 0 < row["between_us_min"] <= row["between_us"] <= row["between_us_max"]
        assert row["whole_us"] > 0
        assert (row["ahead_us"] > 0) == (row["impl"] == "ahead")
