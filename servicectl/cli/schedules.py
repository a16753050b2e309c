from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from servicectl.cli.common import epilog, session

if TYPE_CHECKING:
    from servicectl.actions.slots import ScheduleState, SlotState

app = typer.Typer(
    help="The calendar that timers go by: what comes next, what came of each slot, what was missed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(
    "list",
    help="Each schedule: its next slot, its last one and what became of it, and slots that were missed.",
    epilog=epilog("servicectl schedules list"),
)
def list_schedules(context: typer.Context) -> None:
    from servicectl.actions import slots

    at = session(context)
    found = slots.states(at.world, limit=_LOOKED_AT)

    def render() -> None:
        if not found:
            at.screen.line("no schedule has a cron")
            return
        columns = ["schedule", "cron", "zone", "next (UTC)", "last (UTC)", "what became of it", "missed"]
        at.screen.table(columns, [_row(one) for one in found])

    at.end({"schedules": [_told(one) for one in found]}, render)


@app.command(
    "show",
    help="The slots of one schedule, newest first, with their jobs.",
    epilog=epilog("servicectl schedules show retrain --limit 50"),
)
def show(
    context: typer.Context,
    schedule: Annotated[str, typer.Argument(metavar="SCHEDULE", help="drift-check, retrain or sync-production.")],
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
) -> None:
    from servicectl.actions import slots
    from servicectl.errors import UsageError

    at = session(context)
    named = [one for one in slots.states(at.world, limit=limit) if one.schedule.name == schedule]
    if not named:
        known = "[schedules.*] gives it no cron" if schedule in slots.NAMES else f"known: {', '.join(slots.NAMES)}"
        raise UsageError(f"{schedule!r} has no slots; {known}", cure="servicectl schedules list")
    [found] = named

    def render() -> None:
        rows = [
            [f"{slot:%Y-%m-%d %H:%M}", "waits", "for its timer, or for jobs resume"] for slot in found.waiting[::-1]
        ]
        rows += [[f"{one.slot.slot:%Y-%m-%d %H:%M}", one.slot.what, _outcome(one)] for one in found.past]
        at.screen.table(["slot (UTC)", "", "what became of it"], rows)

    at.end(_told(found), render)


_LOOKED_AT = 100


def _row(state: ScheduleState) -> list[str]:
    last = state.past[0] if state.past else None
    passed_over = sum(one.slot.reason != "on time" for one in state.past)
    missed = [f"{len(state.waiting)} not decided yet"] if state.waiting else []
    missed += [f"{passed_over} of the last {len(state.past)}"] if passed_over else []
    return [
        state.schedule.name,
        state.schedule.cron,
        state.schedule.zone,
        f"{state.next_slot:%Y-%m-%d %H:%M}" if state.next_slot else "never",
        f"{last.slot.slot:%Y-%m-%d %H:%M}" if last else "-",
        _outcome(last) if last else "-" if state.started else "no timer has come yet",
        ", ".join(missed) or "-",
    ]


def _outcome(one: SlotState) -> str:
    if one.slot.what != "run":
        return f"skipped: {one.slot.reason}"
    jobs = [f"{job.short_id} {job.outcome or job.state.value}" for job in one.jobs]
    late = "" if one.slot.reason == "on time" else f"{one.slot.reason}: "
    return late + (", ".join(jobs) or "ran; its jobs are not on record any more")


def _told(state: ScheduleState) -> dict[str, Any]:
    schedule = state.schedule
    return {
        "schedule": schedule.name,
        "cron": schedule.cron,
        "zone": schedule.zone,
        "missed": schedule.missed,
        "max_age_s": schedule.max_age.total_seconds(),
        "grace_s": schedule.grace.total_seconds(),
        "started": state.started,
        "next_slot": state.next_slot,
        "waiting": list(state.waiting),
        "slots": [
            {
                "slot": one.slot.slot,
                "what": one.slot.what,
                "reason": one.slot.reason,
                "decided_at": one.slot.decided_at,
                "jobs": [
                    {"job_id": job.job_id, "kind": job.kind, "state": job.state.value, "outcome": job.outcome}
                    for job in one.jobs
                ],
            }
            for one in state.past
        ],
    }
