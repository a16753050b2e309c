"""The part of a publish that serving can see: swap, pointer, registry, Redis; and the same backwards."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from servicectl import log
from servicectl.actions.production import Artifact, Truth, project, read_truth
from servicectl.actions.verification import manifest_behind
from servicectl.errors import IntegrityError, Superseded
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.pointer import Pointer, encode
from servicectl.estate.artifacts.protocol import AlreadyThere, PreconditionFailed
from servicectl.files import sha256_of, write_atomically
from servicectl.jobs.context import JobContext
from servicectl.training.spec import ProductFile, verified

if TYPE_CHECKING:
    from servicectl.actions.world import World


class Target(Struct, frozen=True, kw_only=True):
    """One version on its way into production."""

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
        context.step(
            f"{prefix}switch",
            lambda: world.registry.switch_production(target.model_id, target.version, replaces),
            type(None),
        )
    except (PreconditionFailed, Superseded) as lost:
        log.warning(str(lost))
        return False
    context.step(f"{prefix}project", lambda: _project(world, target), str)
    return True


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
        baseline=baseline_of(world, context, old, failed.location),
        manifest_sha256=old.manifest_sha256,
        published_at=context.step("undo date", world.clock.now, datetime),
        job_id=failed.job_id,
        kind="undo",
        withdraws={failed.version: failed.file.sha256},
    )
    now = read_truth(world, failed.model_id, failed.location)
    if not put_in_production(world, context, now, target, failed.version, prefix="undo "):
        return Undone(False, "another publish came in between")
    return Undone(True, f"{old.version} is back in production as generation {target.generation}")


def baseline_of(world: World, context: JobContext, old: Pointer, location: str) -> ProductFile:
    """The baseline beside an older version; an adopted one may have none."""
    name, path = names.versioned(location, old.model_id, old.version, "json"), context.folder / "undo.json"
    manifest = manifest_behind(world, location, old)
    if manifest is not None or world.artifacts.stat(name) is not None:
        return downloaded(world, name, path, manifest["baseline"]["sha256"] if manifest else None)
    write_atomically(path, b"{}")
    return ProductFile(str(path), sha256_of(path), path.stat().st_size)


def _swap(world: World, truth: Truth, target: Target) -> str:
    name = names.production(target.location, target.model_id, "pkl")
    verified(target.file, "model")
    etag = truth.incumbent.etag if truth.incumbent else None
    return world.artifacts.replace(name, Path(target.file.path), target.metadata, etag).etag


def _point(world: World, truth: Truth, target: Target) -> str:
    _keep_history(world, truth, target)
    withdrawn = {**(truth.pointer.withdrawn if truth.pointer else {}), **target.withdraws}
    withdrawn.pop(target.version, None)
    pointer = replace(target.pointer, withdrawn=withdrawn)
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


def _project(world: World, target: Target) -> str:
    row = next(row for row in world.registry.rows(target.model_id) if row.version == target.version)
    content = verified(target.file, "model")
    truth = read_truth(world, target.model_id, target.location)
    if truth.pointer is None or truth.pointer.generation != target.generation:
        raise Superseded(f"{target.model_id}: generation {truth.generation} is in production, not {target.generation}")
    return project(world, row, truth, Artifact(content, target.file.sha256, target.name))


def downloaded(world: World, name: str, path: Path, expected: str | None) -> ProductFile:
    world.artifacts.download(name, path)
    digest = sha256_of(path)
    if expected not in (None, digest):
        raise IntegrityError(
            f"{name} has sha256 {digest}, on record is {expected}", cure="restore it, or publish another version"
        )
    return ProductFile(str(path), digest, path.stat().st_size)
