"""An older job store becomes one of this program: with a copy kept first, and whole wherever it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from servicectl import store_file
from servicectl.clock import SYSTEM, Clock
from servicectl.errors import Busy, StoreError
from servicectl.jobs.model import State
from servicectl.jobs.runner import Runner
from servicectl.store import SCHEMA_VERSION, Store
from tests.jobs.program import runner
from tests.parts import ROOT, missing
from tests.parts.jobs import Start, job_programs
from tests.parts.stores import store_of_version_1

TABLES = ("jobs", "requests", "steps", "events", "alarms", "deliveries")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with job_programs(tmp_path) as begin:
        yield begin


def _rows(path: Path) -> dict[str, list[Any]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return {table: connection.execute(f"FROM {table} ORDER BY ALL").fetchall() for table in TABLES}


def _version(path: Path) -> int:
    with duckdb.connect(str(path), read_only=True) as connection:
        return int(connection.execute("SELECT max(version) FROM schema_info").fetchone()[0])  # type: ignore[index] -- an aggregate has one row


def _shape(path: Path) -> list[Any]:
    with duckdb.connect(str(path), read_only=True) as connection:
        columns = connection.execute(
            "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns() ORDER BY ALL"
        ).fetchall()
        constraints = connection.execute(
            "SELECT table_name, constraint_text FROM duckdb_constraints() ORDER BY ALL"
        ).fetchall()
    return [*columns, *constraints]


def _write(folder: Path) -> None:
    with Store(folder).transaction() as connection:
        connection.execute("SELECT 1")


def _read(folder: Path) -> None:
    with Store(folder).reading() as connection:
        assert connection is not None


@pytest.mark.parametrize("use", [_write, _read])
def test_the_first_use_of_an_older_store_brings_it_up_and_keeps_a_copy_of_it(
    tmp_path: Path, use: Callable[[Path], None]
) -> None:
    path = store_of_version_1(tmp_path)
    before, rows = path.read_bytes(), _rows(path)

    use(tmp_path)
    use(tmp_path)

    assert (_version(path), _rows(path)) == (SCHEMA_VERSION, rows)
    [kept] = (tmp_path / "backups").iterdir()
    assert kept.name.startswith("servicectl-version-1-")
    assert kept.read_bytes() == before
    assert kept.stat().st_mode & 0o007 == 0
    assert sorted(one.name for one in tmp_path.iterdir()) == ["backups", "servicectl.duckdb", "servicectl.duckdb.lock"]


def test_a_store_that_was_brought_up_is_shaped_like_a_new_one(tmp_path: Path) -> None:
    _write(tmp_path / "new")
    path = store_of_version_1(tmp_path / "old")
    _write(tmp_path / "old")

    assert _shape(path) == _shape(tmp_path / "new" / "servicectl.duckdb")
    assert {"slots", "restores"} <= {row[0] for row in _shape(path)}


def test_an_interrupted_job_of_the_older_release_is_carried_on_with_its_finished_steps(tmp_path: Path) -> None:
    store_of_version_1(tmp_path)
    mine: Runner = runner(tmp_path)

    [ran] = mine.resume()

    assert (ran.job.state, ran.job.scope, ran.job.epoch) == (State.COMPLETED, "b-scope", 3)
    assert [(step.name, step.attempts) for step in mine.table.steps(ran.job.job_id)] == [("one", 1), ("two", 2)]
    assert (tmp_path / "effects.txt").read_text().split() == ["two"]


def test_what_lay_in_the_wal_of_an_older_store_comes_with_it(tmp_path: Path) -> None:
    path = store_of_version_1(tmp_path, with_wal=True)
    assert Path(f"{path}.wal").exists()

    _read(tmp_path)

    assert ("work", "in the WAL") in {row[:2] for row in _rows(path)["requests"]}
    [kept] = (tmp_path / "backups").iterdir()
    assert _rows(kept) == _rows(path)


_POINTS = ("kept", "copied", "changing", "changed", "renamed")


@pytest.mark.parametrize("point", _POINTS)
def test_a_migration_killed_anywhere_leaves_the_old_store_or_the_new_one(tmp_path: Path, point: str) -> None:
    path = store_of_version_1(tmp_path, with_wal=True)
    _checkpointed_rows = _rows(path)
    program = "import sys; from pathlib import Path; from servicectl.store import Store\nwith Store(Path(sys.argv[1])).reading(): pass"
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "SERVICECTL_CRASH_AT": f"store/migrate/{point}"},
    )

    assert killed.returncode == -signal.SIGKILL
    assert (_version(path), _rows(path)) == (2 if point == "renamed" else 1, _checkpointed_rows)
    _write(tmp_path)
    assert (_version(path), _rows(path)) == (SCHEMA_VERSION, _checkpointed_rows)
    [kept] = (tmp_path / "backups").glob("*.duckdb")
    assert _version(kept) == 1


def test_processes_that_meet_an_older_store_at_once_bring_it_up_once_and_lose_nothing(
    start: Start, tmp_path: Path
) -> None:
    path = store_of_version_1(tmp_path)
    started = [start("create", f"by {number}") for number in range(4)]
    assert [one.line() for one in started] == ["ready"] * 4
    for one in started:
        one.go_on()

    assert [one.ended() for one in started] == [(0, [])] * 4
    assert {row[1] for row in _rows(path)["requests"]} == {"slot-1", *(f"by {number}" for number in range(4))}
    assert len(list((tmp_path / "backups").iterdir())) == 1


def test_a_program_that_changes_the_store_during_its_migration_loses_nothing_and_makes_it_wait(tmp_path: Path) -> None:
    path = store_of_version_1(tmp_path)

    def somebody_else() -> float:
        """Asked for when the copy is opened: another program writes into the original."""
        if path.with_suffix(".new").exists() and not (tmp_path / "wrote").exists():
            (tmp_path / "wrote").touch()
            with duckdb.connect(str(path)) as connection:
                connection.execute("INSERT INTO requests VALUES ('work', 'meanwhile', uuid())")
        return time.monotonic()

    clock = Clock(now=lambda: datetime.now(UTC), monotonic=somebody_else, sleep=time.sleep)

    with pytest.raises(Busy, match="another program changed"):
        store_file.migrate(path, 1, clock, 1.0)

    assert _version(path) == 1
    assert "meanwhile" in {row[1] for row in _rows(path)["requests"]}
    store_file.migrate(path, 1, SYSTEM, 1.0)
    assert "meanwhile" in {row[1] for row in _rows(path)["requests"]}


@pytest.mark.root
def test_a_migration_without_the_space_leaves_the_store_and_no_growing_heap_of_copies(tmp_path: Path) -> None:
    mounting = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(tmp_path)]
    if os.getuid() != 0 or subprocess.run(mounting).returncode != 0:
        missing("root", "only root can mount")
    try:
        path = store_of_version_1(tmp_path)
        rows, size = _rows(path), path.stat().st_size
        with (tmp_path / "big").open("wb") as big:
            big.write(b"0" * (24 * 1024 * 1024 - int(2.5 * size) - 4096 * 8))

        for _ in range(3):
            with pytest.raises(StoreError, match="no space left") as caught:
                _write(tmp_path)
            assert "df -h" in caught.value.cure

        assert (_version(path), _rows(path)) == (1, rows)
        assert len(list((tmp_path / "backups").iterdir())) == 1
        assert not path.with_suffix(".new").exists()
        (tmp_path / "big").unlink()
        _write(tmp_path)
        assert (_version(path), _rows(path)) == (SCHEMA_VERSION, rows)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
