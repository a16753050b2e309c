"""One runner per scope, whatever the table says; an owner whose epoch has passed changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from servicectl.errors import Busy, ExitStatus, PartyUnavailable
from servicectl.jobs.context import JobContext
from servicectl.jobs.model import Job, NewJob, Result, State
from servicectl.jobs.runner import Kind, Retries, Runner
from servicectl.jobs.steps import StepChange
from servicectl.jobs.table import Fenced
from servicectl.listener.processes import Processes
from tests.jobs.conftest import HandClock, edges
from tests.jobs.program import effects
from tests.parts.jobs import Start, waited_for

_CROWD = 20


def _crowd(start: Start, command: str, *arguments: str) -> list[tuple[int, list[str]]]:
    started = [start(command, *arguments) for _ in range(_CROWD)]
    assert {one.line() for one in started} == {"ready"}
    for one in started:
        one.go_on()
    return [one.ended() for one in started]


def test_of_twenty_processes_that_run_one_job_one_does_and_the_others_are_told(
    start: Start, mine: Runner, tmp_path: Path
) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one", "two", "three"]})).job

    outcomes = _crowd(start, "race", job.job_id)

    assert effects(tmp_path) == ["one", "two", "three"]
    assert edges(mine, job) == ["submit", "claim", "complete"]
    done = [f"{job.job_id} COMPLETED 0"]
    told = [said for status, said in outcomes if status == ExitStatus.TRY_AGAIN]
    assert all(said == done for status, said in outcomes if status == ExitStatus.OK)
    assert all(said[0].startswith("busy: a-scope is being worked on by another process") for said in told)
    assert {status for status, _ in outcomes} <= {ExitStatus.OK, ExitStatus.TRY_AGAIN}
    assert any(status == ExitStatus.OK for status, _ in outcomes)


def test_two_jobs_of_one_scope_never_overlap(start: Start, mine: Runner, tmp_path: Path) -> None:
    first = mine.submit(NewJob("work", "a-scope", {"steps": ["one=wait"]})).job
    table = mine.table
    second = table.complete(*_claimed_parent(mine, NewJob("child", "a-scope", {"steps": ["two"]})))[0]
    running = start("run", first.job_id)
    running.line()

    with pytest.raises(Busy, match="a-scope is being worked on by another process"):
        mine.run(second.job_id)
    running.go_on()
    running.ended()
    mine.run(second.job_id)

    assert effects(tmp_path) == ["one", "two"]


def test_a_dead_job_is_released_when_another_job_of_its_scope_begins_and_does_not_look_alive(
    start: Start, mine: Runner, tmp_path: Path
) -> None:
    dead = mine.submit(NewJob("work", "a-scope", {"steps": ["one", "two"]})).job
    second = mine.table.complete(*_claimed_parent(mine, NewJob("child", "a-scope", {"steps": ["three=wait"]})))[0]
    start("run", dead.job_id, crash_at="work/two/effect").ended()
    seen_dead = mine.table.get(dead.job_id)
    before = mine.is_interrupted(seen_dead)

    beside = start("run", second.job_id)
    beside.line()
    released, steps = mine.table.get(dead.job_id), mine.table.steps(dead.job_id)
    alive = [job.job_id for job in mine.table.newest() if job.state is State.RUNNING]
    beside.go_on()
    beside.ended()
    mine.resume()

    assert (before, released.state, alive) == (True, State.PENDING, [second.job_id])
    assert [(step.name, step.state) for step in steps] == [("one", "COMPLETED"), ("two", "FAILED")]
    assert effects(tmp_path) == ["one", "two", "three", "two"]
    assert edges(mine, dead) == ["submit", "claim", "release", "claim", "complete"]
    assert mine.table.get(dead.job_id).attempts == 2


@pytest.mark.parametrize(("cancelled", "edge"), [(True, "stop"), (False, "exhaust")])
def test_a_dead_job_that_nobody_is_to_take_up_again_ends_when_another_job_of_its_scope_begins(
    start: Start, mine: Runner, *, cancelled: bool, edge: str
) -> None:
    dead = mine.table.submit(NewJob("work", "a-scope"), step_schema=1, max_attempts=2 if cancelled else 1).job
    second = mine.table.complete(*_claimed_parent(mine, NewJob("child", "a-scope", {"steps": ["two"]})))[0]
    start("run", dead.job_id, crash_at="work/claimed").ended()
    if cancelled:
        mine.table.request_cancel(dead.job_id)

    mine.run(second.job_id)

    assert edges(mine, dead) == ["submit", "claim", edge]
    assert mine.table.get(second.job_id).state is State.COMPLETED


@pytest.mark.parametrize(
    ("step", "state"),
    [("one", "COMPLETED"), ("one=bad", "FAILED"), ("one=unavailable", "PENDING"), ("kill", "RUNNING")],
)
def test_a_job_is_not_told_as_dead_by_a_row_that_was_read_before_it_ended(
    start: Start, mine: Runner, step: str, state: str
) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["zero=wait", step.replace("kill", "one")]})).job
    running = start("run", job.job_id)
    running.line()
    read = mine.table.get(job.job_id)
    if step == "kill":
        running.killed()
    else:
        running.go_on()
        running.ended()

    dead = mine.is_interrupted(read)

    assert (read.state, mine.table.get(job.job_id).state) == (State.RUNNING, State(state))
    assert dead == (step == "kill") == (read.job_id in mine.interrupted([read]))


def test_a_row_read_in_an_earlier_epoch_tells_nothing_of_the_later_one(start: Start, mine: Runner) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one"]})).job
    for _ in range(2):
        start("run", job.job_id, crash_at="work/one/effect").ended()
    now = mine.table.get(job.job_id)

    assert mine.interrupted([replace(now, epoch=1)]) == set()
    assert mine.interrupted([now]) == {job.job_id}


def _claimed_parent(mine: Runner, child: NewJob) -> tuple[Job, Result, StepChange, list[tuple[NewJob, int, int]]]:
    parent = mine.submit(NewJob("work", "parent")).job
    claimed = mine.table.claim(parent.job_id, {})
    assert claimed is not None
    return claimed[0], Result("done"), StepChange(), [(child, 1, 3)]


def _change(mine: Runner, stale: Job) -> object:
    return mine.table.change_steps(stale, StepChange(begin="late"))


def _complete(mine: Runner, stale: Job) -> object:
    return mine.table.complete(stale, Result("late"), StepChange(), [(NewJob("child", "late"), 1, 3)])


def _fail(mine: Runner, stale: Job) -> object:
    return mine.table.fail(stale, "late", "", 1, StepChange(), needs_operator=True)


def _retry_later(mine: Runner, stale: Job) -> object:
    return mine.table.retry_later(stale, "late", "", 60.0, StepChange())


def _give_back(mine: Runner, stale: Job) -> object:
    return mine.table.give_back(stale, "late", StepChange())


def _stop(mine: Runner, stale: Job) -> object:
    return mine.table.stop(stale, StepChange())


@pytest.mark.parametrize("write", [_change, _complete, _fail, _retry_later, _give_back, _stop])
def test_no_write_of_an_owner_that_lost_its_job_changes_anything(
    mine: Runner, write: Callable[[Runner, Job], object]
) -> None:
    job = mine.submit(NewJob("work", "a-scope")).job
    first = mine.table.claim(job.job_id, {"pid": 1})
    mine.table.claim(job.job_id, {"pid": 2})
    assert first is not None
    before = mine.table.newest(), mine.table.steps(job.job_id), mine.table.events(job.job_id)

    with pytest.raises(Fenced, match="taken over by a later run"):
        write(mine, first[0])

    assert (mine.table.newest(), mine.table.steps(job.job_id), mine.table.events(job.job_id)) == before


@pytest.mark.parametrize("with_a_step", [True, False])
def test_a_run_that_lost_its_job_says_busy(tmp_path: Path, *, with_a_step: bool) -> None:
    def act(context: JobContext) -> Result:
        assert mine.table.claim(context.job.job_id, {"pid": 2}) is not None
        if with_a_step:
            context.step("late", lambda: None, type(None))
        return Result("late")

    mine = Runner(tmp_path, {"work": Kind("work", act)})
    job = mine.submit(NewJob("work", "a-scope")).job

    with pytest.raises(Busy, match="was taken over by a later run"):
        mine.run(job.job_id)

    assert (mine.table.get(job.job_id).epoch, edges(mine, job)) == (2, ["submit", "claim", "take_over"])


def test_an_owner_whose_lock_file_was_deleted_is_fenced_by_the_next_one(
    start: Start, mine: Runner, tmp_path: Path
) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=wait", "two"]})).job
    first = start("run", job.job_id)
    first.line()
    for file in (tmp_path / "locks").iterdir():
        file.unlink()

    second = start("run", job.job_id)
    second.line()
    first.go_on()
    status, said = first.ended()
    second.go_on()

    assert second.ended()[0] == 0
    assert (status, said[0].split(" (")[0]) == (75, f"busy: job {job.short_id} was taken over by a later run")
    assert effects(tmp_path) == ["one", "one", "two"]
    assert edges(mine, job) == ["submit", "claim", "take_over", "complete"]


def test_a_job_that_somebody_put_off_meanwhile_is_left_until_it_is_due(tmp_path: Path, hand: HandClock) -> None:
    def act(context: JobContext) -> Result:
        raise PartyUnavailable("Redis", "away")

    mine = Runner(tmp_path, {"work": Kind("work", act)}, clock=hand.clock, retries=Retries(3, base_s=60.0))
    job = mine.submit(NewJob("work", "a-scope")).job
    mine.run(job.job_id)

    with pytest.raises(Busy, match=f"job {job.short_id} waits until 2026-11-23 03:0"):
        mine.run(job.job_id, only_if_due=True)

    assert mine.table.get(job.job_id).attempts == 1


def test_an_action_leaves_alone_a_scope_that_another_process_holds(start: Start, tmp_path: Path) -> None:
    seen: list[bool] = []

    def act(context: JobContext) -> Result:
        for scope in ("taken", "free"):
            with context.borrowed(scope) as free:
                seen.append(free)
        return Result("done")

    mine = Runner(tmp_path, {"work": Kind("work", act)})
    holder = start("take", "taken")
    assert holder.line() == "held"

    mine.run(mine.submit(NewJob("work", "a-scope")).job.job_id)

    assert seen == [False, True]
    assert not mine.locks.alive("free")


def test_twenty_submissions_at_once_leave_one_job(start: Start, mine: Runner) -> None:
    outcomes = _crowd(start, "submit", '{"kind": "work", "scope": "a-scope", "spec": {"steps": ["one"]}}')

    (job,) = mine.table.newest()
    assert {said[0].split()[0] for _, said in outcomes} == {job.job_id}
    assert sorted(said[0].split()[1] for _, said in outcomes) == ["False"] * (_CROWD - 1) + ["True"]
    assert (edges(mine, job), job.state) == (["submit"], State.PENDING)


def test_a_thread_that_has_run_one_job_can_still_be_asked_to_cancel_the_next(tmp_path: Path) -> None:
    def act(context: JobContext) -> Result:
        context.step("one", lambda: None, type(None))
        if context.job.spec:
            mine.table.request_cancel(context.job.job_id)
        context.step("two", lambda: None, type(None))
        return Result("done")

    mine = Runner(tmp_path, {"work": Kind("work", act)})
    jobs = [mine.submit(NewJob("work", f"scope-{n}", {"cancel": True} if n else {})).job for n in range(2)]

    with ThreadPoolExecutor(1) as pool:
        ran = [pool.submit(mine.run, job.job_id).result() for job in jobs]

    assert [one.job.state for one in ran] == [State.COMPLETED, State.CANCELLED]


def test_a_run_that_the_listener_started_says_so(mine: Runner, tmp_path: Path) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one"]})).job

    Processes([sys.executable, "-m", "tests.jobs.program", str(tmp_path), "run"], max_jobs=1).start(job.job_id)
    waited_for(lambda: mine.table.get(job.job_id).ended)

    assert (mine.table.get(job.job_id).owner or {})["trigger"] == "grpc"
    assert (mine.table.events(job.job_id)[1].detail or "").endswith(", by grpc")


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE jobs SET state = 'COMPLETED'",
        "UPDATE jobs SET state = 'PENDING'",
        "UPDATE jobs SET epoch = 7",
        "DELETE FROM jobs",
    ],
)
def test_an_owner_whose_row_was_edited_by_hand_stops_and_writes_nothing_more(
    start: Start, mine: Runner, tmp_path: Path, edit: str
) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=wait", "two"]})).job
    running = start("run", job.job_id)
    running.line()
    with duckdb.connect(str(tmp_path / "servicectl.duckdb")) as connection:
        connection.execute(edit)
    before = mine.table.newest(), mine.table.steps(job.job_id), mine.table.events(job.job_id)

    running.go_on()
    status, said = running.ended()

    assert (status, said[0].split(" (")[0]) == (75, f"busy: job {job.short_id} was taken over by a later run")
    assert effects(tmp_path) == ["one"]
    assert (mine.table.newest(), mine.table.steps(job.job_id), mine.table.events(job.job_id)) == before


def test_a_scope_that_was_edited_by_hand_lets_in_a_second_owner_who_fences_the_first(
    start: Start, mine: Runner, tmp_path: Path
) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=wait", "two"]})).job
    running = start("run", job.job_id)
    running.line()
    with duckdb.connect(str(tmp_path / "servicectl.duckdb")) as connection:
        connection.execute("UPDATE jobs SET scope = 'another-scope'")

    second = start("run", job.job_id)
    second.line()
    running.go_on()
    first_status, _ = running.ended()
    second.go_on()

    assert (first_status, second.ended()[0]) == (75, 0)
    assert effects(tmp_path) == ["one", "one", "two"]
    assert edges(mine, job) == ["submit", "claim", "take_over", "complete"]
