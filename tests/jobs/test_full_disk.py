"""A disk that is full: nothing is lost, nothing half-written, and a resume completes once there is room."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servicectl.errors import ExitStatus, StoreError
from servicectl.jobs.model import Job, NewJob, State
from servicectl.jobs.products import is_intact
from servicectl.jobs.runner import Runner
from tests.jobs.conftest import edges
from tests.jobs.program import effects, runner
from tests.parts import ROOT
from tests.parts.disk import fill, fold_store, small_disk
from tests.parts.jobs import Start


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A state folder on a disk of 12 MB."""
    with small_disk(tmp_path, "12m") as folder:
        yield folder


def _submitted(mine: Runner, *steps: str) -> Job:
    return mine.submit(NewJob("work", "a-scope", {"steps": list(steps)})).job


@pytest.mark.root
@pytest.mark.parametrize("full", ["one", "two", "three"])
def test_a_disk_that_fills_up_before_a_step_is_recorded_interrupts_the_job_and_repeats_only_that_step(
    start: Start, small: Path, full: str
) -> None:
    mine = runner(small)
    steps = [f"{name}=fill" if name == full else name for name in ("one", "two", "three")]
    job = _submitted(mine, *steps)

    status, said = start("run", job.job_id).ended()
    cut_short = mine.table.get(job.job_id)
    interrupted = mine.is_interrupted(cut_short)
    (small / "big").unlink()
    (ran,) = mine.resume()

    assert status == ExitStatus.TRY_AGAIN
    assert said[0].startswith(f"TryAgain: no space left for {small}/servicectl.duckdb; nothing was lost; ")
    assert f"work {job.short_id} is left as interrupted and carried on by the next run" in said[0]
    assert "df -h" in said[0]
    assert (cut_short.state, interrupted) == (State.RUNNING, True)
    assert ran.job.state is State.COMPLETED
    repeated = {"one": ["one", "one", "two", "three"], "two": ["one", "two", "two", "three"]}
    assert effects(small) == repeated.get(full, ["one", "two", "three", "three"])
    assert edges(mine, job) == ["submit", "claim", "take_over", "complete"]


@pytest.mark.root
def test_on_a_full_disk_no_job_is_begun_and_none_is_lost(start: Start, small: Path) -> None:
    mine = runner(small)
    job = _submitted(mine, "one")
    fold_store(small)
    big = fill(small)

    status, said = start("run", job.job_id).ended()
    with pytest.raises(StoreError, match="no space left"):
        mine.submit(NewJob("work", "b-scope"))
    listed = mine.table.newest()
    big.unlink()
    (ran,) = mine.resume()

    assert (status, said[0].partition(" for ")[0]) == (ExitStatus.STORE_FULL, "StoreFull: no space left")
    assert [(one.job_id, one.state, one.attempts) for one in listed] == [(job.job_id, State.PENDING, 0)]
    assert (ran.job.state, effects(small)) == (State.COMPLETED, ["one"])


@pytest.mark.root
@pytest.mark.parametrize("leaving_kb", [64, 512, 1024, 1536])
def test_with_little_room_a_job_ends_or_is_put_off_and_is_never_given_up(
    start: Start, small: Path, leaving_kb: int
) -> None:
    mine = runner(small)
    job = _submitted(mine, "one=file", "two=file", "three")
    big = fill(small, leaving=leaving_kb << 10)

    status, said = start("run", job.job_id).ended()
    big.unlink()
    left = mine.table.get(job.job_id)
    ran = mine.run(job.job_id)

    assert status in (ExitStatus.OK, ExitStatus.TRY_AGAIN, ExitStatus.FAILED), said
    assert left.state is not State.FAILED
    assert status == ExitStatus.OK or any("no space left" in line for line in said), said
    assert ran.job.state is State.COMPLETED
    assert list(dict.fromkeys(effects(small))) == ["one", "two", "three"]  # what was not recorded is repeated


@pytest.mark.root
def test_a_full_work_folder_puts_the_job_off_with_the_disk_to_free(tmp_path: Path) -> None:
    with small_disk(tmp_path / "work", "64k") as work:
        mine = runner(tmp_path)
        job = _submitted(mine, "one", "two=file", "three")
        big = fill(work, leaving=0)

        put_off = mine.run(job.job_id)
        big.unlink()
        ran = mine.run(job.job_id)

        assert (put_off.job.state, put_off.exit_status) == (State.PENDING, ExitStatus.TRY_AGAIN)
        assert "no space left: [Errno 28]" in (put_off.job.error or "")
        assert f"df -h {tmp_path} {work}" in (put_off.job.cure or "")
        assert ran.job.state is State.COMPLETED
        assert effects(tmp_path) == ["one", "two", "two", "three"]
        product = mine.table.steps(job.job_id)[1].output["product"]
        assert is_intact({**product, "path": str(tmp_path / product["path"])})


@pytest.mark.parametrize("log", ["full", "closed"])
def test_a_log_that_cannot_be_written_does_not_end_the_work_that_it_tells_of(
    mine: Runner, tmp_path: Path, log: str
) -> None:
    job = _submitted(mine, "one=tell", "two=tell")
    reading, writing = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "tests.jobs.program", str(tmp_path), "run", job.job_id],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=full if log == "full" else writing, timeout=60,
        )  # fmt: skip
    os.close(writing)

    assert ended.stdout.decode().split() == [job.job_id, "COMPLETED", "0"]
    assert effects(tmp_path) == ["one", "two"]


@pytest.mark.parametrize("arguments", [("jobs", "list"), ("jobs", "list", "--json"), ("jobs", "show", "{}")])
def test_a_report_that_cannot_be_written_is_told_and_the_jobs_stand(
    mine: Runner, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    job = _submitted(mine, "one")
    config = tmp_path / "servicectl.toml"
    config.write_text(f'[state]\nfolder = "{tmp_path}"\n')
    command = [argument.format(job.short_id) for argument in arguments]

    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "servicectl", "--config", str(config), *command],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip

    assert ended.returncode == ExitStatus.FAILED, ended
    assert "the result could not be written to stdout: No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert mine.table.get(job.job_id).state is State.PENDING
