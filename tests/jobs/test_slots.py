"""Slots under a clock that the tests own: outages, both changes of the hour, clocks set back and ahead, edits, races."""

from __future__ import annotations

import fcntl
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from servicectl.errors import ConfigError
from servicectl.jobs.model import NewJob
from servicectl.jobs.slots import Decision, Missed, Schedule, Standing, decide, machine_zone
from servicectl.jobs.slots_table import SlotTable, request_id
from servicectl.jobs.table import JobTable
from servicectl.store import Store
from tests.jobs.conftest import HandClock
from tests.parts import ROOT

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTLY = Schedule("check", "0 1 * * *", "UTC", "latest", timedelta(days=7), timedelta(minutes=30))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def berlin(text: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).astimezone(UTC)


def a_job(schedule: Schedule, decision: Decision) -> list[tuple[NewJob, int, int]]:
    return [(NewJob("work", "a-scope", {}, request_id=request_id(schedule, decision.slot), trigger="timer"), 1, 5)]


@dataclass
class Machine:
    """A machine with a state folder; its clock, timer and resume timer move by hand. Jobs end at once."""

    folder: Path
    hand: HandClock
    schedule: Schedule

    def __post_init__(self) -> None:
        self.table = SlotTable(Store(self.folder, clock=self.hand.clock), self.hand.clock)

    def at(self, moment: datetime) -> Machine:
        self.hand.moment = moment
        return self

    def timer(self) -> list[datetime]:
        """The timer of the schedule fires; what is run."""
        return self._take(by_timer=True)

    def resume(self) -> list[datetime]:
        """`jobs resume`; what is run."""
        return self._take(by_timer=False)

    def _take(self, *, by_timer: bool) -> list[datetime]:
        taken = self.table.take(self.schedule, lambda decision: a_job(self.schedule, decision), by_timer=by_timer)
        for job in taken.jobs:
            self._end(job.job_id)
        return [one.slot for one in taken.decisions if one.what == "run"]

    def _end(self, job_id: str) -> None:
        self.table.request_cancel(job_id)  # the shortest end there is

    def up(self, until: datetime, fires: Callable[[datetime], bool] = lambda _slot: True) -> list[datetime]:
        """Stay on until a moment: at every slot the timer, if it fires; resumes before and after slots, and at the end."""
        ran = []
        slots = {slot for slot in self.schedule.slots(self.hand.moment, until) if fires(slot)}
        around = (timedelta(minutes=minutes) for minutes in (-5, 0, 5, 25, 30, 35))
        near = self.schedule.slots(self.hand.moment, until)
        resumes = {moment for span in around for slot in near if self.hand.moment < (moment := slot + span) < until}
        for moment in sorted(slots | resumes):
            self.at(moment + timedelta(seconds=3))
            ran += self.timer() if moment in slots else []
            ran += self.resume() if moment in resumes else []
        return ran + self.at(until).resume()

    def record(self) -> list[tuple[datetime, str]]:
        return [(one.slot, f"{one.what}: {one.reason}") for one in self.table.decided(self.schedule.name, 1000)][::-1]


@pytest.fixture
def machine(tmp_path: Path, hand: HandClock) -> Machine:
    """On since noon of the 20th; its schedule is known, and 21 01:00 ran."""
    made = Machine(tmp_path, hand, NIGHTLY).at(utc("2026-11-20 12:00"))
    assert made.resume() == []
    assert made.at(utc("2026-11-21 01:00:03")).timer() == [utc("2026-11-21 01:00")]
    return made


def nights(*days: int, hour: int = 1) -> list[datetime]:
    return [datetime(2026, 11, day, hour, tzinfo=UTC) for day in days]


# --- without trouble ---


def test_each_slot_is_run_by_its_timer_and_by_nobody_else(machine: Machine) -> None:
    assert machine.up(utc("2026-11-23 12:00")) == nights(22, 23)
    assert machine.record() == [(slot, "run: on time") for slot in nights(21, 22, 23)]
    assert len(machine.table.newest()) == 3


