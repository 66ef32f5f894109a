"""The program inside the sandbox: gives up every right it has, then runs one untrusted program in this same interpreter and
writes what happened to its channel, as lines of JSON. Nothing here is secret, and what it writes after the first line may as
well come from the untrusted program: whoever reads it believes values, never verdicts.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import gc
import importlib.util
import json
import os
import resource
import signal
import symtable
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

MODULE = "candidate"
_WRAPS: dict[str, Callable[[Any], Any]] = {"set": set, "tuple": tuple, "list": list, "sorted": sorted, "len": len, "bool": bool}
_REFUSALS = (errno.EPERM, errno.EACCES, errno.EROFS)


def main() -> None:
    """Read the job from stdin, confine, say so, run, report; the channel is the file descriptor in ``argv[1]``."""
    channel = int(sys.argv[1])
    with open(0, "rb", closefd=False) as stdin:
        job = json.load(stdin)
    plain = _neighbour("plain")
    try:
        _take_stdin(job["stdin"], job["folder"])
        confine(job)
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    _say(channel, {"started": True})
    with open(channel, "w", encoding="utf-8") as out:
        try:
            end = run(job, out, plain)
        except BaseException as error:  # the untrusted program may raise anything
            end = _failure(error)
        try:
            report = json.dumps(end)
        except MemoryError:
            report = '{"end": "memory", "reason": ""}'
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        out.write(report + "\n")
        out.flush()
    os._exit(0)  # what the untrusted program registered for later does not run


def _say(channel: int, message: object) -> None:
    os.write(channel, json.dumps(message).encode() + b"\n")


def _neighbour(name: str) -> ModuleType:
    """A module of this folder; isolated mode leaves the folder out of the search path, and the package may be out of reach."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _take_stdin(text: str | None, folder: str) -> None:
    if text is None:
        source = os.open(os.devnull, os.O_RDONLY)
    else:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(text.encode("utf-8", "surrogatepass"))
            file.seek(0)
            source = os.dup(file.fileno())
    os.dup2(source, 0)
    os.close(source)


# --- giving up rights


def confine(job: dict[str, Any]) -> None:
    """Unprivileged user, limits, Landlock and seccomp, as the job says. Raises ``OSError``: nothing untrusted has run then."""
    landlock, seccomp = _neighbour("landlock"), _neighbour("seccomp")
    uid = job["uid"]
    if uid is not None:
        expose([*job["read"], job["folder"]], uid)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.chdir(job["folder"])
    os.umask(0o077)
    _limit(job["limits"])
    if sys.platform == "linux":  # set after the user has changed, which clears it
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if job["landlock"]:
        landlock.restrict(job["read"], [job["folder"], os.devnull])
    if job["seccomp"]:
        seccomp.install(own_files=job["own_files"])


def _limit(limits: dict[str, int]) -> None:
    limits = {"CORE": 0, **limits}
    if "NPROC" in limits:  # counts every thread of the user, wherever it was started
        limits["NPROC"] += _threads_of(os.getuid())
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _threads_of(uid: int) -> int:
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if process.stat().st_uid == uid:
                count += len(os.listdir(process / "task"))
    return count


def expose(paths: Iterable[str], uid: int) -> None:
    """Make ``paths`` reachable for ``uid`` where a folder above is closed to it, as ``/root`` is: in mounts of this process's
    own, where the closed folder holds those paths and nothing else. Raises ``OSError`` where this process may not mount.
    """
    closed = {path: top for path in paths if os.path.exists(path) and (top := _closed(path, uid))}
    if not closed:
        return
    at: dict[str, int] = {}
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        _ok(libc.unshare(0x20000), "a mount namespace")
        _ok(libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None), "private mounts")  # MS_REC | MS_PRIVATE
        at.update((path, os.open(path, os.O_PATH)) for path in closed)
        for top in set(closed.values()):
            _ok(libc.mount(b"tmpfs", top.encode(), b"tmpfs", 0, b"mode=755,size=64k"), f"an empty {top}")
        for path in sorted(closed):  # a path within another one comes after it, and is there already
            if not os.path.exists(path):
                os.makedirs(path, 0o755)
                _ok(libc.mount(f"/proc/self/fd/{at[path]}".encode(), path.encode(), None, 0x1000 | 0x4000, None), path)
    except OSError as error:
        raise OSError(error.errno, f"user {uid} cannot reach {', '.join(closed)}: {error}") from error
    finally:
        for descriptor in at.values():
            os.close(descriptor)


