"""Exact values out of the handler's answers, where JSON alone does not say what a column held.

The handler writes a DECIMAL as {"Width", "Scale", "Value"}, a DOUBLE of 3.0 as 3, a DATE as a midnight, and times
with as many digits of fraction as they need. Each function here reads one type, takes null for None, and raises
BadAnswer for anything that cannot have been of that type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, TypeAlias

from servicectl.errors import BadAnswer

Kind: TypeAlias = Callable[[Any], Any]


def typed(rows: Iterable[Mapping[str, Any]], kinds: Mapping[str, Kind]) -> list[dict[str, Any]]:
    """Given rows as answered and how to read each column, exactly these columns; the error names the column."""
    return [{name: _read(row, name, kind) for name, kind in kinds.items()} for row in rows]


def whole(told: Any) -> int | None:
    """TINYINT to HUGEINT, exact."""
    match told:
        case bool():
            pass
        case None | int():
            return told
    raise _unlike(told, "a whole number")


def double(told: Any) -> float | None:
    """DOUBLE or FLOAT; an integral one arrives as an integer."""
    match told:
        case bool():
            pass
        case None:
            return None
        case int() | float():
            return float(told)
    raise _unlike(told, "a number")


def decimal(told: Any) -> Decimal | None:
    """DECIMAL with its scale, all 38 digits."""
    match told:
        case None:
            return None
        case {"Scale": int(scale), "Value": int(value)}:
            # As a tuple: arithmetic would round to the context's 28 digits.
            return Decimal((int(value < 0), tuple(int(digit) for digit in str(abs(value))), -scale))
    raise _unlike(told, "a decimal")


def text(told: Any) -> str | None:
    """VARCHAR, and what was cast to it."""
    if told is None or isinstance(told, str):
        return told
    raise _unlike(told, "a text")


def moment(told: Any) -> datetime | None:
    """TIMESTAMP or TIMESTAMPTZ, plain or cast to VARCHAR, as naive UTC; digits beyond microseconds are cut off."""
    if told is None:
        return None
    try:
        read = datetime.fromisoformat(told)
    except (TypeError, ValueError):
        raise _unlike(told, "a time within the years 1 to 9999") from None
    return read if read.tzinfo is None else read.astimezone(UTC).replace(tzinfo=None)


def day(told: Any) -> date | None:
    """DATE, plain (a midnight) or cast to VARCHAR."""
    read = moment(told)
    if read is None:
        return None
    if read.time() != datetime.min.time():
        raise _unlike(told, "a date")
    return read.date()


def _read(row: Mapping[str, Any], name: str, kind: Kind) -> Any:
    try:
        return kind(row[name])
    except KeyError:
        raise BadAnswer(f"the DuckDB handler's answer has no column {name}") from None
    except BadAnswer as unlike:
        raise BadAnswer(f"column {name} of the DuckDB handler's answer: {unlike.message}", cure=unlike.cure) from None


def _unlike(told: object, expected: str) -> BadAnswer:
    return BadAnswer(f"{str(told)[:80]!r} is not {expected}")
