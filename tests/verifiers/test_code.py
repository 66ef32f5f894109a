"""Programs judged: what is read from a text, which tests can be compared outside, references that pass, broken ones that fail."""

import asyncio
import gc
import gzip
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.schema import Problem, Verdict
from forethought.verifiers import asserts
from forethought.verifiers.code import Code
from forethought.verifiers.outputs import same_output
from forethought.verifiers.programs import readings
from forethought.verifiers.sandbox import Program, Ran, Sandbox

ADD = "def add(a, b):\n    return a + b\n"
PROMPT = 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """Sum."""\n'


@pytest.fixture(scope="module")
def code() -> Iterator[Code]:
    verifier = Code(floor=2.0)
    yield verifier
    verifier.close()


def judge(code: Code, problem: Problem, *texts: str) -> list[Verdict]:
    return asyncio.run(code.ajudge(problem, texts))


def problem(tests: object, entry_point: str | None = "add", **meta: Any) -> Problem:
    return Problem("p", "?", meta={"entry_point": entry_point, "tests": {"hidden": tests}, **meta})


PLAIN = problem("assert add(1, 2) == 3\nassert add(1.5, 2) == 3.5", reference=ADD)
SHARED = problem("for i in range(3):\n    assert add(i, 1) == i + 1")


@pytest.mark.parametrize("task", [PLAIN, SHARED, problem([[[1, 2], 3], [[[1], [2]], [1, 2]]])], ids=["plain", "shared", "pairs"])
@pytest.mark.parametrize(
    ("text", "status"),
    [
        (ADD, "passed"),
        (f"Sure:\n```python\n{ADD}```\nDone.", "passed"),
        ("def add(a, b):\n    return a + b + 1", ("failed_assert", "runtime_error")),
        ("def add(a, b):\n    a + b", "failed_assert"),
        ("def add(a, b):\n    while True: pass", "timeout"),
        ("def add(a, b):\n    raise KeyError(a)", "runtime_error"),
        ("def add(a, b)\n    return a + b", "syntax_error"),
        ("def plus(a, b):\n    return a + b", "no_entry_point"),
        (f"{ADD}raise SystemExit", "runtime_error"),
        (f"{ADD}if __name__ == '__main__':\n    print(add(int(input()), 1))", "passed"),
    ],
)
def test_verdicts(code: Code, task: Problem, text: str, status: str | tuple[str, ...]) -> None:
    (verdict,) = judge(code, task, text)
    assert verdict.meta["sandbox"] in status, verdict
    assert verdict.status == ("correct" if status == "passed" else "wrong")
    assert verdict.score == float(status == "passed")
    assert verdict.meta["spoofable"] == (task is SHARED)
    assert verdict.meta["tier"] == code.sandbox.tier


def test_text_without_code_is_unknown(code: Code) -> None:
    for text in ("", "I do not know.", "<think>def add(a, b): return a + b</think>Sorry, no."):
        (verdict,) = judge(code, PLAIN, text)
        assert (verdict.status, verdict.score, verdict.meta["sandbox"]) == ("unknown", None, "no_entry_point")


def test_visible_and_hidden_are_two_verifiers(code: Code) -> None:
    task = Problem(
        "q", "?", meta={"entry_point": "add", "tests": {"visible": "assert add(1, 2) == 3", "hidden": "assert add(2, 2) == 4"}}
    )
    visible = Code("visible", sandbox=code.sandbox)
    text = "def add(a, b): return 3"
    assert [judge(verifier, task, text)[0].status for verifier in (visible, code)] == ["correct", "wrong"]
    visible.close()


