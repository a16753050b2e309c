"""The jobs table: one method per edge, one guarded statement beneath, one event row beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from servicectl.clock import SYSTEM, Clock, stored
from servicectl.errors import Busy, UsageError
from servicectl.jobs.ids import child_id, new_job_id
from servicectl.jobs.model import EDGES, OWNER_DIED, Event, Job, NewJob, Result, State, Step
from servicectl.jobs.owner import described
from servicectl.jobs.rows import BY_ID, UNFINISHED, job_rows, moved_jobs, step_rows, the_one, to_json
from servicectl.jobs.steps import StepChange, apply, fail_running, redo_from
from servicectl.store import Store


class Fenced(Exception):
    """This process lost the job to a later claim and must stop writing."""


@dataclass(frozen=True)
class Submitted:
    job: Job
    created: bool


def _asks_the_same(job: Job, new: NewJob) -> bool:
    return job.kind == new.kind and to_json(job.spec) == to_json(new.spec)


_INSTEAD_OF_RETRY = {
    State.PENDING: "servicectl jobs resume {job.short_id}  runs it now; to redo a step: jobs cancel, then jobs retry --from",
    State.RUNNING: "servicectl jobs resume {job.short_id}  if it was interrupted, else servicectl jobs watch {job.short_id}",
    State.COMPLETED: "what it found was acted upon and stays on record: run its command again, which makes a new job",
}


class JobTable:
    def __init__(self, store: Store, clock: Clock = SYSTEM) -> None:
        self._store = store
        self._clock = clock

    # -- reading ------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """Raises UsageError for an unknown id."""
        return the_one(job_id, self._select(BY_ID, [job_id]))

    def find(self, text: str) -> Job:
        """The job whose id is, starts or ends with `text`. Raises UsageError when none or several do."""
        wanted = text.strip().lower()
        pattern_safe = all(character in "0123456789abcdef-" for character in wanted)
        found: list[Job] = []
        if wanted and pattern_safe:
            fits = "starts_with(job_id::VARCHAR, ?) OR suffix(job_id::VARCHAR, ?)"
            # Ids alone first: a scan of every column costs several times as much.
            found = self._select(f"job_id IN (SELECT job_id FROM jobs WHERE {fits})", [wanted, wanted])
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(job.short_id for job in found[:5])
            raise UsageError(f"{text!r} fits {len(found)} jobs ({several})", cure="give more of the id")
        raise UsageError(f"there is no job {text!r}", cure="servicectl jobs list --all")

    def newest(
        self,
        *,
        limit: int = 50,
        unfinished_only: bool = False,
        failed_only: bool = False,
        kind: str | None = None,
        scope: str | None = None,
    ) -> list[Job]:
        """Newest first."""
        asked = {UNFINISHED: unfinished_only, "state = 'FAILED'": failed_only, "kind = ?": kind, "scope = ?": scope}
        where = ["true", *(condition for condition, wanted in asked.items() if wanted)]
        values = [value for value in (kind, scope) if value]
        return self._select(" AND ".join(where), values, f"ORDER BY created_at DESC, job_id DESC LIMIT {limit:d}")

    def unfinished(self, scopes: Iterable[str] | None = None) -> list[Job]:
        """Oldest first, of the given scopes or of all."""
        wanted = None if scopes is None else list(scopes)
        where, values = (UNFINISHED, []) if wanted is None else (f"{UNFINISHED} AND list_contains(?, scope)", [wanted])
        return self._select(where, values, "ORDER BY created_at, job_id")

    def still_running(self, jobs: Iterable[Job]) -> set[str]:
        """Of jobs as they were read before, the ids of those that are RUNNING in the same epoch now."""
        read = {job.job_id: job.epoch for job in jobs}
        if not read:
            return set()
        now = self._select("state = 'RUNNING' AND list_contains(?, job_id::VARCHAR)", [list(read)])
        return {job.job_id for job in now if job.epoch == read[job.job_id]}

    def without_row(self, job_ids: Iterable[str]) -> list[str]:
        """Of these ids those that no job has; none where there is no store to ask."""
        with self._store.reading() as connection:
            if connection is None:
                return []
            rows = connection.execute(
                "SELECT id FROM (SELECT unnest(?::VARCHAR[]) AS id) WHERE TRY_CAST(id AS UUID) IS NOT NULL"
                " AND TRY_CAST(id AS UUID) NOT IN (SELECT job_id FROM jobs) ORDER BY id",
                [list(job_ids)],
            ).fetchall()
        return [str(job_id) for (job_id,) in rows]

    def answered(self, kind: str, request_id: str) -> Job | None:
        """The job that a request id was answered with, None for a new one."""
        asked = "job_id = (SELECT job_id FROM requests WHERE kind = ? AND request_id = ?)"
        return next(iter(self._select(asked, [kind, request_id])), None)

    def children(self, parent_id: str) -> list[Job]:
        return self._select("parent_id = ?", [parent_id], "ORDER BY created_at, job_id")

    def steps(self, job_id: str) -> list[Step]:
        with self._store.reading() as connection:
            if connection is None:
                return []
            return step_rows(connection, job_id)

    def events(self, job_id: str) -> list[Event]:
        with self._store.reading() as connection:
            if connection is None:
                return []
            rows = connection.execute(
                "SELECT seq, epoch, edge, from_state, to_state, detail, happened_at FROM events"
                f" WHERE {BY_ID} ORDER BY seq",
                [job_id],
            ).fetchall()
        return [Event(*row) for row in rows]

    # -- submitting -----------------------------------------------------------------------------------------------

    def submit(self, new: NewJob, *, step_schema: int, max_attempts: int) -> Submitted:
        """Given a job, insert it once: check and insert are one transaction.

        A repeat of its `request_id`, or an unfinished job of its scope with the same spec, is returned instead; a
        `request_id` stays with the job it was answered with. Raises Busy when the scope has an unfinished job with
        another spec.
        """
        with self._store.transaction() as connection:
            asked = "job_id = (SELECT job_id FROM requests WHERE kind = ? AND request_id = ?)"
            for known in job_rows(connection, asked, [new.kind, new.request_id]):
                return Submitted(known, created=False)
            rivals = job_rows(connection, f"scope = ? AND {UNFINISHED}", [new.scope], "ORDER BY created_at, job_id")
            same = [rival for rival in rivals if _asks_the_same(rival, new)]
            if rivals and not same:
                raise Busy(
                    f"{new.scope} has an unfinished {rivals[0].kind} job {rivals[0].short_id} with other parameters",
                    cure=f"servicectl jobs resume {rivals[0].short_id}, or jobs cancel {rivals[0].short_id}",
                )
            job = same[0] if same else self._insert(connection, new, step_schema, max_attempts, parent_id=None)
            self._remember_request(connection, new, job)
        return Submitted(job, created=not same)

    def _remember_request(self, connection: Any, new: NewJob, job: Job) -> None:
        if new.request_id is not None:
            connection.execute(
                "INSERT INTO requests VALUES (?, ?, ?) ON CONFLICT DO NOTHING", [new.kind, new.request_id, job.job_id]
            )

    def _insert(self, connection: Any, new: NewJob, step_schema: int, max_attempts: int, parent_id: str | None) -> Job:
        now = stored(self._clock.now())
        job_id = new.job_id or new_job_id(self._clock)
        connection.execute(
            "INSERT INTO jobs (job_id, kind, step_schema, scope, request_id, spec, state, epoch, attempts, max_attempts,"
            " not_before, parent_id, trigger, cancel_requested, needs_operator, created_at, updated_at)"
            " SELECT ?, ?, ?, ?, ?, ?, 'PENDING', coalesce(max(epoch), 0), 0, ?, ?, ?, ?, false, false, ?, ? FROM restores",
            [
                *(job_id, new.kind, step_schema, new.scope, new.request_id, to_json(new.spec), max_attempts),
                *(now, parent_id, new.trigger, now, now),
            ],
        )
        job = job_rows(connection, BY_ID, [job_id])[0]
        self._event(connection, job_id, job.epoch, "submit", f"by {new.trigger}")
        return job

    # -- the owner's edges ----------------------------------------------------------------------------------------

    def claim(
        self, job_id: str, owner: Mapping[str, Any], *, only_if_due: bool = False
    ) -> tuple[Job, list[Step]] | None:
        """Given that the caller holds the scope's lock, make the job its own; None when it has ended meanwhile.

        None, too, with `only_if_due` for a job that somebody has put off meanwhile. Raises nothing for a job whose
        last attempt died: that job ends as FAILED here, and None is returned. Another job of the scope that died is
        released with it: from now on the lock is held again, and would show it as alive.
        """
        now = stored(self._clock.now())
        with self._store.transaction() as connection:
            found = {row.job_id: row for row in job_rows(connection, f"{BY_ID} OR state = 'RUNNING'", [job_id])}
            job = found.pop(job_id, None)
            if job is None or job.ended:
                return None
            waiting = job.state is State.PENDING
            if waiting and only_if_due and not job.is_due(now):
                return None
            for dead in (row for row in found.values() if row.scope == job.scope):
                if not self._is_over(connection, dead, now):
                    self._move(connection, dead, "release", {"not_before": now}, detail=OWNER_DIED)
            if not waiting and self._is_over(connection, job, now):
                return None
            edge = "claim" if waiting else "take_over"
            fields = {
                "epoch": job.epoch + 1,
                "attempts": job.attempts + 1,
                "owner": to_json(owner),
                "error": None,
                "cure": None,
            }
            claimed = self._move(connection, job, edge, fields, detail=described(owner))
            return claimed, step_rows(connection, job_id) if job.epoch else []

    def _is_over(self, connection: Any, job: Job, now: datetime) -> bool:
        """Given that the job's owner died, end its step, and the job itself if nobody is to take it up again."""
        fail_running(connection, job, "the owner died", now)
        if job.cancel_requested:
            self._move(connection, job, "stop", {"outcome": "cancelled"}, detail=OWNER_DIED)
            return True
        if job.attempts < job.max_attempts:
            return False
        error = f"the process died in each of {job.attempts} attempts"
        fields = {
            "needs_operator": True,
            "error": error,
            "cure": f"servicectl jobs show {job.short_id}, then jobs retry",
        }
        self._move(connection, job, "exhaust", {**fields, "outcome": "failed", "exit_status": 1}, detail=error)
        return True

    def change_steps(self, job: Job, change: StepChange) -> bool:
        """End and begin steps of a job we own; returns whether a cancel was asked for. Raises Fenced."""
        with self._store.transaction() as connection:
            cancel = self._still_ours(connection, job)
            apply(connection, job, change, stored(self._clock.now()))
        return cancel

    def complete(
        self, job: Job, result: Result, change: StepChange, children: Sequence[tuple[NewJob, int, int]]
    ) -> list[Job]:
        """End a job and insert its children (job, step schema, attempts) in one transaction. Raises Fenced."""
        with self._store.transaction() as connection:
            self._still_ours(connection, job)
            apply(connection, job, change, stored(self._clock.now()))
            fields = {
                "outcome": result.outcome,
                "result": to_json(result.summary),
                "exit_status": int(result.exit_status),
            }
            self._move(connection, job, "complete", fields, detail=result.outcome)
            return [self._adopt(connection, job, *child) for child in children]

    def _adopt(self, connection: Any, parent: Job, child: NewJob, step_schema: int, max_attempts: int) -> Job:
        """An unfinished job of the same scope that asks for the same is the child; else a new one queues behind."""
        for rival in job_rows(connection, f"scope = ? AND {UNFINISHED}", [child.scope], "ORDER BY created_at, job_id"):
            if _asks_the_same(rival, child):
                return rival
        new = replace(child, job_id=child.job_id or child_id(parent.job_id, child.kind, child.scope))
        job = self._insert(connection, new, step_schema, max_attempts, parent_id=parent.job_id)
        self._remember_request(connection, new, job)
        return job

    def retry_later(self, job: Job, error: str, cure: str, delay_s: float, change: StepChange) -> Job:
        """The job waits `delay_s`; one that was asked to cancel meanwhile is CANCELLED instead. Raises Fenced."""
        due = stored(self._clock.now() + timedelta(seconds=delay_s))
        return self._let_go(job, change, "retry_later", {"error": error, "cure": cure, "not_before": due}, error)

    def give_back(self, job: Job, why: str, change: StepChange) -> Job:
        """An interruption is no failure: the attempt is returned and nothing is recorded as an error.

        A job that was asked to cancel meanwhile is CANCELLED instead. Raises Fenced.
        """
        return self._let_go(job, change, "give_back", {"attempts": job.attempts - 1}, why)

    def _let_go(self, job: Job, change: StepChange, edge: str, fields: Mapping[str, Any], detail: str) -> Job:
        with self._store.transaction() as connection:
            cancel = self._still_ours(connection, job)
            apply(connection, job, change, stored(self._clock.now()))
            if cancel:
                return self._move(connection, job, "stop", {"outcome": "cancelled"}, detail=f"on request, at: {detail}")
            return self._move(connection, job, edge, fields, detail=detail)

    def fail(
        self, job: Job, error: str, cure: str, exit_status: int, change: StepChange, *, needs_operator: bool
    ) -> Job:
        with self._store.transaction() as connection:
            self._still_ours(connection, job)
            apply(connection, job, change, stored(self._clock.now()))
            fields = {"error": error, "cure": cure, "exit_status": exit_status, "needs_operator": needs_operator}
            return self._move(connection, job, "fail", {**fields, "outcome": "failed"}, detail=error)

    def stop(self, job: Job, change: StepChange) -> Job:
        with self._store.transaction() as connection:
            self._still_ours(connection, job)
            apply(connection, job, change, stored(self._clock.now()))
            return self._move(connection, job, "stop", {"outcome": "cancelled"}, detail="on request")

    # -- the operator's edges ---------------------------------------------------------------------------------------

    def request_cancel(self, job_id: str) -> Job:
        """A waiting job is cancelled at once; a running one is asked. Raises UsageError for one that has ended."""
        with self._store.transaction() as connection:
            job = self._known(connection, job_id)
            if job.ended:
                raise UsageError(f"job {job.short_id} has already ended: {job.state}", cure="servicectl jobs list")
            if job.state is State.PENDING:
                return self._move(connection, job, "cancel", {"outcome": "cancelled"}, detail="by the operator")
            connection.execute("UPDATE jobs SET cancel_requested = true WHERE job_id = ?", [job_id])
            return replace(job, cancel_requested=True)

    def stop_dead(self, job_id: str) -> Job:
        """Given that the caller holds the scope's lock, end a job whose owner died after it was asked to cancel."""
        with self._store.transaction() as connection:
            job = self._known(connection, job_id)
            if job.state is State.RUNNING and job.cancel_requested:
                self._is_over(connection, job, stored(self._clock.now()))
            return self._known(connection, job_id)

    def retry(self, job_id: str, from_step: str | None = None) -> Job:
        """Make a failed or cancelled job runnable again with a fresh budget; finished steps stay finished.

        `from_step` and all steps after it are done again. Raises UsageError for a job in another state (the results of
        a completed one have been acted upon) and for a step that was never begun, Busy beside an unfinished job.
        """
        with self._store.transaction() as connection:
            job = self._known(connection, job_id)
            if job.state not in (State.FAILED, State.CANCELLED):
                raise UsageError(
                    f"job {job.short_id} is {job.state}; only a failed or cancelled one can be retried",
                    cure=_INSTEAD_OF_RETRY[job.state].format(job=job),
                )
            rivals = job_rows(connection, f"scope = ? AND {UNFINISHED}", [job.scope])
            if rivals:
                raise Busy(
                    f"{job.scope} has an unfinished job {rivals[0].short_id}", cure="let it end or cancel it first"
                )
            fields = {
                "attempts": 0, "not_before": stored(self._clock.now()), "cancel_requested": False, "needs_operator": False,
                "error": None, "cure": None, "outcome": None, "exit_status": None, "finished_at": None,
            }  # fmt: skip
            if from_step is not None:
                redo_from(connection, job, from_step)
            edge = "retry" if job.state is State.FAILED else "reopen"
            detail = "by the operator" + (f", from step {from_step}" if from_step is not None else "")
            return self._move(connection, job, edge, fields, detail=detail)

    def prune(self, before: datetime, *, dry_run: bool) -> list[str]:
        """Delete jobs that ended before a moment, with their steps, events and request ids; returns their ids."""
        ended_before = f"FROM jobs WHERE NOT {UNFINISHED} AND finished_at < ?"
        opened = self._store.reading if dry_run else self._store.transaction
        with opened() as connection:
            if connection is None:
                return []
            found = connection.execute(f"SELECT job_id::VARCHAR {ended_before} ORDER BY job_id", [stored(before)])
            old = [str(job_id) for (job_id,) in found.fetchall()]
            if old and not dry_run:
                for table in ("events", "steps", "requests", "jobs"):
                    connection.execute(
                        f"DELETE FROM {table} WHERE job_id IN (SELECT job_id {ended_before})", [stored(before)]
                    )
        return old

    # -- beneath --------------------------------------------------------------------------------------------------

    def _known(self, connection: Any, job_id: str) -> Job:
        return the_one(job_id, job_rows(connection, BY_ID, [job_id]))

    def _select(self, where: str, values: Sequence[Any], tail: str = "") -> list[Job]:
        with self._store.reading() as connection:
            return [] if connection is None else job_rows(connection, where, values, tail)

    def _still_ours(self, connection: Any, job: Job) -> bool:
        row = connection.execute(
            "SELECT cancel_requested FROM jobs WHERE job_id = ? AND epoch = ? AND state = 'RUNNING'",
            [job.job_id, job.epoch],
        ).fetchone()
        if row is None:
            raise Fenced(f"job {job.short_id} was taken over by a later run")
        return bool(row[0])

    def _move(self, connection: Any, job: Job, edge: str, fields: Mapping[str, Any], *, detail: str) -> Job:
        from_state, to_state, _ = EDGES[edge]
        now = stored(self._clock.now())
        assigned: dict[str, Any] = {"state": to_state.value, "updated_at": now}
        if to_state in (State.COMPLETED, State.FAILED, State.CANCELLED):
            assigned["finished_at"] = now
        assigned.update(fields)
        columns = ", ".join(f"{column} = ?" for column in assigned)
        moved = moved_jobs(
            connection,
            f"UPDATE jobs SET {columns} WHERE job_id = ? AND epoch = ? AND state = ?",
            [*assigned.values(), job.job_id, job.epoch, from_state],
        )
        if len(moved) != 1:
            raise Fenced(f"job {job.short_id} is no longer {from_state} in epoch {job.epoch}")
        self._event(connection, job.job_id, int(assigned.get("epoch", job.epoch)), edge, detail)
        return moved[0]

    def _event(self, connection: Any, job_id: str, epoch: int, edge: str, detail: str) -> None:
        from_state, to_state, _ = EDGES[edge]
        connection.execute(
            "INSERT INTO events SELECT ?, (SELECT coalesce(max(seq), 0) + 1 FROM events WHERE job_id = ?), ?, ?, ?, ?, ?, ?",
            [job_id, job_id, epoch, edge, from_state, to_state.value, detail, stored(self._clock.now())],
        )
