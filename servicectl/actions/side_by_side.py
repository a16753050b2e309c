"""Several jobs at once, each in a spawned process that holds its own locks."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from servicectl.config import Config
from servicectl.errors import TryAgain
from servicectl.jobs.runner import Ran

if TYPE_CHECKING:
    from servicectl.actions.world import World

_PR_SET_PDEATHSIG = 1


def run_side_by_side(world: World, job_ids: Sequence[str], parallel: int) -> list[Ran]:
    """Run jobs with their children, `parallel` at a time (joblib's loky: spawned, never forked).

    When one of the processes is killed, loky kills the others too: each job that has not ended is told as TRY_AGAIN.
    """
    from concurrent.futures.process import BrokenProcessPool

    from joblib import Parallel, delayed

    try:
        outcomes = Parallel(n_jobs=parallel, backend="loky")(
            delayed(_run_one)(world.config, world.trigger, job_id) for job_id in job_ids
        )
    except BrokenProcessPool:
        return [_left(world, job_id) for job_id in job_ids]
    return [ran for outcome in outcomes for ran in outcome]


def _left(world: World, job_id: str) -> Ran:
    job = world.runner.table.get(job_id)
    if job.ended:
        return world.runner.run(job_id)  # which only tells how it ended
    told = (
        f"{job.kind} {job.short_id} was cut short: one of the processes side by side was killed, most likely for memory"
    )
    cure = f"servicectl jobs resume {job.short_id}; or set training.memory_mb, or a smaller --parallel"
    return Ran(job, TryAgain.exit_status, TryAgain(told, cure=cure))


def _run_one(config: Config, trigger: str, job_id: str) -> list[Ran]:
    from servicectl.actions.world import World

    # A worker must not go on alone when the command that started it is gone: its job is given back instead.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    return World(config, trigger=trigger).runner.attempt(job_id)
