"""Each job runs in a process of its own, so many at a time; the end of one starts the next."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence

from servicectl import log
from servicectl.actions.trigger import GRPC

# What systemd tells the listener about itself; a job that answered it would speak in the listener's name.
_NOT_FOR_JOBS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Processes:
    """Starts `command job_id` for each job given to it. The jobs are stored: whatever is forgotten here is resumed."""

    def __init__(self, command: Sequence[str], max_jobs: int) -> None:
        self._command = [*command]
        self._max_jobs = max_jobs
        self._lock = threading.Lock()
        self._waiting: dict[str, None] = {}  # in order, each once
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._closed = False

    @property
    def running(self) -> int:
        with self._lock:
            return len(self._running)

    def start(self, job_id: str) -> None:
        """Given a stored job, run it now or after the others. A process that cannot be made is logged, not raised."""
        with self._lock:
            if job_id not in self._running:
                self._waiting[job_id] = None
            self._fill()

    def close(self) -> None:
        """Start nothing further; what runs goes on by itself, and what waits is left to the resume timer."""
        with self._lock:
            self._closed = True
            if self._running:
                log.notice(f"{len(self._running)} job(s) go on without the listener")
            if self._waiting:
                log.notice(f"{len(self._waiting)} waiting job(s) are left to `servicectl jobs resume`")

    def _fill(self) -> None:
        while self._waiting and not self._closed:
            if len(self._running) >= self._max_jobs:
                log.info(f"{len(self._waiting)} job(s) wait: {len(self._running)} are running")
                return
            job_id = next(iter(self._waiting))
            del self._waiting[job_id]
            self._spawn(job_id)

    def _spawn(self, job_id: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_JOBS}
        environment["SERVICECTL_TRIGGER"] = GRPC
        try:
            # A session of its own: a signal meant for the listener's terminal does not end the job.
            process = subprocess.Popen(
                [*self._command, job_id],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what a job tells is in the store; stdout may be closed before it ends
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            log.error(f"job {job_id[-8:]} could not be started ({error.strerror}); the resume timer takes it")
            return
        self._running[job_id] = process
        threading.Thread(target=self._await_end, args=(job_id, process), daemon=True).start()

    def _await_end(self, job_id: str, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        log.info(f"the process of job {job_id[-8:]} ended with {status}")
        with self._lock:
            del self._running[job_id]
            self._fill()
