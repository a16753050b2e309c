"""Alarms as an operator reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from servicectl.cli.job_views import age
from servicectl.cli.screen import Cell, Screen, word
from servicectl.estate.alarms import Alarm, Delivery


def views(alarms: Sequence[Alarm], deliveries: Sequence[Delivery]) -> list[dict[str, Any]]:
    """Alarms as JSON; the schema is in docs/json.md."""
    return [
        {
            "alarm_id": alarm.alarm_id,
            "id": alarm.short_id,
            "model_id": alarm.model_id,
            "feature": alarm.feature,
            "change": alarm.change,
            "verdict": alarm.verdict,
            "text": alarm.text,
            "job_id": alarm.job_id,
            "raised_at": _utc(alarm.raised_at),
            "acknowledged_at": _utc(alarm.acknowledged_at),
            "acknowledged_by": alarm.acknowledged_by,
            "deliveries": [
                {
                    "sink": one.sink,
                    "attempts": one.attempts,
                    "tried_at": _utc(one.tried_at),
                    "delivered_at": _utc(one.delivered_at),
                    "error": one.error,
                }
                for one in deliveries
                if one.alarm_id == alarm.alarm_id
            ],
        }
        for alarm in alarms
    ]


def print_alarms(screen: Screen, alarms: Sequence[Mapping[str, Any]], now: datetime) -> None:
    if not alarms:
        screen.line("no alarms")
        return
    rows: list[list[Cell]] = [
        [one["id"], age(one["raised_at"], now), word(one["verdict"]), one["change"], one["text"], _state(one)]
        for one in alarms
    ]
    screen.table(["alarm", "raised", "verdict", "change", "what", "state"], rows)


def _state(alarm: Mapping[str, Any]) -> str:
    waiting = [f"{one['sink']} was not told: {one['error']}" for one in alarm["deliveries"] if not one["delivered_at"]]
    seen = [f"seen by {alarm['acknowledged_by']}"] if alarm["acknowledged_at"] else []
    return "; ".join(seen + waiting) or "open"


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
