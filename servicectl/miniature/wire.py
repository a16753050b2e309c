"""What the handler's answers look like: DuckDB results as the JSON text that Go's encoder makes of them.

Decimals become objects, dates become midnights, integral doubles lose their fraction, JSON columns are parsed.
A value JSON cannot hold makes the whole answer an empty text.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

_UNREADABLE = {"union", "bit"}  # the handler's driver cannot scan them; such a row is dropped
_CALENDAR = {"date", "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns"}
_INFINITE = datetime.max  # noqa: DTZ901 -- what DuckDB's Python client makes of a TIMESTAMP 'infinity', naive as all are
_GO_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})
_INTEGRAL_BELOW = 1e21  # from here on Go writes an exponent

Moment = TypeVar("Moment", date, datetime)


class _UnencodableError(Exception):
    """A value that JSON cannot hold: NaN, an infinity, a date beyond the year 9999."""


def rows_answer(columns: Sequence[tuple[str, Any]], rows: Sequence[Sequence[object]]) -> str:
    """Given (name, DuckDB type) per column and the fetched rows, the answer text; "" if it cannot be written."""
    if any(kind.id in _UNREADABLE for _, kind in columns):
        rows = []
    try:
        data = [{name: _value(value, kind) for (name, kind), value in zip(columns, row, strict=True)} for row in rows]
        return _text({"data": data or None})
    except (_UnencodableError, ValueError):
        return ""


def error_answer(text: str) -> str:
    return _text({"data": None, "error": text})


def _text(answer: Mapping[str, object]) -> str:
    written = json.dumps(answer, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return written.translate(_GO_ESCAPES)


def _value(value: Any, kind: Any) -> object:
    if value is None:
        return None
    match kind.id:
        case "list" | "array":
            return [_value(member, kind.children[0][1]) for member in value]
        case "struct":
            return {name: _value(value[name], child) for name, child in kind.children}
        case "map":
            return {str(key): _value(member, kind.children[1][1]) for key, member in value.items()}
        case "decimal":
            return _decimal(value, dict(kind.children))
        case "float":
            return _double(_shortest_single(value))
    if str(kind) == "JSON":
        return json.loads(value)
    if isinstance(value, str) and kind.id in _CALENDAR:
        raise _UnencodableError  # DuckDB's Python client hands over years beyond 9999 as text
    return _scalar(value)


def _scalar(value: object) -> object:
    match value:
        case float():
            return _double(value)
        case datetime():
            return _moment(value)
        case date():
            return f"{_not_infinite(value, date.max).isoformat()}T00:00:00Z"
        case time():
            return _time_of_day(value)
        case timedelta():
            micros = value.seconds * 1_000_000 + value.microseconds
            return {"days": value.days, "months": 0, "micros": micros}
        case bytes():
            return value.decode(errors="replace")
        case UUID():
            return value.bytes.decode(errors="replace")
        # What follows is met only where an engine tells no types: DuckDB 1.1.3 beside RETURNING.
        case Decimal():
            _, digits, exponent = value.as_tuple()
            assert isinstance(exponent, int)
            return _decimal(value, {"precision": max(len(digits), -exponent), "scale": max(0, -exponent)})
        case list() | tuple():
            return [None if member is None else _scalar(member) for member in value]
        case dict():
            return {str(name): None if member is None else _scalar(member) for name, member in value.items()}
    return value


def _double(value: float) -> float | int:
    if not math.isfinite(value):
        raise _UnencodableError
    return int(value) if value.is_integer() and abs(value) < _INTEGRAL_BELOW else value


def _shortest_single(value: float) -> float:
    """The shortest decimal that names the same 32-bit float."""
    if not math.isfinite(value):
        return value
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 9))
    return next((short for short in shorter if struct.pack("f", short) == struct.pack("f", value)), value)


def _decimal(value: Decimal, form: Mapping[str, int]) -> dict[str, int]:
    scale = form["scale"]
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    # Not by Decimal's own arithmetic, which rounds to 28 digits.
    whole = int("".join(map(str, digits))) * 10 ** (exponent + scale)
    return {"Width": form["precision"], "Scale": scale, "Value": -whole if sign else whole}


def _moment(value: datetime) -> str:
    if value.tzinfo is not None:
        value = value.astimezone(UTC).replace(tzinfo=None)
    whole = _not_infinite(value, _INFINITE)
    fraction = f".{whole.microsecond:06d}".rstrip("0") if whole.microsecond else ""
    return f"{whole.replace(microsecond=0).isoformat()}{fraction}Z"


def _time_of_day(value: time) -> str:
    # Go shows a time as one on the first day of year 1, in UTC; from a zone east of it that can be the day before.
    shown = datetime.combine(date(2000, 1, 2), value)
    if value.tzinfo is not None:
        shown = shown.astimezone(UTC).replace(tzinfo=None)
    day = {1: "0000-12-31", 2: "0001-01-01", 3: "0001-01-02"}[shown.day]
    return f"{day}T{_moment(shown).partition('T')[2]}"


def _not_infinite(value: Moment, infinity: Moment) -> Moment:
    # DuckDB's Python client hands infinity over as the calendar's last moment.
    if value == infinity:
        raise _UnencodableError
    return value
