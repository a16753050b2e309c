from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from servicectl.clock import Clock
from servicectl.jobs.model import Job
from servicectl.jobs.runner import Runner
from tests.jobs.program import runner
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


Start = Callable[..., Started]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the program on this test's folder; a crash point is given as `crash_at`."""
    started: list[Started] = []

    def begin(command: str, *arguments: str, crash_at: str = "", folder: Path = tmp_path) -> Started:
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

    yield begin
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def mine(tmp_path: Path) -> Runner:
    """A runner in this process, of the same kinds as the program's."""
    return runner(tmp_path)


@dataclass
class HandClock:
    """Wall time that moves when told to."""

    moment: datetime = field(default=datetime(2026, 11, 23, 3, 0, tzinfo=UTC))

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.moment, monotonic=time.monotonic, sleep=time.sleep)


@pytest.fixture
def hand() -> HandClock:
    return HandClock()


def edges(mine: Runner, job: Job) -> list[str]:
    return [event.edge for event in mine.table.events(job.job_id)]
