"""Tests whose assertions are compared outside the sandbox: the verdict is what the assertion itself says."""


import gc
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import judge, problem

from forethought.verifiers import asserts
from forethought.verifiers.code import Code
from forethought.verifiers.sandbox import Program, Ran


@pytest.mark.parametrize(
    ("test", "right", "wrong"),
    [
        ("f(1, k=(2,)) == [3]", [3], {"tuple": [3]}),
        ("[3] == f(1)", [3], [4]),
        ("abs(f(1) - 0.5) < 1e-6", 0.5000001, 0.51),
        ("math.isclose(f(1), 2.0, rel_tol=0.01)", 2.01, 2.1),
        ("f(1) is True", True, 1),
        ("f(1) == None", None, 0),
        ("f(1)", True, False),
        ("not f(1)", False, True),
        ("set(f(1)) == set([1, 2])", {"set": [2, 1]}, {"set": [1]}),
        ("sorted(f(1)) == [1, 2]", [1, 2], [2, 1]),
        ("f(1) == 0.5", {"fraction": [1, 2]}, {"fraction": [1, 0]}),
        ("f(1) == 0.5", {"decimal": "0.5"}, {"decimal": "sNaN"}),
        ("f(1) == {1, 2}", {"keys": [2, 1]}, [1, 2]),
        ("f(1) == [1]", [1], {"array": [1]}),
        ("f(-1, set(), float('inf')) == -2 ** 70", {"int": hex(-(2**70))}, 2),
    ],
)
def test_assertions_become_calls(test: str, right: object, wrong: object) -> None:
    (call,) = asserts.calls(f"assert {test}, 'message'", "f") or []
    assert call.accepts(right)
    assert not call.accepts(wrong)
    assert not call.accepts({"unplain": "object"})


kinds = st.sampled_from("int complex tuple set dict bytes keys items fraction decimal array unplain".split())
encoded = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(kinds, inner, max_size=2),
)
hows = st.sampled_from(["equal", "is", "json", "close", "<", "<="])


@given(encoded, hows, st.sampled_from([1, 0.5, [1.0], {"a": 1}, True, {(1,)}, None]), st.sampled_from([0.0, 0.1]))
def test_any_answer_is_judged(answer: object, how: str, want: object, tolerance: float) -> None:
    assert asserts.Call([], want, absolute=tolerance, how=how).accepts(answer) in (True, False)


def test_huge_numbers_are_reported(code: Code) -> None:
    task = problem("assert add(1, 2) == 10 ** 5000")
    right, wrong = judge(code, task, "def add(a, b): return 10 ** 5000", "def add(a, b): return 10 ** 5000 + 1")
    assert (right.status, wrong.status) == ("correct", "wrong")


@pytest.mark.parametrize(
    "test", ["assert f(x) == 1", "assert g(1) == 1", "x = 1\nassert f(1) == 1", "assert f(f(1)) == 1", "assert f(1) < 2", ""]
)
def test_other_tests_stay_a_program(test: str) -> None:
    assert asserts.calls(test, "f") is None


def test_tests_are_read_in_several_threads_at_once() -> None:
    """Collecting garbage in the middle of ``ast.parse`` lets another thread in, which CPython 3.11 does not survive."""
    gc.callbacks.append(let_in := lambda *_: time.sleep(0))
    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(50)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(lambda _: asserts.calls("assert f(1) == [" + "[1, (2, 3)], " * 300 + "]", "f"), range(40)))
    finally:
        gc.callbacks.remove(let_in)
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)
    assert all(calls and len(calls[0].want) == 300 for calls in read)


