"""The DuckDB handler, reached through its two Redis lists.

The handler is the only process that has the feature store's DuckDB file open. A request is one element on
`duckdb_read_queue`; the answer is one element on the response key that the request names. Nothing is
acknowledged: a request that was not answered may still be executed, minutes later, by a restarted handler.
So a read is simply given up, and a change carries a deadline in its own WHERE, after which a read-back is final.
"""

from __future__ import annotations

import json
import math
import random
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from servicectl import crash
from servicectl.clock import SYSTEM, Clock
from servicectl.errors import BadAnswer, BadData, Busy, ConfigError, OutcomeUnknown, PartyUnavailable, TryAgain
from servicectl.estate import answers
from servicectl.estate.answers import HANDLER as HANDLER
from servicectl.estate.answers import READ_QUEUE as READ_QUEUE
from servicectl.estate.answers import ConflictError, one_line
from servicectl.sql import leading_words, literal

if TYPE_CHECKING:
    from redis import Redis

WRITE_QUEUE = "duckdb_write_queue"
RESPONSE_PREFIX = "resp:servicectl:"
LOCK_PREFIX = "servicectl:lock:"

_CONNECT_S = 5.0
_SOCKET_MARGIN_S = 5.0  # the socket must outlast a BLPOP, or an answer in flight is lost with the connection
_CONFLICT_ATTEMPTS = 12
_ROWS_PER_PUSH = 500
_EXACT_INTEGERS = 2**53  # the write queue carries numbers as doubles

# A failing statement after BEGIN poisons a pooled connection for every service; SET, ATTACH and ALTER outlive us.
_NEVER_SENT = {"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SET", "ATTACH", "DETACH", "USE", "ALTER"}
_START_HANDLER = "start the handler, or see its log; `servicectl doctor` tells when it answers"

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Request:
    key: str
    payload: bytes


