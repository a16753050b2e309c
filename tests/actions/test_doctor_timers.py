"""The traps of timers and cron tables, each laid out below a folder that stands for a machine."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from servicectl.actions.doctor import examine
from servicectl.actions.doctor_timers import Finding, Machine, by_systemd, findings
from servicectl.actions.installed_timers import read, span_s
from servicectl.actions.slots import schedules
from servicectl.actions.world import World
from servicectl.clock import SYSTEM
from servicectl.config import load
from servicectl.jobs.slots import Schedule, machine_zone
from tests.parts import ROOT, program

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
JOBS = ("sync-production", "drift-check", "retrain", "resume")
SCHEDULES = [
    Schedule("drift-check", "0 1 * * *", "Etc/UTC", "skip", timedelta(days=7), timedelta(minutes=30)),
    Schedule("retrain", "0 2 * * 0", "Etc/UTC", "latest", timedelta(days=7), timedelta(minutes=30)),
]


@dataclass
class Laid:
    """A machine's files below a folder; the shipped units and crontab on request."""

    root: Path

    def __post_init__(self) -> None:
        self.write("usr/local/bin/servicectl", "#!/bin/sh\n", mode=0o755)
        self.zone("Etc/UTC")

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    def zone(self, name: str) -> None:
        link = self.root / "etc/localtime"
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"/usr/share/zoneinfo/{name}")

    def units(self, *enabled: str) -> Laid:
        shutil.copytree(ROOT / "deploy/systemd", self.root / "etc/systemd/system", dirs_exist_ok=True)
        for job in enabled or JOBS:
            self.enable(f"servicectl-{job}.timer")
        return self

    def enable(self, timer: str, folder: str = "etc/systemd/system") -> None:
        link = self.root / folder / "timers.target.wants" / timer
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../{timer}")

    def drop_in(self, unit: str, text: str) -> Laid:
        self.write(f"etc/systemd/system/{unit}.d/override.conf", text)
        return self

    def crontab(self, change: tuple[str, str] = ("", ""), name: str = "servicectl") -> Path:
        text = (ROOT / "deploy/crontab").read_text()
        assert change[0] in text
        return self.write(f"etc/cron.d/{name}", text.replace(*change) if change[0] else text)

    def found(self, schedules: list[Schedule] = SCHEDULES) -> list[Finding]:
        program("systemd-analyze")
        machine = Machine(machine_zone(self.root), NOW, by_systemd, self.is_program)
        return findings(read(self.root), schedules, machine)

    def is_program(self, path: str) -> bool:
        return os.access(self.root / path.lstrip("/"), os.X_OK)

    def says(self, schedules: list[Schedule] = SCHEDULES) -> str:
        """The one finding, in one line."""
        [one] = self.found(schedules)
        assert one.cure
        return f"{one.health}: {one.says}".replace(f"{self.root}/", "/")


@pytest.fixture
def laid(tmp_path: Path) -> Laid:
    return Laid(tmp_path)


# --- as shipped ---


def test_the_shipped_units_have_no_trap(laid: Laid) -> None:
    assert laid.units().found() == []


def test_the_shipped_crontab_has_no_trap(laid: Laid) -> None:
    laid.crontab()

    assert laid.found() == []


def test_the_shipped_crontab_gives_way_to_the_shipped_timers(laid: Laid) -> None:
    laid.units("drift-check", "resume").crontab()

    assert laid.found() == []


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_shipped_units_and_crontab_agree_with_the_defaults_in_every_zone(laid: Laid, zone: str) -> None:
    """Also across both changes of the clocks, where systemd leaves Sunday 02:00 out."""
    laid.zone(zone)
    laid.units().crontab()
    ours = [replace(schedule, zone=zone) for schedule in SCHEDULES]

    for month in (2, 3, 10, 11):
        machine = Machine(zone, NOW.replace(month=month, day=20), by_systemd, laid.is_program)
        assert findings(read(laid.root), ours, machine) == []


