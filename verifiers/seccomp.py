"""A seccomp filter for one untrusted process, as classic BPF put together here, for x86_64 and aarch64: no sockets, no new
processes or programs, no signals or limits for others, no mounts, namespaces, tracing, kernel keys or shared memory. It cannot
tell one path from another, which is for Landlock or a mount namespace. Stands alone: the harness loads it by path.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NEWEST = 451
"""Calls with higher numbers are answered with ENOSYS, as by a kernel that does not have them: what they do is not known here."""

# name:x86_64:aarch64, refused whatever the arguments. Owners and attributes too: Landlock leaves them open.
_REFUSED = """
socket:41:198 connect:42:203 bind:49:200 listen:50:201 accept:43:202 accept4:288:242
ptrace:101:117 kcmp:312:272 process_vm_readv:310:270 process_vm_writev:311:271 process_madvise:440:440 process_mrelease:448:448
pidfd_open:434:434 pidfd_getfd:438:438 pidfd_send_signal:424:424 rt_sigqueueinfo:129:138 rt_tgsigqueueinfo:297:240 tkill:200:130
fork:57: vfork:58: execve:59:221 execveat:322:281 unshare:272:97 setns:308:268
mount:165:40 umount2:166:39 pivot_root:155:41 chroot:161:51 mount_setattr:442:442 open_tree:428:428 move_mount:429:429
fsopen:430:430 fsconfig:431:431 fsmount:432:432 fspick:433:433 bpf:321:280 perf_event_open:298:241 userfaultfd:323:282
io_uring_setup:425:425 io_uring_enter:426:426 io_uring_register:427:427 add_key:248:217 request_key:249:218 keyctl:250:219
init_module:175:105 finit_module:313:273 delete_module:176:106 kexec_load:246:104 kexec_file_load:320:294 reboot:169:142
swapon:167:224 swapoff:168:225 syslog:103:116 acct:163:89 quotactl:179:60 quotactl_fd:443:443 settimeofday:164:170
clock_settime:227:112 adjtimex:159:171 clock_adjtime:305:266 sethostname:170:161 setdomainname:171:162 iopl:172: ioperm:173:
modify_ldt:154: vhangup:153:58 personality:135:92 name_to_handle_at:303:264 open_by_handle_at:304:265 fanotify_init:300:262
inotify_init:253: inotify_init1:294:26 lookup_dcookie:212:18 memfd_create:319:279 memfd_secret:447:447
chown:92: fchown:93:55 lchown:94: fchownat:260:54 mknod:133: mknodat:259:33
setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7
removexattr:197:14 lremovexattr:198:15 fremovexattr:199:16 setpriority:141:140 sched_setscheduler:144:119
sched_setparam:142:118 sched_setattr:314:274 sched_setaffinity:203:122 ioprio_set:251:30 migrate_pages:256:238
move_pages:279:239 shmget:29:194 shmat:30:196 shmctl:31:195 semget:64:190 semop:65:193 semtimedop:220:192 semctl:66:191
msgget:68:186 msgsnd:69:189 msgrcv:70:188 msgctl:71:187 mq_open:240:180 mq_unlink:241:181
"""
# Modes and times, which Landlock leaves open for files anywhere; harmless where nothing but a program's own files can change.
_OWN_FILES = "chmod:90: fchmod:91:52 fchmodat:268:53 utime:132: utimes:235: futimesat:261: utimensat:280:88"
# Decided by their arguments.
_KILL, _TGKILL, _PRLIMIT = (62, 129), (234, 131), (302, 261)
_CLONE, _CLONE3, _SOCKETPAIR = (56, 220), (435, 435), (53, 199)
_FCNTL, _IOCTL, _PRCTL = (72, 25), (16, 29), (157, 167)

_CLONE_THREAD, _AF_UNIX, _SOCK_STREAM, _PR_SET_PDEATHSIG = 0x10000, 1, 1, 1
_OWNER_OF_SIGNALS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: a way to have the kernel signal somebody else
_OWNER_BY_IOCTL = (0x5412, 0x8901, 0x8902)  # TIOCSTI types into a terminal; FIOSETOWN and SIOCSPGRP are F_SETOWN again

_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _DIE = 0x7FFF0000, 0x80000000

Step = tuple[int, int, int, int]


def _answer(error: int) -> Step:
    return _RETURN, 0, 0, 0x00050000 | error


def _load_argument(index: int) -> Step:
    return _LOAD, 0, 0, 16 + 8 * index  # the low half; all arguments looked at here are ints to the kernel


def _argument(index: int, values: tuple[int, ...], *, allowed: bool) -> list[Step]:
    """Allow only, or all but, ``values`` of one argument."""
    found: Step = (_RETURN, 0, 0, _ALLOW) if allowed else _answer(errno.EPERM)
    other: Step = _answer(errno.EPERM) if allowed else (_RETURN, 0, 0, _ALLOW)
    steps = [_load_argument(index)]
    for value in values:
        steps += [(_EQUAL, 0, 1, value), found]
    return [*steps, other]


def program(machine: str, pid: int, *, own_files: bool = False) -> bytes:
    """The filter for the process ``pid``: ``struct sock_filter`` after ``struct sock_filter``.

    ``own_files``: every file that it could change is its own, so it may set their modes and times.
    """
    column = list(ARCHITECTURES).index(machine)
    threads_only = [_load_argument(0), (_ANY_BIT, 0, 1, _CLONE_THREAD), (_RETURN, 0, 0, _ALLOW), _answer(errno.EPERM)]
    stream_pair: list[Step] = [
        _load_argument(0),
        (_EQUAL, 0, 3, _AF_UNIX),
        _load_argument(1),
        (_AND, 0, 0, 0xF),
        (_EQUAL, 1, 0, _SOCK_STREAM),  # a pair of datagram sockets could write to any socket that has a path
        _answer(errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    rules: list[tuple[tuple[int, int], list[Step]]] = [
        (_CLONE, threads_only),
        (_CLONE3, [_answer(errno.ENOSYS)]),  # its flags lie in memory; the C library falls back to clone
        (_SOCKETPAIR, stream_pair),
        (_KILL, _argument(0, (pid,), allowed=True)),
        (_TGKILL, _argument(0, (pid,), allowed=True)),
        (_PRLIMIT, _argument(0, (0, pid), allowed=True)),
        (_PRCTL, _argument(0, (_PR_SET_PDEATHSIG,), allowed=False)),
        (_FCNTL, _argument(1, _OWNER_OF_SIGNALS, allowed=False)),
        (_IOCTL, _argument(1, _OWNER_BY_IOCTL, allowed=False)),
    ]
    steps: list[Step] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _DIE),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, 0x40000000),  # the x32 numbers of x86_64
        (_RETURN, 0, 0, _DIE),
        (_AT_LEAST, 0, 1, NEWEST + 1),
        _answer(errno.ENOSYS),
    ]
    for numbers, body in rules:
        steps += [(_EQUAL, 0, len(body), numbers[column]), *body]
    for entry in (_REFUSED if own_files else f"{_REFUSED} {_OWN_FILES}").split():
        if number := entry.split(":")[1 + column]:
            steps += [(_EQUAL, 0, 1, int(number)), _answer(errno.EPERM)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def missing() -> str | None:
    """Why there is no filter on this machine; None when there is."""
    if platform.system() != "Linux":
        return f"seccomp is part of Linux, this is {platform.system()}"
    if platform.machine() not in ARCHITECTURES:
        return f"no seccomp table for {platform.machine()}"
    return None


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(*, own_files: bool = False) -> None:
    """Put the calling thread, the only one, under the filter, for good. Raises ``OSError``."""
    code = program(platform.machine(), os.getpid(), own_files=own_files)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    if libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(_Program(len(code) // 8, code)), 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")
