"""CPU time of commands that have nothing to do, against that of `python -c "import duckdb"`.

CPU (user + system of the child and of all it waited for), not elapsed time, so that a busy machine changes it little;
rounds are interleaved, so that what it does change falls on both sides of the ratio alike.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

LIMITS = {"help_ratio": 2.0, "jobs_list_ratio": 2.0, "idle_resume_ratio": 2.0}
_PEER = "peer"


def run(quick: bool) -> dict[str, float]:
    """Ratios of medians, one per name in LIMITS. Raises CalledProcessError when a command fails."""
    with tempfile.TemporaryDirectory(prefix="servicectl-bench-") as scratch:
        config = Path(scratch) / "servicectl.toml"
        config.write_text(f"[state]\nfolder = '{scratch}/state'\n")
        _do_some_jobs(Path(scratch) / "state")
        servicectl = [sys.executable, "-m", "servicectl"]
        commands = {
            _PEER: [sys.executable, "-c", "import duckdb"],
            "help_ratio": [*servicectl, "--help"],
            "jobs_list_ratio": [*servicectl, "--config", str(config), "jobs", "list"],
            "idle_resume_ratio": [*servicectl, "--config", str(config), "jobs", "resume"],
        }
        for command in commands.values():  # bytecode is written before anything counts
            _cpu_seconds(command)
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(4 if quick else 15):
            for name, command in commands.items():
                seconds[name].append(_cpu_seconds(command))
    peer = median(seconds[_PEER])
    return {name: round(median(seconds[name]) / peer, 3) for name in LIMITS}


def _do_some_jobs(state_folder: Path) -> None:
    """Without a job store the commands have not even a database to open."""
    from servicectl.jobs.model import NewJob, Result
    from servicectl.jobs.runner import Kind, Runner

    runner = Runner(state_folder, {"bench": Kind("bench", lambda _context: Result("done"))})
    for _ in range(5):
        runner.run(runner.submit(NewJob("bench", "bench")).job.job_id)


def _cpu_seconds(command: list[str]) -> float:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SERVICECTL_")}
    ours.pop("PYTHONDONTWRITEBYTECODE", None)  # else compiling is measured, again in every round
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = subprocess.run(command, env=ours, stdin=subprocess.DEVNULL, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if finished.returncode:
        sys.stderr.buffer.write(finished.stderr)
        finished.check_returncode()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
