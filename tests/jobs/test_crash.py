"""A job killed at any point is carried on; what was recorded is not done again, what was not is."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from servicectl.errors import ExitStatus
from servicectl.jobs.model import Job, NewJob, State
from servicectl.jobs.runner import Runner
from tests.jobs.conftest import edges
from tests.jobs.program import effects
from tests.parts.jobs import Start


def _submitted(mine: Runner, *steps: str) -> Job:
    return mine.submit(NewJob("work", "a-scope", {"steps": list(steps)})).job


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("claimed", ["one", "two", "three"]),
        ("one/before", ["one", "two", "three"]),
        ("one/effect", ["one", "one", "two", "three"]),
        ("one/recorded", ["one", "two", "three"]),
        ("two/before", ["one", "two", "three"]),
        ("two/effect", ["one", "two", "two", "three"]),
        ("three/effect", ["one", "two", "three", "three"]),
        ("complete/before", ["one", "two", "three", "three"]),
        ("complete/recorded", ["one", "two", "three"]),
    ],
)
def test_a_killed_job_repeats_only_the_step_in_flight(
    start: Start, mine: Runner, tmp_path: Path, point: str, expected: list[str]
) -> None:
    job = _submitted(mine, "one", "two", "three")

    status, _ = start("run", job.job_id, crash_at=f"work/{point}").ended()
    killed = mine.table.get(job.job_id)
    ran = mine.resume()

    assert status == -signal.SIGKILL
    assert killed.state is (State.COMPLETED if point == "complete/recorded" else State.RUNNING)
    assert [one.exit_status for one in ran] == ([] if killed.ended else [ExitStatus.OK])
    assert effects(tmp_path) == expected
    assert mine.table.get(job.job_id).state is State.COMPLETED
    assert [(step.name, step.state) for step in mine.table.steps(job.job_id)] == [
        ("one", "COMPLETED"),
        ("two", "COMPLETED"),
        ("three", "COMPLETED"),
    ]


def test_a_running_job_whose_owner_died_is_interrupted_and_is_taken_over_in_a_new_epoch(
    start: Start, mine: Runner
) -> None:
    job = _submitted(mine, "one=wait")
    owner = start("run", job.job_id)
    assert owner.line() == "in one"
    while_alive = mine.is_interrupted(mine.table.get(job.job_id))

    owner.killed()
    dead = mine.table.get(job.job_id)
    once_dead = mine.is_interrupted(dead)
    second = start("resume")
    assert second.line() == "in one"
    taken_over = mine.table.get(job.job_id)
    second.go_on()

    assert second.ended()[0] == 0
    assert (while_alive, once_dead) == (False, True)
    assert (dead.epoch, dead.attempts) == (1, 1)
    assert (taken_over.epoch, taken_over.attempts) == (2, 2)
    assert taken_over.owner is not None
    assert taken_over.owner["pid"] == second.process.pid
    assert edges(mine, job) == ["submit", "claim", "take_over", "complete"]


def test_the_step_that_a_dead_owner_was_in_is_failed_while_its_successor_works(start: Start, mine: Runner) -> None:
    job = _submitted(mine, "one", "two", "three=wait")
    start("run", job.job_id, crash_at="work/two/before").ended()
    in_flight = mine.table.steps(job.job_id)

    second = start("run", job.job_id)
    second.line()
    steps = mine.table.steps(job.job_id)

    assert [step.state for step in in_flight] == ["COMPLETED", "RUNNING"]
    assert [(step.state, step.attempts, step.epoch) for step in steps] == [
        ("COMPLETED", 1, 1),
        ("COMPLETED", 2, 2),
        ("RUNNING", 1, 2),
    ]


def test_a_job_that_dies_in_each_of_its_attempts_fails_and_needs_the_operator(start: Start, mine: Runner) -> None:
    job = _submitted(mine, "one", "two")
    for _ in range(3):
        assert start("resume", crash_at="work/two/before").ended()[0] == -signal.SIGKILL

    ran = mine.resume()

    (failed,) = ran
    assert (failed.job.state, failed.job.needs_operator, failed.exit_status) == (State.FAILED, True, ExitStatus.FAILED)
    assert "died in each of 3 attempts" in str(failed.error)
    assert edges(mine, job) == ["submit", "claim", "take_over", "take_over", "exhaust"]
    assert [step.state for step in mine.table.steps(job.job_id)] == ["COMPLETED", "FAILED"]
    assert mine.resume() == []


def test_the_operator_gives_an_exhausted_job_a_fresh_budget_and_its_finished_steps_stay(
    start: Start, mine: Runner, tmp_path: Path
) -> None:
    new = NewJob("work", "a-scope", {"steps": ["one", "two"]})
    job = mine.table.submit(new, step_schema=1, max_attempts=1).job
    start("run", job.job_id, crash_at="work/two/before").ended()
    mine.resume()

    again = mine.table.retry(job.job_id)
    ran = mine.run(job.job_id)

    assert (again.state, again.attempts, again.error, again.finished_at) == (State.PENDING, 0, None, None)
    assert (ran.job.state, ran.job.attempts, ran.job.epoch, ran.job.needs_operator) == (State.COMPLETED, 1, 2, False)
    assert effects(tmp_path) == ["one", "two"]


def test_a_dead_job_that_the_operator_cancels_ends_when_the_next_one_looks(start: Start, mine: Runner) -> None:
    job = _submitted(mine, "one", "two")
    start("run", job.job_id, crash_at="work/two/before").ended()

    asked = mine.table.request_cancel(job.job_id)
    (ended,) = mine.resume()

    assert (asked.state, asked.cancel_requested) == (State.RUNNING, True)
    assert (ended.job.state, ended.job.outcome) == (State.CANCELLED, "cancelled")
    assert edges(mine, job) == ["submit", "claim", "stop"]
    assert [step.state for step in mine.table.steps(job.job_id)] == ["COMPLETED", "FAILED"]


def test_a_machine_that_dies_again_during_the_resume_loses_nothing(start: Start, mine: Runner, tmp_path: Path) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one", "two", "three"]})).job
    for point in ("one/effect", "three/before"):
        start("resume", crash_at=f"work/{point}").ended()

    mine.resume()

    assert effects(tmp_path) == ["one", "one", "two", "three"]
    assert mine.table.get(job.job_id).attempts == 3