def test_a_schedule_that_was_never_seen_has_no_past(tmp_path: Path, hand: HandClock) -> None:
    machine = Machine(tmp_path, hand, replace(NIGHTLY, missed="all")).at(utc("2026-11-20 12:00"))

    assert machine.timer() == []
    assert machine.up(utc("2026-11-21 12:00")) == nights(21)


def test_the_first_start_of_a_timer_is_its_slots_even_if_nobody_saw_the_schedule_before(
    tmp_path: Path, hand: HandClock
) -> None:
    machine = Machine(tmp_path, hand, NIGHTLY)

    assert machine.at(utc("2026-11-21 01:00:20")).resume() == []
    assert machine.at(utc("2026-11-21 01:07")).timer() == nights(21)
    assert machine.at(utc("2026-11-21 01:08")).timer() == []


def test_a_start_between_slots_finds_nothing_due(machine: Machine) -> None:
    assert machine.at(utc("2026-11-21 12:00")).timer() == []
    assert machine.at(utc("2026-11-21 01:00:03")).timer() == []
    assert machine.record() == [(nights(21)[0], "run: on time")]


def test_a_timer_that_fires_while_the_clock_is_set_back_by_seconds_gets_its_slot_once(machine: Machine) -> None:
    assert machine.at(utc("2026-11-22 00:59:58")).timer() == nights(22)
    assert machine.at(utc("2026-11-22 00:59:59")).timer() == []
    assert machine.at(utc("2026-11-22 01:00:03")).timer() == []
    assert machine.up(utc("2026-11-23 12:00")) == nights(23)


def test_until_its_timer_has_come_once_nothing_is_made_up_for(tmp_path: Path, hand: HandClock) -> None:
    machine = Machine(tmp_path, hand, replace(NIGHTLY, missed="all")).at(utc("2026-11-20 12:00"))

    assert machine.up(utc("2026-11-21 12:00"), fires=lambda _slot: False) == []
    assert machine.at(utc("2026-11-23 12:00")).resume() == []
    assert machine.record() == []
    # An older unit, which knew of no slots, ran those: its successor's first start is for one of them at most.
    assert machine.at(utc("2026-11-24 01:00:03")).timer() == nights(24)
    assert machine.at(utc("2026-11-26 12:00")).resume() == nights(25, 26)


def test_a_slot_missed_before_its_timer_ever_came_is_made_up_for_by_that_timers_first_start(
    tmp_path: Path, hand: HandClock
) -> None:
    machine = Machine(tmp_path, hand, NIGHTLY).at(utc("2026-11-20 12:00"))
    machine.resume()

    assert machine.at(utc("2026-11-21 10:00")).resume() == []
    assert machine.at(utc("2026-11-21 10:01")).timer() == nights(21)  # Persistent=true, after the boot


# --- an outage of three days ---


@pytest.mark.parametrize(
    ("missed", "max_age", "expected"),
    [
        ("skip", "7d", []),
        ("latest", "7d", [24]),
        ("latest", "5h", []),
        ("all", "7d", [22, 23, 24]),
        ("all", "36h", [23, 24]),
    ],
)
def test_after_three_days_off_exactly_what_the_policy_says_is_made_up_for(
    machine: Machine, missed: Missed, max_age: str, expected: list[int]
) -> None:
    age = {"7d": timedelta(days=7), "36h": timedelta(hours=36), "5h": timedelta(hours=5)}[max_age]
    machine.schedule = replace(NIGHTLY, missed=missed, max_age=age)
    machine.at(utc("2026-11-24 10:00"))

    assert machine.resume() == nights(*expected)
    assert machine.timer() == []
    assert machine.up(utc("2026-11-25 12:00")) == nights(25)
    assert [slot for slot, _ in machine.record()] == nights(21, 22, 23, 24, 25)
    ran = [slot for slot, decision in machine.record() if decision.startswith("run")]
    assert ran == nights(21, *expected, 25)
    assert len(machine.table.newest()) == len(ran)


@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
def test_a_boot_just_after_a_slot_leaves_that_slot_to_its_timer(machine: Machine, missed: Missed) -> None:
    machine.schedule = replace(NIGHTLY, missed=missed)

    assert machine.at(utc("2026-11-22 01:10")).resume() == []
    assert machine.at(utc("2026-11-22 01:11")).timer() == nights(22)
    assert machine.at(utc("2026-11-22 12:00")).resume() == []