def test_stdin_and_stdout(code: Code) -> None:
    pairs = [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 5", "stdout": "10"}]
    right = "a, b = map(int, input().split())\nprint(a + b, '')"
    verdicts = judge(code, problem(pairs, None, reference=right), right, "print(3)", "print(int(input()))")
    assert [verdict.meta["sandbox"] for verdict in verdicts] == ["passed", "failed_assert", "runtime_error"]


def test_tolerance_is_the_tasks(code: Code) -> None:
    text = "def add(a, b): return a + b + 1e-7"
    assert judge(code, problem([[[1, 2], 3.0]]), text)[0].status == "wrong"
    assert judge(code, problem([[[1, 2], 3.0]], tolerance=1e-6), text)[0].status == "correct"


def test_setup_runs_between(code: Code) -> None:
    task = problem(["assert size(root) == 1"], "size", setup="root = Node()\r\n")
    (verdict,) = judge(code, task, "class Node: pass\ndef size(node): return int(type(node) is Node)")
    assert (verdict.status, verdict.meta["spoofable"]) == ("correct", True)


@pytest.mark.parametrize(
    ("got", "want", "absolute", "relative", "right"),
    [
        ("3 \n\n", "3", 0, 0, True),
        ("3\r\n4\r\n", "3\n4\n", 0, 0, True),
        ("1 2", "1  2", 0, 0, False),
        ("1 2", "1  2", 1e-9, 0, True),
        (" 3", "3", 0, 0, False),
        ("0.3333334", "0.3333333", 0, 0, False),
        ("0.3333334", "0.3333333", 1e-6, 0, True),
        ("1000001.0", "1000000", 1e-6, 1e-6, True),
        ("1000001", "1000000", 1e-6, 1e-6, False),
        ("1000003.0", "1000000", 1e-6, 1e-6, False),
        ("3.0", "3", 1e-6, 0, True),
        ("x 1.00000001", "x 1", 1e-6, 0, True),
        ("y 1.0", "x 1", 1e-6, 0, False),
        ("1.0 2.0", "1.0", 1e-6, 0, False),
        ("nan", "1.0", 1e-6, 1e-6, False),
        ("1e9999", "1.0", 1e-6, 1e-6, False),
        ("1_0.0", "10", 1e-6, 0, False),
        ("٣.0", "3", 1e-6, 0, False),
        ("9" * 5000, "1.5", 1e-6, 0, False),
        ("", "0.0", 1e-6, 0, False),
    ],
)
def test_outputs_are_compared(got: str, want: str, absolute: float, relative: float, right: bool) -> None:
    assert same_output(got, want, absolute, relative) is right


def test_outputs_have_the_tasks_tolerance(code: Code) -> None:
    pairs = [{"stdin": "1 3\n", "stdout": "0.333333\n"}]
    text = "a, b = map(int, input().split())\nprint(a / b)"
    assert judge(code, problem(pairs, None), text)[0].status == "wrong"
    assert judge(code, problem(pairs, None, tolerance=1e-5), text)[0].status == "correct"
    assert judge(code, problem(pairs, None, relative_tolerance=1e-5), text)[0].status == "correct"
    assert (
        judge(code, problem([[[1, 3], 0.333333]], relative_tolerance=1e-5), "def add(a, b): return a / b")[0].status == "correct"
    )
    with pytest.raises(ValueError, match=r"p: tolerance=-1\.0 is no tolerance"):
        judge(code, problem(pairs, None, tolerance=-1), text)


@pytest.mark.parametrize(
    "text",
    [
        "import sys\nsys.stdout.write('ok')\nsys.exit(0)",
        "import sys\nprint('ok')\nsys.exit()",
        "print('ok')\nquit()",
        "print('ok')\nexit(0)",
        "import os\nprint('ok', flush=True)\nos._exit(0)",
        "import atexit\natexit.register(print, 'ok')",
        (
            "import atexit, io, os, sys\nsys.stdout = io.StringIO()\n"
            "atexit.register(lambda: os.write(1, sys.stdout.getvalue().encode()))\nprint('ok')"
        ),
        "out = open(1, 'w')\nout.write('ok')",
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)\nprint('ok')",
        "import sys\nsys.stdout.buffer.write(b'ok')",
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print('ok'))).start()",
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\npool.submit(print, 'ok')",
        "import atexit\natexit.register(lambda: 1 / 0)\natexit.register(print, 'ok')",
        "class Last:\n    def __del__(self): print('ok')\nlast = Last()",
        (
            "import threading, sys\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(1 << 26)\n"
            "t = threading.Thread(target=print, args=['ok'])\nt.start()"
        ),
    ],
)
def test_output_at_exit_counts(code: Code, text: str) -> None:
    (verdict,) = judge(code, problem([{"stdin": "", "stdout": "ok"}], None), text)
    assert verdict.status == "correct", verdict


@pytest.mark.parametrize(
    "text", ["print('ok')\nraise SystemExit(1)", "print('ok')\n1 / 0", "import os\nprint('ok', flush=True)\nos.abort()"]
)
def test_right_output_does_not_excuse_a_failure(code: Code, text: str) -> None:
    assert judge(code, problem([{"stdin": "", "stdout": "ok"}], None), text)[0].status == "wrong"


