"""The governor at work: what the job store remembers, held against what is wished for. Drift and callers pass here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from servicectl.actions import retrain
from servicectl.actions.kinds import DRIFT_CHECK, RETRAIN
from servicectl.config import seconds
from servicectl.drift.governor import Limits, Retrain, Ruling, Wish, govern
from servicectl.errors import Busy

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.jobs.model import Job

AUTOMATIC = ("drift", "grpc")
"""The `trigger` of jobs that no operator asked for."""

BREAKER = "(breaker)"
"""Where alarms of the breaker stand instead of a feature."""

_REMEMBERED = 1000


def rulings(world: World, wishes: Mapping[str, Sequence[str]], *, failures_count: bool = True) -> tuple[Ruling, ...]:
    """Given models with the features that drifted, who may be retrained now."""
    asked = [Wish(model_id, frozenset(features)) for model_id, features in wishes.items()]
    past = [job for job in _past(world) if failures_count or job.outcome not in ("failed", "cancelled")]
    told = govern(asked, past, limits(world), world.clock.now().astimezone(UTC))
    return tuple(_only_the_same(world, ruling) if ruling.rule == "unfinished" else ruling for ruling in told)


def require(world: World, model_id: str) -> None:
    """For a caller from outside: return if this model may be retrained now. Raises Busy with the reason.

    What is unfinished is no reason here: submitting joins it, or is refused by its own rule. Nor is what failed or was
    cancelled: a caller that asks again has seen that.
    """
    [ruling] = rulings(world, {model_id: ()}, failures_count=False)
    if not ruling.allowed and ruling.rule != "unfinished":
        raise Busy(
            f"{model_id} is not retrained now: {ruling.reason}",
            cure=f"an operator's own `servicectl retrain {model_id}` does not wait",
        )


def breaker_changes(
    told: Sequence[Ruling], standing: Mapping[tuple[str, str], str]
) -> tuple[tuple[str, str, str, str, str], ...]:
    """Given the rulings and the verdicts told last, what to tell of breakers: opened once, closed once."""
    changes = []
    for ruling in told:
        was_open = standing.get((ruling.model_id, BREAKER)) == "CRITICAL"
        if ruling.rule == "breaker" and not was_open:
            text = f"{ruling.model_id} is not retrained any more for now: {ruling.reason}"
            changes.append((ruling.model_id, BREAKER, "raised", "CRITICAL", text))
        elif was_open and ruling.rule == "" and not ruling.breaker_open:
            text = f"{ruling.model_id} is retrained again when it drifts: a challenger was promoted"
            changes.append((ruling.model_id, BREAKER, "cleared", "PASS", text))
    return tuple(changes)


def limits(world: World) -> Limits:
    """The configuration in the governor's words."""
    drift = world.config.drift
    return Limits(
        debounce=timedelta(seconds=seconds(drift.debounce, "drift.debounce")),
        cooldown=timedelta(seconds=seconds(drift.cooldown, "drift.cooldown")),
        breaker_rejections=drift.breaker_rejections,
        breaker_rest=timedelta(seconds=seconds(drift.breaker_rest, "drift.breaker_rest")),
        budget=None if drift.training_minutes_per_day is None else timedelta(minutes=drift.training_minutes_per_day),
    )


def _only_the_same(world: World, ruling: Ruling) -> Ruling:
    """An unfinished retrain with other parameters cannot be joined, and a second one must not queue behind it."""
    wanted = retrain.job(world, ruling.model_id)
    unfinished = world.runner.table.unfinished([wanted.scope])
    if not unfinished or any(dict(job.spec) == dict(wanted.spec) for job in unfinished):
        return ruling
    waits = f"job {unfinished[0].short_id} with other parameters waits or runs already"
    return replace(ruling, allowed=False, reason=waits)


def _past(world: World) -> list[Retrain]:
    table = world.runner.table
    retrains = table.newest(kind=RETRAIN, limit=_REMEMBERED)
    checks: dict[str, Job] = {}
    if any(job.parent_id for job in retrains):
        checks = {job.job_id: job for job in table.newest(kind=DRIFT_CHECK, limit=_REMEMBERED)}
    return [_retrain(job, checks.get(job.parent_id or "")) for job in retrains]


def _retrain(job: Job, check: Job | None) -> Retrain:
    model_id = str(job.spec.get("model", ""))
    causes = ((check.result or {}).get("retrain", {}) if check else {}).get(model_id, ())
    trained = (job.result or {}).get("trained", {})
    return Retrain(
        model_id=model_id,
        causes=frozenset(causes),
        automatic=job.trigger in AUTOMATIC,
        asked_at=_utc(job.created_at),
        finished_at=_utc(job.finished_at) if job.finished_at else None,
        outcome=(job.outcome or "") if job.ended else "",
        spent=timedelta(seconds=float(trained.get("seconds", 0.0))),
    )


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
