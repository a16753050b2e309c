"""The rows of a job's steps: ended and begun by its owner, set aside by the operator."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from servicectl.errors import StoreError, UsageError
from servicectl.jobs.model import Job
from servicectl.jobs.rows import step_rows


@dataclass(frozen=True)
class StepChange:
    """Steps that end and begin in one transaction; all but `begin` may be empty."""

    completed: tuple[str, str] | None = None  # name, output as JSON text
    failed: tuple[str, str] | None = None  # name, error text
    stale_from: int | None = None  # the step with this seq and all after it no longer count
    begin: str | None = None


def apply(connection: Any, job: Job, change: StepChange, now: datetime) -> None:
    """Given that the caller owns the job, write a change. Raises StoreError when the rows are not what it left."""
    for state, ended in (("COMPLETED", change.completed), ("FAILED", change.failed)):
        if ended is None:
            continue
        column = "output" if state == "COMPLETED" else "error"
        moved = connection.execute(
            f"UPDATE steps SET state = '{state}', {column} = ?, finished_at = ?"
            " WHERE job_id = ? AND name = ? AND epoch = ? AND state = 'RUNNING' RETURNING 1",
            [ended[1], now, job.job_id, ended[0], job.epoch],
        ).fetchall()
        if len(moved) != 1:
            raise StoreError(f"step {ended[0]!r} of job {job.short_id} is not running; was the table edited by hand?")
    if change.stale_from is not None:
        _set_aside(connection, job, change.stale_from)
    if change.begin is not None:
        _begin(connection, job, change.begin, now)


def fail_running(connection: Any, job: Job, why: str, now: datetime) -> None:
    """Given that nobody runs the job, the step that its last owner was in ends."""
    connection.execute(
        "UPDATE steps SET state = 'FAILED', error = ?, finished_at = ? WHERE job_id = ? AND state = 'RUNNING'",
        [why, now, job.job_id],
    )


def redo_from(connection: Any, job: Job, name: str) -> None:
    """Set a step and all after it aside, to be done again. Raises UsageError for one that the job never began."""
    steps = step_rows(connection, job.job_id)
    for step in steps:
        if step.name == name:
            _set_aside(connection, job, step.seq)
            return
    began = ", ".join(step.name for step in steps) or "none"
    raise UsageError(f"job {job.short_id} has begun no step {name!r}; its steps: {began}", cure="name one of these")


def _set_aside(connection: Any, job: Job, seq: int) -> None:
    connection.execute("UPDATE steps SET state = 'STALE' WHERE job_id = ? AND seq >= ?", [job.job_id, seq])


def _begin(connection: Any, job: Job, name: str, now: datetime) -> None:
    again = connection.execute(
        "UPDATE steps SET state = 'RUNNING', epoch = ?, attempts = attempts + 1, started_at = ?, finished_at = NULL,"
        " output = NULL, error = NULL WHERE job_id = ? AND name = ? AND state <> 'COMPLETED' RETURNING 1",
        [job.epoch, now, job.job_id, name],
    ).fetchall()
    if not again:
        connection.execute(
            "INSERT INTO steps (job_id, seq, name, state, epoch, attempts, started_at)"
            " SELECT ?, (SELECT coalesce(max(seq), 0) + 1 FROM steps WHERE job_id = ?), ?, 'RUNNING', ?, 1, ?",
            [job.job_id, job.job_id, name, job.epoch, now],
        )
