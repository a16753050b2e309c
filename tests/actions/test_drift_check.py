from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from servicectl.estate.alarms import Alarms
from servicectl.store import Store
from tests.parts import free_port
from tests.parts.estate import ALL_ROWS, MODELS, Estate, Saved, Site, outcomes
from tests.parts.redis import redis_server

UPSELL = """
[models.Upsell]
label = "churned"
features = ["usage"]
"""


def production_row(estate: Estate, model_id: str, version: str, *features: str, status: str = "production") -> None:
    listed = ", ".join(
        f"{{'index': {index}, 'name': '{name}', 'type': 'float', 'drift_score': NULL}}"
        for index, name in enumerate(features)
    )
    estate.sql(
        "INSERT INTO model_metadata (model_id, artifact_type, version, status, azure_location, expected_features, created_at) "
        f"VALUES ('{model_id}', 'pkl', '{version}', '{status}', 'Model_{model_id}/', [{listed}], TIMESTAMP '2024-01-01')"
    )


def scores(estate: Estate, version: str, model_id: str = "Churn") -> dict[str, float | None]:
    [row] = estate.queue.read(
        "SELECT CAST(to_json(expected_features) AS VARCHAR) AS features FROM model_metadata "
        f"WHERE model_id = '{model_id}' AND version = '{version}'"
    )
    return {feature["name"]: feature["drift_score"] for feature in json.loads(row["features"])}


def alarms(site: Site) -> list[tuple[str, str, str, str]]:
    stored = Alarms(Store(site.state)).newest()
    return sorted((alarm.model_id, alarm.feature, alarm.change, alarm.verdict) for alarm in stored)


@pytest.fixture
def drifted(site: Site, published: Saved) -> Site:
    """Churn 0.1.0 is in production, and newer rows with a far higher `usage` have come."""
    site.restore(published)
    site.estate.rows(0, ALL_ROWS)
    return site


def test_nothing_newer_than_the_training_rows_is_clear(site: Site, published: Saved) -> None:
    site.restore(published)
    told = site.ok("drift-check")
    assert outcomes(told) == [("drift-check", "clear")]
    assert alarms(site) == []
    assert [job["kind"] for job in site.jobs()] == ["retrain", "publish", "drift-check"]


def test_drift_is_scored_logged_alarmed_and_queues_one_retrain(drifted: Site) -> None:
    estate = drifted.estate
    production_row(estate, "Churn", "0.0.9", "tenure", "usage", status="deprecated")
    ended = drifted.run("--json", "drift-check", "--queue-only", "--detailed-exitcode")
    assert ended.status == 10, ended
    assert outcomes(ended.told) == [("drift-check", "drift")]
    assert "ALARM CRITICAL (raised): feature usage of Churn 0.1.0" in ended.stderr
    found = scores(estate, "0.1.0")
    assert found["tenure"] == pytest.approx(0.0, abs=0.01)
    assert found["usage"] is not None
    assert found["usage"] > 1
    assert scores(estate, "0.0.9") == {"tenure": None, "usage": None}
    served = drifted.served()
    assert served is not None
    assert {one["name"]: one["drift_score"] for one in served["metadata"]["expected_features"]} == pytest.approx(found)
    assert [(row["feature_name"], row["verdict"], row["times"]) for row in estate.tables()["drift_results"]] == [
        ("tenure", "PASS", 1),
        ("usage", "CRITICAL", 1),
    ]
    assert alarms(drifted) == [("Churn", "usage", "raised", "CRITICAL")]
    assert [(job["kind"], job["scope"], job["state"]) for job in drifted.jobs()[2:]] == [
        ("drift-check", "drift-check", "COMPLETED"),
        ("retrain", "retrain:Churn", "PENDING"),
    ]


def test_a_second_look_at_the_same_drift_neither_alarms_nor_queues_again(drifted: Site) -> None:
    assert drifted.run("drift-check", "--queue-only").status == 0
    again = drifted.run("drift-check", "--queue-only")
    assert again.status == 0
    assert "ALARM" not in again.stderr
    assert len(alarms(drifted)) == 1
    assert [job["kind"] for job in drifted.jobs()].count("retrain") == 2


def test_drift_retrains_at_once_and_the_new_version_has_no_scores_and_no_news(drifted: Site) -> None:
    told = drifted.ok("drift-check")
    assert outcomes(told) == [("drift-check", "drift"), ("retrain", "promoted"), ("publish", "published")]
    assert scores(drifted.estate, "0.1.1") == {"tenure": None, "usage": None}
    assert {job["trigger"] for job in drifted.jobs()[3:]} == {"drift"}
    assert outcomes(drifted.ok("drift-check")) == [("drift-check", "clear")]


