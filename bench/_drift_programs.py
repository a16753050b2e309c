"""One way of `bench drift`, in a process of its own: `python -m bench._drift_programs WAY FOLDER FEATURES`.

Prints seconds, processor seconds, the peak of the process's memory (kB), and {feature: [PSI, KL, Kolmogorov-Smirnov statistic, p-value]}, PSI
and KL over Service C's ten equal-width bins. Nothing of ours is imported before the way wants it: Evidently has an
interpreter of its own.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Figures = dict[str, list[float]]
_SIDES = ("reference", "current")


def make(folder: Path, features: Sequence[str], old: int, new: int) -> None:
    """Normal values, of which every fifth feature's newer ones have moved by 0.3: as columns, and as `windows_query` cuts
    long rows."""
    import duckdb

    connection = duckdb.connect(config={"threads": 1, "memory_limit": "512MB", "temp_directory": str(folder)})
    connection.execute("SELECT setseed(0.5)")
    drawn = "sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random())"
    for side, rows in zip(_SIDES, (old, new), strict=True):
        moved = {name: 0.3 if side == "current" and place % 5 == 0 else 0 for place, name in enumerate(features)}
        columns = ", ".join(f"{drawn} + {by} AS {name}" for name, by in moved.items())
        connection.execute(f"COPY (SELECT {columns} FROM range({rows})) TO '{folder}/{side}.parquet' (FORMAT parquet)")
    parts = " UNION ALL ".join(
        f"SELECT '{name}' AS feature_name, {side} AS side, TIMESTAMP '2026-01-01' + to_seconds(file_row_number"
        f" + {side * old}) AS moment, {name} AS value FROM read_parquet('{folder}/{word}.parquet', file_row_number = true)"
        for name in features
        for side, word in enumerate(_SIDES)
    )
    connection.execute(f"COPY ({parts}) TO '{folder}/windows.parquet' (FORMAT parquet)")


def servicectl(folder: Path, features: Sequence[str]) -> Figures:
    """These four figures by the functions of the builtin statistics, column by column."""
    import numpy as np

    from servicectl.drift import statistics
    from servicectl.drift.windows import SampleFile

    figures = {}
    with SampleFile(folder / "reference.parquet") as old, SampleFile(folder / "current.parquet") as new:
        for name in features:
            a, b = (np.sort(file.column(name).values.astype(np.float64, copy=False)) for file in (old, new))
            edges = statistics.estate_edges(a, b)
            assert edges is not None
            p, q = (statistics.estate_shares(statistics.estate_counts(column, edges)) for column in (a, b))
            ks = statistics.kolmogorov(a, b)
            figures[name] = [statistics.psi(p, q), statistics.kl_divergence(p, q), ks.statistic, ks.p_value]
    return figures


def check(folder: Path, features: Sequence[str]) -> Figures:
    """All that a drift check does with a file of windows: deciles, Wasserstein, histogram and judgement too."""
    from servicectl.drift.comparison import compare
    from servicectl.drift.judgement import Rules, judge
    from servicectl.drift.windows import WindowFile

    with WindowFile(folder / "windows.parquet") as file:
        found = [compare(name, file.column(name, "reference"), file.column(name, "current")) for name in features]
    judge(found, Rules())
    return {one.feature: [float(f or 0) for f in (one.estate_psi, one.estate_kl, one.ks, one.p_value)] for one in found}


def sql(folder: Path, features: Sequence[str]) -> Figures:
    """The same four figures as SQL in DuckDB, on one core as ours; only the p-value of a statistic is no SQL."""
    import duckdb
    import numpy as np
    from scipy import stats

    connection = duckdb.connect(config={"threads": 1})
    figures = {}
    for name in features:
        both = " UNION ALL ".join(
            f"SELECT {name} AS v, {side} AS side FROM '{folder}/{word}.parquet'" for side, word in enumerate(_SIDES)
        )
        told = connection.execute(
            f"""WITH values_ AS MATERIALIZED ({both}),
            limits AS (SELECT min(v) AS low, (max(v) - min(v)) / 10 AS width, count(*) FILTER (side = 0) AS old,
                count(*) FILTER (side = 1) AS new FROM values_),
            bins AS (SELECT greatest(count(*) FILTER (side = 0) / any_value(old), 1e-10) AS p,
                greatest(count(*) FILTER (side = 1) / any_value(new), 1e-10) AS q
                FROM values_, limits GROUP BY least(floor((v - low) / width), 9)),
            steps AS (SELECT sum(1 - side) OVER (ORDER BY v) / old AS p, sum(side) OVER (ORDER BY v) / new AS q
                FROM values_, limits)
            SELECT (SELECT sum((q - p) * ln(q / p)) FROM bins), (SELECT sum(q * ln(q / p)) FROM bins),
                (SELECT max(abs(p - q)) FROM steps), old, new FROM limits"""
        ).fetchone()
        assert told is not None
        psi, kl, ks, old, new = (float(value) for value in told)
        figures[name] = [psi, kl, ks, float(stats.kstwo.sf(ks, np.round(old * new / (old + new))))]
    return figures


def scipy(folder: Path, features: Sequence[str]) -> Figures:
    """As people write it: whole columns, `numpy.histogram`, `scipy.stats.ks_2samp`."""
    import duckdb
    import numpy as np
    from scipy import stats

    old, new = (duckdb.sql(f"FROM '{folder}/{word}.parquet'").df() for word in _SIDES)
    figures = {}
    for name in features:
        a, b = old[name].to_numpy(), new[name].to_numpy()
        edges = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()), 11)
        p, q = (np.histogram(column, edges)[0] / len(column) for column in (a, b))
        p, q = (np.where(share > 0, share, 1e-10) for share in (p, q))
        ks = stats.ks_2samp(a, b)
        psi, kl = float(((q - p) * np.log(q / p)).sum()), float((q * np.log(q / p)).sum())
        figures[name] = [psi, kl, float(ks.statistic), float(ks.pvalue)]
    return figures


def evidently(folder: Path, features: Sequence[str]) -> Figures:
    """The library's own preset with its own choice of statistics; no figures to compare."""
    import pandas as pd
    from evidently import Report  # type: ignore[import-not-found]  # its own environment
    from evidently.presets import DataDriftPreset  # type: ignore[import-not-found]  # its own environment

    old, new = (pd.read_parquet(folder / f"{word}.parquet", columns=list(features)) for word in _SIDES)
    Report([DataDriftPreset()]).run(new, old)
    return {}


WAYS: dict[str, Callable[[Path, Sequence[str]], Figures]] = {
    "servicectl": servicectl,
    "check": check,
    "sql": sql,
    "scipy": scipy,
    "evidently": evidently,
}


def _warm(way: str) -> None:
    """What is imported at the first use is no part of the measurement, for anybody."""
    import importlib

    ours = ["numpy", "scipy.stats", "duckdb"]
    names: dict[str, list[str]] = {"scipy": [*ours, "pandas"], "evidently": ["pandas", "evidently.presets"]}
    own = ["servicectl.drift.judgement", "servicectl.drift.windows"]
    for name in names.get(way, [*ours, *(own if way in ("servicectl", "check") else [])]):
        importlib.import_module(name)


def main(way: str, folder: str, count: str, *rows: str) -> None:
    features = [f"f{number}" for number in range(int(count))]
    if way == "make":
        make(Path(folder), features, *map(int, rows))
        return
    _warm(way)
    started, before = time.perf_counter(), time.process_time()
    figures = WAYS[way](Path(folder), features)
    told: dict[str, Any] = {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - before,
        "kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "figures": figures,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
