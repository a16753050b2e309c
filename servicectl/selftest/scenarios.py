"""What is killed: for every kind of job a beginning and a command, most beginning where another one ended."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from servicectl.selftest import rows
from servicectl.selftest.site import Site

RESUME = ("jobs", "resume")


@dataclass(frozen=True)
class Scenario:
    """One command on one beginning.

    `begins` names the scenario at whose undisturbed end this one begins, None for an empty estate; `arrange` changes
    that before the beginning is saved. `before` runs after each return to the beginning and gives the last words of
    `command`. `busy` scopes are held by somebody else, so that a child stays queued: it has a scenario of its own.
    `at_random_only`: its boundaries are those of others.
    """

    name: str
    command: tuple[str, ...]
    begins: str | None = None
    arrange: Callable[[Site], None] | None = None
    before: Callable[[Site], Sequence[str]] | None = None
    busy: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    at_random_only: bool = False

    @property
    def submits(self) -> bool:
        """Whether the command stores a job of its own; a kill before that leaves nothing to resume."""
        return self.command != RESUME


def _with_an_incumbent(site: Site) -> None:
    """A model from before servicectl, which is served."""
    site.place.put("Model_Legacy/Model_Legacy_Production.pkl", pickle.dumps("from before"))
    site.place.put("Model_Legacy/Model_Legacy_Production.json", b'{"tenure": {"mean": 4.5}}')
    site.sql(
        "INSERT INTO model_metadata (model_id, artifact_type, version, trained_date, model_drift_score, status, "
        "azure_location, expected_features, created_at) VALUES ('Legacy', 'pkl', '2.3.0', DATE '2024-02-01', NULL, "
        "'production', 'Model_Legacy/', [{'index': 0, 'name': 'tenure', 'type': 'int', 'drift_score': NULL}], "
        "TIMESTAMP '2024-02-01')"
    )
    site.done("sync-production")


def _with_new_rows(site: Site) -> None:
    site.feature_rows(0, rows.ALL)


def _with_an_undelivered_alarm(site: Site) -> None:
    site.feature_rows(0, rows.ALL)
    site.sink.unlink()
    site.done("drift-check", "--queue-only", DRIFT_RETRAIN="never")
    site.sink.touch()


def _with_a_challenger(site: Site) -> None:
    """A promoted challenger that nobody publishes yet."""
    for job in site.done("jobs", "list", "--unfinished")["jobs"]:
        site.done("jobs", "cancel", job["id"])


def _with_a_held_publish(site: Site) -> None:
    _with_a_challenger(site)
    site.done("publish", "Churn", "--hold")


def _out_of_step(site: Site) -> None:
    """Redis came back with one withdrawn model only, and the registry is one version behind the pointer."""
    site.redis.flushall()
    site.redis.sadd("prod_models", "Gone")
    site.redis.set("model_metadata:Gone", json.dumps({"model_id": "Gone", "version": "1.0.0", "artifact_type": "pkl"}))
    site.redis.set("model:Gone:pkl", pickle.dumps("gone"))
    site.sql(
        "INSERT INTO model_metadata SELECT * REPLACE ('Gone' AS model_id, '1.0.0' AS version, 'deprecated' AS status) "
        "FROM model_metadata WHERE model_id = 'Legacy'",
        "UPDATE model_metadata SET status = CASE version WHEN '0.1.0' THEN 'production' ELSE 'staging' END "
        "WHERE model_id = 'Churn'",
    )


def _plan(site: Site) -> Sequence[str]:
    path = site.folder / "plan.json"
    path.write_text(json.dumps(site.done("publish", "Churn", "--plan")))
    return (str(path),)


def _held(site: Site) -> Sequence[str]:
    held = [job["id"] for job in site.done("jobs", "list", "--all")["jobs"] if job["outcome"] == "held"]
    return (held[0],)


SCENARIOS = (
    Scenario(
        "first retrain", ("retrain", "Churn"), arrange=_with_an_incumbent, busy=("serving:Churn",)
    ),  # its publish stays queued
    Scenario("its publish", RESUME, begins="first retrain"),
    Scenario("artifacts adopt", ("artifacts", "adopt", "Legacy"), arrange=_with_an_incumbent),
    Scenario(
        "retrain in blocks",
        ("retrain", "Blocks", "--no-publish"),
        arrange=_with_an_incumbent,
        environment={"TRAINING_PASSES": "2"},
    ),
    Scenario("drift-check", ("drift-check",), begins="its publish", arrange=_with_new_rows, busy=("retrain:Churn",)),
    Scenario("deliver-alarms", RESUME, begins="its publish", arrange=_with_an_undelivered_alarm),
    Scenario("drift-check's retrain", RESUME, begins="drift-check", busy=("serving:Churn",)),
    Scenario("that retrain's publish", RESUME, begins="drift-check's retrain"),
    Scenario("publish", ("publish", "Churn"), begins="drift-check's retrain", arrange=_with_a_challenger),
    Scenario(
        "publish --apply",
        ("publish", "Churn", "--apply"),
        begins="drift-check's retrain",
        arrange=_with_a_challenger,
        before=_plan,
    ),
    Scenario("approve", ("approve",), begins="drift-check's retrain", arrange=_with_a_held_publish, before=_held),
    Scenario("rollback", ("rollback", "Churn"), begins="that retrain's publish"),
    Scenario("sync-production", ("sync-production",), begins="that retrain's publish", arrange=_out_of_step),
    Scenario(
        "drift-check to publish",
        ("drift-check",),
        begins="its publish",
        arrange=_with_new_rows,
        at_random_only=True,
    ),
)
