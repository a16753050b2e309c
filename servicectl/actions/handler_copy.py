"""Rows out of the feature store: the handler COPYs them to the shared folder, and they are moved to where we want them."""

from __future__ import annotations

import shutil
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from servicectl.errors import ServicectlError

if TYPE_CHECKING:
    from servicectl.actions.world import World

_STALE_S = 24 * 3600


def copied(world: World, query: str, target: Path, columns: int = 1) -> int:
    """Given a SELECT of so many columns, have the handler write its rows as Parquet, and move the file to `target`; returns how many rows.

    Each send gets a file name of its own: a COPY that is executed late must not overwrite what is being read. Nothing
    stays in the shared folder. Raises as the handler's queue does, and ServicectlError where the folder is not shared.
    """
    shared = world.config.snapshot_folder
    shared.mkdir(parents=True, exist_ok=True, mode=0o770)
    _sweep(shared)
    name = f"servicectl-{uuid.uuid4().hex}.parquet"
    written, there = shared / name, f"{world.config.snapshot_folder_handler}/{name}"
    try:
        timeout_s = world.config.handler.snapshot_timeout_s
        count = world.registry.copy_to_parquet(query, there, columns=columns, timeout_s=timeout_s)
        if not written.is_file():
            raise ServicectlError(
                f"the handler wrote {count} rows to {there}, but {written} is not there",
                cure="set handler.snapshot_folder and handler.snapshot_folder_handler to one shared folder; "
                "servicectl doctor proves it",
            )
        # Copied, not renamed: the handler's user owns the file, and ours must be able to keep and remove it.
        shutil.copyfile(written, target)
    finally:
        written.unlink(missing_ok=True)
    return count


def _sweep(shared: Path) -> None:
    """Files of sends that were given up and executed later."""
    for leftover in shared.glob("servicectl-*.parquet"):
        if time.time() - leftover.stat().st_mtime > _STALE_S:
            leftover.unlink(missing_ok=True)
