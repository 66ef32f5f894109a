"""The decoding benchmark runs, its contenders agree on every token, and its rows say what a reader needs."""

import json
import math
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_quick_run(tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.jsonl"
    command = [sys.executable, str(BENCHMARKS / "decode.py"), "--quick", "--json", str(rows_file)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    rows = result["rows"]
    assert [(row["case"], row["impl"]) for row in rows] == [
        *((case, impl) for case in ("single", "samples") for impl in ("ours", "bare", "transformers")),
        ("mixed", "ours"), ("mixed", "transformers"),
        *(("qwen3", impl) for impl in ("ours", "bare", "transformers")),
    ]  # fmt: skip
    written = [json.loads(line) for line in rows_file.read_text().splitlines()]
    assert [row.items() <= line.items() for row, line in zip(rows, written, strict=True)] == [True] * len(rows)
    for row in rows:
        assert row["differ"] == row["ties"] or row["dtype"] == "bfloat16"
        # One forward feeds the prompt and gives the first token; then one a token of the longest sample.
        if row["case"] != "mixed":
            assert row["forwards"] == {"single": 16, "samples": 16, "qwen3": 4}[row["case"]]


def test_quick_steps(tmp_path: Path) -> None:
    rows_file, script = tmp_path / "rows.jsonl", [sys.executable, str(BENCHMARKS / "decode.py")]
    command = [*script, "--quick", "--cases", "8B", "--json", str(rows_file)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    assert [(row["cell"], row["batch"], row["new"], row["impl"]) for row in rows] == [
        *(("decode", batch, 1, impl) for batch in (1, 3) for impl in ("ours", "eager", "static")),
        ("tree", 1, 1, "ours"), ("tree", 1, 4, "ours"), ("prefix", 3, 1, "ours"),
    ]  # fmt: skip
    assert all(row["steps"] == 4 and row["us"] > 0 for row in rows)
    table = subprocess.run([*script, "--table", str(rows_file)], capture_output=True, text=True)
    assert table.returncode == 0, table.stderr
    lines = table.stdout.splitlines()
    assert len(lines) == 1 + len(rows) + 6
    assert all(line.endswith("not measured") for line in lines[-6:]), "a CPU's figures are none of a card"


def test_steps_that_cannot_be_measured_say_why() -> None:
    command = [sys.executable, str(BENCHMARKS / "decode.py"), "--quick", "--cases", "0.6B", "--seconds", "0"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    rows = json.loads(run.stdout.splitlines()[-1])["rows"]
    assert len(rows) == 9
    assert {row["problem"] for row in rows} == {"out of time"}


def test_what_is_asked_of_a_card(benchmark_steps: ModuleType) -> None:
    def row(case: str, cell: str, impl: str, new: int = 1, **figures: float) -> dict[str, Any]:
        return {"case": case, "cell": cell, "impl": impl, "new": new, "batch": 1, "device": "cuda", **figures}

    rows = [
        row("8B", "decode", "ours", share=0.9), row("8B", "decode", "ours", share=0.69),
        row("0.6B", "decode", "ours", share=0.45), row("0.6B", "decode", "eager", ours_x_eager=3.1),
        row("0.6B", "decode", "static", ours_x_static=0.99),
        row("8B", "tree", "ours", us=100.0), row("8B", "tree", "ours", 16, us=130.0),
    ]  # fmt: skip
    said = [verdict.split(": ")[1].split(" (")[0] for verdict in benchmark_steps.verdicts(rows)]
    assert said == ["0.69, FALLS SHORT", "0.45, holds", "3.10, holds", "not measured", "0.99, FALLS SHORT", "1.30, holds"]


def test_each_cell_has_a_static_cache_of_its_own_length(benchmark_steps: ModuleType) -> None:
    bench, lengths = benchmark_steps.Bench("0.6B", "cpu", True), []
    bench.peer.register_forward_pre_hook(
        lambda _, __, named: lengths.append(named["past_key_values"].layers[0].max_cache_len), with_kwargs=True
    )
    for context in (12, 100, 12):
        assert len(bench.theirs(benchmark_steps.Cell("decode", 1, context), static=True)) == 4
    assert sorted(set(lengths)) == [32, 112]
    assert lengths[-1] == 32


def test_steps_of_another_model_are_not_measured(benchmark_steps: ModuleType) -> None:
    bench = benchmark_steps.Bench("0.6B", "cpu", True)
    bench.check()
    bench.model._norm = -bench.model._norm
    with pytest.raises(AssertionError, match=r"0\.6B: tokens .* behind those of transformers"):
        bench.check()


def test_a_contender_that_fails_costs_its_own_row_alone(benchmark_steps: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, static: bool) -> list[float]:
        if static:
            raise RuntimeError("nothing to compile with\nand more")
        return []  # as when no step was like the others

    monkeypatch.setattr(benchmark_steps.Bench, "theirs", fail)
    rows = list(benchmark_steps.measure("0.6B", "cpu", quick=True, until=math.inf))
    assert len(rows) == 9
    assert [row["problem"] for row in rows if row["impl"] == "static"] == ["RuntimeError: nothing to compile with"] * 2
    assert all("problem" in row for row in rows if row["impl"] == "eager")
    assert all(row["us"] > 0 for row in rows if row["impl"] == "ours")


@pytest.fixture
def benchmark_steps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("decode_steps")


def test_unknown_case_is_refused() -> None:
    command = [sys.executable, str(BENCHMARKS / "decode.py"), "--cases", "single,none"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert "no case 'none'" in run.stderr


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_bare_loop_equals_transformers(kind: str) -> None:
    spec = spec_from_file_location("bare", BENCHMARKS / "bare.py")
    assert spec is not None
    assert spec.loader is not None
    bare = module_from_spec(spec)
    spec.loader.exec_module(bare)
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(
        kind, num_hidden_layers=2, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=64, vocab_size=97, eos_token_id=None, tie_word_embeddings=kind == "qwen3",
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms too, and logits well apart
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.3)
    prompt = [5, 17, 60, 2, 90]
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0)[0, 5:].tolist()
    assert bare.Bare(model, 3, 25).generate(prompt, 3, 20) == [expected] * 3
    assert len(set(expected)) > 3, "a text that repeats itself proves little"
