"""Training on more rows than memory holds, against the limit (fitting alone, rows already in memory) and scikit-learn.

For each size a snapshot of 20 DOUBLE features is written to a temporary folder as the handler writes it (`--rows` for
sizes of your own). Then, each in a process of its own, one after the other and the sizes interleaved:

    blocks    servicectl's own training in blocks, checkpoints included: survey (statistics, sample), then the fit
    limit     `partial_fit` alone over blocks of 16,384 prepared rows that are already in memory, as many as fit easily
    memory    scikit-learn's usual way, up to 5 M rows: pandas.read_parquet, the same pipeline, `fit` of one pass
    dask      its way, up to 5 M rows: partitions read and scaled one by one, `partial_fit` of each
    xgboost   servicectl's XGBoost from external memory, ten rounds, up to 5 M rows, survey aside
    extmem    XGBoost's own loader over the same file, ten rounds: ExtMemQuantileDMatrix, row groups by pyarrow

What is not installed is skipped, and that is said.

`limit_ratio` is the least, over the sizes, of rows per second in the fitting pass over the limit's, both in float32;
`rss_growth_ratio` is the peak memory of the largest size over that of the smallest. The survey is told apart, because
it is done once however many passes follow. At last the 20 M rows are trained, judged against a champion on the newest
fifth (`training.heldout_rows` at most), and checked with their memory bounded by the kernel (RLIMIT_DATA, 1 GiB); the
peak of these processes is `limited_rss_mb`. On a machine that others use, `by CPU time` says what the wall clock cannot:
the slower of the two threads (fitting, reading ahead) by its own processor time, over the limit's.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

MINIMUM = {"limit_ratio": 0.7}
LIMITS = {"rss_growth_ratio": 1.2, "limited_rss_mb": 1024.0}
FEATURES = tuple(f"f{number}" for number in range(20))
_SIZES = (1_000_000, 5_000_000, 20_000_000, 50_000_000)
_QUICK_SIZES = (500_000, 2_000_000)
_LIMIT_ROWS = 2_000_000
_MEMORY_MOST = 5_000_000
_LIMITED_ROWS, _LIMITED_MB = 20_000_000, 1024
_BOOSTED = {"estimator": "xgboost.XGBClassifier", "params": {"n_estimators": 10, "max_depth": 6}}
_PEERS = {"dask": "dask.dataframe", "xgboost": "xgboost", "extmem": "xgboost"}  # way -> what it needs


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--rows", type=int, action="append", help="a size to measure instead of 1, 5, 20 and 50 M; repeatable"
    )
    parser.add_argument("--folder", help="where snapshots are written (4.5 GB for 50 M rows)")


def run(quick: bool, rows: list[int] | None = None, folder: str | None = None) -> dict[str, float]:
    """Figures as measured. Raises CalledProcessError where a process fails."""
    sizes = tuple(sorted(rows)) if rows else _QUICK_SIZES if quick else _SIZES
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="servicectl-bench-", dir=folder) as scratch:
        for size in sizes:
            make(Path(scratch) / f"{size}.parquet", size)
        peers = [way for way, module in _PEERS.items() if _is_there(way, module)]
        for repeat in range(1 if quick else 2):
            for size in sizes:
                ways = ("limit", "blocks") if size > _MEMORY_MOST or repeat else ("limit", "blocks", "memory", *peers)
                for way in ways:
                    found.setdefault((size, way), []).append(_measured(way, Path(scratch) / f"{size}.parquet"))
        limited, limited_rss_mb = _within_limit(
            Path(scratch), [size for size in sizes if size <= _LIMITED_ROWS][-1:] or sizes[:1]
        )
    table = _table(sizes, found)
    _print(table)
    _print_peers(sizes, found)
    print(
        f"trained, judged against a champion and checked within {_LIMITED_MB} MiB of private memory: {limited:,} rows,"
        f" {limited_rss_mb:.0f} MB resident at most",
        file=sys.stderr,
    )
    return {
        "limit_ratio": round(min(row["limit_ratio"] for row in table), 3),
        "rss_growth_ratio": round(table[-1]["rss_mb"] / table[0]["rss_mb"], 3),
        "limited_rss_mb": round(limited_rss_mb, 1),
    }


def _is_there(way: str, module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        print(f"{way}: skipped, {module} is not installed", file=sys.stderr)
        return False
    return True


def make(path: Path, rows: int) -> None:
    """A snapshot as the handler writes it: in time order, DOUBLE features, the product's options, a label with noise."""
    import duckdb

    from servicectl.sql import parquet_options

    columns = ", ".join(
        f"CAST((hash(i * 20 + {number}) % 2000003) / 500000.0 - 2 AS DOUBLE) AS {name}"
        for number, name in enumerate(FEATURES)
    )
    label = "CAST(f0 + f1 / 2 - f2 + (hash(i + 777) % 1000) / 500.0 - 1 > 0 AS INTEGER)"
    with duckdb.connect(config={"threads": 2, "memory_limit": "1GB", "temp_directory": str(path.parent)}) as connection:
        connection.execute(
            "COPY (SELECT 'e' AS entity_id, TIMESTAMP '2020-01-01' + to_seconds(i) AS event_timestamp,"
            f" {label} AS y, * EXCLUDE (i) FROM (SELECT i, {columns} FROM range({rows}) AS t(i)))"
            f" TO '{path}' ({parquet_options(len(FEATURES) + 3)})"
        )


