"""The one DuckDB file of servicectl: short connections under a sidecar lock.

DuckDB's own file lock refuses instead of queueing and is silently dropped when the holder opens the file a
second time, so every open first takes a blocking `flock` on `servicectl.duckdb.lock` (a fair queue with a
deadline). Tables have primary keys only: secondary indexes and DDL mixed with rows in one WAL are where DuckDB
has lost data. Storage version v1.4.0 refuses a WAL that belongs to another file. `store_schema` has the tables,
`store_file` what is done to the file itself, `store_backup` copies of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from servicectl import store_file, store_fold
from servicectl.clock import SYSTEM, Clock
from servicectl.errors import Busy, StoreDenied, StoreError
from servicectl.store_engine import Engine
from servicectl.store_schema import SCHEMA_VERSION

# FUSE is refused by name: a rootless container's own disk is FUSE, too.
_NETWORK_FILE_SYSTEMS = {
    *(
        "nfs",
        "nfs4",
        "cifs",
        "smb2",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "glusterfs",
        "ceph",
        "lustre",
        "beegfs",
        "gpfs",
        "davfs",
    ),
    *(f"fuse.{name}" for name in ("sshfs", "rclone", "s3fs", "goofys", "gcsfuse", "blobfuse", "blobfuse2", "juicefs")),
    *(f"fuse.{name}" for name in ("glusterfs", "ceph", "ceph-fuse", "davfs2", "mount.davfs")),
}


class Store:
    """Opens `<folder>/servicectl.duckdb` for one transaction at a time."""

    def __init__(self, folder: Path, *, clock: Clock = SYSTEM, lock_wait_s: float = 60.0) -> None:
        self.folder = folder
        self.path = folder / "servicectl.duckdb"
        self._lock_path = folder / "servicectl.duckdb.lock"
        self._clock = clock
        self.lock_wait_s = lock_wait_s
        self._engine = Engine(self.path)
        self._checked = False

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        """One committed read-write transaction on a duckdb connection; rolled back when the body raises.

        Raises Busy when the lock is not free within the deadline, StoreError when the file cannot be used.
        """
        self.prepare_folder()
        self._engine.start()
        with self.locked():
            if not self.path.exists():
                store_file.create(self.path, self._clock, self.lock_wait_s)
            with self._opened(read_only=False) as connection:
                connection.execute("BEGIN")
                try:
                    yield connection
                except BaseException:
                    _rolled_back(connection)
                    raise
                connection.execute("COMMIT")
                store_file.hand_over(store_file.wal_of(self.path))
            self._engine.fold_when_long()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any | None]:
        """A read-only connection, or None when nothing was ever stored. Errors as `transaction`.

        An older store is migrated for a reader, too: what reads it would else have to know every older schema.
        """
        try:
            found = self.path.exists() or store_file.ready_to_replace(self.path).exists()
        except OSError as error:
            raise store_file.unusable(f"the state folder {self.folder} cannot be read", error, self.folder) from None
        if not found:
            yield None
            return
        self._engine.start()
        with self.locked(), self._opened(read_only=True) as connection:
            yield connection

    def prepare_folder(self) -> None:
        if self._checked:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        except OSError as error:
            raise store_file.unusable(f"the state folder {self.folder} cannot be made", error, self.folder) from None
        if os.statvfs(self.folder).f_flag & os.ST_RDONLY:
            raise store_file.explained(OSError(errno.EROFS, os.strerror(errno.EROFS)), self.path)
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise StoreDenied(
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
    def locked(self) -> Iterator[None]:
        """Hold the store for a block without opening it. Raises as `transaction`."""
        descriptor = self._lock()
        try:
            store_fold.finish_fold(self.path)
            store_file.finish_restore(self.path)
            yield
        finally:
            os.close(descriptor)

    def _lock(self) -> int:
        while True:
            try:
                descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            except OSError as error:
                raise store_file.unusable(
                    f"the store's lock {self._lock_path} cannot be opened", error, self.folder
                ) from None
            try:
                what = f"the job store {self.path}"
                flock_within(descriptor, self.lock_wait_s, self._clock, what)
                if os.fstat(descriptor).st_ino == self._lock_path.stat().st_ino:
                    return descriptor
            except FileNotFoundError:  # deleted by hand while we waited for it: what others lock now is another file
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    @contextlib.contextmanager
    def _opened(self, *, read_only: bool) -> Iterator[Any]:
        with self._attached(read_only=read_only) as connection:
            version = store_file.version_of(connection, self.path)
            if version == SCHEMA_VERSION:
                yield connection
                return
        if store_file.wal_of(self.path).exists():
            store_fold.fold_alone(self.path)
        store_file.migrate(self.path, version, self._clock, self.lock_wait_s)
        with self._attached(read_only=read_only) as connection:
            yield connection

    def _attached(self, *, read_only: bool) -> contextlib.AbstractContextManager[Any]:
        return self._engine.attached(read_only=read_only, clock=self._clock, wait_s=self.lock_wait_s)


def _rolled_back(connection: Any) -> None:
    import duckdb

    with contextlib.suppress(duckdb.Error):
        connection.execute("ROLLBACK")


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
