"""The demo's loop: a model is trained, drifts, is noticed, retrained, proven better, published and served."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from servicectl.cli.demo_estate import CREATE_VIEW, MODEL, DemoEstate, call
from servicectl.cli.demo_story import StageFailed, Story
from servicectl.miniature import data
from servicectl.miniature.estate import RedisKind

PLAN = (
    ("estate", "starting the estate"),
    ("sole-holder", "opening the feature store behind the handler's back"),
    ("old-calls", "storing the old calls"),
    ("first-model", "servicectl retrain: a first model"),
    ("sync-production", "servicectl sync-production"),
    ("first-predictions", "asking Service B"),
    ("check-before", "servicectl drift-check: before any new rows"),
    ("new-calls", "the newest calls arrive"),
    ("drift-found", "servicectl drift-check: notices, sounds the alarm, retrains, publishes"),
    ("alarm", "the alarm"),
    ("retrained", "the retrain that was queued"),
    ("published", "the publish"),
    ("second-predictions", "the same requests again"),
    ("stores", "what changed in the stores"),
)

_FIRST_NEW = data.TOTAL_ROWS - data.NEW_ROWS
_THROUGH_THE_QUEUE = 20
_UPLOADED = 12
_NO_TIME = "0001-01-01T00:00:00Z"  # what file uploads carry
_ASKED = range(data.TOTAL_ROWS - 1 - 7 * 500, data.TOTAL_ROWS, 500)
_BAD = ("WARNING", "CRITICAL")


def run(story: Story, folder: Path, redis: RedisKind) -> None:
    """The whole loop. Raises Stopped at the first stage that does not happen; the estate is stopped on the way out."""
    with ExitStack() as running:
        with story.stage("estate") as stage:
            at = running.enter_context(DemoEstate(folder, redis, "both"))
            stage.facts = {"folder": str(folder), "redis": at.estate.redis_told, "processes": sorted(at.estate.parts)}
        _past(story, at)
        before = _first_model(story, at)
        _nothing_yet(story, at)
        _new_calls(story, at)
        _noticed(story, at)
        _served(story, at, before)


def store_past(at: DemoEstate) -> dict[str, Any]:
    """The old calls in bulk, and the view `features`."""
    values = at.insert(0, data.OLD_ROWS)
    at.queue.run(CREATE_VIEW)
    first, last = _span(at)
    if values != data.OLD_ROWS * (len(data.FEATURES) + 1) or not at.registry.has_features_view():
        raise StageFailed(f"the handler stored {values} values", at.logs / "handler.log")
    return {"calls": data.OLD_ROWS, "values": values, "first": first, "last": last, "view": CREATE_VIEW}


def publish_first(at: DemoEstate) -> dict[str, Any]:
    """A model that has no champion: the floors decide, and it is published."""
    said = at.done("retrain", MODEL)
    retrain, publish = said.job("retrain"), said.job("publish")
    require(at, retrain["outcome"] == "promoted", f"the first model was {retrain['outcome']}")
    require(at, publish["outcome"] == "published", f"the first model's publish ended in {publish['outcome']}")
    return {**_verdict(retrain["result"]), **_published(publish["result"])}


def require(at: DemoEstate, held: bool, seen: str) -> None:
    if not held:
        raise StageFailed(seen, at.command_log)


def _past(story: Story, at: DemoEstate) -> None:
    with story.stage("sole-holder") as stage:
        opening = "import duckdb, sys; duckdb.connect(sys.argv[1], read_only=True)"
        tried = subprocess.run(
            [sys.executable, "-c", opening, str(at.estate.database)], capture_output=True, text=True, check=False
        )
        said = tried.stderr.strip().rpartition("\n")[2]
        refused = tried.returncode != 0 and "lock" in said
        require(at, refused, f"another process could open {at.estate.database.name}, or failed otherwise: {said}")
        stage.facts = {"database": at.estate.database.name, "refused": said}
    with story.stage("old-calls") as stage:
        stage.facts = store_past(at)


def _first_model(story: Story, at: DemoEstate) -> list[int]:
    """The first model in production; what it answers to the fixed calls."""
    with story.stage("first-model") as stage:
        stage.facts = publish_first(at)
    with story.stage("sync-production") as stage:
        synced = at.done("sync-production").job("sync-production")
        models = synced["result"]["models"]
        require(at, set(models) == {MODEL}, f"sync-production saw {sorted(models)}")
        stage.facts = {"models": models}
    with story.stage("first-predictions") as stage:
        stage.facts = _asked(at)
        return list(stage.facts["answers"])


def _nothing_yet(story: Story, at: DemoEstate) -> None:
    with story.stage("check-before") as stage:
        said = at.done("drift-check")
        result = said.job("drift-check")["result"]
        decisions = _of_features(result)
        found = [one["feature"] for one in decisions if one["verdict"] != "PASS"]
        require(at, len(decisions) == len(data.FEATURES), f"only {len(decisions)} features were measured")
        require(at, not found, f"drift was found before any new row, in {', '.join(found)}")
        require(at, not result["retrain"] and len(said.told["jobs"]) == 1, "a retrain was queued before any new row")
        same = sum(one["same_figures"] for one in result["agreements"])
        told = f"Service C and the builtin statistics have the same figures for {same} of {len(decisions)} features"
        require(at, same == len(decisions), told)
        spoken = [one for one in decisions if one["status"] in _BAD]
        stage.facts = {
            "measured": len(decisions),
            "found": 0,
            "queued": 0,
            "service_c_says": {status: sum(one["status"] == status for one in spoken) for status in _BAD},
            "not_followed_because": sorted({one["reason"] for one in spoken}),
            "same_figures": same,
        }


def _new_calls(story: Story, at: DemoEstate) -> None:
    with story.stage("new-calls") as stage:
        by_queue = data.rows_as_entries(_FIRST_NEW, _FIRST_NEW + _THROUGH_THE_QUEUE)
        uploads = [
            {**entry, "data": {**entry["data"], "event_timestamp": _NO_TIME}}
            for entry in data.rows_as_entries(data.OLD_ROWS, data.OLD_ROWS + _UPLOADED)
        ]
        started = time.monotonic()
        pushed = at.push([*by_queue, *uploads])
        bulk = at.insert(_FIRST_NEW + _THROUGH_THE_QUEUE, data.TOTAL_ROWS)
        at.wait_for_values(sorted({entry["data"]["entity_id"] for entry in (*by_queue, *uploads)}), pushed)
        waited = time.monotonic() - started
        wanted = (data.NEW_ROWS - _THROUGH_THE_QUEUE) * (len(data.FEATURES) + 1)
        if bulk != wanted:
            raise StageFailed(f"the handler stored {bulk} of {wanted} values", at.logs / "handler.log")
        stage.facts = {
            "calls": data.NEW_ROWS + _UPLOADED,
            "by_write_queue": _THROUGH_THE_QUEUE,
            "by_handler": data.NEW_ROWS - _THROUGH_THE_QUEUE,
            "without_time": _UPLOADED,
            "last": _span(at)[1],
            "visible_after_seconds": round(waited, 1),
        }


def _noticed(story: Story, at: DemoEstate) -> None:
    """One command does all of it; each job's own time is the stage's."""
    with story.stage("drift-found") as stage:
        said = at.done("drift-check")
        took = {job["kind"]: _seconds(job) for job in at.jobs()[-3:]}
        check = said.job("drift-check")
        result = check["result"]
        stage.seconds = said.seconds - took["retrain"] - took["publish"]
        stage.facts = {
            "outcome": check["outcome"],
            "job": check["job_id"],
            "features": [
                {name: one[name] for name in ("feature", "psi", "ks_stat", "status", "verdict", "reason")}
                for one in _of_features(result)
            ],
            "service_c": {one["feature"]: one["service_c_psi"] for one in result["agreements"]},
            "beside": {one["feature"]: one["verdict"] for one in result["decisions"] if _is_beside(one["feature"])},
            "decay": [one["decay"] for one in result["decay"]],
            "values_without_time_left_out": result["rows_without_time"],
            "retrain_queued_for": result["retrain"].get(MODEL, []),
        }
        require(at, check["outcome"] == "drift" and MODEL in result["retrain"], "the newest rows raised no drift")
        require(
            at, result["rows_without_time"] == _UPLOADED * len(data.FEATURES), "the uploaded rows were not left out"
        )
    with story.stage("alarm") as stage:
        sounded = [line for line in said.story.splitlines() if line.startswith("ALARM")]
        stored = [alarm.feature for alarm in at.alarms() if alarm.verdict == "CRITICAL"]
        features = sorted(feature for feature in stored if not _is_beside(feature))
        stage.facts = {"sounded": len(sounded), "stored": len(stored), "features": features}
        require(at, 0 < len(sounded) == len(stored), f"{len(sounded)} alarms sounded, {len(stored)} stored")
    with story.stage("retrained") as stage:
        stage.seconds = took["retrain"]
        retrain = said.job("retrain")
        result = retrain["result"]
        stage.facts = {
            "outcome": retrain["outcome"],
            "champion_version": result["champion_version"],
            **_verdict(result),
        }
        champion, challenger = stage.facts["champion"], stage.facts["challenger"]
        metric = stage.facts["metric"]
        require(
            at, retrain["outcome"] == "promoted", f"the challenger was {retrain['outcome']}: {stage.facts['reason']}"
        )
        require(at, champion and challenger[metric] > champion[metric], f"the challenger's {metric} is not better")
    with story.stage("published") as stage:
        stage.seconds = took["publish"]
        publish = said.job("publish")
        stage.facts = _published(publish["result"])
        require(at, publish["outcome"] == "published", f"the publish ended in {publish['outcome']}")


def _served(story: Story, at: DemoEstate, before: list[int]) -> None:
    with story.stage("second-predictions") as stage:
        stage.facts = {**_asked(at), "answers_before": before}
        first = next(one for one in story.stages if one.name == "first-predictions").facts
        require(at, stage.facts["version"] != first["version"], "the same version answered as before")
    with story.stage("stores") as stage:
        stage.facts = _stores(at)
        require(at, stage.facts["agree"], "artifact store, registry and Redis do not say the same")


def _asked(at: DemoEstate) -> dict[str, Any]:
    """Fixed real calls, over gRPC; whoever answered must be the model that the pointer names."""
    calls = [call(row) for row in _ASKED]
    answers = at.answers(calls)
    pointer, served = at.pointer(), at.served_sha256()
    if served != pointer.sha256:
        seen = f"Service B answered with {served[:12]}, the pointer names {pointer.sha256[:12]} ({pointer.version})"
        raise StageFailed(seen, at.logs / "serving.log")
    truth = [round(one[data.LABEL]) for one in calls]
    rows = list(_ASKED)
    return {"calls": rows, "answers": answers, "happened_then": truth, "version": pointer.version, "sha256": served}


def _of_features(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in result["decisions"] if not _is_beside(one["feature"])]


def _is_beside(feature: str) -> bool:
    """About the champion's score, its labels or its answers."""
    return feature.startswith("(")


