"""A disk that is too small, made of memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servicectl import store_file, store_fold
from servicectl.store import Store
from tests.parts import missing


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount one of a size ("64k", "12m") on a folder, for root."""
    folder.mkdir(parents=True, exist_ok=True)
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.getuid() != 0 or subprocess.run(mounting).returncode != 0:
        missing("root", "only root can mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fold_store(folder: Path) -> None:
    """Leave no WAL: the last page of one has room for some more commits on the fullest disk."""
    store = Store(folder)
    with store.locked():
        if store_file.wal_of(store.path).exists():
            store_fold.fold_alone(store.path)


def fill(folder: Path, leaving: int = 0) -> Path:
    """Fill the disk of a folder but for `leaving` bytes; gives the file to delete."""
    status = os.statvfs(folder)
    big = folder / "big"
    big.write_bytes(b"x" * (status.f_bavail * status.f_bsize - leaving))
    return big
