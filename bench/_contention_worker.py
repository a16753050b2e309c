"""One process of `bench contention`: it makes itself ready, waits for the start with all others, makes one transition.

`python -m bench._contention_worker HOW FOLDER WHAT NUMBER GATE`; GATE is a descriptor that is closed to start. Prints
"ready", then the moment its transition was through (CLOCK_MONOTONIC, one clock for all processes) and the processor seconds it
took; or it fails with what went wrong.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import duckdb
import tenacity

from servicectl.jobs.model import NewJob
from servicectl.jobs.table import JobTable
from servicectl.leave import leave
from servicectl.store import Store

ME = {"host": "bench", "pid": os.getpid(), "boot_id": "bench", "user": "bench"}


def job_of_its_own(number: int) -> NewJob:
    return NewJob("bench", f"scope-{number}", job_id=f"019aafd0-0000-7000-8000-{number:012x}")


def job_of_all(number: int) -> NewJob:
    return NewJob("bench", "of-all", request_id=f"asked-by-{number}")


class RetriedStore:
    """What people write instead: connect, and try again after a random time when DuckDB says the file is locked."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "servicectl.duckdb")

    @tenacity.retry(
        retry=tenacity.retry_if_exception(lambda error: "Could not set lock on file" in str(error)),
        wait=tenacity.wait_random_exponential(0.02, 2.0),
        stop=tenacity.stop_after_delay(60),
        reraise=True,
    )
    def _connect(self, *, read_only: bool) -> Any:
        settings = {"threads": "1", "memory_limit": "256MB", "storage_compatibility_version": "v1.4.0"}
        return duckdb.connect(self._path, read_only=read_only, config=settings)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with self._connect(read_only=False) as connection:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[Any]:
        with self._connect(read_only=True) as connection:
            yield connection


def main(how: str, folder: str, what: str, number: int, gate: int) -> None:
    store = Store(Path(folder)) if how == "ours" else cast(Store, RetriedStore(Path(folder)))
    table = JobTable(store)
    print("ready", flush=True)
    os.read(gate, 1)
    used = time.process_time()
    if what == "own":
        job_id = job_of_its_own(number).job_id
        assert job_id is not None
        assert table.claim(job_id, ME) is not None
    else:
        table.submit(job_of_all(number), step_schema=1, max_attempts=5)
    print(time.monotonic(), time.process_time() - used, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    leave(0)  # as a command ends
