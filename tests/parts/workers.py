"""Service B's and Service C's workers in small, each a process of its own."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.parts import ROOT, free_port

_READY_S = 60.0


@dataclass
class WorkerPart:
    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def events(self) -> list[dict[str, str]]:
        """What the serving worker says it did: {"event": "loaded" | "dropped" | "refused", "model": ..., ...}."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_for(self, limit_s: float = 20.0, **members: str) -> dict[str, str]:
        """The first event with these members, waited for."""
        limit = time.monotonic() + limit_s
        while True:
            for event in self.events():
                if members.items() <= event.items():
                    return event
            if time.monotonic() > limit:
                raise AssertionError(f"no event {members} in {self.events()}")
            time.sleep(0.01)


@contextmanager
def analytics_worker(redis_url: str, *, patience_s: float = 30.0) -> Iterator[WorkerPart]:
    """Service C in small. `patience_s`: how long it waits for one answer of the handler."""
    with _worker("servicectl.miniature.analytics", redis_url, "--patience", str(patience_s)) as part:
        yield part


@contextmanager
def serving_worker(redis_url: str) -> Iterator[WorkerPart]:
    """Service B's worker in small."""
    with _worker("servicectl.miniature.serving", redis_url) as part:
        yield part


@contextmanager
def _worker(module: str, redis_url: str, *more: str) -> Iterator[WorkerPart]:
    port = free_port()
    command = [sys.executable, "-m", module, "--redis", redis_url, "--port", str(port), *more]
    with tempfile.TemporaryDirectory(prefix="worker-") as folder:
        log = Path(folder) / "stderr"
        with log.open("wb") as stderr:
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr)
        part = WorkerPart(f"127.0.0.1:{port}", process, log)
        try:
            wait_until_ready(process, log)
            yield part
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the line `ready` on a process's stdout."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(_READY_S) else b""
    if line.strip() != b"ready":
        raise RuntimeError(f"the worker did not start: {line!r} {log.read_text(errors='replace')[-2000:]}")
