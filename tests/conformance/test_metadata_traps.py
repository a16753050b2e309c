"""Traps 11 to 14: model metadata, Service B's keys, and the write queue."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from servicectl.errors import BadData
from servicectl.estate.queue import WRITE_QUEUE, HandlerQueue
from servicectl.estate.registry import Registry, redis_metadata
from servicectl.estate.serving_keys import Projected, Projection, ServingKeys
from servicectl.estate.serving_wire import PROD_MODELS, artifact_key, metadata_key
from tests.conformance.conftest import Wire
from tests.conformance.registering import ROW, production
from tests.conformance.traps import trap
from tests.parts.handler import handler
from tests.parts.redis import redis_server
from tests.parts.wire import watched


def _projection(generation: int, content: bytes = b"model", **metadata: object) -> Projection:
    return Projection(
        model_id=ROW.model_id,
        generation=generation,
        version=f"0.1.{generation}",
        sha256=hashlib.sha256(content).hexdigest(),
        name=f"Model_Loan/Model_Loan_0.1.{generation}.pkl",
        job_id="job",
        metadata={**redis_metadata(replace(ROW, status="production")), **metadata},
        artifacts={"pkl": content},
    )


# -- 11 ---------------------------------------------------------------------------------------------------------------


@trap(11)
def test_trap_11_metadata_with_a_date_lands_and_the_write_queue_is_not_used(wire: Wire) -> None:
    with watched(wire.redis) as seen:
        assert wire.registry.insert_staging(ROW).trained_date == date(2026, 11, 23)

    assert not [words for words in seen.commands if WRITE_QUEUE in words and words[0] == "RPUSH"]


@trap(11)
def test_trap_11_a_date_is_never_put_on_the_write_queue(wire: Wire) -> None:
    row: dict[str, Any] = {"model_id": "m", "trained_date": date(2026, 1, 2)}
    with pytest.raises(BadData, match="column trained_date"):
        wire.queue.push_rows("model_metadata", [row])


@trap(11)
def test_trap_11_the_time_of_a_row_is_utc_although_the_handler_lives_elsewhere(tmp_path: Path) -> None:
    elsewhere = {"TZ": "America/Los_Angeles"}
    with (
        redis_server(tmp_path) as server,
        handler(server.url, tmp_path, strict=True, environment=elsewhere),
        HandlerQueue(server.url) as queue,
    ):
        queue.run("INSERT INTO model_metadata (model_id, version) VALUES ('others', '1.0.0')")
        (others,) = Registry(queue).rows("others")
        ours = Registry(queue).insert_staging(replace(ROW, created_at=None))

    now = datetime.now(UTC).replace(tzinfo=None)
    assert others.created_at is not None
    assert ours.created_at is not None
    assert now - others.created_at > timedelta(hours=6)  # that is the trap
    assert now - ours.created_at < timedelta(minutes=5)


@trap(11)
@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_trap_11_a_score_that_would_blind_every_reader_is_not_written(wire: Wire, score: float) -> None:
    production(wire.registry, ROW)
    with pytest.raises(BadData):
        wire.registry.write_drift_scores(ROW.model_id, ROW.version, {"income": score})
    assert wire.registry.production()[0].expected_features == ROW.expected_features


@trap(11)
def test_trap_11_features_keep_whole_number_indexes_and_all_four_members(wire: Wire) -> None:
    production(wire.registry, ROW)
    wire.registry.write_drift_scores(ROW.model_id, ROW.version, {"income": 2.0})

    (told,) = wire.queue.read("SELECT CAST(to_json(expected_features) AS VARCHAR) AS features FROM model_metadata")
    assert json.loads(told["features"]) == [
        {"index": 0, "name": "age é", "type": "int", "drift_score": None},
        {"index": 1, "name": "income", "type": "float", "drift_score": 2.0},
        {"index": 2, "name": "tenure", "type": "float", "drift_score": 0.125},
    ]
    assert '"index":0,' in told["features"]


# -- 12 ---------------------------------------------------------------------------------------------------------------


@trap(12)
def test_trap_12_redis_is_changed_in_one_transaction_that_never_empties_prod_models(wire: Wire) -> None:
    with ServingKeys(wire.redis.url) as keys, watched(wire.redis) as seen:
        for generation in (1, 2):
            assert keys.project(_projection(generation, f"model {generation}".encode())) is Projected.WRITTEN

    inside, changes = False, []
    for words in seen.commands:
        inside = (inside or words[0] == "MULTI") and words[0] != "EXEC"
        if words[0] in {"SADD", "SET", "DEL", "SREM", "XADD", "PUBLISH", "RENAME"}:
            changes.append((words[0], inside))
    assert {name for name, _ in changes} == {"SADD", "SET", "XADD", "PUBLISH"}
    assert all(together for _, together in changes)
    assert len(changes) == 2 * 5


@trap(12)
def test_trap_12_a_reader_never_sees_metadata_beside_another_models_bytes(wire: Wire) -> None:
    stop = threading.Event()
    torn: list[object] = []

    def read() -> None:
        with wire.redis.client() as client:
            while not stop.is_set():
                pipe = client.pipeline(transaction=True)
                pipe.sismember(PROD_MODELS, ROW.model_id)
                pipe.get(metadata_key(ROW.model_id))
                pipe.get(artifact_key(ROW.model_id, "pkl"))
                named, metadata, content = pipe.execute()
                if metadata is None and content is None and not named:
                    continue
                if not named or json.loads(metadata)["sha256"] != hashlib.sha256(content).hexdigest():
                    torn.append((named, metadata))

    reader = threading.Thread(target=read)
    reader.start()
    with ServingKeys(wire.redis.url) as keys:
        for generation in range(1, 101):
            keys.project(_projection(generation, f"model {generation}".encode()))
    stop.set()
    reader.join()
    assert torn == []


@trap(12)
def test_trap_12_a_new_row_is_neutral_until_one_statement_switches_all(wire: Wire) -> None:
    production(wire.registry, ROW)
    staged = wire.registry.insert_staging(replace(ROW, version="0.1.1", status="production"))
    assert staged.status == "staging"
    assert [row.version for row in wire.registry.production()] == ["0.1.0"]

    with watched(wire.redis) as seen:
        wire.registry.switch_production(ROW.model_id, "0.1.1", "0.1.0")
    assert len([sql for sql in seen.statements() if sql.lstrip().startswith("UPDATE")]) == 1
    assert [row.version for row in wire.registry.production()] == ["0.1.1"]


# -- 13 ---------------------------------------------------------------------------------------------------------------


@trap(13)
@pytest.mark.parametrize(
    "bad",
    [{"expected_features": []}, {"expected_features": None}, {"expected_features": "[]"}, {"expected_features": ["income"]}, {"artifact_type": 5}, {"trained_date": "soon"}],
    ids=str,
)  # fmt: skip
def test_trap_13_metadata_that_a_reader_would_refuse_is_not_written(wire: Wire, bad: dict[str, object]) -> None:
    with ServingKeys(wire.redis.url) as keys, pytest.raises(BadData):
        keys.project(_projection(1, b"model", **bad))
    assert not wire.client.exists(metadata_key(ROW.model_id))


@trap(13)
def test_trap_13_what_is_written_is_an_object_of_the_readers_types(wire: Wire) -> None:
    features = [{"index": 0.0, "name": "income", "type": "float", "drift_score": float("nan")}]
    with ServingKeys(wire.redis.url) as keys:
        keys.project(_projection(1, model_id=7, version=3, expected_features=features, model_drift_score=float("inf")))

    text = wire.client.get(metadata_key(ROW.model_id)).decode()
    told = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in {text}"))
    assert (told["model_id"], told["version"], told["model_drift_score"]) == ("Loan", "0.1.1", 0.0)
    assert told["expected_features"] == [{"index": 0, "name": "income", "type": "float", "drift_score": 0.0}]
    assert '"index": 0,' in text


@trap(13)
def test_trap_13_a_score_that_is_not_finite_never_reaches_redis(wire: Wire) -> None:
    with ServingKeys(wire.redis.url) as keys:
        keys.project(_projection(1))
        with pytest.raises(BadData):
            keys.update_drift_scores(ROW.model_id, 1, {"income": float("nan")})
    assert b"NaN" not in wire.client.get(metadata_key(ROW.model_id))


# -- 14 ---------------------------------------------------------------------------------------------------------------

_LOG: dict[str, Any] = {
    "model_id": "m", "model_version": "1.0.0", "model_inputs": "{}", "model_result": "1.000000", "model_error": "",
    "event_datetime": datetime.fromisoformat("2026-01-02T03:04:05.25"),
}  # fmt: skip


@trap(14)
@pytest.mark.parametrize(
    "bad",
    [{"model_result": float("nan")}, {"event_datetime": date(2026, 1, 2)}, {"model_inputs": {"a": 1}}, {"model_error": True}, {"model_result": 2**53 + 1}, {"model_id": "\ud800"}],
    ids=str,
)  # fmt: skip
def test_trap_14_a_row_that_would_take_others_along_is_not_queued(wire: Wire, bad: dict[str, Any]) -> None:
    with pytest.raises(BadData):
        wire.queue.push_rows("model_logs", [_LOG, {**_LOG, **bad}])
    assert wire.client.llen(WRITE_QUEUE) == 0


@trap(14)
def test_trap_14_a_column_that_is_left_out_would_be_null_so_all_rows_name_the_same(wire: Wire) -> None:
    with pytest.raises(BadData, match="same columns"):
        wire.queue.push_rows("model_logs", [_LOG, {"model_id": "m"}])


@trap(14)
def test_trap_14_our_rows_land_whole_and_let_the_rows_of_others_land(wire: Wire) -> None:
    zoned = datetime.fromisoformat("2026-01-02T05:04:05+02:00")
    wire.queue.push_rows("model_logs", [_LOG, {**_LOG, "event_datetime": zoned, "model_error": None}])
    wire.client.rpush(WRITE_QUEUE, json.dumps({"table": "model_logs", "data": {"model_id": "others"}}))

    rows = _landed(wire.queue, 3)
    assert sorted(row["at"] or "" for row in rows) == ["", "2026-01-02 03:04:05", "2026-01-02 03:04:05.25"]


def _landed(queue: HandlerQueue, count: int) -> list[dict[str, Any]]:
    limit = time.monotonic() + 15
    while True:
        rows = queue.read("SELECT model_id, CAST(event_datetime AS VARCHAR) AS at FROM model_logs")
        if len(rows) >= count or time.monotonic() > limit:
            return rows
        time.sleep(0.02)
