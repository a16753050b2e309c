"""Submitting: scope is mutual exclusion, request_id is idempotence."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from servicectl.errors import Busy, UsageError
from servicectl.jobs.model import NewJob, State
from servicectl.jobs.runner import Runner
from tests.jobs.conftest import HandClock
from tests.jobs.program import runner


def test_a_submitted_job_waits_and_is_due_at_once(mine: Runner) -> None:
    submitted = mine.submit(NewJob("work", "a-scope", {"steps": []}, trigger="timer"))

    job = submitted.job
    assert (submitted.created, job.state, job.epoch, job.attempts, job.trigger) == (True, State.PENDING, 0, 0, "timer")
    assert job.spec == {"steps": []}
    assert uuid.UUID(job.job_id).version == 7
    assert [ran.job.job_id for ran in mine.resume()] == [job.job_id]


def test_a_repeated_request_gets_the_same_job_also_when_it_has_ended(mine: Runner) -> None:
    first = mine.submit(NewJob("work", "a-scope", request_id="slot-1")).job
    before = mine.submit(NewJob("work", "a-scope", request_id="slot-1"))
    mine.run(first.job_id)

    after = mine.submit(NewJob("work", "a-scope", request_id="slot-1"))

    assert (before.job, before.created) == (first, False)
    assert (after.job.job_id, after.job.state, after.created) == (first.job_id, State.COMPLETED, False)


def test_a_request_that_joined_an_unfinished_job_gets_that_job_for_ever(mine: Runner) -> None:
    first = mine.submit(NewJob("work", "a-scope", request_id="slot-1")).job
    joined = mine.submit(NewJob("work", "a-scope", request_id="slot-2"))
    mine.run(first.job_id)

    repeated = mine.submit(NewJob("work", "a-scope", request_id="slot-2"))

    assert (joined.job.job_id, joined.created) == (first.job_id, False)
    assert (repeated.job.job_id, repeated.created) == (first.job_id, False)


def test_request_ids_of_two_kinds_are_apart(mine: Runner) -> None:
    work = mine.submit(NewJob("work", "a-scope", request_id="slot-1"))
    child = mine.submit(NewJob("child", "b-scope", request_id="slot-1"))

    assert work.created
    assert child.created


def test_without_a_request_id_an_ended_job_is_followed_by_a_new_one(mine: Runner) -> None:
    first = mine.submit(NewJob("work", "a-scope")).job
    mine.run(first.job_id)

    second = mine.submit(NewJob("work", "a-scope"))

    assert second.created
    assert second.job.job_id != first.job_id


def test_the_same_wish_for_a_busy_scope_joins_the_unfinished_job(mine: Runner) -> None:
    first = mine.submit(NewJob("work", "a-scope", {"a": 1, "b": 2})).job

    second = mine.submit(NewJob("work", "a-scope", {"b": 2, "a": 1}))

    assert (second.job.job_id, second.created) == (first.job_id, False)


@pytest.mark.parametrize("other", [NewJob("work", "a-scope", {"a": 2}), NewJob("child", "a-scope", {"a": 1})])
def test_another_wish_for_a_busy_scope_is_refused_by_name(mine: Runner, other: NewJob) -> None:
    first = mine.submit(NewJob("work", "a-scope", {"a": 1})).job

    with pytest.raises(Busy) as caught:
        mine.submit(other)

    assert f"a-scope has an unfinished work job {first.short_id} with other parameters" in caught.value.message
    assert f"jobs cancel {first.short_id}" in caught.value.cure
    assert len(mine.table.newest()) == 1


def test_a_failed_job_cannot_be_retried_beside_an_unfinished_one_of_its_scope(mine: Runner) -> None:
    failed = mine.submit(NewJob("work", "a-scope", {"steps": ["one=bad"]})).job
    mine.run(failed.job_id)
    other = mine.submit(NewJob("work", "a-scope", {"steps": ["two"]})).job

    with pytest.raises(Busy, match=other.short_id):
        mine.table.retry(failed.job_id)


def test_a_job_is_found_by_the_ends_of_its_id(tmp_path: Path, hand: HandClock) -> None:
    mine = runner(tmp_path, clock=hand.clock)
    first = mine.submit(NewJob("work", "a-scope")).job
    second = mine.submit(NewJob("work", "b-scope")).job

    assert mine.table.find(first.short_id) == first
    assert mine.table.find(f" {second.job_id.upper()} ") == second
    with pytest.raises(UsageError, match="fits 2 jobs"):
        mine.table.find(first.job_id[:8])


@pytest.mark.parametrize(
    "text", ["", "ffffffff-0000-0000-0000-000000000000", "no id at all", "%", "'; DROP TABLE jobs"]
)
def test_an_unknown_job_is_a_usage_error_everywhere(mine: Runner, text: str) -> None:
    mine.submit(NewJob("work", "a-scope"))

    for ask in (mine.table.find, mine.table.get, mine.run, mine.table.request_cancel, mine.table.retry):
        with pytest.raises(UsageError, match="there is no job"):
            ask(text)
    assert (mine.table.steps(text), mine.table.events(text)) == ([], [])


def test_where_nothing_was_ever_stored_there_is_nothing_and_nothing_is_made(tmp_path: Path) -> None:
    mine = runner(tmp_path / "new")

    assert (mine.table.newest(), mine.table.unfinished(), mine.resume()) == ([], [], [])
    assert not (tmp_path / "new").exists()
