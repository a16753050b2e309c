"""Cancel asks (a mark the owner reads at its next step), then insists by SIGTERM, and on the operator's word by SIGKILL."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from servicectl import log
from servicectl.clock import SYSTEM, Clock
from servicectl.errors import Busy, ExitStatus
from servicectl.jobs import owner
from servicectl.jobs.model import Job, State
from servicectl.jobs.runner import Runner

_LOOK_S = 0.1
_DEATH_S = 10.0  # a killed process is gone at once, unless it hangs in the kernel


@dataclass(frozen=True)
class Said:
    job: Job
    says: str
    status: ExitStatus = ExitStatus.OK


def cancel(runner: Runner, job: Job, *, grace_s: float, kill: bool = False, clock: Clock = SYSTEM) -> Said:
    """Given a job, stop it, waiting `grace_s` seconds after each of the two (with `kill` three) ways to be told.

    A job that does not stop stays asked to, and is told as TRY_AGAIN. Raises UsageError for one that has ended.
    """
    asked = runner.table.request_cancel(job.job_id)
    if asked.state is State.CANCELLED:
        return Said(asked, f"job {asked.short_id} is cancelled")
    if not runner.locks.alive(asked.scope) and (found := _looked_at(runner, asked)).state is not State.RUNNING:
        return _told(found, " (its process had died)")
    who = owner.described(asked.owner or {})
    log.notice(f"job {asked.short_id} was asked to stop at its next step: {who}; SIGTERM in {grace_s:g} s")
    if ended := _stopped(runner, asked, grace_s, clock):
        return _told(ended)
    unsent = owner.send(asked.owner or {}, signal.SIGTERM)
    if ended := _stopped(runner, asked, grace_s, clock):
        return _told(ended)
    if kill and unsent is None:
        unsent = owner.send(asked.owner or {}, signal.SIGKILL)
        if ended := _stopped(runner, asked, _DEATH_S, clock):
            half_done = f"; what it left half done, servicectl jobs retry {ended.short_id}  finishes"
            return _told(ended, f" (its process was killed{half_done})" if unsent is None else "")
    return Said(asked, _insist(asked, who, unsent, killed=kill), ExitStatus.TRY_AGAIN)


def _insist(job: Job, who: str, unsent: str | None, *, killed: bool) -> str:
    if unsent is not None:
        return (
            f"job {job.short_id} was asked to stop, and no signal was sent: {unsent}. "
            f"It ends at its next step, or once nobody holds {job.scope}"
        )
    still = f"job {job.short_id} still runs ({who})"
    if killed:
        return f"{still} although it was sent SIGKILL: it hangs in the kernel, most likely on a disk"
    return f"{still} and stops at its next safe place. To insist: servicectl jobs cancel {job.short_id} --kill"


def _told(job: Job, how: str = "") -> Said:
    if job.state is State.CANCELLED:
        return Said(job, f"job {job.short_id} is cancelled{how}")
    if job.ended:
        return Said(job, f"job {job.short_id} has {job.state}: it ended before it could stop", ExitStatus.FAILED)
    return Said(job, f"job {job.short_id} was taken up again meanwhile and is {job.state}", ExitStatus.FAILED)


def _stopped(runner: Runner, job: Job, seconds: float, clock: Clock) -> Job | None:
    """The job once it no longer runs, or None when the time is over."""
    limit = clock.monotonic() + seconds
    while True:
        seen = _looked_at(runner, job)
        if seen.state is not State.RUNNING or not seen.cancel_requested:
            return seen
        if clock.monotonic() >= limit:
            return None
        clock.sleep(_LOOK_S)


def _looked_at(runner: Runner, job: Job) -> Job:
    """The job as it stands; one whose owner has died is ended first."""
    if not runner.locks.alive(job.scope):
        try:
            with runner.locks.held(job.scope):
                return runner.table.stop_dead(job.job_id)
        except Busy:
            pass
    return runner.table.get(job.job_id)
