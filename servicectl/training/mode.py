"""In memory or in blocks: decided from an estimate that is told, never from running out of memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal

import duckdb

from servicectl.errors import ConfigError
from servicectl.sql import literal
from servicectl.training import trainers
from servicectl.training.spec import TrainingSpec

Mode = Literal["memory", "streaming"]

# Measured: reading, splitting, imputing and scaling hold up to about seven copies of a float64 value at once.
_COPIES = 7
_CATEGORY_BYTES = 200  # one-hot columns are dense; some ten categories in two copies, and the text itself
_BASE_MB = 300
_SHARE_OF_MACHINE = 0.5
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def rows_of(snapshot: Path) -> int:
    """From the footer; 0 for a file that cannot be read, which reading it will tell better."""
    with duckdb.connect() as connection:
        try:
            found = connection.execute(
                f"SELECT num_rows FROM parquet_file_metadata({literal(str(snapshot))})"
            ).fetchone()
        except duckdb.Error:
            return 0
    return int(found[0]) if found else 0


def estimate_mb(rows: int, spec: TrainingSpec) -> int:
    """What training in memory would take at its peak, in MiB, without what the estimator itself builds."""
    return _BASE_MB + rows * _bytes_per_row(spec) // (1 << 20)


def rows_that_fit(spec: TrainingSpec) -> int:
    """How many rows the estimate lets into memory."""
    return max(0, limit_mb(spec) - _BASE_MB) * (1 << 20) // _bytes_per_row(spec)


def _bytes_per_row(spec: TrainingSpec) -> int:
    numeric = len(spec.features) - len(spec.categorical) + 2
    return 8 * _COPIES * numeric + _CATEGORY_BYTES * len(spec.categorical)


def limit_mb(spec: TrainingSpec, cgroup: Path = _CGROUP) -> int:
    """`training.memory_mb`, else half of what the machine or the unit has: the same on every run, busy or not."""
    if spec.memory_mb:
        return spec.memory_mb
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no limit, or another system
        total = min(total, int(cgroup.read_text()))
    return int(total * _SHARE_OF_MACHINE) >> 20


def choose(snapshot: Path, spec: TrainingSpec) -> tuple[Mode, int]:
    """How to train on a snapshot, and the estimate in MiB that says so.

    Raises ConfigError, naming the ways out, where it fits no way that the estimator knows.
    """
    rows = rows_of(snapshot)
    needed, limit = estimate_mb(rows, spec), limit_mb(spec)
    if trainers.name_of(spec) is not None:
        trainers.check_settings(spec)
        return "streaming", needed
    if spec.training != "auto":
        if spec.training == "memory" and needed > limit and rows > 0:
            raise _too_large(spec, rows, needed, limit)
        return spec.training, needed
    if needed <= limit or rows == 0:
        return "memory", needed
    from servicectl.training.fit import estimator_of

    if learns_in_blocks(estimator_of(spec)):
        return "streaming", needed
    raise _too_large(spec, rows, needed, limit)


def reads_in_blocks(snapshot: Path, spec: TrainingSpec) -> bool:
    """Whether a snapshot is too large to judge or check a model on with all its rows in memory."""
    if spec.training != "auto":
        return spec.training == "streaming"
    return estimate_mb(rows_of(snapshot), spec) > limit_mb(spec)


def learns_in_blocks(estimator: object) -> bool:
    """Whether it has partial_fit, or can read them from external memory."""
    from servicectl.training.fit import of_xgboost

    return hasattr(estimator, "partial_fit") or of_xgboost(estimator)


def _too_large(spec: TrainingSpec, rows: int, needed: int, limit: int) -> ConfigError:
    from servicectl.training.stream import alternatives

    whose = f"training.memory_mb = {limit}" if spec.memory_mb else f"half of this machine ({limit} MiB)"
    return ConfigError(
        f"{spec.model_id}: {rows} rows with {len(spec.features)} features need about {needed} MiB in memory, more than"
        f" {whose}; {spec.estimator_path} as configured learns all rows at once",
        cure=f"set models.{spec.model_id}.estimator to {alternatives(spec)}, which learn in blocks; or set"
        " training.max_rows, or raise training.memory_mb",
    )
