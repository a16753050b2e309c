"""How often drift may retrain a model: the first retrain of an episode at once, the second when there is reason to.

Pure: what was wished for, what the job store remembers, the limits and the time go in; one ruling per wish comes out.
Retrains that an operator or a calendar asked for neither wait here nor count, except while they are unfinished, and when
their challenger is published: that closes the breaker as any publish does, for whatever cause it opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

PUBLISHED, REFUSED = "published", "refused"
_IN_VAIN = ("rejected", "inconclusive", REFUSED)

Rule = Literal["", "unfinished", "debounce", "cooldown", "budget", "breaker", "half-open"]


@dataclass(frozen=True, slots=True)
class Limits:
    """`debounce`: a model is not retrained twice within it, whatever the cause. `cooldown`: nor twice within it for one
    cause. `breaker_rejections` retrains in a row that led to no publish, for one cause, open the breaker; after
    `breaker_rest` one more is tried. `budget`: training time of automatic retrains within a day; None: any."""

    debounce: timedelta = timedelta(minutes=10)
    cooldown: timedelta = timedelta(hours=6)
    breaker_rejections: int = 3
    breaker_rest: timedelta = timedelta(days=7)
    budget: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """One model to be retrained because of `causes` (features; empty for a caller that names none)."""

    model_id: str
    causes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Retrain:
    """One retrain job as remembered. `automatic`: drift or a caller asked for it, not an operator.

    `outcome` is "" while it is unfinished, PUBLISHED once its challenger is in production, and REFUSED where that was
    packaged and its publish turned it down. `spent` is its training time. Times are UTC.
    """

    model_id: str
    causes: frozenset[str]
    automatic: bool
    asked_at: datetime
    finished_at: datetime | None
    outcome: str
    spent: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class Ruling:
    """`allowed` with rule "unfinished" means: join the job that waits or runs, never a second one. `breaker_open`
    stays True through a half-open try, until a challenger is published. `closed`: no cause of this model can have an
    open breaker."""

    model_id: str
    allowed: bool
    rule: Rule
    reason: str
    breaker_open: bool = False
    closed: bool = False


def govern(wishes: Iterable[Wish], past: Sequence[Retrain], limits: Limits, now: datetime) -> tuple[Ruling, ...]:
    """Given wishes in order of urgency, the remembered retrains in any order and the limits, rule on each wish."""
    newest_first = sorted(past, key=lambda job: job.asked_at, reverse=True)
    spent = sum((job.spent for job in past if job.automatic and now - job.asked_at < timedelta(days=1)), timedelta())
    return tuple(_ruling(wish, newest_first, limits, now, spent) for wish in wishes)


def _ruling(wish: Wish, past: Sequence[Retrain], limits: Limits, now: datetime, spent: timedelta) -> Ruling:
    ours = [job for job in past if job.model_id == wish.model_id]
    if any(job.finished_at is None for job in ours):
        return Ruling(wish.model_id, allowed=True, rule="unfinished", reason="a retrain waits or runs already")
    automatic = [job for job in ours if job.automatic]
    same = [job for job in automatic if _same_cause(job, wish)]
    in_vain = _in_vain(ours)
    rejected = [job for job in in_vain if _same_cause(job, wish)]
    breaker_open = len(rejected) >= limits.breaker_rejections

    def held(rule: Rule, reason: str) -> Ruling:
        return Ruling(wish.model_id, allowed=False, rule=rule, reason=reason, breaker_open=breaker_open)

    if automatic and (ends := automatic[0].asked_at + limits.debounce) > now:
        return held("debounce", f"it was retrained moments ago; again from {ends:%H:%M:%S} UTC on")
    if breaker_open:
        assert rejected[0].finished_at is not None
        if (ends := rejected[0].finished_at + limits.breaker_rest) > now:
            return held(
                "breaker",
                f"{len(rejected)} challengers in a row were not put into production, for {_named(wish)}; "
                f"one more is tried from {ends:%Y-%m-%d %H:%M} UTC on",
            )
    elif same and (ends := same[0].asked_at + limits.cooldown) > now:
        return held("cooldown", f"it was retrained for {_named(wish)}; again from {ends:%Y-%m-%d %H:%M} UTC on")
    if limits.budget is not None and spent >= limits.budget:
        return held("budget", f"automatic retrains took {spent.total_seconds() / 60:.0f} minutes within a day")
    rule: Rule = "half-open" if breaker_open else ""
    closed = len(in_vain) < limits.breaker_rejections
    return Ruling(wish.model_id, allowed=True, rule=rule, reason="", breaker_open=breaker_open, closed=closed)


def _same_cause(job: Retrain, wish: Wish) -> bool:
    return bool(job.causes & wish.causes) or job.causes == wish.causes


def _in_vain(newest_first: Sequence[Retrain]) -> list[Retrain]:
    """The automatic retrains since the last publish, whoever asked for that, those of them that led nowhere."""
    found: list[Retrain] = []
    for job in newest_first:
        if job.outcome == PUBLISHED:
            break
        if job.automatic and job.outcome in _IN_VAIN:
            found.append(job)
    return found


def _named(wish: Wish) -> str:
    return ", ".join(sorted(wish.causes)) or "the same caller"
