"""`tests.jobs.program` as a process of its own, that a test talks with and kills."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.parts import ROOT

_DEADLINE_S = 60


@dataclass
class Started:
    """A running `tests.jobs.program`."""

    process: subprocess.Popen[bytes]

    def line(self) -> str:
        """The next line of its stdout, or the empty text at its end."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], _DEADLINE_S)
        assert ready, f"the program said nothing for {_DEADLINE_S} s"
        return self.process.stdout.readline().decode().rstrip("\n")

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    def ended(self) -> tuple[int, list[str]]:
        """Its exit status and what else it said."""
        out, _ = self.process.communicate(timeout=_DEADLINE_S)
        return self.process.returncode, out.decode().splitlines()

    def killed(self) -> None:
        self.process.kill()
        self.process.wait(_DEADLINE_S)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def waited_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < limit, f"waited {_DEADLINE_S} s"
        time.sleep(0.01)


Start = Callable[..., Started]


@contextmanager
def job_programs(folder: Path) -> Iterator[Start]:
    """Start the program with a command; `crash_at` names a crash point. All are killed at the end."""
    started: list[Started] = []

    def begin(command: str, *arguments: str, crash_at: str = "", folder: Path = folder) -> Started:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.program", str(folder), command, *arguments],
            cwd=ROOT,
            env={**os.environ, "SERVICECTL_CRASH_AT": crash_at},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        started.append(Started(process))
        return started[-1]

    try:
        yield begin
    finally:
        for one in started:
            one.process.kill()
            one.process.communicate()
