"""Rows of the job tables turned into values, and what stands in their JSON columns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from servicectl.errors import StoreError, UsageError
from servicectl.jobs.model import Job, State, Step

_COLUMNS = (
    "job_id::VARCHAR, kind, step_schema, scope, request_id, spec, state, epoch, attempts, max_attempts, not_before, "
    "parent_id::VARCHAR, trigger, owner, cancel_requested, outcome, needs_operator, result, exit_status, error, cure, "
    "created_at, updated_at, finished_at"
)
UNFINISHED = "state IN ('PENDING', 'RUNNING')"
BY_ID = "job_id = TRY_CAST(? AS UUID)"  # an id that is none finds nothing


def the_one(job_id: str, found: Sequence[Job]) -> Job:
    if not found:
        raise UsageError(f"there is no job {job_id}", cure="servicectl jobs list --all")
    return found[0]


def job_rows(connection: Any, where: str, values: Sequence[Any], tail: str = "") -> list[Job]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {where} {tail}", list(values)).fetchall()
    return [_job(row) for row in rows]


def moved_jobs(connection: Any, update: str, values: Sequence[Any]) -> list[Job]:
    """The jobs that an UPDATE changed, as they are now; reading them again would cost a statement more."""
    rows = connection.execute(f"{update} RETURNING {_COLUMNS}", list(values)).fetchall()
    return [_job(row) for row in rows]


def _job(row: Sequence[Any]) -> Job:
    values = dict(zip(Job.__dataclass_fields__, row, strict=True))
    with _read_back(row[0]):
        values["state"] = State(values["state"])
        for column in ("spec", "owner", "result"):
            values[column] = _decoded(values[column])
    return Job(**values)


@contextlib.contextmanager
def _read_back(job_id: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, msgspec.DecodeError) as error:
        raise StoreError(
            f"job {job_id} holds a value this program cannot read ({error}); was the table edited by hand?",
            cure="correct it, or put a backup back: servicectl jobs restore FILE",
        ) from None


def step_rows(connection: Any, job_id: str) -> list[Step]:
    rows = connection.execute(
        "SELECT seq, name, state, epoch, attempts, started_at, finished_at, output, error FROM steps"
        f" WHERE {BY_ID} ORDER BY seq",
        [job_id],
    ).fetchall()
    names = list(Step.__dataclass_fields__)
    with _read_back(job_id):
        return [Step(**dict(zip(names, (*row[:7], _decoded(row[7]), row[8]), strict=True))) for row in rows]


def _decoded(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)


def to_json(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()
