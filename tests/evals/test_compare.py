"""Two runs side by side: by problem, and only over those that both have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_runs import made

from forethought.evals.cli import main
from forethought.evals.compare import paired
from forethought.evals.results import Results


def test_the_difference_is_taken_problem_by_problem(tmp_path: Path) -> None:
    first = made(tmp_path / "a", {f"p{i}": [i < 4, True] for i in range(10)} | {"mine": [True]})
    second = made(tmp_path / "b", {f"p{i}": [i < 7, False] for i in range(9, -1, -1)})
    found = paired(first, second)
    assert (found["problems"], found["left_out"]) == (10, 1)
    chosen, single = found["rows"]
    assert (chosen["first"], chosen["second"]) == (0.4, 0.7)
    assert chosen["difference"] == pytest.approx(0.3)
    assert 0 <= chosen["low"] < 0.3 < chosen["high"] <= 0.7, "what is the same in both adds no noise"
    assert (single["first"], single["second"]) == (0.7, 0.35)
    assert (found["only_first"], found["only_second"]) == (0, 3)
    assert found["p"] == pytest.approx(0.25)
    back = paired(second, first)
    assert back["rows"][0]["difference"] == pytest.approx(-0.3)


def test_figures_do_not_depend_on_who_was_finished_first(tmp_path: Path) -> None:
    problems = {f"p{i}": [i % 3 == 0, i % 2 == 0, True] for i in range(20)}
    first, second = made(tmp_path / "a", problems), made(tmp_path / "b", dict(reversed(problems.items())))
    a, b = (Results.of(path, [1, 2, 3]).to_json() | {"path": ""} for path in (first, second))
    assert a == b


def test_equal_runs_do_not_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "a", {f"p{i}": [i % 2 == 0] for i in range(6)})
    assert main(["compare", str(run), str(run)]) == 0
    assert "+0.0 [+0.0, +0.0]" in capsys.readouterr().out
    assert main(["compare", str(run), str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["p"] == 1


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other = made(tmp_path / "a", {"p": [True]}), made(tmp_path / "b", {"q": [True]})
    with pytest.raises(ValueError, match="no problem in common"):
        paired(first, other)
    with pytest.raises(ValueError, match="p is another problem"):
        paired(first, made(tmp_path / "c", {"p": [True]}, question="!"))
    assert main(["compare", str(first), str(tmp_path / "none")]) == 2
    assert "no run" in capsys.readouterr().err
