from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from servicectl.errors import BadData
from servicectl.files import sha256_of
from servicectl.training import floor
from servicectl.training.frame import Rows, as_number, describe, split
from servicectl.training.spec import TrainingSpec
from tests.training.making import bank_spec, storm_spec


def spec(**changes: Any) -> TrainingSpec:
    return TrainingSpec(**{"model_id": "M", "label": "y", "features": ("a",)} | changes)


def rows_at(*seconds: int) -> Rows:
    times = np.array(seconds).astype("datetime64[s]").astype("datetime64[us]")
    numbers = np.arange(len(seconds), dtype=np.float64)
    return Rows(times, np.zeros(len(seconds), dtype=np.int64), numbers, {"a": numbers})


def snapshot(path: Path, select: str) -> Path:
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
    return path


def described(path: Path, wanted: TrainingSpec) -> object:
    return describe(floor.DescribeRequest(spec=wanted, snapshot=str(path)))


def test_facts_of_a_snapshot(bank_before: Path) -> None:
    facts = floor.describe(bank_before, bank_spec(), "SELECT 1")

    assert (facts.rows, facts.query) == (20000, "SELECT 1")
    assert (facts.bytes, facts.sha256) == (bank_before.stat().st_size, sha256_of(bank_before))
    assert facts.first == datetime(2008, 5, 5, 8, tzinfo=UTC)
    assert facts.columns[:4] == ("entity_id", "event_timestamp", "subscribed", "age")
    assert facts.class_shares is not None
    assert facts.class_shares["0"] == pytest.approx(0.9537)
    assert facts.class_shares["1"] == pytest.approx(0.0463)


def test_rows_of_one_instant_are_held_out_together() -> None:
    parts = split(rows_at(1, 2, 3, 4, 5, 6, 6, 6, 6, 7), spec())

    assert parts.training.labels.tolist() == [0, 1, 2, 3, 4]
    assert parts.heldout.labels.tolist() == [5, 6, 7, 8, 9]


def test_rows_within_the_embargo_are_in_neither_part() -> None:
    parts = split(rows_at(*range(10)), spec(embargo_s=3))

    assert parts.training.labels.tolist() == [0, 1, 2, 3, 4]
    assert parts.heldout.labels.tolist() == [8, 9]


@pytest.mark.parametrize(("seconds", "embargo_s"), [((5, 5, 5, 5), 0), (range(10), 60), ((1,), 0)])
def test_nothing_left_to_train_on_is_an_error(seconds: tuple[int, ...], embargo_s: int) -> None:
    with pytest.raises(BadData, match="no row is older than the held-out slice"):
        split(rows_at(*seconds), spec(embargo_s=embargo_s))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3.0),
        ("3.0", 3.0),
        (" 5 ", 5.0),
        ("1e3", 1000.0),
        ("1_000", 1000.0),
        ("True", "True"),
        ("1,5", "1,5"),
        ("", ""),
    ],
)
def test_text_is_read_as_service_b_reads_it(text: str, value: float | str) -> None:
    assert as_number(text) == value


_TIMES = "'e' AS entity_id, TIMESTAMP '2026-01-01' + to_days(CAST(i AS INTEGER)) AS event_timestamp"


@pytest.mark.parametrize(
    ("select", "changes", "words"),
    [
        (f"SELECT {_TIMES}, i % 2 AS y, i AS a FROM range(0) AS t(i)", {}, "no rows with the label 'y'"),
        (f"SELECT {_TIMES}, 1 AS y, i AS a FROM range(9) AS t(i)", {}, "every row .* has the label '1'"),
        (f"SELECT {_TIMES}, i % 2 AS y, NULL::DOUBLE AS a FROM range(9) AS t(i)", {}, "no row has feature 'a'"),
        (f"SELECT {_TIMES}, i % 2 AS y FROM range(9) AS t(i)", {}, "no column 'a'; it has: entity_id"),
        (f"SELECT {_TIMES}, i % 2 AS y, 'red' AS a FROM range(9) AS t(i)", {}, "'a' holds VARCHAR, not numbers"),
        (f"SELECT {_TIMES}, 'red' AS y, i AS a FROM range(9) AS t(i)", {"task": "regression"}, "'y' holds VARCHAR"),
        (
            f"SELECT {_TIMES}, i % 2 AS y, CASE WHEN i > 5 THEN 'red' ELSE '7' END AS a FROM range(9) AS t(i)",
            {"categorical": ("a",)},
            "mixes numbers .* and text",
        ),
        (
            f"SELECT {_TIMES}, i % 2 AS y, 'k' || i AS a FROM range(1500) AS t(i)",
            {"categorical": ("a",)},
            "more than 1000 values",
        ),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(
    tmp_path: Path, select: str, changes: dict[str, Any], words: str
) -> None:
    path = snapshot(tmp_path / "bad.parquet", select)

    with pytest.raises(BadData, match=words) as raised:
        described(path, spec(**changes))

    assert raised.value.cure


def test_the_same_error_comes_out_of_the_child(tmp_path: Path) -> None:
    path = snapshot(tmp_path / "bad.parquet", f"SELECT {_TIMES}, 1 AS y, i AS a FROM range(9) AS t(i)")

    with pytest.raises(BadData, match="one class cannot be told apart"):
        floor.describe(path, spec())


def test_a_file_that_is_no_parquet_is_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"half a file")

    with pytest.raises(BadData, match="cannot be read"):
        described(path, spec())


def test_text_labels_have_shares(storms: Path) -> None:
    facts = floor.describe(storms, storm_spec())

    assert facts.class_shares is not None
    assert len(facts.class_shares) == 9
    assert sum(facts.class_shares.values()) == pytest.approx(1)