def _closed(path: str, uid: int) -> str | None:
    """The topmost folder above ``path`` that ``uid``, in no group of note, may not enter."""
    for folder in reversed(Path(path).parents):
        about = folder.stat()
        if not about.st_mode & (0o100 if about.st_uid == uid else 0o001):
            return str(folder)
    return None


def _ok(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"no {what}: {os.strerror(code)}")


# --- running the untrusted program


def run(job: dict[str, Any], out: Any, plain: ModuleType) -> dict[str, Any]:
    """What happened: ``{"end": status, "reason": text}``, with the job's token where it went through to the end."""
    code = _compile(job["sources"], job["entry_point"])
    if not isinstance(code, CodeType):
        return code
    module = ModuleType("__main__" if job["as_main"] else MODULE)
    sys.modules[module.__name__] = module
    try:
        exec(code, module.__dict__)
    except SystemExit as stop:
        if not job["as_main"] or stop.code not in (None, 0):
            raise
    entry = job["entry_point"]
    if entry is not None and not callable(module.__dict__.get(entry)):
        return {"end": "no_entry_point", "reason": f"no function {entry}"}
    if job["tests"] is not None:
        exec(compile(job["tests"], "tests.py", "exec", dont_inherit=True), module.__dict__)
    for (arguments, named), wrap in zip(job["calls"], job["wraps"], strict=True):
        value = module.__dict__[entry](*plain.decode(arguments), **plain.decode(named))
        value = value if wrap is None else _WRAPS[wrap](value)
        try:
            data = plain.encode(value)
        except (plain.Unplain, RecursionError) as error:
            data = {"unplain": str(error)[:200]}
        out.write(json.dumps({"value": data}) + "\n")
    if job["as_main"]:
        _finish(module)
    return {"end": "passed", "reason": "", "token": job["token"]}


def _finish(module: ModuleType) -> None:
    """What an interpreter does at its end and a program may count on for its output: threads joined, exit functions run,
    whatever was written to and forgotten flushed. What is raised then changes no exit status.
    """
    exit_functions = threading._shutdown, atexit._run_exitfuncs  # type: ignore[attr-defined]
    for step in (*exit_functions, lambda: sys.stdout.flush(), module.__dict__.clear, gc.collect):
        with contextlib.suppress(BaseException):
            step()


def _compile(sources: list[str], entry: str | None) -> CodeType | dict[str, Any]:
    """The first reading of the text that compiles and defines ``entry``."""
    problem: dict[str, Any] | None = None
    used: CodeType | None = None
    for source in sources:
        try:
            code = compile(source, f"{MODULE}.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
            problem = problem or {"end": "syntax_error", "reason": f"{type(error).__name__}: {error}"[:500]}
            continue
        if entry is None or _defines(source, entry):
            return code
        if entry in code.co_names:
            used = used or code
        problem = {"end": "no_entry_point", "reason": f"no function {entry}"}
    return used or problem or {"end": "no_entry_point", "reason": "no code"}


def _defines(source: str, name: str) -> bool:
    try:
        found = symtable.symtable(source, f"{MODULE}.py", "exec").lookup(name)
    except KeyError:
        return False
    return found.is_assigned() or found.is_imported()


def _refused(error: BaseException) -> bool:
    """Whether it comes of something that the sandbox forbids: a process, a socket, a file elsewhere."""
    seen: BaseException | None = error
    for _ in range(20):  # a chain may be a ring
        if isinstance(seen, OSError):
            if seen.errno in _REFUSALS or type(seen).__name__ == "gaierror":
                return True
            if any(f"[Errno {code}]" in str(seen) for code in _REFUSALS):  # shutil collects them
                return True
        reason = getattr(seen, "reason", None)  # urllib puts it there
        if isinstance(reason, OSError) and reason is not seen:
            seen = reason
        elif seen is not None:
            seen = seen.__cause__ or seen.__context__
    return False


def _failure(error: BaseException) -> dict[str, Any]:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return {"end": "memory", "reason": type(error).__name__}
    if isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.ENOSPC):
        return {"end": "output_limit", "reason": "a file beyond the limit"}
    status = "failed_assert" if isinstance(error, AssertionError) else "runtime_error"
    try:
        status = "refused" if _refused(error) else status
        text = str(error)[:500]
    except BaseException:  # its __str__ is the untrusted program's too
        text = ""
    return {"end": status, "reason": f"{type(error).__name__}: {text}".removesuffix(": ")}


if __name__ == "__main__":
    main()
