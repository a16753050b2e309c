"""Traps 20 to 23: what Service B can load, whether its numbers are ours, and files the handler can open."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import joblib
import msgspec
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from servicectl.actions import canary
from servicectl.actions.retrain import Candidate
from servicectl.actions.world import World
from servicectl.config import ServingConfig
from servicectl.errors import ServicectlError
from servicectl.estate.queue import HandlerQueue
from servicectl.estate.registry import Feature
from servicectl.estate.registry_rows import redis_metadata
from servicectl.estate.serving import PredictionFailed, ServingClient
from servicectl.estate.serving_keys import Projection, ServingKeys
from servicectl.training import floor
from servicectl.training.fit import train
from servicectl.training.source import snapshot_query
from servicectl.training.spec import CanaryRow, ProductFile, Servability, Source, Trained, TrainingSpec
from tests.conformance.conftest import Wire, world_on
from tests.conformance.registering import ROW
from tests.conformance.traps import trap
from tests.parts.handler import handler
from tests.parts.redis import RedisServer, redis_server
from tests.parts.workers import serving_worker

_SPEC = TrainingSpec(model_id="Loan", label="churned", features=("usage", "tenure"))


@dataclass(frozen=True)
class Floor:
    """A model trained on a snapshot that the strict handler wrote, and Service B."""

    snapshot: Path
    trained: Trained
    servable: Servability
    redis: RedisServer
    serving: str


@pytest.fixture(scope="module")
def floored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Floor]:
    folder = tmp_path_factory.mktemp("floor")
    with redis_server(folder) as server, handler(server.url, folder, strict=True), HandlerQueue(server.url) as queue:
        values = (
            "SELECT i, 'usage' AS name, (i * 7919) % 13 + 0.5::DOUBLE AS value FROM r UNION ALL SELECT i, 'tenure', i % 10 FROM r "
            "UNION ALL SELECT i, 'churned', CASE WHEN (i * 7919) % 13 > 6 THEN 1 ELSE 0 END FROM r"
        )
        queue.run(
            f"INSERT INTO features_table WITH r AS (SELECT range AS i FROM range(400)), v AS ({values}) "
            "SELECT 'e' || i, name, value, TIMESTAMP '2024-01-01' + to_hours(i), NULL FROM v"
        )
        snapshot = folder / "snapshot.parquet"
        queue.run(f"COPY ({snapshot_query(_SPEC, Source())}) TO '{snapshot}' (FORMAT parquet)")
        trained = train(floor.TrainRequest(spec=_SPEC, snapshot=str(snapshot), folder=str(folder)))
        servable = floor.check(_SPEC, snapshot, trained.model, 100)
        with serving_worker(server.url) as serving:
            yield Floor(snapshot, trained, servable, server, serving.address)


def _product(path: Path, content: bytes) -> ProductFile:
    path.write_bytes(content)
    return ProductFile(str(path), hashlib.sha256(content).hexdigest(), len(content))


def _served(floored: Floor) -> None:
    """Put the trained model into production in Redis."""
    content = Path(floored.trained.model.path).read_bytes()
    row = replace(
        ROW, status="production", expected_features=(Feature(0, "usage", "float"), Feature(1, "tenure", "float"))
    )
    projection = Projection(
        "Loan",
        1,
        ROW.version,
        floored.trained.model.sha256,
        "Model_Loan/x.pkl",
        None,
        redis_metadata(row),
        {"pkl": content},
    )
    with ServingKeys(floored.redis.url) as keys:
        keys.project(projection)


# -- 20 ---------------------------------------------------------------------------------------------------------------


@trap(20)
def test_trap_20_service_b_answers_a_checked_model_with_our_numbers_in_any_column_order(floored: Floor) -> None:
    _served(floored)
    rows = floored.servable.canary
    assert len({row.prediction for row in rows}) == 2
    with ServingClient(floored.serving, 20) as service_b:
        for row in rows * 2:
            assert service_b.predict("Loan", row.features) == row.prediction


@trap(20)
def test_trap_20_a_model_fitted_on_an_array_is_refused(floored: Floor, tmp_path: Path) -> None:
    frame = duckdb.sql(f"SELECT usage, tenure, churned FROM '{floored.snapshot}'").df()
    fitted = LogisticRegression().fit(frame[["tenure", "usage"]].to_numpy(), frame["churned"])
    with pytest.raises(ServicectlError, match="shuffled"):
        floor.check(_SPEC, floored.snapshot, _product(tmp_path / "m.pkl", pickle.dumps(fitted)), 100)


@trap(20)
def test_trap_20_a_model_that_needs_servicectl_or_another_format_or_too_much_room_is_refused(
    floored: Floor, tmp_path: Path
) -> None:
    ours = pickle.loads(Path(floored.trained.model.path).read_bytes())
    ours.note = ServicectlError
    joblib.dump(LinearRegression(), tmp_path / "m.joblib", compress=3)
    theirs = pickle.loads(Path(floored.trained.model.path).read_bytes())
    theirs.note = pytest.Class
    refused = [
        (pickle.dumps(ours), 100.0, "servicectl"),
        (pickle.dumps(theirs), 100.0, "Service B is not known to have"),
        ((tmp_path / "m.joblib").read_bytes(), 100.0, "opcode|pickle"),
        (pickle.dumps(ours), 0.0001, "serving.max_mb"),
    ]
    for number, (content, limit, words) in enumerate(refused):
        with pytest.raises(ServicectlError, match=words):
            floor.check(_SPEC, floored.snapshot, _product(tmp_path / f"{number}.pkl", content), limit)


# -- 21 ---------------------------------------------------------------------------------------------------------------


@trap(21)
def test_trap_21_a_service_b_with_other_numbers_is_noticed_before_anything_is_swapped(
    wire: Wire, floored: Floor, tmp_path: Path
) -> None:
    world = world_on(
        replace(wire, redis=floored.redis),
        tmp_path,
        tmp_path,
        serving=ServingConfig(address=floored.serving, canary="require"),
    )
    other = [CanaryRow(row.features, 1 - row.prediction) for row in floored.servable.canary]
    try:
        right = _candidate(floored, tmp_path, floored.servable.canary)
        assert not canary.try_candidate(world, "Loan", right.model, right.canary).wrong
        wrong = _candidate(floored, tmp_path, other)
        told = canary.try_candidate(world, "Loan", wrong.model, wrong.canary)
    finally:
        _close(world)
    assert told.wrong
    assert "expected" in told.note


@trap(21)
def test_trap_21_a_model_that_service_b_cannot_open_is_noticed_too(wire: Wire, floored: Floor, tmp_path: Path) -> None:
    world = world_on(
        replace(wire, redis=floored.redis),
        tmp_path,
        tmp_path,
        serving=ServingConfig(address=floored.serving, canary="require"),
    )
    candidate = _candidate(floored, tmp_path, floored.servable.canary)
    # As of a scikit-learn that Service B does not have.
    foreign = _product(tmp_path / "foreign.pkl", b"csklearn._of_another_release\n_Column\n.")
    try:
        told = canary.try_candidate(world, "Loan", foreign, candidate.canary)
    finally:
        _close(world)
    assert told.wrong
    assert "_of_another_release" in told.note


@trap(21)
def test_trap_21_the_versions_a_model_was_made_with_are_on_record(floored: Floor) -> None:
    import sklearn

    assert floored.trained.libraries["scikit-learn"] == sklearn.__version__


def _candidate(floored: Floor, folder: Path, rows: object) -> Candidate:
    trained = floored.trained
    return Candidate(
        trained.model, trained.baseline, trained.baseline, _product(folder / "canary.json", msgspec.json.encode(rows))
    )


def _close(world: World) -> None:
    world.keys.close()
    world.serving.close()


# -- 22 ---------------------------------------------------------------------------------------------------------------


@trap(22)
def test_trap_22_an_error_message_is_a_failure_whatever_the_number_says(floored: Floor) -> None:
    _served(floored)
    with ServingClient(floored.serving, 20) as service_b:
        with pytest.raises(PredictionFailed, match="not found"):
            service_b.predict("Nobody", {"usage": 1.0})
        with pytest.raises(PredictionFailed, match="tenure"):
            service_b.predict("Loan", {"usage": 1.0})


# -- 23 ---------------------------------------------------------------------------------------------------------------


@trap(23)
def test_trap_23_a_file_of_ours_opens_in_the_engine_of_the_handler(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        with handler(server.url, tmp_path), HandlerQueue(server.url) as queue:
            queue.run("CREATE TABLE ours AS SELECT 42 AS answer")
        with handler(server.url, tmp_path, strict=True), HandlerQueue(server.url) as queue:
            assert queue.read("SELECT answer FROM ours") == [{"answer": 42}]

        with duckdb.connect(tmp_path / "plain.duckdb") as plain:
            plain.execute("CREATE TABLE ours AS SELECT 42 AS answer")
        with (
            pytest.raises(RuntimeError, match="did not start"),
            handler(server.url, tmp_path, strict=True, database=tmp_path / "plain.duckdb"),
        ):
            pass  # that is the trap