@pytest.mark.parametrize(("missed", "expected"), [("skip", []), ("latest", nights(22)), ("all", nights(22))])
def test_a_slot_whose_timer_never_came_is_missed_once_the_grace_is_over(
    machine: Machine, missed: Missed, expected: list[datetime]
) -> None:
    machine.schedule = replace(NIGHTLY, missed=missed)

    assert machine.up(utc("2026-11-22 01:29"), fires=lambda _slot: False) == []
    assert machine.up(utc("2026-11-22 12:00"), fires=lambda _slot: False) == expected
    assert machine.timer() == []


def test_after_an_outage_that_ends_just_after_a_slot_the_latest_is_run_once(machine: Machine) -> None:
    assert machine.at(utc("2026-11-24 01:10")).resume() == nights(24)
    assert machine.at(utc("2026-11-24 01:11")).timer() == []
    assert machine.up(utc("2026-11-24 12:00")) == []


def test_a_busy_schedule_without_a_timer_is_still_run(tmp_path: Path, hand: HandClock) -> None:
    often = replace(NIGHTLY, cron="*/5 * * * *")
    machine = Machine(tmp_path, hand, often).at(utc("2026-11-20 12:00:30"))
    assert machine.timer() == [utc("2026-11-20 12:00")]

    ran = machine.up(utc("2026-11-20 13:00:30"), fires=lambda _slot: False)

    assert ran == [utc(f"2026-11-20 12:{minute}") for minute in range(10, 60, 10)] + [utc("2026-11-20 13:00")]


def test_years_without_power_are_decided_in_no_time_and_only_the_newest_slots_are_listed(machine: Machine) -> None:
    machine.schedule = replace(NIGHTLY, cron="* * * * *")
    machine.at(utc("2026-11-21 02:00")).timer()
    machine.at(utc("2046-11-21 02:00:03"))

    assert machine.resume() == [utc("2046-11-21 02:00")]
    assert len(machine.record()) == 1000
    assert machine.resume() == []


# --- the hour changes ---


def test_where_clocks_go_forward_a_slot_in_the_hour_that_is_left_out_is_run_right_after_it(
    tmp_path: Path, hand: HandClock
) -> None:
    schedule = replace(NIGHTLY, cron="30 2 * * *", zone="Europe/Berlin")
    machine = Machine(tmp_path, hand, schedule).at(berlin("2026-03-27 12:00"))
    machine.resume()

    # systemd's timers do not fire on such a day.
    ran = machine.up(berlin("2026-03-31 12:00"), fires=lambda slot: slot.astimezone(BERLIN).hour == 2)

    assert ran == [berlin(f"2026-03-{at}") for at in ("28 02:30", "29 03:00", "30 02:30", "31 02:30")]
    assert [decision for _, decision in machine.record()].count("run: missed, made up for") == 1


def test_where_clocks_go_back_a_slot_in_the_hour_that_comes_twice_is_run_once(tmp_path: Path, hand: HandClock) -> None:
    schedule = replace(NIGHTLY, cron="30 2 * * *", zone="Europe/Berlin")
    machine = Machine(tmp_path, hand, schedule).at(berlin("2026-10-24 12:00"))
    machine.resume()

    assert machine.at(berlin("2026-10-25 02:30:03", fold=0)).timer() == [berlin("2026-10-25 02:30", fold=0)]
    assert machine.at(berlin("2026-10-25 02:30:03", fold=1)).timer() == []
    assert machine.up(berlin("2026-10-27 12:00")) == [berlin("2026-10-26 02:30"), berlin("2026-10-27 02:30")]
    between = berlin("2026-10-25 02:10", fold=1)
    assert schedule.slots(between, berlin("2026-10-25 12:00")) == []
    assert schedule.next_slot(between) == berlin("2026-10-26 02:30")


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-11-01", 24)])
def test_an_hourly_schedule_follows_elapsed_time(day: str, hours: int) -> None:
    hourly = replace(NIGHTLY, cron="15 * * * *", zone="Europe/Berlin")
    midnight = berlin(f"{day} 00:00")
    next_midnight = (datetime.fromisoformat(day) + timedelta(days=1)).replace(tzinfo=BERLIN).astimezone(UTC)

    slots = hourly.slots(midnight, next_midnight)

    assert slots == [midnight + timedelta(hours=hour, minutes=15) for hour in range(hours)]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"])
