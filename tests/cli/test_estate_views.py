"""doctor, models and init: what they show of a real estate."""

from __future__ import annotations

import signal
from importlib.metadata import version
from pathlib import Path

import pytest

from servicectl.config import load
from tests.parts import free_port
from tests.parts.estate import ALL_ROWS, MODELS, Saved, Site

PARTIES = [
    "configuration", "job store", "permissions", "Redis", "DuckDB handler", "view features", "feature rows",
    "Service C (analytics)", "Service B (serving)", "artifact store", "production blobs", "scikit-learn", "trust",
    "trial load", "snapshot folder", "timers",
]  # fmt: skip


def health(site: Site, party: str, expected_status: int, **settings: str) -> dict[str, str]:
    ended = site.run("--json", "doctor", **settings)
    assert ended.status == expected_status, ended
    [check] = [check for check in ended.told["checks"] if check["party"] == party]
    return dict(check)


def test_doctor_has_one_line_per_party_and_all_are_well(either_site: Site, published: Saved) -> None:
    site = either_site
    site.restore(published)
    checks = site.ok("doctor", SERVING_SCIKIT_LEARN=version("scikit-learn"))["checks"]
    assert [check["party"] for check in checks] == PARTIES
    assert {check["health"] for check in checks if check["party"] != "timers"} == {"ok"}
    printed = site.run("doctor").stdout
    assert [party for party in PARTIES if party not in printed] == []


def test_doctor_says_that_an_unknown_scikit_learn_is_not_compared(site: Site, published: Saved) -> None:
    site.restore(published)
    found = health(site, "scikit-learn", 0)
    assert (found["health"], "not compared" in found["says"]) == ("warning", True)
    assert "serving.scikit_learn" in found["cure"]


def test_doctor_names_the_party_that_is_down_and_what_to_type(site: Site) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    site.configure(MODELS, serving=nobody, analytics=nobody)
    for party in ("Service B (serving)", "Service C (analytics)"):
        found = health(site, party, 1)
        assert (found["health"], nobody in found["says"], bool(found["cure"])) == ("failed", True, True)
    assert health(site, "Service B (serving)", 1, SERVING_CANARY="try")["health"] == "warning"
    site.configure(MODELS, redis=f"redis://{nobody}/0")
    for party in ("Redis", "DuckDB handler", "view features"):
        found = health(site, party, 1)
        assert found["health"] == "failed"
        assert found["cure"]
    site.configure(MODELS)
    site.estate.handler.process.send_signal(signal.SIGSTOP)
    try:
        found = health(site, "DuckDB handler", 1, HANDLER_TIMEOUT_S="0.3")
    finally:
        site.estate.handler.process.send_signal(signal.SIGCONT)
    assert (found["health"], bool(found["cure"])) == ("failed", True)


def test_doctor_sees_a_missing_view_and_makes_it_when_told(site: Site) -> None:
    site.estate.sql("DROP VIEW features")
    found = health(site, "view features", 1)
    assert found["cure"] == "servicectl doctor --create-view"
    assert site.run("doctor", "--create-view").status == 0
    assert health(site, "view features", 0)["health"] == "ok"
    assert site.run("doctor", "--create-view").status == 0


def test_doctor_sees_an_emptied_redis_too_few_rows_and_an_interrupted_job(site: Site, published: Saved) -> None:
    site.restore(published)
    site.estate.client.delete("prod_models")
    found = health(site, "Redis", 0)
    assert (found["health"], found["cure"]) == ("warning", "servicectl sync-production")
    assert health(site, "feature rows", 0, DRIFT_MIN_ROWS="5000")["health"] == "warning"
    site.configure(MODELS + '[models.Ghost]\nlabel = "churned"\nfeatures = ["ghost"]\n')
    found = health(site, "feature rows", 1)
    assert "ghost" in found["says"]
    site.run("sync-production", crash_at="sync-production/remove/effect")
    found = health(site, "job store", 1)
    assert (found["health"], found["cure"]) == ("warning", "servicectl jobs resume")


def test_doctor_refuses_a_state_folder_that_everybody_may_write(site: Site) -> None:
    site.ok("drift-check")
    site.state.chmod(0o777)
    found = health(site, "permissions", 1)
    assert (found["health"], found["cure"]) == ("failed", f"chmod o-w {site.state}")


def test_doctor_tells_an_artifact_store_that_cannot_be_used(site: Site) -> None:
    site.url = f"file://{site.folder}/nowhere/artifacts"
    site.configure(MODELS)
    found = health(site, "artifact store", 1)
    assert found["health"] == "failed"
    assert "nowhere" in found["says"]


def test_models_tells_version_generation_job_and_whether_the_stores_agree(site: Site, published: Saved) -> None:
    site.restore(published)
    churn, spend = site.ok("models")["models"]
    pointer = site.pointer()
    assert pointer is not None
    assert (churn["model_id"], churn["version"], churn["generation"], churn["agree"]) == ("Churn", "0.1.0", 1, True)
    assert (churn["sha256"], churn["job"]) == (pointer.sha256, pointer.job_id)
    assert churn["registry_version"] == churn["serving_version"] == "0.1.0"
    assert churn["max_drift_score"] is None
    assert (spend["model_id"], spend["version"], spend["agree"]) == ("Spend", None, True)
    site.estate.rows(0, ALL_ROWS)
    site.run("drift-check", "--queue-only")
    assert site.ok("models")["models"][0]["max_drift_score"] > 1
    site.estate.client.flushall()
    churn = site.ok("models")["models"][0]
    assert (churn["serving_version"], churn["agree"]) == (None, False)
    assert "Redis -" in site.run("models").stdout


def test_models_shows_an_incumbent_from_before_servicectl_as_not_adopted(site: Site) -> None:
    from tests.actions.test_sync_production import incumbent

    incumbent(site, "Loan", b"bytes from before")
    site.ok("sync-production")
    [_, loan, _] = site.ok("models")["models"]
    assert (loan["model_id"], loan["version"], loan["registry_version"]) == ("Loan", None, "1.4.2")
    assert loan["serving_version"] == "1.4.2"
    assert "1.4.2 (not adopted)" in site.run("models").stdout


def test_init_writes_a_commented_configuration_that_loads_and_never_overwrites(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "new" / "servicectl.toml"
    ended = site.run("init", str(target))
    assert ended.status == 0, ended
    assert f"servicectl --config {target} doctor" in ended.stdout
    config = load(target, {})
    assert config.models == {}
    assert config.redis.url == "redis://localhost:6379/0"
    target.write_text("# mine\n")
    again = site.run("init", str(target))
    assert again.status == 2
    assert target.read_text() == "# mine\n"


@pytest.mark.parametrize("shown", ["[redis]", "[handler]", "[models.Coffee_Recommender]", "SERVICECTL_REDIS_URL"])
def test_the_written_configuration_explains_itself(site: Site, tmp_path: Path, shown: str) -> None:
    site.ok("init", str(tmp_path / "written.toml"))
    assert shown in (tmp_path / "written.toml").read_text()
