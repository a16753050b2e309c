"""The shipped units and crontab, read by the programs that will read them in earnest."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from servicectl.actions.installed_timers import span_s
from servicectl.config_schedules import NEVER, SchedulesConfig
from tests.parts import ROOT, missing, program

UNITS = ROOT / "deploy/systemd"
CRONTAB = ROOT / "deploy/crontab"
INSTALLED = "/usr/local/bin/servicectl"
SHARED = "servicectl-.service.d/10-shared.conf"

SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
TIMERS = sorted(path.name for path in UNITS.glob("*.timer"))
WORKING = [name for name in SERVICES if "@" not in name]
ONESHOTS = [name for name in WORKING if name != "servicectl-listen.service"]


def run(*command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        env={**os.environ, "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0", **(env or {})},
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as an administrator would install them, their program replaced by one this machine has."""
    folder = tmp_path_factory.mktemp("units") / "units"
    shutil.copytree(UNITS, folder)
    for unit in folder.glob("*.service"):
        unit.write_text(unit.read_text().replace(INSTALLED, program("true")))
    return folder


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters="=", strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # keys keep their case; the documented way
    parser.read_string((UNITS / name).read_text())
    return parser


def commands_of_units() -> dict[str, list[str]]:
    return {name: shlex.split(unit(name)["Service"]["ExecStart"]) for name in WORKING}


def test_every_job_has_its_units() -> None:
    jobs = {"sync-production", "drift-check", "retrain", "resume"}

    assert {f"servicectl-{job}.timer" for job in jobs} == set(TIMERS)
    assert {f"servicectl-{job}.service" for job in jobs | {"listen"}} == set(WORKING)
    assert set(SERVICES) - set(WORKING) == {"servicectl-failed@.service"}


@pytest.mark.parametrize("name", [*SERVICES, *TIMERS, "servicectl.slice"])
def test_systemd_accepts_the_unit_without_a_word(installed: Path, name: str) -> None:
    verified = run(program("systemd-analyze"), "verify", str(installed / name))

    assert (verified.returncode, verified.stdout) == (0, "")


def test_systemd_reads_the_shared_settings_into_every_service(installed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "units"
    shutil.copytree(installed, broken)
    with (broken / SHARED).open("a") as file:
        file.write("NoSuchSettingAtAll=yes\n")

    for name in SERVICES:
        verified = run(program("systemd-analyze"), "verify", str(broken / name))
        assert "NoSuchSettingAtAll" in verified.stdout, name


@pytest.mark.parametrize("name", SERVICES)
def test_the_sandbox_is_tight(installed: Path, name: str) -> None:
    judged = run(
        program("systemd-analyze"), "security", "--offline=true", "--threshold=20", "--no-pager", str(installed / name)
    )

    assert judged.returncode == 0, judged.stdout


@pytest.mark.parametrize("name", TIMERS)
def test_a_timers_calendar_is_understood(name: str) -> None:
    timer = unit(name)["Timer"]
    if "OnCalendar" not in timer:
        assert "OnBootSec" in timer
        return

    read = run(program("systemd-analyze"), "calendar", "--iterations=2", timer["OnCalendar"])

    assert read.returncode == 0, read.stdout
    assert "Iter. #2" in read.stdout
    if name == "servicectl-retrain.timer":
        assert "Next elapse: Sun" in read.stdout
        assert "02:00:00" in read.stdout


@pytest.mark.parametrize("name", TIMERS)
def test_a_made_up_run_is_never_put_off_for_long(name: str) -> None:
    timer = unit(name)["Timer"]

    if "RandomizedDelaySec" in timer:
        assert timer["FixedRandomDelay"] == "true"
    if timer.get("Persistent") == "true":
        delay = re.fullmatch(r"(\d+)min", timer["RandomizedDelaySec"])
        assert delay
        assert int(delay[1]) <= 10
    if "OnCalendar" in timer:
        assert "Persistent" in timer, "the choice is made, not left to the default"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_bounded_and_says_why_it_is_stopped_as_it_is(name: str) -> None:
    service = unit(name)["Service"]

    for key in ("TimeoutStartSec", "MemoryMax", "CPUWeight", "KillMode", "Nice"):
        assert key in service, key
    assert service["TimeoutStartSec"] != "infinity"
    lines = (UNITS / name).read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("KillMode="))
    assert lines[at - 1].startswith("#")


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_leaves_the_common_slice_user_or_sandbox(name: str) -> None:
    shared = unit(SHARED)["Service"]

    assert (shared["Slice"], shared["User"], shared["StateDirectory"]) == ("servicectl.slice",) + ("servicectl",) * 2
    assert set(shared) & set(unit(name)["Service"]) == set()


@pytest.mark.parametrize("name", WORKING)
def test_a_failure_is_reported(name: str) -> None:
    assert unit(name)["Unit"]["OnFailure"] == "servicectl-failed@%n.service"


def test_the_report_of_a_failure_cannot_report_itself() -> None:
    assert "OnFailure" not in unit("servicectl-failed@.service")["Unit"]


