"""The one truth for production, read and projected: pointer -> verified bytes -> registry row -> Redis.

The artifact store's pointer says which version is in production; the registry and Redis follow it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from servicectl import log
from servicectl.actions.kinds import serving_scope
from servicectl.actions.verification import check_artifact
from servicectl.errors import IntegrityError
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.pointer import Pointer, decode
from servicectl.estate.artifacts.protocol import PreconditionFailed
from servicectl.estate.registry import PRODUCTION, redis_metadata
from servicectl.estate.serving_keys import Projected, Projection
from servicectl.training.spec import ProductFile, verified

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.estate.artifacts.protocol import Blob
    from servicectl.estate.registry import ModelRow


# Outcome -> how many generations were made beyond the one that the job tells.
_POINTED = {"published": 0, "rolled-back": 0, "not-undone": 0, "undone": 1}
_REMEMBERED = 50  # jobs of the model that are looked at


@dataclass(frozen=True)
class Truth:
    """What the artifact store says. Without a pointer the incumbent is from before servicectl (generation 0).

    `incumbent` and `pointer_etag` are the blobs' ETags as observed, None where there is no such blob.
    """

    location: str
    pointer: Pointer | None
    baseline: dict[str, Any]
    incumbent: Blob | None
    pointer_etag: str | None

    @property
    def generation(self) -> int:
        return self.pointer.generation if self.pointer else 0


@dataclass(frozen=True)
class Artifact:
    """The production model, verified; `name` is its immutable blob's. Whoever fetched the file removes it."""

    file: ProductFile
    name: str

    @property
    def content(self) -> bytes:
        """All of it in memory, checked again. Raises IntegrityError."""
        return verified(self.file, "model")


def read_truth(world: World, model_id: str, location: str | None = None) -> Truth:
    """Given a model, what its artifact folder holds now; unless told, the registry's production row says which folder.

    Raises IntegrityError for a pointer that is damaged or not signed as it must be, and as the artifact store and the
    registry do.
    """
    folder = names.checked_location(location or _registered_location(world, model_id))
    pointer_name = names.production(folder, model_id, "json")
    pointer_blob = world.artifacts.stat(pointer_name)
    pointer: Pointer | None = None
    baseline: dict[str, Any] = {}
    if pointer_blob is not None:
        content, pointer_blob = world.artifacts.read(pointer_name)
        pointer, baseline = decode(content)
        if pointer is not None:
            world.trust.verify("pointer", content, pointer_name)
        if pointer is not None and pointer.model_id != model_id:
            raise IntegrityError(
                f"{pointer_name} is the pointer of model {pointer.model_id!r}, not of {model_id!r}",
                cure="a folder was copied by hand: remove the pointer or restore the right one",
            )
    incumbent = world.artifacts.stat(names.production(folder, model_id, "pkl"))
    return Truth(folder, pointer, baseline, incumbent, pointer_blob.etag if pointer_blob else None)


def fenced(world: World, model_id: str, truth: Truth) -> Truth:
    """The truth, held against all that remembers a generation; what is there now, if the pointer rose meanwhile.

    Generations only rise: below what Redis was given, the history holds or this machine published, an older pointer was put
    back, whoever signed it, or this is not the store that was published to. Raises IntegrityError.
    """
    known, says = max(_remembered(world, model_id, truth), key=lambda told: told[0])
    if known <= truth.generation:
        return truth
    truth = read_truth(world, model_id, truth.location)
    if known <= truth.generation:
        return truth
    raise IntegrityError(
        f"{truth.location} has generation {truth.generation}, {says} {known}",
        cure=f"restore the newest pointer of {model_id}; nothing was changed",
    )


def _remembered(world: World, model_id: str, truth: Truth) -> Iterator[tuple[int, str]]:
    """Generations that must have been, each with who says so."""
    yield world.keys.generation(model_id) or 0, "Redis was given"
    # The one of the pointer itself is kept before the next pointer is written, so it may be there after a crash.
    later = truth.generation + 1
    if world.artifacts.stat(names.history(truth.location, model_id, later)) is not None:
        yield later, "its history goes at least to"
    for job in world.runner.table.newest(scope=serving_scope(model_id), limit=_REMEMBERED):
        result, outcome = job.result or {}, str(job.outcome)
        if outcome in _POINTED and isinstance(result.get("generation"), int):
            yield result["generation"] + _POINTED[outcome], "this machine published"
        if isinstance(expected := job.spec.get("expected_generation"), int):
            yield expected, "this machine has seen"