# --- timers ---


def test_a_long_random_delay_on_a_timer_that_makes_up_for_missed_runs(laid: Laid) -> None:
    laid.units().drop_in("servicectl-retrain.timer", "[Timer]\nRandomizedDelaySec=20min\n")

    assert laid.says().startswith(
        "warning: servicectl-retrain.timer makes up for a missed run up to 20 min after a boot"
    )


def test_a_delay_beyond_the_grace_of_its_schedule(laid: Laid) -> None:
    laid.units().drop_in("servicectl-drift-check.timer", "[Timer]\nRandomizedDelaySec=1h\n")

    assert "servicectl-drift-check.timer may come 1.01667 h after its slot" in laid.says()


def test_a_timer_at_another_time_than_its_schedule(laid: Laid) -> None:
    laid.units().drop_in("servicectl-drift-check.timer", "[Timer]\nOnCalendar=\nOnCalendar=*-*-* 05:30:00\n")

    assert laid.says() == (
        "failed: servicectl-drift-check.timer comes at 2026-11-24 05:30 UTC, which is no slot of [schedules.drift-check]"
    )


def test_a_timer_that_leaves_slots_out(laid: Laid) -> None:
    twice = replace(SCHEDULES[0], cron="0 1,13 * * *")

    assert laid.units().says([twice, SCHEDULES[1]]) == (
        "failed: servicectl-drift-check.timer does not come at 2026-11-23 13:00 UTC, a slot of [schedules.drift-check]"
    )


def test_several_calendars_of_one_timer_count_together(laid: Laid) -> None:
    twice = replace(SCHEDULES[0], cron="0 1,13 * * *")
    laid.units().drop_in("servicectl-drift-check.timer", "[Timer]\nOnCalendar=*-*-* 13:00:00\n")

    assert laid.found([twice, SCHEDULES[1]]) == []


def test_a_rare_calendar_beside_a_frequent_one_is_no_gap(laid: Laid) -> None:
    laid.units().drop_in("servicectl-drift-check.timer", "[Timer]\nOnCalendar=*-01-01 01:00:00\n")

    assert laid.found() == []


def test_a_calendar_that_systemd_refuses(laid: Laid) -> None:
    laid.units().drop_in("servicectl-drift-check.timer", "[Timer]\nOnCalendar=\nOnCalendar=at night\n")

    assert laid.says() == "failed: servicectl-drift-check.timer never comes"


def test_without_systemd_nobody_can_tell_when_a_timer_comes(laid: Laid) -> None:
    laid.units().drop_in("servicectl-drift-check.timer", "[Timer]\nOnCalendar=*-*-* 07:00:00\n")
    machine = Machine("Etc/UTC", NOW, lambda *_asked: None, laid.is_program)

    assert findings(read(laid.root), SCHEDULES, machine) == []


def test_a_timer_without_the_zone_that_its_schedule_has(laid: Laid) -> None:
    berlin = replace(SCHEDULES[0], zone="Europe/Berlin")
    laid.units()

    assert laid.says([berlin, SCHEDULES[1]]).endswith("for it names no zone and this machine's is Etc/UTC")
    laid.drop_in("servicectl-drift-check.timer", "[Timer]\nOnCalendar=\nOnCalendar=*-*-* 01:00:00 Europe/Berlin\n")
    assert laid.found([berlin, SCHEDULES[1]]) == []


def test_two_timers_for_one_job(laid: Laid) -> None:
    laid.units()
    laid.write("usr/lib/systemd/system/nightly.timer", "[Timer]\nOnCalendar=*-*-* 01:00:00\nUnit=drift.service\n")
    laid.write(
        "usr/lib/systemd/system/drift.service",
        "[Service]\nExecStart=/usr/local/bin/servicectl --config /etc/ours.toml drift-check\n",
    )
    assert laid.found() == []
    laid.enable("nightly.timer", "run/systemd/system")

    says = [one.says for one in laid.found()]

    assert "drift-check is started by nightly.timer and servicectl-drift-check.timer" in says
    assert any(one.startswith("nightly.timer starts drift-check without --scheduled") for one in says)


