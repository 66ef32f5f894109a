"""One program in the sandbox: every status from outside, every limit, what honest programs may do, and nothing left behind."""

import os
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.verifiers import bwrap, landlock, plain, process, sandbox, seccomp
from forethought.verifiers.sandbox import Limits, Program, Ran, Sandbox, Unavailable

TIERS = ("bwrap", "landlock")
DEAF = """
import signal
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
while True:
    try:
        while True: pass
    except BaseException: pass
"""
MANY_FILES = """
import time
for i in range(100):
    open(f'big{i}', 'wb').write(bytes(8 << 20))
    time.sleep(0.02)
"""


def run(box: Sandbox, text: str, *, seconds: float = 5.0, stdin: str | None = None) -> Ran:
    return box.run(Program([text], as_main=True, stdin=stdin), Limits(seconds=seconds))


def test_some_tier_is_there() -> None:
    """One that is missing is a skip; without any, nothing here is tested."""
    assert Sandbox().tier in TIERS


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("print(1)", "passed"),
        ("import sys; sys.exit(0)", "passed"),
        ("assert 1 == 2, 'no'", "failed_assert"),
        ("1 / 0", "runtime_error"),
        ("import sys; sys.exit(1)", "runtime_error"),
        ("import os; os._exit(0)", "passed"),
        ("import os; os._exit(1)", "runtime_error"),
        ("import socket; socket.socket()", "refused"),
        ("import subprocess; subprocess.run('ls')", "refused"),
        ("open('/usr/mine', 'w')", "refused"),
        ("import os\ntry: os.fork()\nexcept OSError: raise ValueError('no')", "refused"),
        ("import urllib.request as u; u.urlopen('http://example.com')", "refused"),
        ("import os\ntry: os.fork()\nexcept OSError: pass\nassert False", "failed_assert"),
        ("open('missing')", "runtime_error"),
        ("def f(: pass", "syntax_error"),
        ("x = '\ud800'", "syntax_error"),
        ("(" * 5000, "syntax_error"),
        ("while True: pass", "timeout"),
        ("import time; time.sleep(60)", "timeout"),
        ("import os, time\nos.close(1); os.close(2)\ntime.sleep(60)", "timeout"),
        (DEAF, "timeout"),
        ("x = bytearray(2 << 30)", "memory"),
        ("import mmap; mmap.mmap(-1, 2 << 30)", "memory"),
        ("while True: print('x' * 10000)", "output_limit"),
        ("open('big', 'wb').write(bytes(100 << 20))", "output_limit"),
        (MANY_FILES, "output_limit"),
        ("import ctypes; ctypes.string_at(0)", "killed"),
        ("import os; os.abort()", "killed"),
        ("def f(): return f()\nf()", "runtime_error"),
        ("class E(Exception):\n    def __str__(self): raise SystemExit\nraise E", "runtime_error"),
    ],
)  # fmt: skip
def test_status(box: Sandbox, text: str, status: str) -> None:
    ran = run(box, text, seconds=1.0 if status == "timeout" else 10.0)
    assert ran.status == status, ran
    assert ran.tier == box.tier


@pytest.mark.parametrize("text", ["", "f = 3", "def g(): pass", "if False:\n    def f(): pass"])
def test_no_entry_point(box: Sandbox, text: str) -> None:
    assert box.run(Program([text], "f", [((), {})])).status == "no_entry_point"


@pytest.mark.parametrize(
    "text",
    [
        "open('mine', 'w').write('x')\nimport os\nos.mkdir('d')\nos.rename('mine', 'd/mine')\nprint(open('d/mine').read())",
        "import tempfile\nwith tempfile.NamedTemporaryFile() as f: f.write(b'x')",
        "import asyncio\nasync def f(): await asyncio.sleep(0)\nasyncio.run(f())",
        "import threading\nfor _ in range(8):\n    t = threading.Thread(target=print)\n    t.start()\n    t.join()",
        "import collections, decimal, heapq, itertools, json, random, re, statistics\nrandom.seed()",
        "import signal\nsignal.signal(14, lambda *_: None)\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\nsignal.pause()",
        ("import shutil\nopen('a', 'w').close()\nshutil.move('a', 'b')\nshutil.copyfile('b', 'c')\n"
            "shutil.rmtree('d', ignore_errors=True)"),
        ("import os\nos.symlink('x', 'y')\nos.truncate(os.open('x', os.O_CREAT | os.O_RDWR), 5)\n"
            "print(os.listdir(), os.stat('y'))"),
        "import sqlite3\nc = sqlite3.connect('x.db')\nc.execute('create table t(a)')\nc.commit()",
        ("import zipfile, tarfile\nopen('a', 'w').close()\ntarfile.open('t.tar', 'w').add('a')\n"
            "zipfile.ZipFile('z.zip', 'w').write('a')"),
        ("import locale, time, zoneinfo, uuid, platform, getpass\nlocale.setlocale(locale.LC_ALL, '')\ntime.tzset()\n"
            "uuid.uuid1()\ngetpass.getuser()"),
        "from concurrent.futures import ThreadPoolExecutor\nprint(list(ThreadPoolExecutor(4).map(abs, range(9))))",
        "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: None)\nos.kill(os.getpid(), signal.SIGUSR1)",
        "import sys, threading\nthreading.stack_size(64 << 20)\nthreading.Thread(target=lambda: print(1)).start()",
    ],
)  # fmt: skip
def test_honest_programs_run(box: Sandbox, text: str) -> None:
    ran = run(box, text)
    assert ran.status == "passed", ran


