"""The one DuckDB file of servicectl: short connections under a sidecar lock.

DuckDB's own file lock refuses instead of queueing and is silently dropped when the holder opens the file a
second time, so every open first takes a blocking `flock` on `servicectl.duckdb.lock` (a fair queue with a
deadline). Tables have primary keys only: secondary indexes and DDL mixed with rows in one WAL are where DuckDB
has lost data. Storage version v1.4.0 refuses a WAL that belongs to another file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from servicectl.clock import SYSTEM, Clock
from servicectl.errors import Busy, StoreError
from servicectl.files import fsync_folder

SCHEMA_VERSION = 1

_STORAGE_VERSION = "v1.4.0"

_SCHEMA = """
CREATE TABLE jobs (
    job_id UUID PRIMARY KEY,
    kind VARCHAR NOT NULL,
    step_schema INTEGER NOT NULL,       -- version of the kind's steps; newer code migrates or parks older jobs
    scope VARCHAR NOT NULL,             -- mutual exclusion: one runner per scope
    request_id VARCHAR,                 -- the one it was made for; table requests has all
    spec VARCHAR NOT NULL,              -- JSON
    state VARCHAR NOT NULL CHECK (state IN ('PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    epoch INTEGER NOT NULL,             -- fencing token, +1 per claim
    attempts INTEGER NOT NULL,          -- budget spent; an interruption gives one back
    max_attempts INTEGER NOT NULL,
    not_before TIMESTAMP NOT NULL,
    parent_id UUID,
    trigger VARCHAR NOT NULL,
    owner VARCHAR,                      -- JSON: host, pid, boot id, user of the last claim
    cancel_requested BOOLEAN NOT NULL,
    outcome VARCHAR,
    needs_operator BOOLEAN NOT NULL,
    result VARCHAR,                     -- JSON
    exit_status INTEGER,
    error VARCHAR,
    cure VARCHAR,
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL,
    finished_at TIMESTAMP
);
CREATE TABLE requests (
    kind VARCHAR NOT NULL, request_id VARCHAR NOT NULL, job_id UUID NOT NULL,   -- every id a job was answered with
    PRIMARY KEY (kind, request_id)
);
CREATE TABLE steps (
    job_id UUID NOT NULL, seq INTEGER NOT NULL, name VARCHAR NOT NULL,
    state VARCHAR NOT NULL CHECK (state IN ('RUNNING', 'COMPLETED', 'FAILED', 'STALE')),
    epoch INTEGER NOT NULL, attempts INTEGER NOT NULL,
    started_at TIMESTAMP NOT NULL, finished_at TIMESTAMP, output VARCHAR, error VARCHAR,
    PRIMARY KEY (job_id, seq)
);
CREATE TABLE events (
    job_id UUID NOT NULL, seq INTEGER NOT NULL, epoch INTEGER NOT NULL, edge VARCHAR NOT NULL,
    from_state VARCHAR, to_state VARCHAR NOT NULL, detail VARCHAR, happened_at TIMESTAMP NOT NULL,
    PRIMARY KEY (job_id, seq)
);
CREATE TABLE alarms (
    alarm_id UUID PRIMARY KEY, model_id VARCHAR NOT NULL, feature VARCHAR NOT NULL, change VARCHAR NOT NULL,
    verdict VARCHAR NOT NULL, text VARCHAR NOT NULL, job_id UUID, raised_at TIMESTAMP NOT NULL,
    acknowledged_at TIMESTAMP, acknowledged_by VARCHAR
);
CREATE TABLE deliveries (               -- one row per alarm and sink that was tried
    alarm_id UUID NOT NULL, sink VARCHAR NOT NULL, attempts INTEGER NOT NULL, tried_at TIMESTAMP NOT NULL,
    delivered_at TIMESTAMP, error VARCHAR,
    PRIMARY KEY (alarm_id, sink)
);
CREATE TABLE schema_info (version INTEGER NOT NULL);
"""

_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "glusterfs", "ceph"}


_DAMAGE = (
    "Corrupt",
    "checksum",
    "Could not read enough bytes",
    "not a valid DuckDB",
    "replaying WAL",
    "WAL does not match",
    "checkpoint iteration",
)


class Store:
    """Opens `<folder>/servicectl.duckdb` for one transaction at a time."""

    def __init__(self, folder: Path, *, clock: Clock = SYSTEM, lock_wait_s: float = 60.0) -> None:
        self.folder = folder
        self.path = folder / "servicectl.duckdb"
        self._lock_path = folder / "servicectl.duckdb.lock"
        self._clock = clock
        self._lock_wait_s = lock_wait_s
        self._checked = False

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        """One committed read-write transaction on a duckdb connection; rolled back when the body raises.

        Raises Busy when the lock is not free within the deadline, StoreError when the file cannot be used.
        """
        import duckdb

        self._prepare_folder()
        with self._locked():
            if not self.path.exists():
                self._create(duckdb)
            with self._opened(duckdb, read_only=False) as connection:
                self._check_version(connection)
                connection.execute("BEGIN")
                try:
                    yield connection
                except BaseException:
                    with contextlib.suppress(duckdb.Error):
                        connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any | None]:
        """A read-only connection, or None when nothing was ever stored. Errors as `transaction`."""
        try:
            found = self.path.exists()
        except OSError as error:
            raise StoreError(
                f"the state folder {self.folder} cannot be read: {error.strerror}", cure="run as the user that owns it"
            ) from None
        if not found:
            yield None
            return
        import duckdb

        with self._locked(), self._opened(duckdb, read_only=True) as connection:
            self._check_version(connection)
            yield connection

    def _prepare_folder(self) -> None:
        if self._checked:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        except OSError as error:
            raise StoreError(
                f"the state folder {self.folder} cannot be made: {error.strerror}",
                cure="choose another in [state] folder, or run as the user that owns it",
            ) from None
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise StoreError(
                f"the state folder {self.folder} is not writable for this user",
                cure=f"sudo chown -R $USER {self.folder}, or run as its owner",
            )
        kind = _file_system(self.folder)
        if kind in _NETWORK_FILE_SYSTEMS:
            raise StoreError(
                f"the state folder {self.folder} is on a network file system ({kind}); its locks cannot be trusted",
                cure="put [state] folder on a local disk",
            )
        self._checked = True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise StoreError(
                f"the store's lock {self._lock_path} cannot be opened: {error.strerror}",
                cure="run as the user that owns the state folder",
            ) from None
        try:
            flock_within(descriptor, self._lock_wait_s, self._clock, f"the job store {self.path}")
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _opened(self, duckdb: Any, *, read_only: bool) -> Iterator[Any]:
        connection = self._connect(duckdb, self.path, read_only=read_only)
        try:
            yield connection
        except duckdb.Error as error:
            raise _explained(error, self.path) from error
        finally:
            connection.close()

    def _connect(self, duckdb: Any, path: Path, *, read_only: bool) -> Any:
        settings = {
            "threads": "1",
            "memory_limit": "256MB",
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
        }
        if not read_only:
            settings["storage_compatibility_version"] = _STORAGE_VERSION
        limit = self._clock.monotonic() + self._lock_wait_s
        while True:
            try:
                return duckdb.connect(str(path), read_only=read_only, config=settings)
            except duckdb.Error as error:
                held_elsewhere = "Could not set lock on file" in str(error)
                if not held_elsewhere or self._clock.monotonic() > limit:
                    raise _explained(error, path) from error
                self._clock.sleep(0.05)

    def _create(self, duckdb: Any) -> None:
        """Written beside and renamed: a file that exists always has every table."""
        beginning = self.path.with_suffix(".new")
        for leftover in (beginning, Path(f"{beginning}.wal")):
            leftover.unlink(missing_ok=True)
        connection = self._connect(duckdb, beginning, read_only=False)
        try:
            connection.execute(_SCHEMA)
            connection.execute("INSERT INTO schema_info VALUES (?)", [SCHEMA_VERSION])
            connection.execute("CHECKPOINT")
        except duckdb.Error as error:
            raise _explained(error, beginning) from error
        finally:
            connection.close()
        beginning.chmod(0o640)
        beginning.rename(self.path)
        fsync_folder(self.folder)

    def _check_version(self, connection: Any) -> None:
        (version,) = connection.execute("SELECT max(version) FROM schema_info").fetchone()
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} has schema version {version}, this program knows {SCHEMA_VERSION}",
                cure="install the servicectl release that wrote it, or a newer one",
            )


def flock_within(descriptor: int, seconds: float, clock: Clock, what: str) -> None:
    """Take an exclusive flock, queueing fairly; raises Busy after the deadline.

    The main thread blocks in the kernel's queue, ended by an alarm; other threads may not own signals and poll.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        pass
    busy = Busy(f"{what} was busy for {seconds:g} s", cure="servicectl jobs list  shows who works; try again")
    if threading.current_thread() is threading.main_thread() and not signal.getitimer(signal.ITIMER_REAL)[0]:
        _block_until_alarm(descriptor, seconds, busy)
        return
    limit = clock.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if clock.monotonic() > limit:
                raise busy from None
            clock.sleep(0.01)


def _block_until_alarm(descriptor: int, seconds: float, busy: Busy) -> None:
    def expired(_signal: int, _frame: FrameType | None) -> None:
        raise busy

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))  # 0 would mean no alarm at all
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _file_system(folder: Path) -> str:
    """The type of the file system that holds a folder, from /proc/mounts; empty where that is unknown."""
    try:
        mounts = Path("/proc/self/mounts").read_text()
    except OSError:
        return ""
    target = str(folder.resolve())
    best, kind = "", ""
    for line in mounts.splitlines():
        _, point, name, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if (target == point or target.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, name
    return kind


def _explained(error: Exception, path: Path) -> StoreError | Busy:
    text = " ".join(str(error).split())
    if "Could not set lock on file" in text:
        return Busy(f"another program holds {path} open: {text}", cure="close it (duckdb shell?) and try again")
    if "No space left on device" in text:
        return StoreError(f"no space left for {path}; nothing was lost", cure=f"free space: df -h {path.parent}")
    if "Read-only file system" in text or "Permission denied" in text:
        return StoreError(f"{path} cannot be written: {text}", cure=f"run as the owner of {path.parent}")
    if "schema_info does not exist" in text:
        return StoreError(f"{path} is no job store of servicectl", cure="move it away, or name another [state] folder")
    if any(sign in text for sign in _DAMAGE):
        return StoreError(
            f"{path} is damaged or has a foreign WAL: {text}",
            cure=f"nothing was deleted. Copy {path.parent} away, then restore the last backup together with "
            f"removing {path}.wal",
        )
    return StoreError(f"the job store {path}: {text}", cure="report this with `servicectl --version`")


def owner() -> dict[str, str | int]:
    """Who this process is: host, pid, boot id and user, for the record (never used to decide liveness)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = subprocess.run(["uptime", "-s"], capture_output=True, text=True, check=False).stdout.strip()
    return {"host": os.uname().nodename, "pid": os.getpid(), "boot_id": boot, "user": _user()}


def _user() -> str:
    import getpass

    try:
        return str(getpass.getuser())
    except (KeyError, OSError):
        return str(os.getuid())
