"""The selftest's feature store: few made-up customers, whose behaviour changes with customer OLD."""

from __future__ import annotations

OLD = 2000
ALL = 2600

_NAMES = ("tenure", "usage", "churned")


def insert_statement(start: int, stop: int) -> str:
    """SQL that stores customers [start, stop), one an hour: from OLD on, `usage` is far higher and churn has another rule."""
    customers = f"""SELECT i, i % 10 AS tenure,
        ((i // 10) % 5) * 0.1::DOUBLE + CASE WHEN i < {OLD} THEN 0 ELSE 10 END AS usage,
        CASE WHEN ((i % 10) >= CASE WHEN i < {OLD} THEN 7 ELSE 2 END) <> ((i * 7919) % 13 = 3) THEN 1 ELSE 0 END AS churned
        FROM range({start:d}, {stop:d}) AS r(i)"""
    values = " UNION ALL ".join(
        f"SELECT i, '{name}' AS feature_name, {name}::DOUBLE AS value FROM customers" for name in _NAMES
    )
    hour = "TIMESTAMP '2024-01-01' + to_hours(i::BIGINT)"
    return (
        "INSERT INTO features_table (entity_id, feature_name, value, event_timestamp, created_at) "
        f"WITH customers AS ({customers}), long AS ({values}) "
        f"SELECT 'customer-' || i, feature_name, value, {hour}, {hour} FROM long"
    )
