"""In memory or in blocks: decided from an estimate that is told, never from running out of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import duckdb

from servicectl.errors import ConfigError
from servicectl.sql import identifier, literal
from servicectl.training import trainers
from servicectl.training.machine import memory_bytes
from servicectl.training.parquet import width_of
from servicectl.training.spec import TrainingSpec

Mode = Literal["memory", "streaming"]

# Measured: reading, splitting, imputing and scaling hold up to about seven copies of a float64 value at once.
_COPIES = 7
_TEXT_BYTES = 40  # of a categorical value itself
_ONE_HOT_BYTES = 16  # of each of its columns: dense, two copies
_BASE_MB = 300
_SHARE_OF_MACHINE = 0.5


def rows_and_width(snapshot: Path, spec: TrainingSpec) -> tuple[int, int]:
    """Rows, from the footer, and columns once categories are encoded, from their true number.

    No rows for a file that cannot be read, which reading it will tell better.
    """
    file = f"read_parquet({literal(str(snapshot))})"
    counts = ", ".join(["count(*)", *(f"count(DISTINCT {identifier(name)})" for name in spec.categorical)])
    with duckdb.connect(config={"threads": spec.threads}) as connection:
        try:
            found = connection.execute(f"SELECT {counts} FROM {file}").fetchone()
        except duckdb.Error:
            return 0, width_of(spec, [0] * len(spec.categorical))
    rows, *categories = found or (0,)
    return int(rows), width_of(spec, categories)


def estimate_mb(rows: int, width: int, spec: TrainingSpec) -> int:
    """What training in memory would take at its peak, in MiB, without what the estimator itself builds."""
    return _BASE_MB + rows * _bytes_per_row(width, spec) // (1 << 20)


def rows_that_fit(width: int, spec: TrainingSpec) -> int:
    """How many rows the estimate lets into memory."""
    return max(0, limit_mb(spec) - _BASE_MB) * (1 << 20) // _bytes_per_row(width, spec)


def _bytes_per_row(width: int, spec: TrainingSpec) -> int:
    numeric = len(spec.features) - len(spec.categorical)
    return 8 * _COPIES * (numeric + 2) + _TEXT_BYTES * len(spec.categorical) + _ONE_HOT_BYTES * (width - numeric)


def limit_mb(spec: TrainingSpec) -> int:
    """`training.memory_mb`, else half of what the machine or the unit has: the same on every run, busy or not."""
    return spec.memory_mb or int(memory_bytes() * _SHARE_OF_MACHINE) >> 20


def choose(snapshot: Path, spec: TrainingSpec) -> tuple[Mode, int]:
    """How to train on a snapshot, and the estimate in MiB that says so.

    Raises ConfigError, naming the ways out, where it fits no way that the estimator knows.
    """
    rows, width = rows_and_width(snapshot, spec)
    needed, limit = estimate_mb(rows, width, spec), limit_mb(spec)
    if trainers.name_of(spec) is not None:
        trainers.check_settings(spec)
        return "streaming", needed
    if spec.training != "auto":
        if spec.training == "memory" and needed > limit and rows > 0:
            raise _too_large(spec, rows, width, needed, limit)
        return spec.training, needed
    if needed <= limit or rows == 0:
        return "memory", needed
    from servicectl.training.fit import estimator_of

    if learns_in_blocks(estimator_of(spec)):
        return "streaming", needed
    raise _too_large(spec, rows, width, needed, limit)


def reads_in_blocks(snapshot: Path, spec: TrainingSpec) -> bool:
    """Whether a snapshot is too large to judge or check a model on with all its rows in memory."""
    if spec.training != "auto":
        return spec.training == "streaming"
    return estimate_mb(*rows_and_width(snapshot, spec), spec) > limit_mb(spec)


def learns_in_blocks(estimator: object) -> bool:
    """Whether it has partial_fit, or can read them from external memory."""
    from servicectl.training.fit import of_xgboost

    return hasattr(estimator, "partial_fit") or of_xgboost(estimator)


def _too_large(spec: TrainingSpec, rows: int, width: int, needed: int, limit: int) -> ConfigError:
    from servicectl.training.stream import alternatives

    whose = (
        f"training.memory_mb = {limit}" if spec.memory_mb else f"half of what this machine or unit has ({limit} MiB)"
    )
    return ConfigError(
        f"{spec.model_id}: {rows} rows with {len(spec.features)} features ({width} columns) need about {needed} MiB in memory, more than"
        f" {whose}; {spec.estimator_path} as configured learns all rows at once",
        cure=f"set models.{spec.model_id}.estimator to {alternatives(spec)}, which learn in blocks; or set"
        " training.max_rows, or raise training.memory_mb",
    )
