"""The demo's real data: calls of a bank, coded as numbers for the feature store's long table.

Where the file comes from, its licence and the coding stand in `data/ATTRIBUTION.md` beside it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from servicectl.sql import identifier, literal

FILE = Path(__file__).with_name("data") / "bank_marketing_calls.parquet"
TOTAL_ROWS = 45_211

OLD_ROWS = 20_000
"""The calls [0, OLD_ROWS) are the demo's past."""

NEW_ROWS = 15_000
"""The newest calls, [TOTAL_ROWS - NEW_ROWS, TOTAL_ROWS), arrive later. The 10,211 between are left out, so that the
demo takes seconds."""

# call_duration_s is not here: it is known only when the call is over, and so is the label.
_CODING = {
    "age": "age",
    "balance_eur": "balance_eur",
    "campaign_contacts": "campaign_contacts",
    "days_since_previous": "coalesce(days_since_previous, -1)",  # never contacted before: the original's own code
    "previous_contacts": "previous_contacts",
    "credit_default": "credit_default = 'yes'",
    "housing_loan": "housing_loan = 'yes'",
    "personal_loan": "personal_loan = 'yes'",
    "contact_cellular": "coalesce(contact_type = 'cellular', false)",
    "previous_success": "coalesce(previous_outcome = 'success', false)",
    "subscribed": "subscribed",
}

LABEL = "subscribed"
FEATURES = tuple(name for name in _CODING if name != LABEL)

_TABLE = "features_table"


def insert_statement(start: int, stop: int) -> str:
    """Given a range [start, stop) of calls by row order, the SQL with which the handler stores them.

    One row per call and value (features and label). Values that the table already has for a call, at whatever
    time, are left alone, so that running it twice changes nothing. Understood by DuckDB 1.1.3 and 2.0. The
    handler must be able to read FILE. Raises ValueError for a range outside [0, TOTAL_ROWS].
    """
    return (
        f"INSERT INTO {_TABLE} (entity_id, feature_name, value, event_timestamp, created_at) "
        f"SELECT entity_id, feature_name, value, event_timestamp, event_timestamp FROM ({_long(start, stop)}) AS calls "
        f"WHERE NOT EXISTS (SELECT 1 FROM {_TABLE} AS stored "
        "WHERE stored.entity_id = calls.entity_id AND stored.feature_name = calls.feature_name)"
    )


def rows_as_entries(start: int, stop: int) -> list[dict[str, Any]]:
    """Given a range [start, stop) of calls by row order, the same rows as write-queue entries, in order of time.

    Each is `{"table": ..., "data": {column: value}}` with every column of the table and times as RFC 3339 in UTC.
    Raises ValueError for a range outside [0, TOTAL_ROWS].
    """
    import duckdb

    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT entity_id, feature_name, value, event_timestamp "
            f"FROM ({_long(start, stop)}) ORDER BY event_timestamp, entity_id, feature_name"
        ).fetchall()
    return [
        {
            "table": _TABLE,
            "data": {
                "entity_id": entity_id,
                "feature_name": feature_name,
                "value": value,
                "event_timestamp": _rfc3339(moment),
                "created_at": _rfc3339(moment),
            },
        }
        for entity_id, feature_name, value, moment in rows
    ]


def _long(start: int, stop: int) -> str:
    if not 0 <= start <= stop <= TOTAL_ROWS:
        raise ValueError(f"calls [{start}, {stop}) are not within [0, {TOTAL_ROWS})")
    coded = ", ".join(f"CAST({code} AS DOUBLE) AS {identifier(name)}" for name, code in _CODING.items())
    wide = (
        f"SELECT entity_id, event_timestamp, {coded} "
        f"FROM read_parquet({literal(str(FILE))}, file_row_number = true) "
        f"WHERE file_row_number >= {literal(start)} AND file_row_number < {literal(stop)}"
    )
    names = ", ".join(identifier(name) for name in _CODING)
    return f"UNPIVOT ({wide}) ON {names} INTO NAME feature_name VALUE value"


def _rfc3339(moment: datetime) -> str:
    return moment.replace(tzinfo=UTC).isoformat().replace("+00:00", "Z")