@pytest.mark.parametrize(
    "body",
    ["import os; os.fork()", "import socket; socket.socket()", "open('/usr/mine', 'w')", "import subprocess as s; s.run('ls')"],
)
def test_what_the_sandbox_refuses_is_neither_wrong_nor_our_error(code: Code, body: str) -> None:
    for task in (PLAIN, SHARED):
        (verdict,) = judge(code, task, f"def add(a, b):\n    {body}")
        assert (verdict.status, verdict.score, verdict.meta["sandbox"]) == ("unknown", None, "refused"), verdict


@pytest.mark.parametrize("text", ["import os\ndef add(a, b): os._exit(0)", f"import atexit, os\n{ADD}raise SystemExit(0)"])
def test_leaving_early_does_not_pass_shared_tests(code: Code, text: str) -> None:
    assert judge(code, SHARED, text)[0].status == "wrong"


@pytest.mark.parametrize(
    "task",
    [
        problem("assert add(1, 2) == 3", reference="def add(a, b): return 0"),
        Problem("p", "?"),
        problem([]),
        problem("assert f()", None),
    ],
    ids=["broken reference", "no tests", "empty tests", "no entry point"],
)
def test_what_cannot_be_judged_is_refused(code: Code, task: Problem) -> None:
    with pytest.raises(ValueError, match=r"^p"):
        judge(code, task, ADD)


def test_validate_finds_tests_that_show_nothing(code: Code) -> None:
    good, lax = PLAIN, Problem("lax", "?", meta={**PLAIN.meta, "tests": {"hidden": "assert add(1, 2)"}})
    assert asyncio.run(code.validate([good])) == []
    assert asyncio.run(code.validate([good, lax])) == ["lax: the reference is correct, a wrong program correct"]


class Scripted(Sandbox):
    """Answers in turn, and notes how it was asked."""

    def __init__(self, *answers: Ran) -> None:
        self.tier, self.workers = "none", 1
        self.answers, self.asked = list(answers), list[tuple[float, bool]]()

    def run(self, program: Program, limits: Any = None, *, alone: bool = False) -> Ran:
        self.asked.append((limits.seconds, alone))
        return self.answers.pop(0)


def test_time_follows_the_reference_and_a_timeout_is_repeated_alone() -> None:
    right = Ran("passed", "none", values=(3, 3.5), seconds=2.0)
    box = Scripted(right, Ran("timeout", "none"), right, right)
    code = Code(sandbox=box, floor=4.0, factor=3.0, ceiling=50.0)
    assert [judge(code, PLAIN, ADD)[0].status for _ in range(2)] == ["correct", "correct"]
    assert box.asked == [(50.0, False), (6.0, False), (6.0, True), (6.0, False)]
    code.close()


def test_our_own_trouble_is_an_error() -> None:
    box = Scripted(Ran("infra_error", "none", "no room"), Ran("infra_error", "none", "no room"))
    code = Code(sandbox=box)
    (verdict,) = judge(code, PLAIN, ADD)
    assert (verdict.status, verdict.score, verdict.reason) == ("error", None, "no room")
    code.close()


def reading(text: str, prompt: str = "") -> str:
    """The first reading that would run; the sandbox's choice, here for harmless texts."""
    for source in readings(text, "total", prompt):
        try:
            names = compile(source, "test", "exec").co_names
        except SyntaxError:
            continue
        if "total" in names:
            return source
    return ""


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("    return sum(xs)\n", PROMPT),
        ("    return sum(xs)\r\n", PROMPT.replace("\n", "\r\n")),
        ("    return sum(xs)\n\nThis adds them up.", PROMPT),
        ("    return sum(xs)\n\ndef other(:\n", PROMPT),
        ("return sum(xs)", PROMPT),
        ("s = 0\nfor x in xs:\n    s += x\nreturn s", PROMPT),
        ("```python\n    return sum(xs)\n```", PROMPT),
        ("```\nreturn sum(xs)\n```", PROMPT),
        ("def total(xs: List[int]) -> int:\n    return sum(xs)", PROMPT),
        (PROMPT + "    return sum(xs)", PROMPT),
        ("from __future__ import annotations\ndef total(xs):\n    return sum(xs)", PROMPT),
        ("Here it is:\n\ndef total(xs):\n    return sum(xs)\n\nI hope it helps.", ""),
        ("LIMIT = 3\n\ndef total(xs):\n    return sum(xs)", ""),
        ("```python\ndef total(xs): return 0\n```\nBetter:\n```python\ndef total(xs): return sum(xs)\n```", ""),
        (
            "```python\ndef total(xs): return sum(xs)\n```\nUse:\n```python\nprint(total([1, 2, 3]), 'a much longer block')\n```",
            "",
        ),
        ("```py\ndef total(xs):\n    return sum(xs)", ""),
        ("<think>def total(xs): return 0</think>\n```\ndef total(xs): return sum(xs)\n```", ""),
        ("~~~\ntotal = sum\n~~~", ""),
    ],
)
def test_program_is_read_from_the_text(text: str, prompt: str) -> None:
    namespace: dict[str, Any] = {}
    exec(reading(text, prompt), namespace)
    assert namespace["total"]([1, 2, 3]) == 6


