"""One thread per device that steps every engine on it, so that no two model calls ever race for the same hardware."""

from __future__ import annotations

import atexit
import threading
from typing import Protocol

import torch

from .openmp import release_workers

GRACE = 0.005
"""Seconds that an idle loop keeps its OpenMP workers, for calls that come one after the other."""


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
        self._thread = threading.Thread(target=self._run, name=f"forethought-{name}", daemon=True)
        self._thread.start()
        # The interpreter must not end under a step: a thread killed inside torch takes the process down with it.
        atexit.register(self._stop)

    @classmethod
    def of(cls, device: torch.device) -> Loop:
        """The loop of ``device``, started on first use."""
        name = f"{device.type}:{device.index or 0}"
        with cls._lock:
            if name not in cls._all:
                cls._all[name] = cls(name)
            return cls._all[name]

    @property
    def here(self) -> bool:
        """Whether the caller is the loop's own thread."""
        return threading.current_thread() is self._thread

    def wake(self, engine: Steppable) -> None:
        """``engine`` has work. Any thread."""
        with self._wake:
            if engine not in self._busy:
                self._busy.append(engine)
            self._wake.notify()

    def _stop(self) -> None:
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
