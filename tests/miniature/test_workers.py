from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
import redis
from fakeredis import TcpFakeServer
from scipy import stats
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import Pipeline

from servicectl.estate.analytics import AnalyticsClient, FeatureMetric, ModelAnswer
from servicectl.estate.serving import PredictionFailed, ServingClient
from servicectl.estate.serving_keys import Projected, Projection, ServingKeys, candidate_name
from servicectl.miniature.analytics import Window, measured, status, windows
from servicectl.miniature.serving import frame, parsed
from tests.parts import ROOT, free_port
from tests.parts.handler import handler
from tests.parts.redis import RedisServer, redis_server
from tests.parts.workers import WorkerPart, analytics_worker, serving_worker

NAMES = ("age", "balance", "calls", "duration")


def linear_model(factor: float) -> bytes:
    """A pipeline that picks its columns by name and predicts factor * (1 age + 10 balance + 100 calls + 1000 duration)."""
    rows = pd.DataFrame(np.vstack([np.eye(4), np.zeros((1, 4))]), columns=list(NAMES))
    target = rows.to_numpy() @ np.array([1.0, 10.0, 100.0, 1000.0]) * factor
    columns = ColumnTransformer([("columns", "passthrough", list(NAMES))])
    return pickle.dumps(
        Pipeline([("columns", columns), ("model", LinearRegression(fit_intercept=False))]).fit(rows, target)
    )


def projection(content: bytes, generation: int = 1, model_id: str = "Loan") -> Projection:
    return Projection(
        model_id=model_id,
        generation=generation,
        version=f"0.1.{generation}",
        sha256=hashlib.sha256(content).hexdigest(),
        name=f"Model_{model_id}_0.1.{generation}.pkl",
        job_id="job",
        metadata={
            "artifact_type": "pkl",
            "status": "production",
            "expected_features": [
                {"index": index, "name": name, "type": "float", "drift_score": None} for index, name in enumerate(NAMES)
            ],
        },
        artifacts={"pkl": content},
    )


ROW = {"age": 1.0, "balance": 2.0, "calls": 3.0, "duration": 4.0}
ANSWER = 1 + 20 + 300 + 4000


# ---- Service B's worker


@pytest.fixture(scope="module")
def worker_part(_redis_of_the_session: RedisServer) -> Iterator[WorkerPart]:
    with serving_worker(_redis_of_the_session.url) as part:
        yield part


@pytest.fixture
def keys(redis_part: RedisServer) -> Iterator[ServingKeys]:
    with ServingKeys(redis_part.url) as made:
        yield made


@pytest.fixture
def client(worker_part: WorkerPart, redis_part: RedisServer) -> Iterator[ServingClient]:
    with ServingClient(worker_part.address, timeout_s=30) as made:
        yield made


def test_a_model_that_picks_columns_by_name_is_right_in_every_column_order(
    keys: ServingKeys, client: ServingClient
) -> None:
    keys.project(projection(linear_model(1.0), model_id="Shuffled"))

    answers = [client.predict("Shuffled", ROW | {"not_a_feature": "text"}) for _ in range(20)]

    assert answers == [pytest.approx(ANSWER)] * 20


def test_an_event_replaces_the_model_in_memory_without_a_request(
    keys: ServingKeys, client: ServingClient, worker_part: WorkerPart
) -> None:
    first, second = projection(linear_model(1.0), 1, "Event"), projection(linear_model(2.0), 2, "Event")
    keys.project(first)
    assert client.predict("Event", ROW) == pytest.approx(ANSWER)

    keys.project(second)

    worker_part.wait_for(event="dropped", model="Event", sha256=first.sha256)
    worker_part.wait_for(event="loaded", model="Event", sha256=second.sha256)
    assert client.predict("Event", ROW) == pytest.approx(2 * ANSWER)


def test_a_request_after_a_projection_is_never_answered_by_the_old_model(
    keys: ServingKeys, client: ServingClient
) -> None:
    models = [linear_model(float(factor)) for factor in (1, 2)]
    for generation in range(1, 21):
        keys.project(projection(models[generation % 2], generation, "Current"))

        assert client.predict("Current", ROW) == pytest.approx((generation % 2 + 1) * ANSWER)


