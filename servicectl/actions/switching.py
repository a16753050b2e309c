"""The part of a publish that serving can see: swap, pointer, registry, Redis; and the same backwards."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from servicectl import log
from servicectl.actions import canary
from servicectl.actions.production import Artifact, Truth, project, read_truth, settle
from servicectl.actions.verification import manifest_behind
from servicectl.errors import Busy, IntegrityError, Superseded
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.pointer import Pointer, encode
from servicectl.estate.artifacts.protocol import AlreadyThere, PreconditionFailed
from servicectl.estate.registry import PRODUCTION
from servicectl.files import sha256_of, write_atomically
from servicectl.jobs.context import JobContext
from servicectl.training.spec import ProductFile, verified

if TYPE_CHECKING:
    from servicectl.actions.world import World


class Target(Struct, frozen=True, kw_only=True):
    """One version on its way into production. Its pointer is dated anew when it is written."""

    model_id: str
    location: str
    version: str
    generation: int
    name: str
    file: ProductFile
    baseline: ProductFile
    manifest_sha256: str | None
    published_at: datetime
    job_id: str
    kind: Literal["publish", "rollback", "undo"] = "publish"
    withdraws: dict[str, str] = {}  # version -> digest of what this one takes back

    @property
    def metadata(self) -> dict[str, str]:
        """Recorded with each blob, so that a failed condition can be told as "mine, already done" or "another's"."""
        return {"generation": str(self.generation), "version": self.version, "job": self.job_id}

    @property
    def pointer(self) -> Pointer:
        return Pointer(
            model_id=self.model_id,
            generation=self.generation,
            version=self.version,
            sha256=self.file.sha256,
            name=self.name,
            job_id=self.job_id,
            manifest_sha256=self.manifest_sha256,
            size=self.file.bytes,
            published_at=self.published_at,
            kind=self.kind,
        )


def put_in_production(
    world: World, context: JobContext, truth: Truth, target: Target, replaces: str | None, prefix: str = ""
) -> bool:
    """Given what was observed, move the target in; False when another publish got there first.

    `replaces` is the version that the registry has in production now.
    """
    try:
        context.step(f"{prefix}swap", lambda: _swap(world, truth, target), str)
        context.step(f"{prefix}point", lambda: _point(world, truth, target), str)
        context.step(f"{prefix}switch", lambda: _switch(world, target, replaces), type(None))
        context.step(f"{prefix}project", lambda: _project(world, context, target), str)
    except (PreconditionFailed, Superseded) as late:
        log.warning(str(late))
        return False
    return True


def lost(world: World, context: JobContext, target: Target) -> Truth:
    """What is in production after somebody else was faster; what the loser swapped in is taken out again.

    Raises Busy where nothing newer is: then it was a writer that gave up, or mended the body, and the job goes on.
    """
    truth = read_truth(world, target.model_id, target.location)
    if truth.generation < target.generation or (truth.pointer and truth.pointer.job_id == target.job_id):
        raise Busy(
            f"another writer of {target.model_id} came in between, and generation {truth.generation} is still in production",
            cure="running again carries on",
        )
    settle(world, truth, None, context.folder)
    return truth


def acknowledged(world: World, target: Target, rows: ProductFile | None) -> canary.Tried:
    """Whether serving answers as the target does; a wrong answer counts only if the target still is in production."""
    tried = canary.watch_production(world, target.model_id, rows)
    if tried.wrong and (now := read_truth(world, target.model_id, target.location)).generation != target.generation:
        return canary.Tried(False, f"not told: generation {now.generation} went into production while it was asked")
    return tried


class Undone(Struct, frozen=True):
    """`done`: the version from before is back in production. `told` says what is in production now, or why."""

    done: bool
    told: str


def undo(world: World, context: JobContext, old: Pointer | None, failed: Target) -> Undone:
    """Put the version that was in production before back, under a generation above the failed one's."""
    if old is None:
        return Undone(
            False, f"no version on record was in production before: {failed.version} stays, and needs an operator"
        )
    target = Target(
        model_id=failed.model_id,
        location=failed.location,
        version=old.version,
        generation=failed.generation + 1,
        name=old.name,
        file=downloaded(world, old.name, context.folder / "undo.pkl", old.sha256),
        baseline=baseline_of(world, old, failed.location, context.folder / "undo.json"),
        manifest_sha256=old.manifest_sha256,
        published_at=world.clock.now(),
        job_id=failed.job_id,
        kind="undo",
        withdraws={failed.version: failed.file.sha256},
    )
    now = context.observe(lambda: read_truth(world, failed.model_id, failed.location))
    ours = now.pointer is not None and now.pointer.job_id == failed.job_id
    if not ours or not put_in_production(world, context, now, target, failed.version, prefix="undo "):
        lost(world, context, target)
        return Undone(False, "another publish came in between")
    return Undone(True, f"{old.version} is back in production as generation {target.generation}")


