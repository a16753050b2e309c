"""A training snapshot: written by whoever holds the DuckDB file, then ours alone."""

from __future__ import annotations

import shutil
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from servicectl.errors import BadAnswer, ServicectlError
from servicectl.files import fsync_file, sha256_of
from servicectl.training import floor
from servicectl.training.spec import ProductFile, SnapshotFacts, TrainingSpec

if TYPE_CHECKING:
    from servicectl.actions.world import World

_STALE_S = 24 * 3600


class Snapshot(Struct, frozen=True):
    file: ProductFile
    facts: SnapshotFacts


def take(world: World, spec: TrainingSpec, query: str, folder: Path) -> Snapshot:
    """Given a query, have the handler COPY it to the shared folder and move the file into the job's own folder.

    Each send gets a file name of its own: a COPY that is executed late must not overwrite what is being read.
    Raises BadAnswer when the file does not hold what the handler counted, BadData when it cannot be trained on.
    """
    shared = world.config.snapshot_folder
    shared.mkdir(parents=True, exist_ok=True, mode=0o2770)
    _sweep(shared)
    name = f"servicectl-{uuid.uuid4().hex}.parquet"
    written = shared / name
    try:
        count = world.registry.copy_to_parquet(
            query, f"{world.config.snapshot_folder_handler}/{name}", timeout_s=world.config.handler.snapshot_timeout_s
        )
        if not written.is_file():
            raise ServicectlError(
                f"the handler wrote {count} rows to {world.config.snapshot_folder_handler}/{name}, but {written} is not there",
                cure="set handler.snapshot_folder and handler.snapshot_folder_handler to one shared folder; "
                "servicectl doctor proves it",
            )
        target = folder / "snapshot.parquet"
        shutil.copyfile(written, target)
    finally:
        written.unlink(missing_ok=True)
    fsync_file(target)
    product = ProductFile(str(target), sha256_of(target), target.stat().st_size)
    facts = floor.describe(target, spec, query)
    if facts.rows != count:
        raise BadAnswer(f"the handler counted {count} rows, the snapshot holds {facts.rows}", cure="try again")
    return Snapshot(product, facts)


def _sweep(shared: Path) -> None:
    """Files of sends that were given up and executed later."""
    for leftover in shared.glob("servicectl-*.parquet"):
        if time.time() - leftover.stat().st_mtime > _STALE_S:
            leftover.unlink(missing_ok=True)