@pytest.mark.parametrize("cron", ["0 1 * * *", "30 2 * * *", "0 2 * * 0", "*/20 1-3 * * *", "0,30 2,3 * * *"])
def test_wherever_one_begins_to_look_the_slots_of_a_year_are_the_same(zone: str, cron: str) -> None:
    schedule = replace(NIGHTLY, cron=cron, zone=zone)
    year = schedule.slots(utc("2026-01-01 00:00"), utc("2027-01-01 00:00"), limit=100_000)
    chance = random.Random(cron + zone)

    assert year == sorted(set(year))
    for _ in range(40):
        start = utc("2026-01-01 00:00") + timedelta(seconds=chance.randrange(360 * 86400))
        end = start + timedelta(days=3)
        assert schedule.slots(start, end) == [slot for slot in year if start < slot <= end]
        coming = schedule.next_slot(start)
        assert coming == next((slot for slot in year if slot > start), coming)


# --- a clock that is wrong ---


def test_a_clock_set_back_runs_nothing_twice_and_loses_nothing(machine: Machine) -> None:
    assert machine.at(utc("2026-11-22 01:00:03")).timer() == nights(22)

    machine.at(utc("2026-11-22 00:05"))

    assert machine.up(utc("2026-11-22 12:00")) == []
    assert machine.up(utc("2026-11-23 12:00")) == nights(23)


@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
def test_a_clock_set_back_by_days_and_right_again_repeats_nothing(machine: Machine, missed: Missed) -> None:
    machine.schedule = replace(NIGHTLY, missed=missed)
    made_up = machine.at(utc("2026-11-24 10:00")).resume()

    again = machine.at(utc("2026-11-23 12:00")).resume() + machine.up(utc("2026-11-23 18:00"))
    again += machine.at(utc("2026-11-24 11:00")).resume()

    assert again == []
    ran = [slot for slot, decision in machine.record() if decision.startswith("run")]
    assert ran == nights(21) + made_up


def test_a_clock_that_was_a_year_ahead_does_not_stop_a_schedule_for_a_year(machine: Machine) -> None:
    ahead = machine.at(utc("2027-11-22 12:00")).resume()
    assert ahead == [utc("2027-11-22 01:00")]

    machine.at(utc("2026-11-21 12:00"))

    assert machine.up(utc("2026-11-24 12:00")) == nights(22, 23, 24)


def test_a_slot_that_was_run_by_a_clock_ahead_is_not_run_again_when_its_time_comes(machine: Machine) -> None:
    assert machine.at(utc("2026-11-23 12:00")).resume() == nights(23)

    machine.at(utc("2026-11-21 12:00"))

    assert machine.up(utc("2026-11-24 12:00")) == nights(22, 24)


# --- an edited schedule ---


def test_an_edited_schedule_counts_from_the_edit_on_and_invents_no_past(machine: Machine) -> None:
    machine.at(utc("2026-11-21 12:00")).schedule = replace(NIGHTLY, cron="0 5 * * *", missed="all")

    assert machine.up(utc("2026-11-23 12:00")) == nights(22, 23, hour=5)


def test_what_the_old_schedule_missed_is_not_made_up_for_under_a_new_one(machine: Machine) -> None:
    machine.at(utc("2026-11-24 12:00")).schedule = replace(NIGHTLY, cron="0 11 * * *", missed="all")

    assert machine.resume() == []
    assert machine.up(utc("2026-11-25 12:00")) == nights(25, hour=11)


def test_an_edit_there_and_back_runs_no_slot_twice(machine: Machine) -> None:
    machine.at(utc("2026-11-22 01:00:03")).timer()
    machine.at(utc("2026-11-22 01:01")).schedule = replace(NIGHTLY, zone="Europe/Berlin")
    assert machine.resume() == []
    machine.at(utc("2026-11-22 01:02")).schedule = NIGHTLY

    assert machine.timer() == []
    assert machine.up(utc("2026-11-23 12:00")) == nights(23)


