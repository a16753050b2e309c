"""One DuckDB file of the job store: opened, made whole, brought to this program's schema, its errors told with a cure.

Everything here is called under the store's lock. DuckDB has lost data where one WAL held DDL and rows, so a file is
made or changed beside, checkpointed, and renamed into its place: a kill leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from servicectl import crash
from servicectl.clock import Clock
from servicectl.errors import Busy, StoreDamaged, StoreDenied, StoreError, StoreFull
from servicectl.files import fsync_file, fsync_folder, sha256_of
from servicectl.sql import literal
from servicectl.store_schema import FIRST, MIGRATIONS, SCHEMA_VERSION

_SETTINGS = {
    "threads": "1",
    "async_threads": "0",  # eight otherwise, in every short process
    "memory_limit": "256MB",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "wal_autocheckpoint": "1TB",  # never by itself: see `store_fold`
    "storage_compatibility_version": "v1.4.0",  # older storage replays a WAL that belongs to another file
}

# A new row costs rewriting the last, unfilled row group of its table: 150 ms with DuckDB's 122,880 rows, 5 ms so.
ROW_GROUP = 8192

ATTACHED = "store"

_FOREIGN_WAL = ("WAL does not match", "checkpoint iteration")

_DAMAGE = (
    "Corrupt",
    "checksum",
    "Could not read enough bytes",
    "not a valid DuckDB",
    "replaying WAL",
    "database has been invalidated",
)

_RECOVERY = "servicectl jobs restore FILE  puts a backup in its place and keeps what is there now; backups: ls "


def wal_of(path: Path) -> Path:
    return Path(f"{path}.wal")


def ready_to_replace(path: Path) -> Path:
    """Where a restored file waits, complete, for the instant in which it becomes the store."""
    return Path(f"{path}.restored")


def backups_beside(path: Path) -> Path:
    return path.parent / "backups"


def named_by_time(moment: datetime) -> str:
    """For file names: UTC, to the microsecond, sorting as the time does."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def last_changed(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def instance(path: Path) -> Any:
    """A DuckDB instance of its own, with nothing of the store open, for the store at a path."""
    import duckdb

    # Where it is unset, DuckDB would make its folder for spilled data in the working directory.
    connection = duckdb.connect(":memory:", config={**_SETTINGS, "temp_directory": f"{path}.tmp"})
    connection.execute("SELECT max(1)").fetchall()  # the first function takes 2 ms to be found, here before the queue
    connection.execute("PRAGMA disable_checkpoint_on_shutdown")  # nor when a file is detached: see `store_fold`
    return connection


def attach(connection: Any, path: Path, *, read_only: bool, clock: Clock, wait_s: float) -> None:
    """Open a store's file in an instance. Raises Busy when another program keeps it open for `wait_s`, StoreError."""
    how = f"ROW_GROUP_SIZE {ROW_GROUP}{', READ_ONLY' if read_only else ''}"
    statement = f"ATTACH {literal(str(path))} AS {ATTACHED} ({how})"
    _when_free(lambda: connection.execute(statement), path, clock, wait_s)
    connection.execute(f"USE {ATTACHED}")


def connect(path: Path, *, read_only: bool, clock: Clock, wait_s: float) -> Any:
    """A connection for what is done to a file now and then; closing it closes the file. Raises as `attach`."""
    connection = instance(path)
    try:
        attach(connection, path, read_only=read_only, clock=clock, wait_s=wait_s)
    except BaseException:
        connection.close()
        raise
    return connection


def _when_free(open_file: Callable[[], Any], path: Path, clock: Clock, wait_s: float) -> Any:
    """What `open_file` returns, tried again while another program has the file open. Raises Busy, StoreError."""
    import duckdb

    limit = clock.monotonic() + wait_s
    while True:
        try:
            return open_file()
        except duckdb.Error as error:
            held_elsewhere = "Could not set lock on file" in str(error)
            if not held_elsewhere or clock.monotonic() > limit:
                raise explained(error, path) from error
            clock.sleep(0.05)


