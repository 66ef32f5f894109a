"""The maths verifier: verdicts, votes, options, and refusals."""

import asyncio
import time

import pytest

from forethought.schema import Problem, Verdict
from forethought.verifiers import maths
from forethought.verifiers.maths import Maths
from forethought.verifiers.symbolic import installed

needs_math_verify = pytest.mark.skipif(not installed(), reason="math-verify is not installed")


def judge(verifier: Maths, gold: str | None, *texts: str) -> list[Verdict]:
    try:
        return asyncio.run(verifier.ajudge(Problem("p1", "?", gold), texts))
    finally:
        verifier.close()


def test_verdicts_say_what_was_read_and_who_decided() -> None:
    right, wrong, unread, nothing = judge(
        Maths(symbolic=False), r"\frac{1}{2}", r"so $\boxed{0.5}$", r"\boxed{2}", r"\boxed{\int x}", "I do not know"
    )
    assert (right.status, right.score, right.answer) == ("correct", 1.0, "1/2")
    assert right.meta == {"said": "0.5", "by": "exact"}
    assert (wrong.status, wrong.score, wrong.answer, wrong.verifier) == ("wrong", 0.0, "2", "maths")
    assert (unread.status, unread.score, unread.answer) == ("unknown", None, r"\int x")
    assert "symbolic=False" in unread.reason
    assert (nothing.status, nothing.answer, nothing.reason) == ("unknown", None, "no answer found")


def test_equal_answers_share_a_vote() -> None:
    texts = [rf"\boxed{{{a}}}" for a in (r"\frac{3}{4}", "0.75", "3/4", r"x = \frac{6}{8}", r"75\%", r"0.75\text{ cm}")]
    assert [v.answer for v in judge(Maths(symbolic=False), "1", *texts)] == ["3/4", "3/4", "3/4", "3/4", "75", "3/4"]


def test_guesses_are_an_option() -> None:
    assert [v.status for v in judge(Maths(symbolic=False), "18", "she has 18")] == ["unknown"]
    assert [v.status for v in judge(Maths(symbolic=False, guess=True), "18", "she has 18")] == ["correct"]


@needs_math_verify
def test_math_verify_decides_what_the_core_cannot() -> None:
    verifier = Maths()
    assert verifier.name == "maths+math-verify"
    texts = [rf"\boxed{{{a}}}" for a in (r"\frac{x^2-1}{x-1}", r"\frac{x^2-1}{x+1}", "1+x", r"5 \text{ million}")]
    verdicts = judge(verifier, "x+1", *texts)
    assert [v.status for v in verdicts] == ["correct", "wrong", "correct", "unknown"]
    assert [v.meta["by"] for v in verdicts] == ["math-verify", "math-verify", "exact", "exact"]


@needs_math_verify
@pytest.mark.parametrize(
    ("gold", "answer", "status"),
    [
        (r"10\%", "0.1", "unknown"),  # math-verify says yes to this and to 10
        (r"5\text{ cm}", r"5\text{ m}", "unknown"),
        ("52_8", "52_{80}", "unknown"),  # it drops the base
        ("0.00000001", "0.00000002", "wrong"),  # it rounds
        (r"\text{odd}", r"\text{ddo}", "unknown"),  # it multiplies letters
        ("5", r"5 \approx 6", "unknown"),  # it reads up to the sign
        ("5", "6 = 5", "unknown"),
        ("5", r"x = 3 \Rightarrow y = 5", "unknown"),
        ("5", "5'", "unknown"),
        ("1/2x", "5", "unknown"),
        ("2e-1", "0.2", "unknown"),
        (r"\sin x y", r"y\sin x", "unknown"),
        (r"\sin 30^\circ", "1/2", "unknown"),
    ],
)
def test_what_depends_on_the_question_is_not_asked_of_math_verify(gold: str, answer: str, status: str) -> None:
    (verdict,) = judge(Maths(), gold, rf"\boxed{{{answer}}}")
    assert (verdict.status, verdict.meta["by"]) == (status, "exact")


@needs_math_verify
@pytest.mark.parametrize(
    ("gold", "answer", "status"),
    [
        ("e^x", r"\exp(x)", "correct"),
        (r"\sin 2x", r"2\sin x\cos x", "correct"),
        (r"\cos 2x", r"1-2\sin^2 x", "correct"),
        (r"\ln 4", r"2\ln 2", "correct"),
        (r"\log_2 8", "3", "correct"),
        ("5", "|3+4i|", "correct"),
        ("2^{x+1}", r"2\cdot 2^x", "correct"),
        ("2^x", "3^x", "wrong"),
        (r"\sin x", r"\cos x", "wrong"),
        (r"\ln x^2", r"2\ln x", "unknown"),  # of positive numbers only
        ("x^2+18x+86=0", "x^2+4x+20=0", "unknown"),
        (r"\log_2(32)=5", "x=x", "unknown"),
        (r"e^{-100}\ln 2", r"e^{-200}\ln 3", "wrong"),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}", "unknown"),
        ("5", "5, which is what we wanted", "unknown"),
        (r"e^{e^\pi}", r"e^{e^\pi}+e^{-50}", "wrong"),
        (r"\ln(1+e^2)", r"\ln(1+e^2)+\frac{1}{10^{30}}", "wrong"),
        (r"\sin(\pi)", r"\frac{\sin(\pi)(x^2-1)}{(x-1)(x+1)}", "correct"),  # both are zero
    ],
)
def test_functions_are_the_same_where_values_agree(gold: str, answer: str, status: str) -> None:
    (verdict,) = judge(Maths(), gold, rf"\boxed{{{answer}}}")
    assert verdict.status == status, verdict.reason