def spec(**changes: Any) -> Any:
    from servicectl.training.spec import TrainingSpec

    given: dict[str, Any] = {
        "model_id": "Bench",
        "label": "y",
        "features": FEATURES,
        "estimator": "sklearn.linear_model.SGDClassifier",
        "training": "streaming",
        "heldout_fraction": 0.02,
        "passes": 1,
    }
    return TrainingSpec(**given | changes)


def _within_limit(folder: Path, sizes: Sequence[int]) -> tuple[int, float]:
    """Train, judge and check with RLIMIT_DATA set on every child; how many rows that took, and the largest child in MB.

    Raises what they raise. In a process of its own, whose children are these and no others.
    """
    measured = _measured("limited", folder / f"{sizes[0]}.parquet")
    return sizes[0], measured["children_rss_mb"]


def _limited(snapshot: Path) -> dict[str, float]:
    from servicectl.training import floor
    from servicectl.training.spec import GateSpec

    chosen = spec(memory_mb=_LIMITED_MB, heldout_fraction=0.2)
    with tempfile.TemporaryDirectory(dir=snapshot.parent) as work:
        champion, trained = Path(work) / "champion", Path(work) / "challenger"
        champion.mkdir()
        trained.mkdir()
        older = floor.train(
            spec(memory_mb=_LIMITED_MB, heldout_fraction=0.5, params={"alpha": 0.1}), snapshot, champion
        )
        newer = floor.train(chosen, snapshot, trained)
        gate = GateSpec(slices={"half": "f0 > 0"}, max_predict_ms=1000.0)
        verdict = floor.judge(chosen, gate, snapshot, newer.model, older.model, older.trained_until)
        assert verdict.interval is not None, verdict.reason
        floor.check(chosen, snapshot, newer.model, 100)
    return {"children_rss_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


def _measured(way: str, path: Path) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.streaming", way, str(path)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    if finished.returncode:
        sys.stderr.write(finished.stderr)
        finished.check_returncode()
    measured: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return measured


def _blocks(path: Path) -> dict[str, float]:
    from servicectl.training import blocks, stream
    from servicectl.training.checkpoint import Checkpoints
    from servicectl.training.parquet import SnapshotFile

    chosen = spec()
    _warm(stream.estimator_with_partial_fit(chosen))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file, kept = SnapshotFile(path, chosen), Checkpoints(Path(folder), "bench")
        started = time.perf_counter()
        plan = blocks.surveyed(file, kept)
        surveyed, fit_cpu = time.perf_counter(), -time.thread_time()
        fitting = stream.fitted(file, plan, kept)
        ended, fit_cpu = time.perf_counter(), fit_cpu + time.thread_time()
        ahead = -time.thread_time()
        for _ in blocks.blocks_of_pass(path, chosen, plan, 0):
            pass
        ahead += time.thread_time()
    return {
        "survey": fitting.rows / (surveyed - started),
        "fit": fitting.rows / (ended - surveyed),
        "fit_cpu": fitting.rows / fit_cpu,
        "ahead_cpu": fitting.rows / ahead,
    }


def _warm(model: Any) -> None:
    """What scikit-learn imports at the first fit is not to be measured."""
    import numpy as np

    model.partial_fit(np.eye(20, dtype=np.float32), np.arange(20) % 2, classes=[0, 1])


def _limit(path: Path) -> dict[str, float]:
    from itertools import islice

    from servicectl.training import blocks, stream
    from servicectl.training.checkpoint import Checkpoints
    from servicectl.training.parquet import SnapshotFile

    chosen = spec()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        small = path.parent / "limit.parquet"
        if not small.exists():
            make(small, _LIMIT_ROWS)
        plan = blocks.surveyed(SnapshotFile(small, chosen), Checkpoints(Path(folder), "bench"))
    ready = list(islice(blocks.blocks_of_pass(small, chosen, plan, 0), _LIMIT_ROWS // blocks.BLOCK_ROWS))
    model = stream.estimator_with_partial_fit(chosen)
    assert plan.classes is not None
    model.partial_fit(ready[0].x, ready[0].y, classes=plan.classes.codes)
    rates, cpu = [], []
    for _ in range(3):
        started, worked = time.perf_counter(), time.thread_time()
        for block in ready:
            model.partial_fit(block.x, block.y)
        rows = sum(len(block.y) for block in ready)
        rates.append(rows / (time.perf_counter() - started))
        cpu.append(rows / (time.thread_time() - worked))
    return {"fit": median(rates), "fit_cpu": median(cpu)}


def _memory(path: Path) -> dict[str, float]:
    import duckdb
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    started = time.perf_counter()
    frame = duckdb.sql(f"SELECT y, {', '.join(FEATURES)} FROM '{path}'").df()
    pipeline = make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), SGDClassifier(max_iter=1, tol=None))
    pipeline.fit(frame[list(FEATURES)], frame["y"])
    return {"fit": len(frame) / (time.perf_counter() - started)}


def _dask(path: Path) -> dict[str, float]:
    from sklearn.linear_model import SGDClassifier

    dataframe = importlib.import_module("dask.dataframe")
    started = time.perf_counter()
    frame = dataframe.read_parquet(path, columns=["y", *FEATURES])
    means, scales = frame[list(FEATURES)].mean().compute(), frame[list(FEATURES)].std().compute()
    model = SGDClassifier()
    rows = 0
    for part in frame.to_delayed():
        ready = part.compute()
        model.partial_fit(((ready[list(FEATURES)] - means) / scales).to_numpy(), ready["y"], classes=[0, 1])
        rows += len(ready)
    return {"fit": rows / (time.perf_counter() - started)}


def _xgboost(path: Path) -> dict[str, float]:
    from servicectl.training import blocks, boosting
    from servicectl.training.checkpoint import Checkpoints
    from servicectl.training.parquet import SnapshotFile

    chosen = spec(**_BOOSTED)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file, kept = SnapshotFile(path, chosen), Checkpoints(Path(folder), "bench")
        plan = blocks.surveyed(file, kept)
        started = time.perf_counter()
        boosting.learn(file, plan, kept)
        return {"fit": plan.outline.rows_trained / (time.perf_counter() - started)}


def _extmem(path: Path) -> dict[str, float]:
    import pyarrow.parquet as pq
    import xgboost

    class Groups(xgboost.DataIter):  # type: ignore[misc] # xgboost is not read by the type checker
        def __init__(self, cache: Path) -> None:
            self._file, self._next = pq.ParquetFile(path), 0
            super().__init__(cache_prefix=str(cache / "cache"), on_host=False)

        def next(self, input_data: Any) -> bool:
            if self._next == self._file.num_row_groups:
                return False
            frame = self._file.read_row_group(self._next, columns=["y", *FEATURES]).to_pandas()
            input_data(data=frame[list(FEATURES)], label=frame["y"])
            self._next += 1
            return True

        def reset(self) -> None:
            self._next = 0

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        started = time.perf_counter()
        matrix = xgboost.ExtMemQuantileDMatrix(Groups(Path(folder)), max_bin=256, nthread=1)
        xgboost.train({"objective": "binary:logistic", "max_depth": 6, "nthread": 1}, matrix, num_boost_round=10)
        return {"fit": pq.ParquetFile(path).metadata.num_rows / (time.perf_counter() - started)}


def _print_peers(sizes: tuple[int, ...], found: dict[tuple[int, str], list[dict[str, float]]]) -> None:
    for size in sizes:
        for way in _PEERS:
            if (size, way) in found:
                one = found[size, way][0]
                told = f"{one['fit'] / 1e6:.2f} M rows/s, {one['rss_mb']:.0f} MB"
                print(f"{size:>14,} rows by {way}: {told}", file=sys.stderr)


def _table(sizes: tuple[int, ...], found: dict[tuple[int, str], list[dict[str, float]]]) -> list[dict[str, float]]:
    rows = []
    for size in sizes:
        pairs = zip(found[size, "blocks"], found[size, "limit"], strict=True)
        ratios = [(ours["fit"] / limit["fit"], ours, limit) for ours, limit in pairs]
        row = {
            "rows": float(size),
            "limit_ratio": median(ratio for ratio, _, _ in ratios),
            "with_survey": median(
                1 / (1 / ours["survey"] + 1 / ours["fit"]) / limit["fit"] for _, ours, limit in ratios
            ),
            "alone": median(min(ours["fit_cpu"], ours["ahead_cpu"]) / limit["fit_cpu"] for _, ours, limit in ratios),
            "survey": median(ours["survey"] for _, ours, _ in ratios),
            "fit": median(ours["fit"] for _, ours, _ in ratios),
            "limit": median(limit["fit"] for _, _, limit in ratios),
            "rss_mb": median(ours["rss_mb"] for _, ours, _ in ratios),
        }
        if (size, "memory") in found:
            in_memory = found[size, "memory"][0]
            row |= {"memory": in_memory["fit"] / row["limit"], "memory_rss_mb": in_memory["rss_mb"]}
        rows.append(row)
    return rows


def _print(table: list[dict[str, float]]) -> None:
    heads = (
        "rows",
        "of the limit",
        "by CPU time",
        "with survey",
        "survey/s",
        "fit/s",
        "limit/s",
        "RSS MB",
        "in memory",
        "its RSS MB",
    )
    print("".join(f"{head:>14}" for head in heads), file=sys.stderr)
    for row in table:
        cells = [f"{row['rows']:,.0f}", f"{row['limit_ratio']:.2f}", f"{row['alone']:.2f}", f"{row['with_survey']:.2f}"]
        cells += [f"{row[name] / 1e6:.2f} M" for name in ("survey", "fit", "limit")]
        cells += [f"{row['rss_mb']:.0f}"]
        cells += [f"{row['memory']:.2f}", f"{row['memory_rss_mb']:.0f}"] if "memory" in row else ["-", "-"]
        print("".join(f"{cell:>14}" for cell in cells), file=sys.stderr)


_WAYS = {
    "blocks": _blocks,
    "limit": _limit,
    "memory": _memory,
    "dask": _dask,
    "xgboost": _xgboost,
    "extmem": _extmem,
    "limited": _limited,
}


if __name__ == "__main__":
    measured = _WAYS[sys.argv[1]](Path(sys.argv[2]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(measured | {"rss_mb": peak}))
