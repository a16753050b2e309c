from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from servicectl.clock import Clock
from servicectl.jobs.model import Job
from servicectl.jobs.runner import Runner
from tests.jobs.program import runner
from tests.parts.jobs import Start, job_programs


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with job_programs(tmp_path) as begin:
        yield begin


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