class HandlerQueue:
    """A client of the handler. Safe to share between threads.

    `timeout_s` is the wait for one answer; a change must start within `statement_deadline_s` by the handler's
    clock, which may differ from ours by at most `clock_skew_s`. Every method raises PartyUnavailable (Redis or the
    handler does not answer; certainly nothing was changed), OutcomeUnknown (only changes: it may or may not
    have run), BadAnswer (the handler refused, or its answer is outside the contract) and ConfigError (Redis
    refuses our password).
    """

    def __init__(
        self,
        url: str,
        *,
        password: str | None = None,
        timeout_s: float = 30.0,
        statement_deadline_s: float = 60.0,
        clock_skew_s: float = 5.0,
        clock: Clock = SYSTEM,
    ) -> None:
        self.clock = clock
        self._address = _address(url)
        self._client = _client(url, password, timeout_s + _SOCKET_MARGIN_S)
        self._timeout_s = timeout_s
        self._statement_deadline_s = statement_deadline_s
        self._clock_skew_s = clock_skew_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def ping(self) -> None:
        """Return if the handler answers `SELECT 1`."""
        self.read("SELECT 1 AS alive")

    def read(self, sql: str) -> list[dict[str, Any]]:
        """Given one SELECT, its rows as JSON values by column name.

        Every column needs its own alias; dates are best cast to VARCHAR, doubles guarded by isfinite.
        """
        return self._through_conflicts(lambda: self._read_once(_request(sql)))

    def run(self, sql: str, *, timeout_s: float | None = None) -> int | None:
        """Given one statement that is harmless when run twice or late (CREATE ... IF NOT EXISTS, COPY to a name of
        its own), run it. Returns its Count, or None where there is nothing to count.

        `timeout_s` replaces the client's own for a long COPY. No answer and not withdrawn: OutcomeUnknown.
        """
        limit = self._timeout_s if timeout_s is None else timeout_s
        rows = self._through_conflicts(lambda: self._run_once(_request(sql), limit))
        return answers.count(rows) if rows else None

    def change(self, build: Callable[[str], str], confirm: Callable[[], bool]) -> int:
        """Run one INSERT, UPDATE or DELETE that must not run later than its deadline.

        `build` gets a condition that the statement must hold in its WHERE; it is called once per attempt.
        `confirm` reads back whether the change is in place; it is asked only when no answer came, and only after
        the deadline, when nothing can change any more. Returns the rows changed as the handler counted them;
        0 also when only `confirm` could tell. Conflicts with others' changes are retried.
        """
        return self._through_conflicts(lambda: self._change_once(build, confirm))

    @contextmanager
    def exclusively(self, name: str) -> Iterator[None]:
        """Keep other clients from changing what `name` stands for until no statement of ours can run any more.

        The engine undoes one of two conflicting changes, but DuckDB 1.1.3 leaves rows of the undone one locked until
        it is restarted, when it had reached some of them before it met the conflict. So we never let ours conflict.
        After a kill or an unknown outcome the lock expires by itself. Raises Busy if it is not free in `timeout_s`.
        """
        key, mine = LOCK_PREFIX + name, uuid.uuid4().hex
        self._lock(key, mine)
        settled = True
        try:
            yield
        except OutcomeUnknown:
            settled = False
            raise
        finally:
            if settled:
                with suppress(PartyUnavailable, BadAnswer):
                    self._unlock(key, mine)

    def push_rows(self, table: str, rows: Sequence[Mapping[str, str | float | datetime | None]]) -> int:
        """Put rows on the write queue and return how many. They land some seconds later, unacknowledged.

        Only TEXT, DOUBLE and TIMESTAMP columns survive that queue. Every row must name every column: a missing one
        becomes NULL, not its default. Naive datetimes are UTC. Raises BadData for anything the handler would lose
        (NaN, dates, booleans, integers beyond 2^53), since a lost row takes other services' later rows with it.
        """
        entries = [
            json.dumps({"table": table, "data": {column: _writable(column, row[column]) for column in row}}).encode()
            for row in rows
        ]
        if len({frozenset(row) for row in rows}) > 1:
            raise BadData(f"the rows for {table} do not all name the same columns")
        self._require_redis()
        for start in range(0, len(entries), _ROWS_PER_PUSH):
            try:
                with self._redis() as client:
                    client.rpush(WRITE_QUEUE, *entries[start : start + _ROWS_PER_PUSH])
            except PartyUnavailable as lost:
                raise OutcomeUnknown(
                    f"Redis went away while {len(entries)} rows for {table} were being queued; some may be there",
                    cure="look at the table before sending them again",
                ) from lost
        return len(entries)

    def _lock(self, key: str, mine: str) -> None:
        limit = self.clock.monotonic() + self._timeout_s
        lasts_s = self._statement_deadline_s + self._clock_skew_s + 2 * self._timeout_s
        while True:
            with self._redis() as client:
                if client.set(key, mine, nx=True, px=round(lasts_s * 1000)):
                    return
            if self.clock.monotonic() > limit:
                raise Busy(
                    f"somebody else has been changing the registry ({key}) for {self._timeout_s:g} s",
                    cure=f"run the command again; what a killed one left is free after {lasts_s:g} s",
                )
            self.clock.sleep(random.uniform(0.005, 0.05))  # noqa: S311 -- waiters must not walk in step

    def _unlock(self, key: str, mine: str) -> None:
        from redis.exceptions import WatchError

        with self._redis() as client, suppress(WatchError):
            pipe: Any = client.pipeline()
            with pipe:
                pipe.watch(key)
                if pipe.get(key) == mine.encode():
                    pipe.multi()
                    pipe.delete(key)
                    pipe.execute()

    def _read_once(self, request: _Request) -> list[dict[str, Any]]:
        with self._forgotten(request):
            self._push(request)
            answer = self._wait(request, self._timeout_s)
            if answer is None:
                self._withdraw(request)
                answer = self._poll(request)
            if answer is None:
                raise self._silent(self._timeout_s)
            return answers.rows(answer)

    def _run_once(self, request: _Request, limit: float) -> list[dict[str, Any]]:
        with self._forgotten(request):
            answer = self._answer_or_withdrawn(request, limit)
            if answer is None:
                raise OutcomeUnknown(
                    f"{HANDLER} took a statement and did not answer within {limit:g} s", cure=_START_HANDLER
                )
            return answers.rows(answer)

    def _change_once(self, build: Callable[[str], str], confirm: Callable[[], bool]) -> int:
        deadline = self.clock.now().timestamp() + self._statement_deadline_s
        request = _request(build(f"epoch(now()) < {literal(deadline)}"))
        with self._forgotten(request):
            answer = self._answer_or_withdrawn(request, self._timeout_s)
            if answer is None:
                answer = self._until_final(request, deadline)
            if answer is not None:
                return answers.count(answers.rows(answer))
        try:
            done = confirm()
        except TryAgain as unreadable:
            raise OutcomeUnknown(
                f"a change was sent to {HANDLER}, no answer came, and it cannot be read back: {unreadable.message}",
                cure=_START_HANDLER,
            ) from unreadable
        if not done:
            raise PartyUnavailable(HANDLER, "it took a change and let its deadline pass", cure=_START_HANDLER)
        return 0

    def _answer_or_withdrawn(self, request: _Request, limit: float) -> bytes | None:
        """The answer; None if the statement may have run or may still run. PartyUnavailable: it never will."""
        self._require_redis()
        answer = None
        with suppress(PartyUnavailable):  # Redis went away in the middle: what we sent may have arrived
            self._push(request)
            crash.point("handler/asked")
            answer = self._wait(request, limit)
        if answer is not None:
            crash.point("handler/answered")
            return answer
        try:
            withdrawn = self._withdraw(request)
            answer = self._poll(request)
        except PartyUnavailable as lost:
            raise OutcomeUnknown(
                f"Redis went away after a statement was sent: {lost.message}", cure=lost.cure
            ) from lost
        if withdrawn:
            raise self._silent(limit)
        return answer

    def _until_final(self, request: _Request, deadline: float) -> bytes | None:
        """Wait for a late answer until the statement's deadline has passed on either clock."""
        remaining = deadline + self._clock_skew_s - self.clock.now().timestamp()
        try:
            return self._wait(request, remaining)
        except PartyUnavailable as lost:
            raise OutcomeUnknown(f"Redis went away after a change was sent: {lost.message}", cure=lost.cure) from lost

    def _through_conflicts(self, attempt: Callable[[], Result]) -> Result:
        with suppress(ConflictError):
            return attempt()
        # Imported only now: conflicts are rare, and tenacity brings asyncio along.
        from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        retrying = Retrying(
            retry=retry_if_exception_type(ConflictError),
            stop=stop_after_attempt(_CONFLICT_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.02, max=1.0),
            sleep=self.clock.sleep,
        )
        try:
            return retrying(attempt)
        except RetryError as exhausted:
            raise Busy(
                f"{HANDLER} refused a change {_CONFLICT_ATTEMPTS} times because others change the same rows",
                cure="run the command again; if nobody else is writing, restart the handler: DuckDB 1.1.3 can keep a row "
                "locked after a conflict",
            ) from exhausted

    def _silent(self, seconds: float) -> PartyUnavailable:
        return PartyUnavailable(HANDLER, f"no answer within {seconds:g} s", cure=_START_HANDLER)

    def _require_redis(self) -> None:
        """Make sure of a connection, so that a later failure is known to lie after the sending."""
        with self._redis() as client:
            client.ping()

    def _push(self, request: _Request) -> None:
        with self._redis() as client:
            client.rpush(READ_QUEUE, request.payload)

    def _wait(self, request: _Request, seconds: float) -> bytes | None:
        limit = self.clock.monotonic() + seconds
        while True:
            remaining = min(limit - self.clock.monotonic(), self._timeout_s)
            if remaining <= 0:
                return None
            with self._redis() as client:
                # Redis takes a time-out of 0 for "for ever".
                popped: Any = client.blpop([request.key], timeout=max(remaining, 0.01))
            if popped is not None:
                return bytes(popped[1])

    def _poll(self, request: _Request) -> bytes | None:
        with self._redis() as client:
            popped: Any = client.lpop(request.key)
        return None if popped is None else bytes(popped)

    def _withdraw(self, request: _Request) -> bool:
        """True if the request was still queued and is not any more: it certainly never runs."""
        with self._redis() as client:
            removed: Any = client.lrem(READ_QUEUE, 1, request.payload.decode())
        return bool(removed)

    @contextmanager
    def _forgotten(self, request: _Request) -> Iterator[None]:
        answered = True
        try:
            yield
        except TryAgain:
            # What is answered late expires by itself, and a Redis that is silent need not be waited for twice.
            answered = False
            raise
        finally:
            if answered:
                with suppress(PartyUnavailable, BadAnswer), self._redis() as client:
                    client.delete(request.key)

    @contextmanager
    def _redis(self) -> Iterator[Redis]:
        """The client, with redis-py's errors told in the estate's words."""
        from redis import exceptions

        try:
            yield self._client
        except (exceptions.AuthenticationError, exceptions.NoPermissionError) as refused:
            raise ConfigError(
                f"Redis at {self._address} refuses us: {refused}",
                cure="set the password in $SERVICECTL_REDIS_PASSWORD or redis.password_file",
            ) from refused
        except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.OutOfMemoryError) as lost:
            raise PartyUnavailable(
                "Redis", f"{self._address}: {one_line(str(lost))}", cure="start Redis, or correct redis.url"
            ) from lost
        except exceptions.RedisError as refused:
            raise BadAnswer(f"Redis at {self._address} answered: {one_line(str(refused))}") from refused


