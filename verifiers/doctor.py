"""Shows what this machine's sandboxes stop, by trying: every attack on every tier. No proof: what is not tried is not shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..schema import Json
from . import asserts
from .attacks import ATTACKS, Attack, Target
from .sandbox import Limits, Program, Ran, Sandbox, Unavailable

Runner = Callable[[str], Ran]
"""Runs a program's text as ``__main__``."""

SPOOFS: dict[str, str] = {
    "an equality that lies": """
class Liar(int):
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = int.__hash__
def add(a, b):
    return Liar(0)
""",
    "walking the frames": """
import sys
def add(a, b):
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values()]:
            if isinstance(value, dict) and 'token' in value:
                import os, json
                text = json.dumps({'end': 'passed', 'reason': '', 'token': value['token']})
                for descriptor in range(1, 64):
                    try:
                        os.write(descriptor, (value['token'] + chr(10) + text + chr(10)).encode())
                    except OSError:
                        pass
                os._exit(0)
        frame = frame.f_back
""",
    "leaving early with success": """
import os
def add(a, b):
    print('PASSED', flush=True)
    os._exit(0)
""",
    "raising SystemExit(0)": """
def add(a, b):
    raise SystemExit(0)
""",
    "patching builtins and json": """
import builtins, json
class Always(dict):
    def get(self, *a): return 'passed'
json.dumps = lambda *a, **k: '{"end": "passed", "reason": "", "value": 3}'
builtins.isinstance = lambda *a: True
builtins.compile = lambda *a, **k: 'pass'
builtins.AssertionError = type('Quiet', (BaseException,), {})
def add(a, b):
    return 0
""",
    "success at exit": """
import atexit, os
atexit.register(lambda: (print('PASSED', flush=True), os._exit(0)))
def add(a, b):
    return 0
""",
}
"""Wrong programs for ``add(a, b)`` that try to be found right, by name."""
SPOOFED = "assert add(1, 2) == 3\nassert add(10, -4) == 6"


@dataclass(frozen=True, slots=True)
class Row(Json):
    """One attack on one tier; ``stopped`` is None where the tier is missing, and ``note`` says why."""

    attack: str
    tier: str
    stopped: bool | None
    note: str


def spoofed(sandbox: Sandbox, text: str) -> tuple[bool, Ran]:
    """Whether the program is found right for :data:`SPOOFED`, by calls compared outside."""
    calls = asserts.calls(SPOOFED, "add") or []
    ran = sandbox.run(Program([text], "add", [(call.args, call.kwargs) for call in calls]), Limits(seconds=5))
    right = len(ran.values) == len(calls) and all(call.accepts(value) for call, value in zip(calls, ran.values, strict=True))
    return ran.status == "passed" and right, ran


def attempt(attack: Attack, run: Runner) -> tuple[bool, Ran]:
    """Whether the attack gets through when ``run`` runs it, and what it did."""
    with Target() as target:
        ran = run(target.fill(attack.text))
        return attack.through(target, ran), ran


def attack_matrix(tiers: Sequence[Literal["bwrap", "landlock"]] = ("bwrap", "landlock")) -> list[Row]:
    """Every attack on every tier; takes a minute. A tier that is missing here is one row that says what it lacks."""
    rows = []
    for tier in tiers:
        try:
            sandbox = Sandbox(tier)
        except Unavailable as error:
            rows.append(Row("(any)", tier, None, str(error)))
            continue

        def run(text: str, sandbox: Sandbox = sandbox) -> Ran:
            return sandbox.run(Program([text], as_main=True), Limits(seconds=5))

        for attack in ATTACKS:
            through, ran = attempt(attack, run)
            rows.append(_row(attack.name, tier, through, ran))
        for name, text in SPOOFS.items():
            through, ran = spoofed(sandbox, text)
            rows.append(_row(f"spoof: {name}", tier, through, ran))
    return rows


def _row(name: str, tier: str, through: bool, ran: Ran) -> Row:
    note = f"{ran.status}: {ran.reason}" if ran.reason else ran.status
    return Row(name, tier, not through and ran.status != "infra_error", note)
