from __future__ import annotations

import tracemalloc
from pathlib import Path

import duckdb
import numpy as np
import pytest

from servicectl.drift.windows import SampleFile, WideWindowFile, WindowFile
from servicectl.drift.windows_sql import Wide, counts_query, long_table, prediction_log, wide_table, windows_query
from servicectl.errors import BadAnswer
from tests.drift.making import window_file

ROWS = np.arange(1000.0)


def test_the_windows_are_the_estates_shares_in_order_of_time(tmp_path: Path) -> None:
    random = np.random.default_rng(1).normal(size=37)
    with WindowFile(window_file(tmp_path, {"age": ROWS, "it's": random})) as windows:
        assert windows.column("age", "reference").values.tolist() == ROWS[500:700].tolist()
        assert windows.column("age", "current").values.tolist() == ROWS[950:].tolist()
        assert windows.column("it's", "reference").values.tolist() == random[18:25].tolist()
        assert windows.column("it's", "current").values.tolist() == random[35:].tolist()
        assert {key: span[0] for key, span in windows.spans().items()} == {
            ("age", "reference"): 200,
            ("age", "current"): 50,
            ("it's", "reference"): 7,
            ("it's", "current"): 2,
        }


def test_absent_values_stay_in_the_windows_and_rows_without_a_time_do_not(tmp_path: Path) -> None:
    gone = """UPDATE features_table SET value = NULL WHERE value = 999;
        UPDATE features_table SET value = 'inf' WHERE value = 998;
        INSERT INTO features_table SELECT 'old', 'age', -1, TIMESTAMP '0001-01-01', NULL FROM range(5000);
        INSERT INTO features_table VALUES ('none', 'age', -1, NULL, NULL), ('far', 'age', -1, 'infinity', NULL)"""
    with WindowFile(window_file(tmp_path, {"age": ROWS}, gone)) as windows:
        current = windows.column("age", "current")

    assert current.values[:-2].tolist() == ROWS[950:998].tolist()
    assert np.isinf(current.values[-2])
    assert np.isnan(current.values[-1])
    assert str(current.first) == "2026-02-09 14:00:00"
    assert str(current.last) == "2026-02-11 15:00:00"


def test_a_feature_without_rows_has_empty_windows(tmp_path: Path) -> None:
    with WindowFile(window_file(tmp_path, {"age": ROWS, "gone": np.array([])})) as windows:
        column = windows.column("gone", "current")
        assert (len(column.values), column.first, column.last) == (0, None, None)
        assert ("gone", "current") not in windows.spans()


def test_the_query_means_the_same_whatever_the_order_of_the_rows_on_disk(tmp_path: Path) -> None:
    shuffled = "CREATE OR REPLACE TABLE features_table AS SELECT * FROM features_table ORDER BY hash(entity_id)"
    for name in ("straight", "shuffled"):
        (tmp_path / name).mkdir()
    with (
        WindowFile(window_file(tmp_path / "straight", {"age": ROWS})) as one,
        WindowFile(window_file(tmp_path / "shuffled", {"age": ROWS}, shuffled)) as other,
    ):
        assert one.column("age", "current").values.tolist() == other.column("age", "current").values.tolist()


def test_a_file_that_is_none_is_a_bad_answer(tmp_path: Path) -> None:
    (tmp_path / "windows.parquet").write_bytes(b"no parquet")
    with WindowFile(tmp_path / "windows.parquet") as windows, pytest.raises(BadAnswer, match="cannot be read"):
        windows.column("age", "current")


def test_a_training_sample_is_read_by_column(tmp_path: Path) -> None:
    path = tmp_path / "sample.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            "COPY (SELECT * FROM (VALUES (1, 'x'), (NULL, 'y'), (3, NULL)) AS t(age, city)) "
            f"TO '{path}' (FORMAT parquet)"
        )
    with SampleFile(path) as sample:
        assert sample.features() == {"age", "city"}
        age, city = sample.column("age"), sample.column("city")
    assert age.values[[0, 2]].tolist() == [1.0, 3.0]
    assert np.isnan(age.values[1])
    assert (city.values.tolist(), city.absent_text) == (["x", "y"], 1)


EVENTS = """CREATE TABLE events AS SELECT 'e' || i AS who, TIMESTAMP '2026-01-01' + to_hours(i) AS "when", i AS "how much",
    CASE WHEN i % 3 > 0 THEN 'kind ' || (i % 3) END AS kind, i % 2 = 0 AS "side", i % 4 AS code FROM range(1000) AS r(i);
    INSERT INTO events SELECT 'old', TIMESTAMP '0001-01-01', 1, 'x', true, 9 FROM range(5000)"""
WIDE = wide_table("events", None, "who", "when", texts=["code"])


def wide_file(folder: Path, names: list[str], rows: Wide = WIDE) -> WideWindowFile:
    path = folder / "windows.parquet"
    with duckdb.connect() as connection:
        connection.execute(EVENTS)
        connection.execute(f"COPY ({windows_query(names, rows)}) TO '{path}' (FORMAT parquet)")
    return WideWindowFile(path, names)


