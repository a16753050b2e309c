from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest

from servicectl.drift.windows import SampleFile, WindowFile
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
