"""What a step stores, when it is used again, and when it is done again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from servicectl.errors import BadData, ExitStatus, PartyUnavailable, StoreError
from servicectl.jobs.context import JobContext
from servicectl.jobs.model import Job, NewJob, Result, State
from servicectl.jobs.runner import Kind, Ran, Runner
from tests.jobs.program import Done, effects, runner
from tests.parts.jobs import Start


def _cut_short_after_three(start: Start, mine: Runner) -> Job:
    """A job with products of its first three steps, killed before its fourth."""
    steps = ["one=file", "two=file", "three=file", "four"]
    job = mine.submit(NewJob("work", "a-scope", {"steps": steps})).job
    start("run", job.job_id, crash_at="work/four/before").ended()
    return job


def _missing(file: Path) -> None:
    file.unlink()


def _changed(file: Path) -> None:
    file.write_bytes(b"x" * file.stat().st_size)


def _truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("harm", [_missing, _changed, _truncated, _a_folder])
def test_a_product_that_is_no_longer_what_was_recorded_is_made_again_with_all_that_follows(
    start: Start, mine: Runner, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    job = _cut_short_after_three(start, mine)
    harm(tmp_path / "work" / job.job_id / "1" / "two")

    mine.resume()

    assert effects(tmp_path) == ["one", "two", "three", "two", "three", "four"]
    steps = mine.table.steps(job.job_id)
    assert [(step.name, step.attempts, step.epoch, step.state) for step in steps] == [
        ("one", 1, 1, "COMPLETED"),
        ("two", 2, 2, "COMPLETED"),
        ("three", 2, 2, "COMPLETED"),
        ("four", 2, 2, "COMPLETED"),
    ]
    assert steps[1].output["product"]["path"] == f"work/{job.job_id}/2/two"


def test_the_steps_after_a_lost_product_are_stale_until_they_are_done_again(
    start: Start, mine: Runner, tmp_path: Path
) -> None:
    job = _cut_short_after_three(start, mine)
    (tmp_path / "work" / job.job_id / "1" / "two").unlink()

    start("resume", crash_at="work/two/before").ended()
    states = [step.state for step in mine.table.steps(job.job_id)]
    mine.resume()

    assert states == ["COMPLETED", "RUNNING", "STALE", "STALE"]
    assert effects(tmp_path) == ["one", "two", "three", "two", "three", "four"]


def test_intact_products_are_used_again(start: Start, mine: Runner, tmp_path: Path) -> None:
    _cut_short_after_three(start, mine)

    mine.resume()

    assert effects(tmp_path) == ["one", "two", "three", "four"]


def test_products_are_found_again_in_a_state_folder_that_was_moved(start: Start, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    mine = runner(old)
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=file", "two"]})).job
    start("run", job.job_id, crash_at="work/two/before", folder=old).ended()

    old.rename(new)
    runner(new).resume()

    assert effects(new) == ["one", "two"]


def test_products_are_found_again_when_the_state_folder_was_given_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = runner(Path("state"))
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=file", "two=unavailable"]})).job
    mine.run(job.job_id)
    mine.run(job.job_id)

    assert effects(tmp_path / "state") == ["one"]


def _running(tmp_path: Path, act: Callable[[JobContext], Result]) -> tuple[Runner, Callable[[], Ran]]:
    mine = Runner(tmp_path, {"work": Kind("work", act)})
    job = mine.submit(NewJob("work", "a-scope")).job
    return mine, lambda: mine.run(job.job_id)


def test_a_step_gives_the_same_value_when_it_ran_and_when_it_is_remembered(tmp_path: Path) -> None:
    seen: list[Any] = []

    def act(context: JobContext) -> Result:
        seen.append(context.step("one", lambda: {"a": (1, 2.5), "b": None}, dict[str, Any]))
        seen.append(context.step("two", lambda: Done("x"), Done))
        if len(seen) == 2:
            raise PartyUnavailable("Redis", "away")
        return Result("done")

    _, run = _running(tmp_path, act)
    run()
    run()

    assert seen == [{"a": [1, 2.5], "b": None}, Done("x")] * 2


def test_an_observation_is_made_again_on_each_run_and_after_what_came_before_is_recorded(tmp_path: Path) -> None:
    looks: list[list[str]] = []

    def act(context: JobContext) -> Result:
        context.step("one", lambda: 1, int)
        context.observe(lambda: looks.append([step.state for step in mine.table.steps(context.job.job_id)]))
        if len(looks) == 1:
            raise PartyUnavailable("Redis", "away")
        return Result("done")

    mine, run = _running(tmp_path, act)
    run()
    run()

    assert looks == [["COMPLETED"], ["COMPLETED"]]


def test_a_stored_result_of_another_shape_is_a_clear_error_for_the_operator(tmp_path: Path) -> None:
    calls: list[int] = []

    def act(context: JobContext) -> Result:
        calls.append(1)
        if len(calls) == 1:
            context.step("one", lambda: {"old": "shape"}, dict[str, str])
            raise PartyUnavailable("Redis", "away")
        context.step("one", lambda: Done("x"), Done)
        return Result("done")

    mine, run = _running(tmp_path, act)
    run()
    ran = run()

    assert (ran.job.state, ran.job.needs_operator, ran.exit_status) == (State.FAILED, True, ExitStatus.FAILED)
    assert "step 'one'" in str(ran.error)
    assert "has a stored result this program cannot read: Object missing required field `name`" in str(ran.error)
    assert f"jobs retry {ran.job.short_id}" in str(ran.error)
    assert [step.state for step in mine.table.steps(ran.job.job_id)] == ["COMPLETED"]


def test_a_name_used_for_two_steps_is_a_bug_that_ends_in_the_table(tmp_path: Path) -> None:
    def act(context: JobContext) -> Result:
        context.step("one", lambda: 1, int)
        context.step("one", lambda: 2, int)
        return Result("done")

    _, run = _running(tmp_path, act)
    ran = run()

    assert ran.exit_status is ExitStatus.FAILED
    assert "ValueError: step 'one' is used twice" in (ran.job.error or "")


def test_an_action_may_catch_a_failed_step_and_go_on(tmp_path: Path) -> None:
    def fail() -> int:
        raise BadData("one cannot be used")

    def act(context: JobContext) -> Result:
        with pytest.raises(BadData):
            context.step("one", fail, int)
        context.step("two", lambda: 2, int)
        with pytest.raises(BadData):
            context.step("three", fail, int)
        return Result("done")

    mine, run = _running(tmp_path, act)
    ran = run()

    assert ran.job.state is State.COMPLETED
    assert [(step.state, step.error) for step in mine.table.steps(ran.job.job_id)] == [
        ("FAILED", "one cannot be used"),
        ("COMPLETED", None),
        ("FAILED", "one cannot be used"),
    ]


@pytest.mark.parametrize("column", ["spec", "owner", "result"])
def test_a_json_column_that_was_edited_by_hand_is_a_store_error(mine: Runner, column: str) -> None:
    job = mine.submit(NewJob("work", "a-scope")).job
    _edited(mine, f"UPDATE jobs SET {column} = '{{no json'")

    with pytest.raises(StoreError, match=rf"job {job.job_id} holds a value .* edited by hand"):
        mine.table.get(job.job_id)


def test_a_state_that_was_edited_by_hand_is_a_store_error(mine: Runner) -> None:
    job = mine.submit(NewJob("work", "a-scope")).job
    _edited(mine, "CREATE TABLE others AS FROM jobs; DROP TABLE jobs; ALTER TABLE others RENAME TO jobs")
    _edited(mine, "UPDATE jobs SET state = 'BANANA'")

    with pytest.raises(StoreError, match=r"'BANANA' is not a valid State.* edited by hand"):
        mine.table.get(job.job_id)


def test_a_step_that_was_edited_by_hand_is_a_store_error_and_the_job_is_not_claimed(start: Start, mine: Runner) -> None:
    job = _cut_short_after_three(start, mine)
    _edited(mine, "UPDATE steps SET output = '{no json' WHERE name = 'one'")

    with pytest.raises(StoreError, match="edited by hand"):
        mine.run(job.job_id)

    assert (mine.table.get(job.job_id).epoch, mine.is_interrupted(mine.table.get(job.job_id))) == (1, True)


def _edited(mine: Runner, sql: str) -> None:
    with duckdb.connect(str(mine.folder / "servicectl.duckdb")) as connection:
        connection.execute(sql)
