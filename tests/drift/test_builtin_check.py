"""drift-check with the builtin statistics: the real handler in small, real Redis, no Service C."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from servicectl.estate.artifacts import names
from tests.parts import free_port
from tests.parts.estate import ALL_ROWS, MODELS, Saved, Site, outcomes

UPSELL = """
[models.Upsell]
label = "churned"
features = ["usage"]
"""


def row_in_registry(site: Site, model_id: str, feature: str) -> None:
    site.estate.sql(
        "INSERT INTO model_metadata (model_id, artifact_type, version, status, azure_location, expected_features, created_at)"
        f" VALUES ('{model_id}', 'pkl', '3.0.0', 'production', 'Model_{model_id}/',"
        f" [{{'index': 0, 'name': '{feature}', 'type': 'float', 'drift_score': NULL}}], TIMESTAMP '2024-01-01')"
    )


def check(told: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = told["jobs"][0]["result"]
    return result


def verdicts(told: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(one["model_id"], one["feature"]): one["verdict"] for one in check(told)["decisions"]}


@pytest.fixture
def drifted(site: Site, published: Saved) -> Site:
    """Churn 0.1.0 in production, newer rows with a far higher `usage`, the builtin statistics, and no Service C."""
    site.restore(published)
    site.estate.rows(0, ALL_ROWS)
    site.configure(MODELS + UPSELL, analytics=f"127.0.0.1:{free_port()}")
    site.settings["ANALYTICS_SOURCE"] = "builtin"
    return site


def snapshots(site: Site) -> list[Path]:
    return list((site.estate.folder / "snapshots").iterdir())


def test_drift_is_found_without_service_c_and_retrains_every_model_that_uses_the_feature(drifted: Site) -> None:
    row_in_registry(drifted, "Upsell", "usage")
    drifted.estate.sql("DROP VIEW features")

    told = drifted.ok("drift-check", "--queue-only")

    assert outcomes(told) == [("drift-check", "drift")]
    assert verdicts(told) == {
        ("Churn", "tenure"): "PASS",
        ("Churn", "usage"): "CRITICAL",
        ("Upsell", "usage"): "CRITICAL",
    }
    assert check(told)["retrain"] == {"Churn": ["usage"], "Upsell": ["usage"]}
    assert [one["scope"] for one in drifted.jobs() if one["state"] == "PENDING"] == ["retrain:Churn", "retrain:Upsell"]
    assert [one["evidence"]["feature"] for one in check(told)["evidence"]] == ["usage", "usage"]
    [row] = [row for row in drifted.estate.tables()["drift_results"] if row["feature_name"] == "tenure"]
    assert row["verdict"] == "PASS"
    assert snapshots(drifted) == []


@pytest.mark.parametrize("source", ["builtin", "service-c"])
def test_explain_shows_both_distributions_of_a_drifted_feature(drifted: Site, source: str) -> None:
    drifted.configure(MODELS)

    shown = drifted.run("drift-check", "--queue-only", "--explain", ANALYTICS_SOURCE=source)

    assert shown.status == 0, shown
    assert "usage  compared as a category" in shown.stdout
    assert "tenure  compared" not in shown.stdout
    bars = [line.split()[-2:] for line in shown.stdout.splitlines() if line.endswith(("before", "now"))]
    assert len(bars) == 20
    assert [share for share, when in bars if when == "now"][:5] == ["0.0%"] * 5
    assert [share for share, when in bars if when == "before"][5:] == ["0.0%"] * 5


def test_both_analysts_over_the_same_windows_have_the_same_figures(drifted: Site) -> None:
    drifted.configure(MODELS)

    told = drifted.ok("drift-check", "--queue-only", ANALYTICS_SOURCE="both")

    beside = {one["feature"]: one for one in check(told)["agreements"]}
    assert {name: one["same_figures"] for name, one in beside.items()} == {"tenure": True, "usage": True}
    assert (beside["usage"]["service_c"], beside["usage"]["builtin"]) == ("CRITICAL", "CRITICAL")
    assert {one["status"] for one in check(told)["decisions"]} == {"PASS", "CRITICAL"}


def test_a_second_opinion_that_is_away_stops_nothing(drifted: Site) -> None:
    ended = drifted.run("--json", "drift-check", "--queue-only", ANALYTICS_SOURCE="both")

    assert ended.status == 0, ended
    assert "the builtin analytics decide without a second opinion" in ended.stderr
    assert outcomes(ended.told) == [("drift-check", "drift")]


def test_a_model_is_held_against_the_rows_it_was_trained_on_where_a_sample_was_kept(drifted: Site) -> None:
    row_in_registry(drifted, "Upsell", "usage")
    sample = drifted.folder / "sample.parquet"
    with duckdb.connect() as connection:
        rows = "SELECT 10 + (i % 5) * 0.1::DOUBLE AS usage, i % 10 AS tenure FROM range(3000) AS r(i)"
        connection.execute(f"COPY ({rows}) TO '{sample}' (FORMAT parquet)")
    drifted.store.create(names.versioned("Model_Churn/", "Churn", "0.1.0", "parquet"), sample.read_bytes(), {})

    told = drifted.ok("drift-check", "--queue-only")

    assert verdicts(told)[("Churn", "usage")] == "PASS"
    assert check(told)["retrain"] == {"Upsell": ["usage"]}
    told = drifted.ok("drift-check", "--queue-only", DRIFT_REFERENCE="window")
    assert verdicts(told)[("Churn", "usage")] == "CRITICAL"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("value = NULL", "newest values are NULL"),
        ("value = 0", "newest values are 0"),
        ("event_timestamp = event_timestamp + INTERVAL 100 YEAR", "still to come"),
    ],
)
def test_damaged_rows_are_quarantined_alarmed_and_retrain_nothing(drifted: Site, damage: str, says: str) -> None:
    drifted.estate.more_rows(
        f"UPDATE features_table SET {damage} WHERE feature_name = 'usage' AND event_timestamp >= TIMESTAMP '2024-03-24'"
    )

    ended = drifted.run("--json", "drift-check", "--queue-only")

    assert ended.status == 3, ended
    assert outcomes(ended.told) == [("drift-check", "not-measured")]
    assert verdicts(ended.told)[("Churn", "usage")] == "QUARANTINE"
    assert "ALARM QUARANTINE (raised): feature usage of Churn 0.1.0" in ended.stderr
    assert says in ended.stderr
    assert check(ended.told)["retrain"] == {}


def test_a_check_that_dies_while_it_measures_leaves_no_copy_behind(drifted: Site) -> None:
    died = drifted.run("drift-check", "--queue-only", crash_at="drift-check/look/effect")
    assert died.status == -signal.SIGKILL, died

    told = drifted.ok("drift-check", "--queue-only")

    assert outcomes(told) == [("drift-check", "drift"), ("drift-check", "drift")]
    assert snapshots(drifted) == []
    assert list((drifted.state / "work").rglob("windows.parquet")) == []
