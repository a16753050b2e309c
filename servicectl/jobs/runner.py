"""Runs jobs: claim, do the steps, record the end. Resume is this same path."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from servicectl import crash, log
from servicectl.clock import SYSTEM, Clock, stored
from servicectl.errors import Busy, ExitStatus, ServicectlError, TryAgain
from servicectl.jobs import signals
from servicectl.jobs.context import Cancelled, JobContext, Unrecorded
from servicectl.jobs.locks import Locks
from servicectl.jobs.model import Job, NewJob, Result, State
from servicectl.jobs.owner import this_process
from servicectl.jobs.signals import Interrupted
from servicectl.jobs.table import Fenced, JobTable, Submitted
from servicectl.store import Store


@dataclass(frozen=True)
class Kind:
    """A kind of job: its action, and the version of its steps.

    Raise `step_schema` when stored step results change meaning; an older job is then parked, never misread, unless
    `reads` names its version.
    """

    name: str
    run: Callable[[JobContext], Result]
    step_schema: int = 1
    reads: tuple[int, ...] = ()


@dataclass(frozen=True)
class Retries:
    """The table's clock of retries: base * 2^(attempt-1) seconds, jittered by half, at most `cap_s`."""

    max_attempts: int = 5
    base_s: float = 60.0
    cap_s: float = 3600.0

    def delay(self, attempts: int) -> float:
        import random

        doubled = self.base_s * 2.0 ** min(attempts - 1, 64)
        return min(self.cap_s, doubled) * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter


@dataclass(frozen=True)
class Ran:
    """How one run of a job ended. `error` is the exception worded for the operator, if there was one."""

    job: Job
    exit_status: ExitStatus
    error: ServicectlError | None = None
    children: tuple[Job, ...] = ()


@dataclass(frozen=True)
class Pruned:
    """Ids of the jobs that went, or would go; and of jobs long gone whose work files were still there."""

    jobs: list[str]
    leftovers: list[str]


