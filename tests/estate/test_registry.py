"""The registry through a real queue and handler: every change run twice, beside another one, or late does no harm."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from servicectl.errors import BadAnswer, BadData, IntegrityError, ServicectlError, Superseded
from servicectl.estate.features import CREATE_VIEW, FeatureRows
from servicectl.estate.queue import HandlerQueue
from servicectl.estate.registry import DriftResult, Feature, ModelRow, Registry, redis_metadata
from servicectl.sql import features_literal, literal
from tests.parts.handler import handler
from tests.parts.redis import redis_server

_at = datetime.fromisoformat

_ROW = ModelRow(
    model_id="Loan'; DROP TABLE model_metadata --",
    artifact_type="pkl",
    version="0.1.0",
    trained_date=date(2026, 11, 23),
    model_drift_score=None,
    status="staging",
    azure_location="Model_Loan/",
    expected_features=(Feature(0, "age é", "int"), Feature(1, "income", "float"), Feature(2, "tenure", "float", 0.125)),
    created_at=_at("2026-11-23 01:02:03.4"),
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    with redis_server(folder) as server, handler(server.url, folder):
        yield server.url


@pytest.fixture
def queue(served: str) -> Iterator[HandlerQueue]:
    """A queue to a handler whose tables are empty and whose own tables of ours are absent."""
    with HandlerQueue(served, timeout_s=10) as client:
        for table in ("model_metadata", "features_table"):
            client.run(f"DELETE FROM {table}")
        for table in ("drift_results", "drift_evidence", "model_baselines"):
            client.run(f"DROP TABLE IF EXISTS {table}")
        client.run("DROP VIEW IF EXISTS features")
        yield client


@pytest.fixture
def registry(queue: HandlerQueue) -> Registry:
    return Registry(queue)


def _publish(registry: Registry, row: ModelRow, expected_current: str | None = None) -> None:
    registry.insert_staging(row)
    registry.switch_production(row.model_id, row.version, expected_current)


def _statuses(registry: Registry, model_id: str = _ROW.model_id) -> dict[str, str]:
    return {row.version: row.status for row in registry.rows(model_id)}


def _side_by_side(acts: list[Callable[[], object]]) -> list[BaseException | None]:
    outcomes: list[BaseException | None] = [None] * len(acts)
    start = threading.Barrier(len(acts))

    def run(place: int, act: Callable[[], object]) -> None:
        start.wait()
        try:
            act()
        except ServicectlError as failure:
            outcomes[place] = failure

    threads = [threading.Thread(target=run, args=(place, act)) for place, act in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_a_version_is_read_back_as_it_was_inserted(registry: Registry) -> None:
    assert registry.insert_staging(_ROW) == _ROW
    assert registry.rows(_ROW.model_id) == (_ROW,)
    assert registry.production() == ()


def test_a_new_version_is_always_staging_and_gets_the_time_of_its_insert(registry: Registry) -> None:
    before = datetime.now(UTC).replace(tzinfo=None)
    row = registry.insert_staging(replace(_ROW, status="production", created_at=None))

    assert row.status == "staging"
    assert row.created_at is not None
    assert before <= row.created_at <= datetime.now(UTC).replace(tzinfo=None)


def test_inserting_again_changes_nothing_also_after_the_switch(registry: Registry) -> None:
    registry.insert_staging(_ROW)
    registry.insert_staging(replace(_ROW, created_at=_at("2027-01-01")))
    registry.switch_production(_ROW.model_id, _ROW.version, None)

    assert registry.insert_staging(_ROW) == replace(_ROW, status="production")
    assert registry.rows(_ROW.model_id) == (replace(_ROW, status="production"),)


def test_a_version_that_describes_another_model_is_an_error(registry: Registry) -> None:
    registry.insert_staging(_ROW)

    with pytest.raises(BadAnswer, match="describes another model"):
        registry.insert_staging(replace(_ROW, trained_date=date(2026, 11, 24)))


def test_the_same_insert_executed_twice_at_one_moment_leaves_one_row(registry: Registry, queue: HandlerQueue) -> None:
    registry.insert_staging(_ROW)
    queue.run("INSERT INTO model_metadata SELECT * FROM model_metadata")
    assert len(registry.rows(_ROW.model_id)) == 2

    assert registry.insert_staging(_ROW) == _ROW
    assert registry.rows(_ROW.model_id) == (_ROW,)


def test_eight_inserts_side_by_side_leave_one_row(registry: Registry) -> None:
    _side_by_side([lambda: registry.insert_staging(_ROW)] * 8)

    registry.insert_staging(_ROW)
    assert registry.rows(_ROW.model_id) == (_ROW,)


def test_two_different_rows_of_one_version_are_an_error(registry: Registry, queue: HandlerQueue) -> None:
    registry.insert_staging(_ROW)
    queue.run("INSERT INTO model_metadata SELECT * REPLACE ('elsewhere/' AS azure_location) FROM model_metadata")

    with pytest.raises(BadAnswer, match="2 rows for"):
        registry.insert_staging(_ROW)
    with pytest.raises(BadAnswer, match="a switch needs exactly one"):
        registry.switch_production(_ROW.model_id, _ROW.version, None)
    assert len(registry.rows(_ROW.model_id)) == 2


def test_a_feature_whose_name_service_c_cannot_ask_for_is_refused(registry: Registry) -> None:
    with pytest.raises(BadData, match="quote"):
        registry.insert_staging(replace(_ROW, expected_features=(Feature(0, "driver's age", "int"),)))


def test_a_switch_deprecates_the_old_version_and_leaves_the_others(registry: Registry) -> None:
    _publish(registry, _ROW)
    _publish(registry, replace(_ROW, version="0.1.1"), "0.1.0")
    registry.insert_staging(replace(_ROW, version="0.1.2"))
    _publish(registry, replace(_ROW, model_id="Other"))
    _publish(registry, replace(_ROW, version="0.1.3"), "0.1.1")

    assert _statuses(registry) == {
        "0.1.0": "deprecated",
        "0.1.1": "deprecated",
        "0.1.2": "staging",
        "0.1.3": "production",
    }
    assert [(row.model_id, row.version) for row in registry.production()] == [
        (_ROW.model_id, "0.1.3"),
        ("Other", "0.1.0"),
    ]
    assert registry.rows(_ROW.model_id)[-1] == replace(_ROW, version="0.1.3", status="production")


def test_a_switch_back_to_an_older_version_is_a_switch_like_any_other(registry: Registry) -> None:
    _publish(registry, _ROW)
    _publish(registry, replace(_ROW, version="0.1.1"), "0.1.0")

    registry.switch_production(_ROW.model_id, "0.1.0", "0.1.1")

    assert _statuses(registry) == {"0.1.0": "production", "0.1.1": "deprecated"}


def test_a_switch_that_happened_already_succeeds_again(registry: Registry) -> None:
    _publish(registry, _ROW)
    _publish(registry, replace(_ROW, version="0.1.1"), "0.1.0")

    registry.switch_production(_ROW.model_id, "0.1.1", "0.1.0")

    assert _statuses(registry) == {"0.1.0": "deprecated", "0.1.1": "production"}


@pytest.mark.parametrize("expected", [None, "0.0.9"])
def test_a_switch_against_another_current_version_is_superseded(registry: Registry, expected: str | None) -> None:
    _publish(registry, _ROW)
    registry.insert_staging(replace(_ROW, version="0.1.1"))

    with pytest.raises(Superseded, match=r"has 0\.1\.0 in production"):
        registry.switch_production(_ROW.model_id, "0.1.1", expected)
    assert _statuses(registry) == {"0.1.0": "production", "0.1.1": "staging"}


def test_a_switch_to_a_version_without_a_row_is_an_error(registry: Registry) -> None:
    _publish(registry, _ROW)

    with pytest.raises(BadAnswer, match="has 0 rows"):
        registry.switch_production(_ROW.model_id, "0.1.1", "0.1.0")
    assert _statuses(registry) == {"0.1.0": "production"}


def test_a_switch_cleans_up_two_production_rows_left_by_somebody_else(registry: Registry, queue: HandlerQueue) -> None:
    for version in ("0.0.8", "0.0.9", "0.1.0"):
        registry.insert_staging(replace(_ROW, version=version))
    queue.run("UPDATE model_metadata SET status = 'production' WHERE version <> '0.1.0'")

    registry.switch_production(_ROW.model_id, "0.1.0", "0.0.9")

    assert _statuses(registry) == {"0.0.8": "deprecated", "0.0.9": "deprecated", "0.1.0": "production"}


def test_eight_switches_side_by_side_leave_exactly_one_production_row(registry: Registry) -> None:
    _publish(registry, _ROW)
    versions = [f"0.2.{number}" for number in range(8)]
    for version in versions:
        registry.insert_staging(replace(_ROW, version=version))

    outcomes = _side_by_side(
        [lambda v=version: registry.switch_production(_ROW.model_id, v, "0.1.0") for version in versions]  # type: ignore[misc]  # a default binds the loop's version
    )

    winners = [version for version, outcome in zip(versions, outcomes, strict=True) if outcome is None]
    assert [row.version for row in registry.production()] == winners
    assert len(winners) == 1
    assert all(isinstance(outcome, Superseded) for outcome in outcomes if outcome is not None)


def test_a_switch_beside_a_write_of_scores_never_leaves_two_production_rows(registry: Registry) -> None:
    _publish(registry, _ROW)
    current = "0.1.0"
    for number in range(1, 13):
        version = f"0.1.{number}"
        registry.insert_staging(replace(_ROW, version=version))
        scores = {"income": float(number)}

        switched, _ = _side_by_side(
            [
                lambda v=version, c=current: registry.switch_production(_ROW.model_id, v, c),  # type: ignore[misc]  # defaults bind the loop's values
                lambda c=current, s=scores: registry.write_drift_scores(_ROW.model_id, c, s),  # type: ignore[misc]  # defaults bind the loop's values
            ]
        )

        assert switched is None
        assert [row.version for row in registry.production()] == [version]
        current = version


def test_every_change_of_whole_rows_conflicts_with_every_other() -> None:
    """The engine's property that the switch rests on, and the one it must avoid: held here against the engine itself."""
    switch = "UPDATE m SET {}status = CASE version WHEN 2 THEN 'production' ELSE 'deprecated' END"
    scores = "UPDATE m SET f = [{'s': x.s + 1} for x in f] WHERE status = 'production'"

    def production_after(statement: str) -> int:
        with duckdb.connect() as one:
            one.execute("CREATE TABLE m AS SELECT version, f, status FROM (VALUES (1, [{'s': 0}], 'production'), "
                        "(2, [{'s': 0}], 'staging')) AS t(version, f, status)")  # fmt: skip
            other = one.cursor()
            one.execute("BEGIN")
            other.execute("BEGIN")
            one.execute(scores)
            other.execute(statement)
            one.execute("COMMIT")
            other.execute("COMMIT")
            found = one.execute("SELECT count(*) FROM m WHERE status = 'production'").fetchone()
            assert found is not None
            return int(found[0])

    assert production_after(switch.format("")) == 2
    with pytest.raises(duckdb.TransactionException, match="Conflict"):
        production_after(switch.format("f = f, "))


