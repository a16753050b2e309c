"""`--scheduled` starts, `jobs resume` and `schedules` over one calendar, with real commands on a real estate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from servicectl import config
from servicectl.actions import slots
from servicectl.actions.world import World
from servicectl.clock import SYSTEM
from tests.parts import ROOT, program
from tests.parts.estate import Site, outcomes

RETRAIN_LATER = '\n[schedules.retrain]\ncron = "0 0 29 2 *"\nzone = "Europe/Berlin"\n'
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def schedule(site: Site, text: str) -> None:
    """Add sections to the site's configuration."""
    site.config.write_text(site.config.read_text() + text)


def slots_of(site: Site, name: str) -> list[tuple[str, list[str]]]:
    """(what, outcomes of its jobs) of a schedule's slots, newest first."""
    told = site.ok("schedules", "show", name)["slots"]
    return [(one["what"], [job["outcome"] for job in one["jobs"]]) for one in told]


# --- a timer's start ---


def test_a_start_by_a_timer_runs_its_slot_and_another_start_finds_nothing_due(site: Site) -> None:
    schedule(site, '\n[schedules.drift-check]\ncron = "0 0 * * *"\ngrace = "1d"\n')

    first = site.run("--json", "drift-check", "--scheduled")
    second = site.run("drift-check", "--scheduled")

    assert first.status == 0, first
    assert outcomes(first.told) == [("drift-check", "no-production-models")]
    assert (second.status, second.stdout) == (0, ""), second
    assert second.stderr.startswith("drift-check: nothing due; the next slot is ")
    assert slots_of(site, "drift-check") == [("run", ["no-production-models"])]
    [job] = site.jobs()
    assert job["trigger"] == "timer"


def test_a_timer_that_comes_at_another_time_is_told_that_it_disagrees(site: Site) -> None:
    tomorrow = datetime.now(UTC) + timedelta(hours=12)
    schedule(site, f'\n[schedules.drift-check]\ncron = "0 {tomorrow:%H} * * *"\nzone = "UTC"\n')

    ended = site.run("drift-check", "--scheduled")

    assert ended.status == 0, ended
    assert "if a timer started this, it disagrees with [schedules.drift-check]: servicectl doctor" in ended.stderr
    assert site.jobs() == []


def test_a_schedule_without_a_calendar_has_nothing_due_and_says_how_to_run_it(site: Site) -> None:
    schedule(site, '\n[schedules.retrain]\ncron = "never"\n')

    for command in (("sync-production",), ("retrain", "--all")):
        ended = site.run(*command, "--scheduled")
        assert ended.status == 0, ended
        assert f"`servicectl {' '.join(command)}` runs it now" in ended.stderr
    assert site.jobs() == []
    assert [one["schedule"] for one in site.ok("schedules", "list")["schedules"]] == ["drift-check"]


