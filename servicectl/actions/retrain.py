"""retrain: snapshot -> train -> judge against the champion -> package; a promoted challenger is published by a child job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from servicectl.actions.kinds import PUBLISH, RETRAIN, retrain_scope, serving_scope
from servicectl.actions.production import fenced, fetch, read_truth
from servicectl.actions.snapshot import Snapshot, take
from servicectl.actions.verification import allowed_names, check_confinement, check_scikit_learn, manifest_behind
from servicectl.config import ModelConfig, seconds
from servicectl.errors import Busy, ExitStatus
from servicectl.files import fsync_folder, sha256_of, write_atomically
from servicectl.jobs.context import JobContext
from servicectl.jobs.model import NewJob, Result
from servicectl.jobs.runner import Ran
from servicectl.training import floor
from servicectl.training.conditions import slice_feature
from servicectl.training.package import Serving, manifest
from servicectl.training.servable import foresee
from servicectl.training.source import snapshot_query
from servicectl.training.spec import (
    GateSpec,
    ProductFile,
    Servability,
    Source,
    Trained,
    TrainingSpec,
    Verdict,
    canonical,
)

if TYPE_CHECKING:
    from servicectl.actions.world import World


WINDOW_AUTO = "auto"
_REMEMBERED = 1000


class Champion(Struct, frozen=True):
    """What was in production when the plan was made; `generation` 0 and no version: nothing of ours."""

    generation: int
    version: str | None = None
    seen_until: datetime | None = None


class Plan(Struct, frozen=True):
    spec: TrainingSpec
    gate: GateSpec
    query: str
    champion: Champion


class ChampionFile(Struct, frozen=True):
    file: ProductFile | None


class Candidate(Struct, frozen=True):
    """Everything a publish needs. `manifest` still lacks the version, which the publish allocates."""

    model: ProductFile
    baseline: ProductFile
    manifest: ProductFile
    canary: ProductFile
    sample: ProductFile | None = None


def job(
    world: World,
    model_id: str,
    *,
    window: str | None = None,
    publish: bool = True,
    hold: bool = False,
    trigger: str | None = None,
) -> NewJob:
    """A retrain of one configured model; with `hold` its publish waits for `approve`. Raises UsageError for an unknown model, ConfigError for a bad window."""
    chosen = window or world.config.model(model_id).window
    if chosen not in (None, WINDOW_AUTO):
        seconds(chosen, "--window" if window else f"models.{model_id}.window")
    spec = {"model": model_id, "window": chosen, "publish": publish} | ({"hold": True} if hold else {})
    return NewJob(RETRAIN, retrain_scope(model_id), spec, trigger=trigger or world.trigger)


def start(
    world: World,
    models: Sequence[str],
    *,
    window: str | None = None,
    publish: bool = True,
    hold: bool = False,
    parallel: int = 1,
) -> list[Ran]:
    """Carry on what is unfinished of these models, then retrain each; one that fails does not stop the others."""
    new = [job(world, model_id, window=window, publish=publish, hold=hold) for model_id in models]
    scopes = [scope for model_id in models for scope in (retrain_scope(model_id), serving_scope(model_id))]
    ended = world.runner.carry_on(scopes)
    done = [(ran.job.scope, ran.job.spec) for ran in ended if ran.job.kind == RETRAIN]
    to_run: list[str] = []
    for one in new:
        if (one.scope, one.spec) in done:
            continue
        try:
            to_run.append(world.runner.submit(one).job.job_id)
        except Busy as busy:
            ended.append(Ran(world.runner.table.unfinished([one.scope])[0], busy.exit_status, busy))
    if parallel > 1 and len(to_run) > 1:
        from servicectl.actions.side_by_side import run_side_by_side

        return [*ended, *run_side_by_side(world, to_run, parallel)]
    return [*ended, *(ran for job_id in to_run for ran in world.runner.attempt(job_id))]


def run(world: World, context: JobContext) -> Result:
    model_id = str(context.job.spec["model"])
    plan = context.step("plan", lambda: _plan(world, model_id, context.job.spec.get("window")), Plan)
    snapshot = context.step("snapshot", lambda: take(world, plan.spec, plan.query, context.folder), Snapshot)
    source = Path(snapshot.file.path)
    serving = world.config.serving
    trained = context.step(
        "train",
        lambda: floor.train(
            plan.spec,
            source,
            context.folder,
            context.folder.parent / "training",
            None if serving.mismatch == "warn" else serving.libraries,
        ),
        Trained,
    )
    champion = context.step("champion", lambda: _champion_file(world, model_id, plan, context.folder), ChampionFile)
    allowed = allowed_names(world, model_id)
    verdict = context.step("judge", lambda: _judge(plan, source, trained, champion, allowed), Verdict)
    told = _told(plan, snapshot, trained, verdict)
    if verdict.decision == "REJECT":
        return Result("rejected", told)
    if verdict.decision == "INCONCLUSIVE":
        return Result("inconclusive", told, ExitStatus.NOT_MEASURED)
    servable = context.step(
        "check",
        lambda: floor.check(
            plan.spec,
            source,
            trained.model,
            serving.max_mb,
            serving.libraries,
            allowed,
            any_library=serving.mismatch == "warn",
            telling=None if verdict.champion is None else verdict.telling,
        ),
        Servability,
    )
    check_confinement(servable.confinement, required=world.config.trust.require_confinement)
    candidate = context.step(
        "package", lambda: _package(world, context, plan, snapshot, trained, verdict, servable), Candidate
    )
    packaged = context.portable(msgspec.to_builtins(candidate))
    spec = publish_spec(model_id, context.job.job_id, plan.champion.generation, packaged)
    held = {"hold": True} if context.job.spec.get("hold") else {}
    publish = NewJob(PUBLISH, serving_scope(model_id), spec | held, trigger=context.job.trigger)
    wanted = bool(context.job.spec.get("publish", True))
    return Result("promoted", {**told, "publish": spec}, children=(publish,) if wanted else ())


def publish_spec(model_id: str, retrain_job: str, generation: int, candidate: dict[str, Any]) -> dict[str, Any]:
    return {"model": model_id, "retrain_job": retrain_job, "expected_generation": generation, "candidate": candidate}


def training_spec(world: World, model_id: str, window: str | None) -> TrainingSpec:
    """The configuration of one model in the words of the factory floor."""
    model, training = world.config.model(model_id), world.config.training
    return TrainingSpec(
        model_id=model_id,
        task=model.task,
        label=model.label,
        features=model.features,
        categorical=model.categorical,
        estimator=model.estimator,
        params=model.params,
        metric=model.metric,
        heldout_fraction=training.heldout_fraction,
        heldout_rows=training.heldout_rows,
        embargo_s=seconds(training.embargo, "training.embargo"),
        seed=training.seed,
        threads=training.threads,
        memory_mb=training.memory_mb,
        window_s=seconds(window, "window") if window and window != WINDOW_AUTO else None,
        window_auto=window == WINDOW_AUTO,
        max_rows=training.max_rows,
        sample=training.sample,
        training=model.training,
        passes=training.passes,
        serving_first=training.serving_first,
    )


def _plan(world: World, model_id: str, window: str | None) -> Plan:
    model = world.config.model(model_id)
    # Before the hours of training: the publish would refuse what comes out of them.
    check_scikit_learn(world, f"{model_id} would be trained with", version("scikit-learn"))
    spec = training_spec(world, model_id, window)
    foresee(spec, world.config.serving.libraries, any_library=world.config.serving.mismatch == "warn")
    gate = world.config.gate
    champion = _champion(world, model_id)
    return Plan(
        spec=spec,
        gate=GateSpec(
            mode=gate.mode,
            alpha=gate.alpha,
            min_improvement=gate.min_improvement,
            min_blocks=gate.min_blocks,
            earlier_challengers=_earlier_challengers(world, model_id, champion),
            slices={name: text for name, text in gate.slices.items() if slice_feature(text) in spec.features},
            slice_margin=gate.slice_margin,
            max_predict_ms=gate.max_predict_ms,
            max_mb=world.config.serving.max_mb,
            floors=model.floors,
        ),
        query=snapshot_query(spec, rows_source(model)),
        champion=champion,
    )


def rows_source(model: ModelConfig) -> Source:
    """Where a model's rows come from, in the words of the factory floor."""
    told = model.source
    return Source(
        kind=told.kind,
        table=told.table,
        query=told.query,
        entity_column=told.entity_column,
        time_column=told.time_column,
    )


