"""A parent's children are inserted with its end, and run after it has let go."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from servicectl.errors import ExitStatus
from servicectl.jobs.ids import child_id
from servicectl.jobs.model import Job, NewJob, Result, State
from servicectl.jobs.runner import Runner
from tests.jobs.conftest import HandClock
from tests.jobs.program import effects, runner
from tests.parts.jobs import Start


def _parent(mine: Runner, *children: dict[str, Any]) -> Job:
    return mine.submit(NewJob("work", "parent", {"steps": ["look"], "children": list(children)})).job


def _child(scope: str, step: str) -> dict[str, Any]:
    return {"kind": "child", "scope": scope, "spec": {"steps": [step]}}


def test_children_run_after_their_parent_and_the_parents_result_comes_first(mine: Runner, tmp_path: Path) -> None:
    parent = _parent(mine, _child("a", "first"), _child("b", "second"))

    ran = mine.run_with_children(parent.job_id)

    assert [one.job.kind for one in ran] == ["work", "child", "child"]
    assert {one.job.state for one in ran} == {State.COMPLETED}
    assert {one.job.parent_id for one in ran[1:]} == {parent.job_id}
    assert effects(tmp_path) == ["look", "first", "second"]


def test_a_child_may_have_its_parents_scope(mine: Runner, tmp_path: Path) -> None:
    mine.run_with_children(_parent(mine, _child("parent", "child")).job_id)

    assert effects(tmp_path) == ["look", "child"]


@pytest.mark.parametrize(("point", "inserted"), [("complete/before", False), ("complete/recorded", True)])
def test_children_are_there_with_their_parents_end_and_not_before(
    start: Start, mine: Runner, tmp_path: Path, point: str, *, inserted: bool
) -> None:
    parent = _parent(mine, _child("a", "first"), _child("b", "second"))
    ids = sorted(child_id(parent.job_id, "child", scope) for scope in "ab")

    status, _ = start("run", parent.job_id, crash_at=f"work/{point}").ended()
    before = sorted(job.job_id for job in mine.table.children(parent.job_id))
    mine.resume()

    assert status == -signal.SIGKILL
    assert before == (ids if inserted else [])
    assert sorted(job.job_id for job in mine.table.children(parent.job_id)) == ids
    assert {job.state for job in mine.table.newest()} == {State.COMPLETED}
    assert effects(tmp_path).count("first") == 1
    assert effects(tmp_path).count("second") == 1


def test_a_killed_child_leaves_its_parent_completed_and_is_resumed(start: Start, mine: Runner, tmp_path: Path) -> None:
    parent = _parent(mine, _child("a", "first"))

    start("run", parent.job_id, crash_at="child/first/effect").ended()
    state = mine.table.get(parent.job_id).state
    (resumed,) = mine.resume()

    assert state is State.COMPLETED
    assert resumed.job.kind == "child"
    assert effects(tmp_path) == ["look", "first", "first"]


def test_a_childs_failure_is_not_its_parents_and_does_not_keep_the_next_child(mine: Runner, tmp_path: Path) -> None:
    parent = _parent(mine, _child("a", "first=bad"), _child("b", "second"))

    ran = mine.run_with_children(parent.job_id)

    assert [one.exit_status for one in ran] == [ExitStatus.OK, ExitStatus.FAILED, ExitStatus.OK]
    assert mine.table.get(parent.job_id).state is State.COMPLETED
    assert effects(tmp_path) == ["look", "second"]


def test_an_unfinished_job_that_asks_for_the_same_is_the_child(mine: Runner, tmp_path: Path) -> None:
    waiting = mine.submit(NewJob("child", "a", {"steps": ["first"]})).job

    ran = mine.run_with_children(_parent(mine, _child("a", "first")).job_id)

    assert [one.job.job_id for one in ran[1:]] == [waiting.job_id]
    assert len(mine.table.newest()) == 2
    assert effects(tmp_path) == ["look", "first"]


def test_a_child_queues_behind_another_wish_of_its_scope(mine: Runner, tmp_path: Path) -> None:
    waiting = mine.submit(NewJob("child", "a", {"steps": ["earlier"]})).job
    parent = _parent(mine, _child("a", "first"))

    mine.run(parent.job_id)
    unfinished = mine.table.unfinished(["a"])
    mine.carry_on(["a"])

    assert [job.job_id for job in unfinished] == [waiting.job_id, child_id(parent.job_id, "child", "a")]
    assert effects(tmp_path) == ["look", "earlier", "first"]


def test_a_child_that_another_process_works_on_is_left_to_it(start: Start, mine: Runner, tmp_path: Path) -> None:
    parent = _parent(mine, _child("a", "first=wait"))
    mine.run(parent.job_id)
    other = start("resume")
    assert other.line() == "in first"

    ran = mine.run_with_children(parent.job_id)
    other.go_on()

    assert [one.job.job_id for one in ran] == [parent.job_id]
    assert other.ended()[0] == 0
    assert effects(tmp_path) == ["look", "first"]


def test_a_child_that_a_resume_took_meanwhile_is_not_run_again_by_its_parents_command(
    start: Start, mine: Runner, tmp_path: Path
) -> None:
    parent = _parent(mine, _child("a", "first=wait"), _child("b", "second"))
    drains = start("run", parent.job_id)
    assert drains.line() == "in first"

    taken = mine.resume()
    drains.go_on()
    status, _ = drains.ended()

    assert [(one.job.scope, one.job.state) for one in taken] == [("b", State.COMPLETED)]
    assert status == 0
    assert effects(tmp_path) == ["look", "second", "first"]
    assert {job.attempts for job in mine.table.newest()} == {1}


def test_carry_on_takes_only_its_own_scopes(tmp_path: Path, hand: HandClock) -> None:
    mine = runner(tmp_path, clock=hand.clock)
    for scope in ("a", "b"):
        mine.submit(NewJob("work", scope, {"steps": [scope]}))

    mine.carry_on(["b", "c"])

    assert effects(tmp_path) == ["b"]


def test_two_children_of_one_kind_and_scope_are_refused_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="two children of one kind and scope"):
        Result("done", children=(NewJob("child", "a", {"n": 1}), NewJob("child", "a", {"n": 2})))