def test_hostile_text_is_read_in_time() -> None:
    for text in (
        "\n" * 200_000,
        " " * 200_000,
        "```\n" * 50_000,
        "def " * 50_000,
        "a" * 200_000,
        "total:" * 50_000,
        "x.(" * 50_000,
    ):
        readings(text, "total", PROMPT)


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


# --- the benchmarks


def human_eval(path: Path) -> list[Problem]:
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return [
        Problem(
            row["task_id"],
            row["prompt"],
            meta={
                "prompt": row["prompt"],
                "entry_point": row["entry_point"],
                "tests": {"hidden": row["test"]},
                "reference": row["canonical_solution"],
            },
        )
        for row in rows
    ]


def mbpp(path: Path) -> list[Problem]:
    problems = []
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if 11 <= row["task_id"] <= 510:
            names = re.findall(r"^(?:def|class)\s+(\w+)", row["code"], re.M)
            entry = [name for name in names if re.search(rf"\b{name}\s*\(", row["test_list"][0])][-1]
            tests, setup = {"hidden": row["test_list"]}, row["test_setup_code"]
            meta = {"entry_point": entry, "tests": tests, "setup": setup, "reference": row["code"]}
            problems.append(Problem(f"MBPP/{row['task_id']}", row["text"], meta=meta))
    return problems


async def complaints(code: Code, problems: Sequence[Problem]) -> list[str]:
    found = await asyncio.gather(*(code.validate([problem]) for problem in problems))
    return [text for texts in found for text in texts]


def shared(code: Code, problems: Sequence[Problem]) -> int:
    """How many have tests that need the program's process."""
    return sum(code._tests(problem).tests is not None for problem in problems)


@pytest.mark.slow
def test_references_of_human_eval_pass(benchmark_data: Path, code: Code) -> None:
    problems = human_eval(benchmark_data / "humaneval" / "HumanEval.jsonl.gz")
    assert len(problems) == 164
    assert asyncio.run(complaints(code, problems)) == []
    assert shared(code, problems) == 8


@pytest.mark.slow
def test_references_of_human_eval_plus_pass_but_one(benchmark_data: Path, code: Code) -> None:
    """HumanEval/32 unpacks the candidate's float: no solution passes these tests."""
    pytest.importorskip("numpy")
    problems = human_eval(benchmark_data / "humanevalplus" / "HumanEvalPlus-OriginFmt.jsonl.gz")
    assert len(problems) == 164
    (complaint,) = asyncio.run(complaints(code, problems))
    assert complaint.startswith("HumanEval/32: its own reference does not pass: runtime_error")


@pytest.mark.slow
def test_references_of_mbpp_pass(benchmark_data: Path, code: Code) -> None:
    problems = mbpp(benchmark_data / "mbpp" / "mbpp.jsonl")
    assert len(problems) == 500
    assert asyncio.run(complaints(code, problems)) == []
    assert shared(code, problems) == 1


@pytest.mark.slow
def test_broken_references_fail(benchmark_data: Path, code: Code) -> None:
    """Of every eighth problem of HumanEval: nothing returned, an exception, a syntax error, another name."""

    async def statuses(problem: Problem) -> list[str]:
        source, entry = problem.meta["prompt"] + problem.meta["reference"], problem.meta["entry_point"]
        broken = [
            re.sub(r"\breturn\b", "_ =", source),
            f"{source}\ndef {entry}(*_):\n    raise KeyError(0)",
            f"{source}\n)",
            source.replace(f"def {entry}(", f"def other_{entry}("),
        ]
        return [verdict.status for verdict in await code.ajudge(problem, [f"```python\n{text}\n```" for text in broken])]

    problems = human_eval(benchmark_data / "humaneval" / "HumanEval.jsonl.gz")[::8]

    async def every() -> list[list[str]]:
        return list(await asyncio.gather(*map(statuses, problems)))

    for problem, found in zip(problems, asyncio.run(every()), strict=True):
        assert found == ["wrong"] * 4, problem.id