def test_scores_change_the_named_features_of_the_production_row_only(registry: Registry) -> None:
    _publish(registry, _ROW)
    _publish(registry, replace(_ROW, version="0.1.1"), "0.1.0")
    _publish(registry, replace(_ROW, model_id="Other"))

    registry.write_drift_scores(_ROW.model_id, "0.1.1", {"age é": 0.30000000000000004, "income": 2})

    assert [row.expected_features for row in registry.rows(_ROW.model_id)] == [
        _ROW.expected_features,
        (
            Feature(0, "age é", "int", 0.30000000000000004),
            Feature(1, "income", "float", 2.0),
            _ROW.expected_features[2],
        ),
    ]
    assert registry.rows("Other")[0].expected_features == _ROW.expected_features


def test_writing_no_scores_asks_nothing(registry: Registry) -> None:
    registry.write_drift_scores("nobody", "0.0.0", {})


@pytest.mark.parametrize("scores", [{"income": float("nan")}, {"income": float("inf")}, {"unknown": 0.1}], ids=str)
def test_scores_that_cannot_be_stored_are_refused(registry: Registry, scores: dict[str, float]) -> None:
    _publish(registry, _ROW)

    with pytest.raises(BadData):
        registry.write_drift_scores(_ROW.model_id, _ROW.version, {"tenure": 0.5, **scores})
    assert registry.production()[0].expected_features == _ROW.expected_features


