"""The operator takes a job up again, from where it stood or from an earlier step."""

from __future__ import annotations

from pathlib import Path

import pytest

from servicectl.errors import ServicectlError, UsageError
from servicectl.jobs.model import Job, NewJob, State
from servicectl.jobs.runner import Runner
from tests.jobs.program import effects, runner
from tests.parts.jobs import Start


def _failed(mine: Runner) -> Job:
    """Failed in its fourth step; the others left files."""
    steps = ["one=file", "two=file", "three=file", "four=bad"]
    return mine.run(mine.submit(NewJob("work", "a-scope", {"steps": steps})).job.job_id).job


def test_a_named_step_and_all_after_it_are_done_again(mine: Runner, tmp_path: Path) -> None:
    job = _failed(mine)

    again = mine.table.retry(job.job_id, "two")
    states = [step.state for step in mine.table.steps(job.job_id)]
    ran = mine.run(job.job_id)

    assert (again.state, again.attempts, again.error) == (State.PENDING, 0, None)
    assert states == ["COMPLETED", "STALE", "STALE", "STALE"]
    assert effects(tmp_path) == ["one", "two", "three", "two", "three"]
    assert ran.job.state is State.FAILED
    assert [(step.name, step.attempts, step.epoch) for step in mine.table.steps(job.job_id)] == [
        ("one", 1, 1), ("two", 2, 2), ("three", 2, 2), ("four", 2, 2),
    ]  # fmt: skip


def test_without_a_named_step_finished_ones_stay_finished(mine: Runner, tmp_path: Path) -> None:
    job = _failed(mine)

    mine.table.retry(job.job_id)
    mine.run(job.job_id)

    assert effects(tmp_path) == ["one", "two", "three"]


def test_a_step_that_was_never_begun_is_told_with_those_that_were_and_nothing_changes(mine: Runner) -> None:
    job = _failed(mine)
    before = mine.table.get(job.job_id), mine.table.steps(job.job_id), mine.table.events(job.job_id)

    with pytest.raises(UsageError, match=r"has begun no step 'five'; its steps: one, two, three, four"):
        mine.table.retry(job.job_id, "five")

    assert (mine.table.get(job.job_id), mine.table.steps(job.job_id), mine.table.events(job.job_id)) == before


def test_a_cancelled_job_can_be_taken_up_from_an_earlier_step(start: Start, mine: Runner, tmp_path: Path) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one", "two", "three"]})).job
    start("run", job.job_id, crash_at="work/three/before").ended()
    mine.table.request_cancel(job.job_id)
    mine.run(job.job_id)

    mine.table.retry(job.job_id, "one")
    ran = mine.run(job.job_id)

    assert ran.job.state is State.COMPLETED
    assert effects(tmp_path) == ["one", "two", "one", "two", "three"]


def test_a_retry_that_dies_at_once_still_does_the_named_step_again(start: Start, mine: Runner, tmp_path: Path) -> None:
    job = _failed(mine)
    mine.table.retry(job.job_id, "two")

    start("run", job.job_id, crash_at="work/claimed").ended()
    mine.run(job.job_id)

    assert effects(tmp_path) == ["one", "two", "three", "two", "three"]


@pytest.mark.parametrize(
    ("steps", "crash_at", "state", "cure"),
    [
        (["one"], "", "COMPLETED", "run its command again"),
        (["one=unavailable"], "", "PENDING", "jobs cancel, then jobs retry --from"),
        (["one"], "work/one/before", "RUNNING", "jobs resume"),
    ],
)
def test_a_job_in_another_state_is_refused_with_what_to_do_instead(
    start: Start, mine: Runner, steps: list[str], crash_at: str, state: str, cure: str
) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": steps})).job
    start("run", job.job_id, crash_at=crash_at).ended()

    with pytest.raises(UsageError, match=f"is {state}; only a failed or cancelled one") as refused:
        mine.table.retry(job.job_id, "one")

    assert cure in refused.value.cure
    assert mine.table.get(job.job_id).state == state


def test_a_stored_value_that_cannot_be_read_is_cured_by_redoing_its_step(tmp_path: Path, mine: Runner) -> None:
    job = _failed(mine)
    with mine.table._store.transaction() as connection:
        connection.execute("""UPDATE steps SET output = '{"another": "shape"}' WHERE name = 'two'""")
    mine.table.retry(job.job_id)

    parked = mine.run(job.job_id)
    mine.table.retry(job.job_id, "two")
    ran = mine.run(job.job_id)

    assert isinstance(parked.error, ServicectlError)
    assert f"servicectl jobs retry {job.short_id} --from two" in parked.error.cure
    assert effects(tmp_path) == ["one", "two", "three", "two", "three"]
    assert ran.job.error == "four cannot be used"


def test_a_dead_letter_is_listed_until_it_is_retried(tmp_path: Path) -> None:
    mine = runner(tmp_path)
    job = _failed(mine)
    mine.submit(NewJob("work", "b-scope", {"steps": ["one"]}))

    failed = mine.table.newest(failed_only=True)
    mine.table.retry(job.job_id)

    assert [one.job_id for one in failed] == [job.job_id]
    assert mine.table.newest(failed_only=True) == []
