"""Copies of the job store, and a copy put back in its place.

A restored store must not let in an owner that claimed a job before: epochs begin anew above all that is known, for the
jobs it holds and, through the table `restores`, for those made later.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servicectl import crash, store_file, store_fold
from servicectl.clock import Clock, stored
from servicectl.errors import Busy, ServicectlError, StoreError, UsageError
from servicectl.store import Store
from servicectl.store_schema import SCHEMA_VERSION

# More claims than one job can have had between a backup and the end of a store that cannot be read any more.
_UNKNOWN_CLAIMS = 1000


@dataclass(frozen=True)
class BackedUp:
    file: Path
    bytes: int
    jobs: int


@dataclass(frozen=True)
class Restored:
    """`jobs`, `unfinished`: in the restored store. `kept`: the store that it replaced, None where there was none."""

    file: Path
    jobs: int
    unfinished: int
    epoch: int
    kept: Path | None
    lost: int | None  # jobs of the replaced store that the backup does not know; None when it could not be read


@dataclass(frozen=True)
class Present:
    """What the store that is to be replaced can still tell. `running` is None when it cannot be read."""

    running: int | None
    epoch: int
    jobs: frozenset[str]


def backup(store: Store, target: Path | None, clock: Clock) -> BackedUp:
    """Copy the store to a file that does not exist yet; default: below `backups/`, named by time.

    Raises UsageError for a target that cannot be, StoreError when there is no store or it cannot be read.
    """
    moment = store_file.named_by_time(clock.now())
    target = target or store_file.backups_beside(store.path) / f"servicectl-version-{SCHEMA_VERSION}-{moment}.duckdb"
    if target.exists():
        raise UsageError(f"{target} exists", cure="name a file that does not: a backup is never overwritten")
    with store.reading() as connection:  # migrates an older one, and says what is wrong with a damaged one
        if connection is None:
            raise StoreError(f"there is no job store in {store.folder}", cure="servicectl doctor")
    with store.locked():
        if store_file.wal_of(store.path).exists():
            store_fold.fold_alone(store.path)
        jobs = store_file.keep_copy(store.path, target, clock)
    return BackedUp(target, target.stat().st_size, jobs)


def restore(store: Store, source: Path, clock: Clock, *, refuse: Callable[[Present], None]) -> Restored:
    """Put a backup in the store's place, in one step; what it replaces is kept beside, with its WAL.

    `refuse` raises when work is under way; nobody can claim a job while it looks. Raises UsageError when there is no
    such file, StoreError when it is damaged, of a newer program or no job store. The store is then as it was.
    """
    if not source.is_file() or source.resolve() == store.path.resolve():
        raise UsageError(f"{source} is no backup file", cure=f"ls {store_file.backups_beside(store.path)}")
    store.prepare_folder()
    with store.locked():
        present = _present(store, clock)
        refuse(present)
        beginning = store_file.beginning_of(store.path)
        try:
            made = _raised(store, source, beginning, present, clock)
            ready = store_file.ready_to_replace(store.path)
            kept = store_file.replaced_by(beginning) if store.path.exists() else None
            crash.point("store/restore/made")
            beginning.rename(ready)
            crash.point("store/restore/ready")
        except OSError as error:
            raise store_file.explained(error, beginning) from error
        finally:
            store_file.beginning_of(store.path)
        store_file.finish_restore(store.path)
    jobs, unfinished, epoch, known = made
    lost = None if present.running is None else len(present.jobs - known)
    return Restored(source, jobs, unfinished, epoch, kept, lost)


def _present(store: Store, clock: Clock) -> Present:
    """Another program that has the file open is Busy; damage of any kind is what a restore is for."""
    import duckdb

    seen = _work_epochs(store.folder)
    if not store.path.exists():
        return Present(0, seen, frozenset())
    try:
        with _opened(store.path, clock, store.lock_wait_s, read_only=True) as connection:
            running, epoch = connection.execute(
                "SELECT count(*) FILTER (state = 'RUNNING'), coalesce(max(epoch), 0) FROM jobs"
            ).fetchone()
            jobs = frozenset(row[0] for row in connection.execute("SELECT job_id::VARCHAR FROM jobs").fetchall())
    except Busy:
        raise
    except (StoreError, duckdb.Error):
        return Present(None, seen, frozenset())
    return Present(int(running), max(int(epoch), seen), jobs)


def _raised(
    store: Store, source: Path, beginning: Path, present: Present, clock: Clock
) -> tuple[int, int, int, frozenset[str]]:
    """Copy a backup, with a WAL that lies beside it, and make it a store of this program above every known epoch."""
    import duckdb

    shutil.copyfile(source, beginning)
    if store_file.wal_of(source).exists():
        shutil.copyfile(store_file.wal_of(source), store_file.wal_of(beginning))
    try:
        with _opened(beginning, clock, store.lock_wait_s, read_only=False) as connection:
            version = store_file.version_of(connection, source)
            connection.execute("CHECKPOINT")
            store_file.bring_up(connection, version)
            jobs, unfinished, epoch = _raise_epochs(connection, source, present, clock)
            known = frozenset(row[0] for row in connection.execute("SELECT job_id::VARCHAR FROM jobs").fetchall())
            connection.execute("CHECKPOINT")
    except duckdb.Error as error:
        raise _of_the_backup(store_file.explained(error, source), source) from error
    except StoreError as error:
        raise _of_the_backup(error, source) from error
    if store_file.wal_of(beginning).exists():
        raise StoreError(f"{beginning} could not be written whole", cure=f"free space: df -h {store.folder}")
    store_file.make_durable(beginning)
    return jobs, unfinished, epoch, known


def _raise_epochs(connection: Any, source: Path, present: Present, clock: Clock) -> tuple[int, int, int]:
    """A completed job is never claimed again, so its epoch stays."""
    (highest,) = connection.execute(
        "SELECT greatest(coalesce(max(epoch), 0), (SELECT coalesce(max(epoch), 0) FROM restores)) FROM jobs"
    ).fetchone()
    epoch = max(int(highest), present.epoch) + (_UNKNOWN_CLAIMS if present.running is None else 1)
    connection.execute("BEGIN")
    connection.execute("UPDATE jobs SET epoch = ? WHERE state <> 'COMPLETED'", [epoch])
    connection.execute("INSERT INTO restores VALUES (?, ?, ?)", [stored(clock.now()), str(source.absolute()), epoch])
    connection.execute("COMMIT")
    jobs, unfinished = connection.execute(
        "SELECT count(*), count(*) FILTER (state IN ('PENDING', 'RUNNING')) FROM jobs"
    ).fetchone()
    return int(jobs), int(unfinished), epoch


def _of_the_backup(error: ServicectlError, source: Path) -> ServicectlError:
    error.message = f"the backup {source} cannot be restored, nothing was changed: {error.message}"
    error.cure = f"name another one: ls {source.absolute().parent}"
    return error


def _work_epochs(folder: Path) -> int:
    """The highest epoch that a job's work folder, `work/<job>/<epoch>/`, shows."""
    return max((int(path.name) for path in folder.glob("work/*/*") if path.name.isdecimal()), default=0)


@contextmanager
def _opened(path: Path, clock: Clock, wait_s: float, *, read_only: bool) -> Iterator[Any]:
    connection = store_file.connect(path, read_only=read_only, clock=clock, wait_s=wait_s)
    try:
        yield connection
    finally:
        connection.close()
