"""The benchmark of sampling runs, and its last line says what its table says."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "vocabulary.py"


def test_quick_run() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--model", "nano", "--dtype", "float32"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    *table, last = run.stdout.splitlines()
    rows = json.loads(last)["rows"]
    assert len(table) - 1 == len(rows) == 2 * 2 * 3 + 3
    assert [row["case"] for row in rows] == ["draw"] * 12 + ["step"] * 3
    for row, text in zip(rows, table[1:], strict=True):
        assert row["settings"] in text.split()
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert row["ours_ms"] > 0
        assert row["other_ms"] > 0
