"""Jobs and events in the words of servicectl.v1."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from servicectl._pb.v1 import jobs_pb2
from servicectl.actions.trigger import Seen
from servicectl.jobs.model import Event, State

_STATES = {
    State.PENDING: jobs_pb2.JOB_STATE_PENDING,
    State.RUNNING: jobs_pb2.JOB_STATE_RUNNING,
    State.COMPLETED: jobs_pb2.JOB_STATE_COMPLETED,
    State.FAILED: jobs_pb2.JOB_STATE_FAILED,
    State.CANCELLED: jobs_pb2.JOB_STATE_CANCELLED,
}


def job_message(seen: Seen, *, whole: bool = False) -> jobs_pb2.Job:
    """`whole`: with its result and the ids of its children."""
    job = seen.job
    return jobs_pb2.Job(
        job_id=job.job_id,
        kind=job.kind,
        scope=job.scope,
        state=jobs_pb2.JOB_STATE_INTERRUPTED if seen.interrupted else _STATES[job.state],
        outcome=job.outcome or "",
        exit_status=job.exit_status,
        needs_operator=job.needs_operator,
        attempts=job.attempts,
        max_attempts=job.max_attempts,
        trigger=job.trigger,
        parent_id=job.parent_id or "",
        error=job.error or "",
        cure=job.cure or "",
        not_before=_timestamp(job.not_before),
        created_at=_timestamp(job.created_at),
        updated_at=_timestamp(job.updated_at),
        finished_at=_timestamp(job.finished_at),
        result_json=msgspec.json.encode(job.result).decode() if whole and job.result is not None else "",
        children=seen.children if whole else (),
    )


def event_message(event: Event) -> jobs_pb2.JobEvent:
    return jobs_pb2.JobEvent(
        seq=event.seq,
        edge=event.edge,
        from_state=_STATES[State(event.from_state)] if event.from_state else jobs_pb2.JOB_STATE_UNSPECIFIED,
        to_state=_STATES[State(event.to_state)],
        detail=event.detail or "",
        happened_at=_timestamp(event.happened_at),
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    """Given a stored time, which is UTC without saying so."""
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment.replace(tzinfo=UTC))
    return message
