"""`servicectl` commands as processes that start in milliseconds: forked from one that has done the imports.

`python -m servicectl.selftest.forkserver MODULE...` imports what commands import and the named modules, opens nothing
(no thread of DuckDB or gRPC may be alive in a process that forks), and forks one child per request: real processes
with a process group, signals and an exit status of their own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servicectl.errors import ServicectlError

_IMPORTS = (
    "azure.storage.blob", "duckdb", "grpc", "msgspec", "redis", "redis.backoff", "rich.console", "tenacity",
    "servicectl.__main__", "servicectl._pb.myservice_pb2_grpc", "servicectl.actions.adopt",
    "servicectl.actions.drift_check", "servicectl.actions.planning", "servicectl.actions.publish",
    "servicectl.actions.retrain", "servicectl.actions.rollback", "servicectl.actions.sync_production",
    "servicectl.cli.app", "servicectl.cli.job_commands", "servicectl.cli.outcome", "servicectl.config",
    "servicectl.estate.alarms", "servicectl.estate.analytics", "servicectl.estate.artifacts.azure",
    "servicectl.estate.artifacts.local", "servicectl.estate.queue", "servicectl.estate.registry",
    "servicectl.estate.serving", "servicectl.estate.serving_keys", "servicectl.estate.trust",
)  # fmt: skip
_LOOK_S = 0.002
_FOREIGN = ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "JOURNAL_STREAM", "INVOCATION_ID", "NOTIFY_SOCKET")


@dataclass(frozen=True)
class Ended:
    """How a command ended: `status` is negative for a signal; `story` is what it wrote to stderr."""

    words: tuple[str, ...]
    status: int
    seconds: float
    output: str
    story: str

    def __str__(self) -> str:
        told = f"{self.output.strip()[-2000:]} {self.story.strip()[-2000:]}".strip()
        return f"`servicectl {' '.join(self.words)}` ended with {self.status}: {told}"


@dataclass(frozen=True)
class Kill:
    """SIGKILL from outside, so many seconds after the start."""

    after_s: float
    whole_group: bool


class ForkServer:
    """One command at a time."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._out, self._err = folder / "command.out", folder / "command.err"
        self._running: int | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Kill what runs, and run nothing further. May be called from another thread."""
        self._is_stopped = True
        if (running := self._running) is not None:
            with suppress(ProcessLookupError):
                os.killpg(running, signal.SIGKILL)

    def run(self, words: Sequence[str], environment: Mapping[str, str], kill: Kill | None = None) -> Ended:
        """Given a command line and the SERVICECTL_* variables it sees, run it to its end, or to its kill."""
        request = {
            "arguments": list(words),
            "environment": dict(environment),
            "out": str(self._out),
            "err": str(self._err),
        }
        started = time.monotonic()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        pid = self._running = int(self._told()["pid"])
        if kill is not None:
            while (left := started + kill.after_s - time.monotonic()) > 0 and not _has_ended(pid):
                time.sleep(min(left, _LOOK_S))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL) if not kill.whole_group else os.killpg(pid, signal.SIGKILL)
        if self._is_stopped:  # it may have begun after the stop
            self.stop()
        self._process.stdin.write("reap\n")
        self._process.stdin.flush()
        status = int(self._told()["status"])
        self._running = None
        if self._is_stopped:
            raise ServicectlError("the selftest was stopped")
        texts = [path.read_text(errors="replace") for path in (self._out, self._err)]
        return Ended(tuple(words), status, time.monotonic() - started, *texts)

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ServicectlError("the fork server has ended", cure="report this with what stands above")
        told: dict[str, Any] = json.loads(line)
        return told


def _has_ended(pid: int) -> bool:
    """Whether a process that nobody has reaped yet is dead (proc(5): the state behind the parenthesised name)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@contextmanager
def fork_server(folder: Path, preload: Sequence[str] = ()) -> Iterator[ForkServer]:
    """A started fork server; what its commands write lies in `folder`. `preload` names modules to import beside ours."""
    # One thread per library: threads that an import starts would be lost in every child.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "servicectl.selftest.forkserver", *preload],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C ends the selftest, which then ends its parts in order
    )
    try:
        yield ForkServer(process, folder)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


def _serve(preload: Sequence[str]) -> None:
    import importlib

    for name in (*_IMPORTS, *preload):
        importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        sys.exit(f"{threads} threads are alive after the imports; a fork would lose all but one")
    alive = 0
    # Not buffered: a child must not find the rest of the parent's input.
    while line := _line():
        if line == b"reap\n":
            _, status = os.waitpid(alive, 0)
            alive = 0
            print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)
            continue
        alive = os.fork()
        if alive == 0:
            os.setpgid(0, 0)
            _child(json.loads(line))
        with suppress(PermissionError, ProcessLookupError):  # in both, so that neither side comes too late
            os.setpgid(alive, alive)
        print(json.dumps({"pid": alive}), flush=True)
    if alive:
        with suppress(ProcessLookupError):
            os.killpg(alive, signal.SIGKILL)
        os.waitpid(alive, 0)


def _line() -> bytes:
    read = b""
    while not read.endswith(b"\n"):
        one = os.read(0, 1)
        if not one:
            return b""
        read += one
    return read


def _child(request: Mapping[str, Any]) -> None:
    status = 1
    try:
        import random

        random.seed()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        for number, path in ((1, request["out"]), (2, request["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        kept = {name: value for name, value in os.environ.items() if _is_harmless(name)}
        os.environ.clear()
        os.environ.update(kept | request["environment"])
        sys.argv = ["servicectl", *request["arguments"]]
        program = sys.modules["servicectl.__main__"]
        try:
            program.main()
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


def _is_harmless(name: str) -> bool:
    """What would lead a command to another estate than the selftest's stays away."""
    return not name.startswith(("SERVICECTL_", "AZURE_")) and name not in _FOREIGN


if __name__ == "__main__":
    _serve(sys.argv[1:])
