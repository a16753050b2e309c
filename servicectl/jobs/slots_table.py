"""The table of slots: what became of each, written in one transaction with the jobs that it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from servicectl.clock import stored
from servicectl.jobs.model import Job, NewJob
from servicectl.jobs.rows import job_rows, to_json
from servicectl.jobs.slots import Decided, Decision, Schedule, Standing, decide
from servicectl.jobs.table import JobTable

_SINCE, _SEEN = "since: ", "seen: "
"""Begin the `decision` of a row that is no slot: from its moment on the schedule named behind it counts. "seen": its
timer has not come yet."""

_NO_SLOT = f"(starts_with(decision, '{_SINCE}') OR starts_with(decision, '{_SEEN}'))"

_KEPT = 5000

SUBMITTABLE = tuple[NewJob, int, int]
"""A job, the version of its kind's steps, and its attempts."""


@dataclass(frozen=True)
class Slot:
    """One decided slot. `job_id` is the first of its jobs; None for a skipped one."""

    slot: datetime
    what: str
    reason: str
    job_id: str | None
    decided_at: datetime


@dataclass(frozen=True)
class Taken:
    """What one look at a schedule decided, and the jobs it made (or found waiting) for the slots to run."""

    decisions: tuple[Decision, ...] = ()
    jobs: tuple[Job, ...] = ()


def request_id(schedule: Schedule, slot: datetime, part: str = "") -> str:
    """The same slot always has the same job; `part` tells several jobs of one slot apart."""
    return f"slot:{schedule.name}:{slot.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}{f':{part}' if part else ''}"


@dataclass(frozen=True)
class Due:
    """`open_from`: the first slot that is not decided, which may be its timer's still, or to come.

    `started`: its timer has come at least once, so that what it misses is made up for.
    """

    decided: Decided
    open_from: datetime | None
    started: bool


class SlotTable(JobTable):
    """The job table of those that start jobs by the calendar."""

    def due(self, schedule: Schedule) -> Due:
        """What anybody but its timer has to decide now; nothing is written. Raises ConfigError."""
        now = self._clock.now()
        with self._store.reading() as connection:
            standing = _standing(connection, schedule, now)
        decided = decide(schedule, standing, now, by_timer=False)
        if standing.until is None:
            return Due(decided, now, started=standing.started)
        return Due(decided, schedule.next_slot(standing.until if standing.started else now), started=standing.started)

    def take(
        self, schedule: Schedule, jobs_of: Callable[[Decision], Sequence[SUBMITTABLE]], *, by_timer: bool
    ) -> Taken:
        """Decide every slot that is due and make its jobs, in one transaction: of two that come at once, one does.

        A slot to run gets jobs of its own, even behind an unfinished one of their scope; unless one that waits there
        asks for the same and was never begun: that one serves it, too ("all": never). Raises ConfigError.
        """
        now = self._clock.now()
        made: dict[str, Job] = {}
        with self._store.transaction() as connection:
            standing = _standing(connection, schedule, now)
            decided = decide(schedule, standing, now, by_timer=by_timer)
            if decided.since is not None:
                text = f"{_SINCE if by_timer or standing.started else _SEEN}{schedule.fingerprint}"
                connection.execute(_RECORD, [schedule.name, stored(decided.since), text, None, stored(now)])
            for one in decided.decisions:
                wanted = jobs_of(one) if one.what == "run" else ()
                jobs = [self._job_for(connection, new, share=schedule.missed != "all") for new in wanted]
                made.update((job.job_id, job) for job in jobs)
                first = jobs[0].job_id if jobs else None
                text = f"{one.what}: {one.reason}"
                connection.execute(_RECORD, [schedule.name, stored(one.slot), text, first, stored(now)])
            if decided.decisions:
                connection.execute(_FORGET, [schedule.name, schedule.name])
        return Taken(decided.decisions, tuple(made.values()))

    def _job_for(self, connection: Any, wanted: SUBMITTABLE, *, share: bool) -> Job:
        new, step_schema, max_attempts = wanted
        known = "job_id = (SELECT job_id FROM requests WHERE kind = ? AND request_id = ?)"
        for answered in job_rows(connection, known, [new.kind, new.request_id]):
            return answered
        waiting = "kind = ? AND scope = ? AND spec = ? AND state = 'PENDING' AND owner IS NULL"
        found = job_rows(connection, waiting, [new.kind, new.scope, to_json(new.spec)], "ORDER BY created_at, job_id")
        job = found[0] if found and share else self._insert(connection, new, step_schema, max_attempts, parent_id=None)
        self._remember_request(connection, new, job)
        return job

    def decided(self, schedule: str, limit: int) -> list[Slot]:
        """Slots of a schedule, newest first."""
        with self._store.reading() as connection:
            if connection is None:
                return []
            rows = connection.execute(
                "SELECT slot, decision, job_id::VARCHAR, decided_at FROM slots"
                f" WHERE schedule = ? AND NOT {_NO_SLOT} ORDER BY slot DESC LIMIT {limit:d}",
                [schedule],
            ).fetchall()
        return [
            Slot(slot.replace(tzinfo=UTC), *_told(decision), job_id, decided_at.replace(tzinfo=UTC))
            for slot, decision, job_id, decided_at in rows
        ]

    def jobs_of_slots(self, schedule: str, slots: Sequence[datetime]) -> Mapping[datetime, list[Job]]:
        """The jobs of each slot that are still on record."""
        found: dict[datetime, list[Job]] = {slot: [] for slot in slots}
        with self._store.reading() as connection:
            for slot in found if connection is not None else ():
                name = f"slot:{schedule}:{slot.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
                asked = "job_id IN (SELECT job_id FROM requests WHERE request_id = ? OR starts_with(request_id, ?))"
                found[slot] = job_rows(connection, asked, [name, f"{name}:"], "ORDER BY created_at, job_id")
        return found


