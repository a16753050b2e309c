"""Every edge of a job's state: recorded as an event, drawn in the documentation, and nothing else moves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from servicectl.clock import stored
from servicectl.errors import ExitStatus
from servicectl.jobs.model import EDGES, ENDED, NewJob, State
from servicectl.jobs.runner import Kind, Pruned, Retries, Runner, worst
from tests.jobs.conftest import HandClock, edges
from tests.jobs.program import KINDS, act, effects, runner
from tests.parts import ROOT
from tests.parts.jobs import Start


def test_the_documented_diagram_has_exactly_the_edges_of_the_code() -> None:
    text = (ROOT / "docs/jobs.md").read_text()
    diagram = re.search(r"```mermaid\nstateDiagram-v2\n(.*?)```", text, re.DOTALL)
    assert diagram is not None
    drawn = re.findall(r"^ *(\S+) --> (\S+): (\w+)$", diagram[1], re.MULTILINE)

    assert sorted(drawn) == sorted((str(from_ or "[*]"), str(to), name) for name, (from_, to, _) in EDGES.items())
    assert all(f"| `{name}` |" in text for name in EDGES)


def test_every_edge_is_recorded_with_where_it_came_from(start: Start, tmp_path: Path, hand: HandClock) -> None:
    mine = runner(tmp_path, clock=hand.clock)
    taken = set()
    jobs = {}
    for steps in ("one", "one=unavailable", "one=bad", "one=wait"):
        new = NewJob("work", steps, {"steps": [steps]})
        jobs[steps] = mine.table.submit(new, step_schema=1, max_attempts=2).job.job_id
    mine.run(jobs["one"])
    mine.run(jobs["one=unavailable"])
    mine.table.request_cancel(jobs["one=unavailable"])
    mine.table.retry(jobs["one=unavailable"])
    mine.run(jobs["one=bad"])
    mine.table.retry(jobs["one=bad"])
    interrupted = start("run", jobs["one=wait"])
    interrupted.line()
    interrupted.process.terminate()
    interrupted.ended()
    for _ in range(2):
        start("run", jobs["one=wait"], crash_at="work/claimed").ended()
    mine.run(jobs["one=wait"])
    dead = mine.submit(NewJob("work", "dead")).job.job_id
    start("run", dead, crash_at="work/claimed").ended()
    mine.table.request_cancel(dead)
    mine.run(dead)
    beside = mine.submit(NewJob("work", "beside", {"children": [{"kind": "child", "scope": "freed"}]})).job.job_id
    freed = mine.submit(NewJob("work", "freed")).job.job_id
    mine.run(beside)
    start("run", freed, crash_at="work/claimed").ended()
    mine.run_with_children(beside)

    for job_id in (*jobs.values(), dead, freed):
        events = mine.table.events(job_id)
        states = [event.to_state for event in events]
        assert [event.from_state for event in events] == [None, *states[:-1]]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert states[-1] == mine.table.get(job_id).state
        assert all((event.from_state, event.to_state) == EDGES[event.edge][:2] for event in events)
        taken |= {event.edge for event in events}

    assert taken == EDGES.keys()


def test_a_job_that_has_ended_has_an_end_and_no_other_has(mine: Runner) -> None:
    for step in ("one", "one=bad", "one=unavailable"):
        ran = mine.run(mine.submit(NewJob("work", step, {"steps": [step]})).job.job_id)
        assert (ran.job.finished_at is not None) == (ran.job.state in ENDED) == ran.job.ended


def test_a_failure_that_time_may_cure_is_put_off_by_the_clock_of_the_table(tmp_path: Path, hand: HandClock) -> None:
    mine = runner(tmp_path, clock=hand.clock, retries=Retries(3, base_s=60.0, cap_s=3600.0))
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one", "two=unavailable"]})).job

    first = mine.run(job.job_id)
    waits = (first.job.not_before - stored(hand.moment)).total_seconds()
    too_early = mine.resume()
    hand.advance(waits - 0.001)
    still_too_early = mine.carry_on(["a-scope"])
    hand.advance(0.002)
    second = mine.resume()

    assert (first.job.state, first.exit_status, first.job.attempts) == (State.PENDING, ExitStatus.TRY_AGAIN, 1)
    assert (first.job.error, first.job.cure) == ("Redis is not available: it does not answer", "start it")
    assert 30.0 <= waits <= 60.0
    assert (too_early, still_too_early) == ([], [])
    assert [one.job.attempts for one in second] == [2]
    assert 60.0 <= (second[0].job.not_before - stored(hand.moment)).total_seconds() <= 120.0
    assert effects(tmp_path) == ["one"]


def test_a_job_that_fails_in_its_last_attempt_is_over(tmp_path: Path, hand: HandClock) -> None:
    mine = runner(tmp_path, clock=hand.clock)
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=unavailable"]})).job

    ran = [mine.run(job.job_id) for _ in range(3)][-1]

    assert (ran.job.state, ran.job.needs_operator, ran.exit_status) == (State.FAILED, False, ExitStatus.FAILED)
    assert ran.job.exit_status == ExitStatus.FAILED
    assert edges(mine, job)[1:] == ["claim", "retry_later", "claim", "retry_later", "claim", "fail"]


def test_a_failure_that_retrying_cannot_cure_fails_at_once_with_a_cure(mine: Runner) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=bad"]})).job

    ran = mine.run(job.job_id)

    assert (ran.job.state, ran.job.needs_operator, ran.job.outcome) == (State.FAILED, True, "failed")
    assert (ran.job.error, ran.job.cure) == ("one cannot be used", "use other data")
    assert [(step.state, step.error) for step in mine.table.steps(job.job_id)] == [
        ("FAILED", "one cannot be used (use other data)")
    ]


def test_a_bug_in_a_step_is_recorded_and_tried_again(mine: Runner) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=bug"]})).job

    ran = mine.run(job.job_id)

    assert (ran.job.state, ran.exit_status) == (State.PENDING, ExitStatus.FAILED)
    assert ran.job.error == "unexpected ZeroDivisionError: a bug"


def test_waits_double_up_to_a_cap_and_are_jittered_by_half() -> None:
    retries = Retries(max_attempts=5000, base_s=60.0, cap_s=3600.0)

    for attempts, most in ((1, 60.0), (2, 120.0), (6, 1920.0), (7, 3600.0), (4999, 3600.0)):
        waits = [retries.delay(attempts) for _ in range(200)]
        assert most / 2 <= min(waits) < max(waits) <= most


def test_a_job_of_an_unknown_kind_is_parked_with_the_reason(tmp_path: Path, mine: Runner) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one"]})).job

    (ran,) = Runner(tmp_path, {}).resume()

    assert (ran.job.state, ran.job.needs_operator) == (State.FAILED, True)
    assert ran.job.error == "this servicectl knows no job kind 'work'"
    assert effects(tmp_path) == []
    mine.table.retry(job.job_id)
    assert [one.job.state for one in mine.resume()] == [State.COMPLETED]


def test_a_job_with_steps_of_another_version_is_parked_unless_the_kind_reads_them(tmp_path: Path) -> None:
    def of(step_schema: int, *reads: int) -> Runner:
        return Runner(tmp_path, {**KINDS, "work": Kind("work", act, step_schema, reads)})

    job = of(1).submit(NewJob("work", "a-scope", {"steps": ["one"]})).job

    (parked,) = of(2).resume()
    of(2).table.retry(job.job_id)
    (finished,) = of(3, 1, 2).resume()

    assert (parked.job.state, parked.job.needs_operator) == (State.FAILED, True)
    assert "begun with version 1 of work's steps, this servicectl has version 2" in (parked.job.error or "")
    assert finished.job.state is State.COMPLETED


@pytest.mark.parametrize("dry_run", [True, False])
def test_prune_forgets_old_ended_jobs_and_never_an_unfinished_one(
    tmp_path: Path, hand: HandClock, *, dry_run: bool
) -> None:
    mine = runner(tmp_path, clock=hand.clock)
    old, waiting = (
        mine.submit(NewJob("work", scope, {"steps": ["one"]}, request_id=scope)).job for scope in ("old", "waiting")
    )
    mine.run(old.job_id)
    hand.advance(100.0)
    young = mine.submit(NewJob("work", "young")).job
    mine.run(young.job_id)

    work = tmp_path / "work"
    for job in (old, young, waiting):
        (work / job.job_id / "1").mkdir(parents=True, exist_ok=True)

    named = mine.prune(hand.moment - timedelta(seconds=50), dry_run=dry_run)

    assert named == Pruned([old.job_id], [])
    left = {job.job_id for job in mine.table.newest()}
    assert left == {waiting.job_id, young.job_id} | ({old.job_id} if dry_run else set())
    assert {folder.name for folder in work.iterdir()} == left
    assert bool(mine.table.events(old.job_id)) == bool(mine.table.steps(old.job_id)) == dry_run
    assert mine.submit(NewJob("work", "old", request_id="old")).created is not dry_run


@pytest.mark.parametrize("killed_at", ["rows", "folder"])
def test_a_prune_that_was_killed_is_finished_by_the_next_one(mine: Runner, tmp_path: Path, killed_at: str) -> None:
    ended = sorted(mine.submit(NewJob("work", scope, {"steps": ["one=file"]})).job.job_id for scope in ("a", "b"))
    for job_id in ended:
        mine.run(job_id)
    waiting = mine.submit(NewJob("work", "waiting")).job.job_id
    work = tmp_path / "work"
    (work / waiting / "1").mkdir(parents=True)
    (work / "notes of the operator").mkdir()
    config = tmp_path / "servicectl.toml"
    config.write_text(f'[state]\nfolder = "{tmp_path}"\n')

    def prune(crash_at: str = "", *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "servicectl", "--config", str(config), "jobs", "prune", "--days", "0"]
        environment = {**os.environ, "SERVICECTL_CRASH_AT": crash_at}
        return subprocess.run(
            [*command, "--json", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    killed = prune(f"jobs/prune/{killed_at}")
    left = sorted(path.name for path in work.iterdir() if path.name in ended)
    would = json.loads(prune("", "--dry-run").stdout)
    did = json.loads(prune().stdout)

    assert killed.returncode == -signal.SIGKILL
    assert left == (ended if killed_at == "rows" else ended[1:])
    assert (would["pruned"], would["leftovers"], would["dry_run"]) == ([], left, True)
    assert (did["pruned"], did["leftovers"], did["dry_run"]) == ([], left, False)
    assert sorted(path.name for path in work.iterdir()) == sorted([waiting, "notes of the operator"])


def test_young_work_files_without_a_job_are_left_alone(mine: Runner, tmp_path: Path) -> None:
    mine.submit(NewJob("work", "a"))
    folder = tmp_path / "work" / "00000000-0000-7000-8000-000000000000"
    folder.mkdir(parents=True)

    young = mine.prune(datetime.now(UTC) - timedelta(hours=1), dry_run=False)
    kept = folder.exists()
    os.utime(folder, (0, 0))
    old = mine.prune(datetime.now(UTC) - timedelta(hours=1), dry_run=False)

    assert (young, kept) == (Pruned([], []), True)
    assert (old, folder.exists()) == (Pruned([], [folder.name]), False)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], ExitStatus.OK),
        ([ExitStatus.OK, ExitStatus.NOT_MEASURED], ExitStatus.NOT_MEASURED),
        ([ExitStatus.NOT_MEASURED, ExitStatus.TRY_AGAIN], ExitStatus.TRY_AGAIN),
        ([ExitStatus.TRY_AGAIN, ExitStatus.FAILED, ExitStatus.OK], ExitStatus.FAILED),
        ([ExitStatus.DRIFT_FOUND, ExitStatus.NEEDS_OPERATOR], ExitStatus.NEEDS_OPERATOR),
        *(([ExitStatus.OK, status], status) for status in ExitStatus),
    ],
)
def test_the_worst_of_several_statuses_is_told(statuses: list[ExitStatus], expected: ExitStatus) -> None:
    assert worst(statuses) is expected
