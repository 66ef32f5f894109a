"""One thread per device that steps every engine on it, so that no two model calls ever race for the same hardware.

A forked child has no such thread: what was made before the fork is its parent's, and says so; what is made after has a new one.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import Protocol

import torch

from ..forks import in_children
from .openmp import release_workers

GRACE = 0.005
"""Seconds that an idle loop keeps its OpenMP workers, for calls that come one after the other."""
PATIENCE = 10.0
"""Seconds that a fork waits for a step to end."""


class Steppable(Protocol):
    """What a loop runs."""

    def step(self) -> bool:
        """Do one piece of work; whether there is more. Never raises."""


class Loop:
    """Steps engines that have work, in turn; sleeps when none has."""

    _all: dict[str, Loop] = {}
    _lock = threading.Lock()

    def __init__(self, name: str) -> None:
        self._busy: list[Steppable] = []
        self._wake = threading.Condition()
        self._stopped = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=f"forethought-{name}", daemon=True)
        self._thread.start()
        # The interpreter must not end under a step: a thread killed inside torch takes the process down with it.
        atexit.register(self._stop)

    @classmethod
    def of(cls, device: torch.device) -> Loop:
        """The loop of ``device`` in this process, started on first use."""
        name = f"{device.type}:{device.index or 0}"
        with cls._lock:
            if name not in cls._all:
                cls._all[name] = cls(name)
            return cls._all[name]

    @classmethod
    def forget(cls) -> None:
        """In a forked child: none of the loops there were is this process's."""
        cls._all, cls._lock = {}, threading.Lock()

    @classmethod
    def demand_another(cls) -> None:
        """Raises ``RuntimeError`` on any loop's thread, which must never wait for work that may be its own."""
        if any(loop.here for loop in list(cls._all.values())):
            raise RuntimeError(_ITSELF)

    @property
    def here(self) -> bool:
        """Whether the caller is the loop's own thread."""
        return threading.get_ident() == self._thread.ident and self._pid == os.getpid()

    @property
    def alive(self) -> bool:
        """Whether it runs: not in a process that was forked from its own, and not once the interpreter ends."""
        return self._pid == os.getpid() and not self._stopped

    def demand(self) -> None:
        """Raises ``RuntimeError`` where the caller would wait for ever: where it does not run, and on its own thread."""
        if self._pid != os.getpid():
            raise RuntimeError(
                f"made in process {self._pid}, and this is process {os.getpid()}, forked from it: threads do not follow into a "
                "child. Make an engine or verifier in each process; a model loaded before the fork will do on a CPU"
            )
        if self._stopped:
            raise RuntimeError("the interpreter is ending, and the engines with it")
        if self.here:
            raise RuntimeError(_ITSELF)

    def wake(self, engine: Steppable) -> None:
        """``engine`` has work. Any thread."""
        with self._wake:
            if engine not in self._busy:
                self._busy.append(engine)
            self._wake.notify()

    def pause(self) -> _Pause | None:
        """A pause that begins when the step under way is over; None if there is no step that could disturb."""
        if self.here or not self._thread.is_alive():
            return None
        pause = _Pause()
        self.wake(pause)
        return pause

    def _stop(self) -> None:
        if self._pid != os.getpid():
            return
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._busy and not self._stopped and not self._wake.wait(GRACE):
                    release_workers()
                while not self._busy and not self._stopped:
                    self._wake.wait()
                if self._stopped:
                    return
                turn = list(self._busy)
            for engine in turn:
                if not engine.step():
                    self._retire(engine)
            del turn, engine  # an idle engine must not be kept alive by this frame

    def _retire(self, engine: Steppable) -> None:
        with self._wake:
            self._busy.remove(engine)
        if engine.step():  # work that came in between the last look and the removal
            self.wake(engine)


_ITSELF = (
    "called on the thread that serves the device, in a callback of a decoder, a draft source or a model: it would wait for "
    "itself, and every engine of the device with it. Do it on another thread, before or after"
)


class _Pause:
    """Keeps a loop from stepping anybody."""

    def __init__(self) -> None:
        self.begun, self.over = threading.Event(), threading.Event()

    def step(self) -> bool:
        self.begun.set()
        self.over.wait()
        return False


_pauses: dict[int, list[_Pause]] = {}
"""By thread that forks."""


def _before_fork() -> None:
    """Between two steps: torch and its libraries have locks too, and a child's would stay as they are at this moment."""
    pauses = [pause for loop in list(Loop._all.values()) if (pause := loop.pause()) is not None]
    _pauses[threading.get_ident()] = pauses
    for pause in pauses:
        pause.begun.wait(PATIENCE)  # who waits for what this thread holds would wait for ever
    release_workers()  # a child's first parallel region would wait for those that it believes to have


def _after_fork() -> None:
    for pause in _pauses.pop(threading.get_ident(), []):
        pause.over.set()


if sys.platform != "win32":
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork)
in_children(Loop.forget)
