"""Columns and window files for the tests of the drift statistics."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray

from servicectl.drift.comparison import Column
from servicectl.drift.windows_sql import windows_query

START = datetime(2026, 1, 1)  # noqa: DTZ001 -- naive UTC, as the feature store holds it

FEATURES_TABLE = """CREATE TABLE features_table (entity_id TEXT, feature_name TEXT, value DOUBLE,
    event_timestamp TIMESTAMP, created_at TIMESTAMP)"""


def before(values: NDArray[np.generic]) -> Column:
    return Column(values, START, START + timedelta(days=10))


def after(values: NDArray[np.generic]) -> Column:
    return Column(values, START + timedelta(days=20), START + timedelta(days=22))


def window_file(folder: Path, features: dict[str, NDArray[np.float64]], extra: str = "") -> Path:
    """A feature store of these columns, one row an hour, cut into windows. `extra`: SQL run on the table first."""
    path = folder / "windows.parquet"
    with duckdb.connect() as connection:
        connection.execute(FEATURES_TABLE)
        for name, values in features.items():
            connection.register("column_of_it", {"place": np.arange(len(values)), "value": values})
            connection.execute(
                "INSERT INTO features_table SELECT 'e' || place, ?, value, TIMESTAMP '2026-01-01' + to_hours(place), NULL"
                " FROM column_of_it",
                [name],
            )
        if extra:
            connection.execute(extra)
        connection.execute(f"COPY ({windows_query(list(features))}) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 2048)")
    return path