@pytest.mark.parametrize("name", ONESHOTS)
def test_try_again_later_is_no_failure_of_a_timers_run(name: str) -> None:
    service = unit(name)["Service"]

    assert service["Type"] == "oneshot"
    assert service["SuccessExitStatus"] == "75"
    assert "Restart" not in service


def test_the_listener_is_started_again_unless_that_cannot_help() -> None:
    service = unit("servicectl-listen.service")["Service"]

    assert service["Restart"] == "on-failure"
    assert "SuccessExitStatus" not in service
    assert service["RestartPreventExitStatus"].split() == ["2", "78"]


def test_what_heals_or_publishes_first_does_not_wait_for_an_idle_disk() -> None:
    classes = {name: unit(name)["Service"]["IOSchedulingClass"] for name in WORKING}

    assert {name for name, kind in classes.items() if kind == "idle"} == {
        "servicectl-drift-check.service",
        "servicectl-retrain.service",
    }


def test_the_user_of_the_units_can_be_made() -> None:
    made = run(program("systemd-sysusers"), "--dry-run", str(UNITS / "sysusers.conf"))

    assert made.returncode == 0, made.stdout


# --- the crontab ---


ASSIGNMENT = re.compile(r"[A-Z_]+=")


def cron_lines() -> list[tuple[str, str, str]]:
    """(schedule, user, command) of every entry, cut as cron cuts a file of /etc/cron.d."""
    entries = []
    for line in CRONTAB.read_text().splitlines():
        if not line or line.startswith("#") or ASSIGNMENT.match(line):
            continue
        fields = 1 if line.startswith("@") else 5
        *schedule, user, command = line.split(maxsplit=fields + 1)
        entries.append((" ".join(schedule), user, command))
    return entries


def cron_environment() -> dict[str, str]:
    assignments = (line.partition("=") for line in CRONTAB.read_text().splitlines() if ASSIGNMENT.match(line))
    return {name: value.strip('"') for name, _, value in assignments}


def job_of(command: str) -> str:
    match = re.search(r"servicectl-([a-z-]+)\.timer", command)
    assert match
    return match[1]


CRON_JOBS = [job_of(command) for _, _, command in cron_lines()]


def test_cron_accepts_the_table(tmp_path: Path) -> None:
    crontab = program("crontab")
    if "-n" not in run(crontab, "-h").stdout:
        missing("crontab -n", "this cron cannot check a table without installing it")
    # A user's table, which is all that crontab reads, has no column for the user.
    assignments = [line for line in CRONTAB.read_text().splitlines() if ASSIGNMENT.match(line)]
    lines = [f"{schedule} {command}" for schedule, _, command in cron_lines()]
    table = tmp_path / "table"
    table.write_text("\n".join([*assignments, *lines]) + "\n")

    checked = run(crontab, "-n", str(table))

    assert checked.returncode == 0, checked.stdout
    assert len(lines) == 4


def test_cron_would_not_silently_skip_the_file() -> None:
    text = CRONTAB.read_text()

    assert text.endswith("\n")
    assert "." not in CRONTAB.name
    assert not stat.S_IMODE(CRONTAB.stat().st_mode) & (stat.S_IWGRP | stat.S_IWOTH | stat.S_IXUSR)
    for _, user, command in cron_lines():
        assert user == "servicectl"
        assert "%" not in command
    for value in cron_environment().values():
        assert "$" not in value, "cron does not expand variables in assignments"


@pytest.mark.parametrize("job", CRON_JOBS)
def test_cron_and_systemd_run_the_same_command(job: str) -> None:
    words = " ".join(commands_of_units()[f"servicectl-{job}.service"][1:])

    (command,) = [command for _, _, command in cron_lines() if job_of(command) == job]
    assert f" servicectl {words} 2>&1 | logger" in command
    assert "nice -n " in command
    assert "ionice -c " in command


def test_cron_and_systemd_agree_on_the_time() -> None:
    schedules = {job_of(command): schedule for schedule, _, command in cron_lines()}

    assert schedules == {
        "sync-production": "@reboot",
        "drift-check": "0 1 * * *",
        "retrain": "0 2 * * 0",
        "resume": "*/5 * * * *",
    }
    assert unit("servicectl-drift-check.timer")["Timer"]["OnCalendar"] == "*-*-* 01:00:00"
    assert unit("servicectl-retrain.timer")["Timer"]["OnCalendar"] == "Sun *-*-* 02:00:00"
    assert unit("servicectl-resume.timer")["Timer"]["OnCalendar"] == "*:0/5"


def test_the_calendar_of_units_and_crontab_is_the_default_of_the_configuration() -> None:
    """How cron's fields and an OnCalendar= compare is doctor's to say; tests/actions/test_doctor_timers.py asks it."""
    schedules = {job_of(command): schedule for schedule, _, command in cron_lines()}
    defaults = SchedulesConfig()

    assert schedules["drift-check"] == defaults.drift_check.cron
    assert schedules["retrain"] == defaults.retrain.cron
    assert defaults.sync_production.cron == NEVER
    assert {defaults.drift_check.zone, defaults.retrain.zone} == {None}
    assert all("/" not in unit(name)["Timer"].get("OnCalendar", "") for name in TIMERS if "resume" not in name)