def test_a_loaded_model_stays_in_memory_between_requests(keys: ServingKeys, client: ServingClient) -> None:
    keys.project(projection(linear_model(1.0), model_id="Kept"))
    client.predict("Kept", ROW)
    with redis.Redis.from_url(keys._redis._url) as raw:
        raw.delete("model:Kept:pkl")

    assert client.predict("Kept", ROW) == pytest.approx(ANSWER)


def test_a_withdrawn_model_is_no_longer_served(keys: ServingKeys, client: ServingClient) -> None:
    keys.project(projection(linear_model(1.0), model_id="Withdrawn"))
    client.predict("Withdrawn", ROW)

    keys.withdraw(["Withdrawn"])

    with pytest.raises(PredictionFailed, match="not found"):
        client.predict("Withdrawn", ROW)


def test_bytes_without_their_digest_on_record_are_not_unpickled(
    redis_part: RedisServer, client: ServingClient, tmp_path: Path
) -> None:
    trap = tmp_path / "unpickled"
    making_the_trap = b"cos\nmkdir\n(V" + str(trap).encode() + b"\ntR."
    with redis_part.client() as raw:
        raw.mset({"model:Guarded:pkl": making_the_trap, "model_metadata:Guarded": json.dumps({"sha256": "0" * 64})})
        raw.mset({"model:Unrecorded:pkl": making_the_trap, "model_metadata:Unrecorded": "{}"})

    for name in ("Guarded", "Unrecorded"):
        with pytest.raises(PredictionFailed, match="on record"):
            client.predict(name, ROW)
    assert not trap.exists()


def test_a_candidate_is_served_by_the_digest_in_its_name_and_never_kept(
    redis_part: RedisServer, keys: ServingKeys, client: ServingClient
) -> None:
    content = linear_model(3.0)
    name = candidate_name("Loan", hashlib.sha256(content).hexdigest())
    keys.put_candidate(name, content, ttl_s=60)
    assert client.predict(name, ROW) == pytest.approx(3 * ANSWER)

    with redis_part.client() as raw:
        raw.set(f"model:{name}:pkl", linear_model(4.0))
    with pytest.raises(PredictionFailed, match="on record"):
        client.predict(name, ROW)

    keys.drop_candidate(name)
    with pytest.raises(PredictionFailed, match="not found"):
        client.predict(name, ROW)


def test_a_models_own_errors_come_back_as_a_message(keys: ServingKeys, client: ServingClient) -> None:
    keys.project(projection(linear_model(1.0), model_id="Errors"))
    keys.project(projection(pickle.dumps({"not": "a model"}), model_id="NoModel"))
    keys.project(projection(b"not a pickle", model_id="NoPickle"))

    with pytest.raises(PredictionFailed, match="age"):
        client.predict("Errors", {"balance": 1.0})
    with pytest.raises(PredictionFailed, match="predict"):
        client.predict("NoModel", ROW)
    with pytest.raises(PredictionFailed, match="Failed to unpickle"):
        client.predict("NoPickle", ROW)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        (" 5 ", 5),
        ("1_000", 1000),
        ("36893488147419103232", 2**65),
        ("1.50", 1.5),
        ("1e3", 1000.0),
        ("inf", math.inf),
        ("True", "True"),
        ("1,5", "1,5"),
        ("a.b", "a.b"),
        ("", ""),
    ],
)
def test_values_are_parsed_as_service_b_parses_them(text: str, value: object) -> None:
    assert parsed(text) == value
    assert type(parsed(text)) is type(value)


def test_nan_reaches_the_model_as_nan() -> None:
    assert math.isnan(float(parsed("NaN")))


def test_the_column_order_of_a_frame_is_arbitrary() -> None:
    orders = {tuple(frame(dict.fromkeys("abcdefgh", "1")).columns) for _ in range(20)}

    assert len(orders) > 1


# ---- Service C's arithmetic


def test_windows_are_the_later_half_and_the_newest_twentieth() -> None:
    assert windows(1000) == (Window(500, 200), Window(950, 50))


