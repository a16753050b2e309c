"""A few seconds of the race of publishers: nothing is broken, and the reader would have seen it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench import publish_race
from tests.parts import ROOT


@pytest.mark.parts
def test_publishers_that_are_killed_break_nothing_that_a_reader_sees_and_todays_way_does() -> None:
    command = [sys.executable, "-m", "bench", "publish-race", "--quick", "--seconds", "8", "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    figures = json.loads(ended.stdout)
    assert (ended.returncode, figures["violations"]) == (0, 0), ended.stderr
    assert figures["naive_violations"] >= 1, ended.stderr
    assert min(figures["publishes"], figures["kills"], figures["reads"]) >= 1, ended.stderr


def test_a_race_with_a_violation_ends_in_failure() -> None:
    assert publish_race.is_broken({"violations": 1.0})
    assert not publish_race.is_broken({"violations": 0.0})
