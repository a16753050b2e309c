"""The handler's write queue: rows appended in batches, unacknowledged, with the real handler's losses.

The real one appends with typed appenders: what does not fit ends that table's part of the batch, the rows before
it land, and nobody is told but the log.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import duckdb

BATCH_ROWS = 1000
_ROWS_PER_INSERT = 100
_WITH_ZONE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_INTEGERS = {"tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint", "hugeint"}


class _UnfitError(Exception):
    """A value the typed appender does not take."""


@dataclass(frozen=True)
class Entry:
    """One element of the write queue: a row for a table."""

    table: str
    row: Mapping[str, Any]


def entry(raw: bytes) -> Entry | None:
    """Given a queue element, what it asks for; None if it is not JSON as Go reads it (NaN and 1e400 are not)."""
    try:
        told = json.loads(raw, parse_constant=_refuse, parse_float=_finite)
        table, row = told["table"], told["data"]
    except (ValueError, KeyError, TypeError):
        return None
    return Entry(table, row) if isinstance(table, str) and isinstance(row, dict) else None


class Appender:
    """Appends batches. Columns are looked up once per table, as the real handler does."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._columns: dict[str, list[tuple[str, Any]]] = {}

    def append(
        self, cursor: duckdb.DuckDBPyConnection, entries: Iterable[Entry], *, in_transaction: bool = False
    ) -> None:
        """Given one batch, append each table's rows up to its first unfit one.

        `in_transaction`: somebody left the connection inside one, and the rows share its fate.
        """
        by_table: dict[str, list[Mapping[str, Any]]] = {}
        for one in entries:
            by_table.setdefault(one.table, []).append(one.row)
        for table, rows in by_table.items():
            try:
                self._append(cursor, table, rows, in_transaction)
            except duckdb.Error as refused:
                self._log(f"{len(rows)} rows for {table} lost: {refused}")

    def _append(
        self, cursor: duckdb.DuckDBPyConnection, table: str, rows: list[Mapping[str, Any]], in_transaction: bool
    ) -> None:
        current = _described(cursor, table)
        columns = self._columns.setdefault(table, current)
        if len(columns) != len(current):
            self._log(f"{table}: invalid column count: expected {len(current)}, got {len(columns)}")
            return
        fitting: list[list[object]] = []
        for row in rows:
            try:
                fitting.append([_fitted(row.get(name), kind) for name, kind in columns])
            except _UnfitError as unfit:
                self._log(f"{len(rows) - len(fitting)} rows for {table} lost: {unfit}")
                break
        if in_transaction:
            _insert(cursor, table, len(columns), fitting)
            return
        cursor.begin()
        try:
            _insert(cursor, table, len(columns), fitting)
            cursor.commit()
        except duckdb.Error:
            cursor.rollback()
            raise


def _insert(cursor: duckdb.DuckDBPyConnection, table: str, width: int, rows: list[list[object]]) -> None:
    marks = f"({', '.join('?' * width)})"
    for start in range(0, len(rows), _ROWS_PER_INSERT):
        part = rows[start : start + _ROWS_PER_INSERT]
        values = [value for row in part for value in row]
        cursor.execute(f"INSERT INTO {_quoted(table)} VALUES {', '.join([marks] * len(part))}", values)


def _described(cursor: duckdb.DuckDBPyConnection, table: str) -> list[tuple[str, Any]]:
    relation = cursor.sql(f"SELECT * FROM {_quoted(table)} LIMIT 0")
    return list(zip(relation.columns, relation.types, strict=True))


def _fitted(value: Any, kind: Any) -> object:
    """The value as the appender stores it in a column of this type; raises _UnfitError if it cannot."""
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    name = kind.id
    if name == "varchar" and isinstance(value, str):
        return value
    if name in {"double", "float"} and number:
        return float(value)
    if name in _INTEGERS and number:
        return int(float(value))
    if name == "boolean" and isinstance(value, bool):
        return value
    if name == "decimal" and number:
        return Decimal(int(value)).scaleb(-dict(kind.children)["scale"])  # corrupted, as by the real one
    if name == "timestamp" and isinstance(value, str) and _WITH_ZONE.fullmatch(value):
        return _utc(value)
    if name == "list" and isinstance(value, list):
        return [_fitted(member, kind.children[0][1]) for member in value]
    if name == "struct" and isinstance(value, dict) and all(member in value for member, _ in kind.children):
        return {member: _fitted(value[member], child) for member, child in kind.children}
    raise _UnfitError(f"cannot cast {type(value).__name__} to {kind}")


def _utc(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError) as wrong:
        raise _UnfitError(str(wrong)) from None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _refuse(constant: str) -> float:
    raise ValueError(constant)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
