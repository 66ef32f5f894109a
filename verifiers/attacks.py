"""What untrusted programs try, as programs that try it, and what they aim at: whether one got through is seen from outside
wherever that can be. All are bounded, so that one that gets through does no harm.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .sandbox import Ran


class Target:
    """What attacks aim at: a secret file, a folder, a listener each for TCP and UDP, a process, all of the caller's user.

    ``with Target() as target`` takes it all away again.
    """

    secret = "forethought-secret-5d1c"

    def __enter__(self) -> Target:
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forethought-target-")))
            self.folder.chmod(0o777)
            (self.folder / "secret").write_text(self.secret)
            (self.folder / "secret").chmod(0o644)
            self.tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            self.udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self.udp.bind(("127.0.0.1", 0))
            self.tcp.setblocking(False)
            self.udp.setblocking(False)
            self.victim = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
            stack.callback(self._end_victim)
            os.environ["FORETHOUGHT_SECRET"] = self.secret
            stack.callback(os.environ.pop, "FORETHOUGHT_SECRET", None)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end_victim(self) -> None:
        self.victim.kill()
        self.victim.wait()

    def fill(self, text: str) -> str:
        """``text`` with what it needs to know to find its target."""
        known = {
            "FOLDER": repr(str(self.folder)),
            "TCP": repr(self.tcp.getsockname()[1]),
            "UDP": repr(self.udp.getsockname()[1]),
            "VICTIM": repr(self.victim.pid),
        }
        for name, value in known.items():
            text = text.replace(f"${name}", value)
        return text


@dataclass(frozen=True, slots=True)
class Attack:
    """A program, and how one sees that it got through."""

    name: str
    text: str
    through: Callable[[Target, Ran], bool]


def _said(word: str) -> Callable[[Target, Ran], bool]:
    return lambda target, ran: word in ran.stdout


def _secret(target: Target, ran: Ran) -> bool:
    return target.secret in ran.stdout


def _written(name: str) -> Callable[[Target, Ran], bool]:
    def look(target: Target, ran: Ran) -> bool:
        return _soon(lambda: (target.folder / name).exists())

    return look


def _connected(target: Target, ran: Ran) -> bool:
    try:
        target.tcp.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def _received(target: Target, ran: Ran) -> bool:
    try:
        return bool(target.udp.recv(100))
    except BlockingIOError:
        return False


def _soon(there: Callable[[], bool]) -> bool:
    """Whether it is there within a second and a half; the late attacks strike after one."""
    end = time.monotonic() + 1.5
    while not (found := there()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def _killed(target: Target, ran: Ran) -> bool:
    return target.victim.poll() is not None or "SIGNALLED" in ran.stdout


ATTACKS: tuple[Attack, ...] = (
    Attack("read a file of another user", "print(open($FOLDER + '/secret').read())", _secret),
    Attack("write outside its folder", "open($FOLDER + '/written', 'w').write('x')", _written("written")),
    Attack("change a file's mode", "import os\nos.chmod($FOLDER + '/secret', 0o600)\nprint('CHANGED')", _said("CHANGED")),
    Attack(
        "TCP",
        "import socket\nsocket.create_connection(('127.0.0.1', $TCP), 2)",
        _connected,
    ),
    Attack(
        "UDP",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', $UDP))",
        _received,
    ),
    Attack(
        "50 processes",
        """
import os, time
children = []
try:
    for _ in range(50):
        child = os.fork()
        if not child:
            time.sleep(0.5)
            os._exit(0)
        children.append(child)
finally:
    for child in children:
        os.waitpid(child, 0)
print('FORKED' if len(children) == 50 else '')
""",
        _said("FORKED"),
    ),
    Attack("another program", "import subprocess\nprint(subprocess.run(['/bin/echo', 'RAN']))", _said("returncode=0")),
    Attack("3 GB of memory", "import mmap\nx = mmap.mmap(-1, 3 << 30)\nprint('ALLOCATED')", _said("ALLOCATED")),
    Attack(
        "endless output",
        "import sys\nfor _ in range(1024):\n    sys.stdout.write('x' * 65536)",
        lambda target, ran: len(ran.stdout) > 32 << 20,
    ),
    Attack(
        "256 MB of files",
        "import time\nfor i in range(32):\n    open(str(i), 'wb').write(bytes(8 << 20))\n    time.sleep(0.02)\nprint('WRITTEN')",
        _said("WRITTEN"),
    ),
    Attack(
        "a daemon that outlives it",
        """
import os, time
if not os.fork():
    os.setsid()
    if not os.fork():
        for fd in range(3):
            os.close(fd)
        time.sleep(1)
        open($FOLDER + '/daemon', 'w').write('x')
        os._exit(0)
    os._exit(0)
""",
        _written("daemon"),
    ),
    Attack("signal another process", "import os\nos.kill($VICTIM, 15)\nprint('SIGNALLED')", _killed),
    Attack("signal its parent", "import os\nos.kill(os.getppid(), 0)\nprint('SIGNALLED')", _said("SIGNALLED")),
    Attack(
        "trace another process",
        """
import ctypes
libc = ctypes.CDLL(None)
libc.ptrace.argtypes = [ctypes.c_long] * 4
print('TRACED' if libc.ptrace(0x4206, $VICTIM, 0, 0) == 0 else '')
""",
        _said("TRACED"),
    ),
    Attack(
        "secrets in the environment",
        """
import os, glob
print(dict(os.environ))
for path in ['/proc/self/environ', f'/proc/{os.getppid()}/environ', '/proc/$VICTIM/environ']:
    try:
        print(open(path).read())
    except OSError:
        pass
""",
        _secret,
    ),
    Attack(
        "raise its own limits",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY,) * 2)\nprint('RAISED')",
        _said("RAISED"),
    ),
    Attack(
        "a user namespace",
        "import ctypes\nprint('NAMESPACE' if ctypes.CDLL(None).unshare(0x10000000) == 0 else '')",
        _said("NAMESPACE"),
    ),
)
