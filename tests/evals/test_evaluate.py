"""Whole runs on the built-in models: what is on disk is what was drawn, once each, however often the run was cut off."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forethought.backend.engine import Engine
from forethought.backend.load import BUILT_IN, weights_hash
from forethought.backend.usage import PARTS
from forethought.evals.cli import main
from forethought.evals.config import compose
from forethought.evals.draws import problems_of
from forethought.evals.estimators import pass_at_k
from forethought.evals.evaluate import evaluate_one
from forethought.evals.folder import read
from forethought.evals.intervals import wilson
from forethought.evals.results import Results
from forethought.evals.tasks import nano_math
from forethought.evals.tasks.code import HumanEval
from forethought.evals.tasks.forms import Form
from forethought.evals.tasks.nano_math import NanoMath
from forethought.nano.problems import read_answer
from forethought.schema import Problem, Verdict
from forethought.search.strategy import seed_of
from forethought.verifiers.answer import Answer
from forethought.verifiers.maths import Maths

SMALL = ["strategy.n=3", "run.problems=5", "max_tokens=96"]


def run(path: Path, *overrides: str) -> Results:
    results = evaluate_one(compose("eval", [*SMALL, f"run.path={path}", *overrides]))
    assert results is not None
    return results


def rows(path: Path, name: str) -> list[dict[str, Any]]:
    return list(read(path, name))


def texts(path: Path) -> dict[tuple[str, int], tuple[int, list[int]]]:
    """Draw -> (seed, tokens); each draw there once."""
    found = {(r["problem"], r["index"]): (r["seed"], r["completion"]["token_ids"]) for r in rows(path, "samples")}
    assert len(found) == len(rows(path, "samples")), "a draw twice"
    return found


def test_a_run_keeps_every_draw_and_judgement(tmp_path: Path) -> None:
    results = run(tmp_path / "run")
    problems = {problem.id: problem for problem in list(NanoMath().problems())[:5]}
    drawn = texts(tmp_path / "run")
    assert set(drawn) == {(p, i) for p in problems for i in range(3)}
    assert all(seed == seed_of(0, p) for (p, _), (seed, _) in drawn.items())
    assert len({tuple(tokens) for _, tokens in drawn.values()}) > 5
    said = {(r["problem"], r["index"]): r for r in rows(tmp_path / "run", "verdicts")}
    assert set(said) == set(drawn)
    right: dict[str, int] = dict.fromkeys(problems, 0)
    for row in rows(tmp_path / "run", "samples"):
        answer = read_answer(row["completion"]["text"])
        verdict = said[row["problem"], row["index"]]
        assert verdict["answer"] == answer
        expected = "unknown" if answer is None else "correct" if answer == problems[row["problem"]].answer else "wrong"
        assert verdict["status"] == expected
        right[row["problem"]] += expected == "correct"
    assert sum(results.statuses.values()) == results.draws == 15
    expected_curve = pass_at_k(3, np.array(list(right.values())), [1, 2]).mean(0)
    assert [results.coverage[k].value for k in ("1", "2")] == pytest.approx(expected_curve.tolist())
    solved = sum(problem.right for problem in problems_of(tmp_path / "run"))
    assert (results.accuracy.low, results.accuracy.high) == wilson(solved, 5)
    assert all(figure.low < figure.high for figure in results.levels.values()), "one problem of a level proves little"
    assert results.accuracy.value == np.mean([p.right for p in problems_of(tmp_path / "run")])
    assert results.flops > 0
    assert all(results.timing[f"{part}_seconds"] > 0 for part in PARTS if part != "drafting")
    assert "rows_busy" not in results.timing, "fewer draws than rows: nobody queued"
    assert Results.from_json(json.loads((tmp_path / "run" / "results.json").read_text())) == results


def test_a_finished_run_draws_nothing_more(tmp_path: Path) -> None:
    run(tmp_path)
    before = {name: (tmp_path / f"{name}.jsonl").read_bytes() for name in ("samples", "verdicts", "solutions")}
    results = run(tmp_path)
    assert results.timing["draws"] == 0
    assert {name: (tmp_path / f"{name}.jsonl").read_bytes() for name in before} == before


def test_more_problems_go_on_with_the_same_run(tmp_path: Path) -> None:
    run(tmp_path / "a", "run.problems=2")
    run(tmp_path / "a")
    run(tmp_path / "b")
    assert texts(tmp_path / "a") == texts(tmp_path / "b")


def test_lost_lines_are_made_again_as_they_were(tmp_path: Path) -> None:
    """Whatever tail of each file a crash took."""
    run(tmp_path)
    whole = {name: (tmp_path / f"{name}.jsonl").read_bytes() for name in ("samples", "verdicts", "solutions")}
    expected, judged = texts(tmp_path), {json.dumps([r["problem"], r["index"], r["status"]]) for r in rows(tmp_path, "verdicts")}
    draw = random.Random(0)
    for _ in range(3):
        kept = draw.randrange(len(whole["samples"]))
        (tmp_path / "samples.jsonl").write_bytes(whole["samples"][:kept])
        known = set(texts(tmp_path))
        lines = [(line, json.loads(line)) for line in whole["verdicts"].splitlines(True)]
        verdicts = [line for line, row in lines if (row["problem"], row["index"]) in known]
        (tmp_path / "verdicts.jsonl").write_bytes(b"".join(verdicts[: draw.randrange(len(verdicts) + 1)]))
        (tmp_path / "solutions.jsonl").write_bytes(b"")
        run(tmp_path)
        assert texts(tmp_path) == expected
        assert {json.dumps([r["problem"], r["index"], r["status"]]) for r in rows(tmp_path, "verdicts")} == judged
        assert len(rows(tmp_path, "verdicts")) == len(judged)
        assert len(rows(tmp_path, "solutions")) == 5


def command(path: Path, problems: int) -> list[str]:
    return [sys.executable, "-m", "forethought.evals.cli", "eval", "strategy.n=4", f"run.problems={problems}", f"run.path={path}",
            "max_tokens=96"]  # fmt: skip


@pytest.mark.slow
def test_kill_9_at_any_moment_and_go_on(tmp_path: Path) -> None:
    """Twenty times; then it ends as an undisturbed run does, every draw once, the same seeds and tokens."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    subprocess.run(command(tmp_path / "calm", 120), check=True, capture_output=True, env=environment)
    took = time.monotonic() - begin
    draw, killed = random.Random(1), 0
    for _ in range(20):
        process = subprocess.Popen(
            command(tmp_path / "killed", 120), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        try:
            process.wait(draw.uniform(0.1, 0.9) * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed >= 3
    subprocess.run(command(tmp_path / "killed", 120), check=True, capture_output=True, env=environment)
    calm, after = texts(tmp_path / "calm"), texts(tmp_path / "killed")
    assert set(after) == set(calm)
    assert {key: seed for key, (seed, _) in after.items()} == {key: seed for key, (seed, _) in calm.items()}
    assert sum(after[key] != calm[key] for key in calm) <= 2, "but for ties in floating point"
    assert len(rows(tmp_path / "killed", "solutions")) == 120


CHOSEN = ["verifier=maths", "verifier.symbolic=false", "strategy.select=accepted"]


def test_a_verifier_chooses_and_another_judges(tmp_path: Path) -> None:
    run(tmp_path, *CHOSEN)
    said = Counter((r["problem"], r["index"], r["verifier"]) for r in rows(tmp_path, "verdicts"))
    expected = {(*draw, verifier) for draw in texts(tmp_path) for verifier in ("maths", "answer")}
    assert said == Counter(dict.fromkeys(expected, 1))
    words = {(r["problem"], r["index"]): r["status"] for r in rows(tmp_path, "verdicts") if r["verifier"] == "maths"}
    for row in rows(tmp_path, "solutions"):
        accepted = [i for i in range(3) if words[row["problem_id"], i] == "correct"]
        assert row["chosen"] == (accepted[0] if accepted else None)
    results = Results.from_json(json.loads((tmp_path / "results.json").read_text()))
    assert (results.truth, set(results.selectors)) == ("answer", {"maths"})
    with pytest.raises(ValueError, match="another config"):
        run(tmp_path)


def test_what_a_verifier_has_said_it_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, *CHOSEN)
    whole = {name: (tmp_path / f"{name}.jsonl").read_bytes() for name in ("verdicts", "solutions")}
    expected = {(r["problem"], r["index"], r["verifier"], r["status"]) for r in rows(tmp_path, "verdicts")}
    kept = whole["verdicts"].splitlines(True)[:8]
    (tmp_path / "verdicts.jsonl").write_bytes(b"".join(kept))
    (tmp_path / "solutions.jsonl").write_bytes(b"")
    drawn = {(r["problem"], r["index"]): r["completion"]["text"] for r in rows(tmp_path, "samples")}
    known = {(r["problem"], drawn[r["problem"], r["index"]]) for r in map(json.loads, kept) if r["verifier"] == "maths"}
    asked = []
    judge = Maths.ajudge

    async def listening(self: Maths, problem: Problem, candidates: Sequence[str]) -> list[Verdict]:
        asked.extend((problem.id, text) for text in candidates)
        return await judge(self, problem, candidates)

    monkeypatch.setattr(Maths, "ajudge", listening)
    run(tmp_path, *CHOSEN)
    assert len(known) >= 2
    assert not known & set(asked)
    assert set(asked) | known == {(problem, text) for (problem, _), text in drawn.items()}
    assert {(r["problem"], r["index"], r["verifier"], r["status"]) for r in rows(tmp_path, "verdicts")} == expected
    assert len(rows(tmp_path, "verdicts")) == len(expected)
    assert (tmp_path / "solutions.jsonl").read_bytes().count(b"\n") == 5


def test_a_stopping_rule_ends_a_problem(tmp_path: Path) -> None:
    run(tmp_path, *CHOSEN, "strategy.round=1", "strategy.stop=first_accept", "sampling.temperature=1.5", "run.problems=8")
    words = {(r["problem"], r["index"]): r["status"] for r in rows(tmp_path, "verdicts") if r["verifier"] == "maths"}
    drawn = Counter(problem for problem, _ in texts(tmp_path))
    assert len(drawn) == 8
    for problem, count in drawn.items():
        first = next((i for i in range(count) if words[problem, i] == "correct"), None)
        assert count == (3 if first is None else first + 1)
    assert min(drawn.values()) < max(drawn.values())


def test_the_truth_cannot_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(Maths, "close", lambda self: closed.append(self))
    monkeypatch.setattr(Answer, "name", "maths")
    with pytest.raises(ValueError, match="'maths' is this run's truth: an answer is chosen by another verifier"):
        run(tmp_path, *CHOSEN)
    assert len(closed) == 1
    assert rows(tmp_path, "samples") == []


def test_another_config_or_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "run.problems=1")
    with pytest.raises(ValueError, match=r"strategy\.n=3, now strategy\.n=4"):
        run(tmp_path, "strategy.n=4")
    with pytest.raises(ValueError, match=r"another (config|weights)"):
        run(tmp_path, "model=nano-draft")
    monkeypatch.setattr("forethought.evals.evaluate.weights_hash", lambda name: "other")
    with pytest.raises(ValueError, match="another weights"):
        run(tmp_path, "run.problems=1")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer_config.json", {"pad_token": "<unk>"}, "another tokenizer"),
        ("chat_template.jinja", "{{ messages[0].content }}!", "another chat template"),
        ("generation_config.json", {"suppress_tokens": [7]}, "another generation settings: suppressed"),
        ("generation_config.json", {"repetition_penalty": 1.2}, "another generation settings: repetition_penalty=null, now"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "another tokenizer"),
        ("generation_config.json", {"pad_token_id": 3}, None),
    ],
)
def test_what_else_makes_the_text_is_part_of_the_run(file: str, change: Any, message: str | None, tmp_path: Path,
                                                     make_checkpoint: Any) -> None:  # fmt: skip
    folder = make_checkpoint(tmp_path / "tiny")
    small = [f"model={folder}", "strategy.n=1", "run.problems=1", "max_tokens=8"]
    run(tmp_path / "run", *small)
    target = folder / file
    target.write_text(change if isinstance(change, str) else json.dumps(json.loads(target.read_text()) | change))
    if message is None:
        run(tmp_path / "run", *small)
        return
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", *small)


