"""The handler's queue as a client meets it: a real Redis, a real handler process, and what happens when either is gone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Self

import pytest
import redis

from servicectl.clock import SYSTEM
from servicectl.errors import BadAnswer, BadData, Busy, ConfigError, OutcomeUnknown, PartyUnavailable
from servicectl.estate.queue import READ_QUEUE, RESPONSE_PREFIX, WRITE_QUEUE, HandlerQueue
from tests.parts import free_port
from tests.parts.handler import handler
from tests.parts.redis import RedisServer, redis_server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of this module's own, with a handler; the other tests' Redis has none."""
    folder = tmp_path_factory.mktemp("served")
    with redis_server(folder) as server, handler(server.url, folder, batch_seconds=0.05):
        yield server


@pytest.fixture
def queue(served: RedisServer) -> Iterator[HandlerQueue]:
    with HandlerQueue(served.url, timeout_s=10) as client:
        yield client


@pytest.fixture
def alone(redis_part: RedisServer) -> Iterator[HandlerQueue]:
    """A client of a Redis that has no handler. It gives up soon; its changes may start for 0.6 s and are final after
    0.8 s."""
    clock = replace(SYSTEM, sleep=lambda _: None)
    with HandlerQueue(redis_part.url, timeout_s=0.2, statement_deadline_s=0.6, clock_skew_s=0.2, clock=clock) as client:
        yield client


@pytest.fixture
def counters(queue: HandlerQueue) -> HandlerQueue:
    queue.run("CREATE OR REPLACE TABLE counters AS SELECT 'a' AS name, 0::BIGINT AS amount")
    return queue


def _amount(queue: HandlerQueue) -> int:
    return int(queue.read("SELECT amount FROM counters WHERE name = 'a'")[0]["amount"])


def _add(in_time: str) -> str:
    return f"UPDATE counters SET amount = amount + 1 WHERE name = 'a' AND {in_time}"


class _Impostor:
    """Takes each request off the queue as the handler would and answers what the test says; None: nothing at all."""

    def __init__(self, server: RedisServer, answers: Callable[[str], str | None]) -> None:
        self.queries: list[str] = []
        self._answers = answers
        self._client = server.client()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                popped: Any = self._client.blpop([READ_QUEUE], timeout=0.05)
            except redis.ConnectionError:  # a test may end Redis under it
                return
            if popped is None:
                continue
            asked = json.loads(popped[1])
            self.queries.append(asked["query"])
            answer = self._answers(asked["query"])
            if answer is not None:
                self._client.rpush(asked["response_key"], answer)


def test_rows_come_back_as_json_values_by_column(queue: HandlerQueue) -> None:
    assert queue.read("SELECT 9007199254740993 AS big, 'é''' AS word, NULL AS nothing, 3.0::DOUBLE AS whole") == [
        {"big": 9007199254740993, "word": "é'", "nothing": None, "whole": 3}
    ]


def test_a_select_without_rows_is_an_empty_list(queue: HandlerQueue) -> None:
    assert queue.read("SELECT 1 AS one WHERE FALSE") == []


def test_nothing_is_left_in_redis_after_an_answer(queue: HandlerQueue, served: RedisServer) -> None:
    queue.ping()

    with served.client() as client:
        assert client.keys("*") == []


def test_a_definition_has_no_count_and_a_copy_tells_its_rows(queue: HandlerQueue, tmp_path: Path) -> None:
    assert queue.run("CREATE TABLE IF NOT EXISTS mine (x INTEGER)") is None
    assert queue.run("CREATE TABLE IF NOT EXISTS mine (x INTEGER)") is None
    assert queue.run(f"COPY (SELECT unnest([1, 2, 3])) TO '{tmp_path}/three.parquet' (FORMAT parquet)") == 3


def test_a_refusal_is_told_in_the_handlers_words_on_one_line(queue: HandlerQueue) -> None:
    with pytest.raises(BadAnswer, match=r"Catalog Error: Table with name nowhere does not exist") as told:
        queue.read("SELECT *\nFROM nowhere")

    assert "\n" not in told.value.message


@pytest.mark.parametrize(
    "value", ["'nan'::DOUBLE", "1.0::DOUBLE / 0", "[{'deep': 'inf'::DOUBLE}]", "DATE '10000-01-01'"]
)
def test_an_unwritable_result_is_named_as_such(queue: HandlerQueue, value: str) -> None:
    with pytest.raises(BadAnswer, match="NaN, infinite, or a date beyond 9999"):
        queue.read(f"SELECT {value} AS bad")


@pytest.mark.parametrize("answer", ["[1]", "not json", '{"data": 5}', '{"data": [1]}'])
def test_an_answer_outside_the_contract_is_an_error(redis_part: RedisServer, alone: HandlerQueue, answer: str) -> None:
    with (
        _Impostor(redis_part, lambda _: answer),
        pytest.raises(BadAnswer, match="the DuckDB handler answered something"),
    ):
        alone.ping()


