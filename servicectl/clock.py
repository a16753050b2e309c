"""Time as a value that is passed in, so that tests own it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Clock:
    """Wall time in UTC and a monotonic clock in seconds, with a way to wait."""

    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]


def _utc_now() -> datetime:
    return datetime.now(UTC)


SYSTEM = Clock(now=_utc_now, monotonic=time.monotonic, sleep=time.sleep)


def stored(moment: datetime) -> datetime:
    """The UTC-naive form that DuckDB TIMESTAMP columns hold."""
    return moment.astimezone(UTC).replace(tzinfo=None)