def test_a_form_is_part_of_the_run_by_its_words_and_not_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", "run.problems=1")
    monkeypatch.setattr(nano_math, "chosen", lambda prompt, known: Form(f"Please: {prompt}"))
    with pytest.raises(ValueError, match="another form"):
        run(tmp_path / "run", "run.problems=1")


def test_lines_that_were_appended_twice_count_once(tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    for name in ("samples", "verdicts", "solutions"):
        file = tmp_path / "run" / f"{name}.jsonl"
        file.write_bytes(file.read_bytes() * 2)
    again = run(tmp_path / "run")
    assert (again.problems, again.draws, again.statuses) == (first.problems, first.draws, first.statuses)
    file = tmp_path / "run" / "verdicts.jsonl"
    line = json.loads(file.read_text().splitlines()[0])
    with open(file, "a") as lines:
        lines.write(json.dumps(line | {"status": "error"}) + "\n")
    with pytest.raises(ValueError, match=rf"problem {line['problem']}, index {line['index']} that contradict"):
        run(tmp_path / "run")


def test_a_run_in_batch_invariant_mode_is_another_run(tmp_path: Path) -> None:
    run(tmp_path / "run", "run.problems=1", "run.batch_invariant=true")
    with pytest.raises(ValueError, match="another"):
        run(tmp_path / "run", "run.problems=1")
    with pytest.raises(ValueError, match=r"run\.batch_invariant=3: true or false"):
        run(tmp_path / "other", "run.batch_invariant=3")


def test_the_hash_of_weights_sees_another_checkpoint(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((BUILT_IN / "nano" / name).read_bytes())
    same = weights_hash(tmp_path)
    assert same == weights_hash("nano") != weights_hash("nano-draft")
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1  # wherever it is
    (tmp_path / "model.safetensors").write_bytes(data)
    assert weights_hash(tmp_path) != same


def test_the_command_prints_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *SMALL, "run.problems=2", f"run.path={tmp_path / 'x'}"]) == 0
    printed = capsys.readouterr().out
    for part in ("2 problems, 6 draws", "chosen answers right", "pass@k", "majority of k", "the engine: prefill "):
        assert part in printed
    assert main(["eval", "strategy.n=0"]) == 2
    assert "n=0" in capsys.readouterr().err
    assert main(["eval", *SMALL, "max_tokens=99999", f"run.path={tmp_path / 'y'}"]) == 2
    assert "max_tokens=99999 exceed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.problems=0", "run.problems=0"), ("run.ks=[0]", "run.ks"), ("task.count=0", "task.count=0"),
        ("task.levels=[9]", "task.levels"), ("seed=null", "seed=null"), ("strategy.select=score", "verifier"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, override)


