"""Jobs as an operator reads them. Stored times are UTC; eyes get local ones with their zone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from servicectl.cli.screen import Cell, Screen, Styled, word
from servicectl.jobs.model import OWNER_DIED, Event, Job, State, Step
from servicectl.jobs.products import products

_TO_TYPE = {
    "PENDING": ("resume", "cancel"),
    "RUNNING": ("watch", "cancel"),
    "INTERRUPTED": ("resume", "cancel"),
    "FAILED": ("retry",),
    "CANCELLED": ("retry",),
}
_DAY_S = 86400


def view(job: Job, *, interrupted: bool) -> dict[str, Any]:
    """One job as JSON; `state` is INTERRUPTED for a RUNNING one whose process is gone."""
    state = "INTERRUPTED" if interrupted else job.state.value
    return {
        "job_id": job.job_id,
        "id": job.short_id,
        "kind": job.kind,
        "scope": job.scope,
        "state": state,
        "outcome": job.outcome,
        "needs_operator": job.needs_operator,
        "attempts": job.attempts,
        "max_attempts": job.max_attempts,
        "trigger": job.trigger,
        "parent": job.parent_id,
        "created_at": _utc(job.created_at),
        "updated_at": _utc(job.updated_at),
        "finished_at": _utc(job.finished_at),
        "not_before": _utc(job.not_before),
        "error": job.error,
        "cure": _cure(job, interrupted=interrupted),
        "commands": [f"servicectl jobs {verb} {job.short_id}" for verb in _TO_TYPE.get(state, ())],
    }


def detail(
    job: Job, steps: Sequence[Step], events: Sequence[Event], children: Sequence[Job], *, interrupted: bool
) -> dict[str, Any]:
    return {
        **view(job, interrupted=interrupted),
        "request_id": job.request_id,
        "epoch": job.epoch,
        "cancel_requested": job.cancel_requested,
        "spec": job.spec,
        "owner": job.owner,
        "result": job.result,
        "children": [child.job_id for child in children],
        "steps": [_step(step) for step in steps],
        "runs": runs(events, interrupted=interrupted),
        "events": [msgspec.to_builtins(event) | {"happened_at": _utc(event.happened_at)} for event in events],
    }


def _step(step: Step) -> dict[str, Any]:
    """`wrote`: the files that the step's stored value names, below the state folder where they lie in it."""
    told: dict[str, Any] = msgspec.to_builtins(step)
    return told | {
        "started_at": _utc(step.started_at),
        "finished_at": _utc(step.finished_at),
        "seconds": took(step.started_at, step.finished_at),
        "wrote": products(step.output),
    }


def runs(events: Sequence[Event], *, interrupted: bool) -> list[dict[str, Any]]:
    """Who ran the job, from its events: one entry per claim. `ended` is an edge, "died", or None while it runs."""
    found: list[dict[str, Any]] = []
    for event in events:
        claims = event.edge in ("claim", "take_over")
        if found and found[-1]["ended"] is None:
            died = claims or event.edge == "exhaust" or event.detail == OWNER_DIED
            found[-1] |= {
                "ended": "died" if died else event.edge,
                "ended_at": None if died else _utc(event.happened_at),
                "seconds": None if died else took(found[-1]["began_at"], _utc(event.happened_at)),
                "why": None if claims else event.detail,
            }
        if claims:
            began = {"epoch": event.epoch, "by": event.detail, "began_at": _utc(event.happened_at)}
            found.append(began | dict.fromkeys(("ended", "ended_at", "seconds", "why")))
    if found and interrupted:
        found[-1]["ended"] = "died"
    return found


def took(began: datetime | None, ended: datetime | None) -> float | None:
    """Seconds between two stored times; never less than none, where the clock was set back between them."""
    return None if began is None or ended is None else max(0.0, (ended - began).total_seconds())


def print_list(screen: Screen, jobs: Sequence[Mapping[str, Any]], now: datetime) -> None:
    if not jobs:
        screen.line("no jobs yet")
        return
    rows: list[list[Cell]] = []
    for job in jobs:
        subject = job["scope"].partition(":")[2] or "-"
        attempts = f"{job['attempts']}/{job['max_attempts']}"
        created = when(job["created_at"], now)
        rows.append(
            [job["id"], job["kind"], subject, word(job["state"]), _outcome(job, now), attempts, created, job["trigger"]]
        )
    screen.table(["job", "kind", "of", "state", "outcome", "attempts", "created", "by"], rows, right=["attempts"])