class Runner:
    def __init__(
        self,
        folder: Path,
        kinds: Mapping[str, Kind],
        *,
        retries: Retries = Retries(),
        clock: Clock = SYSTEM,
        lock_wait_s: float = 60.0,
    ) -> None:
        self.folder = folder.absolute()
        self.table = JobTable(Store(self.folder, clock=clock, lock_wait_s=lock_wait_s), clock)
        self.locks = Locks(self.folder / "locks", clock)
        self._kinds = kinds
        self._retries = retries
        self._clock = clock

    def submit(self, new: NewJob) -> Submitted:
        """See `JobTable.submit`."""
        kind = self._kinds[new.kind]
        submitted = self.table.submit(new, step_schema=kind.step_schema, max_attempts=self._retries.max_attempts)
        crash.point(f"{new.kind}/submitted")
        return submitted

    def run(self, job_id: str, *, only_if_due: bool = False) -> Ran:
        """Given a submitted job, carry it on from its first unfinished step.

        Raises Busy when another process works on it, takes it over, or (`only_if_due`) has just put it off. Once the
        process was told to end, no further job is begun and TRY_AGAIN is returned.
        """
        job = self.table.get(job_id)
        if job.ended:
            return _ended(job)
        if signal := signals.arrived():
            return _to_be_resumed(job, f"{signal.name}: {job.kind} {job.short_id} was not begun")
        with signals.watched(), self.locks.held(job.scope):
            claimed = self.table.claim(job_id, this_process(), only_if_due=only_if_due)
            if claimed is None:
                job = self.table.get(job_id)
                if job.ended:
                    return _ended(job)
                raise Busy(f"job {job.short_id} waits until {job.not_before:%Y-%m-%d %H:%M:%S} UTC")
            crash.point(f"{job.kind}/claimed")
            job, steps = claimed
            try:
                return self._attempt(job, JobContext(job, steps, self.table, self.locks, self.folder))
            except Fenced as fenced:
                raise Busy(str(fenced), cure=f"servicectl jobs show {job.short_id}") from None
            except Unrecorded as unrecorded:
                raise _to_be_recorded(job, unrecorded.trouble) from unrecorded.trouble
            except ServicectlError as trouble:
                raise _to_be_recorded(job, trouble) from trouble

    def run_with_children(self, job_id: str) -> list[Ran]:
        """`run`, then its children after it has let go of its scope; the job's own result comes first."""
        return self._with_children(self.run(job_id))

    def attempt(self, job_id: str) -> list[Ran]:
        """`run_with_children`, with a job that another process holds told as a result instead of raised."""
        try:
            return self.run_with_children(job_id)
        except Busy as busy:
            return [Ran(self.table.get(job_id), busy.exit_status, busy)]

    def drain(self, job_ids: Iterable[str], *, only_if_due: bool = False) -> list[Ran]:
        """Run jobs one after the other with their children; a job another process is working on is left to it."""
        ran: list[Ran] = []
        for job_id in job_ids:
            try:
                ran += self._with_children(self.run(job_id, only_if_due=only_if_due))
            except Busy as busy:
                log.info(f"job {job_id[-8:]} is left alone: {busy.message}")
        return ran

    def _with_children(self, first: Ran) -> list[Ran]:
        children = first.children or self.table.children(first.job.job_id)
        return [first, *self.drain(child.job_id for child in children)]

    def carry_on(self, scopes: Iterable[str]) -> list[Ran]:
        """What a working command does first: finish the interrupted and due jobs of its own scopes."""
        return self._carry_on(self.table.unfinished(scopes))

    def resume(self) -> list[Ran]:
        """Everything that is due and that nobody works on."""
        return self._carry_on(self.table.unfinished())

    def _carry_on(self, jobs: Iterable[Job]) -> list[Ran]:
        return self.drain((job.job_id for job in jobs if self._is_due(job)), only_if_due=True)

    def prune(self, before: datetime, *, dry_run: bool) -> Pruned:
        """Delete ended jobs older than a moment, rows first, then their work files.

        Work files as old that belong to no job go too: those of a prune that was killed in between.
        """
        jobs = self.table.prune(before, dry_run=dry_run)
        if not dry_run:
            crash.point("jobs/prune/rows")
        gone = set(jobs)
        leftovers = [job_id for job_id in self._without_job(before) if job_id not in gone]
        for job_id in [*jobs, *leftovers] if not dry_run else []:
            self._delete_work(job_id)
            crash.point("jobs/prune/folder")
        return Pruned(jobs, leftovers)

    def _without_job(self, before: datetime) -> list[str]:
        # Listed before the rows are read: a job has its row before its folder.
        old = []
        for path in (self.folder / "work").glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another prune's
                if path.stat().st_mtime < before.timestamp():
                    old.append(path.name)
        return self.table.without_row(old) if old else []

    def _delete_work(self, job_id: str) -> None:
        import shutil

        folder = self.folder / "work" / job_id
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning(f"{folder} could not be deleted, the next prune tries again: {error}")

    def interrupted(self, jobs: Iterable[Job]) -> set[str]:
        """Of jobs as they were read, the ids of those whose process died."""
        # A job's end is committed before its lock goes. So one that ended since it was read has a free lock too, and
        # what is still RUNNING after the lock was found free has nobody.
        return self.table.still_running(
            job for job in jobs if job.state is State.RUNNING and not self.locks.alive(job.scope)
        )

    def is_interrupted(self, job: Job) -> bool:
        return bool(self.interrupted([job]))

    def _is_due(self, job: Job) -> bool:
        if job.state is State.RUNNING:
            return self.is_interrupted(job)
        return job.is_due(stored(self._clock.now()))

    def _attempt(self, job: Job, context: JobContext) -> Ran:
        try:
            ending = self._ending(job, context)
            signals.hold()
        except Interrupted as interruption:
            signals.hold()
            return self._interrupted(job, context, interruption)
        if isinstance(ending, Result):
            return self._completed(job, context, ending)
        if isinstance(ending, Cancelled):
            return _ended(self.table.stop(job, context.last_change("cancelled")))
        return self._failed(job, context, ending)

    def _ending(self, job: Job, context: JobContext) -> Result | Cancelled | ServicectlError:
        try:
            kind = self._kind_for(job)
            signals.release()
            return kind.run(context)
        except (Fenced, Unrecorded):
            raise
        except (Cancelled, ServicectlError) as ending:
            return ending
        except OSError as error:
            return _of_the_machine(error, self.folder) or _unexpected(error)
        except Exception as error:  # noqa: BLE001 -- a bug in a step must end in the table, not in a lost traceback
            return _unexpected(error)

    def _kind_for(self, job: Job) -> Kind:
        kind = self._kinds.get(job.kind)
        if kind is None:
            raise ServicectlError(
                f"this servicectl knows no job kind {job.kind!r}",
                cure=f"servicectl jobs retry {job.short_id} with the release that made it",
            )
        if job.step_schema != kind.step_schema and job.step_schema not in kind.reads:
            raise ServicectlError(
                f"job {job.short_id} was begun with version {job.step_schema} of {job.kind}'s steps, "
                f"this servicectl has version {kind.step_schema}",
                cure=f"start it anew, or servicectl jobs retry {job.short_id} with the older release",
            )
        return kind

    def _completed(self, job: Job, context: JobContext, result: Result) -> Ran:
        children = [
            (child, self._kinds[child.kind].step_schema, self._retries.max_attempts) for child in result.children
        ]
        crash.point(f"{job.kind}/complete/before")
        inserted = self.table.complete(job, result, context.last_change(), children)
        crash.point(f"{job.kind}/complete/recorded")
        return Ran(self.table.get(job.job_id), result.exit_status, children=tuple(inserted))

    def _interrupted(self, job: Job, context: JobContext, interruption: Interrupted) -> Ran:
        job = self.table.give_back(job, str(interruption), context.last_change())
        if job.ended:
            return _ended(job)
        return _to_be_resumed(job, f"{interruption}: {job.kind} {job.short_id} was interrupted")

    def _failed(self, job: Job, context: JobContext, error: ServicectlError) -> Ran:
        change = context.last_change(error.message)
        if error.retryable and job.attempts < job.max_attempts:
            job = self.table.retry_later(job, error.message, error.cure, self._retries.delay(job.attempts), change)
            return _ended(job) if job.ended else Ran(job, error.exit_status, error)
        cure = error.cure or f"servicectl jobs show {job.short_id}"
        # "Try again" would be a lie once nothing tries again by itself.
        status = ExitStatus.FAILED if error.retryable else error.exit_status
        failed = self.table.fail(job, error.message, cure, int(status), change, needs_operator=not error.retryable)
        return Ran(failed, status, error)


