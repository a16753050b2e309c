"""artifacts prune: sweep uploads that never came into production and what killed writers left behind.

Only positive evidence removes: a version goes if nothing refers to it (no pointer, now or in the history, no row of the
registry but its own staging row, no unfinished job) and it is old enough. Its manifest stays as the mark of a number
that was given once; so a number never names two contents.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from servicectl import crash
from servicectl.actions import history
from servicectl.actions.kinds import serving_scope
from servicectl.actions.models import known_models
from servicectl.actions.production import read_truth
from servicectl.errors import Busy, UsageError
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.protocol import Blob, NoSuchBlob, PreconditionFailed
from servicectl.estate.registry import STAGING

if TYPE_CHECKING:
    from servicectl.actions.world import World


class Swept(Struct, frozen=True, kw_only=True):
    """What goes, or would go. `temporaries` are files of killed writers in a local store; `busy` models were left alone."""

    blobs: list[str]
    temporaries: list[str]
    bytes: int
    busy: list[str]
    dry_run: bool


def prune(world: World, before: datetime, *, dry_run: bool) -> Swept:
    """Sweep what is older than a moment, model by model, each under its serving scope."""
    blobs: list[Blob] = []
    temporaries: list[str] = []
    busy: list[str] = []
    for model_id in known_models(world):
        try:
            with world.runner.locks.held(serving_scope(model_id)):
                location, orphans = _orphans(world, model_id, before)
                blobs += orphans
                temporaries += world.artifacts.sweep(location, before, dry_run=dry_run)
                if not dry_run:
                    _delete(world, model_id, orphans)
        except Busy:
            busy.append(model_id)
    return Swept(
        blobs=[blob.name for blob in blobs],
        temporaries=temporaries,
        bytes=sum(blob.size for blob in blobs),
        busy=busy,
        dry_run=dry_run,
    )


def _orphans(world: World, model_id: str, before: datetime) -> tuple[str, list[Blob]]:
    truth = read_truth(world, model_id)
    past = history.pointers(world, truth, model_id)
    kept = {one.version for one in past}
    kept |= {row.version for row in world.registry.rows(model_id) if row.status != STAGING}
    named = {one.name for one in past}
    by_version: dict[str, list[Blob]] = defaultdict(list)
    for blob in world.artifacts.list(truth.location):
        version = names.version_of(blob.name)
        if version is not None and version not in kept and blob.name not in named:
            by_version[version].append(blob)
    found = []
    for version, of_version in by_version.items():
        manifest = names.manifest(truth.location, model_id, version)
        bodies = [blob for blob in of_version if blob.name != manifest]
        # Without a manifest it is not an upload of ours: an archive from before, kept whatever refers to it.
        uploaded = any(blob.name == manifest for blob in of_version)
        if uploaded and bodies and max(blob.modified for blob in of_version) < before and _is_over(world, manifest):
            found += bodies
    return truth.location, found


def _is_over(world: World, manifest: str) -> bool:
    """Whether the job that reserved the number is not one that may still carry on here."""
    try:
        job_id = msgspec.json.decode(world.artifacts.read(manifest)[0]).get("job_id")
        return world.runner.table.get(str(job_id)).ended
    except NoSuchBlob:
        return False
    except UsageError:
        return True  # another installation's, or pruned: its age alone decides


def _delete(world: World, model_id: str, orphans: list[Blob]) -> None:
    for version in sorted({names.version_of(blob.name) or "" for blob in orphans}):
        world.registry.drop_staging(model_id, version)
    crash.point("artifacts/prune/rows")
    for blob in orphans:
        try:
            world.artifacts.delete(blob.name, blob.etag)
        except PreconditionFailed:
            continue  # written again since it was looked at: not ours to sweep
        crash.point("artifacts/prune/blob")