def test_a_unit_that_was_copied_from_an_older_release_knows_of_no_slots(laid: Laid) -> None:
    laid.units().drop_in(
        "servicectl-retrain.service", "[Service]\nExecStart=\nExecStart=/usr/local/bin/servicectl retrain --all\n"
    )

    assert laid.says().startswith("warning: servicectl-retrain.timer starts retrain without --scheduled")


def test_a_timer_for_slots_that_there_are_none_of(laid: Laid) -> None:
    assert 'there are none: cron = "never"' in laid.units().says([SCHEDULES[1]])


def test_a_program_that_is_not_where_the_unit_looks(laid: Laid) -> None:
    (laid.root / "usr/local/bin/servicectl").rename(laid.root / "usr/local/bin/elsewhere")

    found = laid.units("drift-check", "resume").found()

    assert {one.says for one in found} == {
        f"servicectl-{job}.timer starts /usr/local/bin/servicectl, which is not there"
        for job in ("drift-check", "resume")
    }


def test_a_masked_timer_and_one_that_is_not_enabled_are_none(laid: Laid) -> None:
    laid.units("drift-check", "resume")
    masked = laid.root / "etc/systemd/system/servicectl-drift-check.timer"
    masked.unlink()
    masked.symlink_to("/dev/null")

    assert [timer.name for timer in read(laid.root).timers] == ["servicectl-resume.timer"]


def test_an_administrators_unit_hides_the_packages_and_drop_ins_of_a_prefix_count(laid: Laid) -> None:
    laid.units()
    laid.write("usr/lib/systemd/system/servicectl-retrain.timer", "[Timer]\nOnCalendar=hourly\n")
    laid.write("run/systemd/system/servicectl-.timer.d/90.conf", "[Timer]\nRandomizedDelaySec=1h 30min\n")
    laid.write("etc/systemd/system/servicectl-.timer.d/90.conf", "[Timer]\nRandomizedDelaySec=7min\n")

    [retrain] = [timer for timer in read(laid.root).timers if timer.name == "servicectl-retrain.timer"]

    assert (retrain.calendars, retrain.delay_s, retrain.persistent) == (("Sun *-*-* 02:00:00",), 420.0, True)


def test_nothing_that_would_make_up_for_missed_slots(laid: Laid) -> None:
    assert (
        laid.units("sync-production", "drift-check", "retrain")
        .says()
        .startswith("warning: nothing starts `servicectl jobs resume`: missed slots of retrain are not made up for")
    )


def test_a_unit_that_others_may_change(laid: Laid) -> None:
    laid.units()
    (laid.root / "etc/systemd/system/servicectl-resume.service").chmod(0o664)

    assert (
        laid.says() == "warning: others may change /etc/systemd/system/servicectl-resume.service, which the system runs"
    )


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"ActiveState": "active", "NeedDaemonReload": "yes"}, "systemd goes by an older servicectl-resume.timer"),
        ({"ActiveState": "inactive", "NeedDaemonReload": "no"}, "servicectl-resume.timer is enabled, but not started"),
    ],
)
def test_what_the_running_system_manager_says_otherwise(laid: Laid, state: dict[str, str], says: str) -> None:
    states = {"servicectl-resume.timer": state}
    machine = Machine("Etc/UTC", NOW, by_systemd, laid.is_program, states)

    [one] = findings(read(laid.units().root), SCHEDULES, machine)

    assert one.says.startswith(says)


# --- a user's own timers ---


