"""A job store as an older release left it."""

from __future__ import annotations

from pathlib import Path

import duckdb

from tests.parts import ROOT


def store_of_version_1(folder: Path, *, with_wal: bool = False) -> Path:
    """Given a folder, its job store in schema version 1; `with_wal` leaves the last row in a WAL, as a kill does."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "servicectl.duckdb"
    with duckdb.connect(str(path), config={"storage_compatibility_version": "v1.4.0"}) as connection:
        connection.execute((ROOT / "tests/data/store-version-1.sql").read_text())
    if with_wal:
        with duckdb.connect(str(path)) as connection:
            connection.execute("PRAGMA disable_checkpoint_on_shutdown")
            connection.execute("INSERT INTO requests VALUES ('work', 'in the WAL', uuid())")
    return path
