"""Jobs as an operator reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from servicectl.cli.screen import Cell, Screen, Styled, word
from servicectl.jobs.model import Event, Job, State, Step


def view(job: Job, *, interrupted: bool) -> dict[str, Any]:
    """One job as JSON; `state` is INTERRUPTED for a RUNNING one whose process is gone."""
    return {
        "job_id": job.job_id,
        "id": job.short_id,
        "kind": job.kind,
        "scope": job.scope,
        "state": "INTERRUPTED" if interrupted else job.state.value,
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
    }


def detail(
    job: Job, steps: Sequence[Step], events: Sequence[Event], children: Sequence[Job], *, interrupted: bool
) -> dict[str, Any]:
    return {
        **view(job, interrupted=interrupted),
        "epoch": job.epoch,
        "spec": job.spec,
        "owner": job.owner,
        "result": job.result,
        "children": [child.job_id for child in children],
        "steps": [
            msgspec.to_builtins(step) | {"started_at": _utc(step.started_at), "finished_at": _utc(step.finished_at)}
            for step in steps
        ],
        "events": [msgspec.to_builtins(event) | {"happened_at": _utc(event.happened_at)} for event in events],
    }


def print_list(screen: Screen, jobs: Sequence[Mapping[str, Any]], now: datetime) -> None:
    if not jobs:
        screen.line("no jobs yet")
        return
    rows: list[list[Cell]] = []
    for job in jobs:
        subject = job["scope"].partition(":")[2] or "-"
        outcome = "needs operator" if job["needs_operator"] else job["outcome"] or "-"
        attempts = f"{job['attempts']}/{job['max_attempts']}"
        created = age(job["created_at"], now)
        rows.append([job["id"], job["kind"], subject, word(job["state"]), outcome, attempts, created, job["trigger"]])
    screen.table(["job", "kind", "of", "state", "outcome", "attempts", "created", "by"], rows, right=["attempts"])


def print_detail(screen: Screen, job: Mapping[str, Any], now: datetime) -> None:
    screen.line(Styled(job["kind"], "bold"), f" {job['scope']}  ", word(job["state"]), f"  {job['outcome'] or ''}")
    screen.line(f"job {job['job_id']}, attempt {job['attempts']} of {job['max_attempts']}, epoch {job['epoch']}")
    if owner := job["owner"]:
        by = f"{owner['user']} on {owner['host']}, pid {owner['pid']}, triggered by {job['trigger']}"
        screen.line(f"last run by {by}")
    rows: list[list[Cell]] = []
    for step in job["steps"]:
        took = (step["finished_at"] - step["started_at"]).total_seconds() if step["finished_at"] else None
        seconds = "-" if took is None else f"{took:.2f}"
        rows.append([step["name"], word(step["state"]), str(step["attempts"]), seconds, _said(step)])
    screen.table(["step", "state", "attempts", "seconds", "result"], rows, right=["attempts", "seconds"])
    for event in job["events"]:
        screen.line(f"  {age(event['happened_at'], now):>9}  {event['edge']:<12} {event['detail'] or ''}")
    if job["children"]:
        screen.line("children: " + ", ".join(child[-8:] for child in job["children"]))
    if job["error"]:
        screen.line(Styled("error: ", "red"), job["error"])
    if job["cure"]:
        screen.line(f"next: {job['cure']}")


def age(moment: datetime | None, now: datetime) -> str:
    """How long ago, in the largest fitting unit."""
    if moment is None:
        return "-"
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    seconds = (now - aware).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if abs(seconds) >= size:
            return f"{seconds / size:.0f}{unit} ago"
    return f"{seconds:.0f}s ago"


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
