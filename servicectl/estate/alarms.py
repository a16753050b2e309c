"""Alarms: stored first, then told. What was told last per model and feature is the state that changes are held against."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from servicectl import log
from servicectl.clock import SYSTEM, Clock, stored
from servicectl.store import Store


@dataclass(frozen=True)
class Alarm:
    model_id: str
    feature: str
    change: str
    verdict: str
    text: str
    job_id: str | None
    raised_at: datetime


@dataclass(frozen=True)
class Standing:
    """What was told last: the last measured verdict per (model, feature), and the pairs told to be not measured."""

    verdicts: Mapping[tuple[str, str], str]
    unmeasured: frozenset[tuple[str, str]]


class Alarms:
    def __init__(self, store: Store, clock: Clock = SYSTEM) -> None:
        self._store = store
        self._clock = clock

    def raise_once(self, job_id: str, alarms: Sequence[tuple[str, str, str, str, str]]) -> int:
        """Store (model, feature, change, verdict, text) rows of one job; a repeat stores nothing. Returns how many are new."""
        if not alarms:
            return 0
        now = stored(self._clock.now())
        added = 0
        with self._store.transaction() as connection:
            for model_id, feature, change, verdict, text in alarms:
                alarm_id = str(uuid.uuid5(uuid.UUID(job_id), f"{model_id} {feature} {change}"))
                added += len(
                    connection.execute(
                        "INSERT INTO alarms SELECT ?, ?, ?, ?, ?, ?, ?, ?"
                        " WHERE NOT EXISTS (FROM alarms WHERE alarm_id = ?) RETURNING 1",
                        [alarm_id, model_id, feature, change, verdict, text, job_id, now, alarm_id],
                    ).fetchall()
                )
        return added

    def sound(self, alarms: Sequence[tuple[str, str, str, str, str]]) -> None:
        """One line each on stderr: alarms at alert priority where the journal listens, warnings and all-clears below."""
        for _, _, change, verdict, text in alarms:
            if change in ("cleared", "measured-again"):
                log.notice(text)
            elif verdict == "WARNING":
                log.warning(text)
            else:
                log.alert(f"ALARM {text}")

    def standing(self) -> Standing:
        verdicts: dict[tuple[str, str], str] = {}
        unmeasured: set[tuple[str, str]] = set()
        for alarm in reversed(self.newest(limit=1_000_000)):
            pair = (alarm.model_id, alarm.feature)
            if alarm.change == "not-measured":
                unmeasured.add(pair)
                continue
            unmeasured.discard(pair)
            verdicts[pair] = alarm.verdict
        return Standing(verdicts, frozenset(unmeasured))

    def newest(self, *, limit: int = 50) -> list[Alarm]:
        with self._store.reading() as connection:
            if connection is None:
                return []
            rows = connection.execute(
                "SELECT model_id, feature, change, verdict, text, job_id::VARCHAR, raised_at FROM alarms"
                f" ORDER BY raised_at DESC, alarm_id DESC LIMIT {limit:d}"
            ).fetchall()
        return [Alarm(*row) for row in rows]
