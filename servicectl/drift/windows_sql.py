"""The SQL that cuts the two windows of every feature out of where its rows are. Understood by DuckDB 1.1.3 and 2.0.

The windows are the estate's: of a feature's rows in order of time, those from 50 % to 70 % are the reference and the
newest 5 % are current. Unlike Service C's they are taken from rows that have a time, and from all of those: its own
stop at the 20,000 oldest rows of each. Rows without a usable time (NULL, infinite, year 1) are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from servicectl.sql import identifier, literal, literals

REFERENCE_FROM, REFERENCE_UNTIL, CURRENT_FROM = 0.5, 0.7, 0.95


@dataclass(frozen=True, slots=True)
class Long:
    """Rows of (entity_id, feature_name, value, event_timestamp): `sql` is a table or a SELECT in parentheses."""

    sql: str


@dataclass(frozen=True, slots=True)
class Wide:
    """One row per event, features in columns of their own; those in `texts` are read as text, whatever they hold."""

    sql: str
    entity_column: str
    time_column: str
    texts: frozenset[str] = frozenset()


def long_table(
    table: str = "features_table", entity_column: str = "entity_id", time_column: str = "event_timestamp"
) -> Long:
    if (entity_column, time_column) == ("entity_id", "event_timestamp"):
        return Long(_table(table))
    return Long(
        f"(SELECT {identifier(entity_column)} AS entity_id, feature_name, value,"
        f" {identifier(time_column)} AS event_timestamp FROM {_table(table)})"
    )


def wide_table(table: str, query: str | None, entity_column: str, time_column: str, texts: Iterable[str] = ()) -> Wide:
    """`query`: a SELECT in place of the table."""
    # The line break ends a comment in the user's last line.
    sql = _table(table) if query is None else f"({query.strip().rstrip(';')}\n)"
    return Wide(sql, entity_column, time_column, frozenset(texts))


def prediction_log(versions: Iterable[tuple[str, str]]) -> Long:
    """Given (model, version) pairs, what those versions answered, under the model's name; an error is no value."""
    chosen = ", ".join(literals(pair) for pair in versions)
    return Long(
        "(SELECT model_inputs AS entity_id, model_id AS feature_name, event_datetime AS event_timestamp,"
        " CASE WHEN coalesce(model_error, '') = '' THEN TRY_CAST(model_result AS DOUBLE) END AS value"
        f" FROM model_logs WHERE (model_id, model_version) IN ({chosen}))"
    )


def windows_query(features: Sequence[str], rows: Long | Wide | None = None) -> str:
    """Given feature names, a SELECT of what `windows.WindowFile` (Long) or `windows.WideWindowFile` (Wide) reads.

    Long: (feature_name, side 0 or 1, moment, value), by feature, side and time. Wide: (side, moment, c0, c1, ...), the
    features in the order given, by side and time.
    """
    return _cut(features, rows or long_table(), REFERENCE_FROM, REFERENCE_UNTIL)


def history_query(features: Sequence[str], rows: Long | Wide | None = None) -> str:
    """As `windows_query`, with all rows before the current window as the reference."""
    return _cut(features, rows or long_table(), 0.0, CURRENT_FROM)


def counts_query(features: Sequence[str], rows: Long | Wide) -> str:
    """A SELECT of (feature_name, all_rows, without_time, newest and oldest as text); for Wide one row without a name."""
    moment, name, where, group = "event_timestamp", "feature_name", f"WHERE feature_name IN {literals(features)}", "ALL"
    if isinstance(rows, Wide):
        moment, name, where, group = identifier(rows.time_column), "NULL", "", ""
    usable = _usable(f"CAST({moment} AS TIMESTAMP)")
    return (
        f"SELECT {name} AS feature_name, count(*) AS all_rows, count(*) FILTER (NOT {usable}) AS without_time,"
        f" CAST(max(CAST({moment} AS TIMESTAMP)) FILTER ({usable}) AS VARCHAR) AS newest,"
        f" CAST(min(CAST({moment} AS TIMESTAMP)) FILTER ({usable}) AS VARCHAR) AS oldest"
        f" FROM {rows.sql} AS source {where}{f' GROUP BY {group}' if group else ''}"
    )


def _cut(features: Sequence[str], rows: Long | Wide, reference_from: float, reference_until: float) -> str:
    start, end, newest = (literal(share) for share in (reference_from, reference_until, CURRENT_FROM))
    if isinstance(rows, Long):
        kept, order = "feature_name, side, moment, value", "feature_name, side, place"
        placed = (
            "SELECT feature_name, CAST(event_timestamp AS TIMESTAMP) AS moment, value,"
            " row_number() OVER (PARTITION BY feature_name ORDER BY event_timestamp, entity_id, value) - 1 AS place,"
            f" count(*) OVER (PARTITION BY feature_name) AS all_rows FROM {rows.sql} AS source"
            f" WHERE feature_name IN {literals(features)} AND {_usable('CAST(event_timestamp AS TIMESTAMP)')}"
        )
    else:
        columns = [f"c{number}" for number in range(len(features))]
        kept, order = ", ".join(["side", "moment", *columns]), "side, place"
        chosen = ", ".join(
            f"{_as_text(identifier(name)) if name in rows.texts else identifier(name)} AS {column}"
            for name, column in zip(features, columns, strict=True)
        )
        moment = f"CAST({identifier(rows.time_column)} AS TIMESTAMP)"
        placed = (
            f"SELECT {moment} AS moment, {chosen}, row_number() OVER (ORDER BY {moment},"
            f" CAST({identifier(rows.entity_column)} AS VARCHAR)) - 1 AS place, count(*) OVER () AS all_rows"
            f" FROM {rows.sql} AS source WHERE {_usable(moment)}"
        )
    return f"""SELECT {kept} FROM (
            SELECT *, CASE WHEN place >= floor(all_rows * {newest}) THEN 1
                WHEN place >= floor(all_rows * {start}) AND place < floor(all_rows * {end}) THEN 0 END AS side
            FROM ({placed}) AS placed) AS sided
        WHERE side IS NOT NULL ORDER BY {order}"""


def _usable(moment: str) -> str:
    return f"({moment} IS NOT NULL AND isfinite({moment}) AND year({moment}) > 1)"


def _as_text(column: str) -> str:
    return f"CAST({column} AS VARCHAR)"


def _table(name: str) -> str:
    return ".".join(identifier(part) for part in name.split("."))
