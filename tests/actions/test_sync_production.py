from __future__ import annotations

import hashlib
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest

from servicectl.estate.artifacts import names
from servicectl.jobs.locks import Locks
from tests.parts.estate import ALL_ROWS, Saved, Site, outcomes


def synced(told: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = told["jobs"][-1]["result"]
    return result


class Hostile:
    """A pickle that leaves a trace naming each process that opens it."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self._trace)!r}, 'a').write(open('/proc/self/cmdline').read() + '\\n')",))


def foreign_blob(site: Site, name: str, content: bytes) -> None:
    """Written as a program does that knows nothing of servicectl."""
    if site.connection_string:
        with site.estate.azurite.service() as service:
            container = site.url.removeprefix("azure://")
            service.get_blob_client(container, name).upload_blob(content, overwrite=True)
        return
    path = Path(site.url.removeprefix("file://")) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def incumbent(site: Site, model_id: str, content: bytes, version: str = "1.4.2") -> None:
    """A model in production from before servicectl: a row and a blob, no pointer, no digest."""
    foreign_blob(site, names.production(f"Model_{model_id}/", model_id, "pkl"), content)
    registered(site, model_id, version)


def registered(site: Site, model_id: str, version: str, status: str = "production") -> None:
    site.estate.sql(
        "INSERT INTO model_metadata (model_id, artifact_type, version, trained_date, status, azure_location, expected_features, "
        f"created_at) VALUES ('{model_id}', 'pkl', '{version}', DATE '2024-01-01', '{status}', 'Model_{model_id}/', "
        "[{'index': 0, 'name': 'tenure', 'type': 'int', 'drift_score': 0.5}], TIMESTAMP '2024-01-01')"
    )


def test_an_emptied_redis_gets_everything_back_and_a_full_one_is_left_alone(
    either_site: Site, published: Saved
) -> None:
    site = either_site
    site.restore(published)
    before = site.served()
    site.estate.client.flushall()
    assert synced(site.ok("sync-production"))["models"] == {"Churn": "written"}
    assert site.served() == before
    [event] = site.events()
    assert (event["load"]["version"], event["drop"], event["generation"]) == ("0.1.0", None, 1)
    assert synced(site.ok("sync-production"))["models"] == {"Churn": "unchanged"}
    assert len(site.events()) == 1


def test_a_tampered_production_body_is_never_served(either_site: Site, published: Saved, tmp_path: Path) -> None:
    site = either_site
    site.restore(published)
    pointer = site.pointer()
    assert pointer is not None
    trace = tmp_path / "opened"
    foreign_blob(site, "Model_Churn/Model_Churn_Production.pkl", pickle.dumps(Hostile(trace)))
    site.estate.client.flushall()
    assert synced(site.ok("sync-production"))["models"] == {"Churn": "written"}
    served = site.served()
    assert served is not None
    assert served["artifact"] == pointer.sha256
    assert not trace.exists()


def test_a_model_without_any_verified_bytes_is_named_and_does_not_hold_up_the_others(
    site: Site, published: Saved, tmp_path: Path
) -> None:
    site.restore(published)
    trace = tmp_path / "opened"
    for name in ("Production", "0.1.0"):
        foreign_blob(site, f"Model_Churn/Model_Churn_{name}.pkl", pickle.dumps(Hostile(trace)))
    incumbent(site, "Loan", b"bytes from before")
    before = site.served()
    ended = site.run("--json", "sync-production")
    assert ended.status == 1, ended
    assert outcomes(ended.told) == [("sync-production", "partly-synced")]
    assert synced(ended.told)["models"] == {"Loan": "written"}
    assert "digest" in synced(ended.told)["failed"]["Churn"]
    assert site.served() == before
    assert site.served("Loan") is not None
    assert not trace.exists()


def test_a_registry_row_without_any_artifact_is_named(site: Site) -> None:
    registered(site, "Loan", "1.0.0")
    ended = site.run("--json", "sync-production")
    assert ended.status == 1, ended
    assert "has no artifact of it" in synced(ended.told)["failed"]["Loan"]
    assert site.served("Loan") is None


def test_an_incumbent_from_before_servicectl_is_served_as_it_is_and_not_opened(
    either_site: Site, tmp_path: Path
) -> None:
    site = either_site
    trace = tmp_path / "opened"
    content = pickle.dumps(Hostile(trace))
    incumbent(site, "Loan", content)
    assert synced(site.ok("sync-production"))["models"] == {"Loan": "written"}
    served = site.served("Loan")
    assert served is not None
    assert served["artifact"] == hashlib.sha256(content).hexdigest()
    assert (served["metadata"]["version"], served["metadata"]["generation"], served["named"]) == ("1.4.2", 0, True)
    assert served["metadata"]["expected_features"][0]["drift_score"] == 0.5
    assert synced(site.ok("sync-production"))["models"] == {"Loan": "unchanged"}
    # Service B may open what is in production; we never do.
    opened = trace.read_text().split("\n") if trace.exists() else []
    assert [line for line in opened if line and "servicectl.miniature.serving" not in line] == []


def test_deprecated_names_are_withdrawn_and_unknown_ones_stay_until_told(site: Site, published: Saved) -> None:
    site.restore(published)
    incumbent(site, "Loan", b"bytes from before")
    site.ok("sync-production")
    site.estate.sql("UPDATE model_metadata SET status = 'deprecated' WHERE model_id = 'Loan'")
    site.estate.client.sadd("prod_models", "Stranger")
    ended = site.run("--json", "sync-production")
    assert ended.status == 0, ended
    assert synced(ended.told)["removed"] == ["Loan"]
    assert "Stranger" in ended.stderr
    assert "--allow-remove" in ended.stderr
    assert site.served("Loan") is None
    assert site.estate.client.smembers("prod_models") == {b"Churn", b"Stranger"}
    [loaded, dropped] = site.events("Loan")
    assert (loaded["load"]["version"], dropped["load"]) == ("1.4.2", None)
    assert synced(site.ok("sync-production", "--allow-remove"))["removed"] == ["Stranger"]
    assert site.estate.client.smembers("prod_models") == {b"Churn"}


def test_a_sync_that_died_after_withdrawing_a_model_still_tells_that_it_did(site: Site, published: Saved) -> None:
    site.restore(published)
    incumbent(site, "Loan", b"bytes from before")
    site.ok("sync-production")
    site.estate.sql("UPDATE model_metadata SET status = 'deprecated' WHERE model_id = 'Loan'")
    assert site.run("sync-production", crash_at="sync-production/remove/effect").status == -signal.SIGKILL
    assert site.served("Loan") is None
    assert synced(site.ok("jobs", "resume"))["removed"] == ["Loan"]
    assert len(site.events("Loan")) == 2


def test_a_model_that_is_back_in_production_when_a_sync_is_resumed_is_not_withdrawn(
    site: Site, published: Saved
) -> None:
    site.restore(published)
    incumbent(site, "Loan", b"bytes from before")
    site.ok("sync-production")
    before = site.served("Loan")
    site.estate.sql("UPDATE model_metadata SET status = 'deprecated' WHERE model_id = 'Loan'")
    assert site.run("sync-production", crash_at="sync-production/remove/before").status == -signal.SIGKILL
    site.estate.sql("UPDATE model_metadata SET status = 'production' WHERE model_id = 'Loan'")
    assert synced(site.ok("jobs", "resume"))["removed"] == []
    assert site.served("Loan") == before


@pytest.mark.parametrize("evidence", ["UPDATE model_metadata SET status = 'deprecated'", "DELETE FROM model_metadata"])
def test_nothing_is_removed_when_nothing_would_be_left(site: Site, published: Saved, evidence: str) -> None:
    site.restore(published)
    before = site.served()
    site.estate.sql(evidence)
    ended = site.run("--json", "sync-production")
    assert ended.status == 3, ended
    assert outcomes(ended.told) == [("sync-production", "no-production-models")]
    assert synced(ended.told)["removed"] == []
    assert "Churn" in ended.stderr
    assert site.served() == before
    assert synced(site.ok("sync-production", "--allow-remove"))["removed"] == ["Churn"]
    assert site.served() is None


def test_where_registry_and_pointer_disagree_the_registry_follows(site: Site, published: Saved) -> None:
    site.restore(published)
    site.estate.sql("UPDATE model_metadata SET status = 'deprecated' WHERE version = '0.1.0'")
    registered(site, "Churn", "0.0.9")
    site.estate.client.flushall()
    ended = site.run("--json", "sync-production")
    assert ended.status == 0, ended
    assert "0.1.0" in ended.stderr
    rows = site.estate.tables()["model_metadata"]
    assert [(row["version"], row["status"]) for row in rows] == [("0.0.9", "deprecated"), ("0.1.0", "production")]
    served = site.served()
    assert served is not None
    assert served["metadata"]["version"] == "0.1.0"


def test_several_production_rows_without_a_pointer_are_not_guessed_between(site: Site) -> None:
    incumbent(site, "Loan", b"bytes from before")
    registered(site, "Loan", "1.4.3")
    ended = site.run("--json", "sync-production")
    assert ended.status == 1, ended
    assert "artifacts adopt Loan --version" in synced(ended.told)["failed"]["Loan"]
    assert site.served("Loan") is None


def test_a_registry_row_out_of_shape_is_told_and_does_not_hold_up_the_others(site: Site, published: Saved) -> None:
    site.restore(published)
    site.estate.client.flushall()
    site.estate.sql("INSERT INTO model_metadata (model_id, version, status) VALUES ('Loan', NULL, 'production')")
    ended = site.run("--json", "sync-production")
    assert ended.status == 1, ended
    assert synced(ended.told)["models"] == {"Churn": "written"}
    assert any("Loan" in why for why in synced(ended.told)["failed"].values())


def test_a_model_that_another_process_publishes_is_left_alone(site: Site, published: Saved) -> None:
    site.restore(published)
    site.estate.client.flushall()
    with Locks(site.state / "locks").held("serving:Churn"):
        assert synced(site.ok("sync-production"))["models"] == {"Churn": "busy"}
    assert site.served() is None


def test_a_publish_that_died_is_finished_first(either_site: Site, second_candidate: Saved) -> None:
    site = either_site
    site.restore(second_candidate)
    site.estate.rows(0, ALL_ROWS)
    died = site.run("publish", "Churn", crash_at="publish/swap/effect")
    assert died.status == -signal.SIGKILL, died
    told = site.ok("sync-production")
    assert outcomes(told) == [("publish", "published"), ("sync-production", "synced")]
    assert synced(told)["models"] == {"Churn": "unchanged"}
    served = site.served()
    assert served is not None
    assert (served["metadata"]["version"], served["metadata"]["generation"]) == ("0.1.1", 2)


def test_an_unreachable_redis_leaves_a_job_that_one_later_command_finishes(site: Site, published: Saved) -> None:
    from tests.parts import free_port
    from tests.parts.estate import MODELS

    site.restore(published)
    site.configure(MODELS, redis=f"redis://127.0.0.1:{free_port()}/0")
    for attempt in (1, 2):
        ended = site.run("--json", "sync-production")
        assert ended.status == 75, ended
        [job] = ended.told["jobs"]
        assert (job["state"], job["attempts"]) == ("PENDING", attempt)
        assert job["error"].startswith("Redis is not available")
    site.configure(MODELS)
    told = site.ok("sync-production")
    assert told["jobs"][0]["job_id"] == job["job_id"]
    assert {one["outcome"] for one in told["jobs"]} == {"synced"}
