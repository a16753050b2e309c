"""publish --plan and --apply, --hold and approve: a publish that a human looks at before it happens."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from servicectl.actions import keeping, publish
from servicectl.actions.kinds import PUBLISH, serving_scope
from servicectl.actions.production import Truth, fenced, read_truth, strays
from servicectl.actions.versions import next_version
from servicectl.errors import Superseded, UsageError
from servicectl.estate.artifacts import names
from servicectl.jobs.model import Job, NewJob
from servicectl.jobs.runner import Ran

if TYPE_CHECKING:
    from servicectl.actions.world import World

FORMAT = 1


class Operation(Struct, frozen=True):
    """One effect: where, what, and the condition under which it happens."""

    store: str
    operation: str
    condition: str


class Plan(Struct, frozen=True, kw_only=True):
    """A publish as it would happen now. It is stale as soon as anything that it names has changed."""

    format: int = FORMAT
    model: str
    retrain_job: str
    sha256: str
    version: str
    generation: int
    pointer_etag: str | None
    incumbent_etag: str | None
    in_production: str | None
    registry_production: str | None
    operations: tuple[Operation, ...]


def plan(world: World, model_id: str) -> Plan:
    """What `publish` would do now, to the last ETag; nothing is touched. Raises UsageError, Superseded."""
    return _planned(world, model_id)[0]


def _planned(world: World, model_id: str) -> tuple[Plan, dict[str, Any]]:
    """The plan, and the job that would carry it out: one look at the challengers for both."""
    spec = publish.newest_challenger(world, model_id)
    request = msgspec.convert(spec, publish.Request)
    truth = fenced(world, model_id, read_truth(world, model_id))
    if truth.generation != request.expected_generation:
        raise Superseded(
            f"{model_id}: generation {truth.generation} is in production, the challenger was judged against "
            f"{request.expected_generation}",
            cure=f"servicectl retrain {model_id}",
        )
    publish.check_adopted(world, model_id, truth)
    version = next_version(world, model_id, truth.location)
    registered = next((row.version for row in world.registry.rows(model_id) if row.status == "production"), None)
    made = Plan(
        model=model_id,
        retrain_job=request.retrain_job,
        sha256=request.candidate.model.sha256,
        version=version,
        generation=truth.generation + 1,
        pointer_etag=truth.pointer_etag,
        incumbent_etag=truth.incumbent.etag if truth.incumbent else None,
        in_production=truth.pointer.version if truth.pointer else None,
        registry_production=registered,
        operations=_operations(
            world, model_id, truth, version, registered, sample=request.candidate.sample is not None
        ),
    )
    return made, spec


def apply(world: World, model_id: str, content: bytes) -> list[Ran]:
    """Carry out a plan exactly as it stands. Raises UsageError for what is no plan, Superseded for a stale one."""
    try:
        planned = msgspec.json.decode(content, type=Plan)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"this is not a plan: {error}", cure=f"servicectl publish {model_id} --plan --json") from None
    if planned.format != FORMAT or planned.model != model_id:
        raise UsageError(f"this is a plan for {planned.model} in format {planned.format}, not for {model_id}")
    now, spec = _planned(world, model_id)
    if changed := [name for name in Plan.__struct_fields__ if getattr(now, name) != getattr(planned, name)]:
        raise Superseded(
            f"the plan is stale: {', '.join(f'{name} is {getattr(now, name)!r}' for name in changed if name != 'operations')}",
            cure=f"servicectl publish {model_id} --plan, and look again",
        )
    conditions = {
        "version": planned.version,
        "pointer_etag": planned.pointer_etag,
        "incumbent_etag": planned.incumbent_etag,
    }
    return publish.submit(world, model_id, {**spec, "planned": conditions})


def hold(world: World, model_id: str) -> list[Ran]:
    """Queue the publish of the newest challenger behind a human's word; nothing is touched until `approve`."""
    return publish.submit(world, model_id, {**publish.newest_challenger(world, model_id), "hold": True})


