"""One process, watched from outside: fed, read with bounds, stopped when its time, its output or its folder is used up, and
reaped with its whole group. Says how it ended; what that means is for the caller. And a gate for how many run at once.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from ..forks import in_children
from . import scratch

TICK = 0.05
"""Seconds between looks at the clock and at the folder; a burst between two looks goes beyond the folder's limit."""
DRAIN = 1.0
"""Seconds for reading what an ended process wrote."""
GRACE = 5.0
"""Seconds for a killed process to be gone."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended, and everything it wrote."""

    code: int
    """Exit status; negative for a signal's number."""
    cut: str | None
    """Why it was stopped: ``timeout`` or ``output_limit``; None when it ended by itself."""
    stdout: bytes
    stderr: bytes
    channel: bytes
    seconds: float


def watch(
    command: Sequence[str],
    data: bytes,
    environment: Mapping[str, str],
    *,
    seconds: float,
    output_bytes: int,
    channel_bytes: int,
    folder: str,
    folder_bytes: int,
) -> Ended:
    """Run ``command`` with ``data`` on its stdin and a channel to write to, whose descriptor is its last argument.

    It ends when it ends, or is killed with its group: what it started and left behind, holding its outputs, is not waited for.
    Raises ``OSError`` if it cannot be started, or not be killed.
    """
    with ExitStack() as stack:
        read, write = os.pipe()
        stack.callback(os.close, read)
        try:
            process = subprocess.Popen(
                [*command, str(write)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environment),
                pass_fds=(write,),
                start_new_session=True,
                bufsize=0,
            )
        finally:
            os.close(write)
        start = time.monotonic()
        limits = {pipe.fileno(): output_bytes for pipe in (process.stdout, process.stderr) if pipe}
        limits[read] = channel_bytes
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                stack.callback(pipe.close)
        outputs = {descriptor: bytearray() for descriptor in limits}
        try:
            cut = _pump(process, data, outputs, limits, start + seconds, folder, folder_bytes)
        finally:
            _kill(process)
    stdout, stderr, said = (bytes(text) for text in outputs.values())
    return Ended(process.returncode, cut, stdout, stderr, said, time.monotonic() - start)


def _pump(
    process: subprocess.Popen[bytes],
    data: bytes,
    outputs: dict[int, bytearray],
    limits: dict[int, int],
    deadline: float,
    folder: str,
    folder_bytes: int,
) -> str | None:
    assert process.stdin
    source, waiting = process.stdin, memoryview(data)
    os.set_blocking(source.fileno(), False)
    looked, ended = time.monotonic(), 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(source.fileno(), selectors.EVENT_WRITE)
        for descriptor in outputs:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(TICK)
            for key, _ in ready:
                if key.fd in outputs:
                    if not (more := os.read(key.fd, 65536)):
                        selector.unregister(key.fd)
                    outputs[key.fd] += more
                    if len(outputs[key.fd]) > limits[key.fd]:
                        return "output_limit"
                    continue
                try:
                    waiting = waiting[os.write(key.fd, waiting[:65536]) :]
                except BrokenPipeError:
                    waiting = memoryview(b"")
                if not waiting:
                    selector.unregister(key.fd)
                    source.close()
            now = time.monotonic()
            if ended and (not ready or now > ended + DRAIN):  # what it left behind may hold its outputs open, or write on
                return None
            if now > deadline:
                return "timeout"
            if not ready or now > looked + TICK:
                looked = now
                ended = ended or (now if _over(process.pid) else 0.0)
                if scratch.larger(folder, folder_bytes):
                    return "output_limit"
        while not _over(process.pid):  # it closed its outputs and goes on
            if time.monotonic() > deadline:
                return "timeout"
            time.sleep(TICK / 10)
    return None


def _over(pid: int) -> bool:
    """Without reaping it: while it is there, its group's number is nobody else's."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The whole group, also after its leader has ended: what is left of it has no business any more."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        raise OSError(f"process {process.pid} is still there {GRACE} s after it was killed") from None


class Gate:
    """Lets ``places`` threads in at once, or one thread alone."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._empty()
        in_children(self._empty)

    def _empty(self) -> None:
        self._free = self._places
        self._changed = threading.Condition()
        self._queue = threading.Lock()

    @contextmanager
    def enter(self, *, alone: bool) -> Iterator[None]:
        need = self._places if alone else 1
        with self._queue, self._changed:  # who waits for all places lets nobody overtake
            self._changed.wait_for(lambda: self._free >= need)
            self._free -= need
        try:
            yield
        finally:
            with self._changed:
                self._free += need
                self._changed.notify_all()
