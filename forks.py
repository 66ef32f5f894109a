"""What a fork leaves behind: a child has none of its parent's other threads, and every lock that one of them held stays locked.

Whoever has locks, threads or processes of its own says here how to make them anew. Nothing here imports torch.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable
from types import MethodType

_renewals: list[Callable[[], Callable[[], None] | None]] = []


def in_children(renew: Callable[[], None]) -> None:
    """``renew`` runs in every child forked from now on, first of all; a bound method as long as its object lives.

    It must take no lock that another thread could have held.
    """
    _renewals[:] = [known for known in _renewals if known() is not None]
    if isinstance(renew, MethodType):  # without a callback: it would be called while the interpreter ends
        _renewals.append(weakref.WeakMethod(renew))
    else:
        _renewals.append(lambda: renew)


class OwnFolder:
    """A temporary folder, removed with this object by the process that made it; a forked child's end leaves it."""

    def __init__(self) -> None:
        self.name = tempfile.mkdtemp(prefix="forethought-")
        weakref.finalize(self, _remove, self.name, os.getpid())


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _renew() -> None:
    for found in list(_renewals):
        if (renew := found()) is not None:
            renew()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew)
