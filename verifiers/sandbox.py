"""Runs one untrusted Python program and says what happened: bubblewrap, or Landlock with seccomp, each with limits, an
unprivileged user and a clean environment. Not a virtual machine: a hole in the kernel is a hole in this.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ..checks import number, whole
from ..schema import Json
from . import bwrap, landlock, plain, process, scratch, seccomp

Tier = Literal["bwrap", "landlock", "none"]
RunStatus = Literal[
    "passed",
    "failed_assert",
    "runtime_error",
    "syntax_error",
    "timeout",
    "memory",
    "output_limit",
    "killed",
    "no_entry_point",
    "refused",
    "infra_error",
]
"""``refused``: it ended by an error that the sandbox gave it, for what a program may well do elsewhere."""

NOBODY = 65534
LONGEST, LARGEST, MOST_WORKERS = 1e6, 1 << 50, 4096
"""Seconds, bytes (or files, or threads) and programs that a limit may allow."""
TRIES = 3
"""How often a run that broke on our side is tried."""
_REASON = 500
"""Characters of a reason."""

_HERE = Path(__file__).parent
_FILES = tuple(str(_HERE / f"{name}.py") for name in ("harness", "landlock", "plain", "seccomp"))
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


class Unavailable(RuntimeError):
    """There is no such isolation here; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Limits(Json):
    """What one run may use."""

    seconds: float = 10.0
    """Wall time; as much CPU time, rounded up."""
    memory_bytes: int = 1 << 30
    """Address space of the process."""
    output_bytes: int = 1 << 20
    """Of stdout, and of stderr."""
    value_bytes: int = 64 << 20
    """Of everything that calls return."""
    file_bytes: int = 16 << 20
    """Of one file, and of all files together."""
    open_files: int = 64
    threads: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "seconds":
                value = number("seconds", value, lambda x: 0 < x <= LONGEST, f"a positive number, at most {LONGEST:g}")
            else:
                value = whole(field.name, value, 1, LARGEST)
            object.__setattr__(self, field.name, value)


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: source text, then calls of its function or a text of tests, or just itself with a stdin."""

    sources: Sequence[str]
    """Readings of the same text; the first one that compiles and defines the entry point runs."""
    entry_point: str | None = None
    calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]] = ()
    """Arguments and named arguments, plain data."""
    tests: str | None = None
    """Runs after the program and in its namespace, which can therefore deceive it."""
    stdin: str | None = None
    as_main: bool = False
    """Whether ``if __name__ == "__main__"`` holds."""
    wraps: Sequence[str | None] = ()
    """For each call the built-in function that its value goes through before it is reported, such as ``sorted``; if any."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What happened. ``passed`` says that the program, its calls and its tests ended without an error, no more. ``reason`` is one
    short line of printable characters, whatever the program did."""

    status: RunStatus
    tier: Tier
    reason: str = ""
    values: tuple[Any, ...] = ()
    """What the calls returned, as :func:`plain.encode` writes it; made by the program itself."""
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0


class Sandbox:
    """Runs programs at ``tier``, at most ``workers`` at once (the cores, unless given).

    ``"auto"`` is bubblewrap where it works, else Landlock. ``"none"`` has limits and a clean environment, and keeps nothing from
    reading files or using the network: only for programs that are trusted. ``python`` is the interpreter that runs them.
    Raises :class:`Unavailable`, naming what is missing, where programs would run with less than was asked for.
    """

    def __init__(
        self, tier: Literal["auto"] | Tier = "auto", *, workers: int | None = None, python: str = sys.executable
    ) -> None:
        if tier not in ("auto", *get_args(Tier)):
            raise ValueError(f"tier={tier!r} is none of auto, {', '.join(get_args(Tier))}")
        workers = None if workers is None else whole("workers", workers, 1, MOST_WORKERS)
        self.python = python
        self.workers = workers or _cores()
        self._gate = process.Gate(self.workers)
        scratch.sweep((os.geteuid(), NOBODY) if os.geteuid() == 0 else (os.geteuid(),))
        self.tier = self._choose(("bwrap", "landlock") if tier == "auto" else (tier,))

    def _choose(self, tiers: Sequence[Tier]) -> Tier:
        why = []
        for tier in tiers:
            missing = bwrap.missing() if tier == "bwrap" else landlock.missing() if tier == "landlock" else None
            missing = missing or (seccomp.missing() if tier != "none" else None)
            if not missing:
                trial = self._once(Program(["def f(): return 1"], "f", [((), {})]), Limits(), tier)
                if trial.values == (1,):
                    return tier
                missing = f"a first program did not run: {trial.status}, {trial.reason}"
            why.append(f"{tier}: {missing}")
        accept = '; tier="none" runs programs without isolation'
        raise Unavailable(f"no sandbox for untrusted programs here: {'; '.join(why)}{'' if 'none' in tiers else accept}")

    def run(self, program: Program, limits: Limits | None = None, *, alone: bool = False) -> Ran:
        """Run ``program``; ``alone`` waits until nothing else of this sandbox runs. Blocks; safe to call from several threads."""
        limits = limits or Limits()
        with self._gate.enter(alone=alone):
            for _ in range(TRIES):
                ran = self._once(program, limits, self.tier)
                if ran.status != "infra_error":
                    break
        return ran

    def _once(self, program: Program, limits: Limits, tier: Tier) -> Ran:
        token = secrets.token_hex(16)
        try:
            with scratch.folder() as folder:
                root = os.geteuid() == 0
                if root:
                    os.chown(folder, NOBODY, NOBODY)
                command, job = self._prepare(program, limits, tier, folder, token, root=root)
                ended = process.watch(
                    command,
                    json.dumps(job).encode(),
                    _environment(str(job["folder"])),
                    seconds=limits.seconds,
                    output_bytes=limits.output_bytes,
                    channel_bytes=limits.value_bytes,
                    folder=folder,
                    folder_bytes=limits.file_bytes,
                )
        except (OSError, MemoryError) as error:
            return Ran("infra_error", tier, one_line(f"{type(error).__name__}: {error}"))
        return _read(ended, tier, token, as_main=program.as_main and not program.calls and program.tests is None)

    def _prepare(
        self, program: Program, limits: Limits, tier: Tier, folder: str, token: str, *, root: bool
    ) -> tuple[list[str], dict[str, Any]]:
        read = [*_SYSTEM, *_DEVICES, *_prefixes(self.python)]
        command = [self.python, "-I", "-B", "-X", "utf8", _FILES[0]]
        if tier == "bwrap":
            command = bwrap.wrap(command, read, _FILES, limits.file_bytes, root=root)
        cap = {
            "AS": limits.memory_bytes,
            "CPU": int(limits.seconds) + 1,
            "FSIZE": limits.file_bytes,
            "NOFILE": limits.open_files,
        }
        job: dict[str, Any] = {
            "sources": list(program.sources),
            "entry_point": program.entry_point,
            "calls": [(plain.encode(list(given)), plain.encode(dict(named))) for given, named in program.calls],
            "wraps": list(program.wraps) or [None] * len(program.calls),
            "tests": program.tests,
            "stdin": program.stdin,
            "as_main": program.as_main,
            "token": token,
            "uid": NOBODY if root else None,
            "folder": bwrap.FOLDER if tier == "bwrap" else folder,
            "read": read,
            "limits": cap if tier == "none" else {**cap, "NPROC": limits.threads},
            "landlock": tier == "landlock",
            "seccomp": tier != "none",
            "own_files": tier == "bwrap",
        }
        return command, job


def _prefixes(python: str) -> list[str]:
    """Folders that ``python`` needs to start: its own, and, where it belongs to a virtual environment, that one's."""
    if python == sys.executable:
        found = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    else:
        found = {str(Path(path).parent.parent) for path in (python, os.path.realpath(python))}
    return sorted(path for path in found if not path.startswith("/usr"))


