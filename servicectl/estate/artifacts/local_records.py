"""Digests and metadata of the blobs in a local folder.

Digest and metadata of a blob stand in `.servicectl/records/<folder>/.<name>/<modification time>.json`, durable before
the blob takes its name and found by the blob's own modification time; so they change in the same instant as the blob.
A blob without a record (put there by others, or touched since) has its digest computed and no metadata. Extended
attributes were rejected: tmpfs had none before Linux 6.6, and many backups drop them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from servicectl.files import write_atomically


class Records:
    """Records below one hidden folder of the store."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, name: str) -> Path:
        """Where the records of a blob lie; the store makes it."""
        folder, _, base = name.rpartition("/")
        return self._root / folder / f".{base}"  # hidden: no folder of blobs has such a name

    def of(self, name: str, status: os.stat_result) -> tuple[str, dict[str, str]] | None:
        """Digest and metadata of the version that has this status; None: the digest must be computed."""
        try:
            record = json.loads(self._file(name, status).read_bytes())
            if record["size"] == status.st_size:
                return str(record["sha256"]), dict(record["metadata"])
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
            pass  # none, or not one of ours
        return None

    def write(self, name: str, status: os.stat_result, sha256: str, metadata: Mapping[str, str]) -> None:
        """Keep this durably, before the version that has this status takes the blob's name."""
        record = {"sha256": sha256, "size": status.st_size, "metadata": dict(metadata)}
        write_atomically(self._file(name, status), json.dumps(record).encode())

    def forget(self, name: str, keep: os.stat_result | None) -> None:
        """Remove the records of earlier versions and of writers that died. Call with the lock held."""
        kept = self._file(name, keep).name if keep else None
        with suppress(FileNotFoundError):
            for record in list(os.scandir(self.folder(name))):
                if record.name != kept:
                    Path(record.path).unlink(missing_ok=True)

    def _file(self, name: str, status: os.stat_result) -> Path:
        return self.folder(name) / f"{status.st_mtime_ns}.json"
