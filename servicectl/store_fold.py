"""The WAL of the job store is brought into its file by a copy that takes the file's place.

DuckDB's own checkpoint rewrites blocks of the live file, and a kill inside one of those writes would leave a store that
nobody can open. Everything here is called under the store's lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from servicectl import crash, store_file
from servicectl.errors import Busy, StoreError
from servicectl.files import fsync_folder
from servicectl.sql import literal

_LONG_WAL = 8 * 1024  # bytes; some 12 transactions: replaying them costs 3 ms at each open, folding them 12 ms once


def fold(path: Path, connection: Any) -> None:
    """Bring what the WAL holds into the file, so that the file alone is the store. Raises StoreError, Busy.

    `connection` is of an instance that has neither open.
    """
    import duckdb

    try:
        beginning = store_file.beginning_of(path)
        try:
            with _kept_from_others(path) as file:
                with beginning.open("wb") as copy:
                    shutil.copyfileobj(file, copy)
                shutil.copyfile(store_file.wal_of(path), store_file.wal_of(beginning))
                connection.execute(
                    f"ATTACH {literal(str(beginning))} AS folding (ROW_GROUP_SIZE {store_file.ROW_GROUP})"
                )
                try:
                    connection.execute("CHECKPOINT folding")
                finally:
                    connection.execute("DETACH folding")
                if store_file.wal_of(beginning).exists():
                    raise StoreError(
                        f"{store_file.wal_of(path)} could not be brought into its file", cure=f"df -h {path.parent}"
                    )
                store_file.make_durable(beginning)
                crash.point("store/fold/made")
                beginning.rename(folded(path))
                fsync_folder(path.parent)
                crash.point("store/fold/ready")
                _take_folded(path)
        finally:
            store_file.beginning_of(path)
    except (OSError, duckdb.Error) as error:
        raise store_file.explained(error, path) from error


@contextlib.contextmanager
def _kept_from_others(path: Path) -> Iterator[IO[bytes]]:
    """The file under the lock that DuckDB itself takes, for what the sidecar lock cannot keep out: a DuckDB shell.

    Raises Busy. The lock goes as soon as this process closes the file, through whichever descriptor (fcntl(2)).
    """
    with path.open("rb+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise Busy(f"another program holds {path} open", cure="close it (duckdb shell?) and try again") from None
        yield file


def fold_alone(path: Path) -> None:
    """`fold` in an instance of its own. Raises StoreError."""
    connection = store_file.instance(path)
    try:
        fold(path, connection)
    finally:
        connection.close()


def is_long(path: Path) -> bool:
    """Whether a store's WAL has grown so long that replaying it at each open costs more than folding it now and then."""
    try:
        return store_file.wal_of(path).stat().st_size > max(_LONG_WAL, path.stat().st_size // 1000)
    except FileNotFoundError:
        return False


def folded(path: Path) -> Path:
    """Where a store that holds its whole WAL waits, complete, to take the place of file and WAL."""
    return Path(f"{path}.folded")


def finish_fold(path: Path) -> None:
    """What a killed process had folded takes the file's place. Raises StoreError, Busy."""
    if not folded(path).exists():
        return
    try:
        if not path.exists():
            _take_folded(path)
            return
        with _kept_from_others(path):
            if _changed_since_folded(path):
                folded(path).unlink()
            else:
                _take_folded(path)
    except OSError as error:
        raise store_file.explained(error, path) from error


def _take_folded(path: Path) -> None:
    """The WAL goes first: beside the new file it would be a WAL of another checkpoint."""
    store_file.wal_of(path).unlink(missing_ok=True)
    crash.point("store/fold/wal-gone")
    folded(path).rename(path)
    fsync_folder(path.parent)


def _changed_since_folded(path: Path) -> bool:
    """Whether somebody has written to a store by hand before a killed fold was finished.

    Without a WAL it is the folded file that has every commit, whatever became of the other.
    """
    try:
        wal = store_file.wal_of(path).stat().st_mtime_ns
    except FileNotFoundError:
        return False
    return max(path.stat().st_mtime_ns, wal) > folded(path).stat().st_mtime_ns