def test_scores_of_a_version_that_is_not_in_production_are_superseded(registry: Registry) -> None:
    registry.insert_staging(_ROW)

    with pytest.raises(Superseded):
        registry.write_drift_scores(_ROW.model_id, _ROW.version, {"income": 0.1})


def test_values_that_would_blind_a_reader_are_read_as_nothing(registry: Registry, queue: HandlerQueue) -> None:
    features = features_literal([(0, "a", "float", None)]).replace("NULL", "'nan'::DOUBLE")
    queue.run(
        f"INSERT INTO model_metadata VALUES ('m', NULL, '1.0.0', DATE 'infinity', 'inf'::DOUBLE, 'production', NULL, "
        f"{features}, TIMESTAMP '-infinity')"
    )

    assert registry.production() == (
        ModelRow("m", "pkl", "1.0.0", None, None, "production", "Model_m/", (Feature(0, "a", "float"),), None),
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("model_id", "NULL", r"model None, version '0\.1\.0'.*no model_id"),
        ("version", "NULL", r"version None.*no version"),
        (
            "expected_features",
            features_literal([(0, "a", "int", None)]).replace("'a'", "NULL"),
            "without a whole-number",
        ),
        ("expected_features", "[NULL]", "without a whole-number"),
    ],
)
def test_a_row_out_of_shape_is_named_and_can_be_left_out(
    registry: Registry, queue: HandlerQueue, column: str, value: str, message: str
) -> None:
    _publish(registry, replace(_ROW, model_id="bad"))
    queue.run(f"UPDATE model_metadata SET {column} = {value}")
    _publish(registry, replace(_ROW, model_id="good"))
    left_out: list[BadAnswer] = []

    with pytest.raises(BadAnswer, match=message):
        registry.production()
    assert [row.model_id for row in registry.production(left_out.append)] == ["good"]
    assert len(left_out) == 1


