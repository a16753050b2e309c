"""50 processes that start in the same second, one transition each: half on one job, half on jobs of their own.

Each process imports what it needs and waits; then all are let go at once, and a transition's time is from that moment
to its commit, opening the database included. `errors`: processes whose transition failed; `lost`: rows that are missing
or double afterwards; `all_s`: until the last was through, in the slowest round; `cpu_s`: the processor time of one
transition, which tells what the others owe to a busy machine. `vs_retry_ratio` is `p99_s` over that of the same
transitions through plain `duckdb.connect`, retried for a minute with a random back-off when the file is locked, in the
same run, round by round; the peer's transitions that failed are not in its figure.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

LIMITS = {"errors": 0.0, "lost": 0.0, "p99_s": 1.5, "all_s": 2.0, "vs_retry_ratio": 1.0}
_PROCESSES = 50


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--processes", type=int, default=_PROCESSES, help=f"how many at once (default {_PROCESSES})")


@dataclass
class Storm:
    """Seconds of every transition, and what went wrong, over all rounds of one way to open the file."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    slowest_round: float = 0.0
    errors: int = 0
    lost: int = 0


def run(quick: bool, processes: int = _PROCESSES) -> dict[str, float]:
    """The figures of the docstring. Rounds are interleaved with those of the peer."""
    storms = {"ours": Storm(), "retried": Storm()}
    for _ in range(1 if quick else 4):
        for how, storm in storms.items():
            with tempfile.TemporaryDirectory(prefix="servicectl-bench-") as folder:
                storm_of(how, Path(folder), storm, processes)
    for how, storm in storms.items():
        p50, p99 = _percentiles(storm.seconds)
        print(
            f"{how:<8} p50 {p50:.3f} s, p99 {p99:.3f} s, slowest round {storm.slowest_round:.3f} s, "
            f""
            f"{median(storm.cpu):.4f} s CPU each, {storm.errors} errors, {storm.lost} lost, of {len(storm.seconds)}",
            file=sys.stderr,
        )
    ours, (p50, p99) = storms["ours"], _percentiles(storms["ours"].seconds)
    _, theirs = _percentiles(storms["retried"].seconds)
    return {
        "errors": float(ours.errors),
        "lost": float(ours.lost),
        "p50_s": round(p50, 3),
        "p99_s": round(p99, 3),
        "all_s": round(ours.slowest_round, 3),
        "cpu_s": round(median(ours.cpu), 4),
        "vs_retry_ratio": round(p99 / theirs, 3),
    }


def storm_of(how: str, folder: Path, storm: Storm, processes: int) -> None:
    """One round: every process makes its transition; what it took and what went wrong is added to `storm`."""
    from bench._contention_worker import job_of_its_own
    from servicectl.jobs.table import JobTable
    from servicectl.store import Store

    table = JobTable(Store(folder))
    own = range(0, processes, 2)
    for number in own:
        table.submit(job_of_its_own(number), step_schema=1, max_attempts=5)
    gate, opener = os.pipe()
    workers = [_worker(how, folder, "own" if number in own else "all", number, gate) for number in range(processes)]
    os.close(gate)
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    started = time.monotonic()
    os.close(opener)
    ended = []
    for worker in workers:
        out, err = worker.communicate()
        if worker.returncode:
            storm.errors += 1
            if storm.errors == 1:
                print(f"{how}, the first error: {err.splitlines()[-1]}", file=sys.stderr)
        else:
            moment, cpu = out.split()
            ended.append(float(moment) - started)
            storm.cpu.append(float(cpu))
    storm.seconds += ended
    storm.slowest_round = max([storm.slowest_round, *ended])
    storm.lost += _wrong(folder, len(own), processes - len(own))


def _worker(how: str, folder: Path, what: str, number: int, gate: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench._contention_worker", how, str(folder), what, str(number), str(gate)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[gate],
    )


def _wrong(folder: Path, own: int, of_all: int) -> int:
    """By how much the tables differ from what the transitions must have left."""
    from servicectl.store import Store

    expected = {
        "FROM jobs WHERE scope <> 'of-all' AND state = 'RUNNING' AND epoch = 1 AND attempts = 1": own,
        "FROM events WHERE edge = 'claim'": own,
        "FROM jobs WHERE scope = 'of-all'": 1,
        "FROM requests r JOIN jobs j USING (job_id) WHERE r.request_id LIKE 'asked-by-%' AND j.scope = 'of-all'": of_all,
        "FROM events WHERE edge = 'submit'": own + 1,
    }
    with Store(folder).reading() as connection:
        assert connection is not None
        found = {rows: connection.execute(f"SELECT count(*) {rows}").fetchone()[0] for rows in expected}
    return sum(abs(found[rows] - count) for rows, count in expected.items())


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    hundredths = quantiles(seconds, n=100, method="inclusive")
    return hundredths[49], hundredths[98]
