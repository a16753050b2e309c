"""The known traps of timers and cron tables, found in what is installed: pure functions over values."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from servicectl.actions.installed_timers import JOBS, RESUME, CronLine, CronTable, Installed, Timer
from servicectl.config_schedules import NEVER
from servicectl.errors import ConfigError
from servicectl.jobs.slots import Schedule

LONG_DELAY_S = 600.0
"""A run that is made up for after a boot waits so long at most: with more, each further boot puts it off again."""

_COMPARED = 12
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Finding:
    """A trap, the least health it leaves, and what to type or change."""

    health: Literal["warning", "failed"]
    says: str
    cure: str


@dataclass(frozen=True)
class Machine:
    """What is known beside the files. `elapses` gives the next so many moments (UTC) of an OnCalendar= after another;
    None where nobody can tell. `is_program` says whether a path is one that can be started. `states` are properties of
    units as `systemctl show` has them, empty where no system manager runs."""

    zone: str
    now: datetime
    elapses: Callable[[str, datetime, int], list[datetime] | None]
    is_program: Callable[[str], bool]
    states: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def findings(found: Installed, schedules: Sequence[Schedule], machine: Machine) -> list[Finding]:
    """Every trap; of a table that cron skips only that it does. Raises ConfigError for a schedule that is none."""
    known = {schedule.name: schedule for schedule in schedules}
    told: list[Finding] = []
    lines: list[CronLine] = []
    for table in found.tables:
        skipped = list(_skipped_by_cron(table, found.owner))
        told += skipped or [*_in_table(table, machine), *_in_lines(table, known, machine)]
        lines += [] if skipped else table.lines
    for timer in found.timers:
        told += [*_in_timer(timer, known.get(timer.command.job), machine), *_lingering(timer, found)]
    told += [*_doubles(found.timers, lines), *_missing(found.timers, lines, known)]
    told += [
        Finding("warning", f"others may change {file}, which the system runs", f"chmod go-w {file}")
        for file in found.loose
    ]
    return told


# -- timers -------------------------------------------------------------------------------------------------------------


def _in_timer(timer: Timer, schedule: Schedule | None, machine: Machine) -> Iterator[Finding]:
    edit = f"systemctl {'--user ' if timer.user else ''}edit {timer.name}"
    if timer.persistent and timer.delay_s > LONG_DELAY_S:
        yield Finding(
            "warning",
            f"{timer.name} makes up for a missed run up to {_span(timer.delay_s)} after a boot, counted anew by each boot",
            f"{edit}: RandomizedDelaySec=5min",
        )
    if timer.command.program.startswith("/") and not machine.is_program(timer.command.program):
        yield Finding(
            "failed",
            f"{timer.name} starts {timer.command.program}, which is not there",
            f'ln -s "$(command -v servicectl)" {timer.command.program}',
        )
    state = {} if timer.user else machine.states.get(timer.name, {})
    if state.get("NeedDaemonReload") == "yes":
        yield Finding(
            "warning", f"systemd goes by an older {timer.name} than the one on disk", "systemctl daemon-reload"
        )
    if state.get("ActiveState", "active") != "active":
        says = f"{timer.name} is enabled, but not started: it waits for the next boot"
        yield Finding("warning", says, f"systemctl start {timer.name}")
    if timer.command.job == RESUME or not timer.calendars:
        return
    yield from _how_it_goes_by_slots(timer.name, timer.command.job, schedule, scheduled=timer.command.scheduled)
    if schedule is None or not timer.command.scheduled:
        return
    late = timer.delay_s + timer.accuracy_s
    if late > schedule.grace.total_seconds():
        yield Finding(
            "warning",
            f"{timer.name} may come {_span(late)} after its slot, which counts as missed after {_span(schedule.grace.total_seconds())}",
            f"a longer grace in [schedules.{schedule.name}], or {edit}: RandomizedDelaySec=5min",
        )
    came = _union([machine.elapses(_with_zone(text, machine.zone), machine.now, _COMPARED) for text in timer.calendars])
    if came is not None:
        unzoned = schedule.zone != machine.zone and any(not _names_a_zone(text) for text in timer.calendars)
        without = f", for it names no zone and this machine's is {machine.zone}" if unzoned else ""
        cure = f"the same time for both: {edit}, or cron and zone in [schedules.{schedule.name}]"
        yield from _disagreement(timer.name, came, schedule, machine.now, without, cure)


def _lingering(timer: Timer, found: Installed) -> Iterator[Finding]:
    if timer.user is not None and timer.user not in found.lingering:
        yield Finding(
            "warning",
            f"{timer.name} is {timer.user}'s own and runs only while {timer.user} is logged in",
            f"loginctl enable-linger {timer.user}",
        )


def _names_a_zone(calendar: str) -> bool:
    last = calendar.split()[-1] if calendar.split() else ""
    return bool(re.fullmatch(r"UTC|[A-Z]{3}|[A-Z][A-Za-z]+/[A-Za-z0-9_+/-]+", last))


def _with_zone(calendar: str, zone: str) -> str:
    # A zone without a name (/etc/localtime is no link) is the one that systemd goes by when none is told.
    return calendar if _names_a_zone(calendar) or zone.startswith("/") else f"{calendar} {zone}"


# -- cron ---------------------------------------------------------------------------------------------------------------


def _skipped_by_cron(table: CronTable, root: int) -> Iterator[Finding]:
    """What makes Debian's cron pass over a whole file without a word on it."""
    file = table.file
    if table.in_folder and not re.fullmatch(r"[A-Za-z0-9_-]+", file.name):
        yield Finding(
            "failed", f"cron skips {file}: its name may have letters, digits, - and _ only", f"mv {file} {_plain(file)}"
        )
    if table.in_folder or file.name == "crontab":
        if table.owner != root:
            yield Finding("failed", f"cron skips {file}: it is not root's", f"chown root:root {file}")
        if table.mode & (stat.S_IWGRP | stat.S_IWOTH):
            yield Finding("failed", f"cron skips {file}: others may write it", f"chmod 0644 {file}")
    if not table.ends:
        yield Finding("failed", f"cron skips {file}: its last line does not end", f"echo >> {file}")


