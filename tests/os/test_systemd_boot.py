"""A real systemd boots, and the shipped units do in it what they promise."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.parts import ROOT, missing
from tests.parts.estate import MODELS
from tests.parts.machine import CONFIG, PYTHON, documented, hierarchies, sweep, until
from tests.parts.systemd import Systemd, systemd

pytestmark = pytest.mark.root

TIMERS = [f"servicectl-{job}.timer" for job in ("sync-production", "drift-check", "retrain", "resume")]
SERVICES = [f"servicectl-{job}.service" for job in ("sync-production", "drift-check", "retrain", "resume", "listen")]

_CONFIG = """
[models.Churn]
label = "churned"
features = ["tenure"]
[schedules]
drift-check.cron = "* * * * *" # a start by a timer is for a slot: each of these finds one
retrain.cron = "* * * * *"
[listen]
address = "unix:/run/servicectl/listen.sock"
"""

_EVERY_SECOND = """
[Timer]
OnCalendar=
OnCalendar=*:*:*
RandomizedDelaySec=0
AccuracySec=100ms
"""


@pytest.fixture(scope="session")
def installed() -> Iterator[Systemd]:
    with systemd() as booted:
        booted.machine.run("bash", "-euc", documented("timers.md", "Install with systemd"))
        yield booted


@pytest.fixture
def booted(installed: Systemd) -> Systemd:
    """A booted machine with the units installed, nothing started and no job ever taken; its Redis is away."""
    installed.machine.write(CONFIG, _CONFIG)
    installed.forget()
    return installed


def taken(booted: Systemd) -> set[tuple[str, str]]:
    """(kind, what started it) of every job."""
    return {(job["kind"], job["trigger"]) for job in booted.machine.jobs()}


# --- timers ---


def test_what_the_page_says_to_type_leaves_every_timer_waiting_for_its_time(installed: Systemd) -> None:
    installed.ctl("start", *TIMERS)

    for name in TIMERS:
        assert installed.ctl("is-enabled", name).strip() == "enabled"
        assert installed.show(name)["ActiveState"] == "active"
        if "sync-production" not in name:  # which is over once it has run
            assert installed.timer(name)["next"] > time.time() * 1e6, name


def test_the_units_work_with_the_configuration_that_the_page_has_made(booted: Systemd) -> None:
    booted.machine.path(CONFIG).unlink()

    booted.machine.run("bash", "-euc", documented("timers.md", "Install with systemd"))

    booted.ctl("start", "servicectl-resume.service")


@pytest.mark.parametrize("job", ["drift-check", "retrain"])
def test_a_calendar_timer_runs_its_command(booted: Systemd, job: str) -> None:
    with booted.changed(f"servicectl-{job}.timer", _EVERY_SECOND):
        booted.ctl("start", f"servicectl-{job}.timer")
        until(lambda: bool(booted.ends(f"servicectl-{job}.service")), f"{job} to be started by its timer")
        booted.ctl("stop", f"servicectl-{job}.timer", f"servicectl-{job}.service")

    assert taken(booted) == {(job, "timer")}


def test_a_sunday_missed_is_made_up_for_at_once_and_a_night_missed_is_not(booted: Systemd) -> None:
    for job in ("drift-check", "retrain"):
        stamp = booted.machine.path(f"/var/lib/systemd/timers/stamp-servicectl-{job}.timer")
        stamp.parent.mkdir(exist_ok=True)
        stamp.touch()
        os.utime(stamp, (time.time() - 8 * 86400,) * 2)

    booted.ctl("start", "servicectl-drift-check.timer", "servicectl-retrain.timer")
    due_s = booted.timer("servicectl-retrain.timer")["next"] / 1e6 - time.time()
    next_night = booted.timer("servicectl-drift-check.timer")
    with booted.changed("servicectl-retrain.timer", "[Timer]\nRandomizedDelaySec=0\n"):
        booted.ctl("restart", "servicectl-retrain.timer")
        until(lambda: bool(booted.ends("servicectl-retrain.service")), "the missed retrain to be made up for")

    assert due_s <= 6 * 60  # the timer's RandomizedDelaySec= and AccuracySec=
    assert (next_night["next"] or 0) > time.time() * 1e6
    assert taken(booted) == {("retrain", "timer")}


# --- how a run ends, and where that is told ---


def test_try_again_later_is_told_in_the_journal_with_its_priority_and_fails_nothing(booted: Systemd) -> None:
    booted.ctl("start", "servicectl-sync-production.service")

    error = 3
    priority, text = booted.said("servicectl-sync-production.service")[0]
    assert priority == error
    assert text.startswith("sync-production: Redis is not available")
    assert alerts(booted) == []
    [job] = booted.machine.jobs()
    assert (job["kind"], job["state"], job["attempts"]) == ("sync-production", "PENDING", 1)


@pytest.mark.parametrize("name", SERVICES)
def test_a_run_that_fails_is_reported_as_an_alert(booted: Systemd, name: str) -> None:
    with booted.changed(name, "[Service]\nEnvironment=SERVICECTL_CONFIG=/etc/servicectl/absent.toml\n"):
        booted.ctl("start", name, check=False)
        until(lambda: bool(alerts(booted)), "the report")
        shown = booted.show(name)

    [report] = alerts(booted)
    assert report.startswith(f"{name} failed (exit-code, status 78). See: journalctl -u {name} ")
    invocation = report.partition("_SYSTEMD_INVOCATION_ID=")[2].partition(";")[0]
    [*_, told] = [entry["MESSAGE"] for entry in booted.journal(_SYSTEMD_INVOCATION_ID=invocation)]
    assert "absent.toml" in told
    assert (shown["ActiveState"], shown["Result"]) == ("failed", "exit-code")


def alerts(booted: Systemd) -> list[str]:
    return [entry["MESSAGE"] for entry in booted.journal(SYSLOG_IDENTIFIER="servicectl", PRIORITY="1")]


# --- limits ---


def controller(booted: Systemd, name: str) -> Path:
    found = booted.machine.cgroups.get(name)
    if found is None:
        missing(f"the cgroup controller {name}", "the kernel offers it to no child of our cgroup or of one above it")
    assert found is not None
    return found


def running(booted: Systemd, name: str, command: str, settings: str = "") -> str:
    """The settings that let a shipped unit run another command."""
    return f"[Service]\nExecStart=\nExecStart={command}\n{settings}"


@pytest.mark.parametrize("name", SERVICES[:-1])
def test_the_kernel_holds_the_memory_limits_of_the_unit_and_of_all_units_together(booted: Systemd, name: str) -> None:
    memory = controller(booted, "memory")
    limit = "memory.max" if (memory / "cgroup.controllers").exists() else "memory.limit_in_bytes"

    with booted.changed(name, running(booted, name, "/bin/sleep infinity")):
        booted.ctl("start", "--no-block", name)
        folder = memory / "servicectl.slice" / name
        until(lambda: booted.show(name)["ActiveState"] == "activating" and folder.exists(), "the unit to run")
        held, together = (int((place / limit).read_text()) for place in (folder, folder.parent))
        said, said_together = (int(booted.show(unit)["MemoryMax"]) for unit in (name, "servicectl.slice"))

    assert (held, together) == (said, said_together)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert together == pytest.approx(total / 2, rel=0.01)
    assert held == (2 << 30 if "sync" in name else pytest.approx(total * 0.4, rel=0.01))


def test_a_run_that_outgrows_its_memory_is_killed_and_reported(booted: Systemd) -> None:
    controller(booted, "memory")
    name = "servicectl-drift-check.service"
    grows = f"{PYTHON} -c 'len(b\"x\" * (400 << 20))'"

    with booted.changed(name, running(booted, name, grows, "MemoryMax=64M\nMemorySwapMax=0\n")):
        booted.ctl("start", name, check=False)
        until(lambda: bool(alerts(booted)), "the report")

    [report] = alerts(booted)
    assert re.match(rf"{name} failed \((oom-kill|signal), status (KILL|9)\)", report)


def test_a_busy_run_leaves_the_processor_to_what_serves(booted: Systemd) -> None:
    controller(booted, "cpu")
    name = "servicectl-retrain.service"
    one_cpu = f"CPUAffinity={min(os.sched_getaffinity(0))}\nNice=0\n"
    busy = "/bin/sh -c 'while :; do :; done'"
    booted.machine.write("/run/systemd/system/serving.service", f"[Service]\nExecStart={busy}\n{one_cpu}")

    def used() -> tuple[float, float]:
        places = "system.slice/serving.service", f"servicectl.slice/{name}"
        serving, ours = (booted.machine.processor_s(place) for place in places)
        return serving, ours

    with booted.changed(name, running(booted, name, busy, one_cpu)):
        try:
            booted.ctl("start", "--no-block", "serving.service", name)
            until(lambda: min(used()) > 0.02, "both to run")
            before = used()
            until(lambda: sum(used()) - sum(before) > 1, "a second of the processor")
            serving, ours = (now - then for now, then in zip(used(), before, strict=True))
        finally:
            booted.ctl("stop", "serving.service")

    assert serving / ours == pytest.approx(5, rel=0.4)  # the weights of system.slice and servicectl.slice


# --- the listener ---


def answers(booted: Systemd) -> bool:
    with grpc.insecure_channel(f"unix:{booted.machine.path('/run/servicectl/listen.sock')}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=60, wait_for_ready=True)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_the_listener_counts_as_started_once_it_answers_and_ends_when_told_to(booted: Systemd) -> None:
    name = "servicectl-listen.service"

    booted.ctl("start", name)

    assert answers(booted)
    shown = booted.show(name)
    assert (shown["StatusText"], shown["WatchdogUSec"]) == ("listening on unix:/run/servicectl/listen.sock", "1min")
    booted.ctl("stop", name)
    shown = booted.show(name)
    assert (shown["ActiveState"], shown["Result"], shown["NRestarts"]) == ("inactive", "success", "0")


def test_a_listener_that_lives_is_left_alone_and_one_that_hangs_is_started_again(booted: Systemd) -> None:
    name = "servicectl-listen.service"
    with booted.changed(name, "[Service]\nWatchdogSec=6s\nRestartSec=0\n"):
        booted.ctl("start", name)
        started = booted.show(name)
        until(lambda: booted.show(name)["WatchdogTimestamp"] != started["WatchdogTimestamp"], "a sign of life")
        lives = booted.show(name)
        booted.ctl("kill", "--kill-whom=main", "--signal=SIGSTOP", name)
        until(lambda: booted.show(name)["NRestarts"] == "1", "the hung one to be replaced")
        until(lambda: booted.show(name)["ActiveState"] == "active", "the new one to answer")
        assert answers(booted)
        again = booted.show(name)

    assert lives["MainPID"] == started["MainPID"]
    assert again["MainPID"] != started["MainPID"]
    why = [entry["MESSAGE"] for entry in booted.journal(UNIT=name)]
    assert any("Watchdog timeout" in message for message in why)


# --- resumption ---


CHURN = MODELS.partition("[models.Spend]")[0]


def killed_at(point: str) -> str:
    return f"[Service]\nEnvironment=SERVICECTL_CRASH_AT={point}\n"


def test_a_job_whose_owner_was_killed_is_finished_by_the_resume_timer(booted: Systemd) -> None:
    with booted.estate(CHURN):
        with booted.changed("servicectl-retrain.service", killed_at("retrain/train/before")):
            booted.ctl("start", "servicectl-retrain.service", check=False)
            [dead] = booted.machine.jobs()
            until(lambda: bool(alerts(booted)), "the report")
        with booted.changed("servicectl-resume.timer", _EVERY_SECOND):
            booted.ctl("start", "servicectl-resume.timer")
            until(lambda: bool(booted.ends("servicectl-resume.service")), "the resume timer's run to end")
        finished = booted.machine.jobs()

    assert dead["state"] == "INTERRUPTED", dead["error"]
    assert "servicectl-retrain.service failed (signal, status KILL)" in alerts(booted)[0]
    assert [(job["kind"], job["state"], job["outcome"], job["attempts"]) for job in finished] == [
        ("retrain", "COMPLETED", "promoted", 2),
        ("publish", "COMPLETED", "published", 1),
    ]
    assert finished[0]["job_id"] == dead["job_id"]


# --- the machine itself ---


def left_of(process: int) -> list[str]:
    """Mounts, cgroups and folders of the machines that a process has made."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "servicectl-test-" in line]
    places = [*(one.folder for one in hierarchies()), Path(tempfile.gettempdir())]
    return mounts + [str(found) for place in places for found in place.glob(f"servicectl-test-{process}-*")]


def test_nothing_is_left_of_a_machine_when_the_tests_are_interrupted(installed: Systemd) -> None:
    before = left_of(os.getpid())
    pids = []
    with suppress(KeyboardInterrupt), systemd() as another:
        pids.append(another.machine.pid)
        raise KeyboardInterrupt

    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert len(pids) == 1
    assert left_of(os.getpid()) == before


def test_a_machine_ends_with_the_process_that_made_it_and_the_next_test_run_sweeps_up(installed: Systemd) -> None:
    making = """if True:
        import time
        from tests.parts.systemd import systemd
        with systemd() as booted:
            print(booted.machine.pid, flush=True)
            time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", making], cwd=ROOT, stdout=subprocess.PIPE) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        assert left_of(tests.pid)
        tests.send_signal(signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists(), "the machine to end")

    sweep()

    assert left_of(tests.pid) == []


# Last: by now the machine has mostly been up for longer than the timer waits for.
def test_production_is_synced_half_a_minute_after_every_boot(booted: Systemd) -> None:
    booted.ctl("start", "servicectl-sync-production.timer")
    until(lambda: bool(booted.ends("servicectl-sync-production.service")), "the first run after the boot")

    assert taken(booted) == {("sync-production", "timer")}