def strays(world: World, model_id: str, location: str) -> tuple[Blob, ...]:
    """Blobs beside our two that the estate's loaders take for the model in production: the last listed wins there.

    In a folder that is not the model's own by its name, other models may live: there only other extensions count.
    """
    ours = {names.production(location, model_id, extension) for extension in ("pkl", "json")}
    found = [blob for blob in world.artifacts.list(location) if names.is_production(blob.name)]
    if location != names.location(model_id):
        stem = PurePosixPath(names.production(location, model_id, "pkl")).with_suffix("")
        found = [blob for blob in found if PurePosixPath(blob.name).with_suffix("") == stem]
    return tuple(blob for blob in found if blob.name not in ours)


def _registered_location(world: World, model_id: str) -> str:
    rows = [row for row in world.registry.rows(model_id) if row.status == PRODUCTION]
    return rows[0].azure_location if rows else names.location(model_id)


def fetch(world: World, model_id: str, truth: Truth, folder: Path) -> Artifact | None:
    """Given the truth, download the production model and verify it, by digest, signed manifest and allow-list.

    None when there is none. Raises as the checks do; nothing was unpickled then.

    A production body that differs from the pointer (a publish died between swap and pointer) is not used: the
    pointer's immutable copy is. An incumbent from before servicectl has no digest on record and is taken as it is.
    """
    production_name = names.production(truth.location, model_id, "pkl")
    if truth.pointer is None:
        if truth.incumbent is None:
            return None
        if world.trust.required:
            raise IntegrityError(
                f"{truth.location} has no signed pointer for {production_name}",
                cure=f"servicectl artifacts adopt {model_id}  if these bytes can be trusted",
            )
        return Artifact(_downloaded(world, production_name, folder), production_name)
    if truth.incumbent is not None:
        body = _downloaded(world, production_name, folder)
        if body.sha256 == truth.pointer.sha256:
            check_artifact(world, truth.location, truth.pointer, body)
            return Artifact(body, truth.pointer.name)
        Path(body.path).unlink()
    immutable = _downloaded(world, truth.pointer.name, folder)
    if immutable.sha256 != truth.pointer.sha256:
        raise IntegrityError(
            f"neither {production_name} nor {truth.pointer.name} has the digest on record ({truth.pointer.sha256[:12]}…)",
            cure=f"restore the bytes, or publish {model_id} anew; nothing was served from them",
        )
    check_artifact(world, truth.location, truth.pointer, immutable)
    return Artifact(immutable, truth.pointer.name)


def _downloaded(world: World, name: str, folder: Path) -> ProductFile:
    target = folder / f"fetched-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    blob = world.artifacts.download(name, target)
    return ProductFile(str(target), str(blob.sha256), blob.size)


def settle(world: World, truth: Truth, source: Path | None, folder: Path) -> None:
    """Make the production body the pointer's where a writer that lost has come after it, or where there is none.

    Two publishes meet like this: the one swaps, the other swaps and points, and what the first one swapped in stays. A body
    of a later generation is a publish under way, and one without a generation is not ours: both are left alone. `source`
    is a file with the pointer's bytes, if there is one.
    """
    pointer, body = truth.pointer, truth.incumbent
    if pointer is None or (body is not None and not _is_overtaken(body, pointer)):
        return
    metadata = {"generation": str(pointer.generation), "version": pointer.version, "job": pointer.job_id}
    name = names.production(truth.location, pointer.model_id, "pkl")
    file = source or Path(_downloaded(world, pointer.name, folder).path)
    try:
        world.artifacts.replace(name, file, metadata, body.etag if body else None, sha256=pointer.sha256)
        log.notice(f"{name} is {pointer.version} again, as the pointer says")
    except PreconditionFailed:
        log.info(f"{name} is being replaced by another writer")
    finally:
        if source is None:
            file.unlink()


def _is_overtaken(body: Blob, pointer: Pointer) -> bool:
    generation = body.metadata.get("generation", "")
    return body.sha256 != pointer.sha256 and generation.isdecimal() and int(generation) <= pointer.generation


def project(world: World, row: ModelRow, truth: Truth, artifact: Artifact) -> str:
    """Write one model into Redis as the registry row and the pointer say; "written", "unchanged" or "superseded".

    Raises IntegrityError for "superseded" by a generation that the pointer has not come to.
    The only place that needs the whole model in memory, once: serving.max_mb bounds it.
    """
    projection = Projection(
        model_id=row.model_id,
        generation=truth.generation,
        version=truth.pointer.version if truth.pointer else row.version,
        sha256=artifact.file.sha256,
        name=artifact.name,
        job_id=truth.pointer.job_id if truth.pointer else None,
        metadata=redis_metadata(row),
        artifacts={"pkl": artifact.content},
        keep_others=truth.pointer is None,
    )
    done = world.keys.project(projection)
    if done is Projected.SUPERSEDED:
        fenced(world, row.model_id, truth)
    return str(done)