def test_what_the_calendar_starts_goes_by_slots_and_what_boots_and_resumes_does_not() -> None:
    scheduled = {name for name, words in commands_of_units().items() if "--scheduled" in words}

    assert scheduled == {"servicectl-drift-check.service", "servicectl-retrain.service"}


def test_a_timer_comes_well_within_the_grace_of_its_slot() -> None:
    for job, section in (("drift-check", SchedulesConfig().drift_check), ("retrain", SchedulesConfig().retrain)):
        timer = unit(f"servicectl-{job}.timer")["Timer"]
        late = span_s(timer["RandomizedDelaySec"]) + span_s(timer["AccuracySec"])
        assert late <= span_s(section.grace) / 2, job


def cron_command(job: str, folder: Path, status: int) -> tuple[str, dict[str, str]]:
    """A line's command and environment, with a servicectl that notes its words in `folder` and ends with `status`."""
    for needed in ("systemctl", "logger", "flock", "ionice"):
        program(needed)
    script = folder / "bin/servicectl"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/words\necho "<3>the story" >&2\nexit {status}\n')
    script.chmod(0o755)
    environment = cron_environment()
    environment["PATH"] = f"{script.parent}:{environment['PATH']}"
    environment["STATE_DIRECTORY"] = str(folder)
    (command,) = [command for _, _, command in cron_lines() if job_of(command) == job]
    return command.replace("sleep 30; ", ""), environment


def words_in(folder: Path) -> list[str]:
    return (folder / "words").read_text().splitlines() if (folder / "words").exists() else []


@pytest.mark.parametrize("job", CRON_JOBS)
@pytest.mark.parametrize("status", [0, 75])
def test_without_systemd_a_line_runs_its_command_and_keeps_its_exit_status(
    job: str, status: int, tmp_path: Path
) -> None:
    if Path("/run/systemd/system").exists():
        missing("a machine without systemd", "this one runs it; the line is tested as root in a namespace of its own")
    command, environment = cron_command(job, tmp_path, status)

    done = subprocess.run([environment["SHELL"], "-c", command], env=environment, timeout=60)

    assert done.returncode == status
    assert words_in(tmp_path) == [" ".join(commands_of_units()[f"servicectl-{job}.service"][1:])]


def run_beside_systemd(job: str, folder: Path, enable: str) -> tuple[int, list[str], list[str]]:
    """Run one line, whose command ends with 3, where systemd seems to run with the one timer enabled.

    systemctl and logger are the real ones. /run and /dev are this process tree's own: the units are installed in
    the one, the system log is a socket of ours in the other. Returns the exit status, the words servicectl was
    called with, and what was logged.
    """
    folder.mkdir()
    devices = folder / "dev"
    devices.mkdir()
    (devices / "null").touch()
    command, environment = cron_command(job, folder, 3)
    setting = f"""
        mount -t tmpfs none /run && mkdir -p /run/systemd/system && cp {UNITS}/*.timer /run/systemd/system &&
        mount --bind /dev/null {devices}/null && mount --bind {devices} /dev &&
        systemctl --runtime --quiet enable {enable} || exit 99
        {command}"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(devices / "log"))
        log.setblocking(False)
        done = subprocess.run(
            ["unshare", "--mount", environment["SHELL"], "-c", setting],
            env={**environment, "SYSTEMD_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        logged = []
        with suppress(BlockingIOError):
            while True:
                logged.append(log.recv(4096).decode())
    return done.returncode, words_in(folder), logged


@pytest.mark.root
@pytest.mark.parametrize("job", CRON_JOBS)
def test_a_line_is_skipped_only_where_its_own_timer_is_enabled(job: str, tmp_path: Path) -> None:
    if os.geteuid() != 0 or run("unshare", "--mount", "mount", "-t", "tmpfs", "none", "/run").returncode:
        missing("root with a mount namespace", "needed to look like a machine that systemd has booted")
    another = next(name for name in TIMERS if name != f"servicectl-{job}.timer")

    skipped = run_beside_systemd(job, tmp_path / "own", f"servicectl-{job}.timer")
    status, words, logged = run_beside_systemd(job, tmp_path / "another", another)

    assert skipped == (0, [], [])
    assert (status, len(words)) == (3, 1)
    daemon_error = 3 * 8 + 3
    assert len(logged) == 1
    assert logged[0].startswith(f"<{daemon_error}>")
    assert logged[0].endswith(f"servicectl-{job}: the story")


# --- the command line ---


@pytest.mark.parametrize("name", WORKING)
def test_the_command_of_a_unit_is_one_servicectl_knows(name: str) -> None:
    if importlib.util.find_spec("servicectl.__main__") is None:
        missing("servicectl's command line", "servicectl/__main__.py is not there")
    binary, *words = commands_of_units()[name]
    assert binary == INSTALLED

    # An unknown word or option is refused before --help is heard.
    asked = run(sys.executable, "-m", "servicectl", *words, "--help")

    assert asked.returncode == 0, asked.stdout
