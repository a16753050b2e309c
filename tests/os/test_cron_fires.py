"""Debian's cron reads the shipped table and runs what is due, when it is due."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.parts.cron import Cron, Line, cron
from tests.parts.machine import CONFIG, until

pytestmark = pytest.mark.root

_CONFIG = """
[models.Churn]
label = "churned"
features = ["tenure"]
[jobs]
retry_base_s = 0.001
# A slot is always due: cron's clock is moved, not servicectl's.
[schedules.drift-check]
cron = "* * * * *"
[schedules.retrain]
cron = "* * * * *"
"""

ERROR = 3
TRY_AGAIN = 75


@pytest.fixture(scope="session")
def installed() -> Iterator[Cron]:
    with cron() as table:
        table.machine.write(CONFIG, _CONFIG)
        yield table


@pytest.fixture
def table(installed: Cron) -> Cron:
    """The installed table, no job ever taken, nothing logged; Redis is away."""
    installed.forget()
    return installed


def jobs_of(commands: list[str]) -> list[str]:
    found = (re.search(r"servicectl-([a-z-]+)\.timer", command) for command in commands)
    return sorted(one[1] for one in found if one)


@pytest.mark.parametrize(
    ("moment", "due"),
    [
        ("2026-11-23 10:03:58", []),
        ("2026-11-23 10:04:58", ["resume"]),
        ("2026-11-23 00:59:58", ["drift-check", "resume"]),
        ("2026-11-22 01:59:58", ["resume", "retrain"]),  # a Sunday
        ("2026-11-23 01:59:58", ["resume"]),  # no Sunday
    ],
)
def test_cron_runs_exactly_what_is_due_and_logs_what_it_says_and_how_it_ends(
    table: Cron, moment: str, due: list[str]
) -> None:
    table.machine.write("/etc/cron.d/beat", "* * * * * root echo beat\n")
    with table.running(moment):
        until(lambda: len(table.started()) > len(due), lambda: f"the minute's commands: {table.lines()}")

    ours = [command for command in table.started() if "echo beat" not in command]
    assert all(command.startswith("(servicectl) CMD (") for command in ours)
    assert jobs_of(ours) == due
    met_no_redis = [job for job in due if job != "resume"]
    assert [(job["kind"], job["trigger"]) for job in table.machine.jobs()] == [(job, "timer") for job in met_no_redis]
    assert table.statuses() == [TRY_AGAIN] * len(met_no_redis)
    for job in met_no_redis:
        told = next(line for line in table.lines() if line.tag == f"servicectl-{job}")
        assert told.severity == ERROR
        assert re.match(r"(drift-check|retrain Churn): Redis is not available", told.text)


def test_cron_carries_a_job_on_whose_owner_was_killed(table: Cron) -> None:
    table.machine.servicectl("sync-production", check=False, SERVICECTL_CRASH_AT="sync-production/claimed")
    [dead] = table.machine.jobs()

    with table.running("2026-11-23 10:04:58"):
        until(lambda: "resume" in jobs_of(table.ended()), lambda: f"resume: {table.lines()}")

    [carried] = table.machine.jobs()
    assert (dead["state"], dead["attempts"]) == ("INTERRUPTED", 1)
    assert (carried["job_id"], carried["attempts"]) == (dead["job_id"], 2)
    assert "Redis is not available" in carried["error"]
    assert table.statuses() == [TRY_AGAIN]


def test_cron_syncs_production_half_a_minute_after_every_boot_and_not_at_its_own_restart(table: Cron) -> None:
    with table.running("2026-11-23 10:01:00", after_boot=True):
        until(lambda: bool(table.ended()), lambda: f"the line for a boot: {table.lines()}")
    assert jobs_of(table.started()) == ["sync-production"]
    [job] = table.machine.jobs()
    assert (job["kind"], job["trigger"]) == ("sync-production", "timer")

    table.forget()
    with table.running("2026-11-23 10:01:00"):
        until(
            lambda: Line(6, "cron", "(CRON) INFO (Skipping @reboot jobs -- not system startup)") in table.lines(), "it"
        )

    assert table.started() == []
