"""A command ends at once, and nothing that it owes is left out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from tests.parts import ROOT


def _ended(program: str, stdout: IO[str] | int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )


@pytest.mark.parametrize("status", [0, 75])
def test_exit_handlers_run_and_what_was_printed_arrives(status: int) -> None:
    ended = _ended(
        "import atexit; from servicectl.leave import leave\n"
        "atexit.register(lambda: print('handled'))\n"
        f"print('printed', end=' '); leave({status})"
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "printed handled\n", "")


def test_a_thread_that_is_at_work_is_waited_for() -> None:
    ended = _ended(
        "import threading; from servicectl.leave import leave\n"
        "go = threading.Event()\n"
        "threading.Thread(target=lambda: (go.wait(), print('done'))).start()\n"
        "threading.Timer(0.05, go.set).start()\n"
        "leave(3)"
    )

    assert (ended.returncode, ended.stdout) == (3, "done\n")


def test_output_that_cannot_be_written_is_not_silent() -> None:
    with Path("/dev/full").open("w") as full:
        ended = _ended("from servicectl.leave import leave; print('lost'); leave(0)", stdout=full)

    assert ended.returncode != 0
    assert "No space left on device" in ended.stderr


def test_a_caller_that_closed_the_output_is_no_trouble() -> None:
    ended = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -c "from servicectl.leave import leave; leave(5)" >&-'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert (ended.returncode, ended.stderr) == (5, "")


def test_the_objects_of_a_command_are_not_freed_one_by_one() -> None:
    ended = _ended(
        "from servicectl.leave import leave\n"
        "class Kept:\n"
        "    def __del__(self): print('freed')\n"
        "kept = Kept(); leave(0)"
    )

    assert (ended.returncode, ended.stdout) == (0, "")