def _plain(file: Path) -> Path:
    return file.with_name(re.sub(r"[^A-Za-z0-9_-]+", "-", file.name.partition(".")[0]) or "servicectl")


def _in_table(table: CronTable, machine: Machine) -> Iterator[Finding]:
    for name, value in table.settings.items():
        if "$" in value and name != "MAILTO":
            yield Finding(
                "failed", f"{table.file}: cron takes {name}={value} as it stands there", "write the value out"
            )
    for name in ("CRON_TZ", "TZ"):
        if name in table.settings:
            yield Finding(
                "warning",
                f"{table.file}: Debian's cron starts nothing by {name}; its times are those of {machine.zone}",
                f"write the times in {machine.zone}, or use systemd's timers",
            )


def _in_lines(table: CronTable, known: Mapping[str, Schedule], machine: Machine) -> Iterator[Finding]:
    for line in table.lines:
        yield from _program_of(line, machine)
        if re.search(r"(?<!\\)%", line.text):
            yield Finding("failed", f"{line.name}: an unescaped % ends the command there", r"write \%")
        if line.command.job == RESUME or line.calendar == "@reboot":
            continue
        schedule = known.get(line.command.job)
        yield from _how_it_goes_by_slots(line.name, line.command.job, schedule, scheduled=line.command.scheduled)
        if schedule is None or not line.command.scheduled:
            continue
        own = Schedule(line.name, line.calendar, machine.zone, "skip", _DAY, timedelta(0))
        try:
            came = _next(own, machine.now, _COMPARED)
        except ConfigError as error:
            yield Finding("failed", f"{line.name}: {error.message.partition(': ')[2]}", "correct that line")
            continue
        unzoned = schedule.zone != machine.zone
        without = f", for cron goes by the machine's zone, {machine.zone}" if unzoned else ""
        cure = f"the same time for both: edit the line, or cron and zone in [schedules.{schedule.name}]"
        yield from _disagreement(line.name, came, schedule, machine.now, without, cure)


def _program_of(line: CronLine, machine: Machine) -> Iterator[Finding]:
    program = line.command.program
    places = [program] if "/" in program else [f"{folder}/{program}" for folder in line.path.split(":") if folder]
    if not any(machine.is_program(place) for place in places):
        where = "which is not there" if "/" in program else f"which is nowhere on its PATH, {line.path}"
        cure = f"put the folder of `command -v servicectl` on the PATH= of {line.file}, or a link into /usr/local/bin"
        yield Finding("failed", f"{line.name} starts {program}, {where}", cure)


# -- both ---------------------------------------------------------------------------------------------------------------


def _how_it_goes_by_slots(name: str, job: str, schedule: Schedule | None, *, scheduled: bool) -> Iterator[Finding]:
    if scheduled and schedule is None:
        yield Finding(
            "failed",
            f'{name} starts {job} for slots, and there are none: cron = "{NEVER}"',
            f"cron in [schedules.{job}]",
        )
    if not scheduled and schedule is not None:
        yield Finding(
            "warning",
            f"{name} starts {job} without --scheduled: its runs are no slots, and missed ones are not seen",
            f'add --scheduled, or set cron = "{NEVER}" in [schedules.{job}]',
        )