def test_a_model_without_features_has_none(registry: Registry, queue: HandlerQueue) -> None:
    _publish(registry, _ROW)
    queue.run("UPDATE model_metadata SET expected_features = NULL")

    assert registry.production()[0].expected_features == ()


def test_the_redis_object_has_the_types_its_readers_accept() -> None:
    text = json.dumps(redis_metadata(replace(_ROW, status="production")), allow_nan=False)

    assert json.loads(text) == {
        "model_id": _ROW.model_id,
        "artifact_type": "pkl",
        "version": "0.1.0",
        "trained_date": "2026-11-23",
        "model_drift_score": None,
        "status": "production",
        "azure_location": "Model_Loan/",
        "expected_features": [
            {"index": 0, "name": "age é", "type": "int", "drift_score": None},
            {"index": 1, "name": "income", "type": "float", "drift_score": None},
            {"index": 2, "name": "tenure", "type": "float", "drift_score": 0.125},
        ],
    }
    assert '"index": 0,' in text  # the Go readers refuse 0.0


_RESULT = DriftResult(
    run_id="run-1",
    model_id=_ROW.model_id,
    model_version="0.1.0",
    feature_name="income",
    verdict="drift",
    service_status="CRITICAL",
    psi=0.5,
    ks_stat=3.0,
    ks_p_value=1e-300,
    kl_divergence=None,
    feature_rows=25_000,
    reason="it's 0.5 > 0.25",
    checked_at=_at("2026-11-23 02:00:00"),
)


def test_our_tables_can_be_ensured_again_and_by_several(registry: Registry) -> None:
    assert _side_by_side([registry.ensure_tables] * 4) == [None] * 4

    registry.ensure_tables()
    assert registry.drift_results("anybody") == ()


def test_results_before_the_first_check_are_none(registry: Registry) -> None:
    assert registry.drift_results("anybody") == ()
    assert registry.baseline("anybody", "0.1.0") is None


def test_drift_results_are_stored_once_however_often_they_are_recorded(registry: Registry) -> None:
    registry.ensure_tables()
    unmeasured = replace(
        _RESULT, feature_name="tenure", service_status=None, psi=None, ks_stat=None, ks_p_value=None, feature_rows=None
    )

    registry.record_drift_results([_RESULT])
    registry.record_drift_results([_RESULT, unmeasured])
    registry.record_drift_results([replace(_RESULT, psi=0.9), unmeasured])

    assert registry.drift_results(_ROW.model_id) == (_RESULT, unmeasured)
    assert registry.drift_results(_ROW.model_id, "tenure") == (unmeasured,)


