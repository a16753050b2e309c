"""drift-check with the builtin statistics: the real handler in small, real Redis, no Service C."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from servicectl.actions.retrain import Candidate
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
    """Of features."""
    found = {(one["model_id"], one["feature"]): one["verdict"] for one in check(told)["decisions"]}
    return {pair: verdict for pair, verdict in found.items() if not pair[1].startswith("(")}


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
    assert [one["evidence"]["feature"] for one in check(told)["evidence"]][:2] == ["usage", "usage"]
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
    assert [share for share, when in bars if when == "now"][:5] == ["0.0%"] * 5
    assert [share for share, when in bars if when == "before"][5:10] == ["0.0%"] * 5


def test_both_analysts_over_the_same_windows_have_the_same_figures(drifted: Site) -> None:
    drifted.configure(MODELS)

    told = drifted.ok("drift-check", "--queue-only", ANALYTICS_SOURCE="both")

    beside = {one["feature"]: one for one in check(told)["agreements"]}
    assert {name: one["same_figures"] for name, one in beside.items()} == {"tenure": True, "usage": True}
    assert (beside["usage"]["service_c"], beside["usage"]["builtin"]) == ("CRITICAL", "CRITICAL")
    told_of_features = [one for one in check(told)["decisions"] if not one["feature"].startswith("(")]
    assert {one["status"] for one in told_of_features} == {"PASS", "CRITICAL"}


def test_a_second_opinion_that_is_away_stops_nothing(drifted: Site) -> None:
    ended = drifted.run("--json", "drift-check", "--queue-only", ANALYTICS_SOURCE="both")

    assert ended.status == 0, ended
    assert "the builtin analytics decide without a second opinion" in ended.stderr
    assert outcomes(ended.told) == [("drift-check", "drift")]


def test_a_second_opinion_that_answers_what_nobody_can_read_stops_nothing(drifted: Site) -> None:
    drifted.configure(MODELS, analytics=drifted.estate.serving.address)  # another service listens there

    ended = drifted.run("--json", "drift-check", "--queue-only", ANALYTICS_SOURCE="both")

    assert ended.status == 0, ended
    assert "the builtin analytics decide without a second opinion" in ended.stderr
    assert outcomes(ended.told) == [("drift-check", "drift")]


def test_a_model_is_held_against_the_rows_it_was_trained_on_which_were_kept_beside_it(drifted: Site) -> None:
    """Its older rows are the new ones here, and its newest rows the old ones: only its own sample tells them apart."""
    row_in_registry(drifted, "Upsell", "usage")
    drifted.estate.more_rows(
        "UPDATE features_table SET value = round(value + CASE WHEN value >= 10 THEN -10 ELSE 10 END, 1)"
        " WHERE feature_name = 'usage'"
    )

    told = drifted.ok("drift-check", "--queue-only")

    assert (verdicts(told)["Churn", "usage"], verdicts(told)["Upsell", "usage"]) == ("PASS", "CRITICAL")
    assert check(told)["retrain"] == {"Upsell": ["usage"]}
    told = drifted.ok("drift-check", "--queue-only", DRIFT_REFERENCE="window")
    assert verdicts(told)["Churn", "usage"] == "CRITICAL"


def sample_name() -> str:
    return names.versioned("Model_Churn/", "Churn", "0.1.0", "parquet")


def test_a_sample_that_is_not_the_one_on_record_is_never_compared_with(drifted: Site) -> None:
    [blob] = [one for one in drifted.store.list("Model_Churn/") if one.name == sample_name()]
    drifted.store.delete(blob.name, blob.etag)
    drifted.store.create(blob.name, drifted.store.read("Model_Churn/Model_Churn_0.1.0.json")[0], {})

    ended = drifted.run("--json", "drift-check", "--queue-only")

    assert ended.status == 3, ended
    assert set(verdicts(ended.told).values()) == {"NOT_MEASURED"}
    assert "does not have the digest on record" in ended.stderr


def test_a_candidate_from_before_samples_were_kept_is_still_one() -> None:
    file = {"path": "model.pkl", "sha256": "0" * 64, "bytes": 1}
    old = dict.fromkeys(("model", "baseline", "manifest", "canary"), file)

    assert msgspec.convert(old, Candidate).sample is None


def test_where_the_sample_is_gone_the_older_rows_stand_in_and_it_is_said(drifted: Site) -> None:
    [blob] = [one for one in drifted.store.list("Model_Churn/") if one.name == sample_name()]
    drifted.store.delete(blob.name, blob.etag)

    ended = drifted.run("--json", "drift-check", "--queue-only")

    assert verdicts(ended.told)["Churn", "usage"] == "CRITICAL"
    assert "the sample of what Churn 0.1.0 learnt from is gone" in ended.stderr


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("value = NULL", "newest values are NULL"),
        ("value = 0", "newest values are 0"),
        ("value = (value - 10 + ((epoch(event_timestamp) // 3600) % 97) / 97) * 1000", "another unit"),
        ("value = value + 100", "are categories that never occurred before"),
        ("event_timestamp = event_timestamp + INTERVAL 100 YEAR", "still to come"),
        ("event_timestamp = event_timestamp - INTERVAL 2 YEAR", "other features have rows until"),
    ],
)
def test_damaged_rows_are_quarantined_alarmed_and_retrain_nothing(drifted: Site, damage: str, says: str) -> None:
    if "1000" in damage:  # spread out, so that another unit can be told from another place
        drifted.estate.more_rows(
            "UPDATE features_table SET value = value + ((epoch(event_timestamp) // 3600) % 97) / 97 WHERE feature_name = 'usage'"
        )
    if "+ 100" in damage:
        drifted.configure(MODELS.replace('["tenure", "usage"]', '["tenure", "usage"]\ncategorical = ["usage"]', 1))
    rows = "event_timestamp >= TIMESTAMP '2024-03-24'"
    if "2 YEAR" in damage:  # what stands still is a feature, not its newest rows
        rows = "true"
    drifted.estate.more_rows(f"UPDATE features_table SET {damage} WHERE feature_name = 'usage' AND {rows}")

    ended = drifted.run("--json", "drift-check", "--queue-only", DRIFT_REFERENCE="window")

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
    assert list((drifted.state / "work").rglob("windows-*.parquet")) == []
