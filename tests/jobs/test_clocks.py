"""A clock that is set back or forward, and the two hours a year that local time has twice or not at all."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from servicectl.cli import job_views
from servicectl.clock import Clock, stored
from servicectl.jobs.context import JobContext
from servicectl.jobs.model import NewJob, Result, State
from servicectl.jobs.runner import Kind, Retries, Runner
from tests.jobs.conftest import HandClock, edges
from tests.jobs.program import runner
from tests.parts import ROOT
from tests.parts.estate import env_without_servicectl

_HOUR = 3600.0
_YEAR = 365 * 24 * _HOUR


def _put_off(mine: Runner) -> str:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=unavailable"]})).job
    assert mine.run(job.job_id).job.state is State.PENDING
    return job.job_id


@pytest.mark.parametrize("seconds", [_HOUR, _YEAR])
def test_a_retry_that_was_put_off_by_a_clock_since_set_back_is_due_at_once(
    tmp_path: Path, hand: HandClock, seconds: float
) -> None:
    mine = runner(tmp_path, clock=hand.clock, retries=Retries(3, base_s=60.0))
    hand.advance(seconds)
    job_id = _put_off(mine)

    hand.advance(-seconds)
    ran = mine.resume()

    assert [(one.job.job_id, one.job.attempts) for one in ran] == [(job_id, 2)]


@pytest.mark.parametrize("seconds", [_HOUR, _YEAR])
def test_a_retry_is_due_when_the_clock_was_set_forward_past_it(tmp_path: Path, hand: HandClock, seconds: float) -> None:
    mine = runner(tmp_path, clock=hand.clock, retries=Retries(3, base_s=60.0))
    job_id = _put_off(mine)

    hand.advance(seconds)
    ran = mine.resume()

    assert [(one.job.job_id, one.job.attempts) for one in ran] == [(job_id, 2)]


def test_a_clock_that_jumps_about_spends_no_more_attempts_than_the_budget(tmp_path: Path, hand: HandClock) -> None:
    mine = runner(tmp_path, clock=hand.clock, retries=Retries(3, base_s=60.0))
    job_id = _put_off(mine)

    for seconds in (-_HOUR, -_HOUR, _YEAR, -_YEAR, -_HOUR):
        hand.advance(seconds)
        mine.resume()

    assert (mine.table.get(job_id).state, mine.table.get(job_id).attempts) == (State.FAILED, 3)


@pytest.mark.parametrize("seconds", [-_HOUR, _YEAR])
def test_a_job_under_way_while_the_clock_is_set_ends_as_it_would_and_no_time_is_negative(
    tmp_path: Path, hand: HandClock, seconds: float
) -> None:
    def act(context: JobContext) -> Result:
        context.step("one", lambda: hand.advance(seconds), type(None))
        context.step("two", lambda: None, type(None))
        return Result("done")

    mine = Runner(tmp_path, {"work": Kind("work", act)}, clock=hand.clock)
    job = mine.run(mine.submit(NewJob("work", "a-scope")).job.job_id).job

    steps, events = mine.table.steps(job.job_id), mine.table.events(job.job_id)
    shown = job_views.detail(job, steps, events, [], interrupted=False)
    assert (job.state, edges(mine, job)) == (State.COMPLETED, ["submit", "claim", "complete"])
    assert [step["seconds"] for step in shown["steps"]] == [max(0.0, seconds), 0.0]
    assert [run["seconds"] for run in shown["runs"]] == [max(0.0, seconds)]


def test_an_age_counts_forward_and_back() -> None:
    now = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)

    offsets = (timedelta(), -timedelta(minutes=5), -timedelta(hours=2), -timedelta(days=3), timedelta(minutes=30))

    ages = [job_views.age(now + offset, now) for offset in offsets]

    assert ages == ["0s ago", "5m ago", "2h ago", "3d ago", "in 30m"]


@pytest.mark.parametrize(
    ("moments", "shown"),
    [
        # The hour from 2 to 3 comes twice in autumn; in spring it does not come.
        (("2026-10-25T00:30", "2026-10-25T01:30"), ("2026-10-25 02:30 CEST", "2026-10-25 02:30 CET")),
        (("2026-03-29T00:30", "2026-03-29T01:30"), ("2026-03-29 01:30 CET", "2026-03-29 03:30 CEST")),
    ],
)
def test_jobs_on_both_sides_of_a_daylight_saving_change_are_listed_by_local_time_in_their_true_order(
    tmp_path: Path, moments: tuple[str, str], shown: tuple[str, str]
) -> None:
    config, state = tmp_path / "servicectl.toml", tmp_path / "state"
    config.write_text(f'[state]\nfolder = "{state}"\n')
    first, second = (datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in moments)
    now = [first]
    mine = runner(state, clock=Clock(now=lambda: now[0], monotonic=lambda: 0.0, sleep=lambda _seconds: None))
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=unavailable"]})).job
    mine.run(job.job_id)
    now[0] = second
    mine.submit(NewJob("work", "b-scope"))

    listed = _as_in_berlin(config, "jobs", "list")
    told = _as_in_berlin(config, "jobs", "show", job.short_id)

    header, newest, oldest = listed.splitlines()
    assert [shown[1] in newest, shown[0] in oldest] == [True, True], listed
    assert "created" in header
    assert shown[0].replace(":30 ", ":30:00 ") in told, told
    # The wait was counted in UTC: an hour has passed, whatever the clock on the wall says.
    assert mine.table.get(job.job_id).is_due(stored(second))


def _as_in_berlin(config: Path, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "servicectl", "--config", str(config), *arguments],
        cwd=ROOT,
        env={**env_without_servicectl(), "TZ": "CET-1CEST,M3.5.0,M10.5.0/3"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return ended.stdout
