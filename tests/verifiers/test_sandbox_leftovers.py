"""What a program leaves behind, whatever it is: folders that resist, reports made to harm whoever reads them, open outputs."""

import json
import os
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.verifiers import process, sandbox, scratch
from forethought.verifiers.sandbox import Limits, Program, Sandbox

DEEP = "import os\nfor _ in range({depth}):\n    os.mkdir({name!r})\n    os.chdir({name!r})\nopen('end', 'w').close()"


@pytest.mark.parametrize(
    "text",
    [
        DEEP.format(depth=1100, name="d"),
        DEEP.format(depth=60, name="long" * 60),
        r"""
import os
for name in (b'\xff\xfe', b'a\nb', b' ', b'-rf'):
    os.mkdir(name)
    open(name + b'/' + name, 'w').close()""",
        "import os\nfor i in range(300): os.mkdir(str(i))",
        "import os\nos.mkdir('a')\nfor i, path in enumerate(['/', '..', '/etc', '.', 'nowhere']): os.symlink(path, f'a/{i}')",
        "import os\nfor mode in (0, 0o100, 0o200, 0o300, 0o400, 0o500): os.mkdir(str(mode), mode)",
        "import os\nos.makedirs('x/x/x')\nos.mkdir('x/x/x/y', 0)",
        "open('a' * 255, 'w').close()",
    ],
    ids=["1,100 deep", "a path too long", "no text", "many", "links", "modes", "closed below", "a long name"],
)
def test_whatever_it_leaves_is_taken_away(text: str, box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ran = box.run(Program([text], as_main=True), Limits(seconds=20))
    assert ran.status in ("passed", "output_limit"), ran
    assert list(tmp_path.iterdir()) == []


def nest(top: Path, depth: int, name: str) -> None:
    at = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=at)
        inner = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(os.open("end", os.O_CREAT, dir_fd=at))
    os.close(at)


def test_removal_follows_no_link_and_stays_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside, box = tmp_path / "outside", tmp_path / "box"
    outside.mkdir()
    (outside / "kept").write_text("x")
    (box / "in").mkdir(parents=True)
    for link in (box / "link", box / "in" / "link"):
        link.symlink_to(outside)
    os.mkfifo(box / "in" / "fifo")
    monkeypatch.chdir(box)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("in/socket")
    monkeypatch.chdir(tmp_path)
    nest(box, 1100, "n" * 100)
    assert scratch.remove(str(box))
    assert not box.exists()
    (tmp_path / "to").symlink_to(outside)
    assert not scratch.remove(str(tmp_path / "to"))
    assert (outside / "kept").read_text() == "x"


def test_removal_ends_in_time_and_without_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").touch()
    assert not scratch.remove(str(tmp_path / "a"), seconds=0.0)
    assert scratch.remove(str(tmp_path / "missing"))

    def fails(*_: object, **__: object) -> None:
        raise OSError(1, "immutable")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fails)
        patch.setattr(os, "rmdir", fails)
        assert not scratch.remove(str(tmp_path / "a"))
    assert scratch.remove(str(tmp_path / "a"))


def test_leftovers_of_killed_runs_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (f"{scratch.PREFIX}old", f"{scratch.PREFIX}new", "mine"):
        (tmp_path / name / "x").mkdir(parents=True)
    (tmp_path / f"{scratch.PREFIX}link").symlink_to(tmp_path / "mine")
    for old in (f"{scratch.PREFIX}old", "mine"):
        os.utime(tmp_path / old, (1, 1))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch.sweep([os.geteuid() + 1])
    assert (tmp_path / f"{scratch.PREFIX}old").exists()
    Sandbox("none")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{scratch.PREFIX}link", f"{scratch.PREFIX}new", "mine"]
    assert (tmp_path / "mine" / "x").exists()


