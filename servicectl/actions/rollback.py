"""rollback: the protocol of publish towards an older version, under a higher generation.

The version is one that was in production before; its bytes come out of the artifact store and are verified as ever. What
it replaces is marked as withdrawn, and comes back only by name, or when Service B answers wrongly with the older version:
then the rollback is undone, as a publish is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from servicectl import log
from servicectl.actions import canary, history, switching
from servicectl.actions.keeping import keep_incumbent
from servicectl.actions.kinds import ROLLBACK, serving_scope
from servicectl.actions.production import Truth, fenced, read_truth, settle
from servicectl.actions.publish import Registered
from servicectl.actions.switching import Target
from servicectl.actions.verification import check_artifact, manifest_behind
from servicectl.errors import ExitStatus, UsageError
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.pointer import Pointer
from servicectl.estate.registry import PRODUCTION
from servicectl.jobs.context import JobContext
from servicectl.jobs.model import NewJob, Result
from servicectl.jobs.runner import Ran
from servicectl.training.spec import ProductFile

if TYPE_CHECKING:
    from servicectl.actions.world import World


class Request(Struct, frozen=True):
    """`to` was in production as `of_generation`; `withdraws` maps the version that it replaces to its digest."""

    model: str
    to: str
    of_generation: int
    expected_generation: int
    withdraws: dict[str, str]


class Fetched(Struct, frozen=True):
    """`canary`: the requests that the version was published with; None for an adopted one."""

    file: ProductFile
    baseline: ProductFile
    canary: ProductFile | None = None


def start(world: World, model_id: str, *, to: str | None = None) -> list[Ran]:
    """Finish an interrupted rollback of the model, else begin one. Raises UsageError when there is nothing to go back to."""
    carried = world.runner.carry_on([serving_scope(model_id)])
    if any(ran.job.kind == ROLLBACK for ran in carried):
        return carried
    spec = msgspec.to_builtins(choose(world, model_id, to))
    job = world.runner.submit(NewJob(ROLLBACK, serving_scope(model_id), spec, trigger=world.trigger)).job
    return [*carried, world.runner.run(job.job_id)]


def choose(world: World, model_id: str, to: str | None) -> Request:
    """Given a version, or none for the newest one before the present that was not withdrawn, what to do."""
    truth = fenced(world, model_id, read_truth(world, model_id))
    now = truth.pointer
    if now is None:
        raise UsageError(
            f"no pointer says what of {model_id} is in production", cure=f"servicectl artifacts adopt {model_id}"
        )
    past = [
        one
        for one in history.pointers(world, truth, model_id)
        if one.version != now.version and not (one.kind == "incumbent" and world.trust.required)
    ]
    wanted = [one for one in past if one.version == to or (to is None and one.version not in now.withdrawn)]
    if to == now.version:
        raise UsageError(f"{model_id} {to} is in production already")
    if not wanted:
        known = ", ".join(dict.fromkeys(one.version for one in past)) or "none"
        what = f"version {to} of {model_id} was never in production" if to else f"{model_id} has no earlier version"
        raise UsageError(
            f"{what}; on record besides {now.version}: {known}", cure=f"servicectl models history {model_id}"
        )
    chosen = wanted[-1]
    again = chosen.version in now.withdrawn
    withdraws = {} if again else {now.version: now.sha256}
    return Request(model_id, chosen.version, chosen.generation, now.generation, withdraws)


def run(world: World, context: JobContext) -> Result:
    request = msgspec.convert(context.job.spec, Request)
    model_id, mine = request.model, context.job.job_id
    truth = context.observe(lambda: fenced(world, model_id, read_truth(world, model_id)))
    already_pointed = truth.pointer is not None and truth.pointer.job_id == mine
    if truth.generation != request.expected_generation and not already_pointed:
        context.observe(lambda: settle(world, truth, None, context.folder))
        return _superseded(request, truth)
    old = context.observe(lambda: _pointer_of(world, truth, request))
    fetched = context.step("fetch", lambda: _fetch(world, context, truth.location, old), Fetched)
    registered = context.step("register", lambda: _in_registry(world, request, truth), Registered)
    rows = fetched.canary
    tried = context.step(
        "try candidate", lambda: canary.try_candidate(world, model_id, fetched.file, rows), canary.Tried
    )
    if tried.wrong:
        refused = {"model": model_id, "version": old.version, "sha256": old.sha256, "serving": tried.note}
        return Result("rejected-by-canary", refused, ExitStatus.FAILED)
    target = Target(
        model_id=model_id,
        location=truth.location,
        version=old.version,
        generation=request.expected_generation + 1,
        name=old.name,
        file=fetched.file,
        baseline=fetched.baseline,
        manifest_sha256=old.manifest_sha256,
        published_at=world.clock.now(),
        job_id=mine,
        kind="rollback",
        withdraws=request.withdraws,
    )
    if keep_incumbent(world, context, truth, target, registered.replaces) is None:
        return _superseded(request, switching.lost(world, context, target))
    with context.finishing():
        if not switching.put_in_production(world, context, truth, target, registered.replaces):
            return _superseded(request, switching.lost(world, context, target))
        served = context.step("canary", lambda: switching.acknowledged(world, target, rows), canary.Tried)
        undone = switching.undo(world, context, registered.before, target) if served.wrong else None
    told = {
        "model": model_id,
        "version": target.version,
        "generation": target.generation,
        "sha256": target.file.sha256,
        "replaces": registered.replaces,
        "withdrawn": sorted(request.withdraws),
        "serving": served.note,
    }
    if undone is not None:
        told["serving"] = f"{served.note}; {undone.told}"
        return Result("undone" if undone.done else "not-undone", told, ExitStatus.FAILED)
    return Result("rolled-back", told)


def _superseded(request: Request, truth: Truth) -> Result:
    now = f"{truth.pointer.version if truth.pointer else 'nothing on record'} (generation {truth.generation})"
    log.warning(f"{request.model}: {now} went into production meanwhile; nothing was rolled back")
    told = {"model": request.model, "expected_generation": request.expected_generation, "in_production": now}
    return Result("superseded", told, ExitStatus.FAILED)


def _pointer_of(world: World, truth: Truth, request: Request) -> Pointer:
    for one in history.pointers(world, truth, request.model):
        if (one.version, one.generation) == (request.to, request.of_generation):
            return one
    raise UsageError(f"generation {request.of_generation} of {request.model} is no longer on record")


def _fetch(world: World, context: JobContext, location: str, old: Pointer) -> Fetched:
    file = switching.downloaded(world, old.name, context.folder / "rollback.pkl", old.sha256)
    check_artifact(world, location, old, file)
    baseline = switching.baseline_of(world, old, location, context.folder / "rollback.json")
    on_record = (manifest_behind(world, location, old) or {}).get("canary")
    if on_record is None:
        return Fetched(file, baseline)
    name = names.canary(location, old.model_id, old.version)
    rows = switching.downloaded(world, name, context.folder / "rollback.canary.json", on_record["sha256"])
    return Fetched(file, baseline, rows)


def _in_registry(world: World, request: Request, truth: Truth) -> Registered:
    """What is in production now, in the registry and by the pointer. Raises UsageError without a row to go back to."""
    rows = world.registry.rows(request.model)
    if not any(row.version == request.to for row in rows):
        raise UsageError(f"model_metadata has no row of {request.model} {request.to}", cure="choose another version")
    replaced = [row.version for row in rows if row.status == PRODUCTION and row.version != request.to]
    before = history.of_generation(world, truth, request.model, request.expected_generation)
    return Registered(replaced[0] if replaced else None, before)
