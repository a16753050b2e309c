"""The comparison of six steps with a bare DuckDB program is fair: both leave the same rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from servicectl.store import Store
from tests.parts import ROOT


def _left_by(name: str, folder: Path) -> dict[str, list[Any]]:
    store = Store(folder)
    with store.transaction():
        pass
    ran = subprocess.run(
        [sys.executable, "-m", "bench._step_programs", name, str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    with store.reading() as connection:
        assert connection is not None
        return {
            "jobs": connection.execute("SELECT kind, scope, state, epoch FROM jobs").fetchall(),
            "steps": connection.execute("SELECT seq, name, state, epoch, output FROM steps ORDER BY seq").fetchall(),
            "events": connection.execute("SELECT seq, edge, from_state, to_state FROM events ORDER BY seq").fetchall(),
        }


def test_the_bare_program_leaves_the_rows_that_servicectl_leaves(tmp_path: Path) -> None:
    ours = _left_by("servicectl", tmp_path / "ours")

    assert _left_by("bare", tmp_path / "bare") == ours
    assert (len(ours["jobs"]), len(ours["steps"]), len(ours["events"])) == (1, 6, 3)
    assert ours["jobs"][0][2] == "COMPLETED"
