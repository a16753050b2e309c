"""The registry on the strict handler: what lies between a first row and many publishers at once."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from servicectl.errors import BadAnswer, Busy, OutcomeUnknown, Superseded
from servicectl.estate.queue import LOCK_PREFIX, READ_QUEUE, HandlerQueue
from servicectl.estate.registry import Feature, ModelRow, Registry, redis_metadata
from servicectl.estate.serving_keys import Projected, Projection, ServingKeys
from servicectl.estate.serving_metadata import metadata_for_readers
from tests.conformance.conftest import Wire
from tests.conformance.registering import ROW, production, side_by_side
from tests.parts.handler import STRICT_PYTHON
from tests.parts.wire import watched


def _statuses(registry: Registry, model_id: str = ROW.model_id) -> dict[str, str]:
    return {row.version: row.status for row in registry.rows(model_id)}


def test_a_new_version_is_staging_with_scores_of_null_and_of_zero_for_the_readers_of_redis(wire: Wire) -> None:
    fresh = replace(ROW, expected_features=(Feature(0, "income", "float"), Feature(1, "tenure", "int")))
    stored = wire.registry.insert_staging(fresh)

    assert (stored.status, stored.model_drift_score) == ("staging", None)
    assert [feature.drift_score for feature in stored.expected_features] == [None, None]
    told = metadata_for_readers("Loan", "0.1.0", redis_metadata(stored))
    assert [feature["drift_score"] for feature in told["expected_features"]] == [0.0, 0.0]


@pytest.mark.parametrize(
    "scores", [{"income": 3.0}, {"age é": 0.1, "income": 1e-300, "tenure": 12.5}], ids=["one", "all"]
)
def test_scores_change_what_is_named_and_keep_every_type(wire: Wire, scores: dict[str, float]) -> None:
    production(wire.registry, ROW)
    production(wire.registry, replace(ROW, model_id="Other"))
    wire.registry.write_drift_scores(ROW.model_id, ROW.version, scores)

    loan, other = wire.registry.production()
    assert loan.expected_features == tuple(
        replace(feature, drift_score=scores.get(feature.name, feature.drift_score)) for feature in ROW.expected_features
    )
    assert other.expected_features == ROW.expected_features
    (kind,) = wire.queue.read("SELECT DISTINCT typeof(expected_features) AS kind FROM model_metadata")
    assert kind["kind"] == 'STRUCT("index" INTEGER, "name" VARCHAR, "type" VARCHAR, drift_score DOUBLE)[]'


def test_a_lost_staging_row_stops_the_switch_and_leaves_production_alone(wire: Wire) -> None:
    production(wire.registry, ROW)
    wire.registry.insert_staging(replace(ROW, version="0.1.1"))
    wire.queue.run("DELETE FROM model_metadata WHERE version = '0.1.1'")

    with pytest.raises(BadAnswer, match="has 0 rows"):
        wire.registry.switch_production(ROW.model_id, "0.1.1", "0.1.0")
    assert _statuses(wire.registry) == {"0.1.0": "production"}


def test_a_doubled_staging_row_stops_the_switch_until_it_is_one_again(wire: Wire) -> None:
    production(wire.registry, ROW)
    new = replace(ROW, version="0.1.1")
    wire.registry.insert_staging(new)
    wire.queue.run("INSERT INTO model_metadata SELECT * FROM model_metadata WHERE version = '0.1.1'")

    with pytest.raises(BadAnswer, match="has 2 rows"):
        wire.registry.switch_production(ROW.model_id, "0.1.1", "0.1.0")
    assert [row.version for row in wire.registry.production()] == ["0.1.0"]
    production(wire.registry, new, "0.1.0")
    assert _statuses(wire.registry) == {"0.1.0": "deprecated", "0.1.1": "production"}


def test_of_two_first_publishes_one_wins(wire: Wire) -> None:
    versions = ["0.1.0", "0.1.1"]
    for version in versions:
        wire.registry.insert_staging(replace(ROW, version=version))
    outcomes = side_by_side([partial(wire.registry.switch_production, ROW.model_id, v, None) for v in versions])

    winners = [version for version, outcome in zip(versions, outcomes, strict=True) if outcome is None]
    assert [row.version for row in wire.registry.production()] == winners
    assert len(winners) == 1
    assert [type(outcome) for outcome in outcomes if outcome] == [Superseded]


def test_a_switch_that_is_executed_after_a_newer_publish_changes_nothing(wire: Wire) -> None:
    registry = wire.registry
    production(registry, ROW)
    with watched(wire.redis) as seen:
        production(registry, replace(ROW, version="0.1.1"), "0.1.0")
    production(registry, replace(ROW, version="0.1.2"), "0.1.1")
    before = registry.rows(ROW.model_id)

    (late,) = [sql for sql in seen.statements() if sql.startswith("UPDATE")]
    wire.client.rpush(READ_QUEUE, json.dumps({"query": late, "response_key": "resp:late"}))
    assert wire.client.blpop(["resp:late"], timeout=10)[1] == b'{"data":[{"Count":0}]}'
    assert registry.rows(ROW.model_id) == before
    assert [row.version for row in registry.production()] == ["0.1.2"]


def test_scores_that_are_written_after_a_switch_do_not_touch_the_new_row(wire: Wire) -> None:
    registry = wire.registry
    production(registry, ROW)
    with watched(wire.redis) as seen:
        registry.write_drift_scores(ROW.model_id, "0.1.0", {"income": 7.0})
    production(registry, replace(ROW, version="0.1.1"), "0.1.0")

    (late,) = [sql for sql in seen.statements() if sql.startswith("UPDATE")]
    wire.client.rpush(READ_QUEUE, json.dumps({"query": late, "response_key": "resp:late"}))
    assert wire.client.blpop(["resp:late"], timeout=10)[1] == b'{"data":[{"Count":0}]}'
    assert registry.production()[0].expected_features == ROW.expected_features
    with pytest.raises(Superseded):
        registry.write_drift_scores(ROW.model_id, "0.1.0", {"income": 7.0})


def test_twenty_publishers_and_drift_checks_leave_one_production_row_per_model_and_lose_no_score(wire: Wire) -> None:
    registry = wire.registry
    names = [f"f{number}" for number in range(6)]
    features = tuple(Feature(index, name, "float") for index, name in enumerate(names))
    models = ("One", "Two")
    for model_id in models:
        production(registry, replace(ROW, model_id=model_id, expected_features=features))
    published: dict[str, list[str]] = {model_id: ["0.1.0"] for model_id in models}
    scored: list[tuple[str, str, str, float]] = []

    def publisher(model_id: str, version: str) -> None:
        row = replace(ROW, model_id=model_id, version=version, expected_features=features)
        for _ in range(50):
            (current,) = _production(registry, model_id)
            try:
                production(registry, row, current.version)
            except (Superseded, Busy):
                continue
            published[model_id].append(version)
            return

    def checker(model_id: str, name: str) -> None:
        for look in range(4):
            for _ in range(50):
                (current,) = _production(registry, model_id)
                score = 1000.0 * look + int(name[1:])
                try:
                    registry.write_drift_scores(model_id, current.version, {name: score})
                except (Superseded, Busy):
                    continue
                scored.append((model_id, current.version, name, score))
                break

    acts: list[Callable[[], object]] = [
        *(partial(publisher, model_id, f"0.2.{number}") for model_id in models for number in range(4)),
        *(partial(checker, model_id, name) for model_id in models for name in names),
    ]
    assert len(acts) == 20
    assert side_by_side(acts) == [None] * 20

    for model_id in models:
        statuses = _statuses(registry, model_id)
        assert sorted(statuses) == sorted(published[model_id])
        assert sorted(statuses.values()) == ["deprecated"] * 4 + ["production"]
    last = {(model_id, version, name): score for model_id, version, name, score in scored}
    assert len(scored) == 2 * 6 * 4
    # DuckDB 1.1.3 would have left rows locked for ever if these changes had met in it.
    assert wire.queue.run("UPDATE model_metadata SET expected_features = expected_features") == 10
    assert wire.client.keys("*") == []
    for (model_id, version, name), score in last.items():
        (row,) = [row for row in registry.rows(model_id) if row.version == version]
        (feature,) = [feature for feature in row.expected_features if feature.name == name]
        assert feature.drift_score == score, (model_id, version, name)


_MEETING = """
import duckdb
one = duckdb.connect()
one.execute("CREATE TABLE m AS SELECT i AS version, [i] AS features FROM range(3) AS r(i)")
other = one.cursor()
one.execute("BEGIN")
one.execute("UPDATE m SET features = [9] WHERE version = 2")
for statement in ("UPDATE m SET features = features", "UPDATE m SET features = features WHERE version = 0"):
    try:
        other.execute(statement)
    except duckdb.TransactionException as refused:
        print(refused)
    if one is not None:
        one.execute("COMMIT")
        one = None