def _disagreement(
    name: str, came: Sequence[datetime], schedule: Schedule, now: datetime, without: str, cure: str
) -> Iterator[Finding]:
    """Whether the next starts are the next slots; days at which clocks change are left out, for rules differ there."""
    if not came:
        yield Finding("failed", f"{name} never comes", cure)
        return
    until = min(max(came), now + 400 * _DAY)
    slots = schedule.slots(now, until)
    usual = {moment for moment in {*came, *slots} if moment <= until and not _clocks_change(moment, schedule.zone)}
    early, missed = sorted(usual - set(slots)), sorted(usual - set(came))
    if early:
        yield Finding(
            "failed",
            f"{name} comes at {_moment(early[0])}, which is no slot of [schedules.{schedule.name}]{without}",
            cure,
        )
    elif missed:
        yield Finding(
            "failed",
            f"{name} does not come at {_moment(missed[0])}, a slot of [schedules.{schedule.name}]{without}",
            cure,
        )


def _clocks_change(moment: datetime, zone: str) -> bool:
    if zone.startswith("/") or zone == "UTC":
        return False
    there = ZoneInfo(zone)
    return (moment - _DAY).astimezone(there).utcoffset() != (moment + _DAY).astimezone(there).utcoffset()


def _doubles(timers: Sequence[Timer], lines: Sequence[CronLine]) -> Iterator[Finding]:
    for job in JOBS:
        ours = [timer for timer in timers if timer.command.job == job]
        units = {timer.name for timer in ours}
        theirs = [line for line in lines if line.command.job == job and not line.unless & units]
        names = [timer.name if timer.user is None else f"{timer.user}'s {timer.name}" for timer in ours]
        names += [line.name for line in theirs]
        if len(names) > 1:
            scheduled = all(
                command.scheduled for command in [one.command for one in ours] + [one.command for one in theirs]
            )
            once = "; each slot still runs once" if scheduled else ""
            yield Finding("warning", f"{job} is started by {' and '.join(names)}{once}", "leave one of them")


def _missing(timers: Sequence[Timer], lines: Sequence[CronLine], known: Mapping[str, Schedule]) -> Iterator[Finding]:
    jobs = {timer.command.job for timer in timers} | {line.command.job for line in lines}
    made_up = [name for name, one in known.items() if one.missed != "skip" and name in jobs]
    if made_up and RESUME not in jobs:
        yield Finding(
            "warning",
            f"nothing starts `servicectl jobs resume`: missed slots of {', '.join(made_up)} are not made up for",
            "systemctl enable --now servicectl-resume.timer, or its line of the crontab",
        )


def _next(schedule: Schedule, after: datetime, count: int) -> list[datetime]:
    found: list[datetime] = []
    while len(found) < count and (coming := schedule.next_slot(found[-1] if found else after)) is not None:
        found.append(coming)
    return found


def _union(answers: Sequence[list[datetime] | None]) -> list[datetime] | None:
    """The next moments of several calendars together, as far as each of them was told."""
    told = [answer for answer in answers if answer is not None]
    if len(told) < len(answers) or not answers:
        return None
    horizon = min((answer[-1] for answer in told if len(answer) == _COMPARED), default=None)
    return sorted({moment for answer in told for moment in answer if horizon is None or moment <= horizon})


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _span(seconds: float) -> str:
    if seconds == float("inf"):
        return "for ever"
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def states_of(timers: Sequence[Timer]) -> dict[str, dict[str, str]]:
    """What the running system manager says of its timers; nothing where it cannot be asked."""
    names = [timer.name for timer in timers if timer.user is None]
    command = ["systemctl", "show", "--property=Id,ActiveState,NeedDaemonReload", *names]
    told = _asked(command) if names else None
    blocks = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in (told or "").split("\n\n")
    ]
    return {block["Id"]: block for block in blocks if "Id" in block}


def own_table() -> str:
    """`crontab -l`; empty where there is none."""
    return _asked(["crontab", "-l"]) or ""


def by_systemd(calendar: str, after: datetime, count: int) -> list[datetime] | None:
    """What systemd itself makes of an OnCalendar=: nothing of one it refuses; None where it is not installed."""
    base = f"--base-time=@{int(after.timestamp())}"
    if shutil.which("systemd-analyze") is None:
        return None
    told = _asked(["systemd-analyze", "calendar", f"--iterations={count}", base, calendar])
    found = re.findall(r"\w{3} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", told or "")
    return sorted({datetime.fromisoformat(text).replace(tzinfo=UTC) for text in found})


def _asked(command: Sequence[str]) -> str | None:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        told = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if told.returncode else told.stdout
