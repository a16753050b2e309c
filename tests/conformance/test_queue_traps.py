"""Traps 1 to 10: the handler's read queue, met by our client over a real Redis and the strict handler."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servicectl.actions import snapshot
from servicectl.errors import BadAnswer, BadData, OutcomeUnknown, PartyUnavailable, ServicectlError
from servicectl.estate.queue import HANDLER, READ_QUEUE, RESPONSE_PREFIX, HandlerQueue
from servicectl.estate.registry import DriftResult, Feature, Registry
from servicectl.estate.values import day, decimal, double, moment, typed, whole
from servicectl.sql import identifier, literal
from servicectl.training.source import snapshot_query
from servicectl.training.spec import Source, TrainingSpec
from tests.conformance.conftest import Wire, world_on
from tests.conformance.registering import ROW, production, side_by_side
from tests.conformance.traps import trap
from tests.parts.handler import fault, handler
from tests.parts.redis import redis_server
from tests.parts.wire import stalling, watched

_SPEC = TrainingSpec(model_id="Churn", label="churned", features=("usage",))


def _add(in_time: str) -> str:
    return f"UPDATE counters SET amount = amount + 1 WHERE {in_time}"


def _never() -> bool:
    raise AssertionError("there was an answer: nothing to read back")


# -- 1 ----------------------------------------------------------------------------------------------------------------


@trap(1)
def test_trap_01_a_push_into_a_redis_that_stalls_for_ten_seconds_is_not_doubled(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, handler(server.url, tmp_path, strict=True):
        with HandlerQueue(server.url) as queue:
            queue.run("CREATE TABLE counters AS SELECT 0::BIGINT AS amount")
        # The socket's own limit is 8 s: the push is given up while it lies in Redis' socket. When Redis goes on, either
        # the handler gets it, or the client takes it back and says that nothing was changed.
        with stalling(server, on=b"UPDATE counters", seconds=10) as url, HandlerQueue(url, timeout_s=3.0) as queue:
            try:
                told = queue.change(_add, _never)
            except PartyUnavailable:
                told = 0
        with HandlerQueue(server.url) as queue:
            assert queue.read("SELECT amount FROM counters") == [{"amount": told}]
            assert queue.change(_add, _never) == 1
            assert queue.read("SELECT amount FROM counters") == [{"amount": told + 1}]


@trap(1)
def test_trap_01_a_slow_answer_outlives_no_socket(wire: Wire) -> None:
    kwargs = wire.queue._client.connection_pool.connection_kwargs
    with HandlerQueue(wire.redis.url) as queue:
        patient = queue._client.connection_pool.connection_kwargs

    assert kwargs["socket_timeout"] > 10
    assert patient["socket_timeout"] > 30


# -- 2 ----------------------------------------------------------------------------------------------------------------


@trap(2)
def test_trap_02_a_change_that_runs_after_its_deadline_changes_nothing(wire: Wire, hasty: HandlerQueue) -> None:
    wire.count_from_zero()
    with fault(wire.client, "frozen"), pytest.raises(OutcomeUnknown, match="cannot be read back"):
        hasty.change(_add, lambda: bool(hasty.read("SELECT amount FROM counters WHERE amount = 1")))

    assert wire.amount() == 0  # the frozen handler went on, and ran it
    assert wire.queue.change(_add, _never) == 1


@trap(2)
def test_trap_02_a_change_whose_answer_is_lost_is_read_back_once_it_cannot_run_any_more(
    wire: Wire, hasty: HandlerQueue
) -> None:
    wire.count_from_zero()
    asked_at: list[datetime] = []
    deadlines: list[float] = []

    def build(in_time: str) -> str:
        deadlines.append(float(in_time.split("'")[1]))
        return _add(in_time)

    def done() -> bool:
        asked_at.append(datetime.now(UTC))
        return wire.amount() == 1

    with fault(wire.client, "unanswered", matching="UPDATE"):
        assert hasty.change(build, done) == 0

    assert wire.amount() == 1
    assert asked_at[0].timestamp() >= deadlines[0] + 0.2


@trap(2)
def test_trap_02_a_change_that_is_still_queued_is_taken_back_and_never_runs(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, HandlerQueue(server.url, timeout_s=0.2) as queue, server.client() as client:
        with handler(server.url, tmp_path, strict=True), HandlerQueue(server.url) as patient:
            patient.run("CREATE TABLE counters AS SELECT 0::BIGINT AS amount")

        with pytest.raises(PartyUnavailable, match="no answer within"):
            queue.change(_add, _never)
        with pytest.raises(PartyUnavailable, match="no answer within"):
            queue.read("SELECT 1 AS one")

        assert client.llen(READ_QUEUE) == 0
        with handler(server.url, tmp_path, strict=True), HandlerQueue(server.url) as patient:
            assert patient.read("SELECT amount FROM counters") == [{"amount": 0}]


@trap(2)
def test_trap_02_a_handler_killed_with_a_change_in_hand_did_not_run_it(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, server.client() as client:
        with handler(server.url, tmp_path, strict=True) as part, HandlerQueue(server.url) as patient:
            patient.run("CREATE TABLE counters AS SELECT 0::BIGINT AS amount")
            with fault(client, "killed", matching="UPDATE"):
                hasty = HandlerQueue(server.url, timeout_s=0.2, statement_deadline_s=0.5, clock_skew_s=0.1)
                with hasty, pytest.raises(OutcomeUnknown):
                    hasty.change(_add, lambda: bool(hasty.read("SELECT 1 AS one FROM counters WHERE amount = 1")))
            assert part.process.wait(timeout=10) == -9
        with handler(server.url, tmp_path, strict=True), HandlerQueue(server.url) as patient:
            assert patient.read("SELECT amount FROM counters") == [{"amount": 0}]


@trap(2)
def test_trap_02_every_change_that_the_registry_sends_carries_its_deadline_and_a_guard(wire: Wire) -> None:
    registry = wire.registry
    registry.ensure_tables()
    with watched(wire.redis) as seen:
        production(registry, ROW)
        production(registry, replace(ROW, version="0.1.1"), "0.1.0")
        registry.write_drift_scores(ROW.model_id, "0.1.1", {"income": 0.5})
        registry.store_baseline(ROW.model_id, "0.1.1", "{}", _sha256("{}"))
        registry.record_drift_results([_result("income")])

    changes = [sql for sql in seen.statements() if re.match(r"\s*(INSERT|UPDATE|DELETE)", sql)]
    assert len(changes) == 8
    for sql in changes:
        assert re.search(r"WHERE.*epoch\(now\(\)\) < CAST\('[\d.]+' AS DOUBLE\)", sql, re.DOTALL), sql
        assert "NOT EXISTS" in sql or "status = 'production'" in sql, sql


# -- 3 ----------------------------------------------------------------------------------------------------------------


@trap(3)
@pytest.mark.parametrize(
    "value", ["'nan'::DOUBLE", "1.0::DOUBLE / 0", "DATE '10000-01-01'", "[{'deep': 'inf'::DOUBLE}]"]
)
def test_trap_03_an_empty_answer_is_an_error_of_its_own(wire: Wire, value: str) -> None:
    with pytest.raises(BadAnswer, match="NaN, infinite, or a date beyond 9999"):
        wire.queue.read(f"SELECT {value} AS bad")


@trap(3)
def test_trap_03_an_empty_answer_to_a_change_is_not_taken_for_success(wire: Wire) -> None:
    wire.count_from_zero()
    with fault(wire.client, "empty", matching="UPDATE"), pytest.raises(BadAnswer, match="empty text"):
        wire.queue.change(_add, _never)


@trap(3)
def test_trap_03_the_registry_is_readable_around_a_nan_that_somebody_wrote(wire: Wire) -> None:
    production(wire.registry, ROW)
    wire.queue.run(
        "UPDATE model_metadata SET model_drift_score = 'nan'::DOUBLE, trained_date = DATE '10000-01-01', "
        "expected_features = [{'index': f.\"index\", 'name': f.name, 'type': f.type, 'drift_score': 'inf'::DOUBLE} "
        "for f in expected_features]"
    )

    (row,) = wire.registry.production()
    assert (row.model_drift_score, row.trained_date) == (None, None)
    assert [feature.drift_score for feature in row.expected_features] == [None, None, None]


@trap(3)
def test_trap_03_a_snapshot_takes_no_harm_from_values_that_no_answer_can_hold(wire: Wire, tmp_path: Path) -> None:
    _feature_rows(wire, "usage", ["1.5::DOUBLE", "'nan'::DOUBLE", "'-inf'::DOUBLE"])
    _feature_rows(wire, "churned", ["0::DOUBLE", "1::DOUBLE", "1::DOUBLE"])
    path = tmp_path / "rows.parquet"

    assert wire.registry.copy_to_parquet(snapshot_query(_SPEC, Source()), str(path)) == 3
    assert duckdb.sql(f"SELECT usage FROM '{path}' ORDER BY event_timestamp").fetchall() == [(1.5,)] * 3


# -- 4 ----------------------------------------------------------------------------------------------------------------


@trap(4)
def test_trap_04_a_change_is_done_only_if_the_handler_counted_its_rows(wire: Wire) -> None:
    wire.count_from_zero()
    assert wire.queue.change(lambda in_time: f"{_add(in_time)} AND amount = 99", _never) == 0
    with pytest.raises(BadAnswer, match="did not say how many rows"):
        wire.queue.change(lambda _: "CREATE TABLE IF NOT EXISTS counters (amount BIGINT)", _never)


@trap(4)
def test_trap_04_rows_that_cannot_be_read_are_no_empty_table(wire: Wire) -> None:
    assert wire.queue.read("SELECT union_value(a := 1) AS x") == []  # that is the trap: one row, silently dropped
    (row,) = wire.queue.read("SELECT CAST(union_value(a := 1) AS VARCHAR) AS x, CAST('101'::BIT AS VARCHAR) AS y")
    assert row == {"x": "1", "y": "101"}


@trap(4)
def test_trap_04_a_snapshot_is_refused_when_the_count_is_not_the_files(wire: Wire, tmp_path: Path) -> None:
    ours, theirs, folder = (tmp_path / name for name in ("ours", "theirs", "job"))
    theirs.mkdir()
    folder.mkdir()
    rows = (
        "SELECT 'a' || i AS entity_id, TIMESTAMP '2026-01-01' + to_hours(i::BIGINT) AS event_timestamp, "
        "(i % 2)::DOUBLE AS churned, i::DOUBLE AS usage FROM range({}) AS r(i)"
    )
    assert snapshot.take(world_on(wire, theirs, theirs), _SPEC, rows.format(40), folder).facts.rows == 40

    # While the handler is held up, another file comes to lie under the name that we are going to read.
    with fault(wire.client, "slow", seconds=1.0, matching="^COPY"), watched(wire.redis) as seen:
        taken = threading.Thread(target=lambda: outcomes.extend(side_by_side([take])))
        outcomes: list[ServicectlError | None] = []
        take = partial(snapshot.take, world_on(wire, ours, theirs), _SPEC, rows.format(40), folder)
        taken.start()
        while not (copies := [sql for sql in seen.statements() if sql.startswith("COPY")]):
            taken.join(0.01)
        (name,) = re.findall(r"servicectl-\w+\.parquet", copies[0])
        duckdb.sql(f"COPY ({rows.format(39)}) TO '{ours / name}' (FORMAT parquet)")
        taken.join()
    (refused,) = outcomes
    assert isinstance(refused, BadAnswer)
    assert "counted 40 rows, the snapshot holds 39" in refused.message


# -- 5 ----------------------------------------------------------------------------------------------------------------


@trap(5)
def test_trap_05_every_type_is_read_back_exactly(wire: Wire) -> None:
    wire.queue.run(
        "CREATE OR REPLACE TABLE types AS SELECT 9007199254740993::BIGINT AS big, 3.0::DOUBLE AS three, 0.1::DOUBLE AS tenth, "
        "'-1234567890123456789012345678901.25'::DECIMAL(38, 2) AS price, DATE '2026-01-02' AS born, "
        "TIMESTAMP '2026-01-02 03:04:05.1' AS one, TIMESTAMP '2026-01-02 03:04:05.123456' AS six, TIMESTAMP '2026-01-02' AS none"
    )
    kinds = {"big": whole, "three": double, "tenth": double, "price": decimal, "born": day, "one": moment, "six": moment, "none": moment}  # fmt: skip

    (row,) = typed(wire.queue.read("SELECT * FROM types"), kinds)

    assert {name: (type(value).__name__, str(value)) for name, value in row.items()} == {
        "big": ("int", "9007199254740993"),
        "three": ("float", "3.0"),
        "tenth": ("float", "0.1"),
        "price": ("Decimal", "-1234567890123456789012345678901.25"),
        "born": ("date", "2026-01-02"),
        "one": ("datetime", "2026-01-02 03:04:05.100000"),
        "six": ("datetime", "2026-01-02 03:04:05.123456"),
        "none": ("datetime", "2026-01-02 00:00:00"),
    }


@trap(5)
def test_trap_05_registry_and_drift_log_keep_dates_fractions_and_whole_doubles(wire: Wire) -> None:
    registry = wire.registry
    registry.ensure_tables()
    stored = _result("income")
    registry.record_drift_results([stored])

    assert registry.insert_staging(ROW) == ROW
    (read,) = registry.drift_results(ROW.model_id)
    assert read == stored
    assert isinstance(read.psi, float)


# -- 6 ----------------------------------------------------------------------------------------------------------------


@trap(6)
def test_trap_06_a_conflict_is_tried_again_until_it_goes_through(wire: Wire) -> None:
    wire.count_from_zero()
    with fault(wire.client, "conflict", times=3), watched(wire.redis) as seen:
        assert wire.queue.change(_add, _never) == 1

    assert len(seen.statements()) == 4
    assert wire.amount() == 1


@trap(6)
def test_trap_06_statements_that_build_on_each_other_wait_for_each_other(wire: Wire) -> None:
    wire.count_from_zero()
    for number in range(40):
        step = f"UPDATE counters SET amount = {number + 1} WHERE amount = {number}"
        assert wire.queue.run(step) == 1
    assert wire.amount() == 40


@trap(6)
def test_trap_06_requests_pushed_together_do_run_out_of_order(wire: Wire) -> None:
    """What the strict handler is there to show: the same forty steps, sent without waiting."""
    wire.count_from_zero()
    requests = [
        json.dumps({"query": f"UPDATE counters SET amount = {n + 1} WHERE amount = {n}", "response_key": f"resp:{n}"})
        for n in range(40)
    ]
    wire.client.rpush(READ_QUEUE, *requests)
    for number in range(40):
        assert wire.client.blpop([f"resp:{number}"], timeout=10)
    assert wire.amount() < 40


@trap(6)
def test_trap_06_a_version_inserted_twice_at_one_moment_is_one_row(wire: Wire) -> None:
    registry = wire.registry
    registry.insert_staging(ROW)
    wire.queue.run("INSERT INTO model_metadata SELECT * FROM model_metadata")

    assert registry.insert_staging(ROW) == ROW
    assert registry.rows(ROW.model_id) == (ROW,)


@trap(6)
def test_trap_06_writers_of_one_model_never_meet_in_the_engine(wire: Wire) -> None:
    production(wire.registry, ROW)
    with watched(wire.redis) as seen, HandlerQueue(wire.redis.url, timeout_s=10) as another:
        scores = [partial(Registry(queue).write_drift_scores, "Loan", "0.1.0", {name: 1.0})
                  for queue, name in ((wire.queue, "income"), (another, "tenure")) for _ in range(5)]  # fmt: skip
        assert side_by_side(scores) == [None] * 10

    assert len([sql for sql in seen.statements() if sql.startswith("UPDATE")]) == 10  # not one was sent again


# -- 7 ----------------------------------------------------------------------------------------------------------------


@trap(7)
@pytest.mark.parametrize(
    "statement",
    ["BEGIN", "start transaction", "COMMIT", "ROLLBACK", "SET threads = 1", "ATTACH 'x'", "ALTER TABLE model_logs ADD COLUMN x INT", "SELECT 1; BEGIN", "/* a */ SET x = 1"],
)  # fmt: skip
def test_trap_07_what_would_change_every_service_is_never_sent(wire: Wire, statement: str) -> None:
    acts: list[Callable[[], object]] = [
        lambda: wire.queue.run(statement),
        lambda: wire.queue.read(statement),
        lambda: wire.queue.change(lambda _: statement, _never),
    ]
    with watched(wire.redis) as seen:
        for act in acts:
            with pytest.raises(BadData, match="never sent"):
                act()
    assert seen.statements() == []


@trap(7)
def test_trap_07_a_handler_that_somebody_poisoned_is_told_with_a_cure_that_works(wire: Wire) -> None:
    wire.client.rpush(READ_QUEUE, json.dumps({"query": "BEGIN; SELECT CAST('x' AS INTEGER)", "response_key": "resp:x"}))
    assert b"Conversion Error" in wire.client.blpop(["resp:x"], timeout=10)[1]
    with pytest.raises(BadAnswer, match="broken transaction") as told:
        wire.queue.ping()

    _, *command = shlex.split(told.value.cure.partition("ROLLBACK: ")[2])
    wire.client.execute_command(*command)
    assert wire.client.blpop(["resp:operator"], timeout=10)
    wire.queue.ping()


# -- 8 ----------------------------------------------------------------------------------------------------------------


@trap(8)
def test_trap_08_each_request_has_a_response_key_of_its_own_in_our_name_space(wire: Wire) -> None:
    with watched(wire.redis) as seen:
        for _ in range(20):
            wire.queue.ping()

    keys = seen.response_keys()
    assert len(set(keys)) == 20
    assert all(key.startswith(RESPONSE_PREFIX) and len(key) > len(RESPONSE_PREFIX) + 30 for key in keys)


@trap(8)
def test_trap_08_no_answer_is_left_behind(wire: Wire) -> None:
    """Also one that was given twice: a request that a restarted handler found again."""
    with watched(wire.redis) as seen, fault(wire.client, "slow", seconds=0.5):
        caller = threading.Thread(target=wire.queue.ping)
        caller.start()
        while not (keys := seen.response_keys()):
            caller.join(0.01)
        wire.client.rpush(keys[0], '{"data":[{"alive":1}]}', '{"data":[{"alive":1}]}')
        caller.join()
        assert not wire.client.exists(keys[0])


@trap(8)
def test_trap_08_an_answer_that_never_comes_ends_in_time_and_bulk_goes_by_file(
    wire: Wire, hasty: HandlerQueue, tmp_path: Path
) -> None:
    with fault(wire.client, "huge"), pytest.raises(PartyUnavailable, match="no answer within") as told:
        hasty.read("SELECT * FROM features_table")
    assert told.value.party == HANDLER
    wire.queue.ping()  # it lives

    rows = "SELECT i AS entity_id, repeat('x', 100) AS text FROM range(200000) AS r(i)"
    assert wire.registry.copy_to_parquet(rows, str(tmp_path / "bulk.parquet")) == 200_000


# -- 9 ----------------------------------------------------------------------------------------------------------------

_HOSTILE = [
    "", "'", "''", '"', "\\", "\\'", "a\0b", "\0", "'; DROP TABLE model_metadata --", "/* x", "*/ --", "$$", "$x$", "?", "$1",
    "é\u2028\U0001f600\u202e", "%s{}", "\n\r\t\x1a\x7f", "x" * 10_000, "'" * 5_000, "\0" * 500,
]  # fmt: skip
_PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_any_text = st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.text(alphabet="'\"\\\0;-/*$?\n%a\u2028é")


def _quoted_back(queue: HandlerQueue, names: list[str]) -> list[tuple[str, str]]:
    columns = ", ".join(f"{literal(name)} AS text_{n}" for n, name in enumerate(names))
    (row,) = queue.read(f"SELECT {columns}")
    return [(name, row[f"text_{n}"]) for n, name in enumerate(names)]


@trap(9)
def test_trap_09_hostile_names_come_back_as_they_went(wire: Wire) -> None:
    for name, back in _quoted_back(wire.queue, _HOSTILE):
        assert back == name
    wire.queue.read("SELECT count(*) AS n FROM model_metadata")


@trap(9)
@_PROPERTY
@given(names=st.lists(_any_text, min_size=1, max_size=8))
def test_trap_09_any_names_come_back_as_they_went(wire: Wire, names: list[str]) -> None:
    for name, back in _quoted_back(wire.queue, names):
        assert back == name


@trap(9)
@_PROPERTY
@given(
    name=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200)
)
def test_trap_09_any_name_can_name_a_column(wire: Wire, name: str) -> None:
    assert wire.queue.read(f"SELECT 1 AS {identifier(name)}") == [{name: 1}]


@trap(9)
def test_trap_09_hostile_names_pass_through_the_registry(wire: Wire) -> None:
    for number, name in enumerate(name for name in _HOSTILE if name):
        named = tuple(replace(feature, type=name) for feature in ROW.expected_features)
        row = replace(ROW, model_id=name, version=f"0.0.{number}", azure_location=name, expected_features=named)
        production(wire.registry, row)
        assert wire.registry.rows(name) == (replace(row, status="production"),)


@trap(9)
def test_trap_09_a_feature_that_service_c_cannot_ask_for_is_refused(wire: Wire) -> None:
    with pytest.raises(BadData, match="quote"):
        wire.registry.insert_staging(replace(ROW, expected_features=(Feature(0, "driver's age", "int"),)))


# -- 10 ---------------------------------------------------------------------------------------------------------------


@trap(10)
def test_trap_10_a_relative_path_is_refused(wire: Wire) -> None:
    with pytest.raises(BadData, match="relative"):
        wire.registry.copy_to_parquet("SELECT 1 AS x", "snapshot.parquet")


@trap(10)
def test_trap_10_each_snapshot_has_a_file_name_of_its_own_and_one_that_is_not_here_is_told(
    wire: Wire, tmp_path: Path
) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    world = world_on(wire, ours, theirs)
    for _ in range(2):
        with pytest.raises(ServicectlError, match="is not there") as told:
            snapshot.take(world, _SPEC, "SELECT 1 AS x", tmp_path)
        assert "snapshot_folder_handler" in told.value.cure
    assert len(list(theirs.glob("*.parquet"))) == 2
    assert ours.is_dir()  # the parent is made beforehand


def _feature_rows(wire: Wire, name: str, values: list[str]) -> None:
    rows = ", ".join(
        f"('e', {literal(name)}, {value}, TIMESTAMP '2026-01-0{number + 1}', NULL)"
        for number, value in enumerate(values)
    )
    wire.queue.run(f"INSERT INTO features_table VALUES {rows}")


def _result(feature: str) -> DriftResult:
    return DriftResult(
        run_id="run-1", model_id=ROW.model_id, model_version="0.1.0", feature_name=feature, verdict="PASS",
        service_status="PASS", psi=3.0, ks_stat=0.1, ks_p_value=1e-300, kl_divergence=None, feature_rows=2**53 + 1,
        reason="it's 3", checked_at=datetime.fromisoformat("2026-11-23 02:00:00.25"),
    )  # fmt: skip


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
