"""Cancel asks, then insists; what is killed is the process on record and no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pytest

from servicectl.actions.cancel import cancel
from servicectl.clock import SYSTEM, Clock
from servicectl.errors import ExitStatus, UsageError
from servicectl.jobs import owner
from servicectl.jobs.model import Job, NewJob, State
from servicectl.jobs.runner import Runner
from tests.jobs.conftest import edges
from tests.jobs.program import effects
from tests.parts.jobs import Start, Started, is_alive, waited_for


def _running(start: Start, mine: Runner, *steps: str) -> tuple[Job, Started]:
    job = mine.submit(NewJob("work", "a-scope", {"steps": list(steps)})).job
    started = start("run", job.job_id)
    assert started.line().startswith("in ")
    return job, started


def test_a_job_that_comes_to_its_next_step_in_time_is_never_signalled(
    start: Start, mine: Runner, tmp_path: Path
) -> None:
    job, running = _running(start, mine, "one=finishing", "two")
    asked = Clock(now=SYSTEM.now, monotonic=SYSTEM.monotonic, sleep=lambda _seconds: running.go_on())

    said = cancel(mine, job, grace_s=60.0, clock=asked)

    assert (said.job.state, said.status) == (State.CANCELLED, ExitStatus.OK)
    assert running.ended()[0] == ExitStatus.FAILED
    assert effects(tmp_path) == ["one", "one-finished"]
    assert mine.table.events(job.job_id)[-1].detail == "on request"


def test_a_step_that_takes_too_long_is_cut_by_sigterm(start: Start, mine: Runner, tmp_path: Path) -> None:
    job, running = _running(start, mine, "one=wait", "two")

    # The time for the asking is over at once, that for SIGTERM after a minute.
    asked = iter([0.0])
    patient = Clock(now=SYSTEM.now, monotonic=lambda: next(asked, 1.0 + SYSTEM.monotonic() / 60), sleep=SYSTEM.sleep)

    said = cancel(mine, job, grace_s=1.0, clock=patient)

    assert said.job.state is State.CANCELLED
    assert running.ended()[0] == ExitStatus.FAILED
    assert effects(tmp_path) == []
    assert edges(mine, job) == ["submit", "claim", "stop"]
    assert mine.table.events(job.job_id)[-1].detail == "on request, at: SIGTERM"


def test_a_job_that_ended_before_it_could_stop_is_told_as_it_is(start: Start, mine: Runner) -> None:
    job, running = _running(start, mine, "one=finishing")
    mine.table.request_cancel(job.job_id)
    running.go_on()
    running.ended()

    with pytest.raises(UsageError, match="has already ended: COMPLETED"):
        cancel(mine, job, grace_s=0.0)

    assert edges(mine, job) == ["submit", "claim", "complete"]


def test_a_process_that_does_not_react_is_killed_on_the_operators_word_and_its_job_cancelled(
    start: Start, mine: Runner
) -> None:
    job, running = _running(start, mine, "one=wait")
    running.process.send_signal(signal.SIGSTOP)

    asked = cancel(mine, job, grace_s=0.0)
    alive = running.process.poll() is None
    killed = cancel(mine, job, grace_s=0.0, kill=True)

    assert (asked.job.state, asked.status, alive) == (State.RUNNING, ExitStatus.TRY_AGAIN, True)
    assert f"servicectl jobs cancel {job.short_id} --kill" in asked.says
    assert (killed.job.state, killed.status) == (State.CANCELLED, ExitStatus.OK)
    assert running.process.wait(60) == -signal.SIGKILL
    assert edges(mine, job) == ["submit", "claim", "stop"]
    assert [step.state for step in mine.table.steps(job.job_id)] == ["FAILED"]


def test_a_training_child_dies_with_its_killed_job(start: Start, mine: Runner, tmp_path: Path) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one=train"]})).job
    running = start("run", job.job_id)
    waited_for((tmp_path / "child").exists)
    child = int((tmp_path / "child").read_text())
    running.process.send_signal(signal.SIGSTOP)
    assert is_alive(child)

    killed = cancel(mine, job, grace_s=0.0, kill=True)

    assert killed.job.state is State.CANCELLED
    running.process.wait(60)
    waited_for(lambda: not is_alive(child))


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody else, which may have got the pid that is on record."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process


def _recorded(mine: Runner, job: Job, changed: Mapping[str, Any]) -> None:
    """Change what is on record about the job's owner; None takes a member away."""
    told = {**(mine.table.get(job.job_id).owner or {}), **changed}
    with duckdb.connect(str(mine.folder / "servicectl.duckdb")) as connection:
        kept = {name: value for name, value in told.items() if value is not None}
        connection.execute("UPDATE jobs SET owner = ?", [json.dumps(kept)])


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"started": 1}, "is another one by now"),
        ({"started": None}, "the start time was not recorded"),
        ({"host": "elsewhere"}, "it runs on elsewhere"),
        ({"boot_id": "an earlier one"}, "its process ended when this machine was last started"),
    ],
)
def test_a_process_that_is_not_proven_to_be_the_owner_gets_no_signal_at_all(
    start: Start, mine: Runner, victim: subprocess.Popen[bytes], changed: dict[str, Any], why: str
) -> None:
    job, running = _running(start, mine, "one=wait")
    now = owner.this_process()
    of_victim = {"host": now["host"], "boot_id": now["boot_id"], "pid": victim.pid, "started": _started(victim.pid)}
    _recorded(mine, job, {**of_victim, **changed})

    said = cancel(mine, job, grace_s=0.0, kill=True)

    assert victim.poll() is None
    assert running.process.poll() is None
    assert (said.job.state, said.status) == (State.RUNNING, ExitStatus.TRY_AGAIN)
    assert why in said.says
    running.go_on()


def test_the_proof_lets_the_signal_reach_the_process_on_record(victim: subprocess.Popen[bytes]) -> None:
    told = {**owner.this_process(), "pid": victim.pid, "started": _started(victim.pid)}

    unsent = owner.send(told, signal.SIGTERM)

    assert unsent is None
    assert victim.wait(60) == -signal.SIGTERM
    assert owner.send(told, signal.SIGTERM) == f"process {victim.pid} is gone"


@pytest.mark.parametrize("pid", [0, -1, 10**30, "12", None])
def test_a_pid_that_was_edited_by_hand_gets_no_signal(pid: object) -> None:
    assert owner.send({**owner.this_process(), "pid": pid}, signal.SIGKILL) is not None


def _started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_what_a_claim_records_proves_the_very_process(start: Start, mine: Runner) -> None:
    job, running = _running(start, mine, "one=wait")
    recorded = mine.table.get(job.job_id).owner or {}

    assert (recorded["pid"], recorded["started"]) == (running.process.pid, _started(running.process.pid))
    assert (recorded["host"], recorded["trigger"]) == (os.uname().nodename, "operator")
    running.go_on()


def test_cancelling_a_dead_job_does_not_take_up_one_that_was_retried_meanwhile(start: Start, mine: Runner) -> None:
    job = mine.submit(NewJob("work", "a-scope", {"steps": ["one"]})).job
    mine.table.request_cancel(job.job_id)
    mine.table.retry(job.job_id)

    seen = mine.table.stop_dead(job.job_id)

    assert (seen.state, seen.epoch) == (State.PENDING, 0)
