"""`servicectl` commands as processes that start in milliseconds: forked from one that has done the imports.

`python -m tests.parts.commands` imports what commands import, opens nothing (no DuckDB or gRPC thread may be alive in a
process that forks) and then forks one child per request: real processes with signals and exit statuses of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.parts import ROOT

_IMPORTS = (
    "azure.storage.blob", "duckdb", "grpc", "joblib", "msgspec", "redis", "redis.backoff", "rich.console", "rich.table", "tenacity",
    "servicectl._pb.myservice_pb2_grpc", "servicectl.actions.adopt", "servicectl.actions.cancel",
    "servicectl.actions.canary", "servicectl.actions.doctor", "servicectl.actions.drift_check",
    "servicectl.actions.models", "servicectl.actions.publish", "servicectl.actions.retrain",
    "servicectl.actions.sync_production", "servicectl.actions.trigger", "servicectl.cli.app",
    "servicectl.cli.job_views", "servicectl.cli.job_watch", "servicectl.cli.outcome", "servicectl.cli.tables",
    "servicectl.config", "servicectl.estate.alarms", "servicectl.estate.analytics",
    "servicectl.estate.artifacts.azure", "servicectl.estate.artifacts.local", "servicectl.estate.queue",
    "servicectl.estate.registry", "servicectl.estate.serving", "servicectl.estate.serving_keys",
    "servicectl.listener.server",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended: `status` is negative for a signal."""

    status: int
    stdout: str
    stderr: str

    @property
    def told(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        value: dict[str, Any] = json.loads(self.stdout)
        return value

    def __str__(self) -> str:
        return f"status {self.status}\n{self.stdout}\n{self.stderr}"


@dataclass
class Running:
    pid: int
    _server: ForkServer
    _out: Path
    _err: Path
    _ended: Ended | None = field(default=None)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    def wait(self) -> Ended:
        if self._ended is None:
            status = self._server.status_of(self.pid)
            self._ended = Ended(status, self.stdout, self.stderr)
        return self._ended


class ForkServer:
    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._count = 0
        self._statuses: dict[int, int] = {}

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Running:
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        out.touch()
        err.touch()
        request = {"arguments": list(arguments), "environment": dict(environment), "out": str(out), "err": str(err)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        told = self._next()
        while "pid" not in told:
            self._statuses[told["ended"]] = told["status"]
            told = self._next()
        return Running(told["pid"], self, out, err)

    def status_of(self, pid: int) -> int:
        while pid not in self._statuses:
            told = self._next()
            self._statuses[told["ended"]] = told["status"]
        return self._statuses.pop(pid)

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the fork server has ended")
        told: dict[str, Any] = json.loads(line)
        return told


@contextmanager
def fork_server(folder: Path) -> Iterator[ForkServer]:
    """A started fork server; what its commands write lies in `folder`."""
    # One thread per library: threads that an import starts would be lost in every child.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.parts.commands"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield ForkServer(process, folder)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


def _serve() -> None:
    import importlib
    import select
    import signal

    for name in _IMPORTS:
        importlib.import_module(name)
    alive: set[int] = set()
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    buffered = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            for pid in list(alive):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    alive.discard(pid)
                    print(json.dumps({"ended": pid, "status": os.waitstatus_to_exitcode(status)}), flush=True)
        if 0 in ready:
            received = os.read(0, 1 << 16)
            if not received:
                break
            *lines, buffered = (buffered + received).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.close(wake)
                    os.close(woken)
                    _child(json.loads(line))
                alive.add(pid)
                print(json.dumps({"pid": pid}), flush=True)
    for pid in alive:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def _child(request: Mapping[str, Any]) -> None:
    status = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        for number, path in ((1, request["out"]), (2, request["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SERVICECTL_")}
        os.environ.clear()
        os.environ.update(kept | request["environment"])
        sys.argv = ["servicectl", *request["arguments"]]
        from servicectl.__main__ import main

        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0) if not isinstance(end.code, str) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 -- a child must never go on as a second server
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    _serve()
