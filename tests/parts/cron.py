"""A machine that Debian's cron runs on, with the shipped table installed by the very lines of docs/timers.md.

Its cron can be started at any moment of any day: it is the real one, only its clock begins elsewhere.
"""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.parts import program
from tests.parts.machine import ENVIRONMENT, Machine, documented, machine, until

_REBOOTED = "/run/crond.reboot"  # cron's own note that what is due after a boot was started
_PID = "/run/crond.pid"

# The half minute that a line waits for after a boot passes in half a second.
_SLEEP = """#!/bin/sh
exec faketime -f '+0 x60' /bin/sleep "$@"
"""


class Line(NamedTuple):
    """One line of the system log: severity 0-7 as in syslog(3), the program, what it said."""

    severity: int
    tag: str
    text: str


@dataclass
class Cron:
    machine: Machine
    _log: socket.socket
    _lines: list[Line] = field(default_factory=list)

    def lines(self) -> list[Line]:
        """The system log since the last `forget`."""
        with suppress(BlockingIOError):
            while True:
                found = re.match(
                    r"<(\d+)>\w+ [ \d]\d [\d:]{8} ([^:[]+)(?:\[\d+\])?: (.*)", self._log.recv(65536).decode()
                )
                assert found
                self._lines.append(Line(int(found[1]) & 7, found[2], found[3]))
        return self._lines

    def started(self) -> list[str]:
        """The commands cron has started."""
        return [line.text for line in self.lines() if line.tag == "CRON" and " CMD (" in line.text]

    def ended(self) -> list[str]:
        """The commands of cron that have ended."""
        return [line.text for line in self.lines() if line.tag == "CRON" and " END (" in line.text]

    def statuses(self) -> list[int]:
        """Exit statuses other than 0, as cron logs them."""
        found = (re.search(r"failed with exit status (\d+)", line.text) for line in self.lines() if line.tag == "CRON")
        return [int(one[1]) for one in found if one]

    def forget(self) -> None:
        """Begin anew: nothing was logged, no job was ever taken, the machine has been up for long."""
        self.lines().clear()
        self.machine.forget_jobs()
        self.machine.path(_REBOOTED).touch()

    @contextmanager
    def running(self, moment: str, *, after_boot: bool = False) -> Iterator[None]:
        """cron, started at a moment of local time, "2026-11-22 01:59:57"; ended when everything it started has ended."""
        if after_boot:
            self.machine.path(_REBOOTED).unlink()
        command = self.machine.entered("faketime", "-f", f"@{moment}", "cron", "-f", "-L", "15")
        with subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL) as nsenter:
            try:
                yield
                until(lambda: len(self.ended()) == len(self.started()), lambda: f"cron's commands: {self.lines()}")
            finally:
                self.machine.run("kill", self.machine.path(_PID).read_text().strip())
                nsenter.wait()


@contextmanager
def cron() -> Iterator[Cron]:
    """A machine with the table installed, whose cron does not run yet and which no Redis runs on."""
    for needed in ("cron", "faketime", "flock", "logger", "ionice"):
        program(needed)
    with machine("exec sleep infinity") as made, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(made.path("/dev/log")))
        log.setblocking(False)
        made.path("/dev/log").chmod(0o666)
        made.path("/etc/crontab").write_text("")
        made.write("/usr/local/bin/sleep", _SLEEP, 0o755)
        made.run("bash", "-euc", documented("timers.md", "Install with cron"))
        yield Cron(made, log)