"""


def test_the_handlers_engine_leaves_rows_locked_when_two_changes_of_whole_rows_meet(wire: Wire) -> None:
    """Why the writers of one model are kept apart: the second refusal comes when nobody else is writing any more."""
    told = subprocess.run([STRICT_PYTHON, "-c", _MEETING], capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == ["TransactionContext Error: Conflict on tuple deletion!"] * 2


def test_who_holds_the_registry_keeps_others_waiting_and_then_busy(wire: Wire, hasty: HandlerQueue) -> None:
    with wire.queue.exclusively("registry:Loan"):
        with pytest.raises(Busy, match="registry:Loan"):
            Registry(hasty).insert_staging(ROW)
        Registry(hasty).insert_staging(replace(ROW, model_id="Other"))
    assert Registry(hasty).insert_staging(ROW) == ROW


def test_an_unknown_outcome_keeps_others_out_until_the_lock_expires(wire: Wire, hasty: HandlerQueue) -> None:
    with pytest.raises(OutcomeUnknown), hasty.exclusively("mine"):
        raise OutcomeUnknown("the statement may still run")
    with pytest.raises(BadAnswer), hasty.exclusively("yours"):
        raise BadAnswer("it certainly does not")

    assert [key.decode() for key in wire.client.keys("*")] == [f"{LOCK_PREFIX}mine"]
    assert 0 < wire.client.pttl(f"{LOCK_PREFIX}mine") <= 1600  # deadline, skew, and twice the time-out
    with HandlerQueue(wire.redis.url, timeout_s=10) as patient, patient.exclusively("mine"):
        pass


def test_who_lost_the_lock_does_not_release_the_next_ones(wire: Wire) -> None:
    with wire.queue.exclusively("mine"):
        wire.client.set(f"{LOCK_PREFIX}mine", "another's")
    assert wire.client.get(f"{LOCK_PREFIX}mine") == b"another's"


def _production(registry: Registry, model_id: str) -> list[ModelRow]:
    return [row for row in registry.rows(model_id) if row.status == "production"]


def test_redis_takes_the_higher_generation_when_a_drift_check_and_a_publish_meet(wire: Wire) -> None:
    def projection(generation: int) -> Projection:
        row = replace(ROW, version=f"0.1.{generation}", status="production")
        content = f"model {generation}".encode()
        digest = hashlib.sha256(content).hexdigest()
        return Projection("Loan", generation, row.version, digest, "x.pkl", None, redis_metadata(row), {"pkl": content})

    with ServingKeys(wire.redis.url) as publisher, ServingKeys(wire.redis.url) as checker:
        publisher.project(projection(1))
        for generation in range(2, 30):
            side_by_side(
                [
                    partial(publisher.project, projection(generation)),
                    partial(checker.update_drift_scores, "Loan", generation - 1, {"income": float(generation)}),
                ]
            )
            current = publisher.read("Loan")
            assert current is not None
            assert (current.generation, current.version) == (generation, f"0.1.{generation}")
            told = json.loads(wire.client.get("model_metadata:Loan"))
            assert told["expected_features"][1]["drift_score"] == 0.0  # the old model's score is not the new one's
            assert publisher.project(projection(generation - 1)) is Projected.SUPERSEDED