def _champion(world: World, model_id: str) -> Champion:
    truth = fenced(world, model_id, read_truth(world, model_id))
    if truth.pointer is None:
        return Champion(0)
    seen_until: datetime | None = None
    if (manifest := manifest_behind(world, truth.location, truth.pointer)) is not None:
        split = manifest.get("split", {})
        if isinstance(split.get("trained_until"), str):
            seen_until = datetime.fromisoformat(split["trained_until"])
    return Champion(truth.generation, truth.pointer.version, seen_until)


def _earlier_challengers(world: World, model_id: str, champion: Champion) -> int:
    """How many were compared with this very champion and not promoted; each makes the next comparison stricter.

    Those that could not be compared (too few blocks, unusable) took no chance and do not count.
    """
    past = world.runner.table.newest(kind=RETRAIN, scope=retrain_scope(model_id), limit=_REMEMBERED)
    survived = [job.result for job in past if job.outcome in ("rejected", "inconclusive") and job.result]
    return sum(_was_compared(told) and _met(told, champion) for told in survived)


def _was_compared(told: Mapping[str, Any]) -> bool:
    return bool(told.get("compared", told["verdict"].get("interval") is not None))


def _met(told: Mapping[str, Any], champion: Champion) -> bool:
    if "champion_generation" in told:
        return bool(told["champion_generation"] == champion.generation)
    return bool(told.get("champion_version") == champion.version)


