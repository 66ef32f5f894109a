"""Every attack gets through where nothing stops it, and through no tier; as this user and, where this one is root, as nobody."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from forethought.verifiers import doctor
from forethought.verifiers.attacks import ATTACKS, Attack
from forethought.verifiers.sandbox import NOBODY, Limits, Program, Ran, Sandbox

TIERS = ("bwrap", "landlock")
KERNEL_MAY_STOP = {"trace another process": "Yama", "a user namespace": "AppArmor or a setting"}
TRY_ALL = """
import json, subprocess, sys, tempfile
from forethought.verifiers import doctor
from forethought.verifiers.attacks import ATTACKS
from forethought.verifiers.sandbox import Ran

def plainly(text):
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, '-I', '-c', text], cwd=folder, capture_output=True, text=True, timeout=60)
    return Ran('passed', 'none', '', (), done.stdout, done.stderr)

through = {attack.name: doctor.attempt(attack, plainly)[0] for attack in ATTACKS}
print(json.dumps([through, [row.to_json() for row in doctor.attack_matrix()]]))
"""


def plainly(text: str) -> Ran:
    """What a checker without a sandbox does."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-I", "-c", text], cwd=folder, capture_output=True, text=True, timeout=60)
    return Ran("passed", "none", "", (), done.stdout, done.stderr)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_gets_through_without_a_sandbox(attack: Attack) -> None:
    through, ran = doctor.attempt(attack, plainly)
    if not through and attack.name in KERNEL_MAY_STOP:
        pytest.skip(f"stopped without a sandbox, by {KERNEL_MAY_STOP[attack.name]}")
    assert through, ran


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_is_stopped(attack: Attack, box: Sandbox) -> None:
    through, ran = doctor.attempt(attack, lambda text: box.run(Program([text], as_main=True), Limits(seconds=5)))
    assert ran.status != "infra_error", ran
    assert not through, ran


NAIVE = """
import json, sys
token = {'token': 'PASSED'}
def same(got, want):
    return got == want or json.dumps(got) == json.dumps(want)
def check(candidate, token):
    namespace = {}
    exec(candidate, namespace)
    add = namespace['add']
    assert same(add(1, 2), 3)
    assert same(add(10, -4), 6)
    print(token['token'], flush=True)
def run(job):
    check(job['candidate'], job)
run({'candidate': sys.stdin.read(), **token})
"""


@pytest.mark.parametrize("name", doctor.SPOOFS)
def test_spoof_deceives_asserts_in_the_same_process(name: str) -> None:
    """A checker that believes an exit status of 0, or a word on stdout."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", NAIVE], input=doctor.SPOOFS[name], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 or "PASSED" in done.stdout, done


@pytest.mark.parametrize("name", doctor.SPOOFS)
def test_spoof_is_found_out(name: str, box: Sandbox) -> None:
    passed, ran = doctor.spoofed(box, doctor.SPOOFS[name])
    assert ran.status != "infra_error", ran
    assert not passed, ran


def test_a_right_program_is_no_spoof(box: Sandbox) -> None:
    assert doctor.spoofed(box, "def add(a, b): return a + b")[0]


def test_missing_tier_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (row,) = doctor.attack_matrix(["bwrap"])
    assert (row.tier, row.stopped) == ("bwrap", None)
    assert "no bwrap on the PATH" in row.note


@pytest.mark.slow
def test_all_of_it_as_nobody() -> None:
    if os.geteuid():
        pytest.skip("AS NOBODY NOT TESTED: only root can become nobody; the tests above ran as an ordinary user")
    python = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if _serves(path)), None)
    if python is None:
        pytest.skip("AS NOBODY NOT TESTED: no interpreter of 3.11 or later that nobody can start")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "forethought").symlink_to(Path(doctor.__file__).resolve().parents[1])
        done = _as_nobody([python, "-B", "-c", TRY_ALL], PYTHONPATH=folder, PATH=os.environ["PATH"])
    assert done.returncode == 0, done.stderr
    through, rows = json.loads(done.stdout)
    assert all(got for name, got in through.items() if name not in KERNEL_MAY_STOP), through
    missing = [row["tier"] for row in rows if row["stopped"] is None]
    assert [row for row in rows if row["stopped"] is False] == []
    assert len(missing) < len(TIERS), rows
    assert len(rows) == len(missing) + (len(TIERS) - len(missing)) * (len(ATTACKS) + len(doctor.SPOOFS))
    if missing:
        pytest.skip(f"TIER NOT TESTED as nobody, others passed: {missing}")


def _serves(python: str) -> bool:
    return Path(python).exists() and not _as_nobody([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).returncode


def _as_nobody(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", env=environment, capture_output=True, text=True, timeout=120
    )
