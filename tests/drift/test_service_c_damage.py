"""What Service C cannot tell from drift, and what a check that goes by its word does about it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from servicectl.actions import drift_check
from servicectl.actions.world import World
from servicectl.config import load
from servicectl.estate.alarms import Alarms
from servicectl.store import Store
from tests.parts.analyst import analyst, metric, model
from tests.parts.estate import ALL_ROWS, MODELS, Saved, Site, outcomes

NEWEST = "event_timestamp >= TIMESTAMP '2024-03-24'"


def check(told: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = told["jobs"][0]["result"]
    return result


def verdicts(told: dict[str, Any]) -> dict[str, str]:
    return {one["feature"]: one["verdict"] for one in check(told)["decisions"] if one["model_id"] == "Churn"}


def retrains(site: Site) -> int:
    return [job["kind"] for job in site.jobs()].count("retrain")


@pytest.fixture
def drifted(site: Site, published: Saved) -> Site:
    """Churn 0.1.0 in production, newer rows with a far higher `usage`, and Service C alone to judge them."""
    site.restore(published)
    site.estate.rows(0, ALL_ROWS)
    return site


# Before the damage `usage` is what the training rows were: nothing but the damage has happened.
UNDRIFTED = (
    f"UPDATE features_table SET value = round(value - 10, 1) WHERE feature_name = 'usage' AND {NEWEST} AND value >= 10"
)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("value = NULL", "newest values are NULL"),
        ("value = 0", "newest values are 0"),
        ("value = (value + 1) * 1000", "another unit"),
    ],
)
def test_damaged_rows_that_service_c_takes_for_drift_are_alarmed_and_retrain_nothing(
    drifted: Site, damage: str, says: str
) -> None:
    if "1000" in damage:  # spread out, so that another unit can be told from another place
        drifted.estate.more_rows(
            "UPDATE features_table SET value = value + hash(entity_id) % 1000 / 100 WHERE feature_name = 'usage'"
        )
    drifted.estate.more_rows(UNDRIFTED)
    drifted.estate.more_rows(f"UPDATE features_table SET {damage} WHERE feature_name = 'usage' AND {NEWEST}")

    with analyst(
        lambda: [model("Churn", metric("tenure", 0.01, "PASS"), metric("usage", 9.0, "CRITICAL", 0.9))]
    ) as told_c:
        drifted.configure(MODELS, analytics=told_c.address)
        ended = drifted.run("--json", "drift-check", DRIFT_REFERENCE="window")

    assert ended.status == 3, ended
    assert outcomes(ended.told) == [("drift-check", "not-measured")]
    assert verdicts(ended.told) == {"tenure": "PASS", "usage": "QUARANTINE"}
    assert says in ended.stderr
    assert "ALARM QUARANTINE (raised): feature usage of Churn 0.1.0" in ended.stderr
    assert check(ended.told)["retrain"] == {}
    assert check(ended.told)["unverified"] == ""
    assert retrains(drifted) == 1
    [row] = [one for one in drifted.estate.tables()["drift_results"] if one["feature_name"] == "usage"]
    assert row["verdict"] == "QUARANTINE"


def test_a_null_flood_that_the_real_service_c_calls_critical_retrains_nothing(drifted: Site) -> None:
    drifted.estate.more_rows(
        f"UPDATE features_table SET value = NULL WHERE feature_name = 'usage' AND {NEWEST} AND hash(entity_id) % 10 < 8"
    )

    ended = drifted.run("--json", "drift-check")

    assert ended.status == 3, ended
    assert [one["status"] for one in check(ended.told)["decisions"] if one["feature"] == "usage"] == ["CRITICAL"]
    assert verdicts(ended.told)["usage"] == "QUARANTINE"
    assert retrains(drifted) == 1


def test_a_feature_in_quarantine_beside_a_drifted_one_holds_the_retrain_and_says_so(drifted: Site) -> None:
    """Service C sees nothing wrong with `tenure`, which is as damaged as can be; a new model would learn from it."""
    drifted.estate.more_rows(f"UPDATE features_table SET value = NULL WHERE feature_name = 'tenure' AND {NEWEST}")

    with analyst(
        lambda: [model("Churn", metric("tenure", 0.01, "PASS"), metric("usage", 9.0, "CRITICAL", 0.9))]
    ) as told_c:
        drifted.configure(MODELS, analytics=told_c.address)
        ended = drifted.run("--json", "drift-check")

    assert ended.status == 3, ended
    assert verdicts(ended.told) == {"tenure": "QUARANTINE", "usage": "CRITICAL"}
    assert check(ended.told)["retrain"] == {}
    assert check(ended.told)["held_back"] == {
        "Churn": "usage would be learnt together with broken data: tenure is in quarantine"
    }
    assert retrains(drifted) == 1


def test_the_builtin_statistics_hold_a_retrain_beside_a_quarantine_too(drifted: Site) -> None:
    drifted.estate.more_rows(f"UPDATE features_table SET value = NULL WHERE feature_name = 'tenure' AND {NEWEST}")

    ended = drifted.run("--json", "drift-check", ANALYTICS_SOURCE="builtin", DRIFT_BESIDE="[]")

    assert verdicts(ended.told) == {"tenure": "QUARANTINE", "usage": "CRITICAL"}
    assert "tenure is in quarantine" in check(ended.told)["held_back"]["Churn"]
    assert retrains(drifted) == 1


def test_where_the_rows_cannot_be_looked_at_service_cs_word_stands_and_that_is_said(drifted: Site) -> None:
    told = drifted.run(
        "--json", "drift-check", "--queue-only", HANDLER_SNAPSHOT_FOLDER_HANDLER="/nowhere/that/is/shared"
    )

    assert told.status == 0, told
    assert verdicts(told.told)["usage"] == "CRITICAL"
    assert check(told.told)["retrain"] == {"Churn": ["usage"]}
    assert "/nowhere/that/is/shared" in check(told.told)["unverified"]
    assert "Service C's word stands" in told.stderr


def test_ingestion_that_stopped_is_not_measured_and_never_calm_for_ever(site: Site, published: Saved) -> None:
    site.restore(published)
    assert site.run("drift-check").status == 0

    ended = site.run("--json", "drift-check", DRIFT_STALE_AFTER="auto")

    assert ended.status == 3, ended
    assert outcomes(ended.told) == [("drift-check", "not-measured")]
    assert set(verdicts(ended.told).values()) == {"NOT_MEASURED"}
    assert "nothing has come for" in ended.stderr
    builtin = site.run("--json", "drift-check", DRIFT_STALE_AFTER="auto", ANALYTICS_SOURCE="builtin", DRIFT_BESIDE="[]")
    assert builtin.status == 3, builtin


def look_of(site: Site, trigger: str) -> dict[str, Any]:
    """One check in this process, started by `trigger`."""
    settings = {"SERVICECTL_DRIFT_LOOKS_DRIFTED": "2", "SERVICECTL_DRIFT_RETRAIN": "queue"}
    [ran] = drift_check.start(World(load(site.config, settings), trigger=trigger))
    result = dict(ran.job.result or {})
    return {one["feature"]: one["verdict"] for one in result["decisions"]}


def later_row(site: Site, number: int) -> None:
    site.estate.more_rows(
        f"INSERT INTO features_table SELECT 'late-{number}', 'usage', 10.0, max(event_timestamp) + INTERVAL 1 HOUR, now()"
        " FROM features_table"
    )


def test_of_service_cs_looks_scheduled_ones_count_once_per_newest_row_and_manual_ones_never(drifted: Site) -> None:
    assert look_of(drifted, "operator")["usage"] == "WARNING"
    assert look_of(drifted, "timer")["usage"] == "WARNING"
    assert look_of(drifted, "timer")["usage"] == "WARNING"  # the same rows
    later_row(drifted, 1)
    assert look_of(drifted, "operator")["usage"] == "WARNING"
    assert retrains(drifted) == 1
    assert look_of(drifted, "timer")["usage"] == "CRITICAL"
    assert retrains(drifted) == 2


def test_alarms_of_a_model_that_left_production_are_cleared(drifted: Site) -> None:
    drifted.estate.sql(
        "INSERT INTO model_metadata (model_id, artifact_type, version, status, azure_location, expected_features,"
        " created_at) VALUES ('Upsell', 'pkl', '3.0.0', 'production', 'Model_Upsell/', [{'index': 0, 'name': 'usage',"
        " 'type': 'float', 'drift_score': NULL}], TIMESTAMP '2024-01-01')"
    )
    drifted.run("drift-check", "--queue-only", ANALYTICS_SOURCE="builtin", DRIFT_BESIDE="[]")
    alarms = Alarms(Store(drifted.state))
    assert alarms.standing().verdicts["Upsell", "usage"] == "CRITICAL"
    drifted.estate.sql("UPDATE model_metadata SET status = 'deprecated' WHERE model_id = 'Upsell'")

    ended = drifted.run("drift-check", "--queue-only", ANALYTICS_SOURCE="builtin", DRIFT_BESIDE="[]")

    assert "feature usage of Upsell: Upsell is not in production any more" in ended.stderr
    assert alarms.standing().verdicts == {("Churn", "usage"): "CRITICAL", ("Upsell", "usage"): "PASS"}
    assert "Upsell" not in drifted.run("drift-check", "--queue-only", ANALYTICS_SOURCE="builtin").stderr


def test_what_a_check_rests_on_is_stored_so_that_a_year_can_be_plotted(drifted: Site) -> None:
    drifted.ok("drift-check", "--queue-only", ANALYTICS_SOURCE="builtin", DRIFT_BESIDE='["decay"]')
    drifted.ok("drift-check", "--queue-only")

    [by_c, builtin] = drifted.ok("drift", "history", "Churn", "usage")["results"]
    [decay] = drifted.ok("drift", "history", "Churn", "(decay)")["results"]

    assert (by_c["evidence"]["analyst"], builtin["evidence"]["analyst"]) == ("service-c", "builtin")
    assert builtin["trigger"] == "operator"
    assert builtin["evidence"]["effect"] > 1
    assert builtin["evidence"]["current"]["null_share"] == 0
    assert builtin["evidence"]["current"]["rows"] == 130
    assert builtin["evidence"]["current"]["last"] == builtin["window_end"].removesuffix("Z")
    assert datetime.fromisoformat(builtin["evidence"]["current"]["first"]) > datetime(2024, 4, 1)  # noqa: DTZ001 -- naive UTC
    assert decay["evidence"]["decay"]["now"] < decay["evidence"]["decay"]["before"]
    assert len(drifted.ok("drift", "history", "Churn", "--limit", "1")["results"]) == 3  # one of each
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(by_c["checked_at"] + "+00:00")