def test_a_tree_is_measured_however_it_is_nested(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a").mkdir(parents=True)
    (top / "a" / "b").write_bytes(bytes(10_000))
    (top / "loop").symlink_to(top)
    total = 3 * 4096 + 10_000 + len(str(top))
    assert not scratch.larger(str(top), total)
    assert scratch.larger(str(top), total - 1)
    nest(top, 1100, "d")
    assert not scratch.larger(str(top), total + 1101 * 4096)
    nest(top, 30, "long" * 50)
    assert scratch.larger(str(top), 1 << 40), "beyond the longest path"
    assert scratch.remove(str(top))  # pytest's own way does not get so deep


LINES = {
    "900 kB of reason": '{"end": "runtime_error", "reason": "' + "x" * 900_000 + '"}',
    "control characters": r'{"end": "failed_assert", "reason": "\u001b[2J\u202e\ud800\nfake: correct\u0000"}',
    "a reason of another kind": '{"end": "failed_assert", "reason": [[[1]]]}',
    "a status of another kind": '{"end": {}, "reason": ""}',
    "no object": "[]",
    "a number": "7",
    "infinity": '{"end": 1e999, "reason": NaN}',
    "a giant integer": "9" * 100_000,
    "a deep list": "[" * 100_000,
    "a deep value": '{"value": ' + "[" * 900 + "]" * 900 + "}",
    "a torn line": '{"end": "pas',
    "an empty line": "",
    "no JSON": "\ufffd\u2028",
    "our trouble": '{"end": "infra_error", "reason": ""}',
    "refused": '{"end": "refused", "reason": "' + "y" * 9000 + '"}',
    "passed without the token": '{"end": "passed", "reason": "", "token": null}',
}
FORGE = """
def f(): pass
import os
for fd in range(3, 64):
    try:
        data = {data!r}
        while data:
            data = data[os.write(fd, data):]
    except OSError:
        pass
os._exit({code})
"""


@pytest.mark.parametrize("name", LINES)
def test_any_report_is_a_short_verdict(name: str, box: Sandbox) -> None:
    for code in (0, 3):
        forged = FORGE.format(data=LINES[name].encode() + b"\n", code=code)
        ran = box.run(Program([forged], "f", [((), {})]), Limits(seconds=20))
        assert ran.status in ("runtime_error", "failed_assert", "refused"), ran
        assert len(ran.reason) <= 500
        assert ran.reason.isprintable()
        json.dumps([ran.status, ran.reason], ensure_ascii=False).encode()


def test_bytes_that_are_no_text_are_a_short_verdict(box: Sandbox) -> None:
    for data in (b"\xff\xfe\x00", b"\x00" * 1000, b"\xef\xbb\xbf{}", b"\r\r\r"):
        assert box.run(Program([FORGE.format(data=data, code=0)], "f", [((), {})])).status == "runtime_error"


@given(st.text())
def test_a_reason_is_one_printable_line(text: str) -> None:
    for most in (1, 10, 500):
        short = sandbox.one_line(text, most)
        assert len(short) <= most
        assert short.isprintable()


@pytest.mark.parametrize("nap", ["60", "0.001"])
def test_who_holds_the_outputs_open_is_not_waited_for(nap: str) -> None:
    """Without isolation a program can leave others behind: they go with its group."""
    text = (
        f"import os, time\nif not os.fork():\n    while True:\n        os.write(1, b'x')\n        time.sleep({nap})\nos._exit(0)"
    )
    assert Sandbox("none").run(Program([text], as_main=True), Limits(seconds=60)).status == "passed"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), MemoryError(), BlockingIOError(11, "fork"), OSError(24, "files\x1b")]
)
@pytest.mark.parametrize("where", [(tempfile, "mkdtemp"), (process.subprocess, "Popen"), (process.selectors, "DefaultSelector")])
def test_trouble_in_starting_is_ours(where: tuple[object, str], error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Sandbox()
    open_files = len(os.listdir("/proc/self/fd"))

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(*where, fails)
    ran = box.run(Program(["pass"]))
    assert (ran.status, ran.reason.isprintable()) == ("infra_error", True), ran
    assert len(os.listdir("/proc/self/fd")) == open_files
