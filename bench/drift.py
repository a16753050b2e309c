"""Drift statistics of 20 features, 1,000,000 older against 200,000 newer rows: time and memory beside scipy by hand.

Normal values; every fifth feature has moved by 0.3 standard deviations. Every way reads the same Parquet files in a process of its own and gives PSI on ten equal-width bins, KL and the
Kolmogorov-Smirnov test per feature. `scipy_ratio` is how many times as long scipy takes as people write it (whole
columns, `numpy.histogram`, `scipy.stats.ks_2samp`), `scipy_memory_ratio` how many times the memory. The same for
Evidently, only where it is installed. `max_abs_error` is the largest difference from scipy in any figure.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from statistics import median

LIMITS = {"max_abs_error": 1e-9}

_FEATURES = 20
_MAKE = """
import duckdb, sys
folder, features, old, new = sys.argv[1], *map(int, sys.argv[2:])
connection = duckdb.connect(config={"threads": 1, "memory_limit": "512MB"})
connection.execute("SELECT setseed(0.5)")
drawn = "sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random())"
for side, rows in (("reference", old), ("current", new)):
    columns = ", ".join(f"{drawn} + {0.3 if side == 'current' and n % 5 == 0 else 0} AS f{n}" for n in range(features))
    connection.execute(f"COPY (SELECT {columns} FROM range({rows})) TO '{folder}/{side}.parquet' (FORMAT parquet)")
"""
_TOLD = """
import json, resource, sys, time
folder, features = sys.argv[1], [f"f{n}" for n in range(int(sys.argv[2]))]
"""
_SAY = """
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "figures": figures}))
"""
_OURS = f"""{_TOLD}
import pathlib
import numpy as np
import scipy.stats
from servicectl.drift import statistics
from servicectl.drift.windows import SampleFile
started = time.perf_counter()
figures = {{}}
with SampleFile(pathlib.Path(folder) / "reference.parquet") as old, SampleFile(pathlib.Path(folder) / "current.parquet") as new:
    for name in features:
        a, b = np.sort(old.column(name).values), np.sort(new.column(name).values)
        edges = statistics.estate_edges(a, b)
        p, q = (statistics.estate_shares(statistics.estate_counts(column, edges)) for column in (a, b))
        ks = statistics.kolmogorov(a, b)
        figures[name] = [statistics.psi(p, q), statistics.kl_divergence(p, q), ks.statistic, ks.p_value]
{_SAY}"""
_SCIPY = f"""{_TOLD}
import duckdb
import numpy as np
import scipy.stats
started = time.perf_counter()
figures = {{}}
old = duckdb.sql(f"FROM '{{folder}}/reference.parquet'").df()
new = duckdb.sql(f"FROM '{{folder}}/current.parquet'").df()
for name in features:
    a, b = old[name].to_numpy(), new[name].to_numpy()
    edges = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()), 11)
    p, q = (np.histogram(column, edges)[0] / len(column) for column in (a, b))
    p, q = (np.where(share > 0, share, 1e-10) for share in (p, q))
    ks = scipy.stats.ks_2samp(a, b)
    figures[name] = [float(((q - p) * np.log(q / p)).sum()), float((q * np.log(q / p)).sum()), float(ks.statistic), float(ks.pvalue)]
{_SAY}"""
_EVIDENTLY = f"""{_TOLD}
import pandas
from evidently import Report
from evidently.presets import DataDriftPreset
started = time.perf_counter()
old, new = (pandas.read_parquet(f"{{folder}}/{{side}}.parquet") for side in ("reference", "current"))
Report([DataDriftPreset()]).run(new, old)
figures = {{}}
{_SAY}"""


def run(quick: bool) -> dict[str, float]:
    """The ratios, and our own seconds and megabytes. Raises CalledProcessError when a way fails."""
    rows = (100_000, 20_000) if quick else (1_000_000, 200_000)
    ways = {"servicectl": _OURS, "scipy": _SCIPY}
    if importlib.util.find_spec("evidently") is not None:
        ways["evidently"] = _EVIDENTLY
    with tempfile.TemporaryDirectory(prefix="servicectl-bench-") as folder:
        _python(_MAKE, folder, *map(str, (_FEATURES, *rows)))
        told: dict[str, list[dict[str, object]]] = {name: [] for name in ways}
        for _ in range(1 if quick else 3):
            for name, program in ways.items():
                told[name].append(json.loads(_python(program, folder, str(_FEATURES))))
    seconds = {name: median(float(str(one["seconds"])) for one in runs) for name, runs in told.items()}
    megabytes = {name: median(float(str(one["kb"])) for one in runs) / 1024 for name, runs in told.items()}
    figures = {"seconds": round(seconds["servicectl"], 3), "megabytes": round(megabytes["servicectl"], 1)}
    for name in ways.keys() - {"servicectl"}:
        figures[f"{name}_ratio"] = round(seconds[name] / seconds["servicectl"], 2)
        figures[f"{name}_memory_ratio"] = round(megabytes[name] / megabytes["servicectl"], 2)
    return {
        **figures,
        "max_abs_error": _largest_difference(told["servicectl"][0]["figures"], told["scipy"][0]["figures"]),
    }


def _largest_difference(ours: object, theirs: object) -> float:
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)
    return max(float(abs(a - b)) for name in theirs for a, b in zip(ours[name], theirs[name], strict=True))


def _python(program: str, *arguments: str) -> str:
    finished = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    if finished.returncode:
        sys.stderr.write(finished.stderr)
        finished.check_returncode()
    return finished.stdout