def version_of(connection: Any, path: Path) -> int:
    """The schema version of a store. Raises StoreError for one from a newer program; duckdb's errors pass through."""
    (version,) = connection.execute("SELECT max(version) FROM schema_info").fetchone()
    if version is None or version < 1:
        raise _no_store(path)
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version}, this program knows {SCHEMA_VERSION}",
            cure="install the servicectl release that wrote it, or a newer one",
        )
    return int(version)


def create(path: Path, clock: Clock, wait_s: float) -> None:
    """Written beside and renamed: a file that exists always has every table."""
    try:
        beginning = beginning_of(path)
        try:
            _change(beginning, 0, clock, wait_s)
            beginning.rename(path)
            fsync_folder(path.parent)
        finally:
            beginning_of(path)
    except OSError as error:
        raise explained(error, path) from error


def migrate(path: Path, version: int, clock: Clock, wait_s: float) -> None:
    """Given an older store without a WAL that nobody has open, keep a copy of it and bring it to SCHEMA_VERSION.

    Raises StoreError when that fails (the store is then as it was), Busy when somebody changed it meanwhile.
    """
    before = path.stat()
    name = f"servicectl-version-{version}-{named_by_time(last_changed(path))}.duckdb"
    try:
        changed = beginning_of(path)
        try:
            keep_copy(path, backups_beside(path) / name, clock)
            crash.point("store/migrate/kept")
            shutil.copyfile(path, changed)
            crash.point("store/migrate/copied")
            _change(changed, version, clock, wait_s)
            crash.point("store/migrate/changed")
            after = path.stat()
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or wal_of(path).exists():
                raise Busy(f"another program changed {path} during its migration", cure="close it (duckdb shell?)")
            changed.rename(path)
            crash.point("store/migrate/renamed")
            fsync_folder(path.parent)
        finally:
            beginning_of(path)
    except OSError as error:
        raise explained(error, path) from error


def make_durable(file: Path) -> None:
    """Before a file gets the name that others look for: its mode, its owner and its bytes are as they shall stay."""
    file.chmod(0o640)
    hand_over(file)
    fsync_file(file)


def hand_over(file: Path) -> None:
    """What root has written belongs to the folder's owner: a file or WAL of root's would keep the timers' user out."""
    if os.geteuid() == 0:
        owner = file.parent.stat()
        with contextlib.suppress(FileNotFoundError):
            os.chown(file, owner.st_uid, owner.st_gid)


def keep_copy(path: Path, target: Path, clock: Clock) -> int:
    """Copy a store that has no WAL, and count the copy's jobs: once it has its name it is whole, durable and readable.

    An equal target is left as it is, so that a change that fails each time does not fill the disk with copies. Raises
    StoreError.
    """
    import duckdb

    temporary = Path(f"{target}.{os.getpid()}.part")
    try:
        if not (target.exists() and sha256_of(target) == sha256_of(path)):
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            shutil.copyfile(path, temporary)
            make_durable(temporary)
        copy = temporary if temporary.exists() else target
        connection = connect(copy, read_only=True, clock=clock, wait_s=0.0)
        try:
            (jobs,) = connection.execute("SELECT count(*) FROM jobs").fetchone()
        finally:
            connection.close()
        if copy is temporary:
            temporary.rename(target)
            fsync_folder(target.parent)
    except (OSError, duckdb.Error) as error:
        raise explained(error, target) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return int(jobs)


def finish_restore(path: Path) -> None:
    """Let a restored file that waits complete take the store's place; the file it replaces is kept with its WAL.

    Every step may be killed and done again: the name under which they are kept follows from the waiting file. Only
    when the WAL has left may the new file come: a WAL beside a file it does not belong to would be replayed into it.
    """
    ready = ready_to_replace(path)
    if not ready.exists():
        return
    kept = replaced_by(ready)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        if wal_of(path).exists():
            wal_of(path).rename(wal_of(kept))
        crash.point("store/restore/wal-aside")
        if path.exists():
            path.rename(kept)
        crash.point("store/restore/aside")
        fsync_folder(kept.parent)
        ready.rename(path)
        crash.point("store/restore/renamed")
        fsync_folder(path.parent)
    except OSError as error:
        raise explained(error, path) from error


def replaced_by(ready: Path) -> Path:
    """The name that the store keeps which a restored file replaces."""
    return backups_beside(ready) / f"replaced-{named_by_time(last_changed(ready))}.duckdb"


