"""Temporary folders for programs that are not trusted: they are taken away however deep, closed or full the program left
them, and nothing that goes wrong on the way is raised. What resists is left for :func:`sweep`. No link is followed, and no
path is built from the program's names: folders are entered by descriptor.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "forethought-box-"
SECONDS = 20.0
"""For taking one folder away; what is left then is left."""
OLD = 24 * 3600.0
"""Seconds after which a folder is nobody's: longer than any run."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def folder() -> Iterator[str]:
    """A new folder, gone afterwards. Raises ``OSError`` only where it cannot be made."""
    path = tempfile.mkdtemp(prefix=PREFIX)
    try:
        yield path
    finally:
        remove(path)


def remove(path: str, seconds: float = SECONDS) -> bool:
    """Take ``path`` away with all below it; whether it is gone. Nobody else may be changing it any more.

    One folder at a time, at the top: a folder within it is moved up beside it, so that depth costs neither stack, nor
    descriptors, nor length of path.
    """
    end = time.monotonic() + seconds
    with suppress(OSError):
        top = _open(path)
        try:
            _empty_all(top, end)
        finally:
            os.close(top)
        os.rmdir(path)
        return True
    return not os.path.lexists(path)


def _empty_all(top: int, end: float) -> None:
    """Empty the open folder ``top``, as far as it goes before ``end``."""
    waiting = [name for name in os.listdir(top) if not _gone(top, name)]
    moved, unknown = 0, secrets.token_hex(8)  # a name that the program cannot have taken
    while waiting and time.monotonic() < end:
        name = waiting.pop()
        with suppress(OSError):
            inner = _open(name, top)
            try:
                for entry in os.listdir(inner):
                    if time.monotonic() > end:
                        return
                    if not _gone(inner, entry):
                        moved += 1
                        with suppress(OSError):
                            _open_up(inner, entry)
                            fresh = f"{unknown}-{moved}"
                            os.rename(entry, fresh, src_dir_fd=inner, dst_dir_fd=top)
                            waiting.append(fresh)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=top)


def _gone(parent: int, name: str) -> bool:
    """Take away a file, a link or an empty folder; False for a folder that is not empty."""
    try:
        os.unlink(name, dir_fd=parent)
    except OSError:
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            return error.errno == errno.ENOENT
    return True


def _open(name: str, parent: int | None = None) -> int:
    """The folder's descriptor, once its owner may read and change it."""
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        _open_up(parent, name)
        descriptor = os.open(name, _FOLDER, dir_fd=parent)
    with suppress(OSError):
        os.fchmod(descriptor, 0o700)
    return descriptor


def _open_up(parent: int | None, name: str) -> None:
    if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
        os.chmod(name, 0o700, dir_fd=parent)


def sweep(owners: Collection[int]) -> None:
    """Take away old folders of ``owners`` that earlier runs left: killed runs, mostly. Never raises."""
    with suppress(OSError):
        for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            with suppress(OSError):
                about = path.lstat()
                if stat.S_ISDIR(about.st_mode) and about.st_uid in owners and time.time() - about.st_mtime > OLD:
                    remove(str(path))


def larger(path: str, most: int) -> bool:
    """Whether there is more than ``most`` bytes below ``path``, with 4 KiB for each entry: empty files take room as well.

    What cannot be measured counts as more: a folder that may be written to and not read, a path longer than the system's.
    """
    total, waiting = 0, [path]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += 4096
                    with suppress(FileNotFoundError):
                        about = entry.stat(follow_symlinks=False)
                        total += 0 if stat.S_ISDIR(about.st_mode) else about.st_size
                        if stat.S_ISDIR(about.st_mode) and about.st_mode & 0o300 == 0o300:  # else nothing can be in it
                            waiting.append(entry.path)
                    if total > most:
                        return True
        except (FileNotFoundError, NotADirectoryError):  # gone since
            continue
        except OSError:
            return True
    return False
