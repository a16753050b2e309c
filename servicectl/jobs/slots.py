"""Which calendar slots of a schedule are due, and what to do about those that nobody started in time.

A slot is the moment, in UTC, at which a schedule's timer should start it. Everything here is a pure function of the
schedule, what was decided before, and the time; servicectl/jobs/slots_table.py makes a decision and its jobs durable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Literal, NamedTuple

from servicectl.errors import ConfigError

Missed = Literal["skip", "latest", "all"]

REMEMBERED = 1000
"""Of an outage's slots so many, the newest, are decided one by one; older ones are passed over without a record."""

EARLY = timedelta(seconds=10)
"""A timer's start so shortly before a slot is that slot's: a clock may be set back a little just then."""

_INSTANT = timedelta(microseconds=1)
"""Before a moment that may be a slot's, which has a record of its own."""

_LOCALTIME = "/etc/localtime"


@dataclass(frozen=True)
class Schedule:
    """Five cron fields in a time zone (IANA name), and what to do about missed slots.

    `missed`: "skip" makes up for none, "latest" for the newest, "all" for each; none older than `max_age`. A slot is
    its timer's for `grace`; only then it was missed.
    """

    name: str
    cron: str
    zone: str
    missed: Missed
    max_age: timedelta
    grace: timedelta

    @property
    def fingerprint(self) -> str:
        """What makes slots; another one is another schedule, and begins anew."""
        return f"{' '.join(self.cron.split())} {self.zone}"

    def validate(self) -> None:
        """Raises ConfigError for fields or a zone that cannot be understood."""
        next(iter(self._from(datetime(2000, 1, 1, tzinfo=UTC))), None)

    def next_slot(self, after: datetime) -> datetime | None:
        """The first slot after a moment; None if there is none within 50 years. Raises ConfigError."""
        return next((slot for slot in self._from(after) if slot > after), None)

    def slots(self, after: datetime, until: datetime, limit: int = REMEMBERED) -> list[datetime]:
        """The newest `limit` slots in (after, until], oldest first. Raises ConfigError."""
        # Looking further and further back: from the far end, a long outage of a busy schedule would take seconds.
        span = timedelta(hours=1)
        while True:
            start = max(after, until - span)
            found = []
            for slot in self._from(start):
                if slot > until:
                    break
                if slot > start:
                    found.append(slot)
            if start == after or len(found) >= limit:
                return found[-limit:]
            span *= 2

    def _from(self, start: datetime) -> Iterator[datetime]:
        """Slots in UTC in rising order; the first may be before `start` where clocks go back.

        Debian cron's rules: at a fixed hour, a time that the clock leaps over counts as the first minute after the
        leap, and one that it shows twice counts once; an hour or a minute written with * follows elapsed time.
        """
        from cronsim import CronSim, CronSimError

        if len(self.cron.split()) != 5:
            raise self._misread("cron", f"{self.cron!r} has not five fields", 'write it like "0 1 * * *", or "never"')
        try:
            sequence = CronSim(self.cron, start.astimezone(_zone(self.zone)))
        except CronSimError as error:
            raise self._misread("cron", f"{self.cron!r}: {error}", 'write it like "0 1 * * *", or "never"') from None
        except (KeyError, ValueError, OSError):
            known = 'write an IANA name like "Europe/Berlin"'
            raise self._misread("zone", f"{self.zone!r} is no time zone this machine knows", known) from None
        for slot in sequence:
            yield slot.astimezone(UTC)

    def _misread(self, key: str, what: str, cure: str) -> ConfigError:
        return ConfigError(f"schedules.{self.name}.{key}: {what}", cure=cure)


def _zone(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo

    if name == _LOCALTIME:
        with Path(_LOCALTIME).open("rb") as file:
            return ZoneInfo.from_file(file, key=_LOCALTIME)
    return UTC if name in ("UTC", "Etc/UTC") else ZoneInfo(name)


def machine_zone(root: Path = Path("/")) -> str:
    """The zone that systemd and cron go by.

    $TZ is left out: an operator's shell may have another than the timers' processes, and the schedule would seem
    edited by each in turn.
    """
    file = root / "etc/localtime"
    _, found, name = str(file.resolve()).partition("/zoneinfo/")
    if file.is_symlink() and found:
        return name.removeprefix("posix/")
    return _LOCALTIME if file.exists() else "UTC"


@dataclass(frozen=True)
class Standing:
    """What is on record of a schedule, as of a moment.

    `until`: nothing up to here is to be decided any more. `ran`: slots after `until`, or near the present, that were
    run. `started`: its timer has come at least once and said so. What a clock that was ahead had decided to skip is not
    on record: its time has not come.
    """

    fingerprint: str | None = None
    until: datetime | None = None
    started: bool = False
    ran: frozenset[datetime] = frozenset()


class Decision(NamedTuple):
    slot: datetime
    what: Literal["run", "skip"]
    reason: str


class Decided(NamedTuple):
    """`since`: where a schedule that is new to us or to its timer begins to count; None for a known one."""

    since: datetime | None
    decisions: tuple[Decision, ...]


def decide(schedule: Schedule, standing: Standing, now: datetime, *, by_timer: bool) -> Decided:
    """What becomes of every slot that is due, oldest first, each exactly once. Raises ConfigError.

    `by_timer`: the schedule's own timer has just fired. Anybody else leaves a slot to its timer for `grace`.
    A schedule that was never seen, or was edited, has no past: of what lies before now only the slot that its timer
    has come for counts. Until its timer has come once, nothing is made up for: what starts it may know of no slots,
    and then ran them all without a record.
    """
    if standing.fingerprint != schedule.fingerprint or standing.until is None:
        return _first_sight(schedule, standing, now, by_timer=by_timer)
    since = None
    if not standing.started:
        if not by_timer:
            return Decided(None, ())
        since = now - _INSTANT
        schedule = replace(schedule, missed="latest" if schedule.missed == "all" else schedule.missed)
    until = now + EARLY if by_timer else now
    due = [slot for slot in schedule.slots(standing.until, until) if slot not in standing.ran]
    if not due:
        return Decided(since, ())
    on_time = now - due[-1] <= schedule.grace
    # One that came after other missed ones is not left to a timer that does not do its work.
    if on_time and not by_timer and (schedule.missed == "skip" or len(due) == 1):
        due.pop()
        on_time = False
    newest_ran = max(standing.ran, default=standing.until)
    return Decided(since, tuple(_each(schedule, due, now, newest_ran, on_time=on_time)))


def _first_sight(schedule: Schedule, standing: Standing, now: datetime, *, by_timer: bool) -> Decided:
    since = now - _INSTANT
    near = schedule.slots(now - schedule.grace, now + EARLY if by_timer else now, limit=1)
    if not by_timer:
        # Its timer may be on its way: until then there is nothing to remember.
        return Decided(None if near else since, ())
    return Decided(since, tuple(Decision(slot, "run", "on time") for slot in near if slot not in standing.ran))


def _each(
    schedule: Schedule, due: list[datetime], now: datetime, newest_ran: datetime, *, on_time: bool
) -> Iterator[Decision]:
    for slot in due:
        newest = slot is due[-1]
        if newest and on_time:
            yield Decision(slot, "run", "on time")
        elif schedule.missed == "skip":
            yield Decision(slot, "skip", "missed")
        elif now - slot > schedule.max_age:
            yield Decision(slot, "skip", "missed, and too old to make up for")
        elif schedule.missed == "latest" and (not newest or slot < newest_ran):
            yield Decision(slot, "skip", "missed, and a later one runs")
        else:
            yield Decision(slot, "run", "missed, made up for")
