"""artifacts adopt: take an incumbent from before servicectl under its care, on the operator's word (generation 0)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servicectl.actions.keeping import JSON, PICKLE, keep, keep_json, keep_strays
from servicectl.actions.kinds import ADOPT, serving_scope
from servicectl.actions.production import Truth, read_truth, strays
from servicectl.errors import BadAnswer, UsageError
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.pointer import Pointer, encode
from servicectl.files import sha256_of
from servicectl.jobs.context import JobContext
from servicectl.jobs.model import NewJob, Result
from servicectl.jobs.runner import Ran

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.estate.registry import ModelRow


def start(world: World, model_id: str, *, version: str | None = None) -> list[Ran]:
    carried = world.runner.carry_on([serving_scope(model_id)])
    spec = {"model": model_id, "version": version}
    job = world.runner.submit(NewJob(ADOPT, serving_scope(model_id), spec, trigger=world.trigger)).job
    return [*carried, world.runner.run(job.job_id)]


def run(world: World, context: JobContext) -> Result:
    """Record the digest of what is served now. Its bytes are copied and hashed, never unpickled."""
    model_id, wanted = str(context.job.spec["model"]), context.job.spec.get("version")
    row = context.observe(lambda: _row(world, model_id, wanted))
    truth = context.observe(lambda: read_truth(world, model_id, row.azure_location or None))
    if truth.pointer is not None and truth.pointer.job_id != context.job.job_id:
        context.observe(lambda: keep_strays(world, model_id, truth.location, row.version, remove=True))
        told = {"model": model_id, "version": truth.pointer.version, "sha256": truth.pointer.sha256}
        return Result("already-adopted", told)
    if truth.incumbent is None:
        others = ", ".join(blob.name for blob in strays(world, model_id, truth.location))
        raise UsageError(
            f"{truth.location} has no {names.production(truth.location, model_id, PICKLE)} to adopt"
            + (f"; {others} is nothing that Service B reads" if others else ""),
            cure=f"servicectl retrain {model_id}  makes a first version"
            + (f", and its publish keeps the others under {row.version}" if others else ""),
        )
    incumbent = truth.incumbent
    archived = context.step("archive", lambda: _archive(world, truth, model_id, row.version), str)

    def point() -> str:
        local = context.folder / "incumbent"
        blob = world.artifacts.download(archived, local)
        pointer = Pointer(
            model_id=model_id,
            generation=0,
            version=row.version,
            sha256=sha256_of(local),
            name=archived,
            job_id=context.job.job_id,
            manifest_sha256=None,
            size=blob.size,
            published_at=incumbent.modified,
            kind="adopt",
        )
        local.unlink()
        metadata = {"generation": "0", "version": row.version, "job": context.job.job_id}
        name = names.production(truth.location, model_id, JSON)
        content = world.trust.sealed("pointer", encode(pointer, truth.baseline))
        world.artifacts.replace(name, content, metadata, truth.pointer_etag)
        return pointer.sha256

    digest = context.step("point", point, str)
    context.observe(lambda: keep_strays(world, model_id, truth.location, row.version, remove=True))
    return Result("adopted", {"model": model_id, "version": row.version, "sha256": digest, "archived": archived})


def _archive(world: World, truth: Truth, model_id: str, version: str) -> str:
    """The incumbent under its version's name, with what lay beside it."""
    assert truth.incumbent is not None
    archived = keep(world, truth.incumbent, (truth.location, model_id, version), PICKLE)
    keep_json(world, truth, model_id, version)
    keep_strays(world, model_id, truth.location, version)
    return archived


def _row(world: World, model_id: str, version: str | None) -> ModelRow:
    production = [row for row in world.registry.rows(model_id) if row.status == "production"]
    if version is not None:
        production = [row for row in production if row.version == version]
    if not production:
        raise UsageError(f"model_metadata has no production row of {model_id}" + (f" {version}" if version else ""))
    if len(production) > 1:
        versions = ", ".join(row.version for row in production)
        raise BadAnswer(
            f"model_metadata has {len(production)} production rows of {model_id}: {versions}",
            cure=f"servicectl artifacts adopt {model_id} --version VERSION",
        )
    return production[0]
