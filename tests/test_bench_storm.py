"""A short storm, and what counts as a failure in it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.storm import is_fine
from tests.parts import ROOT, program

LIST = ("jobs", "list")


@pytest.mark.parametrize(
    ("arguments", "status", "out", "fine"),
    [
        (LIST, 0, '{"jobs": []}', True),
        (LIST, 75, "", False),
        (LIST, 0, "", False),
        (LIST, 0, '{"error": "busy"}', False),
        (("jobs", "list", "--unfinished"), 1, "", False),
        (("schedules", "list"), 75, "", False),
        (("sync-production",), 75, "", True),
        (("sync-production",), 1, "", False),
        (("jobs", "resume"), 75, "", True),
    ],
)
def test_only_what_works_on_a_scope_may_be_busy_and_a_list_must_be_one(
    arguments: tuple[str, ...], status: int, out: str, *, fine: bool
) -> None:
    assert is_fine(arguments, status, out) is fine


def test_in_a_storm_of_five_seconds_nobody_sees_a_lock_and_every_list_is_there_beside_a_retrain() -> None:
    program("redis-server")
    command = [sys.executable, "-m", "bench", "storm", "--json", "--seconds", "5", "--lanes", "3"]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout)
    assert (figures["lock_errors"], figures["failures"], figures["list_failures"]) == (0, 0, 0), ended.stderr
    assert min(figures["lists"], figures["calls"], figures["retrains"]) >= 1, figures


def test_a_storm_of_more_than_an_hour_is_refused() -> None:
    command = [sys.executable, "-m", "bench", "storm", "--seconds", "3601"]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert (ended.returncode, "3601 is not between 0 and 3600" in ended.stderr) == (2, True)
