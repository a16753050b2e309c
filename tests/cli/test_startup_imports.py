"""What a command that has nothing to do may import: by name, because names do not depend on how busy a machine is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from servicectl.jobs.model import NewJob, Result
from servicectl.jobs.runner import Kind, Runner
from tests.parts import ROOT

# Each costs a good part of what `import duckdb` does, or several times as much. rich is for a terminal's eyes only;
# pydantic is here because some releases of typer bring it in with the first option they read.
HEAVY = {
    "azure",
    "google.protobuf",
    "grpc",
    "joblib",
    "numpy",
    "pandas",
    "pydantic",
    "redis",
    "rich",
    "scipy",
    "sklearn",
    "xgboost",
}


def _imported(folder: Path, *arguments: str) -> set[str]:
    """The modules that `servicectl ARGUMENTS` and the processes it starts import."""
    config = folder / "servicectl.toml"
    config.write_text(f"[state]\nfolder = '{folder}/state'\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SERVICECTL_")}
    finished = subprocess.run(
        [sys.executable, "-m", "servicectl", "--config", str(config), *arguments],
        cwd=ROOT,
        env=environment | {"PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    lines = [line for line in finished.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def _among(imported: set[str], packages: set[str]) -> set[str]:
    return {package for package in packages if any(f"{module}.".startswith(f"{package}.") for module in imported)}


def test_help_imports_neither_the_database_nor_anything_heavy(tmp_path: Path) -> None:
    imported = _imported(tmp_path, "--help")
    assert "typer" in imported
    assert _among(imported, HEAVY | {"duckdb"}) == set()


@pytest.mark.parametrize("command", ["list", "resume"])
def test_a_jobs_command_with_nothing_to_do_imports_the_database_and_nothing_heavy(tmp_path: Path, command: str) -> None:
    runner = Runner(tmp_path / "state", {"made-up": Kind("made-up", lambda _context: Result("done"))})
    runner.run(runner.submit(NewJob("made-up", "made-up")).job.job_id)
    imported = _imported(tmp_path, "jobs", command)
    assert "duckdb" in imported
    assert _among(imported, HEAVY) == set()


@pytest.mark.parametrize("command", ["list", "resume"])
def test_a_jobs_command_before_the_first_job_imports_nothing_heavy(tmp_path: Path, command: str) -> None:
    assert _among(_imported(tmp_path, "jobs", command), HEAVY) == set()