def _environment(folder: str) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "LOGNAME": "nobody",
        "LANG": "C.UTF-8",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def one_line(text: str, most: int = _REASON) -> str:
    """At most ``most`` characters of ``text``, those that a terminal would act upon and lone surrogates written as escapes."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _read(ended: process.Ended, tier: Tier, token: str, *, as_main: bool) -> Ran:
    """The status, from outside where it can be seen from there, else as the program's own report has it."""
    lines = ended.channel.splitlines()
    stdout, stderr = (text.decode("utf-8", "replace") for text in (ended.stdout, ended.stderr))

    def ran(status: RunStatus, reason: str = "", values: tuple[Any, ...] = ()) -> Ran:
        return Ran(status, tier, one_line(reason), values, stdout, stderr, ended.seconds)

    if not lines:
        return ran("infra_error", f"it did not start: exit status {ended.code}, {stderr.strip()[-500:] or ended.cut}")
    signal = -ended.code if ended.code < 0 else ended.code - 128 if tier == "bwrap" and ended.code > 128 else 0
    if ended.cut == "timeout" or signal == 24:  # SIGXCPU
        return ran("timeout", f"after {ended.seconds:.1f} s")
    if ended.cut == "output_limit" or signal == 25:  # SIGXFSZ
        return ran("output_limit", "more output or larger files than allowed")
    if signal:
        return ran("killed", f"by signal {signal}")
    try:
        said = [json.loads(line) for line in lines[1:]]
        end = said.pop()
        status, reason = str(end["end"]), str(end["reason"])
        values = tuple(line["value"] for line in said)
    except (ValueError, LookupError, TypeError, RecursionError, MemoryError):
        if as_main and len(lines) == 1 and not ended.code:
            return ran("passed", "it left by itself, with exit status 0")  # os._exit: what counts is what it wrote
        return ran("runtime_error", f"it ended before its end, with exit status {ended.code}")
    if status not in get_args(RunStatus) or status == "infra_error":
        status, reason = "runtime_error", "an unknown report"
    if status == "passed" and (ended.code != 0 or end.get("token") != token):
        status, reason = "runtime_error", f"it ended without reaching its end, with exit status {ended.code}"
    return ran(status, reason, values)  # type: ignore[arg-type]