def _outcome(job: Mapping[str, Any], now: datetime) -> str:
    if job["needs_operator"]:
        return "needs operator"
    if job["state"] == "PENDING" and job["updated_at"] <= now < job["not_before"]:
        return f"due {age(job['not_before'], now)}"
    return str(job["outcome"] or "-")


def print_detail(screen: Screen, job: Mapping[str, Any], now: datetime) -> None:
    asked = "  asked to cancel" if job["cancel_requested"] and job["state"] in ("RUNNING", "INTERRUPTED") else ""
    screen.line(Styled(job["kind"], "bold"), f" {job['scope']}  ", word(job["state"]), f"  {_outcome(job, now)}{asked}")
    screen.line(
        f"job {job['job_id']}, attempt {job['attempts']} of {job['max_attempts']}, epoch {job['epoch']}, "
        f"triggered by {job['trigger']}{', child of ' + job['parent'][-8:] if job['parent'] else ''}"
        f"{', request ' + job['request_id'] if job['request_id'] else ''}"
    )
    _print_steps(screen, job["steps"], now, interrupted=job["state"] == "INTERRUPTED")
    _print_runs(screen, job["runs"], now)
    for event in job["events"]:
        screen.line(f"  {local(event['happened_at'])}  {event['edge']:<12} {event['detail'] or ''}")
    if job["children"]:
        screen.line("children: " + ", ".join(child[-8:] for child in job["children"]))
    if job["error"]:
        screen.line(Styled("error: ", "red"), job["error"])
    if job["cure"]:
        screen.line(f"next: {job['cure']}")
    if others := [command for command in job["commands"] if command != job["cure"]]:
        screen.line(f"to type: {'  or  '.join(others)}")


def _print_steps(screen: Screen, steps: Sequence[Mapping[str, Any]], now: datetime, *, interrupted: bool) -> None:
    rows: list[list[Cell]] = []
    for step in steps:
        running = step["state"] == "RUNNING" and not interrupted
        state = "INTERRUPTED" if step["state"] == "RUNNING" and interrupted else step["state"]
        seconds = took(step["started_at"], now) if running else step["seconds"]
        told = "-" if seconds is None else f"{seconds:.2f}{' so far' if running else ''}"
        rows.append([step["name"], word(state), str(step["attempts"]), str(step["epoch"]), told, _said(step)])
    right = ["attempts", "epoch", "seconds"]
    screen.table(["step", "state", "attempts", "epoch", "seconds", "result"], rows, right=right)
    for step in steps:
        for file in step["wrote"]:
            screen.line(
                f"  {step['name']} wrote {file['path']}  {file['bytes']:,} bytes, sha256 {file['sha256'][:12]}…"
            )


def _print_runs(screen: Screen, runs_: Sequence[Mapping[str, Any]], now: datetime) -> None:
    rows: list[list[Cell]] = []
    for run in runs_:
        seconds = took(run["began_at"], now) if run["ended"] is None else run["seconds"]
        told = "-" if seconds is None else f"{seconds:.2f}"
        rows.append([str(run["epoch"]), run["by"] or "", local(run["began_at"]), told, run["ended"] or "runs"])
    if rows:
        screen.table(["epoch", "run by", "began", "seconds", "ended"], rows, right=["epoch", "seconds"])


def age(moment: datetime | None, now: datetime) -> str:
    """How long ago, or how far ahead, in the largest fitting unit."""
    if moment is None:
        return "-"
    seconds = (now - aware(moment)).total_seconds()
    size, unit = next(((size, unit) for unit, size in _UNITS if abs(seconds) >= size), (1, "s"))
    number = f"{abs(seconds) / size:.0f}{unit}"
    return f"in {number}" if seconds <= -1 else f"{number} ago"


_UNITS = (("d", _DAY_S), ("h", 3600), ("m", 60))


def when(moment: datetime, now: datetime) -> str:
    """Within a day its age, else the local time. An hour that the clocks repeat in autumn differs by its zone."""
    if abs((now - aware(moment)).total_seconds()) < _DAY_S:
        return age(moment, now)
    return f"{aware(moment).astimezone():%Y-%m-%d %H:%M %Z}"


def local(moment: datetime | None) -> str:
    return "-" if moment is None else f"{aware(moment).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _said(step: Mapping[str, Any]) -> str:
    if step["output"] is None and not step["error"]:
        return ""
    text = step["error"] or msgspec.json.encode(step["output"]).decode()
    return text if len(text) <= 100 else f"{text[:97]}..."


def _cure(job: Job, *, interrupted: bool) -> str | None:
    if interrupted:
        return f"servicectl jobs resume {job.short_id}"
    if job.state is State.FAILED:
        return job.cure or f"servicectl jobs retry {job.short_id}"
    return job.cure


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
