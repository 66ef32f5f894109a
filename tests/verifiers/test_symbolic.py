"""math-verify behind its wall: what it decides, and that nothing it is given outlives its time."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forethought.verifiers import symbolic
from forethought.verifiers.symbolic import Symbolic, installed

needs_math_verify = pytest.mark.skipif(not installed(), reason="math-verify is not installed")


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
        (r"\frac{x^2}{x}", "x", "unknown"),  # it says no, and is wrong
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
    assert asked.compare(gold, answer).relation == relation


@needs_math_verify
@pytest.mark.parametrize("text", ["9^{9^{9^{9}}}", r"\binom{100000000}{50000000}"])
def test_what_takes_too_long_is_killed_and_replaced(text: str) -> None:
    impatient = Symbolic(1.0)
    try:
        assert impatient.compare("1", "1").relation == "same"
        first = impatient._process
        start = time.perf_counter()
        outcome = impatient.compare(text, "5")
        assert outcome.relation == "unknown"
        assert "1 seconds" in outcome.reason
        assert time.perf_counter() - start < 10  # a bound for safety
        assert first is not None
        assert first.poll() is not None
        assert impatient.compare("x+1", "1+x").relation == "same"
    finally:
        impatient.close()


@needs_math_verify
def test_text_is_not_run(asked: Symbolic, tmp_path: Path) -> None:
    target = tmp_path / "made"
    for text in (f"__import__('os').system('touch {target}')", rf"\frac{{__import__('os').system('touch {target}')}}{{1}}"):
        asked.compare("1", text)
    assert not target.exists()


@needs_math_verify
@pytest.mark.parametrize("text", ["7" * 500, "7" * 10**6, "{" * 500, "(" * 200])
def test_what_is_too_long_is_not_asked(text: str) -> None:
    unasked = Symbolic(5.0)
    assert unasked.compare(text, "5").relation == "unknown"
    assert unasked._process is None


@needs_math_verify
def test_workers_are_recycled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolic, "RECYCLE", 2)
    short = Symbolic(20.0)
    try:
        workers = []
        for _ in range(4):
            assert short.compare("x", "x").relation == "same"
            workers.append(short._process)
        assert [worker is None for worker in workers] == [False, True, False, True]
    finally:
        short.close()


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "worker.py"
    broken.write_text("raise SystemExit(1)\n")
    monkeypatch.setattr(symbolic, "WORKER", broken)
    with pytest.raises(RuntimeError, match="no math-verify worker"):
        Symbolic(5.0).compare("1", "2")


def test_a_worker_that_dies_or_writes_no_end_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    monkeypatch.setattr(symbolic, "WORKER", worker)
    for then in ("", "input(); print('{', end='', flush=True); import time; time.sleep(60)"):
        worker.write_text(f"print('{{}}', flush=True); {then}\n")
        dying = Symbolic(1.0)
        assert dying.compare("1", "2").relation == "unknown"
        assert dying._process is None


def test_seconds_must_be_positive() -> None:
    with pytest.raises(ValueError, match="seconds=0"):
        Symbolic(0)


def test_nothing_of_sympy_is_imported_here() -> None:
    """Where model text is read, what evaluates text is not even loaded."""
    code = "import sys; from forethought.verifiers.maths import Maths; Maths(); print({'sympy', 'antlr4'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