def test_a_wide_table_is_cut_by_its_own_time_with_numbers_and_text(tmp_path: Path) -> None:
    with wide_file(tmp_path, ["how much", "kind", "side", "code"]) as windows:
        assert windows.rows() == 250
        assert windows.column("how much", "reference").values.tolist() == ROWS[500:700].tolist()
        current = windows.column("kind", "current")
        assert current.values.tolist() == [f"kind {i % 3}" for i in range(950, 1000) if i % 3]
        assert (current.absent_text, str(current.first), str(current.last)) == (
            sum(i % 3 == 0 for i in range(950, 1000)),
            "2026-02-09 14:00:00",
            "2026-02-11 15:00:00",
        )
        assert windows.column("side", "current").values.tolist() == [1.0, 0.0] * 25
        assert windows.column("code", "current").values.tolist() == [str(i % 4) for i in range(950, 1000)]
        assert windows.numbers("kind", "current").tolist() == [i % 3 - 1.0 for i in range(950, 1000) if i % 3]


def test_a_select_of_ones_own_is_cut_like_a_table(tmp_path: Path) -> None:
    own = wide_table("unused", 'SELECT who, "when", "how much" * 2 AS doubled FROM events -- mine;', "who", "when")
    with wide_file(tmp_path, ["doubled"], own) as windows:
        assert windows.column("doubled", "current").values.tolist() == (ROWS[950:] * 2).tolist()


def test_a_long_table_with_other_names_is_cut_alike(tmp_path: Path) -> None:
    path, rows = tmp_path / "windows.parquet", long_table("measures", "who", "at")
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE measures AS SELECT 'e' || i AS who, 'age' AS feature_name, i::DOUBLE AS value,"
            " TIMESTAMP '2026-01-01' + to_hours(i) AS at FROM range(1000) AS r(i)"
        )
        connection.execute(f"COPY ({windows_query(['age'], rows)}) TO '{path}' (FORMAT parquet)")
        told = connection.execute(counts_query(["age", "gone"], rows)).fetchall()
    with WindowFile(path) as windows:
        assert windows.column("age", "current").values.tolist() == ROWS[950:].tolist()
    assert told == [("age", 1000, 0, "2026-02-11 15:00:00", "2026-01-01 00:00:00")]


def test_the_rows_of_a_wide_table_are_counted_once_for_all_its_features() -> None:
    with duckdb.connect() as connection:
        connection.execute(EVENTS)
        told = connection.execute(counts_query(["kind", "side"], WIDE)).fetchall()
    assert told == [(None, 6000, 5000, "2026-02-11 15:00:00", "2026-01-01 00:00:00")]


def test_one_long_text_does_not_make_all_the_others_as_long(tmp_path: Path) -> None:
    path, rows = tmp_path / "sample.parquet", 20_000
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT CASE WHEN i = 7 THEN repeat('x', 10000) WHEN i % 4 = 0 THEN NULL ELSE 'shop ' || (i % 4) END"
            f" AS place FROM range({rows}) AS r(i)) TO '{path}' (FORMAT parquet)"
        )
    with SampleFile(path) as sample:
        tracemalloc.start()
        column = sample.column("place")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert (len(column.values), column.absent_text) == (rows * 3 // 4, rows // 4)
    assert sorted(set(column.values.tolist())) == ["shop 1", "shop 2", "shop 3", "x" * 200]
    assert (
        peak < 20_000_000
    )  # as numpy text: 15,000 rows of 200 characters of 4 bytes are 12 MB and its list, 600 MB uncut
    assert column.values.nbytes == 8 * len(column.values)


def test_answers_are_those_of_the_version_and_an_error_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "windows.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE model_logs (model_id TEXT, model_version TEXT, model_inputs TEXT, model_result TEXT,"
            " model_error TEXT, event_datetime TIMESTAMP)"
        )
        connection.execute(
            "INSERT INTO model_logs SELECT 'Churn', CASE WHEN i < 1000 THEN '0.1.0' ELSE '0.1.1' END, '{}',"
            " CASE WHEN i % 5 = 0 THEN '-1.000000' ELSE printf('%f', i::DOUBLE) END,"
            " CASE i % 5 WHEN 0 THEN 'no such feature' WHEN 1 THEN '' END, TIMESTAMP '2026-01-01' + to_hours(i)"
            " FROM range(2000) AS r(i)"
        )
        query = windows_query(["Churn", "Spend"], prediction_log([("Churn", "0.1.1"), ("Spend", "0.1.0")]))
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
    with WindowFile(path) as windows:
        current = windows.column("Churn", "current").values
        assert np.isnan(current).tolist() == [i % 5 == 0 for i in range(1950, 2000)]
        assert current[1:5].tolist() == [1951.0, 1952.0, 1953.0, 1954.0]
        assert len(windows.column("Spend", "current").values) == 0
