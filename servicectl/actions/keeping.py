"""What was in production before, kept: a swap loses nothing, not even what servicectl has never seen.

An incumbent from before servicectl is kept with all that lies beside it: its json, and further blobs that the estate's
loader takes for a production model. Its digest is put on record as generation 0, so that there is a way back to it.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from servicectl import log
from servicectl.actions.production import Truth, strays
from servicectl.errors import BadData
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.pointer import Pointer, encode
from servicectl.estate.artifacts.protocol import AlreadyThere, PreconditionFailed
from servicectl.jobs.context import JobContext

if TYPE_CHECKING:
    from servicectl.actions.switching import Target
    from servicectl.actions.world import World
    from servicectl.estate.artifacts.protocol import Blob

UNKNOWN_VERSION = "0.0.0"
PICKLE, JSON = "pkl", "json"


class Archived(Struct, frozen=True):
    """Under which name the incumbent is kept, "" if there is none, and its ETag when that was seen to.

    `json_etag`: the json's from before servicectl, if there was one. `before`: the way back to such an incumbent.
    `strays`: under which version further production blobs were kept, "" where there were none.
    """

    name: str
    etag: str | None
    json_etag: str | None = None
    before: Pointer | None = None
    strays: str = ""


def keep_incumbent(
    world: World, context: JobContext, truth: Truth, target: Target, registry_version: str | None
) -> Archived | None:
    """See to it that the swap loses nothing; None when something changed meanwhile."""
    now = (truth.incumbent.etag if truth.incumbent else None, legacy_etag(truth))
    try:
        archived = context.step("archive", lambda: _archived(world, context, truth, target, registry_version), Archived)
        if (archived.etag, archived.json_etag) != now:
            # Another one than on record: one that was put there since must not be lost either.
            again = context.observe(lambda: _archived(world, context, truth, target, registry_version))
            archived = msgspec.structs.replace(
                again, before=again.before or archived.before, strays=again.strays or archived.strays
            )
    except PreconditionFailed as changed:
        log.warning(str(changed))
        return None
    return archived


def legacy_etag(truth: Truth) -> str | None:
    """The ETag of a production json from before servicectl."""
    return truth.pointer_etag if truth.pointer is None else None


def is_from_before(incumbent: Blob | None) -> bool:
    """Whether a production body was put there by another program than servicectl."""
    return incumbent is not None and not incumbent.metadata.get("generation", "").isdecimal()


def keep(world: World, blob: Blob, of: tuple[str, str, str], extension: str) -> str:
    """Copy a blob to the name of `of` (location, model, version); one that holds other content gets a digest suffix."""
    try:
        return world.artifacts.copy(blob.name, names.versioned(*of, extension), blob.etag).name
    except AlreadyThere:
        digest = blob.sha256 or hashlib.sha256(blob.etag.encode()).hexdigest()
        return world.artifacts.copy(blob.name, names.archived(*of, digest, extension), blob.etag).name


def keep_json(world: World, truth: Truth, model_id: str, version: str) -> None:
    """The production json from before servicectl under its version's name, byte by byte. Raises PreconditionFailed."""
    etag = legacy_etag(truth)
    if etag is None:
        return
    name = names.production(truth.location, model_id, JSON)
    blob = world.artifacts.stat(name)
    if blob is None or blob.etag != etag:
        raise PreconditionFailed(name, blob)
    keep(world, blob, (truth.location, model_id, version), JSON)


def keep_strays(world: World, model_id: str, location: str, version: str, *, remove: bool = False) -> bool:
    """Further production blobs under a version's name and their own extension; then they go, each by its ETag.

    Returns whether there are any.
    """
    found = strays(world, model_id, location)
    for blob in found:
        try:
            kept = keep(world, blob, (location, model_id, version), extension_of(blob.name))
            if remove:
                world.artifacts.delete(blob.name, blob.etag)
                log.notice(f"{blob.name} is kept as {kept}: readers might have taken it for the model in production")
        except PreconditionFailed as changed:
            log.warning(str(changed))
    return bool(found)


def extension_of(name: str) -> str:
    """A blob's extension as a versioned name can have it."""
    told = "".join(letter for letter in PurePosixPath(name).suffix if letter.isascii() and letter.isalnum())
    return told[:16] or "bin"


def _archived(
    world: World, context: JobContext, truth: Truth, target: Target, registry_version: str | None
) -> Archived:
    """The incumbent and all beside it under the names of its version."""
    version = (truth.pointer.version if truth.pointer else registry_version) or UNKNOWN_VERSION
    keep_json(world, truth, target.model_id, version)
    of_strays = registry_version or version
    there_are = keep_strays(world, target.model_id, truth.location, of_strays)
    archived = _incumbent(world, context, truth, target, registry_version)
    return msgspec.structs.replace(archived, strays=of_strays if there_are else "")


def _incumbent(
    world: World, context: JobContext, truth: Truth, target: Target, registry_version: str | None
) -> Archived:
    incumbent, json_etag = truth.incumbent, legacy_etag(truth)
    version = (truth.pointer.version if truth.pointer else registry_version) or UNKNOWN_VERSION
    if incumbent is None:
        return Archived("", None, json_etag)
    if incumbent.sha256 == target.file.sha256:
        return Archived("", incumbent.etag, json_etag)
    if truth.pointer is not None and incumbent.sha256 == truth.pointer.sha256:
        kept = world.artifacts.stat(truth.pointer.name)
        if kept is not None and kept.name != incumbent.name:
            return Archived(kept.name, incumbent.etag)
    told = incumbent.metadata.get("version", "")
    if names.version_of(f"_{told}.pkl") == told:
        # Swapped in by a publish that has not pointed: it is kept under its own number.
        kept = world.artifacts.stat(names.versioned(truth.location, target.model_id, told, PICKLE))
        if kept is not None and kept.sha256 == incumbent.sha256:
            return Archived(kept.name, incumbent.etag, json_etag)
    name = keep(world, incumbent, (truth.location, target.model_id, version), PICKLE)
    before = None
    if truth.pointer is None and registry_version is not None:
        before = _on_record(world, context, truth, target.model_id, registry_version, name)
    return Archived(name, incumbent.etag, json_etag, before)


def _on_record(
    world: World, context: JobContext, truth: Truth, model_id: str, version: str, archived: str
) -> Pointer | None:
    """Generation 0: an incumbent that nobody adopted, by the digest of its archived bytes. Equal for every writer."""
    assert truth.incumbent is not None
    local = context.folder / "incumbent"
    blob = world.artifacts.download(archived, local)
    local.unlink()
    digest = str(blob.sha256)
    pointer = Pointer(
        model_id=model_id,
        generation=0,
        version=version,
        sha256=digest,
        name=archived,
        job_id=f"incumbent-{digest[:12]}",
        manifest_sha256=None,
        size=blob.size,
        published_at=truth.incumbent.modified,
        kind="incumbent",
    )
    try:
        content = encode(pointer, truth.baseline)
    except BadData as strange:
        log.warning(f"{strange.message}; it is kept beside the versions, and a way back will have no baseline")
        content = encode(pointer, {})
    content, metadata = world.trust.sealed("pointer", content), {"generation": "0", "version": version}
    name = names.history(truth.location, model_id, 0)
    try:
        world.artifacts.create(name, content, metadata)
    except AlreadyThere:
        # Another incumbent that a publish had met before this one was put there.
        suffixed = name.replace(".history.json", f"-{digest[:12]}.history.json")
        try:
            world.artifacts.create(suffixed, content, metadata)
        except AlreadyThere:
            log.info(f"{suffixed} is on record already")
    return pointer
