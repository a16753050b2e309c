"""One lock file per scope. The kernel drops a dead owner's lock, so it alone says who is alive."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

from servicectl.clock import SYSTEM, Clock
from servicectl.errors import Busy, StoreDenied, StoreError

_PROBE_PATIENCE_S = 0.2  # a liveness probe of another process may hold the lock shared for an instant


class ScopeLock:
    """Held until closed or until the process dies; never inherited by children."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor: int | None = descriptor
        self.path = path
        _HELD.add(self)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_HELD: WeakSet[ScopeLock] = WeakSet()


def _drop_in_child() -> None:
    for lock in list(_HELD):
        lock.close()


os.register_at_fork(after_in_child=_drop_in_child)


class Locks:
    """The folder of lock files. Files are named by the scope's hash and never deleted."""

    def __init__(self, folder: Path, clock: Clock = SYSTEM) -> None:
        self._folder = folder
        self._clock = clock

    def take(self, scope: str) -> ScopeLock:
        """Given a scope, hold it exclusively. Raises Busy when a living process does."""
        limit = self._clock.monotonic() + _PROBE_PATIENCE_S
        while True:
            lock = self._try(scope)
            if lock is not None:
                return lock
            if self._clock.monotonic() > limit:
                raise Busy(f"{scope} is being worked on by another process", cure="servicectl jobs list")
            self._clock.sleep(0.01)

    @contextlib.contextmanager
    def held(self, scope: str) -> Iterator[None]:
        """`take` for the length of a block."""
        lock = self.take(scope)
        try:
            yield
        finally:
            lock.close()

    def alive(self, scope: str) -> bool:
        """Whether some process holds the scope now."""
        path = self._path(scope)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _path(self, scope: str) -> Path:
        return self._folder / f"{hashlib.sha256(scope.encode()).hexdigest()[:32]}.lock"

    def _try(self, scope: str) -> ScopeLock | None:
        path = self._path(scope)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o750)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A file unlinked by hand while we opened it would give two holders of one name.
            if os.fstat(descriptor).st_ino != path.stat().st_ino:
                raise FileNotFoundError(path)
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            return None
        with contextlib.suppress(OSError):  # a full disk must not stop anybody: the content is for human eyes
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{scope} pid {os.getpid()}\n".encode())
        return ScopeLock(descriptor, path)


def _unusable(path: Path, error: OSError) -> StoreError:
    kind = StoreDenied if isinstance(error, PermissionError) else StoreError
    return kind(
        f"the lock file {path} cannot be opened: {error.strerror}",
        cure=f"run as the owner of the state folder; after a run as another user: sudo chown -R OWNER {path.parent}",
    )
