"""Alarms: stored first, then told. What was told last per model and feature is the state that changes are held against."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from servicectl import log
from servicectl.clock import SYSTEM, Clock, stored
from servicectl.errors import UsageError
from servicectl.store import Store

_ALL = 1_000_000
_ENDS = "('cleared', 'measured-again')"


@dataclass(frozen=True)
class Alarm:
    """`feature` may name something else about the model in parentheses. Times are naive UTC."""

    model_id: str
    feature: str
    change: str
    verdict: str
    text: str
    job_id: str | None
    raised_at: datetime
    alarm_id: str = ""
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None

    @property
    def short_id(self) -> str:
        return self.alarm_id[-8:]


@dataclass(frozen=True)
class Delivery:
    """The last attempt to tell one sink about one alarm; `delivered_at` is None while none succeeded."""

    alarm_id: str
    sink: str
    attempts: int
    tried_at: datetime
    delivered_at: datetime | None
    error: str | None


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
                        "INSERT INTO alarms (alarm_id, model_id, feature, change, verdict, text, job_id, raised_at)"
                        " SELECT ?, ?, ?, ?, ?, ?, ?, ?"
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
        for alarm in reversed(self.newest(limit=_ALL)):
            pair = (alarm.model_id, alarm.feature)
            if alarm.change == "not-measured":
                unmeasured.add(pair)
                continue
            unmeasured.discard(pair)
            verdicts[pair] = alarm.verdict
        return Standing(verdicts, frozenset(unmeasured))

    def newest(self, *, limit: int = 50, open_only: bool = False) -> list[Alarm]:
        """Newest first; `open_only`: without those that were acknowledged, or that only tell of an end."""
        where = f"WHERE acknowledged_at IS NULL AND change NOT IN {_ENDS}" if open_only else ""
        return self._select(f"{where} ORDER BY raised_at DESC, alarm_id DESC LIMIT {limit:d}")

    def undelivered(self, sinks: Sequence[str], since: datetime) -> list[tuple[Alarm, str]]:
        """(alarm, sink) for every alarm raised since then that a sink was not told of yet, oldest first."""
        told = {(one.alarm_id, one.sink) for one in self.deliveries() if one.delivered_at is not None}
        recent = self._select("WHERE raised_at >= ? ORDER BY raised_at, alarm_id", [stored(since)])
        return [(alarm, sink) for alarm in recent for sink in sinks if (alarm.alarm_id, sink) not in told]

    def deliveries(self) -> list[Delivery]:
        with self._store.reading() as connection:
            if connection is None:
                return []
            rows = connection.execute(
                "SELECT alarm_id::VARCHAR, sink, attempts, tried_at, delivered_at, error FROM deliveries"
            ).fetchall()
        return [Delivery(*row) for row in rows]

    def tried(self, alarm_id: str, sink: str, error: str | None) -> None:
        """Remember one attempt; `error` None: it was delivered."""
        now = stored(self._clock.now())
        with self._store.transaction() as connection:
            connection.execute(
                "INSERT INTO deliveries VALUES (?, ?, 1, ?, ?, ?) ON CONFLICT (alarm_id, sink) DO UPDATE SET"
                " attempts = attempts + 1, tried_at = excluded.tried_at,"
                " delivered_at = coalesce(delivered_at, excluded.delivered_at), error = excluded.error",
                [alarm_id, sink, now, None if error else now, error],
            )

    def acknowledge(self, texts: Sequence[str], by: str) -> list[Alarm]:
        """Given ids or their last characters, mark those alarms as seen; returns them. Raises UsageError."""
        known = self.newest(limit=_ALL)
        chosen = [_the_one(text, known) for text in texts]
        now = stored(self._clock.now())
        with self._store.transaction() as connection:
            for alarm in chosen:
                connection.execute(
                    "UPDATE alarms SET acknowledged_at = ?, acknowledged_by = ?"
                    " WHERE alarm_id = ? AND acknowledged_at IS NULL",
                    [now, by, alarm.alarm_id],
                )
        ids = {alarm.alarm_id for alarm in chosen}
        return [alarm for alarm in self.newest(limit=_ALL) if alarm.alarm_id in ids]

    def _select(self, tail: str, values: Sequence[object] = ()) -> list[Alarm]:
        with self._store.reading() as connection:
            if connection is None:
                return []
            rows = connection.execute(
                "SELECT model_id, feature, change, verdict, text, job_id::VARCHAR, raised_at, alarm_id::VARCHAR,"
                f" acknowledged_at, acknowledged_by FROM alarms {tail}",
                list(values),
            ).fetchall()
        return [Alarm(*row) for row in rows]


def _the_one(text: str, known: Sequence[Alarm]) -> Alarm:
    found = [alarm for alarm in known if text and (alarm.alarm_id == text or alarm.alarm_id.endswith(text.lower()))]
    if len(found) == 1:
        return found[0]
    problem = f"{text!r} fits {len(found)} alarms" if found else f"there is no alarm {text!r}"
    raise UsageError(problem, cure="servicectl alarms list --all")
