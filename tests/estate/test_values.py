"""Types survive the handler: what DuckDB 1.1.3 holds is what is read, through a real Redis and the strict handler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servicectl.errors import BadAnswer
from servicectl.estate.queue import HandlerQueue
from servicectl.estate.values import day, decimal, double, moment, text, typed, whole
from servicectl.sql import literal
from tests.parts.handler import handler
from tests.parts.redis import redis_server

_at = datetime.fromisoformat
_SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HandlerQueue]:
    folder = tmp_path_factory.mktemp("served")
    with redis_server(folder) as server, handler(server.url, folder, strict=True), HandlerQueue(server.url) as queue:
        yield queue


def _read(queue: HandlerQueue, expression: str, kind: Callable[[Any], Any]) -> Any:
    return typed(queue.read(f"SELECT {expression} AS value"), {"value": kind})[0]["value"]


@pytest.mark.parametrize(
    ("expression", "kind", "value"),
    [
        ("9223372036854775807::BIGINT", whole, 2**63 - 1),
        ("9007199254740993::BIGINT", whole, 2**53 + 1),
        ("'-170141183460469231731687303715884105728'::HUGEINT", whole, -(2**127)),
        ("3.0::DOUBLE", double, 3.0),
        ("9007199254740992::DOUBLE", double, 2.0**53),
        ("1e300::DOUBLE", double, 1e300),
        ("1.10", decimal, Decimal("1.10")),
        ("'-12345678901234567890123456789012345.678'::DECIMAL(38, 3)", decimal, Decimal("-12345678901234567890123456789012345.678")),
        ("DATE '2026-01-02'", day, date(2026, 1, 2)),
        ("CAST(DATE '2026-01-02' AS VARCHAR)", day, date(2026, 1, 2)),
        ("TIMESTAMP '2026-01-02 03:04:05'", moment, _at("2026-01-02 03:04:05")),
        ("TIMESTAMP '2026-01-02 03:04:05.1'", moment, _at("2026-01-02 03:04:05.100000")),
        ("TIMESTAMP '2026-01-02 03:04:05.123456'", moment, _at("2026-01-02 03:04:05.123456")),
        ("TIMESTAMP '0001-01-01'", moment, _at("0001-01-01")),
        ("TIMESTAMPTZ '2026-01-02 03:04:05.25+02'", moment, _at("2026-01-02 01:04:05.250000")),
        ("CAST(TIMESTAMP '2026-01-02 03:04:05.5' AS VARCHAR)", moment, _at("2026-01-02 03:04:05.500000")),
        ("'<é>'", text, "<é>"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)  # fmt: skip
def test_a_value_keeps_its_type(queue: HandlerQueue, expression: str, kind: Callable[[Any], Any], value: Any) -> None:
    read = _read(queue, expression, kind)

    assert (read, type(read)) == (value, type(value))
    assert str(read) == str(value)


@pytest.mark.parametrize("kind", [whole, double, decimal, text, moment, day])
def test_null_is_none_for_every_type(queue: HandlerQueue, kind: Callable[[Any], Any]) -> None:
    assert _read(queue, "NULL", kind) is None


@_SETTINGS
@given(value=st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30, places=6))
def test_any_decimal_comes_back_with_all_its_digits(queue: HandlerQueue, value: Decimal) -> None:
    assert str(_read(queue, literal(value), decimal)) == str(value or abs(value))


@_SETTINGS
@given(value=st.datetimes(max_value=_at("9999-12-30")))
def test_any_time_comes_back_to_the_microsecond(queue: HandlerQueue, value: datetime) -> None:
    assert _read(queue, literal(value), moment) == value


@pytest.mark.parametrize(
    ("told", "kind"),
    [(1.5, whole), (True, whole), ("1", whole), (True, double), ("1.5", double), (1.5, decimal), ({"Value": 1}, decimal), (1, text), ("soon", moment), (5, moment), ("2026-01-02T03:00:00Z", day)],
    ids=lambda part: getattr(part, "__name__", str(part)),
)  # fmt: skip
def test_what_cannot_be_of_the_type_is_named_with_its_column(told: Any, kind: Callable[[Any], Any]) -> None:
    with pytest.raises(BadAnswer, match="column amount"):
        typed([{"amount": told}], {"amount": kind})


def test_a_column_that_was_not_answered_is_named() -> None:
    with pytest.raises(BadAnswer, match="no column amount"):
        typed([{"other": 1}], {"amount": whole})
