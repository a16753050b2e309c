"""A training snapshot: written by whoever holds the DuckDB file, then ours alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from servicectl.actions.handler_copy import copied
from servicectl.errors import BadAnswer
from servicectl.files import fsync_file, sha256_of
from servicectl.training import floor
from servicectl.training.spec import ProductFile, SnapshotFacts, TrainingSpec

if TYPE_CHECKING:
    from servicectl.actions.world import World


class Snapshot(Struct, frozen=True):
    file: ProductFile
    facts: SnapshotFacts


def take(world: World, spec: TrainingSpec, query: str, folder: Path) -> Snapshot:
    """Given a query, have the handler COPY it and keep the file in the job's own folder.

    Raises BadAnswer when the file does not hold what the handler counted, BadData when it cannot be trained on.
    """
    target = folder / "snapshot.parquet"
    count = copied(world, query, target, columns=len(spec.features) + 3)  # and entity, time, label
    fsync_file(target)
    product = ProductFile(str(target), sha256_of(target), target.stat().st_size)
    facts = floor.describe(target, spec, query)
    if facts.rows != count:
        raise BadAnswer(f"the handler counted {count} rows, the snapshot holds {facts.rows}", cure="try again")
    return Snapshot(product, facts)
