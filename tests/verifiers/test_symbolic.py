"""math-verify behind its wall: what it decides, and that nothing it is given outlives its time."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from forethought.schema import Problem
from forethought.verifiers import symbolic
from forethought.verifiers.exact import Form
from forethought.verifiers.maths import Maths
from forethought.verifiers.symbolic import Symbolic, installed

needs_math_verify = pytest.mark.skipif(not installed(), reason="math-verify is not installed")


def latex(gold: str, answer: str) -> tuple[Form, Form]:
    return Form(gold, False), Form(answer, False)


def keys(gold: str, answer: str) -> tuple[Form, Form]:
    return Form(gold, True), Form(answer, True)


@pytest.fixture(scope="module")
def asked() -> Iterator[Symbolic]:
    asked = Symbolic(20.0)
    yield asked
    asked.close()


@needs_math_verify
@pytest.mark.parametrize(
    ("gold", "answer", "relation"),
    [
        (r"\frac{x^2-1}{x-1}", "x+1", "same"),
        (r"\sqrt{5+2\sqrt{6}}", r"\sqrt2+\sqrt3", "same"),
        ("e^{2x}", "(e^x)^2", "same"),
        (r"\sin^2 x + \cos^2 x", "1", "same"),
        ("$x+1$", "x+2", "different"),
        (r"\frac{1}{x+1}", r"\frac{1}{x+2}", "different"),
        (r"\frac{x^2}{x}", "x", "same"),
        ("x^2+18x+86=0", "x^2+4x+20=0", "unknown"),  # no real roots
        (r"\log_2(32)=5", "x=x", "unknown"),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}", "different"),
        (r"e^{-100}\ln 2", r"e^{-200}\ln 3", "different"),
        ("(1,2", "5", "unknown"),
        ("5", "", "unknown"),
        (r"\frac{3}{0}", "1", "unknown"),
    ],
)
def test_what_the_core_cannot_tell(asked: Symbolic, gold: str, answer: str, relation: str) -> None:
    assert asked.compare(latex(gold, answer)).relation == relation


@pytest.fixture(scope="module")
def maths() -> Iterator[Maths]:
    with closing(Maths(timeout=20.0)) as maths:
        yield maths


AS_READ = [
    (r"\sin 2x", r"2\sin x\cos x", "correct"),
    ("sin(2x)", "2 sin x cos x", "correct"),
    (r"\sin 2x", r"x\sin 2", "wrong"),
    (r"e^{i\pi}", "-1", "correct"),
    (r"\log 8/\log 2", "3", "correct"),
    (r"\ln 4", r"2\ln 2", "correct"),
    (r"\log 100", "2", "correct"),
    (r"\log 2", r"\ln 2", "unknown"),  # natural or of ten
    (r"\log 2", r"\ln 3", "wrong"),  # in either
    (r"\log_2 8", "3", "correct"),
    (r"\arctan 1", r"\pi/4", "correct"),
    (r"\tan x", r"\frac{\sin x}{\cos x}", "correct"),
    (r"\cot x", r"\frac{\cos x}{\sin x}", "correct"),
    ("2^{x+1}", r"2\cdot 2^x", "correct"),
    ("a^b a^c", "a^{b+c}", "correct"),
    ("|x|^2", "x^2", "correct"),
    ("|x|", "x", "unknown"),
    ("|x-100|", "100-x", "unknown"),
    (r"\sqrt{x^2}", "|x|", "correct"),
    (r"\sqrt2x", r"\sqrt{2x}", "wrong"),
    (r"\sqrt[3]{x^3}", "x", "unknown"),  # another root below zero
    ("n!", "n(n-1)!", "correct"),
    (r"\frac{x^3+1}{x+1}", "x^2-x+1", "correct"),
    (r"e^{-100}\ln 2", r"e^{-200}\ln 3", "wrong"),
    (r"(\ln 4, 1)", r"(2\ln 2, 1)", "correct"),
    (r"(\ln 4, 1)", r"(3\ln 2, 1)", "wrong"),
    (r"(\ln 4, 1)", r"(1, 2\ln 2)", "wrong"),
    (r"\begin{pmatrix}\ln 4\\e^{i\pi}\end{pmatrix}", r"\begin{pmatrix}2\ln 2\\-1\end{pmatrix}", "correct"),
    (r"[0,\ln 4]", r"[0,\ln 4)", "wrong"),
    ("x^2+18x+86=0", "x^2+4x+20=0", "unknown"),
    (r"\lfloor 3.5\rfloor + \sin 0", "3", "correct"),  # one side as written, the other as read
]


@needs_math_verify
@pytest.mark.parametrize(("gold", "answer", "status"), AS_READ)
@pytest.mark.parametrize("turned", [False, True])
def test_it_is_asked_about_what_was_read(maths: Maths, gold: str, answer: str, status: str, turned: bool) -> None:
    if turned:
        gold, answer = answer, gold
    (verdict,) = asyncio.run(maths.ajudge(Problem(id="p", question="?", answer=gold), [rf"\boxed{{{answer}}}"]))
    assert verdict.status == status, verdict.reason


@needs_math_verify
@pytest.mark.parametrize(
    ("gold", "answer", "relation"),
    [
        ("-1/4*x^2 + x + -1", "-1/4*x^2 + -1 + x", "same"),
        ("2*7^(1/2)*pi^(-1)", "7^(1/2)*2*pi^(-1)", "same"),
        ("1/(x + 1)^2", "^(x + 1, -2)", "same"),
        ("-sin(^(x, 1/2))^2 + 1", "cos(^(x, 1/2))^2", "same"),
        ("3/2", "1/2", "different"),
        ("sin(x", "1", "unknown"),
        ("sin(x))", "1", "unknown"),
        ("x + ", "1", "unknown"),
        ("x; import os", "1", "unknown"),
        ("max(x, y)", "x", "unknown"),
        ("1/(0)", "1", "unknown"),
        ("∞", "∞ + 1", "unknown"),
        ("", "1", "unknown"),
    ],
)
def test_keys_are_read_by_their_own_grammar(asked: Symbolic, gold: str, answer: str, relation: str) -> None:
    assert asked.compare(keys(gold, answer)).relation == relation


@needs_math_verify
def test_all_pairs_must_be_the_same(asked: Symbolic) -> None:
    same, different, unknown = keys("ln(4)", "2*ln(2)"), keys("ln(4)", "3*ln(2)"), keys("abs(x)", "x")
    assert asked.compare(same, same).relation == "same"
    assert asked.compare(same, unknown).relation == "unknown"
    assert asked.compare(same, unknown, different).relation == "different"


@needs_math_verify
@pytest.mark.parametrize("text", ["9^{9^{9^{9}}}", r"\binom{100000000}{50000000}"])
def test_what_takes_too_long_is_killed_and_replaced(text: str) -> None:
    impatient = Symbolic(1.0)
    try:
        assert impatient.compare(latex("1", "1")).relation == "same"
        first = impatient._process
        start = time.perf_counter()
        outcome = impatient.compare(latex(text, "5"))
        assert outcome.relation == "unknown"
        assert "1 seconds" in outcome.reason
        assert time.perf_counter() - start < 10  # a bound for safety
        assert first is not None
        assert first.poll() is not None
        assert impatient.compare(latex("x+1", "1+x")).relation == "same"
    finally:
        impatient.close()


@needs_math_verify
def test_text_is_not_run(asked: Symbolic, tmp_path: Path) -> None:
    target = tmp_path / "made"
    for text in (f"__import__('os').system('touch {target}')", rf"\frac{{__import__('os').system('touch {target}')}}{{1}}"):
        asked.compare(latex("1", text))
    assert not target.exists()


@needs_math_verify
@pytest.mark.parametrize("text", ["7" * 500, "7" * 10**6, "{" * 500, "(" * 200])
def test_what_is_too_long_is_not_asked(text: str) -> None:
    unasked = Symbolic(5.0)
    assert unasked.compare(latex(text, "5")).relation == "unknown"
    assert unasked._process is None


@needs_math_verify
def test_workers_are_recycled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolic, "RECYCLE", 2)
    short = Symbolic(20.0)
    try:
        workers = []
        for _ in range(4):
            assert short.compare(latex("x", "x")).relation == "same"
            workers.append(short._process)
        assert [worker is None for worker in workers] == [False, True, False, True]
    finally:
        short.close()


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "worker.py"
    broken.write_text("raise SystemExit(1)\n")
    monkeypatch.setattr(symbolic, "WORKER", broken)
    with pytest.raises(RuntimeError, match="no math-verify worker"):
        Symbolic(5.0).compare(latex("1", "2"))


def test_a_worker_that_dies_or_writes_no_end_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    monkeypatch.setattr(symbolic, "WORKER", worker)
    for then in ("", "input(); print('{', end='', flush=True); import time; time.sleep(60)"):
        worker.write_text(f"print('{{}}', flush=True); {then}\n")
        dying = Symbolic(1.0)
        assert dying.compare(latex("1", "2")).relation == "unknown"
        assert dying._process is None


def test_seconds_must_be_positive() -> None:
    with pytest.raises(ValueError, match="seconds=0"):
        Symbolic(0)


def test_nothing_of_sympy_is_imported_here() -> None:
    """Where model text is read, what evaluates text is not even loaded."""
    code = "import sys; from forethought.verifiers.maths import Maths; Maths(); print({'sympy', 'antlr4'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