def test_an_infinite_divergence_is_stored_as_nothing(registry: Registry) -> None:
    registry.ensure_tables()
    registry.record_drift_results([replace(_RESULT, kl_divergence=float("inf"), psi=float("nan"))])

    assert registry.drift_results(_ROW.model_id) == (replace(_RESULT, psi=None),)


def test_results_come_newest_first_within_the_limit(registry: Registry) -> None:
    registry.ensure_tables()
    runs = [
        replace(_RESULT, run_id=f"run-{day}", checked_at=_at(f"2026-11-0{day} 00:00:00.{day % 2}")) for day in (1, 3, 2)
    ]
    for run in runs:
        registry.record_drift_results([run])

    assert [result.run_id for result in registry.drift_results(_ROW.model_id, limit=2)] == ["run-3", "run-2"]


def test_what_a_result_rests_on_is_stored_once_beside_it(registry: Registry) -> None:
    registry.ensure_tables()
    full = replace(
        _RESULT,
        trigger="timer",
        window_end=_at("2026-11-22 23:00:00.5"),
        critical=True,
        evidence={"analyst": "builtin", "effect": 1.5, "current": {"rows": 10, "null_share": None}},
    )

    registry.record_drift_results([full])
    registry.record_drift_results([replace(full, trigger="operator")])

    assert registry.drift_results(_ROW.model_id) == (full,)


def test_results_from_before_there_was_evidence_are_read_without(registry: Registry) -> None:
    registry.ensure_tables()
    registry.record_drift_results([_RESULT])
    registry._queue.run("DROP TABLE drift_evidence")

    assert registry.drift_results(_ROW.model_id) == (_RESULT,)
    assert registry.scheduled_looks(["income"]) == ()
    registry.ensure_tables()
    assert registry.drift_results(_ROW.model_id) == (_RESULT,)


def test_the_limit_is_per_feature(registry: Registry) -> None:
    registry.ensure_tables()
    for day in (1, 2):
        registry.record_drift_results(
            [
                replace(_RESULT, run_id=f"run-{day}", feature_name=name, checked_at=_at(f"2026-11-0{day} 00:00:00"))
                for name in ("income", "tenure")
            ]
        )

    found = [(one.run_id, one.feature_name) for one in registry.drift_results(_ROW.model_id, limit=1)]
    assert found == [("run-2", "income"), ("run-2", "tenure")]


def test_looks_are_those_that_a_timer_started_and_that_measured_something_newest_first(registry: Registry) -> None:
    registry.ensure_tables()
    for day, trigger, verdict, critical in (
        (1, "timer", "WARNING", True),
        (2, "operator", "CRITICAL", True),
        (3, "timer, resumed", "CRITICAL", True),
        (4, "timer", "NOT_MEASURED", False),
        (5, "timer", "PASS", False),
    ):
        at = _at(f"2026-11-0{day} 00:00:00")
        told = replace(_RESULT, run_id=f"run-{day}", verdict=verdict, checked_at=at)
        registry.record_drift_results([replace(told, trigger=trigger, window_end=at, critical=critical)])

    found = [(one.window_end.day, one.critical) for one in registry.scheduled_looks(["income", "other"])]
    assert found == [(5, False), (1, True)]
    assert registry.scheduled_looks(["other"]) == registry.scheduled_looks([]) == ()


def test_more_results_than_one_statement_holds_are_all_stored(registry: Registry) -> None:
    registry.ensure_tables()
    results = [replace(_RESULT, feature_name=f"f{number}") for number in range(1100)]
    registry.record_drift_results(results)

    assert len(registry.drift_results(_ROW.model_id, limit=5000)) == 1100


def test_recording_no_results_asks_nothing(registry: Registry) -> None:
    registry.record_drift_results([])


def test_two_results_of_one_feature_in_one_run_are_refused(registry: Registry) -> None:
    with pytest.raises(BadData, match="same model and feature"):
        registry.record_drift_results([_RESULT, replace(_RESULT, psi=0.9)])