def test_a_changed_policy_is_no_edit_of_the_calendar(machine: Machine) -> None:
    machine.at(utc("2026-11-24 10:00")).schedule = replace(NIGHTLY, missed="all", max_age=timedelta(days=30))

    assert machine.resume() == nights(22, 23, 24)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_a_machine_that_moves_to_another_zone_begins_anew(machine: Machine, zone: str) -> None:
    machine.at(utc("2026-11-23 12:00")).schedule = replace(NIGHTLY, zone=zone, missed="all")

    assert machine.resume() == []


# --- whatever happens, in any order ---


@pytest.mark.parametrize("seed", range(3))
def test_in_any_order_of_events_no_slot_runs_twice(tmp_path: Path, hand: HandClock, seed: int) -> None:
    chance = random.Random(seed)
    missed: Sequence[Missed] = ("skip", "latest", "all")
    machine = Machine(tmp_path, hand, replace(NIGHTLY, missed=chance.choice(missed)))
    ran: Counter[datetime] = Counter()
    for _ in range(60):
        match chance.randrange(8):
            case 0:
                machine.hand.advance(-chance.choice([1, 3600, 90_000, 400_000]))
            case 1:
                cron = chance.choice(["0 1 * * *", "0 1,13 * * *", "0 */6 * * *"])
                machine.schedule = replace(machine.schedule, cron=cron, missed=chance.choice(missed))
            case 2:
                coming = machine.schedule.next_slot(machine.hand.moment)
                assert coming is not None
                machine.at(coming + timedelta(seconds=chance.choice([-2, 3, 600, 4000])))
            case _:
                machine.hand.advance(chance.choice([1, 300, 3600, 40_000, 200_000]))
        ran.update(chance.choice([machine.timer, machine.resume])())

    assert max(ran.values()) == 1
    assert len(machine.table.newest(limit=1000)) == len(ran)
    assert {slot for slot, decision in machine.record() if decision.startswith("run")} == set(ran)


# --- jobs and rows are one transaction ---


TAKER = """
import os, signal, sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from servicectl.clock import SYSTEM
from servicectl.jobs.slots_table import SlotTable
from servicectl.store import Store
from tests.jobs.test_slots import NIGHTLY, a_job
folder, moment, killed = sys.argv[1:]
def die(*given):
    os.kill(os.getpid(), signal.SIGKILL)
clock = replace(SYSTEM, now=lambda: datetime.fromisoformat(moment))
table = SlotTable(Store(Path(folder), clock=clock), clock)
sys.stdin.read()
taken = table.take(NIGHTLY, die if killed == "inside" else lambda one: a_job(NIGHTLY, one), by_timer=True)
if killed == "after":
    die()
print(len([one for one in taken.decisions if one.what == "run"]))
"""


