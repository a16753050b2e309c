"""Named points at which a test, the demo or `selftest` lets the process die as if power had failed.

`SERVICECTL_CRASH_AT` holds comma-separated names; `NAME@3` means the third time that a process comes by. The engine
passes `<kind>/<step>/before`, `<kind>/<step>/effect` (the effect happened, nothing recorded) and
`<kind>/<step>/recorded` for every step. `SERVICECTL_CRASH_TRACE` names a file that gets one line per point passed,
`<process id> <name>`, so that nobody need list them by hand.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_passed: Counter[str] = Counter()


def point(name: str) -> None:
    """Given the name of this point, die by SIGKILL if the environment asks for it."""
    wanted, trace = os.environ.get("SERVICECTL_CRASH_AT"), os.environ.get("SERVICECTL_CRASH_TRACE")
    if trace:
        _append(trace, f"{os.getpid()} {name}\n")
    if not wanted:
        return
    _passed[name] += 1
    asked = wanted.split(",")
    if f"{name}@{_passed[name]}" in asked or name in asked:
        os.kill(os.getpid(), signal.SIGKILL)


def _append(path: str, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        os.write(descriptor, line.encode())  # one write, so that lines of several processes do not mix
    finally:
        os.close(descriptor)
