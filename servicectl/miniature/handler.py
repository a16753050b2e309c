"""A DuckDB handler in small: `python -m servicectl.miniature.handler --redis URL --database FILE`.

The one process that has the feature store's DuckDB file open. It answers `duckdb_read_queue` concurrently and
appends `duckdb_write_queue` in batches. It prints `ready` on stdout when it serves, and ends at SIGTERM or SIGINT
after the requests in hand are answered.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from servicectl.estate.queue import READ_QUEUE, WRITE_QUEUE
from servicectl.miniature.batches import BATCH_ROWS, Appender, entry
from servicectl.miniature.wire import error_answer, rows_answer

ANSWER_TTL_S = 300
_POLL_S = 0.25  # how soon a SIGTERM is noticed by a loop that waits for work
_RECONNECT_S = 0.2

TABLES = """
CREATE TABLE IF NOT EXISTS features_table (
    entity_id TEXT, feature_name TEXT, value DOUBLE, event_timestamp TIMESTAMP,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS model_metadata (
    model_id TEXT, artifact_type TEXT, version TEXT, trained_date DATE, model_drift_score DOUBLE, status TEXT,
    azure_location TEXT,
    expected_features STRUCT("index" INTEGER, "name" TEXT, "type" TEXT, "drift_score" DOUBLE)[],
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS model_logs (
    model_id TEXT, model_version TEXT, model_inputs TEXT, model_result TEXT, model_error TEXT,
    event_datetime TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
"""


@dataclass(frozen=True)
class Options:
    redis: str
    database: Path
    batch_seconds: float = 4.0
    workers: int = 50


@dataclass(frozen=True)
class Request:
    query: str
    response_key: str


def request(raw: bytes) -> Request | None:
    """Given a queue element, what it asks; None if the real handler would only log it."""
    try:
        told = json.loads(raw)
    except ValueError:
        return None
    members = {name.lower(): value for name, value in told.items()} if isinstance(told, dict) else {}
    query, key = members.get("query"), members.get("response_key", "")
    return Request(query, key) if isinstance(query, str) and isinstance(key, str) else None


def answer(database: duckdb.DuckDBPyConnection, query: str) -> str:
    """Given SQL text, run its statements one after the other on a cursor of its own; the last one's answer."""
    with database.cursor() as cursor:
        try:
            statements = cursor.extract_statements(query)
            if not statements:
                return error_answer("empty query")
            told = ""
            for statement in statements:
                if statement.named_parameters:
                    wanted = len(statement.named_parameters)
                    return error_answer(f"incorrect argument count for command: have 0 want {wanted}")
                told = _statement_answer(cursor, statement)
        except duckdb.Error as refused:
            return error_answer(str(refused))
        return told


def _statement_answer(cursor: duckdb.DuckDBPyConnection, statement: Any) -> str:
    cursor.execute(statement)
    columns = _columns(cursor)
    zoned = [kind.id == "timestamp with time zone" for _, kind in columns]
    if any(zoned) and statement.type == duckdb.StatementType.SELECT:
        # DuckDB's Python client cannot fetch these without pytz; the wire shows them as UTC instants anyway.
        names = [f"column_{number}" for number in range(len(columns))]
        shown = (f"timezone('UTC', {name})" if zone else name for name, zone in zip(names, zoned, strict=True))
        inner = re.sub(r";\s*\Z", "", statement.query)
        cursor.execute(f"SELECT {', '.join(shown)} FROM (\n{inner}\n) AS answer({', '.join(names)})")
        kinds = [kind for _, kind in _columns(cursor)]
        columns = [(name, kind) for (name, _), kind in zip(columns, kinds, strict=True)]
    return rows_answer(columns, cursor.fetchall())


def _columns(cursor: duckdb.DuckDBPyConnection) -> list[tuple[str, Any]]:
    return [(column[0], column[1]) for column in cursor.description or ()]


class Handler:
    """Two loops over one database: requests, each in a thread of its own, and write batches."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._stop = threading.Event()
        self._free = threading.BoundedSemaphore(options.workers)
        self._database = self._opened(options.database)
        self._database.execute(TABLES)
        self._redis = redis.Redis.from_url(options.redis, protocol=2, socket_timeout=60, retry=Retry(NoBackoff(), 0))
        self._redis.ping()

    def _opened(self, path: Path) -> duckdb.DuckDBPyConnection:
        # The file must stay readable to the real handler's engine, DuckDB 1.1.3.
        return duckdb.connect(path, config={"storage_compatibility_version": "v1.0.0"})

    def stop(self, *_: object) -> None:
        self._stop.set()

    def serve(self) -> None:
        """Answer and append until `stop`; then finish what is in hand and close the database."""
        batches = threading.Thread(target=self._append_batches, name="write-batches")
        batches.start()
        with ThreadPoolExecutor(self._options.workers, thread_name_prefix="request") as workers:
            print("ready", flush=True)
            while not self._stop.is_set():
                self._free.acquire()
                raw = self._next_request()
                if raw is None:
                    self._free.release()
                else:
                    workers.submit(self._answer, raw).add_done_callback(_log_failure)
        batches.join()
        self._database.close()
        self._redis.close()

    def _next_request(self) -> bytes | None:
        try:
            popped: Any = self._redis.blpop([READ_QUEUE], timeout=_POLL_S)
        except redis.RedisError as lost:
            log(f"Redis: {lost}")
            self._stop.wait(_RECONNECT_S)
            return None
        return None if popped is None else bytes(popped[1])

    def _answer(self, raw: bytes) -> None:
        try:
            asked = request(raw)
            if asked is None:
                log(f"not a request: {raw[:200]!r}")
                return
            self._serve(asked)
        finally:
            self._free.release()

    def _serve(self, asked: Request) -> None:
        self._respond(asked.response_key, answer(self._database, asked.query))

    def _respond(self, key: str, text: str) -> None:
        try:
            self._redis.rpush(key, text)
        except redis.RedisError as refused:
            log(f"answer for {key!r} lost: {refused}")
        try:
            self._redis.expire(key, ANSWER_TTL_S)
        except redis.RedisError as refused:
            log(f"no expiry for {key!r}: {refused}")

    def _append_batches(self) -> None:
        appender = Appender(log)
        while not self._stop.wait(self._options.batch_seconds):
            self._append(appender)

    def _append(self, appender: Appender) -> None:
        with self._database.cursor() as cursor:
            appender.append(cursor, self._next_batch())

    def _next_batch(self) -> list[Any]:
        try:
            popped: Any = self._redis.lpop(WRITE_QUEUE, BATCH_ROWS)
        except redis.RedisError as lost:
            log(f"Redis: {lost}")
            return []
        entries = [entry(raw) for raw in popped or ()]
        if None in entries:
            log(f"{entries.count(None)} entries of the write queue are not rows")
        return [one for one in entries if one is not None]


def _log_failure(done: Future[None]) -> None:
    if failure := done.exception():
        log(f"a request was not answered: {failure!r}")


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """The options that both faces of the handler have."""
    parser = argparse.ArgumentParser(prog=module, description=description)
    parser.add_argument("--redis", required=True, help="redis://host:port/db")
    parser.add_argument("--database", required=True, type=Path, help="the DuckDB file; made if absent")
    parser.add_argument("--batch-seconds", type=float, default=Options.batch_seconds)
    parser.add_argument("--workers", type=int, default=Options.workers, help="requests answered at a time")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser("servicectl.miniature.handler", "A DuckDB handler in small.").parse_args(arguments)
    run(Handler(Options(**vars(given))))


def run(handler: Handler) -> None:
    """Serve until SIGTERM or SIGINT."""
    signal.signal(signal.SIGTERM, handler.stop)
    signal.signal(signal.SIGINT, handler.stop)
    handler.serve()


if __name__ == "__main__":
    main()
