"""The miniature handler, both of its faces, against the facts measured on the real one, over a real Redis."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import redis

from servicectl.estate.queue import READ_QUEUE, WRITE_QUEUE
from tests.parts import program
from tests.parts.handler import HandlerPart, handler
from tests.parts.redis import RedisServer, redis_server

_ANSWER_S = 15


class Caller:
    """A client that sees the bare wire."""

    def __init__(self, server: RedisServer) -> None:
        self.redis = server.client()

    def send(self, query: object, **more: object) -> str:
        key = f"resp:test:{uuid.uuid4()}"
        self.redis.rpush(READ_QUEUE, json.dumps({"query": query, "response_key": key, **more}))
        return key

    def answer(self, key: str) -> str:
        popped: Any = self.redis.blpop([key], timeout=_ANSWER_S)
        assert popped is not None, "no answer"
        return bytes(popped[1]).decode()

    def ask(self, query: str) -> str:
        return self.answer(self.send(query))

    def data(self, query: str) -> Any:
        told = json.loads(self.ask(query))
        assert "error" not in told, told
        return told["data"]

    def push(self, table: str, **row: object) -> None:
        self.redis.rpush(WRITE_QUEUE, json.dumps({"table": table, "data": row}))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture(scope="module", params=["friendly", "strict"])
def part(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HandlerPart]:
    folder = tmp_path_factory.mktemp("handler")
    with handler(server.url, folder, strict=request.param == "strict", batch_seconds=0.1) as started:
        yield started


@pytest.fixture
def caller(server: RedisServer, part: HandlerPart) -> Iterator[Caller]:
    client = Caller(server)
    client.redis.flushall()
    yield client
    client.redis.close()


@pytest.mark.parametrize(
    ("expression", "written"),
    [
        ("NULL", "null"),
        ("TRUE", "true"),
        ("'a''é\"'", '"a\'é\\""'),
        ("'<&>'", '"\\u003c\\u0026\\u003e"'),
        ("9007199254740993", "9007199254740993"),
        ("170141183460469231731687303715884105727::HUGEINT", "170141183460469231731687303715884105727"),
        ("3.0::DOUBLE", "3"),
        ("-0.5::DOUBLE", "-0.5"),
        ("1e300::DOUBLE", "1e+300"),
        ("0.1::FLOAT", "0.1"),
        ("1.25::DECIMAL(10,2)", '{"Scale":2,"Value":125,"Width":10}'),
        ("[1.5]", '[{"Scale":1,"Value":15,"Width":2}]'),
        ("DATE '2026-01-02'", '"2026-01-02T00:00:00Z"'),
        ("TIMESTAMP '2026-01-02 03:04:05'", '"2026-01-02T03:04:05Z"'),
        ("TIMESTAMP '2026-01-02 03:04:05.120'", '"2026-01-02T03:04:05.12Z"'),
        ("TIMESTAMP '0001-01-01'", '"0001-01-01T00:00:00Z"'),
        ("TIMESTAMPTZ '2026-01-02 03:04:05+02'", '"2026-01-02T01:04:05Z"'),
        ("TIME '01:02:03.5'", '"0001-01-01T01:02:03.5Z"'),
        ("INTERVAL 2 DAY", '{"days":2,"micros":0,"months":0}'),
        ("UUID '41414141-4141-4141-4141-414141414141'", '"AAAAAAAAAAAAAAAA"'),
        ("{'b': 1, 'a': NULL}", '{"a":null,"b":1}'),
        ("MAP(['k'], [1])", '{"k":1}'),
        ("[1, 2]::INTEGER[2]", "[1,2]"),
        ("to_json({'a': [1]})", '{"a":[1]}'),
        ("CAST(to_json([1]) AS VARCHAR)", '"[1]"'),
        ("'\\xFF'::BLOB", '"\ufffd"'),
    ],
)
def test_a_value_is_written_as_the_real_handler_writes_it(caller: Caller, expression: str, written: str) -> None:
    assert caller.ask(f"SELECT {expression} AS x") == f'{{"data":[{{"x":{written}}}]}}'


@pytest.mark.parametrize(
    "expression",
    ["'nan'::DOUBLE", "-1.0::DOUBLE / 0", "'inf'::FLOAT", "[{'a': 'nan'::DOUBLE}]", "DATE '10000-01-01'", "'infinity'::TIMESTAMP"],
)  # fmt: skip
def test_a_value_json_cannot_hold_makes_the_answer_an_empty_text(caller: Caller, expression: str) -> None:
    assert caller.ask(f"SELECT 1 AS fine, {expression} AS x") == ""


@pytest.mark.parametrize(
    ("statement", "answer"),
    [
        ("SELECT 1 AS x WHERE FALSE", '{"data":null}'),
        ("CREATE OR REPLACE TABLE t (x INTEGER)", '{"data":null}'),
        ("INSERT INTO t VALUES (1), (2)", '{"data":[{"Count":2}]}'),
        ("UPDATE t SET x = 3 WHERE x = 9", '{"data":[{"Count":0}]}'),
        ("INSERT INTO t VALUES (5) RETURNING x", '{"data":[{"x":5}]}'),
        ("CREATE OR REPLACE TABLE u AS SELECT * FROM t", '{"data":[{"Count":3}]}'),
        ("SELECT 1 AS x, 2 AS x", '{"data":[{"x":2}]}'),
        ("SELECT union_value(a := 1) AS x", '{"data":null}'),
        ("INSERT INTO t VALUES (6); SELECT count(*) AS n FROM t", '{"data":[{"n":4}]}'),
        ("", '{"data":null,"error":"empty query"}'),
        ("-- nothing", '{"data":null,"error":"empty query"}'),
        ("SELECT ?", '{"data":null,"error":"incorrect argument count for command: have 0 want 1"}'),
    ],
)
def test_a_statement_is_answered_as_by_the_real_handler(caller: Caller, statement: str, answer: str) -> None:
    caller.data("CREATE TABLE IF NOT EXISTS t AS SELECT unnest([1, 2]) AS x")
    if "t VALUES" in statement or "FROM t" in statement:
        caller.data("CREATE OR REPLACE TABLE t AS SELECT unnest([1, 2, 3]) AS x")

    assert caller.ask(statement) == answer


def test_an_error_is_text_and_keeps_what_earlier_statements_did(caller: Caller) -> None:
    caller.data("CREATE OR REPLACE TABLE kept (x INTEGER)")

    told = json.loads(caller.ask("INSERT INTO kept VALUES (1); SELECT * FROM nowhere"))
    assert told["data"] is None
    assert told["error"].startswith("Catalog Error: Table with name nowhere does not exist!")
    assert json.loads(caller.ask("INSERT INTO kept VALUES (2); SELEC"))["error"].startswith("Parser Error")
    assert caller.data("SELECT x FROM kept") == [{"x": 1}]


def test_an_answer_expires(caller: Caller) -> None:
    key = caller.send("SELECT 1 AS x")
    _until(lambda: caller.redis.ttl(key) > 0)

    assert 290 < int(caller.redis.ttl(key)) <= 300


def test_a_slow_request_does_not_hold_up_the_next(caller: Caller) -> None:
    slow = caller.send("SELECT count(*) AS x FROM range(10000) AS a(i), range(10000) AS b(j) WHERE hash(i, j) = 7")

    caller.ask("SELECT 1 AS x")

    assert caller.redis.exists(slow) == 0
    caller.answer(slow)


def test_what_is_not_a_request_is_not_answered(caller: Caller, part: HandlerPart) -> None:
    for raw in ("not json", "[]", '{"query": 5, "response_key": "resp:bad"}'):
        caller.redis.rpush(READ_QUEUE, raw)
    caller.redis.rpush(READ_QUEUE, json.dumps({"QUERY": "SELECT 1 AS x", "Response_Key": "resp:good"}))

    assert caller.answer("resp:good") == '{"data":[{"x":1}]}'
    assert caller.redis.exists("resp:bad") == 0


def test_a_response_key_of_another_type_loses_the_answer_and_gets_an_expiry(caller: Caller) -> None:
    caller.redis.set("foreign", "value")
    caller.redis.rpush(READ_QUEUE, json.dumps({"query": "SELECT 1 AS x", "response_key": "foreign"}))
    _until(lambda: caller.redis.ttl("foreign") > 0)

    assert caller.redis.get("foreign") == b"value"


def test_nobody_else_can_open_the_file(caller: Caller, part: HandlerPart) -> None:
    with pytest.raises(duckdb.IOException, match="lock"):
        duckdb.connect(part.database, read_only=True)


def _feature(entity: str, **more: object) -> dict[str, object]:
    return {
        "entity_id": entity,
        "feature_name": "f",
        "value": 1,
        "event_timestamp": "2026-01-02T03:04:05+02:00",
        **more,
    }


def _entities(caller: Caller) -> list[str]:
    rows = caller.data("SELECT entity_id FROM features_table ORDER BY entity_id")
    return [row["entity_id"] for row in rows or []]


def test_rows_of_the_write_queue_land_with_null_for_what_they_do_not_name(caller: Caller) -> None:
    caller.data("DELETE FROM features_table")
    caller.push("features_table", **_feature("a"), Value=9, unknown=1)
    _until(lambda: _entities(caller))

    assert caller.data("SELECT * FROM features_table") == [
        {
            "entity_id": "a",
            "feature_name": "f",
            "value": 1,
            "event_timestamp": "2026-01-02T01:04:05Z",
            "created_at": None,
        }
    ]


@pytest.mark.parametrize(
    "bad",
    [
        {"value": "1.5"},
        {"entity_id": 5},
        {"event_timestamp": "2026-01-02 03:04:05"},
        {"event_timestamp": "2026-01-02T03:04:05"},
        {"value": True},
    ],
    ids=str,
)
def test_an_unfit_row_takes_the_later_rows_of_its_table_with_it(caller: Caller, bad: dict[str, object]) -> None:
    caller.data("DELETE FROM features_table; DELETE FROM model_logs")
    with caller.redis.pipeline() as batch:
        for row in (_feature("before"), {**_feature("bad"), **bad}, _feature("after")):
            batch.rpush(WRITE_QUEUE, json.dumps({"table": "features_table", "data": row}))
        batch.rpush(WRITE_QUEUE, json.dumps({"table": "nowhere", "data": {}}))
        batch.rpush(WRITE_QUEUE, json.dumps({"table": "model_logs", "data": {"model_id": "m"}}))
        batch.execute()
    _until(lambda: caller.data("SELECT 1 AS x FROM model_logs"))

    assert _entities(caller) == ["before"]


def test_entries_that_are_no_json_are_dropped_alone(caller: Caller) -> None:
    caller.data("DELETE FROM features_table")
    with caller.redis.pipeline() as batch:
        for value in ("NaN", "1e400", "{", "1"):
            data = f'{{"entity_id": "e{len(value)}", "value": {value}}}'
            batch.rpush(WRITE_QUEUE, f'{{"table": "features_table", "data": {data}}}')
        batch.execute()
    _until(lambda: _entities(caller))

    assert caller.data("SELECT value FROM features_table") == [{"value": 1}]


def test_a_date_cannot_be_appended_and_a_feature_list_can(caller: Caller) -> None:
    caller.data("DELETE FROM model_metadata")
    feature = {"index": 0, "name": "a", "type": "int", "drift_score": None}
    caller.push("model_metadata", model_id="kept", trained_date=None, expected_features=[feature])
    _until(lambda: caller.data("SELECT 1 AS x FROM model_metadata"))
    caller.push("model_metadata", model_id="lost", trained_date="2026-01-02", expected_features=[feature])
    caller.push("model_logs", model_id="after")
    _until(lambda: caller.data("SELECT 1 AS x FROM model_logs WHERE model_id = 'after'"))

    assert caller.data("SELECT model_id, expected_features FROM model_metadata") == [
        {"model_id": "kept", "expected_features": [feature]}
    ]


def test_numbers_are_damaged_as_the_real_appender_damages_them(caller: Caller) -> None:
    caller.data("CREATE OR REPLACE TABLE numbers (whole BIGINT, price DECIMAL(10, 2))")
    caller.push("numbers", whole=2**53 + 1, price=1.25)
    _until(lambda: caller.data("SELECT 1 AS x FROM numbers"))

    assert caller.data("SELECT whole, CAST(price AS VARCHAR) AS price FROM numbers") == [
        {"whole": 2**53, "price": "0.01"}
    ]


def test_a_batch_holds_a_thousand_rows_and_the_rest_waits(redis_part: RedisServer, tmp_path: Path) -> None:
    caller = Caller(redis_part)
    with caller.redis.pipeline() as batch:
        for number in range(1001):
            batch.rpush(WRITE_QUEUE, json.dumps({"table": "features_table", "data": _feature(str(number))}))
        batch.execute()
    with handler(redis_part.url, tmp_path, batch_seconds=1.5):
        _until(lambda: caller.redis.llen(WRITE_QUEUE) == 1)
        _until(lambda: len(_entities(caller)) == 1001)
    caller.redis.close()


def test_it_ends_cleanly_at_sigterm_and_a_queued_request_waits_for_the_next_start(
    redis_part: RedisServer, tmp_path: Path
) -> None:
    caller = Caller(redis_part)
    with handler(redis_part.url, tmp_path) as part:
        caller.data("INSERT INTO model_logs (model_id) VALUES ('m')")
        slow = caller.send("SELECT sleep_ms(300) AS x")
        _until(lambda: caller.redis.llen(READ_QUEUE) == 0)
        part.process.send_signal(signal.SIGTERM)
        assert part.process.wait(timeout=10) == 0
    assert caller.answer(slow)
    with duckdb.connect(part.database, read_only=True) as file:
        assert file.execute("SELECT model_id FROM model_logs").fetchall() == [("m",)]
        assert file.execute("SELECT tags FROM duckdb_databases() WHERE NOT internal").fetchall() == [
            ({"storage_version": "v1.0.0+"},)
        ]

    waiting = caller.send("SELECT count(*) AS n FROM model_logs")
    with handler(redis_part.url, tmp_path):
        assert caller.answer(waiting) == '{"data":[{"n":1}]}'
    caller.redis.close()


def test_it_comes_back_after_a_restart_of_redis(tmp_path: Path) -> None:
    with redis_server(tmp_path) as first, handler(first.url, tmp_path):
        first.process.kill()
        first.process.wait()
        again = [program("redis-server"), "--port", str(first.port), "--bind", "127.0.0.1", "--save", ""]
        second = subprocess.Popen(again, cwd=tmp_path, stdout=subprocess.DEVNULL)
        try:
            caller = Caller(first)
            _until(lambda: _answers(caller.redis))
            assert caller.ask("SELECT 1 AS x") == '{"data":[{"x":1}]}'
            caller.redis.close()
        finally:
            second.kill()
            second.wait()


def test_an_unreachable_redis_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="did not start"), handler("redis://127.0.0.1:1/0", tmp_path):
        pass


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def _until(true: Any) -> None:
    limit = time.monotonic() + _ANSWER_S
    while not true():
        if time.monotonic() > limit:
            pytest.fail("waited in vain")
        time.sleep(0.01)