def _champion_file(world: World, model_id: str, plan: Plan, folder: Path) -> ChampionFile:
    """The champion's verified bytes. An incumbent without a digest on record is never unpickled: floors decide."""
    if plan.champion.version is None:
        return ChampionFile(None)
    truth = fenced(world, model_id, read_truth(world, model_id))
    artifact = fetch(world, model_id, truth, folder)
    if artifact is None:
        return ChampionFile(None)
    path = folder / "champion.pkl"
    Path(artifact.file.path).replace(path)
    fsync_folder(folder)
    return ChampionFile(ProductFile(str(path), artifact.file.sha256, artifact.file.bytes))


def _judge(plan: Plan, snapshot: Path, trained: Trained, champion: ChampionFile, allowed: tuple[str, ...]) -> Verdict:
    return floor.judge(
        plan.spec,
        plan.gate,
        snapshot,
        trained.model,
        champion.file,
        champion_seen_until=plan.champion.seen_until,
        challenger_seen_until=trained.trained_until,
        allowed=allowed,
    )


def _package(
    world: World,
    context: JobContext,
    plan: Plan,
    snapshot: Snapshot,
    trained: Trained,
    verdict: Verdict,
    servable: Servability,
) -> Candidate:
    described = manifest(
        plan.spec,
        version="",
        feature_types=_feature_types(world.config.model(plan.spec.model_id)),
        snapshot=snapshot.facts,
        trained=trained,
        verdict=verdict,
        created_at=world.clock.now().astimezone(UTC),
        serving=Serving(world.config.serving.scikit_learn, world.config.serving.libraries, servable.libraries_needed),
    )
    return Candidate(
        trained.model,
        trained.baseline,
        _written(context.folder / "manifest.json", canonical(described)),
        _written(context.folder / "canary.json", canonical(servable.canary)),
        trained.sample,
    )


def _feature_types(model: ModelConfig) -> dict[str, str]:
    return {
        name: model.feature_types.get(name, "string" if name in model.categorical else "float")
        for name in model.features
    }


def _written(path: Path, content: bytes) -> ProductFile:
    write_atomically(path, content)
    return ProductFile(str(path), sha256_of(path), len(content))


def _told(plan: Plan, snapshot: Snapshot, trained: Trained, verdict: Verdict) -> dict[str, Any]:
    return {
        "model": plan.spec.model_id,
        "champion_version": plan.champion.version,
        "champion_generation": plan.champion.generation,
        "verdict": msgspec.to_builtins(verdict),
        "compared": verdict.interval is not None and verdict.blocks >= plan.gate.min_blocks,
        "snapshot": msgspec.to_builtins(
            {
                "rows": snapshot.facts.rows,
                "first": snapshot.facts.first,
                "last": snapshot.facts.last,
                "sha256": snapshot.facts.sha256,
            }
        ),
        "trained": msgspec.to_builtins(
            {
                "rows": trained.rows_trained,
                "until": trained.trained_until,
                "seconds": trained.seconds,
                "estimator": trained.estimator,
                "mode": trained.training,
                "estimate_mb": trained.estimate_mb,
                "passes": trained.passes,
                "window_share": trained.window_share,
            }
        ),
        "model_sha256": trained.model.sha256,
    }
