"""What timers start, by the calendar: each slot's jobs exactly once, whoever comes first and however often."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from servicectl import log
from servicectl.actions.kinds import DRIFT_CHECK, RETRAIN, SYNC_PRODUCTION, kinds, retrain_scope, serving_scope
from servicectl.config import seconds
from servicectl.config_schedules import NEVER, ScheduleConfig
from servicectl.errors import Busy, ConfigError
from servicectl.files import write_atomically
from servicectl.jobs.model import Job, NewJob
from servicectl.jobs.slots import Decision, Schedule, machine_zone
from servicectl.jobs.slots_table import Slot, SlotTable, Taken, request_id

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.jobs.runner import Ran

TIMER = "timer"
"""The `trigger` of these jobs."""

NAMES = (DRIFT_CHECK, RETRAIN, SYNC_PRODUCTION)


def schedules(world: World) -> list[Schedule]:
    """Those that have a calendar. Raises ConfigError for a length of time that is none."""
    found = []
    for name in NAMES:
        section = _section(world, name)
        if section.cron.strip() != NEVER:
            found.append(
                Schedule(
                    name=name,
                    cron=section.cron,
                    zone=section.zone or machine_zone(),
                    missed=section.missed,
                    max_age=_length(section.max_age, f"schedules.{name}.max_age"),
                    grace=_length(section.grace, f"schedules.{name}.grace"),
                )
            )
    return found


def start(world: World, name: str, *, parallel: int = 1) -> list[Ran]:
    """What the timer of a schedule asks for: decide what is due, carry on what is unfinished, run the slots' jobs.

    Nothing due is no error and leaves everything alone. Raises ConfigError.
    """
    schedule = next((one for one in schedules(world) if one.name == name), None)
    if schedule is None:
        log.warning(f"{name}: nothing due: [schedules.{name}] has no cron; `servicectl {_typed(name)}` runs it now")
        return []
    table = _table(world)
    taken = table.take(schedule, partial(_jobs, world, schedule), by_timer=True)
    _tell(schedule, taken)
    if not any(one.what == "run" for one in taken.decisions):
        _tell_nothing_due(world, schedule, table)
        return []
    return _run(world, name, taken, parallel)


def take_missed(world: World) -> list[ConfigError]:
    """For `jobs resume`: decide the slots that their timers have missed; the jobs made wait to be run.

    Returns what is wrong with the configuration instead of raising it: unfinished jobs do not depend on it.
    """
    wrong: list[ConfigError] = []
    try:
        found = schedules(world)
    except ConfigError as error:
        return [error]
    if _is_quiet(world, found):
        return []
    table = _table(world)
    known = []
    for schedule in found:
        try:
            schedule.validate()
        except ConfigError as error:
            wrong.append(error)
        else:
            known.append(schedule)
    looked, open_from = world.clock.now(), []
    for schedule in known:
        due = table.due(schedule)
        new = due.decided.since is not None
        open_from.append(schedule.next_slot(looked) if new else due.open_from)
        if new or due.decided.decisions:
            _tell(schedule, table.take(schedule, partial(_jobs, world, schedule), by_timer=False))
    if not wrong:
        _remember_quiet(world, known, looked, [moment for moment in open_from if moment is not None])
    return wrong


@dataclass(frozen=True)
class SlotState:
    """One decided slot with what became of its jobs; those that were pruned are left out."""

    slot: Slot
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class ScheduleState:
    """One schedule now: `waiting` are slots that are due and not decided yet, `past` decided ones, newest first.

    `started`: a timer has come for it with --scheduled; before, nothing is made up for.
    """

    schedule: Schedule
    next_slot: datetime | None
    started: bool
    waiting: tuple[datetime, ...]
    past: tuple[SlotState, ...]


def states(world: World, *, limit: int) -> list[ScheduleState]:
    """Every schedule that has a calendar, with its newest decided slots. Raises ConfigError."""
    table, now = _table(world), world.clock.now()
    found = []
    for schedule in schedules(world):
        past = table.decided(schedule.name, limit)
        jobs = table.jobs_of_slots(schedule.name, [one.slot for one in past if one.what == "run"])
        due = table.due(replace(schedule, grace=timedelta(0)))
        found.append(
            ScheduleState(
                schedule,
                schedule.next_slot(now),
                due.started,
                tuple(one.slot for one in due.decided.decisions),
                tuple(SlotState(one, tuple(jobs.get(one.slot, ()))) for one in past),
            )
        )
    return found


class _Quiet(Struct, frozen=True):
    """That there is nothing to decide before `until`, as seen at `looked`."""

    schedules: list[str]
    looked: datetime
    until: datetime


def _is_quiet(world: World, found: Sequence[Schedule]) -> bool:
    """Whether an earlier look says so: what runs every five minutes must not ask the store about each night's slot."""
    try:
        quiet = msgspec.json.decode(_quiet_file(world).read_bytes(), type=_Quiet)
    except (OSError, msgspec.MsgspecError):
        return False
    same = quiet.schedules == [one.fingerprint for one in found]
    return same and quiet.looked <= world.clock.now() < quiet.until


def _remember_quiet(world: World, found: Sequence[Schedule], looked: datetime, open_from: Sequence[datetime]) -> None:
    if not open_from or min(open_from) <= looked:
        return
    # Nobody relies on it: where it cannot be written, every look is a whole one.
    with contextlib.suppress(OSError):
        quiet = _Quiet([one.fingerprint for one in found], looked, min(open_from))
        write_atomically(_quiet_file(world), msgspec.json.encode(quiet))


