"""Jobs, steps and events as values, and every edge a job's state may take.

PENDING    waits: newly submitted, due for a retry at `not_before`, or given back by an interrupted run
RUNNING    a process holds the scope's lock; if nobody does, the run was interrupted and any later one resumes it
COMPLETED  done; `outcome` says with what result
FAILED     will not be retried by itself; `needs_operator` when retrying cannot cure it
CANCELLED  stopped on the operator's word
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from servicectl.errors import ExitStatus


class State(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ENDED = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})

# edge name -> (from, to, who may take it). docs/jobs.md draws this table; a test holds the two together.
EDGES: Mapping[str, tuple[State | None, State, str]] = {
    "submit": (None, State.PENDING, "a command, a parent job or a gRPC caller"),
    "claim": (State.PENDING, State.RUNNING, "the process that holds the scope's lock"),
    "take_over": (State.RUNNING, State.RUNNING, "the next holder of the lock, after the owner died"),
    "complete": (State.RUNNING, State.COMPLETED, "the owner"),
    "retry_later": (State.RUNNING, State.PENDING, "the owner, after a failure that time may cure"),
    "give_back": (State.RUNNING, State.PENDING, "the owner, on SIGTERM or SIGINT; the attempt is returned"),
    "release": (State.RUNNING, State.PENDING, "the next holder of the lock, for another job, after the owner died"),
    "fail": (State.RUNNING, State.FAILED, "the owner, when no attempt is left or retrying cannot help"),
    "exhaust": (State.RUNNING, State.FAILED, "the next holder of the lock, when the last attempt died too"),
    "stop": (State.RUNNING, State.CANCELLED, "the owner, asked to cancel; or anybody once the owner is dead"),
    "cancel": (State.PENDING, State.CANCELLED, "the operator"),
    "retry": (State.FAILED, State.PENDING, "the operator"),
    "reopen": (State.CANCELLED, State.PENDING, "the operator"),
}


OWNER_DIED = "its owner had died"  # the detail of a `stop` or `release`, which its owner did not take itself


@dataclass(frozen=True)
class NewJob:
    """A job to submit. `spec` is small JSON; `request_id` makes repeats return the same job."""

    kind: str
    scope: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    request_id: str | None = None
    job_id: str | None = None
    trigger: str = "operator"


@dataclass(frozen=True)
class Job:
    job_id: str
    kind: str
    step_schema: int
    scope: str
    request_id: str | None
    spec: Mapping[str, Any]
    state: State
    epoch: int
    attempts: int
    max_attempts: int
    not_before: datetime
    parent_id: str | None
    trigger: str
    owner: Mapping[str, Any] | None
    cancel_requested: bool
    outcome: str | None
    needs_operator: bool
    result: Mapping[str, Any] | None
    exit_status: int | None
    error: str | None
    cure: str | None
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def is_due(self, now: datetime) -> bool:
        """Whether a waiting job may run. One that was put off in the future is due: the clock was set back since."""
        return self.not_before <= now or self.updated_at > now

    @property
    def short_id(self) -> str:
        """The random tail: the head of a UUIDv7 is the time and the same for neighbours."""
        return self.job_id[-8:]


@dataclass(frozen=True)
class Step:
    seq: int
    name: str
    state: str
    epoch: int
    attempts: int
    started_at: datetime
    finished_at: datetime | None
    output: Any
    error: str | None


@dataclass(frozen=True)
class Event:
    seq: int
    epoch: int
    edge: str
    from_state: str | None
    to_state: str
    detail: str | None
    happened_at: datetime


@dataclass(frozen=True)
class Result:
    """What an action ends with: a word for the outcome, small JSON, an exit status, and jobs to run after it."""

    outcome: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    exit_status: ExitStatus = ExitStatus.OK
    children: tuple[NewJob, ...] = ()

    def __post_init__(self) -> None:
        # A child's id is made of these two, so that a parent's children are the same however often it is killed.
        named = [(child.kind, child.scope) for child in self.children]
        if len(named) != len(set(named)):
            raise ValueError(f"two children of one kind and scope: {named}")