# A skip may be decided again, once the clock that had decided it was found to be ahead.
_RECORD = (
    "INSERT INTO slots VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET decision = excluded.decision,"
    " job_id = excluded.job_id, decided_at = excluded.decided_at"
)

# By number, not by age: a clock that is ahead must not make us forget what was run.
_FORGET = (
    f"DELETE FROM slots WHERE schedule = ? AND NOT {_NO_SLOT}"
    f" AND slot < (SELECT min(slot) FROM (SELECT slot FROM slots WHERE schedule = ? ORDER BY slot DESC LIMIT {_KEPT:d}))"
)


def _told(decision: str) -> tuple[str, str]:
    what, _, reason = decision.partition(": ")
    return what, reason


def _standing(connection: Any, schedule: Schedule, now: datetime) -> Standing:
    if connection is None:
        return Standing()
    # What ran between a backup and its restore is not on record any more: greatest() leaves out what is NULL.
    until, since, started = connection.execute(
        "SELECT greatest(max(slot), (SELECT max(restored_at) FROM restores WHERE restored_at <= $2)),"
        f" max_by(decision, slot) FILTER {_NO_SLOT}, bool_or(NOT starts_with(decision, '{_SEEN}'))"
        " FROM slots WHERE schedule = $1 AND slot <= $2 AND decided_at <= $2",
        [schedule.name, stored(now)],
    ).fetchone()
    near = now - schedule.grace - timedelta(minutes=1)
    rows = connection.execute(
        "SELECT slot FROM slots WHERE schedule = ? AND starts_with(decision, 'run') AND (slot > ? OR decided_at > ?)",
        [schedule.name, stored(near), stored(now)],
    ).fetchall()
    ran = frozenset(slot.replace(tzinfo=UTC) for (slot,) in rows)
    if since is None:
        return Standing(started=bool(started), ran=ran)
    return Standing(since.partition(": ")[2], until.replace(tzinfo=UTC), bool(started), ran)
