"""Values and names as SQL text, for the one party that only takes text: the DuckDB handler.

Every literal means the same on DuckDB 1.1.3 (the handler's engine) and 2.0. Nothing else in the program may put
a value into SQL by other means than these functions or a driver's own parameters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal

from servicectl.errors import BadData

FEATURES_TYPE = 'STRUCT("index" INTEGER, "name" TEXT, "type" TEXT, "drift_score" DOUBLE)[]'
"""The type of `model_metadata.expected_features`."""

_HUGEINT = (-(2**127), 2**127 - 1)
_DECIMAL_DIGITS = 38
_ROW_GROUP_BYTES = 64 << 20
_ROW_GROUP_ROWS = 122_880  # DuckDB's own
_VECTOR_ROWS = 2048
_OPAQUE = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)
    |(?<!\w)[eE]'(?:\\.|''|[^'\\])*'|'(?:''|[^'])*'|"(?:""|[^"])*"
    |(?<![\w$])\$(?P<tag>\w*)\$.*?\$(?P=tag)\$""",
    re.DOTALL | re.VERBOSE,
)


def literal(value: str | float | Decimal | date | datetime | None) -> str:
    """Given a Python value, the SQL expression that DuckDB reads back as that value.

    bool, int (to 128 bits), finite float (DOUBLE), str, Decimal (to 38 digits), date, datetime and None are known.
    A datetime becomes a TIMESTAMP: aware ones are converted to UTC, naive ones are taken to be UTC already.
    Raises BadData for NaN, an infinity, half a surrogate pair, and numbers outside DuckDB's types.
    """
    match value:
        case None:
            return "NULL"
        case bool():
            return "TRUE" if value else "FALSE"
        case int():
            return _integer(value)
        case float():
            return _double(value)
        case str():
            return _text(value)
        case Decimal():
            return _decimal(value)
        case datetime():
            return f"CAST('{_utc(value).isoformat(sep=' ')}' AS TIMESTAMP)"
        case date():
            return f"CAST('{value.isoformat()}' AS DATE)"
    raise BadData(f"a value of type {type(value).__name__} cannot be written into SQL")


def parquet_options(columns: int) -> str:
    """Given how many columns, the options of every `COPY ... TO` that writes a snapshot.

    snappy: read faster than zstd, which is smaller (measured in docs/training.md). Row groups are the unit of reading,
    so that their size in memory is bounded: 64 MiB of 8-byte values, in multiples of DuckDB's vectors of 2,048 rows.
    """
    rows = _ROW_GROUP_BYTES // (8 * max(1, columns)) // _VECTOR_ROWS * _VECTOR_ROWS
    return f"FORMAT parquet, COMPRESSION snappy, ROW_GROUP_SIZE {max(_VECTOR_ROWS, min(_ROW_GROUP_ROWS, rows))}"


def identifier(name: str) -> str:
    """Given the name of a column, table or member, its quoted form. Raises BadData for the empty name and for NUL."""
    if not name or "\0" in name:
        raise BadData(f"{name!r} cannot be the name of a column or table")
    return '"' + _encodable(name).replace('"', '""') + '"'


def literals(values: Iterable[str | float | Decimal | date | datetime | None]) -> str:
    """Given several values, their literals in one parenthesis: an IN list or a row of VALUES."""
    return f"({', '.join(literal(value) for value in values)})"


def features_literal(features: Iterable[tuple[int, str, str, float | None]]) -> str:
    """Given (index, name, type, drift_score) per feature, the value of an `expected_features` column."""
    structs = ", ".join(
        f'{{"index": {literal(index)}, "name": {literal(name)}, "type": {literal(kind)}, '
        f'"drift_score": {literal(score)}}}'
        for index, name, kind, score in features
    )
    return f"CAST([{structs}] AS {FEATURES_TYPE})"


def leading_words(sql: str) -> list[str]:
    """The first word of each statement in a text, in capitals; what quotes and comments hold is not looked at."""
    plain = _OPAQUE.sub(lambda found: " " if found["comment"] else "?", sql)
    words = (re.match(r"\s*(\w+)", part) for part in plain.split(";"))
    return [word[1].upper() for word in words if word]


def _integer(value: int) -> str:
    if not _HUGEINT[0] <= value <= _HUGEINT[1]:
        raise BadData(f"the integer {value} does not fit into 128 bits")
    return str(int(value))


def _double(value: float) -> str:
    # A bare 1.5 would be a DECIMAL; the cast from text reads exactly the shortest form that Python writes.
    if not math.isfinite(value):
        raise BadData(f"{value} cannot be written: one NaN or infinity makes every answer that holds it unreadable")
    return f"CAST('{float(value)!r}' AS DOUBLE)"


def _text(value: str) -> str:
    # NUL ends the statement for DuckDB 1.1.3, also inside quotes. A chain of || would nest an expression per NUL, and
    # the parser allows a thousand.
    parts = [f"'{part}'" for part in _encodable(value).replace("'", "''").split("\0")]
    return parts[0] if len(parts) == 1 else f"concat({', chr(0), '.join(parts)})"


def _decimal(value: Decimal) -> str:
    if not value.is_finite():
        raise BadData(f"{value} cannot be written as a DECIMAL")
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    scale = max(0, -exponent)
    width = max(len(digits) + max(0, exponent), scale, 1)
    if width > _DECIMAL_DIGITS:
        raise BadData(f"the decimal {value} has more than {_DECIMAL_DIGITS} digits")
    return f"CAST('{value:f}' AS DECIMAL({width}, {scale}))"


def _utc(moment: datetime) -> datetime:
    try:
        return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise BadData(f"the time {moment} is outside the years 1 to 9999 in UTC") from None


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadData(f"the text {text!r} holds half a surrogate pair, which no database can store") from None
    return text
