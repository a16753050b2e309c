"""The two windows of every feature: the SQL that cuts them out of the feature store, and the file they come in.

The windows are the estate's: of a feature's rows in order of time, those from 50 % to 70 % are the reference and the
newest 5 % are current. Unlike Service C's they are taken from rows that have a time, and from all of those: its own
stop at the 20,000 oldest rows of each.

The file is read one column of one window at a time, so that memory is bounded by the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from servicectl.drift.comparison import Column
from servicectl.drift.statistics import Numbers
from servicectl.errors import BadAnswer
from servicectl.sql import identifier, literal, literals

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

REFERENCE_FROM, REFERENCE_UNTIL, CURRENT_FROM = 0.5, 0.7, 0.95

Side = Literal["reference", "current"]
_SIDES: dict[Side, int] = {"reference": 0, "current": 1}
_ONE_WINDOW = "WHERE feature_name = ? AND side = ?"
_MEMORY = "256MB"


def windows_query(features: Sequence[str], table: str = "features_table") -> str:
    """Given feature names, a SELECT of (feature_name, side 0 or 1, moment, value), by feature, side and time.

    Understood by DuckDB 1.1.3 and 2.0. Rows without a usable time (NULL, infinite, year 1) are left out.
    """
    return _query(features, table, REFERENCE_FROM, REFERENCE_UNTIL)


def history_query(features: Sequence[str], table: str = "features_table") -> str:
    """As `windows_query`, with all rows before the current window as the reference."""
    return _query(features, table, 0.0, CURRENT_FROM)


def _query(features: Sequence[str], table: str, reference_from: float, reference_until: float) -> str:
    start, end, newest = (literal(share) for share in (reference_from, reference_until, CURRENT_FROM))
    return f"""SELECT feature_name, side, moment, value FROM (
            SELECT feature_name, moment, value, place,
                CASE WHEN place >= floor(all_rows * {newest}) THEN 1
                     WHEN place >= floor(all_rows * {start}) AND place < floor(all_rows * {end}) THEN 0 END AS side
            FROM (SELECT feature_name, event_timestamp AS moment, value,
                    row_number() OVER (PARTITION BY feature_name ORDER BY event_timestamp, entity_id, value) - 1 AS place,
                    count(*) OVER (PARTITION BY feature_name) AS all_rows
                FROM {".".join(identifier(part) for part in table.split("."))}
                WHERE feature_name IN {literals(features)} AND event_timestamp IS NOT NULL
                AND isfinite(event_timestamp) AND year(event_timestamp) > 1) AS placed) AS sided
        WHERE side IS NOT NULL ORDER BY feature_name, side, place"""


class _Parquet:
    """A Parquet file that is read a column at a time. Raises BadAnswer where it is not what it should be."""

    def __init__(self, path: Path) -> None:
        import duckdb

        self.path = path
        settings = {"memory_limit": _MEMORY, "threads": "1", "autoinstall_known_extensions": "false"}
        self._connection: DuckDBPyConnection = duckdb.connect(config=settings)
        self._source = f"read_parquet({literal(str(path))})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with suppress(Exception):
            self._connection.close()

    def _fetch(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        import duckdb

        try:
            rows: list[tuple[Any, ...]] = self._connection.execute(sql, list(values)).fetchall()
        except duckdb.Error as error:
            raise BadAnswer(f"{self.path} cannot be read: {str(error).splitlines()[0]}", cure="try again") from error
        return rows

    def _numbers(self, sql: str, values: Sequence[object] = ()) -> Numbers:
        import duckdb

        try:
            found = self._connection.execute(sql, list(values)).fetchnumpy()["value"]
        except duckdb.Error as error:
            raise BadAnswer(f"{self.path} cannot be read: {str(error).splitlines()[0]}", cure="try again") from error
        return np.asarray(np.ma.filled(found, np.nan), dtype=np.float64)


class WindowFile(_Parquet):
    """What `windows_query` gave, as a Parquet file."""

    def spans(self) -> dict[tuple[str, Side], tuple[int, datetime, datetime]]:
        """(feature, side) -> rows, first and last event time; an empty window is not there."""
        told = self._fetch(
            f"SELECT feature_name, side, count(*), min(moment), max(moment) FROM {self._source} GROUP BY ALL"
        )
        sides = {number: side for side, number in _SIDES.items()}
        return {(name, sides[side]): (rows, first, last) for name, side, rows, first, last in told}

    def column(self, feature: str, side: Side) -> Column:
        """One window of one feature in order of time; no rows where the file has none."""
        asked = [feature, _SIDES[side]]
        [(first, last)] = self._fetch(f"SELECT min(moment), max(moment) FROM {self._source} {_ONE_WINDOW}", asked)
        return Column(self.numbers(feature, side), first, last)

    def numbers(self, feature: str, side: Side) -> Numbers:
        """The values of `column`, NaN for absent."""
        # No ORDER BY: the file is in this order, and one thread keeps it.
        return self._numbers(f"SELECT value FROM {self._source} {_ONE_WINDOW}", [feature, _SIDES[side]])


class SampleFile(_Parquet):
    """A sample of the rows that a model was trained on: one column per feature."""

    def features(self) -> frozenset[str]:
        return frozenset(name for name, *_ in self._fetch(f"DESCRIBE SELECT * FROM {self._source}"))

    def column(self, feature: str) -> Column:
        """One feature as it was trained on; text where it was text."""
        name = identifier(feature)
        [(kind,)] = self._fetch(f"SELECT typeof({name}) FROM {self._source} LIMIT 1") or [("DOUBLE",)]
        if kind == "VARCHAR":
            present = self._fetch(f"SELECT {name} FROM {self._source} WHERE {name} IS NOT NULL")
            [(rows,)] = self._fetch(f"SELECT count(*) FROM {self._source}")
            texts = np.array([text for (text,) in present], dtype=np.str_)
            return Column(texts, absent_text=rows - len(texts))
        return Column(self._numbers(f"SELECT CAST({name} AS DOUBLE) AS value FROM {self._source}"))