def test_the_truth_is_closed_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(Answer, "close", lambda self: closed.append(self))
    run(tmp_path / "a", "run.problems=1")
    with pytest.raises(ValueError, match="exceed"):
        run(tmp_path / "b", "max_tokens=99999")
    assert len(closed) == 2


def test_the_task_validates() -> None:
    assert NanoMath(50).validate() == 50


@pytest.mark.parametrize("prompt", ["plain", "evalplus", "complete"])
def test_a_form_reaches_the_model_as_it_is_written(
    prompt: str, tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine is asked: a message; one that begins the answer, and where it ends; or text that is no chat."""
    row = {"task_id": "a", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return x\n",
           "test": "def check(c):\n    assert c(1) == 1"}  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    asked: list[tuple[Any, Any]] = []
    whole = Engine.agenerate

    async def agenerate(self: Engine, prompt: Any, **options: Any) -> Any:
        asked.append((prompt, options.get("stop")))
        return await whole(self, prompt, **options)

    monkeypatch.setattr(Engine, "agenerate", agenerate)
    run(tmp_path / "run", "task=humaneval", f"task.path={tmp_path / 'rows.jsonl'}", f"task.prompt={prompt}",
        f"model={checkpoint}", "strategy.n=1", "max_tokens=4")  # fmt: skip
    form = HumanEval.forms[prompt]
    ((sent, stop),) = asked
    assert stop == (list(form.stop) or None)
    if form.raw:
        assert sent == "def f(x):"
        return
    user, *begun = sent
    assert user["role"] == "user"
    assert "def f(x):" in user["content"]
    assert begun == ([{"role": "assistant", "content": form.start}] if form.start else [])
    assert rows(tmp_path / "run", "verdicts")[0]["status"] in ("wrong", "unknown")
