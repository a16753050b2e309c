"""`servicectl listen` as a process of its own, with a state folder of its own and a Redis that is never there.

Its drift-check fails at its first attempt, in about a second, and so comes to an end.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from servicectl import config
from servicectl._pb import myservice_pb2, myservice_pb2_grpc
from servicectl._pb.v1 import jobs_pb2, jobs_pb2_grpc
from servicectl.actions.world import World
from servicectl.jobs.model import Job
from tests.parts import ROOT

DEADLINE_S = 60

_CONFIG = """
[state]
folder = "state"
[redis]
url = "redis://127.0.0.1:{redis}/0"
[jobs]
max_attempts = 1
lock_wait_s = {lock_wait_s}
[models.Coffee]
label = "bought"
features = ["age"]
[models.House]
label = "price"
features = ["rooms"]
[listen]
{listen}
"""


def until(holds: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < limit, f"did not happen: {what}"
        time.sleep(0.02)


@dataclass
class Listener:
    process: subprocess.Popen[bytes]
    address: str
    folder: Path
    _stderr: Path

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        with grpc.insecure_channel(self.address) as channel:
            yield channel

    @contextmanager
    def jobs(self) -> Iterator[jobs_pb2_grpc.JobsStub]:
        with self.channel() as channel:
            yield jobs_pb2_grpc.JobsStub(channel)

    def trigger(self, name: str, timeout: float = DEADLINE_S) -> str:
        """The estate's call."""
        with self.channel() as channel:
            stub = myservice_pb2_grpc.JobSchedulerStub(channel)
            answer = stub.TriggerJob(myservice_pb2.TriggerJobRequest(job_name=name), timeout=timeout)
        assert answer.success
        return str(answer.job_id)

    def insist(self, name: str) -> str:
        """`trigger`, again whenever `is_full` has taken the last place for an instant."""
        while True:
            try:
                return self.trigger(name)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise

    def ask(self, name: str, *, request_id: str = "", **params: str) -> jobs_pb2.TriggerJobResponse:
        with self.jobs() as jobs:
            request = jobs_pb2.TriggerJobRequest(job_name=name, params=params, request_id=request_id)
            return jobs.TriggerJob(request, timeout=DEADLINE_S)

    def events(self, job_id: str, after: int = 0) -> list[jobs_pb2.JobEvent]:
        """What a watch tells until the job's end."""
        with self.jobs() as jobs:
            return list(jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id, after=after), timeout=DEADLINE_S))

    def health(self) -> int:
        with self.channel() as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S).status)

    def is_full(self) -> bool:
        """Whether calls beyond its limit are refused just now."""
        try:
            self.health()
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)
        return False

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def stored(self) -> list[Job]:
        return stored(self.folder)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


class Refused(Exception):
    """The listener did not start."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def world(folder: Path) -> World:
    return World(config.load(folder / "servicectl.toml"))


def stored(folder: Path) -> list[Job]:
    """Oldest first."""
    return world(folder).runner.table.newest()[::-1]


def configured(folder: Path, listen: str = "", lock_wait_s: float = 60, redis: int = 1) -> Path:
    path = folder / "servicectl.toml"
    path.write_text(_CONFIG.format(listen=listen, lock_wait_s=lock_wait_s, redis=redis))
    return path


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "servicectl", "-v", "--config", str(folder / "servicectl.toml"), *words]


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SERVICECTL_")}
    return {**kept, **more}


@contextmanager
def listening(
    folder: Path,
    *options: str,
    listen: str = "",
    address: str = "127.0.0.1:0",
    env: Mapping[str, str] | None = None,
    lock_wait_s: float = 60,
    redis: int = 1,
) -> Iterator[Listener]:
    """A listener that serves; it is killed at the end. Raises Refused when it ends instead of serving."""
    configured(folder, listen, lock_wait_s, redis)
    stderr = folder / "stderr"
    with stderr.open("ab") as errors:
        process = subprocess.Popen(
            command(folder, "listen", "--address", address, *options),
            cwd=ROOT,
            env=environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    assert process.stdout is not None
    try:
        first = process.stdout.readline().decode()
        if not first:
            raise Refused(process.wait(DEADLINE_S), stderr.read_text())
        yield Listener(process, first.strip().removeprefix("listening on "), folder, stderr)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def silent_redis() -> Iterator[int]:
    """The port of a Redis that takes connections and never answers, until it is gone: jobs run as long as it is there."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield int(silent.getsockname()[1])


@contextmanager
def busy_store(folder: Path) -> Iterator[None]:
    """The job store's lock held, as by another command's long transaction."""
    state = folder / "state"
    state.mkdir(mode=0o750, exist_ok=True)
    descriptor = os.open(state / "servicectl.duckdb.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