def _client(url: str, password: str | None, socket_timeout: float) -> Redis:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    secret = {} if password is None else {"password": password}
    try:
        return Redis.from_url(
            url,
            **secret,
            protocol=2,
            retry=Retry(NoBackoff(), 0),  # redis-py's own retries put an element on the list twice
            socket_timeout=socket_timeout,
            socket_connect_timeout=_CONNECT_S,
        )
    except ValueError as wrong:
        raise ConfigError(f"redis.url cannot be used: {wrong}", cure="write it as redis://host:6379/0") from None


def _request(sql: str) -> _Request:
    for word in leading_words(sql):
        if word in _NEVER_SENT:
            raise BadData(f"{word} is never sent to {HANDLER}: it would change the state of every service")
    key = f"{RESPONSE_PREFIX}{uuid.uuid4()}"
    return _Request(key, json.dumps({"query": sql, "response_key": key}).encode())


def _writable(column: str, value: object) -> str | float | None:
    match value:
        case None:
            return None
        case str():
            literal(value)  # refuses what cannot be stored
            return value
        case datetime():
            moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
            return moment.isoformat().replace("+00:00", "Z")
        case int() if not isinstance(value, bool) and abs(value) <= _EXACT_INTEGERS:
            return value
        case float() if math.isfinite(value):
            return value
    raise BadData(f"{value!r} for column {column} cannot go through the write queue: the handler would lose the row")


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path