def test_a_poisoned_handler_is_told_with_its_cure(redis_part: RedisServer, alone: HandlerQueue) -> None:
    error = "TransactionContext Error: Current transaction is aborted (please ROLLBACK)"
    poisoned = json.dumps({"data": None, "error": error})

    with _Impostor(redis_part, lambda _: poisoned), pytest.raises(BadAnswer) as told:
        alone.ping()

    assert "somebody must send ROLLBACK" in told.value.cure


def test_a_silent_handler_is_named_and_the_request_withdrawn(redis_part: RedisServer, alone: HandlerQueue) -> None:
    with pytest.raises(PartyUnavailable, match=r"the DuckDB handler is not available: no answer within 0\.2 s"):
        alone.ping()

    with redis_part.client() as client:
        assert client.keys("*") == []


def test_an_unreachable_redis_is_named_without_its_password() -> None:
    with HandlerQueue(f"redis://:hunter2@127.0.0.1:{free_port()}/0") as queue:
        acts: list[Callable[[], object]] = [
            queue.ping,
            lambda: queue.run("SELECT 1"),
            lambda: queue.change(lambda _: "SELECT 1", lambda: True),
        ]
        for act in acts:
            with pytest.raises(PartyUnavailable, match=r"Redis is not available: 127\.0\.0\.1") as told:
                act()
            assert "hunter2" not in str(told.value)


def test_a_refused_password_is_a_matter_of_configuration(redis_part: RedisServer) -> None:
    with (
        HandlerQueue(redis_part.url, password="wrong") as queue,
        pytest.raises(ConfigError, match="refuses us"),
    ):
        queue.ping()


def test_an_address_that_is_none_is_a_matter_of_configuration() -> None:
    with pytest.raises(ConfigError, match=r"redis\.url"):
        HandlerQueue("localhost:6379")


def test_a_change_tells_how_many_rows_it_changed(counters: HandlerQueue) -> None:
    assert counters.change(_add, lambda: True) == 1
    assert counters.change(lambda in_time: f"{_add(in_time)} AND amount = 99", lambda: True) == 0
    assert _amount(counters) == 1


