"""Models whose rows are not in the feature store's long table: a wide table, a SELECT, a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.drift.making import FEATURES_TABLE
from tests.parts import free_port
from tests.parts.estate import MODELS, Saved, Site, rows_sql

EVENTS = """CREATE OR REPLACE TABLE events AS SELECT 'e' || i AS who, TIMESTAMP '2024-01-01' + to_hours(i) AS "when",
    (i * 7919) % 101 AS amount, CASE WHEN i < 3800 OR i % 2 = 0 THEN 'shop ' || (i % 3) ELSE 'shop 0' END AS place,
    i % 2 AS bought FROM range(4000) AS r(i)"""
WIDE = """
[models.Wide]
label = "bought"
features = ["amount", "place"]
categorical = ["place"]

[models.Wide.source]
kind = "wide"
table = "events"
entity_column = "who"
time_column = "when"
"""
SQL = """
[models.Doubled]
label = "bought"
features = ["usage"]

[models.Doubled.source]
kind = "sql"
query = "SELECT who, \\"when\\", amount + CASE WHEN \\"when\\" > TIMESTAMP '2024-06-08' THEN 90 ELSE 0 END AS usage, bought FROM events"
entity_column = "who"
time_column = "when"
"""


@pytest.fixture
def wide(site: Site, published: Saved) -> Site:
    """Churn by the long table, `Wide` by the table `events`, `Doubled` by a SELECT; no Service C."""
    site.restore(published)
    site.estate.sql(EVENTS)
    site.configure(MODELS + WIDE + SQL, analytics=f"127.0.0.1:{free_port()}")
    site.settings |= {"ANALYTICS_SOURCE": "builtin", "DRIFT_BESIDE": '["label"]', "DRIFT_RETRAIN": "queue"}
    for model_id, features in (("Wide", ["amount", "place"]), ("Doubled", ["usage"])):
        listed = ", ".join(
            f"{{'index': {index}, 'name': '{name}', 'type': 'float', 'drift_score': NULL}}"
            for index, name in enumerate(features)
        )
        site.estate.sql(
            "INSERT INTO model_metadata (model_id, artifact_type, version, status, azure_location, expected_features,"
            f" created_at) VALUES ('{model_id}', 'pkl', '3.0.0', 'production', 'Model_{model_id}/', [{listed}], now())"
        )
    return site


def decisions(told: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["model_id"], one["feature"]): one for one in told["jobs"][0]["result"]["decisions"]}


def verdicts(told: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {pair: one["verdict"] for pair, one in decisions(told).items()}


def test_wide_tables_and_selects_are_measured_beside_the_long_table(wide: Site) -> None:
    # News for Churn too, and no sample of its own: only the place tells its `usage` from that of the SELECT.
    wide.estate.more_rows(
        "INSERT INTO features_table SELECT 'late', 'usage', 0.2, max(event_timestamp) + INTERVAL 1 HOUR, NULL FROM features_table"
    )

    told = wide.ok("drift-check", DRIFT_REFERENCE="window")

    assert verdicts(told) == {
        ("Churn", "tenure"): "PASS",
        ("Churn", "usage"): "PASS",
        ("Churn", "(label)"): "PASS",
        ("Wide", "amount"): "PASS",
        ("Wide", "place"): "CRITICAL",
        ("Wide", "(label)"): "PASS",
        ("Doubled", "usage"): "CRITICAL",
        ("Doubled", "(label)"): "PASS",
    }
    assert told["jobs"][0]["result"]["retrain"] == {"Doubled": ["usage"], "Wide": ["place"]}
    assert decisions(told)["Wide", "place"]["rows"] == 4000
    assert "a share changed by" in decisions(told)["Wide", "place"]["reason"]


def test_a_source_that_cannot_be_read_is_not_measured_and_stops_no_other_model(wide: Site) -> None:
    wide.estate.sql("CREATE OR REPLACE TABLE events AS SELECT * EXCLUDE (place) FROM events")

    ended = wide.run("--json", "drift-check")

    assert ended.status == 3, ended
    found = decisions(ended.told)
    assert found["Wide", "amount"]["verdict"] == found["Wide", "place"]["verdict"] == "NOT_MEASURED"
    assert "place" in found["Wide", "amount"]["reason"]
    assert (found["Churn", "usage"]["verdict"], found["Doubled", "usage"]["verdict"]) == ("PASS", "CRITICAL")


def test_calibrate_measures_wide_tables_too(wide: Site) -> None:
    told = wide.ok("drift-check", "--calibrate")["calibration"]

    assert set(told["features"]) == {"tenure", "usage", "amount", "place"}
    assert (told["features"]["place"]["ks"], told["left_out"]) == (0, [])  # text has shares only
    assert 0 < told["features"]["place"]["share_change"] < 0.5
    assert "too few rows" not in wide.run("drift-check", "--calibrate").stdout


def store(path: Path, stop: int) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute(FEATURES_TABLE)
        connection.execute(rows_sql(0, stop))


@pytest.mark.parametrize("kind", ["duckdb", "parquet"])
def test_a_file_is_looked_at_in_place_of_the_handlers_tables(site: Site, published: Saved, kind: str) -> None:
    site.restore(published)
    site.configure(MODELS, analytics=f"127.0.0.1:{free_port()}")
    site.settings |= {"ANALYTICS_SOURCE": "builtin", "DRIFT_BESIDE": '["prediction"]', "DRIFT_RETRAIN": "queue"}
    store(site.folder / "copy.duckdb", 2600)
    if kind == "parquet":
        with duckdb.connect(str(site.folder / "copy.duckdb")) as connection:
            connection.execute(f"COPY features_table TO '{site.folder}/copy.parquet' (FORMAT parquet)")

    told = site.ok("drift-check", DRIFT_FILE=f"copy.{kind}")

    assert verdicts(told)["Churn", "usage"] == "CRITICAL"  # the handler's own rows have not drifted
    assert decisions(told)["Churn", "usage"]["rows"] == 2600
    assert decisions(told)["Churn", "(prediction)"]["reason"] == "there is no table model_logs"


def test_a_file_that_somebody_has_open_is_tried_again_later_and_one_that_is_none_is_named(
    site: Site, published: Saved
) -> None:
    site.restore(published)
    site.settings |= {"ANALYTICS_SOURCE": "builtin", "DRIFT_RETRAIN": "queue"}
    store(site.folder / "copy.duckdb", 2600)

    with duckdb.connect(str(site.folder / "copy.duckdb")):
        busy = site.run("--json", "drift-check", DRIFT_FILE="copy.duckdb")
    gone = site.run("--json", "drift-check", DRIFT_FILE="gone.duckdb")

    assert busy.status == 75, busy
    assert "is open elsewhere" in busy.told["jobs"][0]["error"]
    assert gone.status == 78, gone
