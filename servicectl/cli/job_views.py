"""Jobs as an operator reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from rich.markup import escape

from servicectl.cli.tables import age, coloured, plain_table
from servicectl.jobs.model import Event, Job, State, Step

if TYPE_CHECKING:
    from rich.console import Console


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


def print_list(console: Console, jobs: Sequence[Mapping[str, Any]], now: datetime) -> None:
    if not jobs:
        console.print("no jobs yet")
        return
    table = plain_table("job", "kind", "of", "state", "outcome", "attempts", "created", "by", right=("attempts",))
    for job in jobs:
        subject = job["scope"].partition(":")[2] or "-"
        state = coloured(job["state"]) + (" [red](needs operator)[/]" if job["needs_operator"] else "")
        attempts = f"{job['attempts']}/{job['max_attempts']}"
        table.add_row(
            job["id"], job["kind"], subject, state, job["outcome"] or "-", attempts, age(job["created_at"], now), job["trigger"]
        )
    console.print(table)


def print_detail(console: Console, job: Mapping[str, Any], now: datetime) -> None:
    console.print(f"[bold]{job['kind']}[/] {job['scope']}  {coloured(job['state'])}  {job['outcome'] or ''}")
    console.print(f"job {job['job_id']}, attempt {job['attempts']} of {job['max_attempts']}, epoch {job['epoch']}")
    if owner := job["owner"]:
        console.print(f"last run by {owner['user']} on {owner['host']}, pid {owner['pid']}, triggered by {job['trigger']}")
    table = plain_table("step", "state", "attempts", "seconds", "result", right=("attempts", "seconds"))
    for step in job["steps"]:
        took = (step["finished_at"] - step["started_at"]).total_seconds() if step["finished_at"] else None
        said = step["error"] or msgspec.json.encode(step["output"]).decode()
        shown = "" if step["output"] is None and not step["error"] else said if len(said) <= 100 else f"{said[:97]}..."
        seconds = "-" if took is None else f"{took:.2f}"
        table.add_row(step["name"], coloured(step["state"]), str(step["attempts"]), seconds, escape(shown))
    console.print(table)
    for event in job["events"]:
        console.print(f"  {age(event['happened_at'], now):>9}  {event['edge']:<12} {escape(event['detail'] or '')}")
    if job["children"]:
        console.print("children: " + ", ".join(child[-8:] for child in job["children"]))
    if job["error"]:
        console.print(f"[red]error:[/] {escape(job['error'])}")
    if job["cure"]:
        console.print(f"next: {escape(job['cure'])}")


def _cure(job: Job, *, interrupted: bool) -> str | None:
    if interrupted:
        return f"servicectl jobs resume {job.short_id}"
    if job.state is State.FAILED:
        return job.cure or f"servicectl jobs retry {job.short_id}"
    return job.cure


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
