"""Programs judged: by hidden and visible tests, by their output, within their time; and what is nobody's fault."""

import asyncio
from typing import Any

import pytest
from judged import judge, problem

from forethought.schema import Problem
from forethought.verifiers.code import Code
from forethought.verifiers.outputs import same_output
from forethought.verifiers.sandbox import Program, Ran, Sandbox

ADD = "def add(a, b):\n    return a + b\n"
PROMPT = 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """Sum."""\n'
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
