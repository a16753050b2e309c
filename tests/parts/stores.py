"""A job store as an older release left it, and who waits for a store."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import duckdb

from tests.parts import ROOT


def store_of_version_1(folder: Path, *, with_wal: bool = False) -> Path:
    """Given a folder, its job store in schema version 1; `with_wal` leaves the last row in a WAL, as a kill does."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "servicectl.duckdb"
    with duckdb.connect(str(path), config={"storage_compatibility_version": "v1.4.0"}) as connection:
        connection.execute((ROOT / "tests/data/store-version-1.sql").read_text())
    if with_wal:
        with duckdb.connect(str(path)) as connection:
            connection.execute("PRAGMA disable_checkpoint_on_shutdown")
            connection.execute("INSERT INTO requests VALUES ('work', 'in the WAL', uuid())")
    return path


def until_queued(lock: Path, process: subprocess.Popen[str]) -> None:
    """Return when a process waits for the flock on a file, as the kernel tells; fails when it ends or never does."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended without waiting"
        waiting = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
        if any(int(words[5]) == process.pid and _inode(words[6]) == lock.stat().st_ino for words in waiting):
            return
        time.sleep(0.01)
    raise AssertionError(f"nobody waited for {lock}")


def _inode(identity: str) -> int:
    return int(identity.rpartition(":")[2])
