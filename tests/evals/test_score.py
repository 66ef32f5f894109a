"""Another verifier over old draws: each judged once, however often it is cut off, and nothing drawn."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_runs import CONFIG, made
from omegaconf import OmegaConf

from forethought.evals.cli import main
from forethought.evals.config import compose
from forethought.evals.draws import truth_of
from forethought.evals.folder import RunFolder, read
from forethought.evals.judging import Judgements
from forethought.evals.results import Results
from forethought.evals.score import score_one
from forethought.evals.tasks.nano_math import NanoMath
from forethought.schema import Completion, Problem, Verdict
from forethought.verifiers.maths import Maths

PROBLEMS = list(NanoMath(4).problems())
NODE = compose("score", ["verifier=maths", "verifier.symbolic=false"]).verifier


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four problems of nano_math with three draws each: right, wrong, and without a box."""
    path = tmp_path / "run"
    for problem in PROBLEMS:
        texts = [f"\\boxed{{{problem.answer}}}", "\\boxed{-1}", "no box"]
        answers = [problem.answer, "-1", None]
        made(path, {problem.id: [True, False, False]}, question=problem.question, gold=problem.answer or "",
             texts={problem.id: texts}, answers={problem.id: answers}, config=CONFIG | {
                 "task": {"_target_": "forethought.evals.tasks.nano_math.NanoMath", "count": 4}})  # fmt: skip
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often the verifier was asked about each text of each problem."""
    count: Counter[tuple[str, str]] = Counter()
    judge = Maths.ajudge

    async def counted(self: Maths, problem: Problem, candidates: Sequence[str]) -> list[Verdict]:
        count.update((problem.id, text) for text in candidates)
        return await judge(self, problem, candidates)

    monkeypatch.setattr(Maths, "ajudge", counted)
    return count


def lines(run: Path, verifier: str = "maths") -> list[dict[str, Any]]:
    return [row for row in read(run, "verdicts") if row["verifier"] == verifier]


def test_every_draw_is_judged_once_and_none_is_drawn(run: Path, asked: Counter[tuple[str, str]]) -> None:
    before = {name: (run / f"{name}.jsonl").read_bytes() for name in ("samples", "verdicts", "solutions")}
    results = score_one(run, NODE)
    assert results is not None
    assert {(row["problem"], row["index"]) for row in lines(run)} == {(p.id, i) for p in PROBLEMS for i in range(3)}
    assert [row["status"] for row in lines(run) if row["problem"] == PROBLEMS[0].id] == ["correct", "wrong", "unknown"]
    after = {name: (run / f"{name}.jsonl").read_bytes() for name in before}
    assert (after["samples"], after["solutions"]) == (before["samples"], before["solutions"])
    assert after["verdicts"].startswith(before["verdicts"])
    assert Results.from_json(json.loads((run / "results.json").read_text())) == results
    chosen = results.selectors["maths"].accepts
    assert chosen is not None
    assert chosen.right["2"].value == pytest.approx(2 / 3)
    assert results.truth == "truth"
    again = score_one(run, NODE)
    assert again == results
    assert (run / "verdicts.jsonl").read_bytes() == after["verdicts"]
    assert set(asked.values()) == {1}


def test_cut_off_it_goes_on(run: Path, asked: Counter[tuple[str, str]]) -> None:
    score_one(run, NODE)
    whole, mine = (run / "verdicts.jsonl").read_bytes(), lines(run)
    head = whole.index(json.dumps(mine[5], ensure_ascii=False).encode())
    (run / "verdicts.jsonl").write_bytes(whole[: head + 10])  # in the middle of the sixth line
    asked.clear()
    score_one(run, NODE)
    assert sum(asked.values()) == 12 - 5
    assert Counter((row["problem"], row["index"]) for row in lines(run)) == Counter((p.id, i) for p in PROBLEMS for i in range(3))


def test_as_another_truth(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(run), "verifier=maths", "verifier.symbolic=false", "--truth"]) == 0
    assert "truth as the one that chooses" in capsys.readouterr().out
    other = Results.from_json(json.loads((run / "results-maths.json").read_text()))
    own = Results.from_json(json.loads((run / "results.json").read_text()))
    assert (other.truth, own.truth, truth_of(run)) == ("maths", "truth", "truth")
    assert other.statuses == {"correct": 4, "unknown": 4, "wrong": 4}


def test_several(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same name with another setting is another verifier, and refused."""
    assert main(["score", str(run), "--multirun", "verifier=maths", "verifier.symbolic=false", "verifier.guess=false,true"]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("── ") == 2
    assert "has verdicts by 'maths' set up otherwise: config.guess=false, now config.guess=true" in captured.err


def test_the_truth_does_not_choose(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Maths, "__init__", lambda self, **_: setattr(self, "name", "truth"))
    monkeypatch.setattr(Maths, "close", lambda self: None)
    with pytest.raises(ValueError, match="'truth' is this run's truth"):
        score_one(run, NODE)
    assert lines(run) == []


def test_another_process_is_writing(run: Path) -> None:
    with RunFolder.again(run), pytest.raises(RuntimeError, match="another process is writing"):
        score_one(run, NODE)


def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*argv: str) -> str:
        assert main(["score", *argv]) == 2
        return capsys.readouterr().err

    assert "score needs a verifier: verifier=…, one of" in error(str(run))
    assert "no such verifier" in error(str(run), "verifier=nope")
    assert "no run" in error(str(tmp_path / "none"), "verifier=maths")
    assert not (tmp_path / "none").exists()
    assert "has no tests called 'visible'" in error(str(run), "verifier=visible")
    assert "no longer the problem" in error(str(made(tmp_path / "other", {PROBLEMS[0].id: [True]})), "verifier=maths")
    evil = CONFIG | {"task": {"_target_": "os.system", "command": "touch /tmp/evil"}}
    assert "os.system, which is no part of forethought" in error(
        str(made(tmp_path / "evil", {"a": [True]}, config=evil)), "verifier=maths"
    )
    hidden = CONFIG | {"task": CONFIG["task"] | {"levels": [{"_target_": "pathlib.Path"}]}}
    assert "pathlib.Path, which" in error(str(made(tmp_path / "hidden", {"a": [True]}, config=hidden)), "verifier=maths")


