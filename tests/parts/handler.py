"""The miniature DuckDB handler as a process of its own, over a database file in the test's folder."""

from __future__ import annotations

import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.parts import ROOT

_READY_S = 30.0


@dataclass
class HandlerPart:
    database: Path
    log: Path
    process: subprocess.Popen[bytes]


@contextmanager
def handler(redis_url: str, folder: Path, **options: float | str | Path) -> Iterator[HandlerPart]:
    """Given a Redis and a folder, a serving handler. Options are its command line's: `batch_seconds=0.1`, ..."""
    database = Path(str(options.pop("database", folder / "feature_store.duckdb")))
    log = folder / "handler.log"
    command = [sys.executable, "-m", "servicectl.miniature.handler", "--redis", redis_url, "--database", str(database)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with log.open("ab") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr)
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
