"""Value types: JSON both ways, the two ways to add a bill, and where the answer begins."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from forethought.schema import Candidate, Completion, Cost, Problem, Solution, Verdict

COST = Cost(
    prompt=5, cached=2, kept=7, drafted=4, accepted=3, discarded=1, forwards=6, critical=5, peak_kv_bytes=100, seconds=1.5
)
OTHER = Cost(prompt=1, kept=2, injected=3, probe=4, verifier=5, forwards=2, critical=9, peak_kv_bytes=70, seconds=0.5)
COMPLETION = Completion(
    "text", [1, 2], "stop", stop_reason="\n\n", logprobs=[-0.5, -1.0], certainty=[2.0, 1.5], cost=COST, seed=3, index=1
)
VERDICT = Verdict("unknown", score=0.5, reason="unreadable", verifier="maths", cost=OTHER)
CANDIDATE = Candidate("text", answer="4", score=0.1, verdicts=[VERDICT, VERDICT], completion=COMPLETION)
VALUES = [
    Problem("p1", "how many?", "4", "gsm8k", 2, {"source": "x", "steps": [1, 2]}), Problem("p2", "?"), COST, COMPLETION,
    Completion("", [], "error", error="ValueError: no"), VERDICT, CANDIDATE, Candidate("text"),
    Solution("p1", "4", [CANDIDATE], 0, COST, {"rounds": 2}), Solution("p1", None),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_json_goes_both_ways(value: Any) -> None:
    plain = value.to_json()
    assert type(value).from_json(json.loads(json.dumps(plain))) == value
    assert set(plain) == {field.name for field in dataclasses.fields(value)}


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_unknown_keys_are_refused_and_values_are_frozen(value: Any) -> None:
    with pytest.raises(ValueError, match="surprise"):
        type(value).from_json({**value.to_json(), "surprise": 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)


def test_missing_keys_are_refused_and_optional_ones_may_be_left_out() -> None:
    with pytest.raises(TypeError):
        Completion.from_json({"text": ""})
    assert Problem.from_json({"id": "a", "question": "b"}) == Problem("a", "b")
    assert Verdict.from_json({"status": "correct", "cost": None}).status == "correct"


def test_any_problem_goes_both_ways() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    meta = st.dictionaries(st.text(), st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
    texts = st.none() | st.text()
    problems = st.builds(Problem, st.text(), st.text(), texts, st.text(), st.none() | st.integers(), meta)

    @hypothesis.given(problems)
    def check(problem: Problem) -> None:
        assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem

    check()


# ---- bills -----------------------------------------------------------------------------------------------------------

COUNTS = [f.name for f in dataclasses.fields(Cost) if f.name not in ("critical", "peak_kv_bytes", "seconds")]


def test_one_after_the_other_adds_up_but_for_the_peak() -> None:
    total = COST + OTHER
    assert all(getattr(total, name) == getattr(COST, name) + getattr(OTHER, name) for name in COUNTS)
    assert (total.critical, total.seconds, total.peak_kv_bytes) == (14, 2.0, 100)


def test_side_by_side_takes_the_longest_and_all_the_memory() -> None:
    total = Cost.parallel([COST, OTHER])
    assert all(getattr(total, name) == getattr(COST, name) + getattr(OTHER, name) for name in COUNTS)
    assert (total.critical, total.seconds, total.peak_kv_bytes) == (9, 1.5, 170)
    assert Cost.parallel([]) == Cost()
    assert Cost.parallel(iter([COST])) == COST


def test_adding_is_what_adding_should_be() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    costs = st.builds(Cost, **{f.name: st.integers(0, 10**9) for f in dataclasses.fields(Cost)})

    @hypothesis.given(costs, costs, costs)
    def check(a: Cost, b: Cost, c: Cost) -> None:
        assert a + Cost() == a
        assert a + b == b + a
        assert (a + b) + c == a + (b + c)
        assert Cost.parallel([a, b, c]) == Cost.parallel([Cost.parallel([c, b]), a])
        one_by_one, at_once = a + b, Cost.parallel([a, b])
        assert at_once.critical <= one_by_one.critical
        assert at_once.peak_kv_bytes >= one_by_one.peak_kv_bytes
        assert at_once.computed == one_by_one.computed == a.computed + b.computed

    check()


def test_computed_tokens_leave_out_what_was_cached_and_count_accepted_drafts_once() -> None:
    assert COST.computed == 5 + 7 + 1
    assert OTHER.computed == 1 + 2 + 3 + 4 + 5
    assert COST.flops(1000) == 2 * 1000 * 13


# ---- reasoning and answer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>a b</think>42", "a b", "42"),
        ("a b\n</think>\n\n42 ", "a b", "42"),
        ("42", "", "42"),
        ("<think>one</think>two</think>three", "one</think>two", "three"),
        ("<think>never ended", "", "<think>never ended"),
        ("</think>", "", ""),
        ("", "", ""),
    ],
)
def test_the_answer_is_behind_the_last_end_of_thought(text: str, reasoning: str, answer: str) -> None:
    completion = Completion(text, [], "stop")
    assert (completion.reasoning, completion.answer) == (reasoning, answer)
