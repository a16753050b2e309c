from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from servicectl.errors import ConfigError
from servicectl.sql import parquet_options
from servicectl.training.source import snapshot_query
from servicectl.training.spec import Source, TrainingSpec
from tests.training.making import FEATURES_TABLE

START = datetime(2026, 1, 1)  # noqa: DTZ001 -- TIMESTAMP columns have no zone
Row = tuple[str | None, str, float | None, datetime | None, datetime | None]


def spec(**changes: Any) -> TrainingSpec:
    return TrainingSpec(**{"model_id": "M", "label": "y", "features": ("a", "b")} | changes)


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def taken(rows: list[Row], wanted: TrainingSpec) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        connection.execute(FEATURES_TABLE)
        connection.executemany("INSERT INTO features_table VALUES (?, ?, ?, ?, ?)", rows)
        found: list[tuple[Any, ...]] = connection.execute(snapshot_query(wanted, Source())).fetchall()
    return found


def test_a_value_from_after_the_label_is_not_taken() -> None:
    rows: list[Row] = [
        ("e", "a", 1.0, day(1), day(1)),
        ("e", "a", 666.0, day(3), day(1)),  # the planted leak
        ("e", "b", 2.0, day(2), day(9)),
        ("e", "y", 1.0, day(2), day(2)),
        ("other", "a", 777.0, day(1), day(1)),
    ]

    assert taken(rows, spec()) == [("e", day(2), 1.0, 1.0, 2.0)]


def test_the_newest_record_of_one_moment_wins() -> None:
    rows: list[Row] = [
        ("e", "a", 1.0, day(1), day(1)),
        ("e", "a", 2.0, day(1), day(5)),
        ("e", "a", 3.0, day(1), None),
        ("e", "y", 1.0, day(1), day(1)),
    ]

    assert taken(rows, spec()) == [("e", day(1), 1.0, 2.0, None)]


def test_rows_without_a_usable_time_or_number_are_left_out() -> None:
    rows: list[Row] = [
        ("e", "y", 1.0, datetime(1, 1, 1), day(1)),  # noqa: DTZ001 -- stored times are naive UTC
        ("e", "y", 1.0, None, day(1)),
        (None, "y", 1.0, day(2), day(1)),
        ("e", "y", float("nan"), day(2), day(1)),
        ("e", "a", float("inf"), day(3), day(1)),
        ("e", "a", 4.0, day(1), day(1)),
        ("e", "y", 0.0, day(4), day(1)),
    ]

    assert taken(rows, spec()) == [("e", day(4), 0.0, 4.0, None)]


def test_it_agrees_with_a_join_written_row_by_row() -> None:
    chance = random.Random(3)
    rows: list[Row] = [
        (chance.choice("pqr"), chance.choice("aby"), float(chance.randrange(9)), day(chance.randrange(12)), day(number))
        for number in range(200)
    ]

    def as_of(entity: object, name: str, at_most: datetime) -> float | None:
        known = [
            (when, recorded, value)
            for of, feature, value, when, recorded in rows
            if of == entity and feature == name and when is not None and when <= at_most and recorded is not None
        ]
        return max(known)[2] if known else None

    moments = sorted({(row[3], row[0]) for row in rows if row[1] == "y" and row[3] is not None and row[0] is not None})
    expected = [(entity, moment, *(as_of(entity, name, moment) for name in "yab")) for moment, entity in moments]

    assert taken(rows, spec()) == expected


def test_window_and_row_limit_keep_the_newest() -> None:
    rows: list[Row] = [("e", "y", float(n), day(n), day(n)) for n in range(10)]

    assert [row[2] for row in taken(rows, spec(window_s=3 * 86400.0))] == [7.0, 8.0, 9.0]
    assert [row[2] for row in taken(rows, spec(max_rows=2))] == [8.0, 9.0]


def test_a_seeded_sample_is_the_same_each_time_and_in_time_order() -> None:
    rows: list[Row] = [("e", "y", float(n), day(n), day(n)) for n in range(50)]

    first, again, other = (
        [row[2] for row in taken(rows, spec(max_rows=10, sample="seeded", seed=seed))] for seed in (1, 1, 2)
    )

    assert first == again == sorted(first)
    assert len(first) == 10
    assert first != other
    assert first != [float(n) for n in range(40, 50)]