def test_without_math_verify_it_is_unknown_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maths, "installed", lambda: False)
    verifier = Maths()
    assert (verifier.name, verifier.symbolic) == ("maths", None)
    (verdict,) = judge(verifier, "x+1", r"\boxed{\frac{x^2-1}{x-1}}")
    assert (verdict.status, verdict.score) == ("unknown", None)
    assert "math-verify is not installed" in verdict.reason
    with pytest.raises(ModuleNotFoundError, match="forethought\\[math\\]"):
        Maths(symbolic=True)


@needs_math_verify
def test_a_worker_that_cannot_start_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Maths()
    assert verifier.symbolic is not None

    def broken(*pairs: object) -> None:
        raise RuntimeError("no math-verify worker: it ended")

    monkeypatch.setattr(verifier.symbolic, "compare", broken)
    (verdict,) = judge(verifier, "x+1", r"\boxed{\frac{x^2-1}{x-1}}")
    assert (verdict.status, verdict.score) == ("error", None)
    assert "no math-verify worker" in verdict.reason


@pytest.mark.parametrize("gold", [None, "", "  ", "$ $", "7" * 2000, "{" * 100])
def test_bad_golds_are_refused_by_name(gold: str | None) -> None:
    with pytest.raises(ValueError, match="p1"):
        judge(Maths(symbolic=False), gold, r"\boxed{1}")
    with pytest.raises(ValueError, match="p1"):
        Maths(symbolic=False).validate([Problem("p0", "?", "1"), Problem("p1", "?", gold)])


def test_golds_that_only_a_library_could_read_are_refused_without_it() -> None:
    with pytest.raises(ValueError, match=r"p1.*int"):
        Maths(symbolic=False).validate([Problem("p1", "?", r"\int_0^1 x^2 dx")])


