"""drift-check: have drift measured, judge what was said, write it down, sound the alarm, queue the retrains."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from servicectl import log
from servicectl.actions import deliver_alarms, governing, retrain
from servicectl.actions.drift_look import Look, trigger_of
from servicectl.actions.drift_look import look as look_at
from servicectl.actions.kinds import DELIVER_ALARMS, DRIFT_CHECK, serving_scope
from servicectl.drift.governor import Ruling
from servicectl.drift.values import Decision, Verdict
from servicectl.errors import BadAnswer, ExitStatus, NotMeasured
from servicectl.jobs.context import JobContext
from servicectl.jobs.model import NewJob, Result
from servicectl.jobs.runner import Ran

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.estate.registry import ModelRow


@dataclass(frozen=True)
class Governed:
    """Which of the retrains asked for may happen now, and what to tell about breakers."""

    rulings: tuple[Ruling, ...]
    changes: tuple[tuple[str, str, str, str, str], ...]


def start(world: World, *, queue_only: bool = False) -> list[Ran]:
    """Carry on an unfinished check, then check; unless told to queue only, run the retrains they ask for."""
    ran, finished_another = _check_once(world, queue_only=queue_only)
    if finished_another:
        ran += _check_once(world, queue_only=queue_only)[0]
    return ran


def _check_once(world: World, *, queue_only: bool) -> tuple[list[Ran], bool]:
    """One check, and whether it was an earlier one, whose look may be old."""
    submitted = world.runner.submit(NewJob(DRIFT_CHECK, DRIFT_CHECK, {}, trigger=world.trigger))
    job_id = submitted.job.job_id
    queued = queue_only or world.config.drift.retrain == "queue"
    ran = [world.runner.run(job_id)]
    children = world.runner.table.children(job_id)
    # What fails here is on record, and its job tells it later: it is no failure of the check.
    world.runner.drain([child.job_id for child in children if child.kind == DELIVER_ALARMS], only_if_due=True)
    if not queued:
        ran += world.runner.drain([child.job_id for child in children if child.kind != DELIVER_ALARMS])
    return ran, not submitted.created and ran[0].job.ended


def run(world: World, context: JobContext) -> Result:
    rows = context.observe(lambda: _preflight(world))
    if not rows:
        return Result("no-production-models", {"models": []})
    look = context.step("look", lambda: look_at(world, context, rows), Look)
    for unexpected in look.unexpected:
        log.warning(f"Service C answered {unexpected}, which was not asked for; it was left out")
    for row in rows:
        scores = _scores(look.decisions, row)
        if scores:
            context.step(f"scores {row.model_id}", partial(_write_scores, world, context, row, scores), str)
    context.step("record", lambda: _record(world, context, look), int)
    governed = context.step("govern", lambda: _governed(world, look), Governed)
    changes = look.changes + governed.changes
    context.step("store alarms", lambda: world.alarms.raise_once(context.job.job_id, changes), int)
    context.step("sound alarms", lambda: world.alarms.sound(changes), type(None))
    # Told after the end: a slow sink must not hold up the retrains, which are queued with it.
    undelivered = context.observe(lambda: deliver_alarms.waiting(world))
    return _result(world, look, governed, undelivered=undelivered)


def _preflight(world: World) -> tuple[ModelRow, ...]:
    """Production rows, after every party the check depends on has answered. Raises the party's own error."""
    world.keys.ping()
    world.queue.ping()
    rows = world.registry.production()
    if not rows and world.keys.names():
        raise NotMeasured(
            "model_metadata has no production row although Redis names production models: "
            + ", ".join(sorted(world.keys.names())),
            cure="servicectl doctor; is the handler serving the right database file?",
        )
    versions = Counter(row.model_id for row in rows)
    if doubled := sorted(model_id for model_id, count in versions.items() if count > 1):
        told = ", ".join(f"{row.model_id} {row.version}" for row in rows if row.model_id in doubled)
        raise BadAnswer(
            f"model_metadata has more than one production row of a model: {told}",
            cure="servicectl sync-production  keeps the one that the artifact store's pointer names",
        )
    if rows and world.config.analytics.source == "service-c" and not world.registry.has_features_view():
        from servicectl.estate.features import CREATE_VIEW

        raise NotMeasured(
            "Service C reads its current rows from `features`, which does not exist: it would measure nothing",
            cure=f"servicectl doctor --create-view  (runs: {CREATE_VIEW})",
        )
    return rows


