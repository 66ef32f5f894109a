"""The attention benchmark runs on a CPU, its rows say what a reader needs, and what it runs is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "attention.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True, env=environment)


def test_quick_run(tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.jsonl"
    done = run("--quick", "--device", "cpu", "--json", str(rows_file))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    rows = result["rows"]
    decode = [("decode", batch, context) for context in (8, 40) for batch in (1, 3)]
    cells = [*decode, ("tree", 1, 33), ("tree", 1, 36), ("prefix", 4, 40)]
    both = [(*cell, impl) for cell in cells for impl in ("torch", "sdpa math")]
    rotated = [("parts", 2, 16, "torch"), ("parts", 4, 32, "torch")]
    chunks = [("prefill", 1, context, impl) for context in (6, 26) for impl in ("torch", "library")]
    assert [(row["cell"], row["batch"], row["context"], row["impl"]) for row in rows] == both + rotated + chunks
    written = [json.loads(line) for line in rows_file.read_text().splitlines()]
    assert [row.items() <= line.items() for row, line in zip(rows, written, strict=True)] == [True] * len(rows)
    for row in rows:
        assert row["error"] < 1e-5
        assert row["share"] == pytest.approx(row["gb_s"] / result["copy_gb_s"])
        assert row["gb_s"] == pytest.approx(row["bytes"] / row["us"] / 1e3)
    # Two KV heads of 16 in float32: 256 bytes a slot; four heads of q and of the output: 512 bytes a query.
    by_cell = {(row["cell"], row["batch"], row["context"]): row["bytes"] for row in rows}
    assert by_cell["decode", 3, 40] == 120 * 256 + 3 * 512
    assert by_cell["prefix", 4, 40] == (32 + 4 * 8) * 256 + 4 * 512
    assert by_cell["parts", 4, 32] == 32 * 256 + 4 * 512
    assert by_cell["prefill", 1, 26] == 26 * 256 + 6 * 512
    # Six queries see 21 to 26 slots: of four heads of 16 a product and a sum for each number of K and of V.
    assert rows[-1]["tflops"] == pytest.approx(4 * 4 * 16 * (21 + 22 + 23 + 24 + 25 + 26) / rows[-1]["us"] / 1e6)
    assert [row for row in rows if "tflops" in row] == rows[-4:]


@pytest.mark.parametrize(
    ("arguments", "message"), [(("--cells", "decode,none"), "no cell 'none'"), (("--repeats", "0"), "--repeats 0")]
)
def test_bad_arguments_are_refused(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