def taker(folder: Path, moment: datetime, killed: str = "") -> subprocess.Popen[str]:
    """A process that takes what is due, once its stdin is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", TAKER, str(folder), moment.isoformat(), killed],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_of_timers_that_fire_at_once_one_gets_the_slot(machine: Machine) -> None:
    started = [taker(machine.folder, utc("2026-11-22 01:00:03")) for _ in range(3)]
    # All of them wait for the store before any of them gets it.
    with (machine.folder / "servicectl.duckdb.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
        limit = time.monotonic() + 120
        while not {process.pid for process in started} <= waiting_for_a_lock():
            assert time.monotonic() < limit
            time.sleep(0.02)
    told = []
    for process in started:
        assert process.stdout is not None
        told.append(process.stdout.read().strip())
        process.stdout.close()
        assert process.wait(60) == 0

    assert sorted(told) == ["0", "0", "1"]
    assert len(machine.table.newest()) == 2


def waiting_for_a_lock() -> set[int]:
    lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return {int(words[5]) for words in lines if words[1] == "->"}


def test_a_slot_whose_row_was_deleted_by_hand_still_has_the_job_it_had(machine: Machine) -> None:
    [before] = machine.table.newest()
    with Store(machine.folder).transaction() as connection:
        connection.execute("DELETE FROM slots")

    taken = machine.table.take(NIGHTLY, lambda one: a_job(NIGHTLY, one), by_timer=True)

    assert [job.job_id for job in taken.jobs] == [before.job_id]
    assert len(machine.table.newest()) == 1


def test_after_a_restore_nothing_from_before_it_is_made_up_for_since_nobody_knows_what_ran(machine: Machine) -> None:
    with Store(machine.folder).transaction() as connection:
        connection.execute("INSERT INTO restores VALUES ('2026-11-23 12:00:00', 'a backup of the 21st', 0)")

    assert machine.at(utc("2026-11-22 10:00")).resume() == nights(22)  # before the restore, it never happened
    assert machine.at(utc("2026-11-23 12:01")).resume() == []
    assert machine.up(utc("2026-11-25 12:00")) == nights(24, 25)


@pytest.mark.parametrize("killed", ["inside", "after"])
def test_a_process_killed_around_the_decision_leaves_both_the_slot_and_its_job_or_neither(
    machine: Machine, killed: str
) -> None:
    process = taker(machine.folder, utc("2026-11-22 01:00:03"), killed)
    process.communicate(timeout=60)
    assert process.returncode == -9

    waiting = machine.table.unfinished()
    again = machine.at(utc("2026-11-22 01:00:30")).timer()

    assert (len(waiting), again) == ((1, []) if killed == "after" else (0, nights(22)))
    assert len(machine.table.newest()) == 2


def test_a_slot_gets_a_job_of_its_own_behind_one_that_was_begun_and_shares_one_that_was_not(machine: Machine) -> None:
    jobs = JobTable(Store(machine.folder, clock=machine.hand.clock), machine.hand.clock)
    waiting = jobs.submit(NewJob("work", "a-scope", {}), step_schema=1, max_attempts=5).job
    machine.at(utc("2026-11-22 01:00:03"))

    shared = machine.table.take(NIGHTLY, lambda one: a_job(NIGHTLY, one), by_timer=True).jobs
    jobs.claim(waiting.job_id, {"pid": 1, "host": "here"})
    machine.at(utc("2026-11-23 01:00:03"))
    own = machine.table.take(NIGHTLY, lambda one: a_job(NIGHTLY, one), by_timer=True).jobs

    assert [job.job_id for job in shared] == [waiting.job_id]
    assert [job.job_id for job in own] not in ([], [waiting.job_id])
    assert jobs.answered("work", request_id(NIGHTLY, nights(22)[0])) is not None
    by_slot = machine.table.jobs_of_slots("check", nights(22, 23))
    assert {slot: [job.job_id for job in found] for slot, found in by_slot.items()} == {
        nights(22)[0]: [waiting.job_id],
        nights(23)[0]: [own[0].job_id],
    }


# --- what cannot be understood ---


@pytest.mark.parametrize("cron", ["", "0 1 * *", "* * * * * *", "61 * * * *", "0 1 31 2 *", "at noon every single day"])
def test_fields_that_are_none_are_a_configuration_error_by_name(cron: str) -> None:
    with pytest.raises(ConfigError, match=r"^schedules\.check\.cron: "):
        replace(NIGHTLY, cron=cron).validate()


@pytest.mark.parametrize("zone", ["Nowhere/Atlantis", "Europe", "../etc/passwd", ""])
def test_a_zone_that_is_none_is_a_configuration_error_by_name(zone: str) -> None:
    with pytest.raises(ConfigError, match=r"^schedules\.check\.zone: "):
        replace(NIGHTLY, zone=zone).validate()


def test_a_schedule_that_never_comes_has_no_slot() -> None:
    never = replace(NIGHTLY, cron="0 0 * 2 MON#5", zone="Europe/Berlin")

    assert decide(
        never,
        Standing(never.fingerprint, utc("2026-01-01 00:00"), started=True),
        utc("2026-12-31 00:00"),
        by_timer=True,
    ) == (
        None,
        (),
    )


def test_the_machines_zone_is_the_one_its_timers_go_by_not_a_shells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    (tmp_path / "etc").mkdir()
    assert machine_zone(tmp_path) == "UTC"
    (tmp_path / "etc/localtime").symlink_to("/usr/share/zoneinfo/Europe/Berlin")

    assert machine_zone(tmp_path) == "Europe/Berlin"