def test_every_model_that_uses_a_drifted_feature_is_retrained_also_one_service_c_did_not_name(drifted: Site) -> None:
    drifted.configure(MODELS + UPSELL)
    production_row(drifted.estate, "Upsell", "3.0.0", "usage")  # in the registry alone: Service C cannot know of it
    ended = drifted.run("--json", "drift-check", "--queue-only")
    assert ended.status == 3, ended
    [check] = ended.told["jobs"]
    assert check["result"]["retrain"] == {"Churn": ["usage"], "Upsell": ["usage"]}
    verdicts = {(one["model_id"], one["feature"]): one["verdict"] for one in check["result"]["decisions"]}
    assert verdicts == {
        ("Churn", "tenure"): "PASS",
        ("Churn", "usage"): "CRITICAL",
        ("Upsell", "usage"): "NOT_MEASURED",
    }
    assert sorted(job["scope"] for job in drifted.jobs() if job["state"] == "PENDING") == [
        "retrain:Churn",
        "retrain:Upsell",
    ]


def test_a_drifted_model_without_a_section_is_named_and_ends_in_1(drifted: Site) -> None:
    production_row(drifted.estate, "Upsell", "3.0.0", "usage")
    ended = drifted.run("--json", "drift-check", "--queue-only")
    assert ended.status == 1, ended
    assert ended.told["jobs"][0]["result"]["not_configured"] == ["Upsell"]
    assert "[models.Upsell]" in ended.stderr
    assert [job["scope"] for job in drifted.jobs() if job["state"] == "PENDING"] == ["retrain:Churn"]


def test_told_never_to_retrain_it_only_alarms(drifted: Site) -> None:
    told = drifted.ok("drift-check", DRIFT_RETRAIN="never")
    assert outcomes(told) == [("drift-check", "drift")]
    assert len(alarms(drifted)) == 1
    assert [job["kind"] for job in drifted.jobs()[2:]] == ["drift-check"]


def test_an_emptied_redis_is_not_measured_and_never_clear(drifted: Site) -> None:
    drifted.estate.client.flushall()
    ended = drifted.run("--json", "drift-check")
    assert ended.status == 3, ended
    assert outcomes(ended.told) == [("drift-check", "not-measured")]
    assert {one["verdict"] for one in ended.told["jobs"][0]["result"]["decisions"]} == {"NOT_MEASURED"}
    assert scores(drifted.estate, "0.1.0") == {"tenure": None, "usage": None}
    assert drifted.ok("sync-production")
    assert drifted.run("drift-check", "--queue-only").status == 0


def test_a_registry_that_answers_empty_while_redis_serves_models_is_not_measured(drifted: Site) -> None:
    drifted.estate.sql("DELETE FROM model_metadata")
    ended = drifted.run("--json", "drift-check")
    assert ended.status == 3, ended
    assert "Churn" in ended.told["jobs"][0]["error"]


def test_without_the_view_it_says_so_and_the_named_command_cures_it(drifted: Site) -> None:
    drifted.estate.sql("DROP VIEW features")
    ended = drifted.run("--json", "drift-check")
    assert ended.status == 3, ended
    assert "`features`" in ended.told["jobs"][0]["error"]
    assert ended.told["jobs"][0]["cure"].startswith("servicectl doctor --create-view")
    drifted.run("doctor", "--create-view")
    assert drifted.run("drift-check", "--queue-only").status == 0


@contextmanager
def _redis_down(site: Site) -> Iterator[str]:
    site.configure(MODELS, redis=f"redis://127.0.0.1:{free_port()}/0")
    yield "Redis"
    site.configure(MODELS)


@contextmanager
def _handler_down(site: Site) -> Iterator[str]:
    with redis_server(site.folder) as lonely:
        site.configure(MODELS, redis=lonely.url)
        yield "the DuckDB handler"
    site.configure(MODELS)


@contextmanager
def _handler_frozen(site: Site) -> Iterator[str]:
    site.estate.handler.process.send_signal(signal.SIGSTOP)
    try:
        yield "the DuckDB handler"
    finally:
        site.estate.handler.process.send_signal(signal.SIGCONT)


@contextmanager
def _service_c_down(site: Site) -> Iterator[str]:
    site.configure(MODELS, analytics=f"127.0.0.1:{free_port()}")
    yield "Service C (analytics)"
    site.configure(MODELS)


