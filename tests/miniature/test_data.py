from __future__ import annotations

import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import duckdb
import pytest

from servicectl.miniature import data
from tests.parts import ROOT


@pytest.fixture
def store() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty features_table as the handler makes it."""
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE features_table (entity_id TEXT, feature_name TEXT, value DOUBLE, "
            "event_timestamp TIMESTAMP, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
        )
        yield connection


def values_of(store: duckdb.DuckDBPyConnection, entity_id: str) -> dict[str, float]:
    return dict(
        store.execute("SELECT feature_name, value FROM features_table WHERE entity_id = ?", [entity_id]).fetchall()
    )


def test_the_file_holds_the_calls_in_order_of_time() -> None:
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT count(*), count(DISTINCT entity_id), count(*) FILTER (event_timestamp < before) FROM ("
            "  SELECT *, lag(event_timestamp) OVER (ORDER BY file_row_number) AS before "
            "  FROM read_parquet(?, file_row_number = true))",
            [str(data.FILE)],
        ).fetchone()

    assert rows == (data.TOTAL_ROWS, data.TOTAL_ROWS, 0)


def test_the_old_and_the_new_calls_do_not_overlap() -> None:
    assert data.OLD_ROWS + data.NEW_ROWS <= data.TOTAL_ROWS


def test_neither_the_leaking_duration_nor_the_label_is_a_feature() -> None:
    assert "call_duration_s" not in data.FEATURES
    assert data.LABEL not in data.FEATURES
    assert "call_duration_s" not in data.insert_statement(0, 1)
    assert len(data.FEATURES) == 10


def test_a_call_becomes_one_number_per_feature_and_the_label(store: duckdb.DuckDBPyConnection) -> None:
    store.execute(data.insert_statement(0, 3))

    assert values_of(store, "call_00002") == {
        "age": 33,
        "balance_eur": 2,
        "campaign_contacts": 1,
        "days_since_previous": -1,
        "previous_contacts": 0,
        "credit_default": 0,
        "housing_loan": 1,
        "personal_loan": 1,
        "contact_cellular": 0,
        "previous_success": 0,
        "subscribed": 0,
    }
    assert store.execute("SELECT DISTINCT event_timestamp, created_at FROM features_table ORDER BY 1").fetchall() == [
        (datetime(2008, 5, 5, 8, 0, second), datetime(2008, 5, 5, 8, 0, second))  # noqa: DTZ001 -- as DuckDB returns it
        for second in (0, 10, 20)
    ]


def test_every_text_is_coded_as_the_attribution_says(store: duckdb.DuckDBPyConnection) -> None:
    store.execute(data.insert_statement(0, data.TOTAL_ROWS))

    counted = dict(
        store.execute("SELECT feature_name, count(*) FROM features_table GROUP BY ALL").fetchall(),
    )
    assert counted == dict.fromkeys((*data.FEATURES, data.LABEL), data.TOTAL_ROWS)
    ones = dict(
        store.execute("SELECT feature_name, count(*) FROM features_table WHERE value = 1 GROUP BY ALL").fetchall()
    )
    with duckdb.connect() as connection:
        original = connection.execute(
            "SELECT count(*) FILTER (credit_default = 'yes'), count(*) FILTER (housing_loan = 'yes'), "
            "count(*) FILTER (personal_loan = 'yes'), count(*) FILTER (contact_type = 'cellular'), "
            "count(*) FILTER (previous_outcome = 'success'), count(*) FILTER (subscribed = 1) FROM read_parquet(?)",
            [str(data.FILE)],
        ).fetchone()
    binary = ("credit_default", "housing_loan", "personal_loan", "contact_cellular", "previous_success", data.LABEL)
    assert tuple(ones[name] for name in binary) == original
    assert store.execute(
        "SELECT count(*) FROM features_table WHERE value IS NULL OR NOT isfinite(value)"
    ).fetchone() == (0,)


def test_storing_a_range_twice_or_overlapping_adds_nothing_twice(store: duckdb.DuckDBPyConnection) -> None:
    first = store.execute(data.insert_statement(0, 200)).fetchone()
    again = store.execute(data.insert_statement(0, 200)).fetchone()
    overlapping = store.execute(data.insert_statement(100, 300)).fetchone()

    per_call = len(data.FEATURES) + 1
    assert (first, again, overlapping) == ((200 * per_call,), (0,), (100 * per_call,))


def test_queue_entries_are_the_same_rows_as_the_statement_stores(store: duckdb.DuckDBPyConnection) -> None:
    entries = data.rows_as_entries(30_211, 30_231)
    store.execute(data.insert_statement(30_211, 30_231))

    stored = store.execute(
        "SELECT entity_id, feature_name, value, strftime(event_timestamp, '%Y-%m-%dT%H:%M:%SZ') FROM features_table"
    ).fetchall()
    told = [
        tuple(entry["data"][column] for column in ("entity_id", "feature_name", "value", "event_timestamp"))
        for entry in entries
    ]
    assert sorted(told) == sorted(stored)
    assert len(told) == 20 * (len(data.FEATURES) + 1)


def test_queue_entries_hold_every_column_in_a_form_the_handler_can_store() -> None:
    for entry in data.rows_as_entries(0, 5):
        assert entry["table"] == "features_table"
        assert set(entry["data"]) == {"entity_id", "feature_name", "value", "event_timestamp", "created_at"}
        assert isinstance(entry["data"]["value"], float)
        assert math.isfinite(entry["data"]["value"])
        assert entry["data"]["event_timestamp"] == entry["data"]["created_at"]
        assert entry["data"]["event_timestamp"].endswith("Z")
        assert json.loads(json.dumps(entry)) == entry


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, data.TOTAL_ROWS + 1)])
def test_a_range_outside_the_file_is_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="not within"):
        data.insert_statement(start, stop)
    with pytest.raises(ValueError, match="not within"):
        data.rows_as_entries(start, stop)


def test_an_empty_range_stores_nothing(store: duckdb.DuckDBPyConnection) -> None:
    assert store.execute(data.insert_statement(7, 7)).fetchone() == (0,)
    assert data.rows_as_entries(7, 7) == []


def test_the_wheel_carries_the_data_with_its_attribution(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "servicectl/miniature/data/bank_marketing_calls.parquet",
        "servicectl/miniature/data/ATTRIBUTION.md",
        "servicectl/miniature/data.py",
    } <= names