def test_a_users_timer_runs_only_while_the_user_lingers(laid: Laid) -> None:
    home = laid.root / "home/ann"
    for file in ("servicectl-resume.timer", "servicectl-resume.service"):
        laid.write(f"home/ann/.config/systemd/user/{file}", (ROOT / "deploy/systemd" / file).read_text())
    laid.enable("servicectl-resume.timer", "home/ann/.config/systemd/user")
    machine = Machine("Etc/UTC", NOW, by_systemd, laid.is_program)

    [one] = findings(read(laid.root, home, "ann"), SCHEDULES, machine)
    laid.write("var/lib/systemd/linger/ann", "")

    assert one.says == "servicectl-resume.timer is ann's own and runs only while ann is logged in"
    assert one.cure == "loginctl enable-linger ann"
    assert findings(read(laid.root, home, "ann"), SCHEDULES, machine) == []


# --- cron ---


@pytest.mark.parametrize("name", ["servicectl.cron", "servicectl.dpkg-new", "service ctl"])
def test_a_name_that_cron_skips(laid: Laid, name: str) -> None:
    laid.crontab(name=name)

    [one] = laid.found()

    assert one.health == "failed"
    assert one.says.endswith(f"etc/cron.d/{name}: its name may have letters, digits, - and _ only")


def test_a_table_that_cron_skips_starts_nothing_twice(laid: Laid) -> None:
    laid.units()
    laid.write("etc/cron.d/ours.cron", "PATH=/usr/local/bin\n*/5 * * * * root servicectl jobs resume\n")

    assert laid.says().startswith("failed: cron skips /etc/cron.d/ours.cron")


def test_a_table_that_others_may_write(laid: Laid) -> None:
    laid.crontab().chmod(0o664)

    assert laid.says() == "failed: cron skips /etc/cron.d/servicectl: others may write it"


def test_a_table_that_is_not_roots(laid: Laid) -> None:
    laid.crontab()
    installed = replace(read(laid.root), owner=12345)

    [one] = findings(installed, SCHEDULES, Machine("Etc/UTC", NOW, by_systemd, laid.is_program))

    assert one.says.endswith("etc/cron.d/servicectl: it is not root's")


def test_a_last_line_without_its_end(laid: Laid) -> None:
    file = laid.crontab()
    file.write_text(file.read_text().rstrip("\n"))

    assert laid.says() == "failed: cron skips /etc/cron.d/servicectl: its last line does not end"


def test_a_path_on_which_the_program_is_not(laid: Laid) -> None:
    laid.crontab(("PATH=/usr/local/bin:/usr/bin:/bin\n", "PATH=/usr/bin:/bin\n"))

    found = laid.found()

    assert [one.health for one in found] == ["failed"] * 4
    assert all("starts servicectl, which is nowhere on its PATH, /usr/bin:/bin" in one.says for one in found)


def test_without_a_path_cron_has_a_short_one_of_its_own(laid: Laid) -> None:
    laid.crontab(("PATH=/usr/local/bin:/usr/bin:/bin\n", ""))

    assert all("nowhere on its PATH, /usr/bin:/bin" in one.says for one in laid.found())
    assert len(laid.found()) == 4


def test_a_variable_in_an_assignment_which_cron_takes_as_it_stands(laid: Laid) -> None:
    laid.crontab(("PATH=/usr/local/bin:", "PATH=/usr/local/bin:$HOME/bin:"))

    assert laid.says() == (
        "failed: /etc/cron.d/servicectl: cron takes PATH=/usr/local/bin:$HOME/bin:/usr/bin:/bin as it stands there"
    )


def test_a_zone_that_debians_cron_does_not_go_by(laid: Laid) -> None:
    laid.crontab(("MAILTO", "CRON_TZ=Europe/Berlin\nMAILTO"))

    assert laid.says().startswith("warning: /etc/cron.d/servicectl: Debian's cron starts nothing by CRON_TZ")


def test_a_line_in_another_zone_than_its_schedule(laid: Laid) -> None:
    laid.crontab()
    berlin = replace(SCHEDULES[0], zone="Europe/Berlin")

    assert laid.says([berlin, SCHEDULES[1]]).endswith("for cron goes by the machine's zone, Etc/UTC")


