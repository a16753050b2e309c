"""What a gRPC caller may start: the job row is committed first, then a process of its own runs it."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from servicectl import log
from servicectl.actions import retrain
from servicectl.actions.kinds import DRIFT_CHECK, RETRAIN, SYNC_PRODUCTION
from servicectl.errors import UsageError
from servicectl.jobs.model import NewJob

if TYPE_CHECKING:
    from servicectl.actions.world import World


class Starter:
    """Submits jobs by name and starts at most `[listen] max_jobs` processes; the resume timer takes the others."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._running: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def trigger(self, job_name: str) -> str:
        """Given `retrain:MODEL`, `drift-check` or `sync-production`, the id of the committed job. Raises UsageError."""
        job_id = self._world.runner.submit(self._named(job_name)).job.job_id
        self._start(job_id)
        return job_id

    def _named(self, job_name: str) -> NewJob:
        kind, _, model_id = job_name.partition(":")
        if kind == RETRAIN and model_id:
            return retrain.job(self._world, model_id, trigger="grpc")
        if job_name == DRIFT_CHECK:
            return NewJob(DRIFT_CHECK, DRIFT_CHECK, {}, trigger="grpc")
        if job_name == SYNC_PRODUCTION:
            return NewJob(SYNC_PRODUCTION, SYNC_PRODUCTION, {"allow_remove": False}, trigger="grpc")
        known = [DRIFT_CHECK, SYNC_PRODUCTION, *(f"{RETRAIN}:{name}" for name in sorted(self._world.config.models))]
        raise UsageError(f"unknown job {job_name!r}; known: {', '.join(known)}")

    def _start(self, job_id: str) -> None:
        with self._lock:
            self._running = [process for process in self._running if process.poll() is None]
            if len(self._running) >= self._world.config.listen.max_jobs:
                log.notice(f"job {job_id[-8:]} waits: {len(self._running)} are running already")
                return
            command = [
                sys.executable,
                "-m",
                "servicectl",
                "--config",
                str(self._world.config.path),
                "jobs",
                "resume",
                job_id,
            ]
            try:
                # A session of its own: a signal meant for the listener's terminal does not end the job.
                self._running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True))
            except OSError as error:
                log.error(f"job {job_id[-8:]} could not be started ({error.strerror}); the resume timer takes it")
