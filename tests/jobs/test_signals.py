"""SIGTERM, SIGINT and cancel end a job at a safe place; an interruption is no failure."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from servicectl.errors import ExitStatus, UsageError
from servicectl.jobs.model import Job, NewJob, State
from servicectl.jobs.runner import Runner
from servicectl.jobs.steps import StepChange
from tests.jobs.conftest import edges
from tests.jobs.program import effects
from tests.parts.jobs import Start, Started


def _submitted(mine: Runner, *steps: str, scope: str = "a-scope") -> Job:
    return mine.submit(NewJob("work", scope, {"steps": list(steps)})).job


def _in_step(start: Start, command: str, *arguments: str) -> Started:
    started = start(command, *arguments)
    assert started.line().startswith("in ")
    return started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_the_attempt_back_and_the_job_can_be_resumed(
    start: Start, mine: Runner, tmp_path: Path, number: signal.Signals
) -> None:
    job = _submitted(mine, "one", "two=wait")
    running = _in_step(start, "run", job.job_id)

    running.process.send_signal(number)
    status, said = running.ended()
    waiting = mine.table.get(job.job_id)
    steps = [step.state for step in mine.table.steps(job.job_id)]
    again = _in_step(start, "resume")
    again.go_on()

    assert status == ExitStatus.TRY_AGAIN
    assert f"{number.name}: work {job.short_id} was interrupted and can be resumed" in said[-1]
    assert (waiting.state, waiting.attempts, waiting.epoch, waiting.error) == (State.PENDING, 0, 1, None)
    assert steps == ["COMPLETED", "FAILED"]
    assert again.ended()[0] == 0
    assert effects(tmp_path) == ["one", "two"]
    assert edges(mine, job) == ["submit", "claim", "give_back", "claim", "complete"]


def test_a_signal_does_not_cut_a_block_that_must_finish(start: Start, mine: Runner, tmp_path: Path) -> None:
    job = _submitted(mine, "one=finishing", "two")
    running = _in_step(start, "run", job.job_id)

    running.process.send_signal(signal.SIGTERM)
    running.process.send_signal(signal.SIGINT)
    running.go_on()
    status, _ = running.ended()

    assert status == ExitStatus.TRY_AGAIN
    assert effects(tmp_path) == ["one", "one-finished"]
    assert mine.table.get(job.job_id).state is State.PENDING


def test_a_process_told_to_end_begins_no_further_job(start: Start, mine: Runner, tmp_path: Path) -> None:
    first = _submitted(mine, "one=wait", scope="first")
    second = _submitted(mine, "two", scope="second")
    running = _in_step(start, "resume")

    running.process.send_signal(signal.SIGTERM)
    status, said = running.ended()

    assert status == ExitStatus.TRY_AGAIN
    assert f"{second.short_id} was not begun and can be resumed" in said[-1]
    assert edges(mine, first) == ["submit", "claim", "give_back"]
    assert edges(mine, second) == ["submit"]
    assert effects(tmp_path) == []


def test_a_running_job_is_asked_to_cancel_and_stops_before_its_next_step(
    start: Start, mine: Runner, tmp_path: Path
) -> None:
    job = _submitted(mine, "one=wait", "two")
    running = _in_step(start, "run", job.job_id)

    asked = mine.table.request_cancel(job.job_id)
    running.go_on()
    status, said = running.ended()

    assert (asked.state, asked.cancel_requested) == (State.RUNNING, True)
    assert status == ExitStatus.FAILED
    assert said == [
        f"{job.job_id} CANCELLED 1",
        f"error: job {job.short_id} was cancelled (servicectl jobs retry {job.short_id})",
    ]
    assert effects(tmp_path) == ["one"]
    assert edges(mine, job) == ["submit", "claim", "stop"]
    assert [step.state for step in mine.table.steps(job.job_id)] == ["COMPLETED", "FAILED"]


def test_a_cancel_waits_for_the_end_of_a_block_that_must_finish(start: Start, mine: Runner, tmp_path: Path) -> None:
    job = _submitted(mine, "one=finishing", "two")
    running = _in_step(start, "run", job.job_id)

    mine.table.request_cancel(job.job_id)
    running.go_on()
    running.ended()

    assert effects(tmp_path) == ["one", "one-finished"]
    assert mine.table.get(job.job_id).state is State.CANCELLED


def test_a_signal_to_a_job_that_was_asked_to_cancel_cancels_it(start: Start, mine: Runner) -> None:
    job = _submitted(mine, "one=wait")
    running = _in_step(start, "run", job.job_id)

    mine.table.request_cancel(job.job_id)
    running.process.send_signal(signal.SIGTERM)
    status, _ = running.ended()

    assert status == ExitStatus.FAILED
    assert edges(mine, job) == ["submit", "claim", "stop"]


def test_a_waiting_job_is_cancelled_at_once(mine: Runner) -> None:
    job = _submitted(mine, "one")

    cancelled = mine.table.request_cancel(job.job_id)
    ran = mine.run(job.job_id)

    assert (cancelled.state, ran.exit_status, mine.resume()) == (State.CANCELLED, ExitStatus.FAILED, [])
    assert edges(mine, job) == ["submit", "cancel"]


def test_a_cancelled_job_can_be_reopened(mine: Runner, tmp_path: Path) -> None:
    job = _submitted(mine, "one")
    mine.table.request_cancel(job.job_id)

    mine.table.retry(job.job_id)
    (ran,) = mine.resume()

    assert (ran.job.state, ran.job.cancel_requested) == (State.COMPLETED, False)
    assert edges(mine, job) == ["submit", "cancel", "reopen", "claim", "complete"]
    assert effects(tmp_path) == ["one"]


def test_an_ended_job_cannot_be_cancelled_and_a_completed_one_not_be_retried(mine: Runner) -> None:
    job = _submitted(mine, "one")
    mine.run(job.job_id)

    with pytest.raises(UsageError, match="has already ended: COMPLETED"):
        mine.table.request_cancel(job.job_id)
    with pytest.raises(UsageError, match="only a failed or cancelled one"):
        mine.table.retry(job.job_id)


def test_a_cancel_that_comes_while_a_step_fails_is_not_put_off_with_it(mine: Runner) -> None:
    job = _submitted(mine, "one=unavailable")
    claimed = mine.table.claim(job.job_id, {"pid": 1, "host": "here"})
    assert claimed is not None

    mine.table.request_cancel(job.job_id)
    ended = mine.table.retry_later(claimed[0], "Redis is away", "start it", 60.0, StepChange())

    assert ended.state is State.CANCELLED