def approve(world: World, job: Job) -> list[Ran]:
    """Given a held publish, run it. Repeats return the same job. Raises UsageError for any other job."""
    if job.kind != PUBLISH or job.outcome != "held":
        raise UsageError(
            f"job {job.short_id} is a {job.kind} job that waits for nobody's approval", cure="servicectl jobs list"
        )
    spec: dict[str, Any] = {name: value for name, value in job.spec.items() if name != "hold"}
    spec["approved"] = {"job": job.job_id, "by": user()}
    scope = serving_scope(str(spec["model"]))
    new = NewJob(PUBLISH, scope, spec, request_id=f"approve {job.job_id}", trigger=world.trigger)
    return world.runner.run_with_children(world.runner.submit(new).job.job_id)


def user() -> str:
    """Who types this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid that no passwd entry names, as containers have it
        return f"uid {os.getuid()}"


def _kept(world: World, model_id: str, truth: Truth, registered: str | None) -> Iterator[Operation]:
    """What is done for an incumbent from before servicectl. A name that holds other content gets a digest suffix."""
    of = (truth.location, model_id, registered or keeping.UNKNOWN_VERSION)
    beside = [(blob, keeping.extension_of(blob.name)) for blob in strays(world, model_id, truth.location)]
    if keeping.legacy_etag(truth) is not None:
        blob = world.artifacts.stat(names.production(truth.location, model_id, keeping.JSON))
        beside += [(blob, keeping.JSON)] if blob else []
    incumbent = truth.incumbent if truth.pointer is None else None
    beside += [(incumbent, keeping.PICKLE)] if incumbent else []
    for blob, extension in beside:
        kept = names.versioned(*of, extension)
        yield Operation("artifact store", f"copy {blob.name} to {kept}", f"If-Match: {blob.etag}")
    if keeping.is_from_before(incumbent) and registered:
        kept = names.history(truth.location, model_id, 0)
        yield Operation("artifact store", f"create {kept}", "If-None-Match: *")


def _operations(
    world: World, model_id: str, truth: Truth, version: str, registered: str | None, *, sample: bool
) -> tuple[Operation, ...]:
    def named(extension: str) -> str:
        return names.versioned(truth.location, model_id, version, extension)

    def match(etag: str | None) -> str:
        return f"If-Match: {etag}" if etag else "If-None-Match: *"

    new, store = "If-None-Match: *", "artifact store"
    production = {extension: names.production(truth.location, model_id, extension) for extension in ("pkl", "json")}
    rows = f"production is {registered}" if registered else "no row is production"
    found = [
        Operation(store, f"create {names.manifest(truth.location, model_id, version)}", new),
        Operation(store, f"create {named('pkl')}", new),
        Operation(store, f"create {named('json')}", new),
        Operation(store, f"create {names.canary(truth.location, model_id, version)}", new),
        *([Operation(store, f"create {named('parquet')}", new)] if sample else []),
        Operation("registry", f"insert {version} as staging", "no row of this version"),
    ]
    if world.config.serving.canary != "off":
        found.append(Operation("Redis, Service B", "try the candidate under a temporary key", "answers are ours"))
    found += _kept(world, model_id, truth, registered)
    found.append(
        Operation(store, f"replace {production['pkl']}", match(truth.incumbent.etag if truth.incumbent else None))
    )
    if truth.pointer is not None:
        kept = names.history(truth.location, model_id, truth.pointer.generation)
        found.append(Operation(store, f"copy {production['json']} to {kept}", match(truth.pointer_etag)))
    found += [
        Operation(store, f"replace {production['json']}", match(truth.pointer_etag)),
        Operation(
            "registry",
            f"switch {version} to production" + (f", {registered} to deprecated" if registered else ""),
            rows,
        ),
        Operation(
            "Redis", f"names, metadata, artifact and event of {version}", f"generation below {truth.generation + 2}"
        ),
    ]
    for stray in strays(world, model_id, truth.location):
        found.append(Operation(store, f"delete {stray.name}", match(stray.etag)))
    return tuple(found)
