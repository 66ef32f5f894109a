"""The replay benchmark counts what a decoder would: steps and tokens by hand, lines that are none refused, one JSON line."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from forethought.decoding.posting import Posting
from forethought.decoding.tree import Tree

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "replay.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_replay", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_replay"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_what_a_tree_has_of_a_text(benchmark: ModuleType) -> None:
    tree = Tree()
    for token, parent in ((5, 0), (6, 0), (7, 2), (5, 3)):
        tree.add(token, parent, 0.5)
    assert [benchmark.accepted(tree, text) for text in ([], [5, 7], [6, 7, 5, 1], [7], [6, 6])] == [0, 1, 3, 0, 1]


def test_steps_and_tokens(benchmark: ModuleType) -> None:
    """The prefill gives 3; then [4, 5, 6, 9] with 4, 5, 6 drafted; then 8; nothing is drafted behind either."""
    pairs = [benchmark.Pair([1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 9, 8]), benchmark.Pair([1], [])]
    tally, index = benchmark.replay(pairs, Posting, 3, False)
    assert (tally.firsts, tally.steps, tally.emitted, tally.drafted, tally.hits) == (1, 2, 5, 3, 3)
    assert list(index.texts()) == [[3, 4, 5, 6, 3, 4, 5, 6, 9, 8]]


def test_outputs_end_where_they_end(benchmark: ModuleType) -> None:
    """A draft that goes on behind the output gains nothing."""
    tally, _ = benchmark.replay([benchmark.Pair([1, 2, 3, 4], [1, 2])], Posting, 3, False)
    assert (tally.steps, tally.emitted, tally.hits) == (1, 1, 1)


def test_prompt_lookup_takes_the_leftmost_match_of_two_then_of_one(benchmark: ModuleType) -> None:
    line = benchmark.PromptLookup().open([1, 2, 3, 1, 2, 4, 1, 2])
    assert line.draft(2).ids == [3, 1]
    line.extend([9, 2])
    assert line.draft(64).ids == [3, 1, 2, 4, 1, 2, 9, 2]
    line.extend([7])
    assert not line.draft(8)
    assert len(benchmark.PromptLookup().open(list(range(20)) * 2).draft(64)) == 10


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Expecting"), ("", "Expecting"), ("[1]", "object"), ('{"prompt_ids": [1]}', "neither"),
        ('{"prompt_ids": [1], "output_ids": [-1]}', "ids"), ('{"prompt_ids": [1], "output_ids": [true]}', "ids"),
        ('{"prompt": "a", "output": "b"}', "--tokenizer"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(benchmark: ModuleType, tmp_path: Path, line: str, why: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt_ids": [1], "output_ids": [2]}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"line 2: .*{why}"):
        list(benchmark.read(file, None))


def test_text_is_read_with_a_tokenizer(benchmark: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "ab", "output": "c"}\n')
    assert list(benchmark.read(file, lambda text: [ord(c) for c in text])) == [([97, 98], [99])]


def run(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["replay.py", *map(str, arguments)])
    benchmark.main()


def test_records_and_replays(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, copy = tmp_path / "pairs.jsonl", tmp_path / "result.json"
    run(benchmark, monkeypatch, file, "--record", "--count", "4", "--max-tokens", "24")
    pairs = [json.loads(line) for line in file.read_text().splitlines()]
    assert [0 < len(pair["output_ids"]) <= 24 for pair in pairs] == [True] * 4
    capsys.readouterr()
    run(benchmark, monkeypatch, file, "--budgets", "4,16", "--json", copy)
    line = capsys.readouterr().out.splitlines()[-1]
    assert copy.read_text() == line + "\n"
    result = json.loads(line)
    assert result["requests"] == 4
    rows = {(row["index"], row["budget"]): row for row in result["rows"]}
    assert list(rows) == [(name, budget) for name in ("posting", "trie", "prompt-lookup") for budget in (4, 16)]
    assert all(row["decode_mat"] >= 1 and row["drafted"] <= row["budget"] for row in rows.values())
    assert rows["posting", 16]["tokens"] == rows["trie", 16]["tokens"] > 0
    run(benchmark, monkeypatch, file, "--budgets", "4", "--fresh", "--indexes", "posting")
    fresh = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert fresh["rows"][0]["tokens"] < rows["posting", 4]["tokens"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [([], "line 1: neither"), (["--indexes", "none"], "no index 'none'"), (["--budgets", "8,x"], "'8,x'")],
)
def test_bad_options_are_refused(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], why: str,
) -> None:  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("{}\n")
    with pytest.raises(SystemExit):
        run(benchmark, monkeypatch, file, *arguments)
    assert why in capsys.readouterr().err