def test_a_line_at_another_time_than_its_schedule(laid: Laid) -> None:
    laid.crontab(("0 2 * * 0 servicectl", "0 3 * * 0 servicectl"))

    assert "comes at 2026-11-29 03:00 UTC, which is no slot of [schedules.retrain]" in laid.says()


def test_a_line_that_cron_cannot_read(laid: Laid) -> None:
    laid.crontab(("0 2 * * 0 servicectl", "0 25 * * 0 servicectl"))

    assert laid.says().endswith("'0 25 * * 0': Bad hour")


def test_an_unescaped_percent_sign(laid: Laid) -> None:
    laid.crontab(("servicectl jobs resume", "servicectl jobs resume $(date +%s)"))

    assert laid.says().endswith("an unescaped % ends the command there")


def test_a_timer_and_a_line_that_does_not_give_way_to_it(laid: Laid) -> None:
    laid.units()
    laid.write("var/spool/cron/crontabs/ann", "PATH=/usr/local/bin\n*/5 * * * * servicectl jobs resume\n", mode=0o600)

    says = laid.says()

    assert says.startswith("warning: resume is started by servicectl-resume.timer and ")
    assert says.endswith("var/spool/cron/crontabs/ann:2")


def test_a_line_of_the_systems_own_table_and_a_nickname(laid: Laid) -> None:
    laid.write("etc/crontab", "PATH=/usr/local/bin\n@daily root servicectl drift-check --scheduled\n")

    [table] = read(laid.root).tables
    assert [(line.calendar, line.command.job, line.line) for line in table.lines] == [("0 0 * * *", "drift-check", 2)]
    assert laid.says().endswith("comes at 2026-11-24 00:00 UTC, which is no slot of [schedules.drift-check]")


def test_what_only_looks_like_a_start_of_ours_is_none(laid: Laid) -> None:
    laid.write(
        "etc/cron.d/others",
        "0 1 * * * root logger -t servicectl drift-checked\n"
        "0 1 * * * root servicectl retrain Churn\n"
        "0 1 * * * root /opt/servicectl-backup drift-check\n"
        "# 0 1 * * * root servicectl drift-check\n"
        "0 1 * * *\n",
    )

    assert read(laid.root).tables == ()
    assert laid.found() == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        ("10min", 600.0),
        ("1h 30min", 5400.0),
        ("12h", 43200.0),
        ("1.5d", 129600.0),
        ("infinity", float("inf")),
    ],
)
def test_a_span_is_read_as_systemd_does(text: str, seconds: float) -> None:
    assert span_s(text) == seconds


# --- the command ---


def test_doctor_tells_what_is_scheduled_and_each_trap_on_a_line_of_its_own(laid: Laid, tmp_path: Path) -> None:
    file = laid.write(
        "servicectl.toml", f'[state]\nfolder = "{tmp_path}/state"\n[redis]\nurl = "redis://127.0.0.1:1/0"\n'
    )
    world = World(load(file, {}), replace(SYSTEM, now=lambda: NOW))
    assert [schedule.name for schedule in schedules(world)] == ["drift-check", "retrain"]

    def told() -> list[tuple[str, str]]:
        return [(check.health, check.says) for check in examine(world, laid.root) if check.party == "timers"]

    assert told() == [("warning", "not scheduled: sync-production, drift-check, retrain, resume")]
    laid.crontab()
    zone = machine_zone()  # of the schedules: the one of the machine that the tests run on
    laid.zone(zone) if zone != "/etc/localtime" else None
    assert told() == [("ok", "cron runs all four")]
    laid.units("drift-check")
    assert told() == [("ok", "systemd and cron share them")]
    laid.units("sync-production", "retrain", "resume")
    assert told() == [("ok", "systemd runs all four")]
