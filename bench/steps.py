"""Six durable steps that do nothing, in a fresh process, against a bare DuckDB program and other tools.

The bare program writes the same rows into the same tables, opening the file once for each commit that is needed
(`bench/_step_programs.py`). `bare_ratio` is elapsed time, `bare_cpu_ratio` processor time: medians over rounds in which
every program runs once, after a run of each that is not counted. DBOS, Metaflow, Luigi and Prefect are measured where
`--peer-python` (default: this interpreter) can import them; below 1 means that servicectl takes less time.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

LIMITS = {"bare_ratio": 1.5, "bare_cpu_ratio": 1.5}
_PEERS = ("dbos", "metaflow", "luigi", "prefect")


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--peer-python", metavar="PYTHON", help="an interpreter that has the other tools installed")


def run(quick: bool, peer_python: str | None = None) -> dict[str, float | None]:
    """Ratios: the limited ones, and one per other tool, None where it is not installed. Raises CalledProcessError."""
    interpreters = {"servicectl": sys.executable, "bare": sys.executable}
    for peer in _PEERS:
        python = peer_python or sys.executable
        if subprocess.run([python, "-c", f"import {peer}"], capture_output=True).returncode == 0:
            interpreters[peer] = python
    with tempfile.TemporaryDirectory(prefix="servicectl-bench-") as scratch:
        folders = {name: Path(scratch) / name for name in interpreters}
        for folder in folders.values():
            folder.mkdir()
        _make_store(folders["bare"])
        for name, python in interpreters.items():
            _measured(python, name, folders[name])
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in interpreters}
        for _ in range(3 if quick else 11):
            for name, python in interpreters.items():
                taken[name].append(_measured(python, name, folders[name]))
    elapsed = {name: median(wall for wall, _ in runs) for name, runs in taken.items()}
    cpu = {name: median(used for _, used in runs) for name, runs in taken.items()}
    for name, seconds in elapsed.items():
        print(f"{name:<12} {seconds * 1000:6.0f} ms elapsed {cpu[name] * 1000:6.0f} ms CPU", file=sys.stderr)
    figures: dict[str, float | None] = {
        "bare_ratio": elapsed["servicectl"] / elapsed["bare"],
        "bare_cpu_ratio": cpu["servicectl"] / cpu["bare"],
    }
    figures |= {f"{peer}_ratio": elapsed["servicectl"] / elapsed[peer] if peer in elapsed else None for peer in _PEERS}
    return {name: None if value is None else round(value, 3) for name, value in figures.items()}


def _make_store(folder: Path) -> None:
    from servicectl.store import Store

    with Store(folder).transaction():
        pass


def _measured(python: str, name: str, folder: Path) -> tuple[float, float]:
    """(elapsed, processor) seconds of one run and all it waited for."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SERVICECTL_")}
    ours.pop("PYTHONDONTWRITEBYTECODE", None)  # else compiling is measured, again in every round
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    finished = subprocess.run(
        [python, "-m", "bench._step_programs", name, str(folder)],
        cwd=Path(__file__).parents[1],
        env=ours,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    elapsed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if finished.returncode:
        sys.stderr.buffer.write(finished.stdout + finished.stderr)
        finished.check_returncode()
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
