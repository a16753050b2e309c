"""Traps 15 to 19: what Service C's answers are worth, checked by whole drift checks against a real gRPC server."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from servicectl.actions import doctor, drift_check
from servicectl.actions.world import World
from servicectl.config import AnalyticsConfig, DriftConfig
from servicectl.errors import ExitStatus
from servicectl.estate.analytics import AnalyticsClient
from servicectl.estate.features import CREATE_VIEW, FeatureRows
from servicectl.estate.queue import HANDLER, HandlerQueue
from servicectl.estate.registry import Feature
from servicectl.estate.values import moment
from servicectl.jobs.runner import Ran
from servicectl.training.source import snapshot_query
from servicectl.training.spec import Source, TrainingSpec
from tests.conformance.conftest import Wire, world_on
from tests.conformance.registering import ROW, production
from tests.conformance.traps import trap
from tests.parts.analyst import Answer, analyst, metric, model
from tests.parts.handler import fault
from tests.parts.redis import redis_server
from tests.parts.workers import analytics_worker

_ROW = replace(ROW, expected_features=(Feature(0, "usage", "float"), Feature(1, "tenure", "int")))
_CALM = (metric("usage", 0.01, "PASS"), metric("tenure", 0.02, "PASS"))


@pytest.fixture
def watched_model(wire: Wire) -> Wire:
    """One production model with 2,000 rows per feature, and the view that Service C reads."""
    production(wire.registry, _ROW)
    _rows(wire, 2000)
    wire.queue.run(CREATE_VIEW)
    return wire


def _rows(wire: Wire, count: int) -> None:
    wire.queue.run("DELETE FROM features_table")
    wire.queue.run(
        "INSERT INTO features_table SELECT 'e' || i, name, (i % 7)::DOUBLE, TIMESTAMP '2024-01-01' + to_minutes(i), NULL "
        f"FROM range({count}) AS r(i), (VALUES ('usage'), ('tenure')) AS n(name)"
    )


def _checked(wire: Wire, folder: Path, answer: Answer, min_rows: int = 1000) -> Ran:
    with analyst(lambda: answer) as service_c:
        world = world_on(
            wire, folder, folder, analytics=AnalyticsConfig(source="service-c", address=service_c.address),
            drift=DriftConfig(min_rows=min_rows, retrain="never", stale_after="never"),
        )  # fmt: skip
        (ran,) = drift_check.start(world)
    world.keys.close()
    return ran


def _stored(wire: Wire) -> dict[str, str]:
    return {result.feature_name: result.verdict for result in wire.registry.drift_results(_ROW.model_id)}


# -- 15 ---------------------------------------------------------------------------------------------------------------


@trap(15)
@pytest.mark.parametrize(
    ("answer", "unmeasured"),
    [
        ([], {"usage", "tenure"}),
        ([model("Another", *_CALM)], {"usage", "tenure"}),
        ([model("Loan")], {"usage", "tenure"}),
        ([model("Loan", _CALM[0])], {"tenure"}),
        ([model("Loan", _CALM[0], metric("tenure", math.nan, "PASS"))], {"tenure"}),
        ([model("Loan", _CALM[0], metric("tenure", 0.01, "FINE"))], {"tenure"}),
    ],
    ids=["empty response", "another model", "no feature", "one feature missing", "not finite", "unknown status"],
)
def test_trap_15_what_was_not_measured_is_not_calm(
    watched_model: Wire, tmp_path: Path, answer: Answer, unmeasured: set[str]
) -> None:
    ran = _checked(watched_model, tmp_path, answer)

    assert (ran.job.outcome, ran.exit_status) == ("not-measured", ExitStatus.NOT_MEASURED)
    assert {name for name, verdict in _stored(watched_model).items() if verdict == "NOT_MEASURED"} == unmeasured


@trap(15)
def test_trap_15_a_whole_calm_answer_is_told_apart_from_it(watched_model: Wire, tmp_path: Path) -> None:
    ran = _checked(watched_model, tmp_path, [model("Loan", *_CALM)])

    assert (ran.job.outcome, ran.exit_status) == ("clear", ExitStatus.OK)


@trap(15)
def test_trap_15_service_c_without_the_view_answers_normally_and_measured_nothing(wire: Wire) -> None:
    production(wire.registry, _ROW)
    _rows(wire, 2000)
    wire.client.sadd("prod_models", "Loan")
    wire.client.set("model_metadata:Loan", '{"model_id": "Loan", "expected_features": [{"name": "usage"}]}')
    with analytics_worker(wire.redis.url, patience_s=10) as part:
        (told,) = AnalyticsClient(part.address).ask(20)
    assert (told.model_id, told.drift_detected, told.metrics) == ("Loan", False, ())


# -- 16 ---------------------------------------------------------------------------------------------------------------


@trap(16)
def test_trap_16_without_the_view_nothing_is_asked_and_the_cure_is_told(wire: Wire, tmp_path: Path) -> None:
    production(wire.registry, _ROW)
    with analyst(list) as service_c:
        world = world_on(
            wire, tmp_path, tmp_path, analytics=AnalyticsConfig(source="service-c", address=service_c.address)
        )
        (ran,) = drift_check.start(world)
    world.keys.close()

    assert ran.exit_status is ExitStatus.NOT_MEASURED
    assert ran.error is not None
    assert "doctor --create-view" in ran.error.cure
    assert service_c.deadlines == []


@trap(16)
def test_trap_16_a_silent_handler_and_an_absent_redis_are_named(
    watched_model: Wire, hasty: HandlerQueue, tmp_path: Path
) -> None:
    with analyst(list) as service_c:
        analytics = AnalyticsConfig(source="service-c", address=service_c.address)
        world = world_on(watched_model, tmp_path / "a", tmp_path, analytics=analytics)
        world.__dict__["queue"] = hasty
        with fault(watched_model.client, "frozen"):
            (ran,) = drift_check.start(world)
        world.keys.close()
        assert (ran.exit_status, _party(ran)) == (ExitStatus.TRY_AGAIN, HANDLER)

        (tmp_path / "gone").mkdir()
        with redis_server(tmp_path / "gone") as gone:
            pass
        world = world_on(replace(watched_model, redis=gone), tmp_path / "b", tmp_path, analytics=analytics)
        (ran,) = drift_check.start(world)
        world.keys.close()
        assert (ran.exit_status, _party(ran)) == (ExitStatus.TRY_AGAIN, "Redis")
    assert service_c.deadlines == []


def _party(ran: Ran) -> str:
    return str(getattr(ran.error, "party", ran.error))


@trap(16)
def test_trap_16_an_emptied_registry_is_not_an_estate_without_models(wire: Wire, tmp_path: Path) -> None:
    wire.client.sadd("prod_models", "Loan")
    ran = _checked(wire, tmp_path, [])

    assert ran.exit_status is ExitStatus.NOT_MEASURED
    assert ran.error is not None
    assert "Loan" in ran.error.message


@trap(16)
def test_trap_16_doctor_names_the_missing_view_and_makes_it_on_the_operators_word(wire: Wire, tmp_path: Path) -> None:
    world = world_on(wire, tmp_path, tmp_path)

    assert "create-view" in _doctor(world)["view features"].cure
    doctor.create_view(world)
    assert _doctor(world)["view features"].health == "ok"
    world.keys.close()


def _doctor(world: World) -> dict[str, doctor.Check]:
    return {check.party: check for check in doctor.examine(world)}


@trap(16)
def test_trap_16_a_feature_without_rows_is_not_measured(watched_model: Wire, tmp_path: Path) -> None:
    watched_model.queue.run("DELETE FROM features_table WHERE feature_name = 'usage'")
    ran = _checked(watched_model, tmp_path, [model("Loan", *_CALM)])

    assert ran.exit_status is ExitStatus.NOT_MEASURED
    assert _stored(watched_model)["usage"] == "NOT_MEASURED"


# -- 17 ---------------------------------------------------------------------------------------------------------------


@trap(17)
def test_trap_17_critical_on_few_rows_retrains_nothing_and_says_why(watched_model: Wire, tmp_path: Path) -> None:
    alarm = [model("Loan", metric("usage", 9.0, "CRITICAL", ks=0.9), _CALM[1])]

    few = _checked(watched_model, tmp_path / "few", alarm, min_rows=20_000)
    assert few.job.result is not None
    assert few.job.outcome != "drift"
    assert few.job.result["retrain"] == {}
    reasons = {result.feature_name: result.reason for result in watched_model.registry.drift_results("Loan")}
    assert "20,000" in reasons["usage"]

    enough = _checked(watched_model, tmp_path / "enough", alarm, min_rows=1000)
    assert enough.job.result is not None
    assert enough.job.outcome == "drift"
    assert enough.job.result["retrain"] == {"Loan": ["usage"]}


@trap(17)
def test_trap_17_the_reliable_size_is_twenty_thousand_rows_unless_configured() -> None:
    assert DriftConfig().min_rows == 20_000


# -- 18 ---------------------------------------------------------------------------------------------------------------


@trap(18)
def test_trap_18_the_deadline_grows_with_models_and_features(watched_model: Wire, tmp_path: Path) -> None:
    other = replace(_ROW, model_id="Other", expected_features=(Feature(0, "usage", "float"),))
    answer = [model("Loan", *_CALM), model("Other", _CALM[0])]
    waited = []
    for folder in ("one", "two"):
        with analyst(lambda: answer) as service_c:
            analytics = AnalyticsConfig(
                source="service-c", address=service_c.address, deadline_base_s=10, deadline_per_feature_s=100
            )
            world = world_on(watched_model, tmp_path / folder, tmp_path, analytics=analytics)
            drift_check.start(world)
            world.keys.close()
        waited += service_c.deadlines
        if folder == "one":
            production(watched_model.registry, other)

    assert [round(seconds, -2) for seconds in waited] == [200, 300]


@trap(18)
def test_trap_18_a_late_server_is_not_asked_again_and_the_job_can_be_resumed(
    watched_model: Wire, tmp_path: Path
) -> None:
    with analyst(list) as service_c:
        service_c.free.clear()
        analytics = AnalyticsConfig(
            source="service-c", address=service_c.address, deadline_base_s=0.3, deadline_per_feature_s=0.01
        )
        world = world_on(watched_model, tmp_path, tmp_path, analytics=analytics)
        (ran,) = drift_check.start(world)
        world.keys.close()
        assert len(service_c.deadlines) == 1

    assert ran.exit_status is ExitStatus.TRY_AGAIN
    assert "still busy" in str(ran.error)


# -- 19 ---------------------------------------------------------------------------------------------------------------


@trap(19)
def test_trap_19_rows_without_a_usable_time_are_left_out_of_snapshots_and_counted_apart(
    wire: Wire, tmp_path: Path
) -> None:
    for name in ("usage", "churned"):
        wire.queue.run(
            f"INSERT INTO features_table SELECT 'e' || i, '{name}', i, moment, NULL FROM (VALUES (1, TIMESTAMP '2026-01-01'), "
            "(2, TIMESTAMP '0001-01-01'), (3, NULL), (4, TIMESTAMP 'infinity'), (5, TIMESTAMP '2026-01-02 00:00:00.5')) "
            "AS r(i, moment)"
        )
    spec = TrainingSpec(model_id="Churn", label="churned", features=("usage",))

    oldest, newest = moment("2026-01-01"), moment("2026-01-02 00:00:00.5")
    assert wire.registry.feature_rows(["usage"]) == {"usage": FeatureRows(5, 3, oldest, newest)}
    assert wire.registry.copy_to_parquet(snapshot_query(spec, Source()), str(tmp_path / "rows.parquet")) == 2


@trap(19)
def test_trap_19_a_feature_of_mostly_uploaded_rows_is_not_judged(watched_model: Wire, tmp_path: Path) -> None:
    watched_model.queue.run(
        "UPDATE features_table SET event_timestamp = TIMESTAMP '0001-01-01' WHERE feature_name = 'usage' AND value > 1"
    )
    ran = _checked(watched_model, tmp_path, [model("Loan", metric("usage", 9.0, "CRITICAL", ks=0.9), _CALM[1])])

    assert ran.exit_status is ExitStatus.NOT_MEASURED
    assert ran.job.result is not None
    assert ran.job.result["retrain"] == {}
    assert _stored(watched_model)["usage"] == "QUARANTINE"