def _quiet_file(world: World) -> Path:
    return world.config.state_folder / "slots.quiet"


def _section(world: World, name: str) -> ScheduleConfig:
    section: ScheduleConfig = getattr(world.config.schedules, name.replace("-", "_"))
    return section


def _length(text: str, key: str) -> timedelta:
    return timedelta(seconds=seconds(text, key))


def _table(world: World) -> SlotTable:
    from servicectl.store import Store

    store = Store(world.config.state_folder, clock=world.clock, lock_wait_s=world.config.jobs.lock_wait_s)
    return SlotTable(store, world.clock)


def _jobs(world: World, schedule: Schedule, decision: Decision) -> Sequence[tuple[NewJob, int, int]]:
    known = kinds(world)
    attempts = world.config.jobs.max_attempts
    made = _MADE[schedule.name](world, partial(request_id, schedule, decision.slot))
    return [(new, known[new.kind].step_schema, attempts) for new in made]


def _drift_check(_world: World, named: Callable[..., str]) -> list[NewJob]:
    return [NewJob(DRIFT_CHECK, DRIFT_CHECK, {}, request_id=named(), trigger=TIMER)]


def _retrain(world: World, named: Callable[..., str]) -> list[NewJob]:
    from servicectl.actions import retrain

    publish = world.config.schedules.retrain.publish
    return [
        replace(
            retrain.job(world, model_id, publish=publish != "never", hold=publish == "hold", trigger=TIMER),
            request_id=named(model_id),
        )
        for model_id in sorted(world.config.models)
    ]


def _sync_production(_world: World, named: Callable[..., str]) -> list[NewJob]:
    return [NewJob(SYNC_PRODUCTION, SYNC_PRODUCTION, {"allow_remove": False}, request_id=named(), trigger=TIMER)]


_MADE: Mapping[str, Callable[[World, Callable[..., str]], list[NewJob]]] = {
    DRIFT_CHECK: _drift_check,
    RETRAIN: _retrain,
    SYNC_PRODUCTION: _sync_production,
}


def _scopes(world: World, name: str) -> list[str]:
    """What a working command of this name would carry on first."""
    if name == RETRAIN:
        return [
            scope for model in sorted(world.config.models) for scope in (retrain_scope(model), serving_scope(model))
        ]
    if name == SYNC_PRODUCTION:
        serving = {job.scope for job in world.runner.table.unfinished() if job.scope.startswith("serving:")}
        return [*sorted(serving), SYNC_PRODUCTION]
    return [DRIFT_CHECK]


def _run(world: World, name: str, taken: Taken, parallel: int) -> list[Ran]:
    runner = world.runner
    ours = [job.job_id for job in taken.jobs]
    older = [job.job_id for job in runner.table.unfinished(_scopes(world, name)) if job.job_id not in ours]
    if name == DRIFT_CHECK and world.config.drift.retrain == "queue":
        return [*_without_children(world, older, only_if_due=True), *_without_children(world, ours, only_if_due=False)]
    ran = runner.drain(older, only_if_due=True)
    if parallel > 1 and len(ours) > 1:
        from servicectl.actions.side_by_side import run_side_by_side

        return [*ran, *run_side_by_side(world, ours, parallel)]
    return [*ran, *(one for job_id in ours for one in runner.attempt(job_id))]


def _without_children(world: World, job_ids: Sequence[str], *, only_if_due: bool) -> list[Ran]:
    ran = []
    for job_id in job_ids:
        try:
            ran.append(world.runner.run(job_id, only_if_due=only_if_due))
        except Busy as busy:
            log.info(f"job {job_id[-8:]} is left alone: {busy.message}")
    return ran


def _typed(name: str) -> str:
    return "retrain --all" if name == RETRAIN else name


def _tell(schedule: Schedule, taken: Taken) -> None:
    """Of slots that were missed, one line; on time is no news."""
    made_up = [one for one in taken.decisions if one.what == "run" and one.reason != "on time"]
    skipped = [one for one in taken.decisions if one.what == "skip"]
    if made_up:
        log.notice(f"{schedule.name}: makes up for {_several(made_up)}")
    if skipped:
        log.warning(f"{schedule.name}: {_several(skipped)} passed over: {skipped[-1].reason}")


def _several(decisions: Sequence[Decision]) -> str:
    newest = f"{decisions[-1].slot:%Y-%m-%d %H:%M} UTC"
    return f"the slot {newest}" if len(decisions) == 1 else f"{len(decisions)} slots up to {newest}"


def _tell_nothing_due(world: World, schedule: Schedule, table: SlotTable) -> None:
    now = world.clock.now()
    coming = schedule.next_slot(now)
    when = f"the next slot is {coming:%Y-%m-%d %H:%M} UTC" if coming else "it has no slot to come"
    text = f"{schedule.name}: nothing due; {when}. `servicectl {_typed(schedule.name)}` runs it now"
    newest = next(iter(table.decided(schedule.name, 1)), None)
    if newest is not None and abs(now - newest.slot) <= schedule.grace:
        log.notice(text)
    else:
        log.warning(
            f"{text}; if a timer started this, it disagrees with [schedules.{schedule.name}]: servicectl doctor"
        )
