"""The artifact store in a local folder, with the promises of a cloud container.

A write goes into a hidden temporary file beside its target, is fsynced, and takes its name by link (create) or rename
(replace) under a lock file per model folder; the kernel drops that lock with its process. So a name shows the old blob
or the new one at every instant, also after SIGKILL or power loss. A killed writer leaves a hidden `.<name>.*.tmp`.

The etag is made of the modification time, which every write sets later than the blob's before, the inode and the size.
Content digests were rejected as etags: a publish of B and a rollback to A would hide from a writer that had seen A.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from servicectl import crash
from servicectl.clock import SYSTEM, Clock
from servicectl.errors import BadAnswer, ConfigError, IntegrityError, ServicectlError
from servicectl.estate.artifacts.local_records import Records
from servicectl.estate.artifacts.names import checked_name, checked_prefix, is_name
from servicectl.estate.artifacts.protocol import (
    CHUNK,
    READ_LIMIT,
    ArtifactStoreError,
    Blob,
    NoSuchBlob,
    PreconditionFailed,
    arriving,
    checked_metadata,
    chunks_of,
    expected_or_refused,
    same_or_refused,
    sha256_of_chunks,
    swapped_or_refused,
    unavailable,
)
from servicectl.files import fsync_file, fsync_folder, write_atomically

_HIDDEN = ".servicectl"
_LOCK_WAIT_S = 30.0  # the lock is held for one rename; a holder this slow is stopped or its disk hangs
_LOCK_POLL_S = 0.01
_READ_ATTEMPTS = 1000  # a reader starts again when a writer renamed in between
_TIME_STEPS_NS = (1, 100, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000)  # granularities of file systems' times

_FOR_THE_OPERATOR = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.EOPNOTSUPP}
_FOR_LATER = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN}


@dataclass(frozen=True)
class _Staged:
    path: Path
    sha256: str
    size: int


class LocalStore:
    """An ArtifactStore below one folder. The folder itself is made by the first write, if its parent exists."""

    def __init__(self, root: Path, clock: Clock = SYSTEM) -> None:
        self._root = root
        self._clock = clock
        self._records = Records(root / _HIDDEN / "records")

    def check(self) -> None:
        """As the protocol says; done in a hidden folder that is removed again, beside the root if that is new."""
        with self._explained("check"):
            for folder in (self._root, self._root / _HIDDEN / "locks", self._root / _HIDDEN / "records"):
                if folder.is_dir() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, "Permission denied", str(folder))
            at = self._root if self._root_exists() else self._root.parent
            with tempfile.TemporaryDirectory(prefix=f"{_HIDDEN}-probe-", dir=at) as made:
                probe = Path(made)
                write_atomically(probe / "written", b"probe")
                os.link(probe / "written", probe / "linked")
                fsync_folder(probe)

    def stat(self, name: str) -> Blob | None:
        with self._explained(name), self._opened(name) as found:
            return found[1] if found else None

    def list(self, prefix: str) -> tuple[Blob, ...]:
        folder = self._root / checked_prefix(prefix)
        with self._explained(prefix):
            names = []
            for parent, folders, files in os.walk(folder, onerror=_raise_unless_absent):
                folders[:] = [name for name in folders if not name.startswith(".")]
                names += [(Path(parent) / name).relative_to(self._root).as_posix() for name in files]
            self._root_exists()
        blobs = [self.stat(name) for name in sorted(names) if is_name(name)]
        return tuple(blob for blob in blobs if blob)

    def read(self, name: str) -> tuple[bytes, Blob]:
        with self._explained(name), self._opened(name) as found:
            if not found:
                raise NoSuchBlob(name)
            file, blob = found
            content = file.read(READ_LIMIT + 1)
        if len(content) > READ_LIMIT:
            raise BadAnswer(f"{name} has {blob.size} bytes where at most {READ_LIMIT} are expected")
        return content, replace(blob, size=len(content), sha256=hashlib.sha256(content).hexdigest())

    def download(self, name: str, to: Path) -> Blob:
        with self._explained(name), self._opened(name) as found:
            if not found:
                raise NoSuchBlob(name)
            file, blob = found
            digest, size = hashlib.sha256(), 0
            with arriving(to) as target:
                for chunk in self._chunks(file, name):
                    digest.update(chunk)
                    size += target.write(chunk)
            return replace(blob, size=size, sha256=digest.hexdigest())

    def create(
        self, name: str, source: Path | bytes, metadata: Mapping[str, str], *, sha256: str | None = None
    ) -> Blob:
        checked_name(name)
        metadata = checked_metadata(metadata)
        with self._explained(name):
            if existing := self.stat(name):
                ours = expected_or_refused(name, sha256_of_chunks(chunks_of(source)), sha256)
                return self._same_or_refused(existing, ours)
            with self._staged(name, chunks_of(source)) as staged:
                expected_or_refused(name, staged.sha256, sha256)
                return self._add(name, staged, metadata)

    def replace(
        self,
        name: str,
        source: Path | bytes,
        metadata: Mapping[str, str],
        if_match: str | None,
        *,
        sha256: str | None = None,
    ) -> Blob:
        checked_name(name)
        metadata = checked_metadata(metadata)
        with self._explained(name):
            if not _matches(existing := self.stat(name), if_match):
                ours = expected_or_refused(name, sha256_of_chunks(chunks_of(source)), sha256)
                return self._swapped_or_refused(name, existing, ours, metadata)
            with self._staged(name, chunks_of(source)) as staged, self._locked(name):
                expected_or_refused(name, staged.sha256, sha256)
                if not _matches(existing := self.stat(name), if_match):
                    return self._swapped_or_refused(name, existing, staged.sha256, metadata)
                recorded = self._record(name, staged, metadata)
                crash.point("artifacts/local/before-rename")
                staged.path.replace(self._path(name))
                crash.point("artifacts/local/after-rename")
                return self._settled(name, staged, metadata, recorded)

    def copy(self, source: str, to: str, if_source_match: str) -> Blob:
        checked_name(to)
        with self._explained(source), self._opened(source) as found:
            if not found:
                raise NoSuchBlob(source)
            file, original = found
            if original.etag != if_source_match:
                raise PreconditionFailed(source, original)
            with self._explained(to):
                if existing := self.stat(to):
                    return self._same_or_refused(existing, str(original.sha256))
                with self._staged(to, self._chunks(file, source)) as staged:
                    if staged.sha256 != original.sha256:
                        raise IntegrityError(f"{source} does not have the sha256 {original.sha256} on record")
                    return self._add(to, staged, dict(original.metadata))

    def delete(self, name: str, if_match: str) -> None:
        checked_name(name)
        with self._explained(name):
            if not self._path(name).parent.is_dir():
                self._root_exists()
                return
            with self._locked(name):
                existing = self.stat(name)
                if existing and existing.etag != if_match:
                    raise PreconditionFailed(name, existing)
                self._path(name).unlink(missing_ok=True)
                fsync_folder(self._path(name).parent)
                self._records.forget(name, keep=None)

    def sweep(self, prefix: str, before: datetime, *, dry_run: bool) -> tuple[str, ...]:
        folder = self._root / checked_prefix(prefix)
        found = []
        with self._explained(prefix):
            for path in sorted(folder.glob(".*.tmp")):
                with suppress(FileNotFoundError):  # its writer has just finished
                    if path.stat().st_mtime < before.timestamp():
                        found.append(path.relative_to(self._root).as_posix())
                        if not dry_run:
                            path.unlink()
        return tuple(found)

    # Reading

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[BinaryIO, Blob] | None]:
        """A blob's content, at its start, and its description, both of one version; None if there is no blob."""
        path = self._path(name)
        for _ in range(_READ_ATTEMPTS):
            try:
                file = path.open("rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                self._root_exists()
                yield None
                return
            with file:
                status = os.fstat(file.fileno())
                recorded = self._records.of(name, status)
                if recorded is None and not _is_still(path, status):
                    continue  # renamed over meanwhile, which forgets the record of the version opened here
                sha256, metadata = recorded or (sha256_of_chunks(_read_chunks(file)), {})
                file.seek(0)
                yield file, _blob(name, status, sha256, metadata)
                return
        raise unavailable(f"{name} changes faster than it can be read")

    def _chunks(self, file: BinaryIO, name: str) -> Iterator[bytes]:
        with self._explained(name):
            yield from _read_chunks(file)

    # Writing

    @contextmanager
    def _staged(self, name: str, chunks: Iterable[bytes]) -> Iterator[_Staged]:
        """The new content, durable under a hidden temporary name beside its target."""
        target = self._path(name)
        self._make_folder(target.parent)
        descriptor, created = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        try:
            digest, size = hashlib.sha256(), 0
            with os.fdopen(descriptor, "wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    size += file.write(chunk)
                    crash.point("artifacts/local/mid-write")
                file.flush()
                os.fchmod(file.fileno(), 0o640)
                os.fsync(file.fileno())
            yield _Staged(Path(created), digest.hexdigest(), size)
        finally:
            Path(created).unlink(missing_ok=True)

    def _add(self, name: str, staged: _Staged, metadata: dict[str, str]) -> Blob:
        with self._locked(name):
            if existing := self.stat(name):
                return self._same_or_refused(existing, staged.sha256)
            recorded = self._record(name, staged, metadata)
            crash.point("artifacts/local/before-link")
            try:
                os.link(staged.path, self._path(name))
            except FileExistsError:  # by somebody who does not take our lock
                if existing := self.stat(name):
                    return self._same_or_refused(existing, staged.sha256)
                raise
            crash.point("artifacts/local/after-link")
            return self._settled(name, staged, metadata, recorded)

    def _record(self, name: str, staged: _Staged, metadata: dict[str, str]) -> os.stat_result:
        """Give the staged file a time later than the present blob's, and keep digest and metadata under that time."""
        path = self._path(name)
        before = path.stat().st_mtime_ns if path.exists() else 0
        earliest = max(int(self._clock.now().timestamp() * 1e9), before + 1)
        for step in (0, *_TIME_STEPS_NS):
            os.utime(staged.path, ns=(earliest + step, earliest + step))
            status = staged.path.stat()
            if status.st_mtime_ns > before:
                break
        else:
            raise ConfigError(f"{self._root} is on a file system that keeps no usable modification times")
        fsync_file(staged.path)
        self._make_folder(self._records.folder(name))
        self._records.write(name, status, staged.sha256, metadata)
        return status

    def _settled(self, name: str, staged: _Staged, metadata: dict[str, str], status: os.stat_result) -> Blob:
        fsync_folder(self._path(name).parent)
        self._records.forget(name, keep=status)
        return _blob(name, status, staged.sha256, metadata)

    def _same_or_refused(self, existing: Blob, our_sha256: str) -> Blob:
        done = same_or_refused(existing, existing.sha256, our_sha256)
        fsync_folder(self._path(done.name).parent)  # its writer may have died between the rename and this
        return done

    def _swapped_or_refused(
        self, name: str, existing: Blob | None, our_sha256: str, metadata: Mapping[str, str]
    ) -> Blob:
        done = swapped_or_refused(name, existing, our_sha256, metadata)
        fsync_folder(self._path(name).parent)
        return done

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        folder = self._root / _HIDDEN / "locks"
        self._make_folder(folder)
        descriptor = os.open(folder / f"{name.partition('/')[0]}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            limit = self._clock.monotonic() + _LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if self._clock.monotonic() > limit:
                        raise unavailable(
                            f"another process has held its lock on {name} for {_LOCK_WAIT_S:g} s"
                        ) from None
                    self._clock.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(descriptor)

    # Places

    def _path(self, name: str) -> Path:
        return self._root / checked_name(name)

    def _root_exists(self) -> bool:
        """Whether the root is there yet. Raises ConfigError where it cannot come to be."""
        if self._root.is_dir():
            return True
        obstructed = self._root.exists() and not self._root.is_dir()
        if obstructed or not self._root.parent.is_dir():
            missing = self._root if obstructed else self._root.parent
            raise ConfigError(
                f"the artifact store's folder {self._root} cannot be used: {missing} is not a folder",
                cure=f"mkdir -p {self._root}, or correct [artifacts] url",
            )
        return False

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and its parents within the root durably."""
        if folder.is_dir():
            return
        if folder == self._root:
            self._root_exists()
        else:
            self._make_folder(folder.parent)
        folder.mkdir(mode=0o750, exist_ok=True)
        fsync_folder(folder.parent)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._explanation(what, error) from None

    def _explanation(self, what: str, error: OSError) -> ServicectlError:
        where = error.filename or self._root
        if error.errno in _FOR_LATER:
            cure = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the disk or its mount"
            return unavailable(f"{what}: {where}: {error.strerror}", cure=cure)
        if error.errno in _FOR_THE_OPERATOR:
            return ConfigError(
                f"the artifact store in {self._root} cannot be used: {where}: {error.strerror}",
                cure=f"give the account that runs servicectl a local folder it may write: {self._root}",
            )
        return ArtifactStoreError(f"the artifact store failed at {what}: {where}: {error.strerror}")


def _matches(existing: Blob | None, etag: str | None) -> bool:
    return (existing.etag if existing else None) == etag


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _is_still(path: Path, status: os.stat_result) -> bool:
    with suppress(FileNotFoundError):
        return _etag(path.stat()) == _etag(status)
    return False


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_ino:x}-{status.st_size:x}"


def _blob(name: str, status: os.stat_result, sha256: str, metadata: dict[str, str]) -> Blob:
    modified = datetime.fromtimestamp(status.st_mtime_ns // 1000 / 1e6, UTC)
    return Blob(name, _etag(status), status.st_size, sha256, metadata, modified)


def _read_chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk
