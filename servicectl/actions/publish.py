"""publish: the protocol that moves one model into production, each line a durable step.

The artifact store's swap and pointer decide; what comes before them is invisible to serving, what comes after
follows from them and is repeated until it holds. docs/publish.md shows each store's state after each step.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from servicectl import log
from servicectl.actions import canary, history, switching
from servicectl.actions.keeping import is_from_before, keep_incumbent, keep_strays
from servicectl.actions.kinds import PUBLISH, RETRAIN, serving_scope
from servicectl.actions.production import Truth, fenced, read_truth, settle
from servicectl.actions.retrain import Candidate
from servicectl.actions.switching import Target
from servicectl.actions.verification import check_artifact, check_model
from servicectl.actions.versions import Reserved, reserve
from servicectl.errors import BadData, ExitStatus, IntegrityError, Superseded, TryAgain, UsageError
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.pointer import Pointer
from servicectl.estate.registry import Feature, ModelRow
from servicectl.jobs.context import JobContext
from servicectl.jobs.model import NewJob, Result, State
from servicectl.jobs.runner import Ran
from servicectl.training.spec import verified

if TYPE_CHECKING:
    from servicectl.actions.world import World


class Planned(Struct, frozen=True):
    """What a plan was made on: the publish happens on exactly this, or not at all."""

    version: str
    pointer_etag: str | None
    incumbent_etag: str | None


class Request(Struct, frozen=True):
    model: str
    retrain_job: str
    expected_generation: int
    candidate: Candidate
    hold: bool = False
    planned: Planned | None = None


class Registered(Struct, frozen=True):
    """What was in production before the switch: the registry's version and the artifact store's pointer, if any."""

    replaces: str | None
    before: Pointer | None


def start(world: World, model_id: str) -> list[Ran]:
    """Carry on an unfinished publish of the model, else publish its newest promoted challenger."""
    carried = world.runner.carry_on([serving_scope(model_id)])
    if any(ran.job.kind == PUBLISH for ran in carried):
        return carried
    return [*carried, *submit(world, model_id, newest_challenger(world, model_id))]


def submit(world: World, model_id: str, spec: dict[str, Any]) -> list[Ran]:
    job = world.runner.submit(NewJob(PUBLISH, serving_scope(model_id), spec, trigger=world.trigger)).job
    return world.runner.run_with_children(job.job_id)


def newest_challenger(world: World, model_id: str) -> dict[str, Any]:
    """What to publish: the newest promoted challenger, if it is not in production. Raises UsageError when there is none."""
    world.config.model(model_id)
    for job in world.runner.table.newest(kind=RETRAIN, limit=1000):
        if job.spec.get("model") != model_id or job.state is not State.COMPLETED or not job.result:
            continue
        if job.outcome != "promoted":
            break
        try:
            truth = read_truth(world, model_id)
        except TryAgain as away:
            # The wish is put on record all the same: what it must know is looked at again when the job runs.
            log.warning(f"what is in production of {model_id} cannot be seen now: {away.message}")
            return dict(job.result["publish"])
        if truth.pointer is not None and truth.pointer.sha256 == job.result["model_sha256"]:
            raise UsageError(
                f"the newest challenger of {model_id} is in production already (version {truth.pointer.version})",
                cure=f"servicectl retrain {model_id}",
            )
        if truth.pointer is not None and job.result["model_sha256"] in truth.pointer.withdrawn.values():
            raise UsageError(
                f"the newest challenger of {model_id} was withdrawn from production",
                cure=f"servicectl retrain {model_id}, or servicectl rollback {model_id} --to VERSION",
            )
        return dict(job.result["publish"])
    raise UsageError(
        f"no promoted challenger of {model_id} waits to be published", cure=f"servicectl retrain {model_id}"
    )


def run(world: World, context: JobContext) -> Result:
    request = msgspec.convert(context.located(context.job.spec), Request)
    model_id, mine = request.model, context.job.job_id
    truth = context.observe(lambda: fenced(world, model_id, read_truth(world, model_id)))
    already_pointed = truth.pointer is not None and truth.pointer.job_id == mine
    if truth.generation != request.expected_generation and not already_pointed:
        context.observe(lambda: settle(world, truth, None, context.folder))
        return _superseded(request, truth)
    withdrawn = truth.pointer.withdrawn.values() if truth.pointer is not None and not already_pointed else ()
    if truth.pointer is not None and request.candidate.model.sha256 in withdrawn:
        return _withdrawn(request, truth.pointer)
    if request.planned is not None and not already_pointed:
        _as_planned(request.planned, truth, mine)
    if request.hold:
        return Result("held", {"model": model_id, "sha256": request.candidate.model.sha256, "approve": mine})
    reserved = context.step("reserve", lambda: _reserve(world, context, request, truth), Reserved)
    target = Target(
        model_id=model_id,
        location=truth.location,
        version=reserved.version,
        generation=request.expected_generation + 1,
        name=names.versioned(truth.location, model_id, reserved.version, "pkl"),
        file=request.candidate.model,
        baseline=request.candidate.baseline,
        manifest_sha256=reserved.manifest_sha256,
        published_at=reserved.at,
        job_id=mine,
    )
    context.step("upload", lambda: _upload(world, context, target, request.candidate), str)
    registered = context.step("register", lambda: _register(world, request, truth, target, reserved), Registered)
    rows = request.candidate.canary
    tried = context.step(
        "try candidate", lambda: canary.try_candidate(world, model_id, target.file, rows), canary.Tried
    )
    if tried.wrong:
        return Result("rejected-by-canary", _told(request, target, tried.note), ExitStatus.FAILED)
    kept = keep_incumbent(world, context, truth, target, registered.replaces)
    if kept is None:
        return _superseded(request, switching.lost(world, context, target))
    with context.finishing():
        if not switching.put_in_production(world, context, truth, target, registered.replaces):
            return _superseded(request, switching.lost(world, context, target))
        if kept.strays:
            context.observe(lambda: keep_strays(world, model_id, truth.location, kept.strays, remove=True))
        served = context.step("canary", lambda: switching.acknowledged(world, target, rows), canary.Tried)
        if served.wrong:
            undone = switching.undo(world, context, registered.before or kept.before, target)
            outcome = "undone" if undone.done else "not-undone"
            return Result(outcome, _told(request, target, f"{served.note}; {undone.told}"), ExitStatus.FAILED)
    return Result("published", {**_told(request, target, served.note), "replaces": registered.replaces})


def _as_planned(planned: Planned, truth: Truth, job_id: str) -> None:
    """Held against what there is whenever the job is carried on: the swap names what was looked at then."""
    incumbent = truth.incumbent
    ours = incumbent is not None and incumbent.metadata.get("job") == job_id
    same = ours or (incumbent.etag if incumbent else None) == planned.incumbent_etag
    if not same or truth.pointer_etag != planned.pointer_etag:
        raise Superseded("what is in production changed after the plan was made", cure="make a new plan")


def _superseded(request: Request, truth: Truth) -> Result:
    now = (
        f"{truth.pointer.version} (generation {truth.generation})"
        if truth.pointer
        else f"generation {truth.generation}"
    )
    log.warning(
        f"{request.model}: another publish put {now} into production; this challenger was judged against an older one"
    )
    told = {"model": request.model, "expected_generation": request.expected_generation, "in_production": now}
    return Result("superseded", told, ExitStatus.FAILED)


def _withdrawn(request: Request, pointer: Pointer) -> Result:
    digest = request.candidate.model.sha256
    version = next(version for version, known in pointer.withdrawn.items() if known == digest)
    log.warning(f"{request.model}: this very model was withdrawn as {version}; servicectl rollback --to takes it back")
    told = {"model": request.model, "version": version, "sha256": digest, "in_production": pointer.version}
    return Result("withdrawn", told, ExitStatus.FAILED)


def _told(request: Request, target: Target, note: str) -> dict[str, Any]:
    return {
        "model": request.model,
        "version": target.version,
        "generation": target.generation,
        "sha256": target.file.sha256,
        "retrain_job": request.retrain_job,
        "serving": note,
    }


def _reserve(world: World, context: JobContext, request: Request, truth: Truth) -> Reserved:
    candidate, allowed_mb = request.candidate, world.config.serving.max_mb
    if candidate.model.bytes / 1e6 > allowed_mb:
        # Asked again, since the limit may have changed: what Redis cannot take must not be swapped in.
        raise BadData(
            f"the model of {request.model} is {candidate.model.bytes / 1e6:.1f} MB, serving.max_mb allows {allowed_mb:g}",
            cure="train a smaller one, or raise serving.max_mb (one value in Redis holds less than 512 MB)",
        )
    check_adopted(world, request.model, truth)
    described = msgspec.json.decode(verified(candidate.manifest, "manifest"))
    check_model(world, request.model, described, candidate.model)
    described["canary"] = {"sha256": candidate.canary.sha256, "bytes": candidate.canary.bytes}
    exactly = request.planned.version if request.planned else None
    return reserve(world, request.model, truth.location, described, context.job, exactly=exactly)


def check_adopted(world: World, model_id: str, truth: Truth) -> None:
    """Raises IntegrityError for an incumbent to which no way back could be believed: nobody has signed for it."""
    if world.trust.required and truth.pointer is None and is_from_before(truth.incumbent):
        raise IntegrityError(
            f"what is in production of {model_id} is not on record, and without a signature there would be no way back",
            cure=f"servicectl artifacts adopt {model_id}  if these bytes can be trusted, then publish again",
        )


def _upload(world: World, context: JobContext, target: Target, candidate: Candidate) -> str:
    """The immutable files of this version, read back by digest."""
    of_version = (target.location, target.model_id, target.version)
    files = {
        target.name: target.file,
        names.versioned(*of_version, "json"): target.baseline,
        names.canary(*of_version): candidate.canary,
    }
    if candidate.sample is not None:
        files[names.versioned(*of_version, "parquet")] = candidate.sample
    for name, product in files.items():
        world.artifacts.create(name, Path(product.path), target.metadata, sha256=product.sha256)
    readback = context.folder / "readback"
    try:
        for name, product in files.items():
            found = switching.downloaded(world, name, readback, None)
            if found.sha256 != product.sha256:
                raise IntegrityError(
                    f"{name} reads back with another digest than was uploaded",
                    cure="check the artifact store's disk; publish again",
                )
            if name == target.name:
                check_artifact(world, target.location, target.pointer, found)
    finally:
        readback.unlink(missing_ok=True)
    return target.name


def _register(world: World, request: Request, truth: Truth, target: Target, reserved: Reserved) -> Registered:
    """The new row as `staging` and its baseline; which version the registry has in production now."""
    manifest = msgspec.json.decode(verified(request.candidate.manifest, "manifest"))
    types = {feature["name"]: feature["type"] for feature in manifest["features"]}
    row = ModelRow(
        model_id=target.model_id,
        artifact_type="pkl",
        version=target.version,
        trained_date=reserved.trained_at.date(),
        model_drift_score=None,
        status="staging",
        azure_location=target.location,
        expected_features=tuple(Feature(index, name, kind, None) for index, (name, kind) in enumerate(types.items())),
        created_at=reserved.at,
    )
    world.registry.insert_staging(row)
    baseline = verified(target.baseline, "baseline")
    world.registry.ensure_tables()
    world.registry.store_baseline(target.model_id, target.version, baseline.decode(), target.baseline.sha256)
    rows = world.registry.rows(target.model_id)
    replaced = [row.version for row in rows if row.status == "production" and row.version != target.version]
    before = history.of_generation(world, truth, target.model_id, target.generation - 1)
    return Registered(replaced[0] if replaced else None, before)