def test_interrupted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(self: Maths, problem: Problem, candidates: Sequence[str]) -> list[Verdict]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Maths, "ajudge", interrupted)
        assert main(["score", str(run), "verifier=maths"]) == 130
    assert score_one(run, NODE) is not None, "the lock is free again"


def test_a_verifier_that_asks_a_model_gets_the_runs_own(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    class Judge(Maths):
        def __init__(self, lm: Any) -> None:
            super().__init__(symbolic=False)
            self.name = "judge"
            given.append(lm.model.info.name)

    monkeypatch.setattr("forethought.verifiers.maths.Judge", Judge, raising=False)
    node = OmegaConf.create({"_target_": "forethought.verifiers.maths.Judge", "_partial_": True})
    assert score_one(run, node) is not None
    assert given == ["nano"]
    assert len(lines(run, "judge")) == 12


def test_a_defect_of_the_verifier_is_its_own(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: Maths, problem: Problem, candidates: Sequence[str]) -> list[Verdict]:
        await asyncio.sleep(0)
        raise ValueError("cannot judge this")

    monkeypatch.setattr(Maths, "ajudge", broken)
    with pytest.raises(ValueError, match="cannot judge this"):
        score_one(run, NODE)


def test_a_verdict_that_is_given_twice_is_kept_once(tmp_path: Path) -> None:
    with RunFolder(tmp_path, {"truth": "truth"}) as folder:
        judgements, draw = Judgements(folder), Completion("text", [1], "stop", index=2)
        for word in ("correct", "wrong"):
            judgements.add(PROBLEMS[0], [(draw, Verdict(word, verifier="a")), (draw, Verdict(word, verifier="b"))])
        assert judgements.lacking("a", PROBLEMS[0], [draw]) == []
        assert judgements.lacking("a", PROBLEMS[1], [draw]) == [draw]
    assert [(row["verifier"], row["index"], row["status"]) for row in read(tmp_path, "verdicts")] == [
        ("a", 2, "correct"), ("b", 2, "correct"),
    ]  # fmt: skip
