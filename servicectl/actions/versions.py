"""Version numbers are allocated once and never fought over: the manifest blob of a version is its reservation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from servicectl.errors import Superseded, TryAgain
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.protocol import AlreadyThere, Blob
from servicectl.jobs.model import Job
from servicectl.training.spec import canonical

if TYPE_CHECKING:
    from servicectl.actions.world import World

_FIRST = (0, 1, 0)
_PATIENCE = 50


class Reserved(Struct, frozen=True):
    version: str
    manifest_sha256: str
    at: datetime
    trained_at: datetime


def reserve(
    world: World, model_id: str, location: str, described: dict[str, Any], job: Job, *, exactly: str | None = None
) -> Reserved:
    """Given a manifest without a version, upload it under the next free version. A number of this job's own is reused.

    Next is patch + 1 over the registry and every blob; 0.1.0 for a new model. A number that another job reserved
    meanwhile is left to it. Raises TryAgain after losing 50 numbers, Superseded when `exactly` is not to be had.
    """
    at = world.clock.now()
    blobs = world.artifacts.list(location)
    taken = _taken(world, model_id, blobs)
    version = _own(world, model_id, location, job.job_id, taken, {blob.name for blob in blobs}) or _next(taken)
    for _ in range(_PATIENCE):
        if exactly not in (None, version):
            raise Superseded(f"{model_id} {exactly} was given to another publish since", cure="make a new plan")
        content = world.trust.sealed("manifest", canonical({**described, "version": version, "job_id": job.job_id}))
        name = names.manifest(location, model_id, version)
        try:
            world.artifacts.create(name, content, {"job": job.job_id})
        except AlreadyThere:
            version = _next(taken | {version})
            continue
        trained_at = datetime.fromisoformat(described["created_at"])
        return Reserved(version, hashlib.sha256(content).hexdigest(), at, trained_at)
    raise TryAgain(f"{_PATIENCE} version numbers of {model_id} were taken by others meanwhile", cure="try again")


def next_version(world: World, model_id: str, location: str) -> str:
    """The number that the next publish would reserve."""
    return _next(_taken(world, model_id, world.artifacts.list(location)))


def _taken(world: World, model_id: str, blobs: Iterable[Blob]) -> set[str]:
    taken = {version for blob in blobs if (version := names.version_of(blob.name))}
    return taken | {row.version for row in world.registry.rows(model_id)}


def _own(world: World, model_id: str, location: str, job_id: str, taken: set[str], present: set[str]) -> str | None:
    """The number this job reserved before it was killed: its manifest is there, its model file may be not."""
    for version in taken:
        manifest = names.manifest(location, model_id, version)
        if manifest in present and msgspec.json.decode(world.artifacts.read(manifest)[0]).get("job_id") == job_id:
            return version
    return None


def _next(taken: set[str]) -> str:
    parsed = [tuple(int(part) for part in version.split(".")) for version in taken if _is_plain(version)]
    if not parsed:
        return ".".join(map(str, _FIRST))
    major, minor, patch = max(parsed)
    return f"{major}.{minor}.{patch + 1}"


def _is_plain(version: str) -> bool:
    parts = version.split(".")
    return len(parts) == 3 and all(part.isdecimal() for part in parts)
