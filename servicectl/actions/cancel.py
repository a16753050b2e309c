"""Cancel asks first (a mark the owner reads at its next step), then by SIGTERM, which is read at once between effects."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass

from servicectl.errors import Busy
from servicectl.jobs.model import Job, State
from servicectl.jobs.runner import Runner
from servicectl.store import owner


@dataclass(frozen=True)
class Said:
    job: Job
    says: str


def cancel(runner: Runner, job: Job) -> Said:
    """Given a job, stop it. Raises UsageError for one that has ended."""
    asked = runner.table.request_cancel(job.job_id)
    if asked.state is State.CANCELLED:
        return Said(asked, f"job {job.short_id} is cancelled")
    try:
        with runner.locks.held(job.scope):
            runner.table.claim(job.job_id, owner())
        return Said(runner.table.get(job.job_id), f"job {job.short_id} is cancelled (its process had died)")
    except Busy:
        pass
    us, them = owner(), asked.owner or {}
    if (us["host"], us["boot_id"]) == (them.get("host"), them.get("boot_id")):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(int(them["pid"]), signal.SIGTERM)
        return Said(asked, f"job {job.short_id} was asked to stop; servicectl jobs watch {job.short_id}")
    return Said(asked, f"job {job.short_id} runs on {them.get('host')} and will stop at its next step")