def _scores(decisions: tuple[Decision, ...], row: ModelRow) -> dict[str, float]:
    """PSI per feature of this version; a feature that was not measured keeps its last known score."""
    unmeasured = (Verdict.NOT_MEASURED, Verdict.QUARANTINE)
    expected = {feature.name for feature in row.expected_features}
    return {
        decision.feature: decision.psi
        for decision in decisions
        if (decision.model_id, decision.version) == (row.model_id, row.version)
        and decision.psi is not None
        and decision.feature in expected
        and decision.verdict not in unmeasured
    }


def _write_scores(world: World, context: JobContext, row: ModelRow, scores: dict[str, float]) -> str:
    with context.borrowed(serving_scope(row.model_id)) as free:
        if not free:
            return "left alone: the model is being published"
        current = [r for r in world.registry.rows(row.model_id) if r.status == "production"]
        if [r.version for r in current] != [row.version]:
            return "left alone: another version is in production now"
        world.registry.write_drift_scores(row.model_id, row.version, scores)
        served = world.keys.read(row.model_id)
        if served is None or served.version != row.version:
            return "written to the registry; Redis has another version"
        world.keys.update_drift_scores(row.model_id, served.generation, scores)
        return "written"


def _record(world: World, context: JobContext, look: Look) -> int:
    from servicectl.estate.registry import DriftResult

    world.registry.ensure_tables()
    checked_at = context.job.created_at
    details = look.details or ({},) * len(look.decisions)  # a look of an earlier release has none
    trigger = context.job.trigger if context.job.attempts <= 1 else f"{context.job.trigger}, resumed"
    results = [
        DriftResult(
            run_id=context.job.job_id,
            model_id=decision.model_id,
            model_version=decision.version,
            feature_name=decision.feature,
            verdict=decision.verdict.value,
            service_status=decision.status,
            psi=decision.psi,
            ks_stat=decision.ks_stat,
            ks_p_value=decision.ks_p_value,
            kl_divergence=decision.kl_divergence,
            feature_rows=decision.rows,
            reason=decision.reason,
            checked_at=checked_at,
            trigger=trigger,
            window_end=_naive(decision.newest),
            critical=decision.critical,
            evidence=detail,
        )
        for decision, detail in zip(look.decisions, details, strict=True)
    ]
    world.registry.record_drift_results(results)
    return len(results)


def _naive(moment: datetime | None) -> datetime | None:
    return moment.astimezone(UTC).replace(tzinfo=None) if moment is not None and moment.tzinfo else moment


def _governed(world: World, look: Look) -> Governed:
    wishes = {model_id: features for model_id, features in look.retrain.items() if model_id in world.config.models}
    if world.config.drift.retrain == "never" or not wishes:
        return Governed((), ())
    told = governing.rulings(world, wishes)
    return Governed(told, governing.breaker_changes(told, world.alarms.standing().verdicts))


def _result(world: World, look: Look, governed: Governed, *, undelivered: bool) -> Result:
    children: list[NewJob] = []
    not_configured: list[str] = []
    held_back = {ruling.model_id: ruling.reason for ruling in governed.rulings if not ruling.allowed}
    for model_id, why in look.held.items():
        damaged = any(one.model_id == model_id and one.verdict is Verdict.QUARANTINE for one in look.decisions)
        held_back[model_id] = why if damaged else f"{why} (trigger = {trigger_of(world, model_id)})"
        log.notice(f"{model_id} is not retrained now: {held_back[model_id]}")
    if world.config.drift.retrain != "never":
        for model_id in look.retrain:
            if model_id not in world.config.models:
                not_configured.append(model_id)
                log.error(
                    f"{model_id} uses drifted features but has no [models.{model_id}] section: it is not retrained"
                )
                continue
            if model_id in held_back:
                log.notice(f"{model_id} drifted and is not retrained now: {held_back[model_id]}")
                continue
            children.append(retrain.job(world, model_id, trigger="drift"))
    if undelivered:
        children.append(deliver_alarms.job(world))
    told: dict[str, Any] = {
        "decisions": [msgspec.to_builtins(decision) for decision in look.decisions],
        "retrain": {model_id: list(features) for model_id, features in look.retrain.items()},
        "not_configured": not_configured,
        "held_back": held_back,
        "rows_without_time": look.rows_without_time,
        "not_measured": look.not_measured,
        "evidence": [msgspec.to_builtins(one) for one in look.evidence],
        "agreements": [msgspec.to_builtins(one) for one in look.agreements],
        "decay": [msgspec.to_builtins(one) for one in look.decay],
        "unverified": look.unverified,
    }
    status = ExitStatus.OK
    if not_configured:
        status = ExitStatus.FAILED
    elif look.not_measured:
        status = ExitStatus.NOT_MEASURED
    return Result(look.outcome, told, status, tuple(children))