@pytest.mark.parametrize(
    "text",
    [
        "import shutil\nopen('a', 'w').close()\nshutil.copy('a', 'b')\nshutil.copy2('a', 'c')",
        "import os, shutil\nos.makedirs('d/e')\nopen('d/e/f', 'w').close()\nshutil.copytree('d', 'g')",
        "import os\nopen('a', 'w').close()\nos.chmod('a', 0o400)\nassert os.stat('a').st_mode & 0o777 == 0o400",
        "import os\nos.fchmod(os.open('a', os.O_CREAT), 0o600)",
        "import os\nopen('a', 'w').close()\nos.utime('a', (1, 1))\nassert os.stat('a').st_mtime == 1",
        "import multiprocessing\nmultiprocessing.Lock()",
        "from multiprocessing.dummy import Pool\nprint(Pool(2).map(abs, [1, 2]))",
        "import shelve\nwith shelve.open('x') as s: s['a'] = 1",
        "open('/tmp/x', 'w').write('y')",
    ],
)  # fmt: skip
def test_modes_times_and_semaphores_work_where_all_that_can_change_is_its_own(box: Sandbox, text: str) -> None:
    """Elsewhere they are refused, which is a status of its own."""
    ran = run(box, text)
    assert ran.status == ("passed" if box.tier == "bwrap" else "refused"), ran


def test_numpy_loads(box: Sandbox) -> None:
    pytest.importorskip("numpy")
    ran = box.run(Program(["import numpy as np\ndef f(): return np.arange(3), np.float64(0.5), np.bool_(True)"], "f", [((), {})]))
    assert ran.values == ({"tuple": [{"array": [0, 1, 2]}, 0.5, 1]},), ran


def test_stdin_and_stdout(box: Sandbox) -> None:
    ran = run(
        box, "import sys\nprint(input()[::-1], sys.stdin.read())\nif __name__ == '__main__': print('main')", stdin="abc\nüd"
    )
    assert (ran.status, ran.stdout) == ("passed", "cba üd\nmain\n")
    assert run(box, "input()").reason == "EOFError: EOF when reading a line"


def test_calls_have_their_own_arguments(box: Sandbox) -> None:
    one = ([1],)
    ran = box.run(Program(["seen = []\ndef f(x, *, k=0):\n    x.append(k)\n    return x"], "f", [(one, {"k": 2}), (one, {})]))
    assert ran.values == ([1, 2], [1, 0])
    assert one == ([1],)


def test_first_reading_that_defines_it(box: Sandbox) -> None:
    assert box.run(Program(["def f(:", "def g(): return 1", "def f(): return 2"], "f", [((), {})])).values == (2,)


def test_objects_are_not_values(box: Sandbox) -> None:
    assert box.run(Program(["def f(): return [object()]"], "f", [((), {})])).values == ({"unplain": "object"},)
    assert box.run(Program(["def f():\n    x = []\n    x.append(x)\n    return x"], "f", [((), {})])).status == "passed"