@pytest.mark.parametrize("settings", [{"symbolic": "yes"}, {"timeout": 0}, {"timeout": -1.0}])
def test_bad_settings_are_refused(settings: dict[str, str | float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Maths(**settings)  # type: ignore[arg-type]


def test_hostile_candidates_end_in_verdicts() -> None:
    answers = ["7" * 10**6, "(" * 500 + "1" + ")" * 500, "9^{9^{9^9}}", "(10^8)!", "\x00", "__import__('os').system('false')"]
    texts = [rf"\boxed{{{answer}}}" for answer in answers] + ["{" * 10**6, "\x00" * 1000, "</think>" * 10**5]
    verdicts = judge(Maths(timeout=1.0), "5", *texts)
    assert [v.status for v in verdicts] == ["unknown"] * len(texts)


AMBIGUOUS = [
    ("A", "(A) and (B)", "unknown"),
    ("A", "(A) or (B)", "unknown"),
    ("A", "(A) nor (B)", "unknown"),
    ("A", r"\text{(A) or (B)}", "unknown"),
    ("A", "(A) is incorrect", "unknown"),
    ("A", r"(A) \text{ is wrong}", "unknown"),
    (r"\text{(B) and (C)}", r"\text{(C) and (B)}", "unknown"),
    ("A", "(A) 5", "correct"),
    ("A", "(A) red and blue", "correct"),
    ("C", r"\text{(C) } 5", "correct"),
    ("a+b", "(a) + b", "correct"),
    (r"\pm1\pm2", r"\pm3", "unknown"),
    ("1+i,-1-i", r"\pm1\pm i", "unknown"),
    (r"x-y=\pm1", r"y-x=\pm1", "unknown"),
    (r"(\pm1,\pm2)", "(1,2),(-1,-2),(1,-2),(-1,2)", "unknown"),
    (r"1\pm\sqrt2", r"1+\sqrt2,1-\sqrt2", "correct"),
    (r"\pm 2", "2,-2", "correct"),
    ("(1,2)", r"\{(1,2)\}", "unknown"),
    ("(1,2)", r"\{(1,3)\}", "wrong"),
    (r"\langle 1,2\rangle", "(1,2)", "unknown"),
    ("(3,4)", "[3,4]", "unknown"),
    ("[0,1)", "[0,1]", "wrong"),
    (r"(0,\infty)", r"[0,\infty)", "wrong"),
    (r"\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5}", "1", "unknown"),
    (r"\sqrt[3]{1-\sqrt2}", r"-\sqrt[3]{\sqrt2-1}", "unknown"),
    (r"\sqrt[3]{-x}", r"-\sqrt[3]{x}", "unknown"),
    ("(-27)^{1/3}", "-3", "unknown"),
    ("(-8)^{2/3}", "4", "unknown"),
    (r"\sqrt[3]{-27}", "-3", "correct"),
    (r"\sqrt[3]{x+1}", r"\sqrt[3]{x+2}", "wrong"),
    (r"\sqrt[3]{1+\sqrt2}", r"(1+\sqrt2)^{1/3}", "correct"),
    (r"\frac{x^2}{2}+x+C", r"\frac{(x+1)^2}{2}+C", "unknown"),
    (r"\frac12\sin^2x+C", r"-\frac14\cos2x+C", "unknown"),
    (r"\frac\pi2+k\pi", r"-\frac\pi2+k\pi", "unknown"),
    ("x+C", "x+C", "correct"),
    ("2x+3", "2x+4", "wrong"),
    ("IV", "VI", "unknown"),
    ("on", "no", "unknown"),
    ("No", "no", "correct"),
    ("Yes", "No", "wrong"),
    (r"\text{No}", "no", "correct"),
    ("false", "incorrect", "unknown"),
    ("diverges", "divergent", "unknown"),
    ("gray", "grey", "unknown"),
    ("twelve", "dozen", "unknown"),
    ("5000", "5k", "unknown"),
    ("3+4i", "3+4j", "unknown"),
    ("Monday", "Tuesday", "wrong"),
    ("Evelyn", "Carla", "wrong"),
    ("red", "blue", "unknown"),
    ("increasing", "decreasing", "unknown"),
    ("5", "6", "wrong"),
]
"""What is wrong only if it is proven to be, and right only if nothing else can be meant."""


@needs_math_verify
@pytest.mark.parametrize(("gold", "answer", "status"), AMBIGUOUS)
@pytest.mark.parametrize("turned", [False, True])
def test_only_what_is_proven(gold: str, answer: str, status: str, turned: bool) -> None:
    if turned:
        gold, answer = answer, gold
    (verdict,) = judge(Maths(), gold, rf"\boxed{{{answer}}}")
    assert verdict.status == status, verdict.reason


SAID = [
    ("5,-3", "Final answer: $x=5$ or $x=-3$", "correct"),
    ("5", "The answer is $5$ or $6$.", "wrong"),
    ("5", "The answer is $5$ and $6$", "wrong"),
    ("5", "The answer is $5$ if x>0 and $6$ otherwise", "unknown"),
    ("10", "The answer is $10$ to $20$.", "unknown"),
    ("3000000", "The answer is $3$ million dollars.", "unknown"),
    ("3", "The answer is $3$ million dollars.", "unknown"),
    ("2/3", "The answer is $2$/3.", "correct"),
    ("2", "The answer is $2$/3.", "wrong"),
    ("2", "The answer is $2$:$3$", "unknown"),
    ("2", "The answer is $x$ = $2$", "correct"),
    ("3", "The answer is $n$=3", "correct"),
    ("15", r"\boxed{15} The final answer is $3$ more than $12$.", "correct"),
    ("5", "The answer is $5$ apples.", "correct"),
    ("5", "The answer is $5$, as we saw.", "correct"),
    ("5", "The answer is:\n\n\\[\n5\n\\]", "correct"),
    ("1/2", "The answer is:\n$$\n\\frac12\n$$", "correct"),
    ("1", "The answer is:\n1. 5\n2. 6", "unknown"),
    ("5", "The answer is $5$ because 2+3=5.", "correct"),
    ("18", "The answer is $18.", "correct"),
    ("5", "The answer is: 5", "correct"),
    ("5", "The answer is $5$ (five).", "correct"),
    ("5", "The answer is $5$", "correct"),
    ("5", "Answer:\n5", "correct"),
    ("5", "The answer is $5$ dollars and we are done", "correct"),
]


@pytest.mark.parametrize(("gold", "text", "status"), SAID)
def test_an_announcement_is_read_to_its_end(gold: str, text: str, status: str) -> None:
    (verdict,) = judge(Maths(symbolic=False), gold, text)
    assert verdict.status == status, verdict.meta


ROOTS = r"(\sqrt2+\sqrt3+\sqrt5+\sqrt7+\sqrt{11}+\sqrt{13})"


@pytest.mark.parametrize(
    "text", [f"({ROOTS}^5)^{{60}}", f"{ROOTS}^{{60}}", "+".join(["(a+b)^{63}"] * 90), r"}\boxed{1},\boxed{" * 11000]
)
def test_no_answer_takes_long_to_read(text: str) -> None:
    start = time.perf_counter()
    (verdict,) = judge(Maths(symbolic=False), "7", rf"\boxed{{{text}}}")
    assert verdict.status in ("unknown", "wrong")
    assert time.perf_counter() - start < 10  # a bound for safety
