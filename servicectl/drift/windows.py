"""The files that windows come in, read one column of one window at a time: memory is bounded by the longest of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from servicectl.drift.comparison import Column
from servicectl.drift.statistics import Numbers
from servicectl.errors import BadAnswer
from servicectl.sql import identifier, literal

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Side = Literal["reference", "current"]
_SIDES: dict[Side, int] = {"reference": 0, "current": 1}
_ONE_WINDOW = "WHERE feature_name = ? AND side = ?"
_MEMORY = "256MB"
_LONGEST_TEXT = 200  # characters; texts that agree so far are taken for one
_ROWS_AT_ONCE = 20_000


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

    def _column(
        self, name: str, where: str = "", first: datetime | None = None, last: datetime | None = None
    ) -> Column:
        """One column in the file's own order: one thread keeps it."""
        if not self._holds_text(name):
            values = self._numbers(f"SELECT TRY_CAST({name} AS DOUBLE) AS value FROM {self._source} {where}")
            return Column(values, first, last)
        texts, absent = self._texts(f"SELECT left({name}, {_LONGEST_TEXT}) FROM {self._source} {where}")
        return Column(texts, first, last, absent_text=absent)

    def _holds_text(self, name: str) -> bool:
        told = self._fetch(f"SELECT typeof({name}) FROM {self._source} LIMIT 1")
        return told == [("VARCHAR",)]

    def _texts(self, sql: str) -> tuple[NDArray[np.object_], int]:
        """The texts that are there, and how many are not. As objects, equal ones kept once: numpy's own text would take
        four bytes a character of the longest for every row."""
        import duckdb

        known: dict[str, str] = {}
        parts: list[NDArray[np.object_]] = []
        absent = 0
        try:
            answer = self._connection.execute(sql)
            while rows := answer.fetchmany(_ROWS_AT_ONCE):
                texts = [known.setdefault(text, text) for (text,) in rows if text is not None]
                absent += len(rows) - len(texts)
                parts.append(np.array(texts, dtype=np.object_))
        except duckdb.Error as error:
            raise BadAnswer(f"{self.path} cannot be read: {str(error).splitlines()[0]}", cure="try again") from error
        return (np.concatenate(parts) if parts else np.empty(0, dtype=np.object_)), absent

    def _numbers(self, sql: str, values: Sequence[object] = ()) -> Numbers:
        import duckdb

        try:
            found = self._connection.execute(sql, list(values)).fetchnumpy()["value"]
        except duckdb.Error as error:
            raise BadAnswer(f"{self.path} cannot be read: {str(error).splitlines()[0]}", cure="try again") from error
        return np.asarray(np.ma.filled(found, np.nan), dtype=np.float64)


class WindowFile(_Parquet):
    """What `windows_query` gave for long rows, as a Parquet file."""

    def rows(self) -> int:
        """Of both windows of all features."""
        return sum(rows for rows, _, _ in self.spans().values())

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

    def holds_text(self, feature: str) -> bool:  # noqa: ARG002 -- its values are one column of numbers
        return False


class WideWindowFile(_Parquet):
    """What `windows_query` gave for wide rows: the features in the order in which they were asked for."""

    def __init__(self, path: Path, features: Sequence[str]) -> None:
        super().__init__(path)
        self._columns = {name: f"c{number}" for number, name in enumerate(features)}

    def rows(self) -> int:
        """Of both windows."""
        [(rows,)] = self._fetch(f"SELECT count(*) FROM {self._source}")
        return int(rows)

    def column(self, feature: str, side: Side) -> Column:
        """One window of one feature in order of time; text where it is text."""
        where = f"WHERE side = {literal(_SIDES[side])}"
        [(first, last)] = self._fetch(f"SELECT min(moment), max(moment) FROM {self._source} {where}")
        return self._column(self._columns[feature], where, first, last)

    def numbers(self, feature: str, side: Side) -> Numbers:
        """The values of `column`, NaN for absent; of text, the place of each among its different values."""
        column = self.column(feature, side).values
        if column.dtype.kind != "f":
            return np.asarray(np.unique(column, return_inverse=True)[1], dtype=np.float64)
        return np.asarray(column, dtype=np.float64)

    def holds_text(self, feature: str) -> bool:
        return self._holds_text(self._columns[feature])


class SampleFile(_Parquet):
    """A sample of the rows that a model was trained on: one column per feature, and the label's."""

    def features(self) -> frozenset[str]:
        return frozenset(name for name, *_ in self._fetch(f"DESCRIBE SELECT * FROM {self._source}"))

    def column(self, feature: str) -> Column:
        """One feature as it was trained on; text where it was text."""
        return self._column(identifier(feature))