def children() -> set[str]:
    """Of this process, from the fourth field of each ``stat``."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(path.name)
    return found


def test_nothing_is_left_behind(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder for temporary files that is closed to other users, too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before, open_files = children(), len(os.listdir("/proc/self/fd"))
    assert run(box, "open('mine', 'w').write('x')").status == "passed"
    run(box, "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()\nos.mkdir('closed', 0)")
    run(box, "import time; time.sleep(60)", seconds=0.3)
    run(box, "while True: print('x' * 10000)")
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == open_files
    assert children() <= before


def test_threads_are_limited(box: Sandbox) -> None:
    text = "import threading\ne = threading.Event()\nfor i in range(500): threading.Thread(target=e.wait, daemon=True).start()"
    assert run(box, "import threading\nthreading.stack_size(1 << 16)\n" + text).status == "runtime_error"


def test_own_trouble_is_retried_and_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Sandbox()
    tries = []

    def broken(*_: object, **__: object) -> process.Ended:
        tries.append(1)
        raise OSError("no more processes")

    monkeypatch.setattr(sandbox.process, "watch", broken)
    ran = box.run(Program(["pass"]))
    assert (ran.status, ran.reason, len(tries)) == ("infra_error", "OSError: no more processes", sandbox.TRIES)


def test_a_program_cannot_claim_our_trouble(box: Sandbox) -> None:
    text = """
import os, json
for fd in range(3, 64):
    try:
        os.write(fd, b'{"end": "infra_error", "reason": ""}\\n')
    except OSError:
        pass
os._exit(1)
"""
    assert run(box, text).status == "runtime_error"


def test_missing_tiers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bwrap, "missing", lambda: "no bwrap")
    monkeypatch.setattr(landlock, "missing", lambda: "no Landlock")
    with pytest.raises(Unavailable, match=r"bwrap: no bwrap; landlock: no Landlock; tier=.none. runs programs without isolation"):
        Sandbox()
    assert Sandbox("none").run(Program(["pass"])).tier == "none"


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="tier='docker'"):
        Sandbox("docker")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers=0"):
        Sandbox(workers=0)
    with pytest.raises(ValueError, match="threads=0"):
        Limits(threads=0)


def test_unreachable_interpreter_is_named() -> None:
    with pytest.raises(Unavailable, match="no-such-python"):
        Sandbox("none", python="/no-such-python")


def test_gate_counts_and_lets_one_be_alone() -> None:
    gate, inside, most, alone_with = process.Gate(3), 0, 0, []
    lock = threading.Lock()

    def work(alone: bool) -> None:
        nonlocal inside, most
        with gate.enter(alone=alone):
            with lock:
                inside += 1
                most = max(most, inside)
                if alone:
                    alone_with.append(inside)
            time.sleep(0.002)
            with lock:
                if alone:
                    alone_with.append(inside)
                inside -= 1

    threads = [threading.Thread(target=work, args=(i % 5 == 0,)) for i in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 3
    assert alone_with == [1] * 16


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_is_well_formed(machine: str) -> None:
    code = seccomp.program(machine, 1234)
    steps = [code[i : i + 8] for i in range(0, len(code), 8)]
    assert len(steps) < 4096
    for number, step in enumerate(steps):
        if step[0] & 7 == 5:  # a jump lands inside, and the last step returns
            assert number + 1 + max(step[2], step[3]) < len(steps)
    assert steps[-1][0] == 6


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
keys = st.integers() | st.text() | st.tuples(st.integers(), st.text())
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner) | st.sets(keys),
    max_leaves=20,
)


@given(values)
def test_values_come_back_as_they_were(value: object) -> None:
    back = plain.decode(plain.encode(value))
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, set | dict | list | tuple)
    assert plain.same(back, value)
    assert plain.same(back, value, 0.1, 0.1)


@pytest.mark.parametrize(
    "data", [{}, {"int": "x"}, {"int": 3}, {"a": 1, "b": 2}, {"set": [[]]}, {"dict": 3}, {"dict": [[1]]}, {"lambda": 1}]
)
def test_what_is_no_value_is_refused(data: object) -> None:
    with pytest.raises(plain.Unplain):
        plain.decode(data)


def test_large_tables_are_not_built() -> None:
    with pytest.raises(plain.Unplain, match="set of 3"):
        plain.decode({"set": [1, 2, 3]}, largest=2)


@pytest.mark.parametrize(
    ("got", "want", "equal"),
    [
        (1.0005, 1.0, True),
        ([1.0005], [1.0], True),
        ((1.0,), [1.0], False),
        (1.1, 1.0, False),
        (True, 1.0005, False),
        (10**400, 1.0, False),
        ({"a": 1.0005}, {"a": 1.0}, True),
        ({"a": 1.0}, {"b": 1.0}, False),
        ("x", 1.0, False),
        (float("nan"), 1.0, False),
    ],
)
def test_tolerance(got: object, want: object, equal: bool) -> None:
    assert plain.same(got, want, absolute=1e-3) is equal
