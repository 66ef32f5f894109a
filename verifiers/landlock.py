"""Landlock: from now on this process reads below some paths, writes below others, and opens nothing else. Works without
privileges, Linux 5.13 or later. Leaves open what needs no open(): whether a path exists, its mode and times; and UDP.
Stands alone: the harness loads it by path.
"""

from __future__ import annotations

import ctypes
import os
import platform
import stat
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_FILE, _MAKE_LINK, _REFER = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12, 1 << 13
_OF_A_FILE = _WRITE_FILE | _READ_FILE | _TRUNCATE
_READ = _READ_FILE | _READ_DIR
_WRITE = _OF_A_FILE | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_FILE | _MAKE_LINK | _REFER
_RIGHTS = (0, 13, 14, 15, 15, 16)
"""How many rights, counted from bit 0, each version of the interface knows."""


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())} (system call {number})")
    return result


def version() -> int:
    """The interface's version, 0 where there is none."""
    if platform.system() != "Linux":
        return 0
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError:
        return 0


def missing() -> str | None:
    """Why Landlock cannot be used here; None when it can."""
    return None if version() else "no Landlock in this kernel (5.13 or later, and `landlock` among its security modules)"


def restrict(read: Iterable[str], write: Iterable[str]) -> None:
    """Confine the calling thread, the only one, for good. Paths that do not exist are left out. Raises ``OSError``.

    TCP (version 4), abstract sockets and signals to processes outside (version 6) go too, where the kernel can.
    """
    known = version()
    rights = (1 << _RIGHTS[min(known, len(_RIGHTS) - 1)]) - 1
    network, scope = 0b11 if known >= 4 else 0, 0b11 if known >= 6 else 0
    attributes = struct.pack("=QQQ", rights, network, scope)[: 8 if known < 4 else 16 if known < 6 else 24]
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    try:
        for paths, access in ((read, _READ), (write, _WRITE)):
            for path in paths:
                if os.path.exists(path):
                    _allow(ruleset, path, access & rights)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(38, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    at = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(at).st_mode):
            access &= _OF_A_FILE
        rule = struct.pack("=Qi", access, at)
        _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(at)
