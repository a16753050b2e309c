from __future__ import annotations

import json
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from servicectl.estate.queue import READ_QUEUE
from servicectl.estate.serving import ServingClient
from tests.actions.test_sync_production import Hostile, foreign_blob
from tests.parts import ROOT
from tests.parts.estate import MODELS, Estate, Saved, Site, deadline, outcomes

BAD_MODELS = """
[models.Flat]
label = "flat"
features = ["tenure"]
[models.Void]
label = "nothing"
features = ["tenure"]
[models.Ghost]
label = "churned"
features = ["tenure", "ghost"]
"""


def result(told: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = told["jobs"][0]["result"]
    return found


def left_in_snapshots(estate: Estate) -> list[str]:
    return [path.name for path in (estate.folder / "snapshots").iterdir()]


def test_a_better_challenger_is_promoted_on_rows_that_neither_model_saw_and_waits_to_be_published(
    site: Site, second_candidate: Saved
) -> None:
    site.restore(second_candidate)
    job = site.jobs()[-1]
    shown = site.ok("jobs", "show", job["id"])
    verdict = shown["result"]["verdict"]
    assert (shown["kind"], shown["outcome"], shown["children"]) == ("retrain", "promoted", [])
    assert shown["result"]["champion_version"] == "0.1.0"
    assert verdict["difference"] == pytest.approx(verdict["challenger"]["f1_macro"] - verdict["champion"]["f1_macro"])
    assert verdict["interval"][0] > 0
    trained = shown["result"]["trained"]
    assert (trained["mode"], trained["passes"], trained["window_share"]) == ("memory", None, None)
    assert trained["estimate_mb"] >= 300
    assert datetime.fromisoformat(verdict["heldout_from"]) > datetime.fromisoformat(shown["result"]["trained"]["until"])
    pointer = site.pointer()
    assert pointer is not None
    assert pointer.version == "0.1.0"
    assert left_in_snapshots(site.estate) == []


def test_two_models_are_retrained_and_published_side_by_side(site: Site) -> None:
    told = site.ok("retrain", "--all", "--parallel", "2")
    assert sorted(outcomes(told)) == [
        ("publish", "published"), ("publish", "published"), ("retrain", "promoted"), ("retrain", "promoted"),
    ]  # fmt: skip
    shown = [site.ok("jobs", "show", job["job_id"]) for job in told["jobs"] if job["kind"] == "retrain"]
    assert len({one["owner"]["pid"] for one in shown}) == 2
    claimed, ended = (
        [next(event["happened_at"] for event in one["events"] if event["edge"] == edge) for one in shown]
        for edge in ("claim", "complete")
    )
    assert max(claimed) < min(ended)
    metrics = {one["result"]["model"]: one["result"]["verdict"]["metric"] for one in shown}
    assert metrics == {"Churn": "f1_macro", "Spend": "r2"}
    with ServingClient(site.estate.serving.address, 20) as serving:
        assert serving.predict("Spend", {"tenure": 4}) == pytest.approx(15, abs=2)
        assert serving.predict("Churn", {"usage": 0.2, "tenure": 9}) == 1.0


def test_a_killed_process_of_those_side_by_side_ends_the_command_as_resumable_and_nothing_is_lost(site: Site) -> None:
    running = site.start("--json", "retrain", "--all", "--parallel", "2", "--no-publish")
    check = deadline()
    while [job["state"] for job in site.jobs()] != ["RUNNING"] * 2:
        check("two running jobs")
    pids = [site.ok("jobs", "show", job["id"])["owner"]["pid"] for job in site.jobs()]

    os.kill(pids[0], signal.SIGKILL)
    ended = running.wait()
    left = site.jobs()
    resumed = site.ok("jobs", "resume")

    assert ended.status == 75, ended
    assert "Traceback" not in ended.stderr
    assert running.pid not in pids
    assert {job["job_id"] for job in ended.told["jobs"]} == {job["job_id"] for job in left}
    [told] = [job for job in ended.told["jobs"] if job["job_id"] == left[0]["job_id"]]
    assert "was cut short: one of the processes side by side was killed" in told["error"]
    assert told["cure"].startswith(f"servicectl jobs resume {left[0]['id']}; or set training.memory_mb")
    assert left[0]["state"] == "INTERRUPTED"
    assert {job["job_id"]: job["outcome"] for job in resumed["jobs"]} == {
        job["job_id"]: "promoted" for job in left if job["state"] != "COMPLETED"
    }


def test_a_regression_on_real_rows_goes_the_same_way(site: Site) -> None:
    rides = ROOT / "tests/data/bike_sharing_hourly.parquet"
    site.configure(
        f"""
[models.Rides]
task = "regression"
label = "cnt"
features = ["hr", "temp", "hum", "workingday", "season"]
estimator = "sklearn.ensemble.HistGradientBoostingRegressor"
floors = {{ r2 = 0.5 }}
[models.Rides.source]
kind = "sql"
query = "SELECT * FROM read_parquet('{rides}')"
"""
    )
    told = site.ok("retrain", "Rides", "--window", "180d")
    assert outcomes(told) == [("retrain", "promoted"), ("publish", "published")]
    assert 4000 < result(told)["snapshot"]["rows"] <= 180 * 24
    verdict = result(told)["verdict"]
    assert verdict["metric"] == "r2"
    assert verdict["challenger"]["r2"] > 0.5
    with ServingClient(site.estate.serving.address, 20) as serving:
        answers = [
            serving.predict("Rides", {"hr": hour, "temp": 0.6, "hum": 0.5, "workingday": 1, "season": 3})
            for hour in (4, 17)
        ]
    assert answers[0] < 100 < answers[1]


def test_a_challenger_that_is_no_better_is_rejected_and_nothing_is_published(site: Site, published: Saved) -> None:
    site.restore(published)
    before = site.picture()
    ended = site.run("--json", "retrain", "Churn", "--detailed-exitcode")
    assert ended.status == 11, ended
    assert outcomes(ended.told) == [("retrain", "rejected")]
    assert "not better than the champion" in result(ended.told)["verdict"]["reason"]
    after = site.picture()
    assert {**after, "jobs": None} == {**before, "jobs": None}


def test_too_few_blocks_of_time_cannot_be_judged_and_end_in_3(site: Site, published: Saved) -> None:
    site.restore(published)
    ended = site.run("--json", "retrain", "Churn", GATE_MIN_BLOCKS="500")
    assert ended.status == 3, ended
    assert outcomes(ended.told) == [("retrain", "inconclusive")]
    assert "at least 500 are needed" in result(ended.told)["verdict"]["reason"]
    assert [job["kind"] for job in site.jobs()[2:]] == ["retrain"]


def test_a_frozen_handler_puts_a_first_retrain_off_and_its_floors_reject_it_later(site: Site) -> None:
    site.configure(MODELS.replace("[models.Spend]", "floors = { f1_macro = 0.999 }\n[models.Spend]"))
    site.estate.handler.process.send_signal(signal.SIGSTOP)
    try:
        ended = site.run("--json", "retrain", "Churn", HANDLER_TIMEOUT_S="0.5")
    finally:
        site.estate.handler.process.send_signal(signal.SIGCONT)
    assert ended.status == 75, ended
    [job] = ended.told["jobs"]
    assert job["state"] == "PENDING"
    assert "the DuckDB handler" in job["error"]
    told = site.ok("retrain", "Churn")
    assert told["jobs"][0]["job_id"] == job["job_id"]
    assert outcomes(told) == [("retrain", "rejected")]
    assert "below the floors" in result(told)["verdict"]["reason"]
    assert site.estate.tables()["model_metadata"] == []


@pytest.mark.parametrize(
    ("model_id", "said"),
    [
        ("Flat", "one class cannot be told apart"),
        ("Void", "no rows with the label 'nothing'"),
        ("Ghost", "no row has feature 'ghost'"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_one_clear_error(site: Site, model_id: str, said: str) -> None:
    site.configure(MODELS + BAD_MODELS)
    site.estate.more_rows(
        "INSERT INTO features_table SELECT entity_id, 'flat', 1.0, event_timestamp, created_at FROM features_table "
        "WHERE feature_name = 'tenure'"
    )
    ended = site.run("--json", "retrain", model_id)
    assert ended.status == 1, ended
    [job] = ended.told["jobs"]
    assert job["state"] == "FAILED"
    assert model_id in job["error"]
    assert said in job["error"]
    assert job["cure"]
    assert site.jobs()[0]["needs_operator"] is True
    assert left_in_snapshots(site.estate) == []
    assert not (site.folder / "artifacts").exists()


def test_an_unknown_model_is_a_usage_error_and_leaves_no_job(site: Site) -> None:
    ended = site.run("--json", "retrain", "Churn", "Nobody")
    assert ended.status == 2, ended
    told = json.loads(ended.stderr)
    assert "Nobody" in told["error"]
    assert "Churn, Spend" in told["error"]
    assert site.jobs() == []


@pytest.mark.parametrize("arguments", [(), ("Churn", "--all")])
def test_models_are_named_or_all_but_not_both(site: Site, arguments: tuple[str, ...]) -> None:
    assert site.run("retrain", *arguments).status == 2
    assert site.jobs() == []


def test_a_window_that_is_no_length_of_time_is_refused_before_anything_runs(site: Site) -> None:
    ended = site.run("retrain", "Churn", "--window", "soon")
    assert ended.status == 78, ended
    assert "--window" in ended.stderr
    assert site.jobs() == []


def test_a_snapshot_folder_that_is_not_shared_is_told_with_the_cure(site: Site, tmp_path: Path) -> None:
    settings = {"HANDLER_SNAPSHOT_FOLDER_HANDLER": str(tmp_path)}
    ended = site.run("--json", "retrain", "Churn", **settings)
    assert ended.status == 1, ended
    [job] = ended.told["jobs"]
    assert str(tmp_path) in job["error"]
    assert "handler.snapshot_folder" in job["cure"]
    examined = site.run("--json", "doctor", **settings)
    [check] = [check for check in examined.told["checks"] if check["party"] == "snapshot folder"]
    assert check["health"] == "failed"


@contextmanager
def miscounting_handler(estate: Estate) -> Iterator[str]:
    """A Redis database whose requests reach the real handler, and whose COPY counts come back one too high."""
    url = estate.redis.url.removesuffix("/0") + "/7"
    stop = threading.Event()

    def forward(front: Any, back: Any) -> None:
        while not stop.is_set():
            popped = front.blpop([READ_QUEUE], timeout=0.1)
            if popped is None:
                continue
            request = json.loads(popped[1])
            back.rpush(READ_QUEUE, popped[1])
            _, answer = back.blpop([request["response_key"]], timeout=30)
            told = json.loads(answer)
            if request["query"].startswith("COPY"):
                told["data"][0]["Count"] += 1
            front.rpush(request["response_key"], json.dumps(told))

    with redis.Redis.from_url(url) as front, redis.Redis.from_url(estate.redis.url) as back:
        thread = threading.Thread(target=forward, args=(front, back))
        thread.start()
        try:
            yield url
        finally:
            stop.set()
            thread.join()


def test_a_snapshot_that_does_not_hold_what_the_handler_counted_is_refused(site: Site) -> None:
    with miscounting_handler(site.estate) as url:
        site.configure(MODELS, redis=url)
        ended = site.run("--json", "retrain", "Churn")
    assert ended.status == 1, ended
    assert "the handler counted 2001 rows, the snapshot holds 2000" in ended.told["jobs"][0]["error"]


def test_a_champion_whose_bytes_are_not_on_record_is_refused_and_never_opened(
    site: Site, published: Saved, tmp_path: Path
) -> None:
    site.restore(published)
    trace = tmp_path / "opened"
    for name in ("Production", "0.1.0"):
        foreign_blob(site, f"Model_Churn/Model_Churn_{name}.pkl", pickle.dumps(Hostile(trace)))
    ended = site.run("--json", "retrain", "Churn")
    assert ended.status == 1, ended
    [job] = ended.told["jobs"]
    assert "digest" in job["error"]
    assert "Model_Churn_Production.pkl" in job["error"]
    assert not trace.exists()


def test_one_model_that_fails_does_not_stop_the_others(site: Site) -> None:
    site.configure(MODELS + BAD_MODELS)
    ended = site.run("--json", "retrain", "Void", "Ghost")
    assert ended.status == 1, ended
    assert [(job["scope"], job["state"]) for job in ended.told["jobs"]] == [
        ("retrain:Void", "FAILED"),
        ("retrain:Ghost", "FAILED"),
    ]
