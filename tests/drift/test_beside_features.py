"""What is looked at besides features: the champion's own score, labels, and what models answer."""

from __future__ import annotations

from typing import Any

import pytest

from servicectl.drift.values import Verdict
from servicectl.estate.alarms import Alarms
from servicectl.store import Store
from tests.parts import free_port
from tests.parts.estate import ALL_ROWS, MODELS, Saved, Site, outcomes

NEWER = "event_timestamp >= TIMESTAMP '2024-03-24 08:00:00'"  # than what Churn 0.1.0 has seen


def check(told: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = told["jobs"][0]["result"]
    return result


def decisions(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["feature"]: one for one in check(told)["decisions"] if one["model_id"] == "Churn"}


def alarms(site: Site) -> set[tuple[str, str, str]]:
    return {(alarm.feature, alarm.change, alarm.verdict) for alarm in Alarms(Store(site.state)).newest()}


@pytest.fixture
def quiet(site: Site, published: Saved) -> Site:
    """Churn 0.1.0 in production, nothing newer, the builtin statistics, and no Service C."""
    site.restore(published)
    site.configure(MODELS, analytics=f"127.0.0.1:{free_port()}")
    site.settings |= {"ANALYTICS_SOURCE": "builtin", "DRIFT_BESIDE": "[]"}
    return site


@pytest.fixture
def drifted(quiet: Site) -> Site:
    """Newer rows have come, with a far higher `usage` and labels by another rule."""
    quiet.estate.rows(0, ALL_ROWS)
    return quiet


def answers(site: Site, rows: int, *, newest: str, version: str = "0.1.0") -> None:
    """What Churn answered, one an hour; `newest` are SQL of (model_result, model_error) of the newest twentieth."""
    site.estate.sql("DELETE FROM model_logs")
    site.estate.sql(
        "INSERT INTO model_logs (model_id, model_version, model_inputs, model_result, model_error, event_datetime) SELECT "
        f"'Churn', '{version}', '{{}}', CASE WHEN i < {rows} * 0.95 THEN printf('%f', (i % 2)::DOUBLE) ELSE {newest} END, "
        f"CASE WHEN i >= {rows} * 0.95 AND {newest} = '-1.000000' THEN 'no such feature' ELSE '' END, "
        f"TIMESTAMP '2024-01-01' + to_hours(i) FROM range({rows}) AS r(i)"
    )


def test_a_champion_that_lost_its_score_is_told_beside_the_drift_that_retrains(drifted: Site) -> None:
    told = drifted.ok("drift-check", "--queue-only", DRIFT_BESIDE='["decay"]')

    decay = decisions(told)["(decay)"]
    assert decay["verdict"] == Verdict.CRITICAL
    assert "when it was published (differs by -0." in decay["reason"]
    assert check(told)["retrain"] == {"Churn": ["usage"]}
    [shown] = check(told)["decay"]
    assert (shown["model_id"], shown["version"], shown["decay"]["rows_now"]) == ("Churn", "0.1.0", 400 + 100)
    assert shown["decay"]["difference"] < -0.2
    assert alarms(drifted) == {("usage", "raised", "CRITICAL"), ("(decay)", "raised", "CRITICAL")}
    logged = {row["feature_name"]: row["verdict"] for row in drifted.estate.tables()["drift_results"]}
    assert logged == {"tenure": "PASS", "usage": "CRITICAL", "(decay)": "CRITICAL"}


def test_a_lost_score_alone_retrains_where_it_is_the_trigger_and_is_the_cause_on_record(drifted: Site) -> None:
    drifted.estate.more_rows(f"UPDATE features_table SET value = value - 10 WHERE feature_name = 'usage' AND {NEWER}")

    told = drifted.ok("drift-check", "--queue-only", DRIFT_TRIGGER="decay")

    assert outcomes(told) == [("drift-check", "drift")]
    assert check(told)["retrain"] == {"Churn": ["(decay)"]}
    assert [job["scope"] for job in drifted.jobs() if job["state"] == "PENDING"] == ["retrain:Churn"]


def test_without_newer_labels_a_check_that_goes_by_decay_is_not_measured_and_never_clear(quiet: Site) -> None:
    ended = quiet.run("--json", "drift-check", DRIFT_TRIGGER="decay")

    assert ended.status == 3, ended
    assert outcomes(ended.told) == [("drift-check", "not-measured")]
    assert decisions(ended.told)["(decay)"]["reason"].startswith(
        "no labelled row is newer than those 0.1.0 was trained"
    )
    assert alarms(quiet) == {("(decay)", "not-measured", "NOT_MEASURED")}


def test_where_nothing_depends_on_it_no_labels_are_said_and_wake_nobody(quiet: Site) -> None:
    told = quiet.ok("drift-check", DRIFT_BESIDE='["decay", "label", "prediction"]')

    assert outcomes(told) == [("drift-check", "clear")]
    assert decisions(told)["(decay)"]["verdict"] == "NOT_MEASURED"
    assert decisions(told)["(prediction)"]["reason"] == "model_logs has no answer of 0.1.0"
    assert alarms(quiet) == set()


def test_drift_without_labels_waits_where_both_are_asked_for_and_says_why(drifted: Site) -> None:
    drifted.estate.more_rows(f"DELETE FROM features_table WHERE feature_name = 'churned' AND {NEWER}")
    drifted.configure(MODELS.replace("[models.Spend]", 'trigger = "drift-and-decay"\n\n[models.Spend]'))

    ended = drifted.run("--json", "drift-check")

    assert ended.status == 3, ended
    assert check(ended.told)["retrain"] == {}
    held = check(ended.told)["held_back"]["Churn"]
    assert held == (
        "drifted in usage, but whether it has lost its score could not be measured (trigger = drift-and-decay)"
    )
    assert [job["kind"] for job in drifted.jobs()].count("retrain") == 1


def test_a_champion_whose_bytes_are_not_on_record_is_never_opened(drifted: Site) -> None:
    for name in ("Production", "0.1.0"):
        blob = drifted.store.stat(f"Model_Churn/Model_Churn_{name}.pkl")
        assert blob is not None
        drifted.store.delete(blob.name, blob.etag)
        drifted.store.create(blob.name, b"not the model that was published", {})

    ended = drifted.run("--json", "drift-check", "--queue-only", DRIFT_TRIGGER="decay")

    assert ended.status == 3, ended
    assert "has the digest on record" in decisions(ended.told)["(decay)"]["reason"]
    assert check(ended.told)["retrain"] == {}


def test_a_score_lost_to_broken_rows_retrains_nothing(drifted: Site) -> None:
    drifted.estate.more_rows(f"UPDATE features_table SET value = 0 WHERE feature_name = 'usage' AND {NEWER}")

    ended = drifted.run("--json", "drift-check", "--queue-only", DRIFT_TRIGGER="decay")

    assert ended.status == 3, ended
    assert decisions(ended.told)["(decay)"]["verdict"] == "CRITICAL"
    assert decisions(ended.told)["usage"]["verdict"] == "QUARANTINE"
    assert check(ended.told)["retrain"] == {}
    assert "may be due to broken data: usage is in quarantine" in check(ended.told)["held_back"]["Churn"]


@pytest.mark.parametrize(("counts", "retrain"), [('["features"]', {}), ('["label"]', {"Churn": ["(label)"]})])
def test_labels_that_moved_alarm_and_retrain_only_where_they_count(
    quiet: Site, counts: str, retrain: dict[str, list[str]]
) -> None:
    quiet.estate.more_rows(
        "INSERT INTO features_table SELECT 'new-' || i, 'churned', (i % 10 < 9)::INT, TIMESTAMP '2024-03-24 08:00' + to_hours(i), NULL"
        " FROM range(150) AS r(i)"
    )
    quiet.settings |= {"DRIFT_BESIDE": '["label"]', "DRIFT_RETRAIN_ON": counts}

    told = quiet.ok("drift-check", "--queue-only")

    assert decisions(told)["(label)"]["verdict"] == "CRITICAL"
    assert check(told)["retrain"] == retrain
    assert ("(label)", "raised", "CRITICAL") in alarms(quiet)


def test_answers_that_moved_are_told_of_the_version_in_production_alone(quiet: Site) -> None:
    quiet.settings |= {"DRIFT_BESIDE": '["prediction"]', "DRIFT_RETRAIN_ON": '["features", "prediction"]'}
    moved = "CASE WHEN i % 10 < 9 THEN '1.000000' ELSE '0.000000' END"
    answers(quiet, 4000, newest=moved, version="0.0.9")
    before = quiet.run("--json", "drift-check", "--queue-only")
    answers(quiet, 4000, newest=moved)
    after = quiet.ok("drift-check", "--queue-only")

    # Another version's answers are nothing to hold against; what a retrain depends on is missed aloud.
    assert (before.status, decisions(before.told)["(prediction)"]["verdict"]) == (3, "NOT_MEASURED")
    assert decisions(after)["(prediction)"]["verdict"] == "CRITICAL"
    assert check(after)["retrain"] == {"Churn": ["(prediction)"]}


def test_a_flood_of_errors_is_broken_serving_and_no_drift(quiet: Site) -> None:
    answers(quiet, 4000, newest="'-1.000000'")

    ended = quiet.run("--json", "drift-check", "--queue-only", DRIFT_BESIDE='["prediction"]')

    assert decisions(ended.told)["(prediction)"]["verdict"] == "QUARANTINE"
    assert "ALARM QUARANTINE (raised): prediction of Churn 0.1.0: all 200 newest values are NULL" in ended.stderr
    assert check(ended.told)["retrain"] == {}


def test_service_c_has_no_word_on_labels_and_that_is_said(drifted: Site) -> None:
    drifted.configure(MODELS)

    told = drifted.ok("drift-check", "--queue-only", ANALYTICS_SOURCE="service-c", DRIFT_BESIDE='["label", "decay"]')

    assert decisions(told)["(label)"]["reason"].startswith("Service C measures features only")
    assert decisions(told)["(decay)"]["verdict"] == "CRITICAL"


def test_explain_shows_the_score_then_and_now(drifted: Site) -> None:
    shown = drifted.run("drift-check", "--queue-only", "--explain", DRIFT_BESIDE='["decay"]')

    assert shown.status == 0, shown
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    at = lines.index("Churn 0.1.0, f1_macro where labels have arrived")
    assert lines[at + 1].endswith("on 400 rows of its publish")
    assert lines[at + 2].endswith("on its 500 newest labelled rows")
    assert float(lines[at + 2].split()[0]) < float(lines[at + 1].split()[0])
