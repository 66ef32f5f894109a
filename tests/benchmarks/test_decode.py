"""The decoding benchmark runs, its contenders agree on every token, and its rows say what a reader needs."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

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
