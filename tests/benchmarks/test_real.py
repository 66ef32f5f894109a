"""The benchmark on real models runs, with the built-in ones in their place, and its figures are what it says they are."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
OURS = ["autoregressive", "lookahead", "lookahead-warm", "prompt_lookup", "speculative", "lookahead+draft"]
THEIRS = ["hf-plain", "hf-prompt-lookup", "hf-assisted"]


@pytest.fixture(scope="module")
def real() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_real", BENCHMARKS / "real.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_real"] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec.loader.exec_module(module)
    return module


def test_quick_run(tmp_path: Path, benchmark_data: Path) -> None:
    written = tmp_path / "rows.jsonl"
    command = [sys.executable, str(BENCHMARKS / "real.py"), "nano", "--draft", "nano-draft", "--dtype", "float32", "--quick",
               "--tasks", "humaneval,qa,translation", "--longest", "600", "--json", str(written)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FORETHOUGHT_DATA": str(benchmark_data)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    *rows, memory = json.loads(run.stdout.splitlines()[-1])["rows"]
    assert [(row["group"], row["impl"]) for row in rows] == [(g, i) for g in ("humaneval", "spec_bench") for i in OURS + THEIRS]
    assert len(written.read_text().splitlines()) == len(rows) + 1
    assert memory["weights_gb"] > 0
    assert memory["read_gb_s_min"] <= memory["read_gb_s"] <= memory["read_gb_s_max"]
    for row in rows:
        assert row["prompts"] == {"humaneval": 1, "spec_bench": 2}[row["group"]]
        assert row["differ"] == row["ties"]
        assert row["tok_s_min"] <= row["tok_s"] <= row["tok_s_max"]
        assert ("of_memory" in row) == (row["impl"] == "autoregressive")
        assert ("x_plain" in row) == (row["impl"] not in ("autoregressive", "hf-plain"))
        assert ("x_transformers" in row) == (row["impl"] in OURS)
        if row["impl"] in ("autoregressive", "hf-plain"):
            assert row["mat"] == 1


def test_ratios_are_of_one_prompt_and_the_share_is_of_steps_alone(real: ModuleType) -> None:
    step = sys.modules["speculation_steps"].Step
    fast, slow = [real.Answer([0] * 8, 1.0), real.Answer([0] * 8, 4.0)], [real.Answer([0] * 8, 2.0), real.Answer([0] * 8, 16.0)]
    tally = real.Tally(
        seconds=18.0, outputs=[[0] * 8] * 2, given=2, forwards=14, steps=[step(1, 0, 1, 0.0, seconds) for seconds in (0.1, 0.3)]
    )
    found = [({"autoregressive": slow, "lookahead": fast}, {"autoregressive": tally, "lookahead": tally})]
    plain, lookahead = (real.summary(name, found, 0.05) for name in ("autoregressive", "lookahead"))
    assert (lookahead["x_plain"], lookahead["x_plain_min"], lookahead["x_plain_max"]) == (3, 2, 4)
    assert (plain["tok_s"], plain["tok_s_min"], plain["mat"]) == (2.25, 0.5, 1)
    assert plain["of_memory"] == pytest.approx(0.05 / 0.2)


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (["--tasks", "humaneval,chess"], "no 'chess'"),
        (["--decoders", "medusa"], "no 'medusa'"),
        (["--decoders", "speculative"], "speculative needs --draft"),
        (["--problems", "0"], "--problems 0: at least 1"),
        (["--tokens", "7"], "--tokens 7: at least 8"),
        (["--warm", "0"], "--warm 0: at least 1"),
    ],
)
def test_bad_options_are_refused(
    real: ModuleType, options: list[str], refusal: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORETHOUGHT_DATA", "somewhere")
    with pytest.raises(SystemExit) as exit_:
        real.parse(["nano", *options])
    assert exit_.value.code == 2
    assert refusal in capsys.readouterr().err
    monkeypatch.delenv("FORETHOUGHT_DATA")
    with pytest.raises(SystemExit):
        real.parse(["nano"])


def test_what_runs_without_a_draft_model(real: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETHOUGHT_DATA", "somewhere")
    assert real.parse(["nano"]).decoders == [*OURS[:4], *THEIRS[:2]]
    assert real.parse(["nano", "--draft", "nano-draft"]).decoders == OURS + THEIRS
    assert real.parse(["nano", "--decoders", "lookahead"]).decoders == ["autoregressive", "lookahead", "hf-plain"]
