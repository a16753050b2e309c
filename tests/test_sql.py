"""What is written as SQL text is read back by DuckDB as the same value."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servicectl.errors import BadData
from servicectl.sql import FEATURES_TYPE, features_literal, identifier, leading_words, literal, literals

_SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

any_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
finite = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def engine() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


def _read(engine: duckdb.DuckDBPyConnection, expression: str) -> Any:
    row = engine.execute(f"SELECT {expression}").fetchone()
    assert row is not None
    return row[0]


@_SETTINGS
@given(value=any_text | st.text(alphabet="'\"\\\0;-?$\n%a\u2028é"))
def test_any_text_reads_back_as_itself(engine: duckdb.DuckDBPyConnection, value: str) -> None:
    assert _read(engine, literal(value)) == value


@_SETTINGS
@given(value=any_text)
def test_a_text_literal_never_holds_a_nul_character(value: str) -> None:
    assert "\0" not in literal(value + "\0" + value)


@_SETTINGS
@given(value=finite)
def test_any_finite_float_reads_back_bit_for_bit(engine: duckdb.DuckDBPyConnection, value: float) -> None:
    back = _read(engine, literal(value))

    assert (back, math.copysign(1, back)) == (value, math.copysign(1, value))


@_SETTINGS
@given(value=st.integers(-(2**127), 2**127 - 1))
def test_any_128_bit_integer_reads_back_as_itself(engine: duckdb.DuckDBPyConnection, value: int) -> None:
    assert _read(engine, literal(value)) == value


@_SETTINGS
@given(value=st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20, places=6))
def test_any_decimal_reads_back_with_its_scale(engine: duckdb.DuckDBPyConnection, value: Decimal) -> None:
    back = _read(engine, literal(value))

    assert (back, back.as_tuple().exponent) == (value, value.as_tuple().exponent)


@_SETTINGS
@given(value=st.dates())
def test_any_date_reads_back_as_itself(engine: duckdb.DuckDBPyConnection, value: date) -> None:
    assert _read(engine, literal(value)) == value


@_SETTINGS
@given(value=st.datetimes(), hours=st.integers(-12, 14))
def test_a_time_is_stored_as_utc_without_a_zone(engine: duckdb.DuckDBPyConnection, value: datetime, hours: int) -> None:
    assert _read(engine, literal(value)) == value

    if date(2, 1, 1) < value.date() < date(9998, 1, 1):
        aware = value.replace(tzinfo=timezone(timedelta(hours=hours)))
        assert _read(engine, literal(aware)) == aware.astimezone(UTC).replace(tzinfo=None)


@_SETTINGS
@given(name=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_name_can_name_a_column(engine: duckdb.DuckDBPyConnection, name: str) -> None:
    assert engine.execute(f"SELECT 1 AS {identifier(name)}").description[0][0] == name


@_SETTINGS
@given(
    features=st.lists(
        st.tuples(st.integers(0, 2**31 - 1), any_text, any_text, st.none() | finite),
        max_size=5,
    )
)
def test_a_feature_list_reads_back_whole(
    engine: duckdb.DuckDBPyConnection, features: list[tuple[int, str, str, float | None]]
) -> None:
    back = _read(engine, features_literal(features))

    assert [(f["index"], f["name"], f["type"], f["drift_score"]) for f in back] == features


def test_a_feature_list_has_the_type_of_the_registry_column(engine: duckdb.DuckDBPyConnection) -> None:
    engine.execute(f"CREATE OR REPLACE TABLE registry (expected_features {FEATURES_TYPE})")
    column = _read(engine, "typeof(expected_features) FROM (SELECT NULL) LEFT JOIN registry ON TRUE")

    assert _read(engine, f"typeof({features_literal([])})") == column
    assert _read(engine, f"typeof({features_literal([(0, 'a', 'float', None)])})") == column


def test_a_text_of_nul_characters_is_not_too_deep_an_expression(engine: duckdb.DuckDBPyConnection) -> None:
    assert _read(engine, literal("\0" * 2000)) == "\0" * 2000


def test_a_float_literal_is_a_double_and_never_a_decimal(engine: duckdb.DuckDBPyConnection) -> None:
    assert _read(engine, f"typeof({literal(1.5)})") == "DOUBLE"


def test_truth_and_nothing_have_their_own_literals(engine: duckdb.DuckDBPyConnection) -> None:
    assert engine.execute(f"SELECT * FROM (VALUES {literals([True, False, None])})").fetchall() == [(True, False, None)]


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, Decimal("NaN"), Decimal("Infinity"), Decimal(10) ** 38, 2**127, "\ud800", b"a", []],
    ids=repr,
)
def test_what_cannot_round_trip_is_refused(value: Any) -> None:
    with pytest.raises(BadData):
        literal(value)


def test_a_time_that_leaves_the_calendar_in_utc_is_refused() -> None:
    with pytest.raises(BadData, match="1 to 9999"):
        literal(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=2))))


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800"], ids=repr)
def test_a_name_no_column_can_have_is_refused(name: str) -> None:
    with pytest.raises(BadData):
        identifier(name)


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT 1", ["SELECT"]),
        (" select 1; begin ;", ["SELECT", "BEGIN"]),
        ("-- a; b\nCOMMIT", ["COMMIT"]),
        ("/* a; \n b */ rollback", ["ROLLBACK"]),
        ("SELECT '; BEGIN' AS \"; SET\", $$; ATTACH$$, $x$; $$ ALTER$x$, e'\\'; SET'", ["SELECT"]),
        ("SELECT 'it''s'; SET threads = 1", ["SELECT", "SET"]),
        ("SELECT a$x$ ; BEGIN; SELECT $x$", ["SELECT", "BEGIN", "SELECT"]),
        ("", []),
    ],
)
def test_the_first_word_of_each_statement_is_found_past_quotes_and_comments(sql: str, words: list[str]) -> None:
    assert leading_words(sql) == words


@_SETTINGS
@given(value=any_text | st.text(alphabet="'\"\\;-/*$\n ab"))
def test_a_quoted_text_never_looks_like_a_statement(value: str) -> None:
    assert leading_words(f"SELECT {literal(value)} AS x; COMMIT") == ["SELECT", "COMMIT"]
