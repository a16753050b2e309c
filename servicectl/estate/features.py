"""The feature store's long table, as far as drift checks and snapshots ask about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath, PureWindowsPath

from servicectl.errors import BadData
from servicectl.estate.queue import HandlerQueue
from servicectl.estate.registry_rows import moment
from servicectl.sql import literal, literals, parquet_options

CREATE_VIEW = "CREATE VIEW features AS SELECT * FROM features_table"
"""What lets Service C see current rows at all. Making it is the operator's decision."""

# Uploads through Service A carry Go's zero time, the year 1.
_HAS_TIME = "(event_timestamp IS NOT NULL AND isfinite(event_timestamp) AND year(event_timestamp) > 1)"


@dataclass(frozen=True)
class FeatureRows:
    """How much there is of one feature: `rows` counts all, `without_time` those no split by time can use;
    `oldest` and `newest` are naive UTC event times of the others."""

    rows: int
    without_time: int
    oldest: datetime | None
    newest: datetime | None


class FeatureStore:
    """Questions about `features_table`, through the handler's read queue."""

    def __init__(self, queue: HandlerQueue) -> None:
        self._queue = queue

    def feature_rows(self, names: Sequence[str]) -> dict[str, FeatureRows]:
        """Given feature names, what there is of each; a feature without rows has zeros and no times."""
        found = {name: FeatureRows(0, 0, None, None) for name in names}
        if not found:
            return found
        told = self._queue.read(
            f"""SELECT feature_name, count(*) AS all_rows, count(*) FILTER (NOT {_HAS_TIME}) AS without_time,
                       CAST(min(event_timestamp) FILTER ({_HAS_TIME}) AS VARCHAR) AS oldest,
                       CAST(max(event_timestamp) FILTER ({_HAS_TIME}) AS VARCHAR) AS newest
                FROM features_table WHERE feature_name IN {literals(found)} GROUP BY feature_name"""
        )
        for row in told:
            oldest, newest = moment(row["oldest"]), moment(row["newest"])
            found[row["feature_name"]] = FeatureRows(row["all_rows"], row["without_time"], oldest, newest)
        return found

    def has_features_view(self) -> bool:
        """Whether the relation `features` exists, without which Service C measures nothing."""
        return self._has_relation("features")

    def copy_to_parquet(
        self, query: str, path_on_handler: str, *, columns: int = 1, timeout_s: float | None = None
    ) -> int:
        """Given a SELECT of so many columns and an absolute path as the handler sees it, write the rows there; returns
        how many.

        The path must be new with every call: a late execution of an earlier send would overwrite what is being read.
        Its folder must exist. `timeout_s` replaces the queue's own for large copies.
        """
        if not (PurePosixPath(path_on_handler).is_absolute() or PureWindowsPath(path_on_handler).is_absolute()):
            raise BadData(
                f"{path_on_handler!r} is relative: it would lie in whatever folder the handler was started in"
            )
        # The line break ends a comment that the query may end in.
        copied = self._queue.run(
            f"COPY ({query.strip().rstrip(';')}\n) TO {literal(path_on_handler)} ({parquet_options(columns)})",
            timeout_s=timeout_s,
        )
        return copied or 0

    def _has_relation(self, name: str) -> bool:
        return bool(
            self._queue.read(
                f"SELECT 1 AS found FROM information_schema.tables WHERE table_name = {literal(name)} LIMIT 1"
            )
        )