def test_a_slot_of_retrain_has_one_job_per_model_with_what_the_configuration_says(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule(site, '\n[schedules.retrain]\ncron = "0 0 * * *"\nzone = "UTC"\npublish = "hold"\n')
    now = datetime.now(UTC).replace(hour=0, minute=0, second=3)
    world = at(site, now)

    slots._table(world).take(slots.schedules(world)[1], lambda one: jobs(world, one), by_timer=True)

    [told] = [one for one in slots.states(world, limit=1) if one.schedule.name == "retrain"]
    [slot] = told.past
    assert [(job.spec["model"], job.spec.get("hold"), job.spec["publish"], job.trigger) for job in slot.jobs] == [
        (job.spec["model"], True, True, "timer") for job in slot.jobs
    ]
    assert sorted(job.spec["model"] for job in slot.jobs) == sorted(world.config.models)
    for job in slot.jobs:
        assert job.request_id == f"slot:retrain:{now:%Y-%m-%d}T00:00:00Z:{job.spec['model']}"


def jobs(world: World, decision: Any) -> Any:
    return slots._jobs(world, slots.schedules(world)[1], decision)


def at(site: Site, now: datetime) -> World:
    """What the site's commands act in, at a time of the test's choice, without waiting or retrying."""
    return World(
        config.load(site.config, {"SERVICECTL_STATE_FOLDER": str(site.state)}), replace(SYSTEM, now=lambda: now)
    )


@pytest.mark.parametrize(
    "words",
    [
        ("drift-check", "--scheduled", "--queue-only"),
        ("retrain", "--scheduled", "Churn"),
        ("retrain", "--scheduled", "--all", "--no-publish"),
        ("retrain", "--scheduled", "--all", "--window", "30d"),
        ("sync-production", "--scheduled", "--allow-remove"),
    ],
)
def test_what_would_make_a_slots_job_another_one_belongs_into_the_configuration(
    site: Site, words: tuple[str, ...]
) -> None:
    ended = site.run(*words)

    assert ended.status == 2, ended
    assert site.jobs() == []


# --- resume ---


def test_resume_makes_up_for_the_newest_missed_slot_and_passes_over_the_others(site: Site) -> None:
    newest = datetime.now(UTC).replace(minute=0) - timedelta(hours=6)  # no longer its timer's
    schedule(site, f'\n[schedules.drift-check]\ncron = "0 {newest.hour} * * *"\nmissed = "latest"\nzone = "UTC"\n')
    schedule(site, RETRAIN_LATER)
    before_the_last_four = newest - timedelta(days=4) + timedelta(hours=12)
    assert slots.start(at(site, before_the_last_four), "drift-check") == []

    ended = site.run("--json", "jobs", "resume")

    assert ended.status == 0, ended
    assert outcomes(ended.told) == [("drift-check", "no-production-models")]
    assert "drift-check: makes up for the slot " in ended.stderr
    assert "drift-check: 3 slots up to " in ended.stderr
    assert slots_of(site, "drift-check") == [("run", ["no-production-models"]), *[("skip", [])] * 3]
    assert site.ok("jobs", "resume")["jobs"] == []


def test_a_calendar_that_cannot_be_read_is_an_error_of_its_own_and_stops_no_job(site: Site) -> None:
    died = site.run("drift-check", crash_at="drift-check/complete/before")
    assert died.status < 0
    schedule(site, '\n[schedules.drift-check]\ncron = "61 0 * * *"\n[schedules.retrain]\nzone = "Nowhere"\n')

    ended = site.run("--json", "jobs", "resume")

    assert ended.status == 78, ended
    assert outcomes(ended.told) == [("drift-check", "no-production-models")]
    assert "schedules.drift-check.cron: '61 0 * * *'" in ended.stderr
    assert "schedules.retrain.zone: 'Nowhere' is no time zone" in ended.stderr


@pytest.mark.parametrize("section", ['cron = "0 1 * *"', 'zone = "no zone"', 'missed = "none"', "every = 5"])
def test_a_section_that_is_wrong_at_first_sight_is_refused_with_its_line(site: Site, section: str) -> None:
    schedule(site, f"\n[schedules.drift-check]\n{section}\n")
    line = site.config.read_text().splitlines().index(section) + 1

    ended = site.run("jobs", "resume")

    assert ended.status == 78, ended
    assert f"{site.config}:{line}: schedules.drift-check.{section.partition(' ')[0]}" in ended.stderr


@pytest.mark.parametrize("key", ["max_age", "grace"])
def test_a_length_of_time_that_is_none_is_named(site: Site, key: str) -> None:
    schedule(site, f'\n[schedules.retrain]\n{key} = "a while"\n')

    ended = site.run("retrain", "--all", "--scheduled")

    assert ended.status == 78, ended
    assert f"schedules.retrain.{key}: 'a while' is not a length of time" in ended.stderr


@dataclass
class Quiet:
    """A state folder under a clock that moves by hand, without any estate."""

    folder: Path
    moment: datetime = NOON
    cron: str = "0 1 * * *"

    @property
    def world(self) -> World:
        file = self.folder / "servicectl.toml"
        file.write_text(
            f'[state]\nfolder = "{self.folder}/state"\n[schedules.drift-check]\nmissed = "latest"\n'
            f'cron = "{self.cron}"\nzone = "UTC"\n[schedules.retrain]\ncron = "never"\n'
        )
        return World(config.load(file, {}), replace(SYSTEM, now=lambda: self.moment))

    def resume(self) -> list[str]:
        """What it made, by kind."""
        slots.take_missed(self.world)
        return [job.kind for job in self.world.runner.table.unfinished()]

    def asks_the_store(self) -> bool:
        """Whether a resume opens it; one that is not there would be made anew."""
        state, hidden = self.folder / "state", self.folder / "hidden"
        hidden.mkdir()
        for file in state.glob("servicectl.duckdb*"):
            file.rename(hidden / file.name)
        slots.take_missed(self.world)
        opened = (state / "servicectl.duckdb").exists()
        for file in state.glob("servicectl.duckdb*"):
            file.unlink()
        for file in hidden.iterdir():
            file.rename(state / file.name)
        hidden.rmdir()
        return opened


@pytest.fixture
def quiet(tmp_path: Path) -> Quiet:
    """Known since noon, and nothing due before the night."""
    made = Quiet(tmp_path)
    slots.start(made.world, "drift-check")
    assert made.resume() == []
    return made


def test_between_two_slots_a_resume_does_not_ask_the_store(quiet: Quiet) -> None:
    assert not quiet.asks_the_store()
    quiet.moment = NOON + timedelta(hours=12)
    assert not quiet.asks_the_store()

    quiet.moment = NOON + timedelta(hours=14)

    assert quiet.resume() == ["drift-check"]


def test_an_edit_and_a_clock_set_back_end_the_quiet(quiet: Quiet) -> None:
    quiet.cron = "0 5 * * *"
    assert quiet.asks_the_store()
    quiet.cron = "0 1 * * *"
    assert quiet.resume() == []
    assert not quiet.asks_the_store()

    quiet.moment = NOON - timedelta(hours=1)

    assert quiet.asks_the_store()


def test_of_two_starts_for_one_slot_neither_is_blamed_and_one_at_another_time_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "servicectl.toml"
    file.write_text(f'[state]\nfolder = "{tmp_path}/state"\n[schedules.retrain]\ncron = "0 1 * * *"\nzone = "UTC"\n')
    night = datetime(2026, 11, 21, 1, 0, 3, tzinfo=UTC)

    def told(moment: datetime) -> str:
        slots.start(World(config.load(file, {}), replace(SYSTEM, now=lambda: moment)), "retrain")
        return capsys.readouterr().err

    assert told(night) == ""
    second = told(night + timedelta(minutes=1))
    assert second.startswith("retrain: nothing due; the next slot is 2026-11-22 01:00 UTC")
    assert "disagrees" not in second
    assert "disagrees with [schedules.retrain]" in told(night + timedelta(hours=12))


def test_a_run_of_a_slot_that_died_is_finished_by_resume_and_not_begun_anew_by_another_start(site: Site) -> None:
    schedule(site, '\n[schedules.drift-check]\ncron = "0 0 * * *"\ngrace = "1d"\n')
    died = site.run("drift-check", "--scheduled", crash_at="drift-check/claimed")
    assert died.status == -signal.SIGKILL, died

    again = site.run("--json", "drift-check", "--scheduled")
    assert (again.status, again.told["jobs"]) == (0, [])
    assert outcomes(site.ok("jobs", "resume")) == [("drift-check", "no-production-models")]

    assert slots_of(site, "drift-check") == [("run", ["no-production-models"])]
    [job] = site.jobs()
    assert job["state"] == "COMPLETED"


@pytest.mark.parametrize("words", [("jobs", "list"), ("jobs", "resume"), ("drift-check", "--help")])
def test_the_calendar_is_not_even_imported_where_nobody_asks_for_slots(tmp_path: Path, words: tuple[str, ...]) -> None:
    file = tmp_path / "servicectl.toml"
    far = (datetime.now(UTC) + timedelta(hours=12)).hour  # near a slot, every resume looks
    slots_far_off = "".join(
        f'{job} = {{ zone = "UTC", cron = "0 {far} * * *" }}\n' for job in ("drift-check", "retrain")
    )
    file.write_text(f'[state]\nfolder = "{tmp_path}/state"\n[schedules]\n{slots_far_off}')
    command = [sys.executable, "-X", "importtime", "-m", "servicectl", "--config", str(file)]
    first = subprocess.run([*command, "jobs", "resume"], cwd=ROOT, capture_output=True, text=True)
    assert "cronsim" in first.stderr

    ended = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr
    assert "cronsim" not in ended.stderr


# --- who started it ---


def scheduled(folder: Path, environment: Mapping[str, str]) -> tuple[int, list[Any]]:
    """`drift-check --scheduled` between two slots, without an estate: status and the jobs there are afterwards."""
    hour = (datetime.now(UTC) + timedelta(hours=12)).hour
    text = (
        f'[state]\nfolder = "{folder}/state"\n[redis]\nurl = "redis://127.0.0.1:1/0"\n'
        f'[schedules.drift-check]\ncron = "0 {hour} * * *"\nzone = "UTC"\n'
    )
    file = folder / "servicectl.toml"
    file.write_text(text)
    ours = {name: value for name, value in os.environ.items() if name not in ("INVOCATION_ID", "TRIGGER_UNIT")}
    command = [sys.executable, "-m", "servicectl", "--config", str(file), "--json"]
    ended = subprocess.run([*command, "drift-check", "--scheduled"], cwd=ROOT, env={**ours, **environment})
    listed = subprocess.run([*command, "jobs", "list"], cwd=ROOT, env=ours, capture_output=True, text=True)
    return ended.returncode, json.loads(listed.stdout)["jobs"]


def test_a_unit_started_by_hand_runs_at_any_time_and_one_started_by_its_timer_only_for_its_slots(
    tmp_path: Path,
) -> None:
    program("systemctl")
    unit = {"INVOCATION_ID": "0123456789abcdef0123456789abcdef"}

    assert scheduled(tmp_path, {**unit, "TRIGGER_UNIT": "servicectl-drift-check.timer"}) == (0, [])
    assert scheduled(tmp_path, {}) == (0, [])
    status, found = scheduled(tmp_path, unit)

    assert (status, len(found)) == (75, 1)


# --- for eyes ---


def test_the_list_shows_what_comes_next_what_came_last_and_what_was_missed(site: Site) -> None:
    schedule(site, '\n[schedules.drift-check]\nzone = "UTC"\n' + RETRAIN_LATER)
    assert slots.start(at(site, datetime.now(UTC) - timedelta(days=3)), "drift-check") == []

    before = site.ok("schedules", "list")["schedules"]
    site.ok("jobs", "resume")
    after = {one["schedule"]: one for one in site.ok("schedules", "list")["schedules"]}
    printed = site.run("schedules", "list").stdout.splitlines()
    shown = site.run("schedules", "show", "drift-check").stdout

    assert len(before[0]["waiting"]) == 3
    assert [one["what"] for one in after["drift-check"]["slots"]][-2:] == ["skip", "skip"]
    assert after["retrain"]["next_slot"] > datetime.now(UTC).isoformat()
    assert printed[0].split()[:3] == ["schedule", "cron", "zone"]
    assert [line.split()[0] for line in printed[1:]] == ["drift-check", "retrain"]
    assert "Europe/Berlin" in printed[2]
    assert "skipped: missed" in shown


@pytest.mark.parametrize("name", ["nonsense", "sync-production"])
def test_a_schedule_without_slots_is_a_usage_error(site: Site, name: str) -> None:
    ended = site.run("schedules", "show", name)

    assert ended.status == 2, ended
    assert f"{name!r} has no slots" in ended.stderr