RETURNS = (
    "{1: 2}.keys()", "{'a': 1}.items()", "{1: 2}.values()", "map(int, '12')", "filter(None, [0, 1])", "zip([1], [2])", "range(3)",
    "(i for i in [2, 1])", "reversed([1, 2])", "enumerate('a')", "[1, 2]", "(1, 2)", "{1, 2}", "frozenset([1, 2])",
    "'12'", "b'12'",
    "__import__('collections').deque([1, 2])", "__import__('collections').Counter('ab')",
    "__import__('collections').OrderedDict(a=1)",
    "__import__('fractions').Fraction(1, 2)", "__import__('fractions').Fraction(1, 3)", "__import__('decimal').Decimal('0.5')",
    "__import__('decimal').Decimal('0.1')", "__import__('decimal').Decimal('NaN')", "[__import__('fractions').Fraction(2)]",
    "0.5", "0.1", "2", "1", "True", "None", "1 + 0j", "float('nan')", "__import__('re').match('a', 'ab')", "object()", "[]", "''",
    "__import__('datetime').date(2024, 1, 2)", "__import__('array').array('i', [1, 2])", "[{1: 2}.keys()]", "10 ** 5000",
)  # fmt: skip
CHECKS = (
    "f() == [1, 2]", "f() == (1, 2)", "f() == {1, 2}", "f() == {1}", "f() == {'a': 1}", "f() == {('a', 1)}",
    "f() == 0.5", "f() == 0.1",
    "f() == 2", "f() == [2]", "f()", "not f()", "f() is True", "f() is None", "list(f()) == [1, 2]", "sorted(f()) == [1, 2]",
    "set(f()) == {1, 2}", "tuple(f()) == (1, 2)", "len(f()) == 2", "bool(f()) == True", "list(f()) == [(1, 2)]",
    "list(f()) == [0, 1, 2]",
    "abs(f() - 0.5) < 1e-6", "abs(f() - 0.5) <= 0.5", "abs(f() - 0.5) < 0.5", "math.isclose(f(), 0.5)",
    "math.isclose(f(), 0.1, rel_tol=1e-3)", "[1, 2] == f()", "f() == '12'", "f() == [{1}]", "f() == 10 ** 5000",
)  # fmt: skip


@pytest.fixture(scope="module")
def returned(code: Code) -> dict[tuple[str, str | None], Ran]:
    """What the sandbox has each function of :data:`RETURNS` say, through each wrap."""
    wraps = {call.wrap for check in CHECKS for call in asserts.calls(f"assert {check}", "f") or []}
    programs = [(text, wrap) for text in RETURNS for wrap in wraps]

    def ran(program: tuple[str, str | None]) -> Ran:
        return code.sandbox.run(Program([f"def f(): return {program[0]}"], "f", [((), {})], wraps=[program[1]]))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(programs, pool.map(ran, programs), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_a_verdict_is_what_the_assert_itself_says(check: str, returned: dict[tuple[str, str | None], Ran]) -> None:
    (call,) = asserts.calls(f"assert {check}", "f") or []
    for text in RETURNS:
        namespace: dict[str, Any] = {"math": math}
        exec(f"def f(): return {text}", namespace)
        try:
            right = bool(eval(check, namespace))
        except (TypeError, ValueError, ArithmeticError):
            right = False
        ran = returned[text, call.wrap]
        assert (ran.status == "passed" and call.accepts(ran.values[0])) == right, (text, ran)


def test_generators_and_views_are_judged_as_the_assert_says(code: Code) -> None:
    task = problem("assert sorted(add(1, 2)) == [1, 2]\nassert set(add(3, 4)) == {3, 4}")
    for body, status in (("(x for x in (b, a))", "correct"), ("{a: 0, b: 0}.keys()", "correct"), ("map(int, [a, a])", "wrong")):
        assert judge(code, task, f"def add(a, b): return {body}")[0].status == status, body
    assert judge(code, problem("assert add(1, 2)"), "import re\ndef add(a, b): return re.match('x', 'xy')")[0].status == "correct"


def test_numpy_arrays_are_no_lists(code: Code) -> None:
    """``assert array == [3, 4]`` raises in Python; for pairs of JSON an array is a list."""
    pytest.importorskip("numpy")
    text = "import numpy as np\ndef add(a, b): return np.array([a, b])"
    assert judge(code, problem("assert add(1, 2) == [1, 2]"), text)[0].status == "wrong"
    assert judge(code, problem("assert list(add(1, 2)) == [1, 2]"), text)[0].status == "correct"
    assert judge(code, problem([[[1, 2], [1, 2]]]), text)[0].status == "correct"
    assert (
        judge(code, problem("assert add(1, 2) == 3.0"), "import numpy as np\ndef add(a, b): return np.float64(a + b)")[0].status
        == "correct"
    )