def worst(statuses: Sequence[ExitStatus]) -> ExitStatus:
    """The exit status of several results: the first of failed, configuration, try again, not measured that occurs."""
    order = [
        ExitStatus.FAILED, ExitStatus.STORE_DAMAGED, ExitStatus.STORE_DENIED, ExitStatus.STORE_FULL, ExitStatus.CONFIG,
        ExitStatus.USAGE, ExitStatus.TRY_AGAIN, ExitStatus.NOT_MEASURED, ExitStatus.NEEDS_OPERATOR,
        ExitStatus.REJECTED, ExitStatus.DRIFT_FOUND,
    ]  # fmt: skip
    return next((status for status in order if status in statuses), ExitStatus.OK)


def _to_be_resumed(job: Job, why: str) -> Ran:
    error = TryAgain(f"{why} and can be resumed", cure=f"servicectl jobs resume {job.short_id}")
    return Ran(job, ExitStatus.TRY_AGAIN, error)


def _ended(job: Job) -> Ran:
    status = ExitStatus(job.exit_status) if job.exit_status is not None else ExitStatus.OK
    error = None
    if job.state is State.FAILED:
        error = ServicectlError(job.error or "failed", cure=job.cure or "")
    elif job.state is State.CANCELLED:
        status = ExitStatus.FAILED
        error = ServicectlError(f"job {job.short_id} was cancelled", cure=f"servicectl jobs retry {job.short_id}")
    return Ran(job, status, error)


def _to_be_recorded(job: Job, trouble: ServicectlError) -> ServicectlError:
    """The store failed while a job ran. Not Busy: who drains several jobs would take it for somebody else's."""
    kind = TryAgain if trouble.retryable else type(trouble)
    told = f"{trouble.message}; {job.kind} {job.short_id} is left as interrupted and carried on by the next run"
    return kind(told, cure=trouble.cure)


def _of_the_machine(error: OSError, folder: Path) -> ServicectlError | None:
    """What the operator, and no programmer, can cure: a full disk, a file of another user, a file system read-only."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TryAgain(
            f"no space left: {error}", cure=f"free space: df -h {error.filename or f'{folder} {folder}/work'}"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        cure = f"run as the owner of {folder}; after a run as another user: sudo chown -R OWNER {folder}"
        return ServicectlError(f"a file cannot be used: {error}", cure=cure)
    return None


def _unexpected(error: Exception) -> ServicectlError:
    import traceback

    for line in "".join(traceback.format_exception(error)).splitlines():
        log.error(line)
    wrapped = TryAgain(
        f"unexpected {type(error).__name__}: {error}", cure="this may be a bug: rerun with -v and report it"
    )
    wrapped.exit_status = ExitStatus.FAILED
    return wrapped


__all__ = ["Kind", "Pruned", "Ran", "Result", "Retries", "Runner", "worst"]
