from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from servicectl.listener.processes import Processes
from tests.listener.listening import until

# Notes its start and ends when a file of its name appears.
JOB = """
import sys, time
from pathlib import Path
folder, name = Path(sys.argv[1]), sys.argv[2]
with (folder / "started").open("a") as file:
    file.write(name + "\\n")
while not (folder / name).exists():
    time.sleep(0.01)
"""


def started(folder: Path) -> list[str]:
    file = folder / "started"
    return file.read_text().split() if file.exists() else []


def test_each_end_starts_the_next_and_each_job_is_started_once(tmp_path: Path) -> None:
    processes = Processes([sys.executable, "-c", JOB, str(tmp_path)], max_jobs=2)
    for job in ("a", "b", "c", "d", "a", "c", "c"):
        processes.start(job)

    until(lambda: len(started(tmp_path)) == 2, "two run")
    assert set(started(tmp_path)) == {"a", "b"}
    (tmp_path / "b").touch()
    until(lambda: started(tmp_path)[2:] == ["c"], "the end of one starts the next in line")
    (tmp_path / "a").touch()
    until(lambda: started(tmp_path)[2:] == ["c", "d"], "and so on")
    processes.start("a")
    for job in ("c", "d"):
        (tmp_path / job).touch()
    until(lambda: started(tmp_path)[4:] == ["a"], "a job that has ended may be started again")


def test_after_the_close_nothing_is_started_and_what_runs_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processes = Processes([sys.executable, "-c", JOB, str(tmp_path)], max_jobs=1)
    processes.start("a")
    until(lambda: started(tmp_path) == ["a"], "it runs")
    processes.start("b")

    processes.close()
    (tmp_path / "a").touch()
    processes.start("c")

    told = capsys.readouterr().err
    assert "1 job(s) go on without the listener" in told
    assert "1 waiting job(s) are left to `servicectl jobs resume`" in told
    until(lambda: processes.running == 0, "a ended by itself")
    assert started(tmp_path) == ["a"]


def test_a_process_that_cannot_be_made_is_logged_and_nobodys_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processes = Processes([str(tmp_path / "absent")], max_jobs=1)

    processes.start("0190f3a0-0000-7000-8000-00000000000a")

    told = capsys.readouterr().err
    assert "job 0000000a could not be started (No such file or directory); the resume timer takes it" in told
    assert processes.running == 0


def test_a_process_that_is_killed_makes_room(tmp_path: Path) -> None:
    killed = f"import os, sys\nif sys.argv[2] == 'a': os.kill(os.getpid(), {int(signal.SIGKILL)})\n{JOB}"
    processes = Processes([sys.executable, "-c", killed, str(tmp_path)], max_jobs=1)

    processes.start("a")
    processes.start("b")

    until(lambda: started(tmp_path) == ["b"], "b runs after a died")
    (tmp_path / "b").touch()
    until(lambda: processes.running == 0, "b ended")