def baseline_of(world: World, old: Pointer, location: str, path: Path) -> ProductFile:
    """The baseline beside an older version, as a file; an adopted one may have none."""
    name = names.versioned(location, old.model_id, old.version, "json")
    manifest = manifest_behind(world, location, old)
    if manifest is not None or world.artifacts.stat(name) is not None:
        return downloaded(world, name, path, manifest["baseline"]["sha256"] if manifest else None)
    write_atomically(path, b"{}")
    return ProductFile(str(path), sha256_of(path), path.stat().st_size)


def _swap(world: World, truth: Truth, target: Target) -> str:
    name = names.production(target.location, target.model_id, "pkl")
    etag = truth.incumbent.etag if truth.incumbent else None
    file = target.file
    return world.artifacts.replace(name, Path(file.path), target.metadata, etag, sha256=file.sha256).etag


def _point(world: World, truth: Truth, target: Target) -> str:
    """Write the pointer, dated now: what was in production until then is told by these dates, so they only rise."""
    now = truth.pointer
    if now is not None and now.job_id == target.job_id and now.generation == target.generation:
        return str(truth.pointer_etag)  # written before a crash, and seen: its date stays
    _keep_history(world, truth, target)
    at = world.clock.now()
    if now is not None:
        at = max(at, now.published_at + timedelta(microseconds=1))
    withdrawn = {**(truth.pointer.withdrawn if truth.pointer else {}), **target.withdraws}
    withdrawn.pop(target.version, None)
    pointer = replace(target.pointer, withdrawn=withdrawn, published_at=at)
    baseline = msgspec.json.decode(verified(target.baseline, "baseline"))
    content = world.trust.sealed("pointer", encode(pointer, baseline))
    name = names.production(target.location, target.model_id, "json")
    return world.artifacts.replace(name, content, target.metadata, truth.pointer_etag).etag


def _keep_history(world: World, truth: Truth, target: Target) -> None:
    """The pointer that is about to be replaced, kept as it is: whoever writes a generation has kept the one before."""
    if truth.pointer is None or truth.pointer_etag is None or truth.pointer.generation == target.generation:
        return
    current = names.production(truth.location, target.model_id, "json")
    kept = names.history(truth.location, target.model_id, truth.pointer.generation)
    try:
        world.artifacts.copy(current, kept, truth.pointer_etag)
    except AlreadyThere:
        # A store put back from a backup goes through its generations again; neither past is lost.
        with suppress(AlreadyThere):
            suffixed = kept.replace(".history.json", f"-{truth.pointer.sha256[:12]}.history.json")
            world.artifacts.copy(current, suffixed, truth.pointer_etag)


def _switch(world: World, target: Target, replaces: str | None) -> None:
    """The registry follows the pointer, also from a version that another job has switched in late meanwhile."""
    try:
        world.registry.switch_production(target.model_id, target.version, replaces)
    except Superseded:
        rows = world.registry.rows(target.model_id)
        now = next((row.version for row in rows if row.status == PRODUCTION), None)
        # Read after the rows: whoever points after this finds ours switched in, or switches before us and wins.
        _still_pointed(world, target)
        world.registry.switch_production(target.model_id, target.version, now)


def _still_pointed(world: World, target: Target) -> Truth:
    truth = read_truth(world, target.model_id, target.location)
    if truth.pointer is None or truth.pointer.generation != target.generation:
        raise Superseded(f"{target.model_id}: generation {truth.generation} is in production, not {target.generation}")
    return truth


def _project(world: World, context: JobContext, target: Target) -> str:
    row = next(row for row in world.registry.rows(target.model_id) if row.version == target.version)
    truth = _still_pointed(world, target)
    settle(world, truth, Path(target.file.path), context.folder)
    return project(world, row, truth, Artifact(target.file, target.name))


def downloaded(world: World, name: str, path: Path, expected: str | None) -> ProductFile:
    """A blob's content as a file. Raises IntegrityError for another digest than the expected one."""
    blob = world.artifacts.download(name, path)
    digest = str(blob.sha256)
    if expected not in (None, digest):
        raise IntegrityError(
            f"{name} has sha256 {digest}, on record is {expected}", cure="restore it, or publish another version"
        )
    return ProductFile(str(path), digest, blob.size)
