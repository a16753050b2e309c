"""The handler's strict face, for tests: `python -m servicectl.miniature.strict --redis URL --database FILE`.

Made to run on DuckDB 1.1.3, the real handler's engine, in an environment that holds nothing but that and redis. Beyond
what `handler` does, requests that were pushed together run in any order, a connection left inside a transaction
serves everybody after, and faults can be switched on (see `faults`).
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import redis

from servicectl.miniature.batches import Appender
from servicectl.miniature.faults import NAMES, Faults
from servicectl.miniature.handler import Handler, Options, Request, log, parser, run
from servicectl.miniature.wire import error_answer, rows_answer

_JITTER_S = 0.004  # as long as a small request takes, so that about half of the pairs change places
_TRANSACTION = re.compile(r"\b(begin|start|commit|end|rollback|abort)\b", re.IGNORECASE)
_THAW_S = 0.01

Done = TypeVar("Done")


class _Untyped:
    """Stands for a column's type where the engine tells none: the value itself shows how it is written."""

    id = ""
    children: tuple[tuple[str, Any], ...] = ()


class Pool:
    """Connections as Go's pool hands them out, as far as that shows on the wire."""

    def __init__(self, database: duckdb.DuckDBPyConnection) -> None:
        self._database = database
        self._changing = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._stuck: list[duckdb.DuckDBPyConnection] = []

    def run(self, work: Callable[[duckdb.DuckDBPyConnection, bool], Done], statement: str = "") -> Done:
        """Given work for a connection and whether that is inside a transaction, do it, on a stuck one if there is one."""
        with self._changing:
            stuck = self._stuck[-1] if self._stuck else None
        if stuck is None:
            return self._on_a_free_one(work, statement)
        with self._one_at_a_time:
            if stuck in self._stuck:
                try:
                    return work(stuck, True)
                finally:
                    self._release(stuck)
        return self.run(work, statement)

    def _on_a_free_one(self, work: Callable[[duckdb.DuckDBPyConnection, bool], Done], statement: str) -> Done:
        connection = self._database.cursor()
        try:
            return work(connection, False)
        finally:
            if _TRANSACTION.search(statement) and _inside_transaction(connection):
                with self._changing:
                    self._stuck.append(connection)
            else:
                connection.close()

    def _release(self, connection: duckdb.DuckDBPyConnection) -> None:
        if not _inside_transaction(connection):
            with self._changing:
                self._stuck.remove(connection)
            connection.close()


def _inside_transaction(connection: duckdb.DuckDBPyConnection) -> bool:
    try:
        seen = {connection.execute("SELECT txid_current()").fetchone() for _ in range(2)}
    except duckdb.Error:  # an aborted one refuses everything
        return True
    return len(seen) == 1


def answer(connection: duckdb.DuckDBPyConnection, query: str) -> str:
    """Given SQL text, run its statements one after the other; the last one's answer."""
    try:
        statements = connection.extract_statements(query)
        if not statements:
            return error_answer("empty query")
        told = ""
        for statement in statements:
            if wanted := len(statement.named_parameters):
                return error_answer(f"incorrect argument count for command: have 0 want {wanted}")
            told = rows_answer(*_executed(connection, statement))
    except duckdb.Error as refused:
        return error_answer(str(refused))
    return told


def _executed(
    connection: duckdb.DuckDBPyConnection, statement: Any
) -> tuple[list[tuple[str, Any]], Sequence[Sequence[object]]]:
    # The client of 1.1.3 tells a result's exact types only of a relation, and makes relations only of queries.
    relation = connection.sql(statement.query) if statement.type == duckdb.StatementType.SELECT else None
    if relation is None:
        connection.execute(statement)
        return [(column[0], _Untyped()) for column in connection.description or ()], connection.fetchall()
    columns = list(zip(relation.columns, relation.types, strict=True))
    shown = [_shown(f"column_{number}", kind) for number, (_, kind) in enumerate(columns)]
    if any(form != f"column_{number}" for number, form in enumerate(shown)):
        names = ", ".join(f"column_{number}" for number in range(len(columns)))
        inner = re.sub(r";\s*\Z", "", statement.query)
        relation = connection.sql(f"SELECT {', '.join(shown)} FROM (\n{inner}\n) AS answer({names})")
        columns = [(name, kind) for (name, _), kind in zip(columns, relation.types, strict=True)]
    return columns, relation.fetchall()


def _shown(column: str, kind: Any) -> str:
    """What DuckDB's Python client would refuse or flatten, in a form that it reads whole."""
    match kind.id:
        case "timestamp with time zone":
            return f"timezone('UTC', {column})"
        case "interval":
            parts = (
                f"{{'days': datepart('day', {column}), "
                f"'months': 12 * datepart('year', {column}) + datepart('month', {column}), "
                f"'micros': 60000000 * (60 * datepart('hour', {column}) + datepart('minute', {column})) "
                f"+ datepart('microsecond', {column})}}"
            )
            return f"CASE WHEN {column} IS NOT NULL THEN {parts} END"
    return column


class StrictHandler(Handler):
    def __init__(self, options: Options, faults: Mapping[str, str]) -> None:
        super().__init__(options)
        self._pool = Pool(self._database)
        self._faults = Faults(self._redis, faults)

    def _opened(self, path: Path) -> duckdb.DuckDBPyConnection:
        return duckdb.connect(path)

    def _next_request(self) -> bytes | None:
        if self._strikes("dead") is not None:
            _die()
        if self._strikes("frozen") is not None:
            self._stop.wait(_THAW_S)
            return None
        return super()._next_request()

    def _serve(self, asked: Request) -> None:
        time.sleep(random.uniform(0, _JITTER_S))  # noqa: S311 -- any order will do
        if self._strikes("killed", asked.query) is not None:
            _die()
        while self._strikes("frozen", asked.query) is not None:
            if self._stop.wait(_THAW_S):
                return
        if slow := self._strikes("slow", asked.query):
            time.sleep(slow["seconds"])
        told = self._told(asked.query)
        if self._strikes("unanswered", asked.query) is None and self._strikes("huge", asked.query) is None:
            self._respond(asked.response_key, told)

    def _told(self, query: str) -> str:
        if re.match(r"\s*UPDATE\b", query, re.IGNORECASE) and self._strikes("conflict", query) is not None:
            return error_answer("TransactionContext Error: Conflict on update!")
        told = self._pool.run(lambda connection, _: answer(connection, query), query)
        return told if self._strikes("empty", query) is None else ""

    def _append(self, appender: Appender) -> None:
        if self._strikes("frozen") is not None:
            return
        entries = self._next_batch()
        if not entries:
            return
        if self._strikes("killed", "write queue") is not None:
            _die()
        self._pool.run(lambda connection, inside: appender.append(connection, entries, in_transaction=inside))

    def _strikes(self, name: str, statement: str = "") -> Mapping[str, Any] | None:
        try:
            return self._faults.strikes(name, statement)
        except redis.RedisError:
            return None


def _die() -> None:
    log("killed, as the fault says")
    os.kill(os.getpid(), signal.SIGKILL)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("servicectl.miniature.strict", "The DuckDB handler's strict face, with faults.")
    options.add_argument(
        "--fault", action="append", default=[], metavar="NAME[=JSON]", help=f"switched on at start: {', '.join(NAMES)}"
    )
    given = vars(options.parse_args(arguments))
    told = (fault.partition("=") for fault in given.pop("fault"))
    faults = {name: value or "{}" for name, _, value in told}
    run(StrictHandler(Options(**given), faults))


if __name__ == "__main__":
    main()
