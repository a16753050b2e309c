"""What publishing needs of an artifact store, and what both stores share.

One publish protocol runs on a folder and on a cloud container, so both answer every question alike: writes are
conditional, a write that had already happened is recognised by its digest and reported as done, and a blob is at
every instant the old one or the new one.

Errors beyond those of servicectl.errors:

    ArtifactStoreError                 the store refused, or a name, file or answer is unusable
    ├── NoSuchBlob                     asked to read what is not there
    ├── AlreadyThere                   create or copy met other content under that name; `existing` is that blob
    └── PreconditionFailed             the blob is not the one the caller had seen; `existing` is what is there now

IntegrityError means that bytes are not the promised ones. PartyUnavailable (exit 75) means that the same call may work later; ConfigError (78) that an operator must act first.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from servicectl import log
from servicectl.errors import IntegrityError, PartyUnavailable, ServicectlError
from servicectl.files import fsync_folder

CHUNK = 4 << 20  # bytes; one block of an upload, one range of a download
_TOLD_EVERY = 4 * CHUNK
READ_LIMIT = 16 << 20  # bytes; pointers, baselines and manifests are far smaller

_METADATA_KEY = re.compile(r"[a-z_][a-z0-9_]*")  # what survives as an HTTP header and as a cloud metadata name
_METADATA_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")


@dataclass(frozen=True)
class Blob:
    """One blob as it was seen. `size` in bytes, `modified` in UTC.

    `etag` is opaque and changes with every write, also with one of equal content. `sha256` is the hex digest recorded
    when servicectl wrote the blob; a folder computes it where none is recorded, a container answers None.
    `metadata` is what was given with the write, without the digest.
    """

    name: str
    etag: str
    size: int
    sha256: str | None
    metadata: Mapping[str, str]
    modified: datetime


class ArtifactStoreError(ServicectlError):
    pass


class NoSuchBlob(ArtifactStoreError):
    def __init__(self, name: str) -> None:
        super().__init__(f"the artifact store has no {name}")
        self.name = name


class AlreadyThere(ArtifactStoreError):
    def __init__(self, existing: Blob) -> None:
        digest = f" (sha256 {existing.sha256[:12]}…)" if existing.sha256 else ""
        super().__init__(f"{existing.name} is already in the artifact store with other content{digest}")
        self.existing = existing


class PreconditionFailed(ArtifactStoreError):
    def __init__(self, name: str, existing: Blob | None) -> None:
        now = "is no longer there" if existing is None else "is not the one that was looked at"
        super().__init__(f"{name} in the artifact store {now}: another writer was there in between")
        self.name = name
        self.existing = existing


class ArtifactStore(Protocol):
    """Blobs by store-relative names such as `Model_X/Model_X_Production.pkl`.

    Every method may raise PartyUnavailable, ConfigError and ArtifactStoreError.
    """

    def check(self) -> None:
        """Prove that this store can be reached, listed, read and written; leave nothing behind."""

    def stat(self, name: str) -> Blob | None:
        """The blob under this name, None if there is none."""

    def list(self, prefix: str) -> tuple[Blob, ...]:
        """All blobs below a folder, by name. `prefix` ends in "/", so that Model_X never means Model_X2."""

    def read(self, name: str) -> tuple[bytes, Blob]:
        """The content of a small blob (up to READ_LIMIT), with its computed digest. Raises NoSuchBlob, BadAnswer."""

    def download(self, name: str, to: Path) -> Blob:
        """Write a blob's content to a file, whole or not at all, durable. `sha256` is that of the bytes written.

        It is not held against the recorded digest: the caller has the one that counts. Raises NoSuchBlob.
        """

    def create(
        self, name: str, source: Path | bytes, metadata: Mapping[str, str], *, sha256: str | None = None
    ) -> Blob:
        """Write a blob that must not exist. One of the same digest counts as done; of another: AlreadyThere.

        With `sha256`, the very bytes that were read are held against it before they take the name: IntegrityError.
        """

    def replace(
        self,
        name: str,
        source: Path | bytes,
        metadata: Mapping[str, str],
        if_match: str | None,
        *,
        sha256: str | None = None,
    ) -> Blob:
        """Swap a blob in one step if its etag is still `if_match` (None: it must not exist).

        Where it is not, but what is there has our digest and our metadata `job` and `generation`, the swap had already
        happened and counts as done. Otherwise PreconditionFailed. `sha256` as in `create`.
        """

    def copy(self, source: str, to: str, if_source_match: str) -> Blob:
        """Copy content and metadata to a name that must not exist, if the source's etag is still `if_source_match`.

        A target of the same digest counts as done; of another: AlreadyThere. Raises NoSuchBlob, PreconditionFailed.
        """

    def delete(self, name: str, if_match: str) -> None:
        """Remove a blob if its etag is still `if_match`. An absent one counts as done. Raises PreconditionFailed."""

    def sweep(self, prefix: str, before: datetime, *, dry_run: bool) -> tuple[str, ...]:
        """Remove what killed writers left below a folder before a moment; what went, or would go.

        A container does this by itself: blocks that nobody committed go after a week.
        """


def unavailable(detail: str, *, cure: str = "") -> PartyUnavailable:
    return PartyUnavailable("the artifact store", detail, cure=cure)


def expected_or_refused(name: str, found: str, expected: str | None) -> str:
    """The digest of what is about to be written. Raises IntegrityError if another one was promised."""
    if expected not in (None, found):
        raise IntegrityError(
            f"what was to become {name} has sha256 {found}, on record is {expected}",
            cure="it was not written; fetch or train it again",
        )
    return found


def same_or_refused(existing: Blob, existing_sha256: str | None, our_sha256: str) -> Blob:
    """The answer of a create or copy that met a blob: done, or AlreadyThere."""
    if existing_sha256 == our_sha256:
        return existing
    raise AlreadyThere(existing)


def swapped_or_refused(name: str, existing: Blob | None, our_sha256: str, metadata: Mapping[str, str]) -> Blob:
    """The answer of a replace whose condition failed: ours already, or PreconditionFailed.

    The digest alone does not tell: a rollback publishes old content again under a higher generation.
    """
    if (
        existing is not None
        and existing.sha256 == our_sha256
        and all(existing.metadata.get(key) == metadata.get(key) for key in ("job", "generation"))
    ):
        return existing
    raise PreconditionFailed(name, existing)


def checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """A copy of the metadata. Raises ArtifactStoreError for what a container could not hold or would change."""
    for key, value in metadata.items():
        if not _METADATA_KEY.fullmatch(key) or key == "sha256" or not _METADATA_VALUE.fullmatch(value):
            raise ArtifactStoreError(f"blob metadata {key}={value!r} cannot be stored unchanged")
    return dict(metadata)


def chunks_of(source: Path | bytes) -> Iterator[bytes]:
    """The bytes of a file or of memory, CHUNK at a time. Raises ArtifactStoreError for an unreadable file."""
    if isinstance(source, bytes):
        yield from (source[start : start + CHUNK] for start in range(0, len(source), CHUNK))
        return
    try:
        with source.open("rb") as file:
            total, done = os.fstat(file.fileno()).st_size, 0
            while chunk := file.read(CHUNK):
                yield chunk
                done += len(chunk)
                if done % _TOLD_EVERY == 0:
                    bar = "█" * (20 * done // total)
                    log.working(f"{source.name} {bar:<20} {100 * done // total} % of {total / 1e6:.0f} MB")
    except OSError as error:
        raise ArtifactStoreError(f"{source} cannot be read: {error.strerror}") from None


def sha256_of_chunks(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def arriving(to: Path) -> Iterator[BinaryIO]:
    """A file to write a download into; it takes the name `to`, durably, only if the block ends well."""
    temporary: Path | None = None
    try:
        descriptor, created = tempfile.mkstemp(prefix=f".{to.name}.", suffix=".tmp", dir=to.parent)
        os.close(descriptor)
        temporary = Path(created)
        with temporary.open("r+b") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o640)
            os.fsync(file.fileno())
        temporary.replace(to)
        fsync_folder(to.parent)
    except OSError as error:
        raise ArtifactStoreError(f"{to} cannot be written: {error.strerror}", cure="make room or give access") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