def test_concurrent_conflicting_changes_all_take_effect(counters: HandlerQueue) -> None:
    failures: list[BaseException] = []

    def change() -> None:
        try:
            for _ in range(3):
                counters.change(_add, lambda: True)
        except BaseException as failure:  # noqa: BLE001 -- handed to the asserting thread
            failures.append(failure)

    threads = [threading.Thread(target=change) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert _amount(counters) == 24


def test_endless_conflicts_end_in_busy(redis_part: RedisServer, alone: HandlerQueue) -> None:
    conflict = json.dumps({"data": None, "error": "TransactionContext Error: Conflict on update!"})

    with _Impostor(redis_part, lambda _: conflict) as impostor, pytest.raises(Busy):
        alone.change(lambda in_time: f"UPDATE t SET x = 1 WHERE {in_time}", lambda: False)

    assert 5 < len(impostor.queries) < 50


def test_a_change_nobody_took_is_withdrawn_and_certainly_not_done(alone: HandlerQueue, redis_part: RedisServer) -> None:
    with pytest.raises(PartyUnavailable, match="no answer within"):
        alone.change(_add, lambda: pytest.fail("a withdrawn change needs no read-back"))

    with redis_part.client() as client:
        assert client.llen(READ_QUEUE) == 0


def test_a_change_that_executes_after_its_deadline_changes_nothing(
    redis_part: RedisServer, alone: HandlerQueue, tmp_path: Path
) -> None:
    with handler(redis_part.url, tmp_path), HandlerQueue(redis_part.url) as patient:
        patient.run("CREATE TABLE counters AS SELECT 'a' AS name, 0::BIGINT AS amount")
    deadlines: list[float] = []
    asked_at: list[float] = []

    def build(in_time: str) -> str:
        deadlines.append(float(in_time.split("'")[1]))
        return _add(in_time)

    def confirm() -> bool:
        asked_at.append(datetime.now(UTC).timestamp())
        return False

    with (
        _Impostor(redis_part, lambda _: None) as impostor,
        pytest.raises(PartyUnavailable, match="let its deadline pass"),
    ):
        alone.change(build, confirm)

    # Nothing is certain before the deadline has passed on both clocks.
    assert asked_at[0] >= deadlines[0] + 0.2
    with redis_part.client() as client, handler(redis_part.url, tmp_path), HandlerQueue(redis_part.url) as patient:
        client.rpush(READ_QUEUE, json.dumps({"query": impostor.queries[0], "response_key": "late"}))
        assert client.blpop(["late"], timeout=10) == (b"late", b'{"data":[{"Count":0}]}')
        assert _amount(patient) == 0
        assert patient.change(_add, lambda: True) == 1


def test_a_change_whose_answer_was_lost_succeeds_when_it_can_be_read_back(
    redis_part: RedisServer, alone: HandlerQueue
) -> None:
    with _Impostor(redis_part, lambda _: None) as impostor:
        assert alone.change(_add, lambda: True) == 0

    assert len(impostor.queries) == 1


def test_a_change_that_cannot_be_read_back_has_an_unknown_outcome(redis_part: RedisServer, alone: HandlerQueue) -> None:
    def confirm() -> bool:
        return bool(alone.read("SELECT 1 AS one"))

    with _Impostor(redis_part, lambda _: None), pytest.raises(OutcomeUnknown, match="cannot be read back"):
        alone.change(_add, confirm)


def test_an_answer_that_comes_between_the_timeout_and_the_deadline_is_taken(
    redis_part: RedisServer, alone: HandlerQueue
) -> None:
    slow = threading.Event()

    def answer(_: str) -> str:
        slow.wait(0.35)
        return '{"data":[{"Count":7}]}'

    with _Impostor(redis_part, answer):
        assert alone.change(_add, lambda: pytest.fail("an answer needs no read-back")) == 7


def test_a_redis_that_dies_under_a_change_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, HandlerQueue(server.url, timeout_s=5) as queue:

        def answer(_: str) -> None:
            server.process.kill()
            server.process.wait()

        with _Impostor(server, answer), pytest.raises(OutcomeUnknown, match="Redis went away"):
            queue.change(_add, lambda: pytest.fail("there is no Redis to ask"))


def test_a_definition_that_was_taken_and_not_answered_has_an_unknown_outcome(
    redis_part: RedisServer, alone: HandlerQueue
) -> None:
    with _Impostor(redis_part, lambda _: None), pytest.raises(OutcomeUnknown):
        alone.run("CREATE TABLE IF NOT EXISTS mine (x INTEGER)")


@pytest.mark.parametrize(
    "statement",
    ["BEGIN", " begin transaction", "COMMIT", "SET threads = 1", "ATTACH 'x'", "ALTER TABLE x", "SELECT 1; BEGIN", "-- why\nSET x = 1"],
)  # fmt: skip
def test_statements_that_would_change_every_service_are_never_sent(queue: HandlerQueue, statement: str) -> None:
    for send in (queue.run, queue.read):
        with pytest.raises(BadData, match="never sent"):
            send(statement)


def test_rows_go_through_the_write_queue_whole(queue: HandlerQueue) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    row: dict[str, str | float | datetime | None]
    row = {"entity_id": "é'\"\n", "feature_name": "x", "value": 0.1, "event_timestamp": moment, "created_at": None}

    assert queue.push_rows("features_table", [row, {**row, "value": 3}]) == 2

    assert _landed(queue, 2) == [
        {"entity_id": "é'\"\n", "value": 0.1, "event_timestamp": "2026-01-02T03:04:05.678Z", "created_at": None},
        {"entity_id": "é'\"\n", "value": 3, "event_timestamp": "2026-01-02T03:04:05.678Z", "created_at": None},
    ]


def _landed(queue: HandlerQueue, count: int) -> list[dict[str, Any]]:
    limit = time.monotonic() + 10
    while True:
        rows = queue.read("SELECT entity_id, value, event_timestamp, created_at FROM features_table ORDER BY value")
        if len(rows) >= count or time.monotonic() > limit:
            return rows
        time.sleep(0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), date(2026, 1, 1), True, 2**53 + 1, b"x", [1]], ids=repr)
def test_a_row_the_handler_would_lose_is_refused_before_anything_is_queued(
    alone: HandlerQueue, redis_part: RedisServer, value: Any
) -> None:
    with pytest.raises(BadData, match="column value"):
        alone.push_rows("features_table", [{"value": 1.0}, {"value": value}])

    with redis_part.client() as client:
        assert client.llen(WRITE_QUEUE) == 0


def test_rows_that_do_not_name_the_same_columns_are_refused(queue: HandlerQueue) -> None:
    with pytest.raises(BadData, match="same columns"):
        queue.push_rows("features_table", [{"value": 1.0}, {"entity_id": "a"}])


def test_response_keys_lie_in_our_own_name_space(redis_part: RedisServer, alone: HandlerQueue) -> None:
    with redis_part.client() as client:
        watcher = threading.Thread(target=lambda: seen.append(json.loads(client.blpop([READ_QUEUE], timeout=5)[1])))
        seen: list[dict[str, str]] = []
        watcher.start()
        with pytest.raises(PartyUnavailable):
            alone.ping()
        watcher.join()

    assert seen[0]["response_key"].startswith(RESPONSE_PREFIX)
    assert len(seen[0]["response_key"]) > len(RESPONSE_PREFIX) + 30
