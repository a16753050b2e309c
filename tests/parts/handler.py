"""The miniature DuckDB handler as a process of its own, over a database file in the test's folder.

Its friendly face runs here; its strict one on the engine of the estate's handler, in an environment of its own.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from servicectl.miniature import faults
from tests.parts import ROOT, missing

_READY_S = 30.0
_FRIENDLY = "servicectl.miniature.handler"
STRICT_PYTHON = ROOT / ".venv-handler/bin/python"


@dataclass
class HandlerPart:
    database: Path
    log: Path
    process: subprocess.Popen[bytes]


@contextmanager
def fault(client: redis.Redis, name: str, **members: float | str) -> Iterator[None]:
    """Switch a fault of the strict handler on: `times`, `matching` and `seconds` as `miniature.faults` says."""
    client.hset(faults.KEY, name, json.dumps(members))
    try:
        yield
    finally:
        client.hdel(faults.KEY, name)


@contextmanager
def handler(
    redis_url: str,
    folder: Path,
    *,
    strict: bool = False,
    environment: Mapping[str, str] | None = None,
    **options: float | str | Path,
) -> Iterator[HandlerPart]:
    """Given a Redis and a folder, a serving handler. Options are its command line's: `batch_seconds=0.1`, ..."""
    database = Path(str(options.pop("database", folder / "feature_store.duckdb")))
    log = folder / "handler.log"
    if strict and not STRICT_PYTHON.exists():
        missing("the strict handler", f"{STRICT_PYTHON} is not there; `make test` makes it")
    program = (str(STRICT_PYTHON), "servicectl.miniature.strict") if strict else (sys.executable, _FRIENDLY)
    command = [program[0], "-m", program[1], "--redis", redis_url, "--database", str(database)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, stderr=stderr
        )
    try:
        _wait_until_ready(process, log)
        yield HandlerPart(database, log, process)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(_READY_S) else b""
    if line.strip() != b"ready":
        raise RuntimeError(f"the handler did not start: {line!r} {log.read_text(errors='replace')[-2000:]}")
