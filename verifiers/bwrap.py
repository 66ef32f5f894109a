"""The command line that runs a program under bubblewrap: namespaces of its own for processes, network, mounts, users and the
rest, nothing of the host's files but what it reads, and a folder of limited size in memory. bubblewrap is a toolkit: what is
protected is what these arguments say.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

FOLDER = "/box"
"""The place inside that can be written to."""
_SHARED = 64 << 10
"""Bytes of /dev/shm, where semaphores lie."""


def missing() -> str | None:
    """Why bubblewrap cannot be tried; None when it can. That it is there does not mean that it works."""
    return None if shutil.which("bwrap") else "no bwrap on the PATH (package bubblewrap)"


def wrap(command: Sequence[str], read: Sequence[str], files: Sequence[str], folder_bytes: int, *, root: bool) -> list[str]:
    """``command`` under bubblewrap, able to read below ``read`` and in ``files``, which it sees at their own paths.

    Started by root, the program begins as root with the right to become another user and no other right.
    """
    users = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if root else ["--unshare-user"]
    arguments = [
        str(shutil.which("bwrap")),
        *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try", *users),
        *("--die-with-parent", "--new-session", "--proc", "/proc", "--dev", "/dev"),
        *("--perms", "0777", "--size", str(folder_bytes), "--tmpfs", FOLDER, "--chdir", FOLDER),
        *("--perms", "1777", "--size", str(_SHARED), "--tmpfs", "/dev/shm"),
    ]
    if not any(path.startswith("/tmp/") for path in (*read, *files)):
        arguments += ["--symlink", FOLDER, "/tmp"]
    for folder in sorted({str(above) for path in (*read, *files) for above in Path(path).parents if str(above) != "/"}):
        arguments += ["--perms", "0755", "--dir", folder]  # made on the way to a mount, it would be closed to other users
    for path in read:
        if os.path.islink(path):  # /lib and its like
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path) and not path.startswith("/dev/"):
            arguments += ["--ro-bind", path, path]
    for path in files:
        arguments += ["--ro-bind", path, path]
    return [*arguments, "--", *command]