def test_large_windows_are_cut_to_their_oldest_rows() -> None:
    assert windows(1_000_000) == (Window(500_000, 20_000), Window(950_000, 20_000))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_fewer_than_three_rows_leave_a_window_empty(rows: int) -> None:
    assert 0 in {window.limit for window in windows(rows)}


def test_the_figures_are_those_of_the_definitions() -> None:
    history, current = np.array([0.0, 0, 0, 10]), np.array([0.0, 10, 10, 10])

    metric = measured("x", history, current)

    assert metric is not None
    assert metric.psi == pytest.approx((0.25 - 0.75) * math.log(0.25 / 0.75) + (0.75 - 0.25) * math.log(0.75 / 0.25))
    assert metric.kl_divergence == pytest.approx(0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25))
    assert metric.ks_stat == 0.5
    assert metric.ks_p_value == pytest.approx(stats.ks_2samp(history, current).pvalue)
    assert metric.status == "CRITICAL"


def test_one_value_on_each_side_is_far_apart() -> None:
    metric = measured("x", np.array([1.0]), np.array([2.0]))

    assert metric is not None
    assert metric.psi == pytest.approx(2 * math.log(1e10), rel=1e-6)


def test_a_constant_feature_passes_with_zeros() -> None:
    metric = measured("x", np.full(50, 3.0), np.full(10, 3.0))

    assert metric is not None
    assert (metric.psi, metric.kl_divergence, metric.ks_stat, metric.status) == (0, 0, 0, "PASS")


def test_an_empty_window_is_not_measured() -> None:
    assert measured("x", np.array([]), np.array([1.0])) is None
    assert measured("x", np.array([1.0]), np.array([])) is None


@pytest.mark.parametrize(
    ("psi", "ks", "p", "told"),
    [
        (0.26, 0, 1, "CRITICAL"),
        (0.25, 0, 1, "WARNING"),
        (0.1, 0, 1, "PASS"),
        (0.0, 0.2, 0.01, "WARNING"),
        (0.0, 0.2, 0.05, "PASS"),
        (0.0, 0.1, 0.01, "PASS"),
    ],
)
def test_the_thresholds_are_service_cs(psi: float, ks: float, p: float, told: str) -> None:
    assert status(psi, ks, p) == told


# ---- Service C's worker over the handler


def fill_features(database: Path, values: dict[str, list[float | None]]) -> None:
    """A handler's database with one row per value, a minute apart."""
    start = datetime(2026, 1, 1)  # noqa: DTZ001 -- TIMESTAMP columns are naive UTC
    rows = [
        ("entity", name, value, start + timedelta(minutes=minute))
        for name, column in values.items()
        for minute, value in enumerate(column)
    ]
    table = pd.DataFrame(rows, columns=["entity_id", "feature_name", "value", "event_timestamp"])
    with closing(duckdb.connect(str(database), config={"storage_compatibility_version": "v1.0.0"})) as connection:
        connection.execute(
            "CREATE TABLE features_table (entity_id TEXT, feature_name TEXT, value DOUBLE, event_timestamp TIMESTAMP, "
            "created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
        )
        connection.register("filled", table)
        connection.execute("INSERT INTO features_table BY NAME SELECT * FROM filled")
        # On its way through the data frame a NaN becomes NULL.
        connection.execute("UPDATE features_table SET value = 'NaN' WHERE value IS NULL AND feature_name = 'with_nan'")


def ask_handler(client: redis.Redis, query: str) -> dict[str, Any]:
    client.rpush("duckdb_read_queue", json.dumps({"query": query, "response_key": "resp:test"}))
    answered = client.blpop(["resp:test"], timeout=20)
    assert answered is not None
    return json.loads(answered[1])


def promote(client: redis.Redis, model_id: str, metadata: object) -> None:
    client.sadd("prod_models", model_id)
    client.set(f"model_metadata:{model_id}", metadata if isinstance(metadata, str) else json.dumps(metadata))


def features(*names: str) -> list[dict[str, Any]]:
    return [{"index": index, "name": name, "type": "float", "drift_score": 0} for index, name in enumerate(names)]