@pytest.mark.parametrize("down", [_redis_down, _handler_down, _handler_frozen, _service_c_down])
def test_a_party_that_is_down_is_named_and_the_job_goes_on_when_it_is_back(
    drifted: Site, down: Callable[..., Any]
) -> None:
    with down(drifted) as party:
        ended = drifted.run("--json", "drift-check", HANDLER_TIMEOUT_S="0.5")
    assert ended.status == 75, ended
    [check] = ended.told["jobs"]
    assert check["state"] == "PENDING"
    assert check["error"].startswith(f"{party} is not available")
    assert check["cure"]
    told = drifted.ok("drift-check", "--queue-only")
    assert told["jobs"][0]["job_id"] == check["job_id"]
    assert outcomes(told) == [("drift-check", "drift"), ("drift-check", "drift")]
    assert [job["state"] for job in drifted.jobs() if job["kind"] == "retrain"] == ["COMPLETED", "PENDING"]


def test_a_check_that_still_cannot_run_is_tried_once_per_command(drifted: Site) -> None:
    with _service_c_down(drifted):
        drifted.run("drift-check")
        again = drifted.run("--json", "drift-check")
    assert again.status == 75
    assert [job["attempts"] for job in again.told["jobs"]] == [2]


@pytest.mark.parametrize(
    "point",
    ["look/effect", "look/recorded", "scores Churn/effect", "record/effect", "store alarms/effect", "sound alarms/effect",
     "complete/before", "complete/recorded"],
)  # fmt: skip
def test_a_check_killed_at_any_point_is_resumed_without_duplicates(drifted: Site, point: str) -> None:
    died = drifted.run("drift-check", "--queue-only", crash_at=f"drift-check/{point}")
    assert died.status == -signal.SIGKILL, died
    [check] = [job for job in drifted.jobs() if job["kind"] == "drift-check"]
    resumed = drifted.run("jobs", "resume", check["id"], crash_at="retrain/claimed")  # its child is another test's
    assert resumed.status == -signal.SIGKILL, resumed
    assert [
        (row["feature_name"], row["verdict"], row["times"]) for row in drifted.estate.tables()["drift_results"]
    ] == [
        ("tenure", "PASS", 1),
        ("usage", "CRITICAL", 1),
    ]
    assert alarms(drifted) == [("Churn", "usage", "raised", "CRITICAL")]
    assert scores(drifted.estate, "0.1.0")["usage"] is not None
    jobs = [(job["kind"], job["state"]) for job in drifted.jobs()[2:]]
    assert jobs == [("drift-check", "COMPLETED"), ("retrain", "INTERRUPTED")]


def test_scores_of_a_replaced_version_are_not_written_to_its_successor(site: Site, second_candidate: Saved) -> None:
    site.restore(second_candidate)
    site.estate.rows(0, ALL_ROWS)
    # This challenger was judged on the newest rows already: one more makes news.
    site.estate.more_rows(
        "INSERT INTO features_table SELECT 'late', 'usage', 10.0, max(event_timestamp) + INTERVAL 1 HOUR, now() FROM features_table"
    )
    died = site.run("drift-check", "--queue-only", crash_at="drift-check/look/recorded")
    assert died.status == -signal.SIGKILL, died
    site.ok("publish", "Churn")
    site.run("jobs", "resume", crash_at="retrain/claimed")
    [check] = [job for job in site.jobs() if job["kind"] == "drift-check"]
    assert (check["state"], check["outcome"]) == ("COMPLETED", "drift")
    assert scores(site.estate, "0.1.1") == {"tenure": None, "usage": None}


def test_a_model_that_is_being_published_keeps_its_row_untouched(drifted: Site) -> None:
    from servicectl.jobs.locks import Locks

    with Locks(drifted.state / "locks").held("serving:Churn"):
        assert drifted.run("drift-check", "--queue-only").status == 0
    assert scores(drifted.estate, "0.1.0") == {"tenure": None, "usage": None}
    assert len(drifted.estate.tables()["drift_results"]) == 2


def test_two_production_rows_of_one_model_are_named_with_the_cure(drifted: Site) -> None:
    production_row(drifted.estate, "Churn", "0.0.9", "tenure", "usage")
    ended = drifted.run("--json", "drift-check")
    assert ended.status == 1, ended
    [check] = ended.told["jobs"]
    assert "Churn" in check["error"]
    assert "0.0.9" in check["error"]
    assert "servicectl sync-production" in check["cure"]
    assert drifted.run("sync-production").status == 0
    assert drifted.run("drift-check", "--queue-only").status == 0


def test_nothing_in_production_is_nothing_to_check(site: Site) -> None:
    assert outcomes(site.ok("drift-check")) == [("drift-check", "no-production-models")]