def _verdict(result: dict[str, Any]) -> dict[str, Any]:
    verdict = result["verdict"]
    return {
        "metric": verdict["metric"],
        "champion": verdict.get("champion"),
        "challenger": verdict["challenger"],
        "judged_on_rows": verdict["rows"],
        "trained_on_rows": result["trained"]["rows"],
        "reason": verdict["reason"],
    }


def _published(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result.get(name) for name in ("version", "generation", "replaces", "sha256", "serving")}


def _seconds(job: dict[str, Any]) -> float:
    began, ended = (datetime.fromisoformat(job[name]) for name in ("created_at", "finished_at"))
    return (ended - began).total_seconds()


def _span(at: DemoEstate) -> tuple[str, str]:
    """The days of the oldest and the newest call that has a time."""
    told = at.queue.read(
        "SELECT CAST(CAST(min(event_timestamp) AS DATE) AS VARCHAR) AS first, "
        "CAST(CAST(max(event_timestamp) AS DATE) AS VARCHAR) AS last "
        "FROM features_table WHERE year(event_timestamp) > 1"
    )[0]
    return told["first"], told["last"]


def _stores(at: DemoEstate) -> dict[str, Any]:
    import redis

    models = at.done("models").told["models"]
    rows = at.registry.rows(MODEL)
    counts = at.queue.read(
        "SELECT (SELECT count(*) FROM drift_results) AS drift_results, "
        "(SELECT count(*) FROM model_baselines) AS model_baselines, "
        "(SELECT count(*) FROM features_table) AS features_table"
    )[0]
    with redis.Redis.from_url(at.estate.redis_url) as client:
        keys = sorted(bytes(key).decode() for key in client.scan_iter())
        events = client.xlen("model_events")
    files = sorted(path for path in at.artifacts.rglob("*") if path.is_file() and ".servicectl" not in path.parts)
    return {
        "agree": bool(models) and all(model["agree"] for model in models),
        "files": {str(path.relative_to(at.artifacts)): path.stat().st_size for path in files},
        "registry": [
            {
                "version": row.version,
                "status": row.status,
                "trained": str(row.trained_date),
                "worst_drift_score": max(
                    (f.drift_score for f in row.expected_features if f.drift_score is not None), default=None
                ),
            }
            for row in sorted(rows, key=lambda row: row.version)
        ],
        "rows": counts,
        "redis": {"keys": keys, "model_events": events},
        "jobs": [{name: job[name] for name in ("id", "kind", "state", "outcome")} for job in at.jobs()],
    }
