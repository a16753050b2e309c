"""Crash points: a process dies at the passing that was asked for, and tells each passing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import ROOT

PASSING = "from servicectl import crash\nfor name in ('a/x', 'a/x', 'b/y', 'a/x'): crash.point(name)\n"


@pytest.mark.parametrize(
    ("asked", "passed", "died"),
    [
        ("", ["a/x", "a/x", "b/y", "a/x"], False),
        ("a/x", ["a/x"], True),
        ("a/x@3", ["a/x", "a/x", "b/y", "a/x"], True),
        ("b/y@2", ["a/x", "a/x", "b/y", "a/x"], False),
        ("c/z,b/y@1", ["a/x", "a/x", "b/y"], True),
    ],
)
def test_a_process_dies_at_the_passing_that_was_asked_for(
    tmp_path: Path, asked: str, passed: list[str], died: bool
) -> None:
    trace = tmp_path / "trace"
    environment = {**os.environ, "SERVICECTL_CRASH_AT": asked, "SERVICECTL_CRASH_TRACE": str(trace)}
    process = subprocess.Popen([sys.executable, "-c", PASSING], cwd=ROOT, env=environment)
    assert process.wait(60) == (-signal.SIGKILL if died else 0)
    assert trace.read_text().splitlines() == [f"{process.pid} {name}" for name in passed]
