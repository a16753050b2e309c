"""Thousands of columns, and categories that become thousands."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from servicectl.sql import parquet_options
from servicectl.training import floor
from servicectl.training.blocks import surveyed
from servicectl.training.checkpoint import Checkpoints
from servicectl.training.mode import estimate_mb, rows_and_width
from servicectl.training.parquet import SnapshotFile
from servicectl.training.spec import GateSpec, TrainingSpec
from tests.training.making import SGD

ROWS, COLUMNS, CATEGORIES = 4000, 2000, 900
WORDS = [f"w{number}" for number in range(CATEGORIES)]
LIMIT_MB = 1000


def wide_spec(columns: int = COLUMNS, texts: int = 1) -> TrainingSpec:
    words = tuple(f"word{number}" for number in range(texts))
    return TrainingSpec(
        model_id="Wide",
        label="y",
        features=(*(f"f{number}" for number in range(columns)), *words),
        categorical=words,
        estimator=SGD,
        training="streaming",
        passes=1,
        memory_mb=LIMIT_MB,
    )


def written(path: Path, spec: TrainingSpec, options: str | None = None) -> Path:
    numbers = len(spec.features) - len(spec.categorical)
    place = np.arange(ROWS)
    start = np.datetime64("2026-01-01", "us")
    table = pa.table(
        {
            "entity_id": ["e"] * ROWS,
            "event_timestamp": start + place.astype("timedelta64[s]"),
            "y": (place % CATEGORIES > 450).astype(int),
            **{f"f{number}": (place * (number + 7) % 1999).astype(float) for number in range(numbers)},
            **{
                name: pa.array(WORDS).take(pa.array((place + number) % CATEGORIES))
                for number, name in enumerate(spec.categorical)
            },
        }
    )
    with duckdb.connect(config={"threads": 2}) as connection:
        connection.register("made", table)
        connection.execute(f"COPY made TO '{path}' ({options or parquet_options(table.num_columns)})")
    return path


@pytest.mark.parametrize(("columns", "rows"), [(1, 122_880), (60, 122_880), (1000, 8192), (2003, 4096), (9999, 2048)])
def test_a_row_group_of_any_width_fits_memory(columns: int, rows: int) -> None:
    found = re.search(r"ROW_GROUP_SIZE (\d+)", parquet_options(columns))

    assert found is not None
    assert int(found[1]) == rows


def test_two_thousand_columns_and_nine_hundred_categories_are_trained_and_judged_within_a_memory_limit(
    tmp_path: Path,
) -> None:
    spec = wide_spec()
    snapshot = written(tmp_path / "wide.parquet", spec)
    trained = floor.train(spec, snapshot, tmp_path)
    verdict = floor.judge(spec, GateSpec(), snapshot, trained.model)

    assert trained.rows_trained == ROWS * 0.8
    assert verdict.rows == ROWS * 0.2
    assert "accuracy" in verdict.challenger


def test_a_few_columns_of_many_categories_are_read_in_parts_that_fit(tmp_path: Path) -> None:
    spec = wide_spec(columns=1, texts=8)
    file = SnapshotFile(written(tmp_path / "x.parquet", spec, "FORMAT parquet"), spec)
    plan = surveyed(file, Checkpoints(tmp_path / "kept", "x"))

    assert plan.steps.width == 1 + 8 * CATEGORIES
    assert max(map(len, plan.outline.training)) * plan.steps.width * 4 < 130 << 20
    assert sum(map(len, plan.outline.training)) == ROWS * 0.8


def test_the_estimate_knows_how_many_columns_the_categories_make(tmp_path: Path) -> None:
    spec = wide_spec(columns=1, texts=2)
    snapshot = written(tmp_path / "x.parquet", spec)
    rows, width = rows_and_width(snapshot, spec)

    assert (rows, width) == (ROWS, 1 + 2 * (CATEGORIES + 1))
    assert estimate_mb(rows, width, spec) > estimate_mb(rows, 1 + 2 * 10, spec) + 100