def test_a_result_left_twice_by_two_executions_counts_once(registry: Registry, queue: HandlerQueue) -> None:
    registry.ensure_tables()
    registry.record_drift_results([_RESULT])
    queue.run("INSERT INTO drift_results SELECT * FROM drift_results")

    registry.record_drift_results([_RESULT])
    assert registry.drift_results(_ROW.model_id) == (_RESULT,)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_baseline_is_stored_once_and_read_back_by_its_digest(registry: Registry, queue: HandlerQueue) -> None:
    registry.ensure_tables()
    baseline = '{"income": {"mean": 1.5, "name": "é\'<"}}'

    for _ in range(2):
        registry.store_baseline(_ROW.model_id, "0.1.0", baseline, _digest(baseline))

    assert registry.baseline(_ROW.model_id, "0.1.0") == baseline
    assert queue.read("SELECT count(*) AS n FROM model_baselines") == [{"n": 1}]
    assert registry.baseline(_ROW.model_id, "0.1.1") is None


def test_a_second_baseline_for_a_version_is_refused(registry: Registry) -> None:
    registry.ensure_tables()
    registry.store_baseline(_ROW.model_id, "0.1.0", "{}", _digest("{}"))

    with pytest.raises(IntegrityError, match="another baseline"):
        registry.store_baseline(_ROW.model_id, "0.1.0", "[]", _digest("[]"))
    assert registry.baseline(_ROW.model_id, "0.1.0") == "{}"


def test_a_baseline_that_is_not_its_digests_is_refused(registry: Registry, queue: HandlerQueue) -> None:
    registry.ensure_tables()
    with pytest.raises(IntegrityError, match="does not have the digest"):
        registry.store_baseline(_ROW.model_id, "0.1.0", "{}", _digest("[]"))

    registry.store_baseline(_ROW.model_id, "0.1.0", "{}", _digest("{}"))
    queue.run("UPDATE model_baselines SET baseline = '[]'")
    with pytest.raises(IntegrityError, match="does not match"):
        registry.baseline(_ROW.model_id, "0.1.0")


def _feature(queue: HandlerQueue, name: str, *times: datetime | str | None) -> None:
    for time in times:
        moment = time if isinstance(time, str) else literal(time)
        queue.run(
            f"INSERT INTO features_table (entity_id, feature_name, value, event_timestamp) "
            f"VALUES ('e', {literal(name)}, 1.0, {moment})"
        )


def test_rows_without_a_usable_time_are_counted_apart(registry: Registry, queue: HandlerQueue) -> None:
    old, new = _at("2025-01-01"), _at("2026-01-01 00:00:00.5")
    _feature(queue, "in'come", new, old, None, _at("0001-01-01"), "TIMESTAMP 'infinity'")
    _feature(queue, "uploaded", _at("0001-01-01"))

    assert registry.feature_rows(["in'come", "uploaded", "unknown"]) == {
        "in'come": FeatureRows(5, 3, old, new),
        "uploaded": FeatureRows(1, 1, None, None),
        "unknown": FeatureRows(0, 0, None, None),
    }
    assert registry.feature_rows([]) == {}


def test_the_view_is_missing_until_the_operator_makes_it(registry: Registry, queue: HandlerQueue) -> None:
    assert not registry.has_features_view()

    queue.run(CREATE_VIEW)
    assert registry.has_features_view()


def test_a_snapshot_holds_the_counted_rows(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "it's.parquet"

    assert registry.copy_to_parquet("SELECT unnest(range(1000)) AS x -- all of them", str(path)) == 1000
    assert _one(f"SELECT count(DISTINCT x) FROM read_parquet({literal(str(path))})") == 1000


def test_an_empty_snapshot_is_a_file_too(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "empty.parquet"

    assert registry.copy_to_parquet("SELECT 1 AS x WHERE FALSE; ", str(path)) == 0
    assert _one(f"SELECT count(*) FROM read_parquet({literal(str(path))})") == 0


def test_a_relative_path_is_refused_because_the_handlers_folder_is_unknown(registry: Registry) -> None:
    with pytest.raises(BadData, match="relative"):
        registry.copy_to_parquet("SELECT 1 AS x", "snapshot.parquet")


def _one(sql: str) -> Any:
    ((value,),) = duckdb.sql(sql).fetchall()
    return value
