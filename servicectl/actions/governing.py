"""The governor at work: what the job store remembers, held against what is wished for. Drift and callers pass here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from servicectl.actions import deliver_alarms, retrain
from servicectl.actions.kinds import DRIFT_CHECK, PUBLISH, RETRAIN, retrain_scope
from servicectl.config import seconds
from servicectl.drift.governor import PUBLISHED, REFUSED, Limits, Retrain, Ruling, Wish, govern
from servicectl.errors import Busy

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.jobs.model import Job

AUTOMATIC = ("drift", "grpc")
"""The `trigger` of jobs that no operator asked for."""

BREAKER = "(breaker)"
"""Where alarms of the breaker stand instead of a feature."""

_REMEMBERED = 1000
_REFUSALS = ("rejected-by-canary", "undone", "not-undone")


def rulings(world: World, wishes: Mapping[str, Sequence[str]], *, failures_count: bool = True) -> tuple[Ruling, ...]:
    """Given models with the features that drifted, who may be retrained now."""
    asked = [Wish(model_id, frozenset(features)) for model_id, features in wishes.items()]
    past = [job for job in _past(world) if failures_count or job.outcome not in ("failed", "cancelled")]
    told = govern(asked, past, limits(world), world.clock.now().astimezone(UTC))
    return tuple(_only_the_same(world, ruling) if ruling.rule == "unfinished" else ruling for ruling in told)


def require(world: World, model_id: str) -> None:
    """For a caller from outside: return if this model may be retrained now. Raises Busy with the reason.

    A breaker that it meets is alarmed as a check would.

    What is unfinished is no reason here: submitting joins it, or is refused by its own rule. Nor is what failed or was
    cancelled: a caller that asks again has seen that.
    """
    [ruling] = told = rulings(world, {model_id: ()}, failures_count=False)
    _tell(world, model_id, breaker_changes(told, world.alarms.standing().verdicts))
    if not ruling.allowed and ruling.rule != "unfinished":
        raise Busy(
            f"{model_id} is not retrained now: {ruling.reason}",
            cure=f"an operator's own `servicectl retrain {model_id}` does not wait",
        )


def _tell(world: World, model_id: str, changes: Sequence[tuple[str, str, str, str, str]]) -> None:
    """Alarm of a breaker that a caller met: no check is there to do it, and there may be none for a day."""
    newest = world.runner.table.newest(kind=RETRAIN, scope=retrain_scope(model_id), limit=1)
    # The alarm's id is made of the last retrain's: callers that meet the breaker at one moment tell of it once.
    if changes and newest and world.alarms.raise_once(newest[0].job_id, changes):
        world.alarms.sound(changes)
        if deliver_alarms.waiting(world):
            with suppress(Busy):
                world.runner.submit(deliver_alarms.job(world))


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
        elif was_open and ruling.closed:
            text = f"{ruling.model_id} is retrained again when it drifts: a challenger was published"
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
    publishes: dict[str, Job] = {}
    if any(job.outcome == "promoted" for job in retrains):
        for job in reversed(table.newest(kind=PUBLISH, limit=_REMEMBERED)):
            asked_by = str(job.spec.get("retrain_job", ""))
            # One that was published stays so, whatever is tried with the same candidate afterwards.
            if asked_by not in publishes or publishes[asked_by].outcome != PUBLISHED:
                publishes[asked_by] = job
    return [_retrain(job, checks.get(job.parent_id or ""), publishes.get(job.job_id)) for job in retrains]


def _retrain(job: Job, check: Job | None, publish: Job | None) -> Retrain:
    model_id = str(job.spec.get("model", ""))
    causes = ((check.result or {}).get("retrain", {}) if check else {}).get(model_id, ())
    trained = (job.result or {}).get("trained", {})
    return Retrain(
        model_id=model_id,
        causes=frozenset(causes),
        automatic=job.trigger in AUTOMATIC,
        asked_at=_utc(job.created_at),
        finished_at=_utc(job.finished_at) if job.finished_at else None,
        outcome=_outcome(job, publish),
        spent=timedelta(seconds=float(trained.get("seconds", 0.0))),
    )


def _outcome(job: Job, publish: Job | None) -> str:
    """A promoted challenger has only won the gate: what its publish made of it counts."""
    if not job.ended or job.outcome != "promoted":
        return (job.outcome or "") if job.ended else ""
    if publish is None or not publish.ended:
        return "promoted"  # it waits, or is kept for an operator: no end yet, neither good nor bad
    if publish.outcome == PUBLISHED:
        return PUBLISHED
    return REFUSED if publish.outcome in _REFUSALS else "promoted"


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