def test_any_feature_name_is_taken_literally() -> None:
    name = 'it\'s "odd"; DROP TABLE features_table --'
    rows: list[Row] = [("e", name, 5.0, day(1), day(1)), ("e", "y", 1.0, day(1), day(1))]

    assert taken(rows, spec(features=(name,))) == [("e", day(1), 1.0, 5.0)]


@pytest.mark.parametrize("source", [Source(kind="wide", table="main.events", entity_column="who", time_column="at_time"),
                                    Source(kind="sql", query="SELECT * FROM events -- all;", entity_column="who", time_column="at_time")])  # fmt: skip
def test_wide_tables_and_queries_keep_types_and_lose_nans(source: Source) -> None:
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE events (who INTEGER, at_time TIMESTAMP, y TEXT, a DOUBLE, b TEXT, unused TEXT)"
        )
        connection.execute(
            "INSERT INTO events VALUES (2, '2026-01-02', 'no', 'nan', 'blue', ''), (1, '2026-01-02', 'yes', 1, NULL, ''),"
            " (3, '2026-01-02', NULL, 1, 'x', ''), (4, '0001-01-01', 'no', 1, 'x', '')"
        )
        found = connection.execute(snapshot_query(spec(categorical=("b",)), source)).fetchall()

    assert found == [("1", day(1), "yes", 1.0, None), ("2", day(1), "no", None, "blue")]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"features": ("a", "A")}, "'a'"), ({"features": ("y",)}, "'y'"), ({"categorical": ("c",)}, "'c'")],
)
def test_names_that_cannot_stand_side_by_side_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        snapshot_query(spec(**changes), Source())


def test_one_long_series_takes_one_sort_and_no_join(tmp_path: Path) -> None:
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute(FEATURES_TABLE)
        connection.execute(
            "INSERT INTO features_table SELECT 'e', f, i, TIMESTAMP '2026-01-01' + to_seconds(i), NULL"
            " FROM range(100000) AS t(i), (VALUES ('a'), ('y')) AS v(f)"
        )
        plan = str(connection.execute("EXPLAIN " + snapshot_query(spec(), Source())).fetchall())
        connection.execute(f"COPY ({snapshot_query(spec(), Source())}) TO '{tmp_path / 'x.parquet'}' (FORMAT parquet)")
        last = connection.execute(f"SELECT max(a), count(*) FROM '{tmp_path / 'x.parquet'}' WHERE a = y").fetchall()

    assert "JOIN" not in plan
    assert last == [(99999.0, 100000)]


def test_two_million_values_are_joined_within_a_memory_limit_by_way_of_the_disk(tmp_path: Path) -> None:
    entities, moments = 2000, 200
    made = (
        "INSERT INTO features_table SELECT 'entity-' || e, name, hash(e * 1000 + m) % 1000 / 7.0,"
        " TIMESTAMP '2026-01-01' + to_minutes(m * 10), TIMESTAMP '2026-01-01' + to_minutes(m * 10)"
        f" FROM range({entities}) AS a(e), range({moments}) AS b(m), unnest(['y', 'a', 'b', 'c', 'd']) AS c(name)"
    )
    wanted = spec(features=("a", "b", "c", "d"))
    target, options = tmp_path / "x.parquet", parquet_options(7)
    with duckdb.connect(str(tmp_path / "store.duckdb"), config={"threads": 2}) as connection:
        connection.execute(FEATURES_TABLE)
        connection.execute(made)
    limits = {"threads": 2, "memory_limit": "256MB", "temp_directory": str(tmp_path / "spilled")}
    with duckdb.connect(str(tmp_path / "store.duckdb"), config=limits) as connection:
        found = connection.execute(f"COPY ({snapshot_query(wanted, Source())}) TO '{target}' ({options})").fetchone()
    nowhere = limits | {"temp_directory": ""}
    with (
        duckdb.connect(str(tmp_path / "store.duckdb"), config=nowhere) as connection,
        pytest.raises(duckdb.OutOfMemoryException),  # it would not have fitted
    ):
        connection.execute(f"COPY ({snapshot_query(wanted, Source())}) TO '{target}2' ({options})")

    assert found == (entities * moments,)