def beginning_of(path: Path) -> Path:
    """A name beside to write a file under, with what a killed process left there removed."""
    beginning = path.with_suffix(".new")
    for leftover in (beginning, wal_of(beginning)):
        leftover.unlink(missing_ok=True)
    return beginning


def _change(beginning: Path, version: int, clock: Clock, wait_s: float) -> None:
    """Bring a file that is not yet the store from a version (0: no file) to SCHEMA_VERSION, checkpointed and durable."""
    import duckdb

    connection = connect(beginning, read_only=False, clock=clock, wait_s=wait_s)
    try:
        bring_up(connection, version)
    except duckdb.Error as error:
        raise explained(error, beginning) from error
    finally:
        connection.close()
    make_durable(beginning)


def bring_up(connection: Any, version: int) -> None:
    """The DDL from a version on, never in one WAL with rows. Raises duckdb.Error."""
    for number in range(version, SCHEMA_VERSION):
        connection.execute(MIGRATIONS[number] if number else FIRST)
        connection.execute("CHECKPOINT")
        crash.point("store/migrate/changing")
    if version < SCHEMA_VERSION:
        connection.execute("INSERT INTO schema_info VALUES (?)", [SCHEMA_VERSION])
        connection.execute("CHECKPOINT")


def _no_store(path: Path) -> StoreError:
    return StoreDamaged(f"{path} is no job store of servicectl", cure="move it away, or name another [state] folder")


def unusable(what: str, error: OSError, folder: Path) -> StoreError | Busy:
    """Given what cannot be done in a state folder, and why."""
    if error.errno == errno.EROFS:
        return explained(error, folder)
    kind = StoreDenied if error.errno in (errno.EACCES, errno.EPERM) else StoreError
    cure = f"run as the user that owns {folder}, or name another [state] folder"
    return kind(f"{what}: {error.strerror}", cure=cure)


def explained(error: Exception, path: Path) -> StoreError | Busy:
    """Given what DuckDB or the operating system said about a store's file, what it means and what to do."""
    text = " ".join(str(error).split())

    def says(*signs: str) -> bool:
        return any(sign in text for sign in signs)

    if says("Could not set lock on file"):
        return Busy(f"another program holds {path} open: {text}", cure="close it (duckdb shell?) and try again")
    if says("No space left on device", "Disk quota exceeded", "File too large"):
        which = "quota" if says("Disk quota") else "size allowed by ulimit -f" if says("File too") else "space"
        return StoreFull(f"no {which} left for {path}; nothing was lost", cure=f"make room: df -h {path.parent}")
    if says("Input/output error"):
        return StoreFull(
            f"the disk of {path} fails: {text}", cure="dmesg | tail  tells more; then jobs backup elsewhere"
        )
    if says("Read-only file system"):
        return StoreDenied(
            f"{path} is on a file system that is mounted read-only",
            cure=f"findmnt -T {path.parent}; a disk with errors is mounted so by the kernel: dmesg | tail",
        )
    if says("Permission denied", "Operation not permitted"):
        return StoreDenied(f"{path} cannot be written: {text}", cure=f"run as the owner of {path.parent}")
    if says("schema_info does not exist"):
        return _no_store(path)
    if says("with version number", "newer version of DuckDB"):
        return StoreError(
            f"{path} was written by a newer DuckDB: {text}", cure="install the servicectl release that wrote it"
        )
    if says(*_FOREIGN_WAL):
        return StoreDamaged(
            f"{wal_of(path)} is a foreign WAL, not of {path}: {text}",
            cure=f"nothing was deleted. Put the WAL away if the file alone is wanted, or: {_RECOVERY}"
            f"{backups_beside(path)}",
        )
    if says(*_DAMAGE):
        return StoreDamaged(
            f"{path} is damaged: {text}",
            cure=f"nothing was deleted. {_RECOVERY}{backups_beside(path)}",
        )
    if isinstance(error, OSError):
        return StoreError(f"{path} cannot be written: {text}", cure=f"see that it can be: ls -ld {path.parent}")
    return StoreError(f"the job store {path}: {text}", cure="report this with `servicectl --version`")
