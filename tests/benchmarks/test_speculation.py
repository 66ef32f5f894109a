"""The drafting benchmark runs, its contenders write the same text, and its figures are what it says they are."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import forethought as ft

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
OURS = ["autoregressive", "lookahead", "prompt_lookup", "speculative", "lookahead+draft"]
THEIRS = ["hf-plain", "hf-prompt-lookup", "hf-assisted"]


@pytest.fixture(scope="module")
def speculation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_speculation", BENCHMARKS / "speculation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_speculation"] = module  # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec.loader.exec_module(module)
    return module


def test_quick_run(tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.jsonl"
    command = [sys.executable, str(BENCHMARKS / "speculation.py"), "--quick", "--json", str(rows_file)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    rows = result["rows"]
    assert [(row["batch"], row["impl"]) for row in rows] == [
        *((1, name) for name in OURS + THEIRS),
        *((2, name) for name in OURS),
    ]
    written = [json.loads(line) for line in rows_file.read_text().splitlines()]
    assert [row.items() <= line.items() for row, line in zip(rows, written, strict=True)] == [True] * len(rows)
    assert len({row["tokens"] for row in rows if not row["differ"]}) == 1
    for row in rows:
        assert row["differ"] == row["ties"]
        if row["impl"] in ("autoregressive", "hf-plain"):
            assert (row["mat"], row["drafted"], row["accepted"], row["draft_tokens"]) == (1, 0, None, 0)
        assert ("predicted" in row) == (row["impl"] in OURS[1:])
        assert (row["draft_tokens"] > 0) == (row["impl"] in ("speculative", "lookahead+draft", "hf-assisted"))
    assert [table["rows"] for table in result["tables"]] == [[1], [1, 2]]
    for table in result["tables"]:
        assert [len(seconds) for seconds in table["seconds"]] == [len(table["sizes"])] * len(table["rows"])


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (["--tasks", "math,chess"], "no 'chess'"),
        (["--decoders", "lookahead,medusa"], "no 'medusa'"),
        (["--batch", "1,two"], "--batch 1,two: whole numbers"),
        (["--batch", "0"], "--batch 0: at least 1"),
        (["--repeats", "0"], "--repeats 0: at least 1"),
        (["--tokens", "1"], "--tokens 1: at least 8"),
        (["--temperature", "nan"], "--temperature nan: at least 0"),
        (["--tasks", "math,qa"], "FORETHOUGHT_DATA=None"),
    ],
)
def test_bad_options_are_refused(
    speculation: ModuleType, options: list[str], refusal: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORETHOUGHT_DATA", raising=False)
    with pytest.raises(SystemExit) as exit_:
        speculation.parse(options)
    assert exit_.value.code == 2
    assert refusal in capsys.readouterr().err


def test_plain_decoding_always_runs(speculation: ModuleType) -> None:
    assert speculation.parse(["--decoders", "lookahead"]).decoders == ["autoregressive", "lookahead"]
    assert speculation.parse(["--decoders", "hf-plain,autoregressive"]).decoders == ["autoregressive", "hf-plain"]


def test_table_is_linear_between_what_was_measured(speculation: ModuleType) -> None:
    table = speculation.Table([1, 3], [1, 2, 4], [[1.0, 2.0, 6.0], [3.0, 6.0, 10.0]])
    assert [table(1, 1), table(1, 3), table(3, 4), table(2, 1), table(2, 3)] == [1, 4, 10, 2, 6]


def test_prediction_is_mat_over_what_a_step_costs(speculation: ModuleType) -> None:
    """Where every step is alike. 3 rows; 4 drafts each, 2.5 tokens of it; 3 ms of drafting; T(1) = 10 ms, T(5) = 14 ms."""
    table = speculation.Table([3], [1, 5], [[0.010, 0.014]])
    step = sys.modules["speculation_steps"].Step
    plain = speculation.Tally(
        seconds=2.0, outputs=[[0] * 51] * 3, given=3, forwards=150, steps=[step(3, 0, 3, 0.0, 0.012)] * 50
    )
    drafting = speculation.Tally(
        seconds=1.0, outputs=[[0] * 51] * 3, given=3, forwards=60, drafted=240, accepted=90, drafting=306,
        steps=[step(3, 12, 8 - i % 2, 0.003, 0.018) for i in range(20)],
    )  # fmt: skip
    assert (plain.mat, drafting.mat) == (1, 2.5)
    row = speculation.summary("speculative", [{"autoregressive": plain, "speculative": drafting}] * 2, [table] * 2)
    assert row["predicted"] == pytest.approx(2.5 / (14 / 10 + 3 / 10))
    assert row["measured"] == pytest.approx(2.5 * 12 / 18)
    assert row["share"] == pytest.approx(row["measured"] / row["predicted"])
    assert (row["tok_s"], row["x_plain"], row["drafted"], row["accepted"], row["draft_tokens"]) == (153, 2, 4, 0.375, 2)
    assert (row["rows"], row["step_ms"], row["draft_ms"]) == (3, pytest.approx(18), pytest.approx(3))
    assert row["step_ms_by_t"] == pytest.approx(17)


def test_what_is_watched_is_what_is_billed(speculation: ModuleType) -> None:
    """Every call of a request but its prompt's; every draft; every token but the prompt's, or those beside other prompts."""
    model = ft.load("nano", device="cpu")
    prompts = [[1, *range(40 + i, 60 + i), *range(40 + i, 55 + i)] for i in range(3)]
    who = sys.modules["speculation_contenders"]
    ours = who.Ours("lookahead", model, lambda: ft.Lookahead(4, adaptive=False), who.Settings(20, 0.0, 1000))
    ours.begin()
    ours.run(prompts)
    ours.end()
    tally = ours.tally
    whole = ours.engine.cost
    assert [len(output) for output in tally.outputs] == [20, 20, 20], "shorter outputs prove less"
    assert sum(step.drafted for step in tally.steps) == tally.drafted == whole.drafted > 0
    assert sum(step.tokens for step in tally.steps) == tally.tokens - tally.given == 57
    assert sum(step.rows for step in tally.steps) == tally.forwards
    assert tally.accepted == tally.tokens - tally.given - tally.forwards
    assert 0 < sum(step.seconds for step in tally.steps) < tally.seconds


def test_a_difference_is_a_tie_or_an_error(speculation: ModuleType) -> None:
    model = ft.load("nano", device="cpu")
    settings = speculation.Settings(8, 0.0, 1000)
    prompt = [1, 50, 60, 70]
    with ft.Engine(model, ft.Autoregressive(), kv_slots=100) as engine:
        said = engine.generate(prompt, max_tokens=8, temperature=0, ignore_eos=True)[0].token_ids
    other = [*said[:5], (said[5] + 1) % 100, *said[6:]]
    assert speculation.apart(model, prompt + said[:5], said[5]) == 0

    def differ(mine: list[int]) -> dict[str, int]:
        tallies = {name: speculation.Tally(outputs=[out]) for name, out in (("autoregressive", said), ("lookahead", mine))}
        return speculation.compare(model, settings, [prompt], "lookahead", [tallies])  # type: ignore[no-any-return]

    assert differ(said) == {"differ": 0, "ties": 0}
    with pytest.raises(AssertionError, match="token 5 is"):
        differ(other)
    with pytest.raises(AssertionError, match="7 tokens"):
        differ(said[:7])


def test_spec_bench_prompts(speculation: ModuleType, benchmark_data: Path) -> None:
    model = ft.load("nano", device="cpu")
    for task, some_are_too_long in {"mt_bench": False, "qa": False, "summarization": True}.items():
        prompts, others, left_out = speculation.read(task, model, 1000, 8, 160)
        assert len(prompts) + len(others) + left_out == 80
        assert len(others) == 8
        assert prompts
        assert (left_out > 0) == some_are_too_long
        assert max(map(len, prompts)) + 160 < model.info.max_positions
    with pytest.raises(ValueError, match="rag: 0 prompts fit"):
        speculation.read("rag", model, 40, 8, 160)