@pytest.fixture(scope="module")
def drifting(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """1000 rows of each feature; `drifted` moves by three standard deviations in its newest tenth."""
    random = np.random.default_rng(7)
    steady, drifted = random.normal(size=1000), random.normal(size=1000)
    drifted[900:] += 3
    with_nan = [*steady[:960], math.nan, *steady[961:]]
    return {
        "folder": tmp_path_factory.mktemp("drifting"),
        "values": {
            "steady": list(steady),
            "drifted": list(drifted),
            "constant": [5.0] * 100,
            "short": [1.0, 2.0],
            "o'clock": list(steady),
            "empty": [None] * 100,
            "with_nan": with_nan,
        },
    }


@pytest.fixture(scope="module")
def estate(_redis_of_the_session: RedisServer, drifting: dict[str, Any]) -> Iterator[WorkerPart]:
    fill_features(drifting["folder"] / "estate.duckdb", drifting["values"])
    url = _redis_of_the_session.url
    with (
        handler(url, drifting["folder"], database=drifting["folder"] / "estate.duckdb"),
        analytics_worker(url) as part,
    ):
        yield part


@pytest.fixture
def view(estate: WorkerPart, redis_part: RedisServer) -> Iterator[redis.Redis]:
    """A Redis client of an estate whose view `features` exists."""
    with redis_part.client() as client:
        assert "error" not in ask_handler(client, "CREATE OR REPLACE VIEW features AS SELECT * FROM features_table")
        yield client


def metrics_of(answer: tuple[ModelAnswer, ...], model_id: str) -> dict[str, FeatureMetric]:
    [model] = [model for model in answer if model.model_id == model_id]
    return {metric.feature: metric for metric in model.metrics}


def test_every_production_model_is_measured_through_the_handler(
    estate: WorkerPart, view: redis.Redis, drifting: dict[str, Any]
) -> None:
    promote(view, "Loan", {"model_id": "Loan", "expected_features": features("steady", "drifted")})
    promote(view, "House", {"model_id": "House", "expected_features": json.dumps(features("drifted"))})

    answer = AnalyticsClient(estate.address).ask(deadline_s=60)

    loan = metrics_of(answer, "Loan")
    values = drifting["values"]["drifted"]
    expected = stats.ks_2samp(values[500:700], values[950:])
    assert {model.model_id: model.drift_detected for model in answer} == {"Loan": True, "House": True}
    assert loan["drifted"].status == "CRITICAL"
    assert loan["drifted"].ks_stat == pytest.approx(expected.statistic)
    assert loan["drifted"].ks_p_value == pytest.approx(expected.pvalue)
    assert loan["drifted"].psi > 1 > loan["steady"].psi
    assert metrics_of(answer, "House")["drifted"] == loan["drifted"]


def test_what_cannot_be_measured_is_just_missing(estate: WorkerPart, view: redis.Redis) -> None:
    names = ("steady", "constant", "short", "o'clock", "empty", "with_nan", "unknown")
    promote(view, "Loan", {"model_id": "Loan", "expected_features": features(*names)})
    promote(view, "Names", {"model_id": "Names", "expected_features": ["steady"]})
    promote(view, "Empty", {"model_id": "Empty", "expected_features": []})
    promote(view, "NoJson", "no JSON")
    view.sadd("prod_models", "NoKey")

    answer = AnalyticsClient(estate.address).ask(deadline_s=60)

    assert {model.model_id for model in answer} == {"Loan", "Names"}
    assert set(metrics_of(answer, "Loan")) == {"steady", "constant"}
    assert metrics_of(answer, "Names") == {}


def test_without_the_view_a_model_is_answered_with_no_metrics(estate: WorkerPart, view: redis.Redis) -> None:
    ask_handler(view, "DROP VIEW features")
    promote(view, "Loan", {"model_id": "Loan", "expected_features": features("drifted")})

    assert AnalyticsClient(estate.address).ask(deadline_s=60) == (ModelAnswer("Loan", False, ()),)


@pytest.mark.parametrize("metadata", ["[]", '{"model_id": 7, "expected_features": [{"name": "steady"}]}'])
def test_metadata_of_a_foreign_shape_empties_the_answer_without_a_grpc_error(
    estate: WorkerPart, view: redis.Redis, metadata: str
) -> None:
    promote(view, "Loan", metadata)

    assert AnalyticsClient(estate.address).ask(deadline_s=60) == ()


def test_no_names_or_names_of_another_type_empty_the_answer(estate: WorkerPart, view: redis.Redis) -> None:
    assert AnalyticsClient(estate.address).ask(deadline_s=60) == ()

    view.set("prod_models", "a text")

    assert AnalyticsClient(estate.address).ask(deadline_s=60) == ()


def test_a_silent_handler_costs_patience_and_leaves_the_metrics_out(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as own,  # the other one has a handler
        analytics_worker(own.url, patience_s=0.2) as part,
        own.client() as client,
    ):
        promote(client, "Loan", {"model_id": "Loan", "expected_features": features("steady")})

        assert AnalyticsClient(part.address).ask(deadline_s=60) == (ModelAnswer("Loan", False, ()),)


# ---- processes


@pytest.mark.parametrize(("start", "end"), [(analytics_worker, signal.SIGTERM), (serving_worker, signal.SIGINT)])
def test_a_worker_ends_quietly_at_a_signal(redis_part: RedisServer, start: Any, end: signal.Signals) -> None:
    with start(redis_part.url) as part:
        os.kill(part.process.pid, end)

        assert part.process.wait(timeout=20) == 0
        assert "Traceback" not in part.log.read_text()


def test_a_worker_whose_port_is_taken_says_so(redis_part: RedisServer, worker_part: WorkerPart) -> None:
    port = worker_part.address.rpartition(":")[2]
    command = [sys.executable, "-m", "servicectl.miniature.analytics", "--redis", redis_part.url, "--port", port]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode != 0
    assert "ready" not in done.stdout
    assert port in done.stderr


# ---- the pure-Python Redis of the demo


@pytest.fixture
def pure_python_redis() -> Iterator[str]:
    port = free_port()
    server = TcpFakeServer(("127.0.0.1", port))
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    yield f"redis://127.0.0.1:{port}/0"
    server.shutdown()
    serving.join()
    server.server_close()


def test_the_keys_and_both_workers_work_on_the_pure_python_redis(
    pure_python_redis: str, drifting: dict[str, Any], tmp_path: Path
) -> None:
    first, second = projection(linear_model(1.0), 1), projection(linear_model(2.0), 2)
    first = replace(first, metadata={**first.metadata, "expected_features": features("drifted", "steady")})
    fill_features(tmp_path / "estate.duckdb", drifting["values"])
    with (
        ServingKeys(pure_python_redis) as keys,
        serving_worker(pure_python_redis) as serving,
        ServingClient(serving.address, timeout_s=30) as client,
        handler(pure_python_redis, tmp_path, database=tmp_path / "estate.duckdb"),
        analytics_worker(pure_python_redis) as analytics,
        closing(redis.Redis.from_url(pure_python_redis)) as raw,
    ):
        assert "error" not in ask_handler(raw, "CREATE OR REPLACE VIEW features AS SELECT * FROM features_table")
        assert keys.project(first) is Projected.WRITTEN
        assert keys.project(first) is Projected.UNCHANGED
        assert client.predict("Loan", ROW) == pytest.approx(ANSWER)
        [answer] = AnalyticsClient(analytics.address).ask(deadline_s=60)
        assert [metric.status for metric in answer.metrics][:1] == ["CRITICAL"]

        assert keys.project(second) is Projected.WRITTEN
        serving.wait_for(event="dropped", model="Loan", sha256=first.sha256)
        assert client.predict("Loan", ROW) == pytest.approx(2 * ANSWER)
        assert keys.project(first) is Projected.SUPERSEDED
        assert keys.update_drift_scores("Loan", 2, {"age": 0.5})
        keys.withdraw(["Loan"])
        with pytest.raises(PredictionFailed, match="not found"):
            client.predict("Loan", ROW)
