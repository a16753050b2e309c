"""Drift statistics of 20 features, 1,000,000 older against 200,000 newer rows: time and memory beside other ways.

Every way reads the same Parquet files in a process of its own (`bench/_drift_programs.py`), and gives PSI on ten
equal-width bins, KL and the Kolmogorov-Smirnov test per feature:

    servicectl  the builtin statistics, these four figures only, one column at a time
    check       the path of a real check: the file of windows, then deciles, Wasserstein, histogram and judgement too
    scipy       by hand, as people write it: whole columns, `numpy.histogram`, `scipy.stats.ks_2samp`
    sql         the same four figures as SQL in DuckDB, on one core like ours
    evidently   the preset of Evidently, only where it is installed (`make .venv-evidently/.made`)

`X_ratio` is how many times the processor time of `servicectl` X takes (on a shared machine the clock on the wall tells
nothing), `X_memory_ratio` how many times the memory; `check_X_ratio` against `check`. `megabytes` is the peak of a whole `check` process, `columns_memory_ratio` that of 20
features to that of 2, since memory is to be bounded by one column. `max_abs_error` is the largest difference of either of
ours from scipy in any figure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from bench._drift_programs import Figures

LIMITS = {"max_abs_error": 1e-9, "megabytes": 300.0, "columns_memory_ratio": 1.2}
MINIMUM = {"sql_ratio": 20.0}

_ROOT = Path(__file__).resolve().parents[1]
_EVIDENTLY = _ROOT / ".venv-evidently/bin/python"
_FEATURES = 20


def run(quick: bool) -> dict[str, float | None]:
    """The ratios, and our own seconds and megabytes; None for Evidently where it is not installed.

    Raises CalledProcessError when a way fails.
    """
    rows = (100_000, 20_000) if quick else (1_000_000, 200_000)
    ways = dict.fromkeys(("servicectl", "check", "scipy", "sql"), sys.executable)
    if _EVIDENTLY.exists():
        ways["evidently"] = str(_EVIDENTLY)
    else:
        print("SKIPPED: Evidently is not installed (make .venv-evidently/.made)", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="servicectl-bench-") as folder:
        _python(sys.executable, "make", folder, _FEATURES, *rows)
        told: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
        for _ in range(1 if quick else 3):
            for name, python in ways.items():
                told[name].append(json.loads(_python(python, name, folder, _FEATURES)))
        few = json.loads(_python(sys.executable, "check", folder, 2))
    seconds = {name: median(one["cpu"] for one in runs) for name, runs in told.items()}
    elapsed = {name: median(one["seconds"] for one in runs) for name, runs in told.items()}
    megabytes = {name: median(one["kb"] for one in runs) / 1024 for name, runs in told.items()}
    print(f"{'way':<12}{'CPU s':>10}{'elapsed s':>12}{'peak MB':>10}", file=sys.stderr)
    for name in ways:
        print(f"{name:<12}{seconds[name]:>10.2f}{elapsed[name]:>12.2f}{megabytes[name]:>10.0f}", file=sys.stderr)
    figures: dict[str, float | None] = {
        "seconds": round(seconds["servicectl"], 3),
        "check_seconds": round(seconds["check"], 3),
        "megabytes": round(megabytes["check"], 1),
        "columns_memory_ratio": round(megabytes["check"] / (few["kb"] / 1024), 2),
    }
    for name in ("scipy", "sql", "evidently"):
        there = name in ways
        figures[f"{name}_ratio"] = round(seconds[name] / seconds["servicectl"], 2) if there else None
        figures[f"check_{name}_ratio"] = round(seconds[name] / seconds["check"], 2) if there else None
        figures[f"{name}_memory_ratio"] = round(megabytes[name] / megabytes["servicectl"], 2) if there else None
    theirs = told["scipy"][0]["figures"]
    return {
        **figures,
        "max_abs_error": max(_largest_difference(told[name][0]["figures"], theirs) for name in ("servicectl", "check")),
    }


def _largest_difference(ours: Figures, theirs: Figures) -> float:
    return max(float(abs(a - b)) for name in theirs for a, b in zip(ours[name], theirs[name], strict=True))


def _python(python: str, *arguments: object) -> str:
    command = [python, "-m", "bench._drift_programs", *map(str, arguments)]
    finished = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    if finished.returncode:
        sys.stderr.write(finished.stderr)
        finished.check_returncode()
    return finished.stdout
