"""What a child process gives up at its start. Standard library only: also the isolated probe begins here.

What holds, and where:

| promise | by | where |
|---|---|---|
| it dies with its parent | PR_SET_PDEATHSIG | every child, Linux |
| it never gains rights by setuid programs | PR_SET_NO_NEW_PRIVS | judge and check |
| no socket, no new program, no tracing of others | seccomp filter, EPERM | judge and check, x86-64 and aarch64 with seccomp |
| no file content written | RLIMIT_FSIZE = 0 | check |
| bounded private memory | RLIMIT_DATA | wherever a limit is given |

Reading files that the user may read is not prevented, nor is deleting them: a model is opened only after its digest was
checked, so these are a second wall.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2

# linux/audit.h and the system call tables: socket, connect, bind, sendto, execve, execveat, ptrace, process_vm_writev,
# io_uring_setup (it can open sockets by itself).
_MACHINES = {
    "x86_64": (0xC000003E, (41, 42, 49, 44, 59, 322, 101, 311, 425)),
    "aarch64": (0xC00000B7, (198, 203, 200, 206, 221, 281, 117, 271, 425)),
}


def die_with(parent: int) -> None:
    """Be killed when the thread that started us ends. Ends at once if the parent is gone already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def leave_signals_to_parent() -> None:
    """Ctrl-C and a unit's SIGTERM reach the whole group; the parent decides what they mean for us."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def limit_memory(memory_mb: int) -> None:
    """Bound private memory. Not RLIMIT_AS: it counts mapped libraries and address space that is only reserved."""
    if memory_mb > 0:
        limit = memory_mb << 20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def private_memory_mb() -> int:
    """What counts towards the bound of `limit_memory`, as it stands now, in MiB."""
    with open("/proc/self/status") as status:  # noqa: PTH123 -- the probe starts without pathlib
        sizes = dict(line.split(":", 1) for line in status)
    return int(sizes["VmData"].split()[0]) >> 10


def no_files() -> tuple[str, ...]:
    """Forbid writing into regular files; pipes stay open."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    return ("no_files",)


def no_network() -> tuple[str, ...]:
    """Give up new rights, sockets and programs. Returns the names of what the kernel granted."""
    held = []
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1):
        held.append("no_new_privs")
        if _filter():
            held.append("seccomp")
    return tuple(held)


def _filter() -> bool:
    """A classic BPF program: wrong architecture or a listed call -> EPERM, else allow (seccomp(2))."""
    if platform.machine() not in _MACHINES:
        return False
    architecture, forbidden = _MACHINES[platform.machine()]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    deny, allow = 0x00050000 | 1, 0x7FFF0000
    count = len(forbidden)
    # Jumps count the lines they skip; the last line denies, the one before it allows.
    program = [
        (load, 0, 0, 4),
        (equal, 0, count + 3, architecture),
        (load, 0, 0, 0),
        (at_least, count + 1, 0, 0x40000000),  # the x32 names of the same calls
        *((equal, count - index, 0, number) for index, number in enumerate(forbidden)),
        (give, 0, 0, allow),
        (give, 0, 0, deny),
    ]
    lines = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(lines, len(lines))
    header = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(buffer)))
    return _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header))


def _prctl(option: int, *arguments: int) -> bool:
    library = ctypes.CDLL(None, use_errno=True)
    # Unused arguments must be zero.
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)][:4]
    return bool(library.prctl(option, *padded) == 0)
