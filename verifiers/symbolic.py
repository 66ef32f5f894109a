"""Asks math-verify (an optional extra) about answers that have no canonical form, in a process of its own that can be killed.

What the core has read is asked about as it was read, so that no second reader's idea of it decides; the rest as it is written.

The worker is started anew, never forked, on the first question; one question at a time; killed when it is late, and replaced for
the next. What it says is a simplifier's word, not a proof, and gives no key. Costs a start (seconds) and milliseconds a question.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ..checks import number
from ..forks import in_children
from .algebra import Unread
from .exact import Form, Outcome
from .notation import normal

START_SECONDS = 60.0
RECYCLE = 500
"""Questions to one worker: sympy remembers what it computed."""
MAX_DIGITS = 400
WORKER = Path(__file__).with_name("symbolic_worker.py")


def installed() -> bool:
    """Whether math-verify can be imported; it is not imported here."""
    return importlib.util.find_spec("math_verify") is not None


class Late(Exception):
    """The worker did not answer in time, or ended."""


class Symbolic:
    """math-verify behind a wall. ``seconds`` bounds a question, in wall and in CPU seconds. Safe to call from several threads."""

    def __init__(self, seconds: float) -> None:
        self.seconds = number("seconds", seconds, lambda x: 0 < x < math.inf, "a positive number")
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = 0
        in_children(self._part)

    def compare(self, *pairs: tuple[Form, Form]) -> Outcome:
        """``same`` if all pairs are, ``different`` if one is, else ``unknown``, as of what is too long, late or not read.

        ``seconds`` bound them all together. Raises ``RuntimeError`` when no worker can be started.
        """
        try:
            question = {"pairs": [[_bare(gold), _bare(answer)] for gold, answer in pairs], "seconds": self.seconds}
        except Unread as error:
            return Outcome("unknown", str(error))
        with self._lock:
            process = self._ready()
            try:
                reply = self._asking(process, question)
            except Late as error:
                self._end()
                return Outcome("unknown", f"math-verify: {error}")
            self._asked += 1
            if self._asked >= RECYCLE:
                self._end()
        return Outcome(reply["relation"], reply["reason"])

    def close(self) -> None:
        """End the worker; the next question starts another."""
        with self._lock:
            self._end()

    def _part(self) -> None:
        """In a forked child: the worker is the parent's, whose answers nobody else may read."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # it is not ours to wait for
            _close(process)

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # nothing is left to be written when the pipe to a dead worker is closed
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
        self._asked = 0
        try:
            _line(self._process, START_SECONDS)
        except Late as error:
            self._end()
            raise RuntimeError(f"no math-verify worker: {error}") from None
        return self._process

    def _asking(self, process: subprocess.Popen[bytes], question: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
        except OSError:
            raise Late("the worker ended") from None
        reply: dict[str, Any] = json.loads(_line(process, self.seconds))
        return reply

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """What the worker writes up to the end of the line."""
    assert process.stdout is not None
    channel, deadline, line = process.stdout.fileno(), time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([channel], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise Late(f"nothing after {seconds:g} seconds")
        piece = os.read(channel, 1 << 16)
        if not piece:
            raise Late("the worker ended")
        line += piece
    return line


def _bare(form: Form) -> Form:
    """LaTeX to be put between dollars, keys as they are. Raises ``Unread`` for what is not worth a worker's life."""
    if not form.canonical:
        normal(form.text)  # for its bounds
    if sum(char.isdigit() for char in form.text) > MAX_DIGITS:
        raise Unread("too many digits")
    return form if form.canonical else Form(form.text.replace("\\$", "").replace("$", "").strip(), False)
