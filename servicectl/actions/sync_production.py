"""sync-production: the registry and Redis follow the artifact store's pointers, model by model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from servicectl import log
from servicectl.actions.kinds import SYNC_PRODUCTION, serving_scope
from servicectl.actions.production import fenced, fetch, project, read_truth, settle, strays
from servicectl.errors import BadAnswer, ExitStatus, IntegrityError, ServicectlError, TryAgain
from servicectl.jobs.context import JobContext
from servicectl.jobs.model import NewJob, Result
from servicectl.jobs.runner import Ran

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.estate.registry import ModelRow


def start(world: World, *, allow_remove: bool = False) -> list[Ran]:
    """Carry on what is unfinished of every model's serving scope, then sync."""
    unfinished = {job.scope for job in world.runner.table.unfinished() if job.scope.startswith("serving:")}
    carried = world.runner.carry_on([*sorted(unfinished), SYNC_PRODUCTION])
    if any(ran.job.kind == SYNC_PRODUCTION and not ran.job.ended for ran in carried):
        return carried  # it has just met what keeps it from ending
    new = NewJob(SYNC_PRODUCTION, SYNC_PRODUCTION, {"allow_remove": allow_remove}, trigger=world.trigger)
    job = world.runner.submit(new).job
    return [*carried, *world.runner.run_with_children(job.job_id)]


def run(world: World, context: JobContext) -> Result:
    models: dict[str, str] = {}
    failed: dict[str, str] = {}
    rows = context.observe(lambda: world.registry.production(lambda bad: _note_bad_row(failed, bad)))
    for model_id in sorted({row.model_id for row in rows}):
        try:
            models[model_id] = context.step(f"project {model_id}", partial(_project_one, world, context, model_id), str)
        except TryAgain:
            raise
        except ServicectlError as error:
            # One model that cannot be verified must not keep the others from being served.
            failed[model_id] = str(error)
            log.error(f"{model_id}: {error}")
    allow_remove = bool(context.job.spec.get("allow_remove"))
    known = models | failed
    # Decided first: a remove that is run again finds its work done, and must still tell what it did.
    leaving = context.step("leaving", lambda: _leaving(world, known, allow_remove=allow_remove), list[str])
    removed = context.step("remove", lambda: _remove(world, known, leaving, allow_remove=allow_remove), list[str])
    summary = {"models": models, "failed": failed, "removed": removed}
    if failed:
        return Result("partly-synced", summary, ExitStatus.FAILED)
    if not models and context.observe(world.keys.names):
        return Result("no-production-models", summary, ExitStatus.NOT_MEASURED)
    return Result("synced" if models else "no-production-models", summary)


def _note_bad_row(failed: dict[str, str], bad: BadAnswer) -> None:
    failed[f"row {len(failed) + 1}"] = str(bad)
    log.error(str(bad))


def _project_one(world: World, context: JobContext, model_id: str) -> str:
    with context.borrowed(serving_scope(model_id)) as free:
        if not free:
            return "busy"
        production = [row for row in world.registry.rows(model_id) if row.status == "production"]
        if not production:
            return "no longer in production"
        truth = fenced(world, model_id, read_truth(world, model_id, production[0].azure_location or None))
        artifact = fetch(world, model_id, truth, context.folder)
        if artifact is None:
            others = ", ".join(blob.name for blob in strays(world, model_id, truth.location))
            raise IntegrityError(
                f"the registry has {model_id} {production[0].version} in production, {truth.location} has no artifact of it"
                + (f" that Service B reads; {others} was not touched" if others else ""),
                cure=f"restore the file, or servicectl retrain {model_id}",
            )
        fetched = Path(artifact.file.path)
        try:
            settle(world, truth, fetched, context.folder)
            row = _follow_pointer(world, model_id, production, truth.pointer.version if truth.pointer else None)
            return project(world, row, truth, artifact)
        finally:
            fetched.unlink()


def _follow_pointer(world: World, model_id: str, production: list[ModelRow], version: str | None) -> ModelRow:
    """The registry row of the pointer's version, put into production there if it is not."""
    if len(production) == 1 and version in (None, production[0].version):
        return production[0]
    if version is None:
        versions = ", ".join(row.version for row in production)
        raise BadAnswer(
            f"the registry has {len(production)} production rows of {model_id} ({versions}) and no pointer says which",
            cure=f"servicectl artifacts adopt {model_id} --version VERSION",
        )
    world.registry.switch_production(model_id, version, production[0].version)
    log.notice(f"{model_id}: the registry now says {version}, as the artifact store's pointer does")
    return next(row for row in world.registry.rows(model_id) if row.version == version)


def _remove(world: World, known: dict[str, str], leaving: list[str], *, allow_remove: bool) -> list[str]:
    """Withdraw those of `leaving` that still are to leave; returns all that are gone now."""
    if not leaving:
        return []
    doomed = [name for name in _leaving(world, known, allow_remove=allow_remove) if name in leaving]
    if doomed:
        world.keys.withdraw(doomed)
    there = world.keys.names()
    return [name for name in leaving if name not in there]


def _leaving(world: World, known: dict[str, str], *, allow_remove: bool) -> list[str]:
    """Names in Redis that are no longer production, on positive evidence only.

    Evidence is a registry that has rows of the model and none in production. A name without any row was not ours
    and stays, and the set is never emptied, unless `allow_remove` says so.
    """
    surplus = sorted(world.keys.names() - known.keys())
    deprecated = [
        name
        for name in surplus
        if (rows := world.registry.rows(name)) and not any(r.status == "production" for r in rows)
    ]
    unknown = [name for name in surplus if not world.registry.rows(name)]
    leaving = deprecated + (unknown if allow_remove else [])
    if not known and not allow_remove and leaving:
        log.warning(f"Redis names {', '.join(leaving)}, the registry has nothing in production: nothing was removed")
        return []
    for name in unknown if not allow_remove else []:
        log.warning(f"{name} is served but has no row in model_metadata; it stays (--allow-remove withdraws it)")
    return leaving
