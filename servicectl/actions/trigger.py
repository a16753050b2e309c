"""What a caller from outside may ask for: a job is stored first and then started by `start`; jobs and events are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servicectl import crash, log
from servicectl.actions import governing, retrain
from servicectl.actions.kinds import DRIFT_CHECK, RETRAIN, SYNC_PRODUCTION
from servicectl.clock import stored
from servicectl.config import seconds
from servicectl.errors import Busy, ConfigError, ServicectlError, UsageError
from servicectl.jobs.model import Event, Job, NewJob, State
from servicectl.jobs.table import Submitted

if TYPE_CHECKING:
    from servicectl.actions.world import World

GRPC = "grpc"  # the `trigger` of these jobs
MAX_LISTED = 500

_MAX_REQUEST_ID = 200
_TRUTH = {"true": True, "false": False}


class UnknownJob(UsageError):
    """No job has this id."""


class InTheWay(Busy):
    """An unfinished job of the scope, with other parameters, which the message names."""


@dataclass(frozen=True)
class Seen:
    """One job as a caller is told of it; `children` are ids."""

    job: Job
    interrupted: bool
    children: tuple[str, ...] = ()


@dataclass(frozen=True)
class Desk:
    """The listener's view of the jobs. Every method may run in several threads; no connection outlives a call.

    `start` is given the id of each stored job that nobody works on yet. Store trouble raises TryAgain or StoreError.
    """

    world: World
    start: Callable[[str], None]

    def trigger(self, job_name: str, params: Mapping[str, str], request_id: str) -> tuple[Seen, bool]:
        """Given `retrain:MODEL`, `drift-check` or `sync-production`, the committed job and whether it is new.

        Raises UsageError for a name, parameter or request id that is wrong, InTheWay beside a differing unfinished job,
        Busy where the governor holds a retrain back.
        """
        if len(request_id) > _MAX_REQUEST_ID:
            raise UsageError(f"a request_id has at most {_MAX_REQUEST_ID} characters")
        new = self._named(job_name, params)
        if new.kind == RETRAIN and not (request_id and self.world.runner.table.answered(RETRAIN, request_id)):
            governing.require(self.world, str(new.spec["model"]))
        submitted = self._submit(replace(new, request_id=request_id or None))
        job = submitted.job
        asked = {key: value for key, value in new.spec.items() if key in params}
        if job.scope != new.scope or not asked.items() <= dict(job.spec).items():
            raise UsageError(
                f"request_id {request_id!r} belongs to {job.kind} job {job.job_id}, which asks for something else",
                cure="make a request_id of its own for every wish",
            )
        crash.point("listen/committed")
        if not job.ended and not self._is_worked_on(job):
            self.start(job.job_id)
        return self._seen(job), submitted.created

    def get(self, job_id: str) -> Seen:
        """Raises UnknownJob."""
        try:
            job = self.world.runner.table.get(job_id)
        except UsageError as unknown:
            raise UnknownJob(unknown.message, cure=unknown.cure) from None
        children = self.world.runner.table.children(job_id)
        return replace(self._seen(job), children=tuple(child.job_id for child in children))

    def newest(self, *, limit: int, unfinished_only: bool, kind: str | None) -> list[Seen]:
        """Newest first. Raises UsageError for a limit above MAX_LISTED."""
        if limit > MAX_LISTED:
            raise UsageError(f"limit is {limit}, at most {MAX_LISTED} jobs are listed")
        found = self.world.runner.table.newest(limit=limit, unfinished_only=unfinished_only, kind=kind)
        interrupted = self.world.runner.interrupted(found)
        return [Seen(job, job.job_id in interrupted) for job in found]

    def events(self, job_id: str) -> list[Event]:
        """All of them, oldest first; at least one. Raises UnknownJob."""
        found = self.world.runner.table.events(job_id)
        if not found:
            raise UnknownJob(f"there is no job {job_id}", cure="ListJobs, or servicectl jobs list --all")
        return found

    def store_state(self) -> tuple[tuple[int, int, int], ...]:
        """Differs from an earlier answer if anything may have been written meanwhile; reads no database."""
        file = self.world.runner.folder / "servicectl.duckdb"
        return tuple(_file_state(path) for path in (file, Path(f"{file}.wal")))

    def carry_on(self) -> None:
        """Start what callers asked for before a restart; what a job was put off for stays with the resume timer."""
        try:
            unfinished = self.world.runner.table.unfinished()
            for job in unfinished:
                if job.trigger == GRPC and self._is_due(job) and not self._is_worked_on(job):
                    self.start(job.job_id)
        except ServicectlError as error:
            log.error(f"what was asked before the start is left to the resume timer: {error}")

    def _named(self, job_name: str, params: Mapping[str, str]) -> NewJob:
        kind, _, model_id = job_name.partition(":")
        if kind == RETRAIN and model_id:
            _only(params, ("window", "publish"), job_name)
            window = _window(params.get("window", ""))
            return retrain.job(self.world, model_id, window=window, publish=_truth(params), trigger=GRPC)
        if job_name in (DRIFT_CHECK, SYNC_PRODUCTION):
            _only(params, (), job_name)
            # Not on offer: allow_remove. What takes a model out of serving needs an operator.
            spec: dict[str, Any] = {} if job_name == DRIFT_CHECK else {"allow_remove": False}
            return NewJob(job_name, job_name, spec, trigger=GRPC)
        known = [DRIFT_CHECK, SYNC_PRODUCTION, *(f"{RETRAIN}:{name}" for name in sorted(self.world.config.models))]
        raise UsageError(f"unknown job {job_name[:100]!r}; known: {', '.join(known)}")

    def _submit(self, new: NewJob) -> Submitted:
        try:
            return self.world.runner.submit(new)
        except Busy as busy:
            # Busy is also raised for the store's own lock, which is no fault of the request.
            for rival in self.world.runner.table.unfinished([new.scope]):
                if (rival.kind, dict(rival.spec)) != (new.kind, dict(new.spec)):
                    raise InTheWay(
                        f"{new.scope} has an unfinished {rival.kind} job {rival.job_id} with other parameters",
                        cure=f"wait for it, or servicectl jobs cancel {rival.short_id}",
                    ) from busy
            raise

    def _seen(self, job: Job) -> Seen:
        return Seen(job, self.world.runner.is_interrupted(job))

    def _is_worked_on(self, job: Job) -> bool:
        return job.state is State.RUNNING and self.world.runner.locks.alive(job.scope)

    def _is_due(self, job: Job) -> bool:
        return job.state is State.RUNNING or job.not_before <= stored(self.world.clock.now())


def _only(params: Mapping[str, str], known: tuple[str, ...], job_name: str) -> None:
    if unknown := sorted(set(params) - set(known)):
        told = f"it knows: {', '.join(known)}" if known else "it has none"
        raise UsageError(f"{job_name} has no parameter {unknown[0]!r}; {told}")


def _window(text: str) -> str | None:
    try:
        if text:
            seconds(text, "window")
    except ConfigError as error:  # here it is the caller's, not the configuration's
        raise UsageError(error.message, cure=error.cure) from None
    return text or None


def _truth(params: Mapping[str, str]) -> bool:
    text = params.get("publish", "true")
    if text not in _TRUTH:
        raise UsageError(f"publish: {text!r} is neither true nor false")
    return _TRUTH[text]


def _file_state(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return (status.st_ino, status.st_size, status.st_mtime_ns)
