from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from servicectl.estate.artifacts import names
from tests.actions.test_sync_production import foreign_blob, incumbent
from tests.parts import free_port
from tests.parts.estate import MODELS, Saved, Site, outcomes
from tests.parts.wrong_serving import wrong_serving


def told_by(site: Site, *arguments: str, status: int, **settings: str) -> dict[str, Any]:
    ended = site.run("--json", *arguments, **settings)
    assert ended.status == status, ended
    return ended.told


def versions(site: Site) -> list[tuple[str, str]]:
    return [(row["version"], row["status"]) for row in site.estate.tables()["model_metadata"]]


def beside(site: Site, saved: Saved) -> Site:
    """Another installation on the same estate and artifact store, with its own memory of what it trained."""
    other = Site(site.estate, site.folder.parent / "other", site.url, connection_string=site.connection_string)
    shutil.copytree(saved.folder / "state", other.state)
    return other


def test_a_first_model_is_published_to_every_store(either_site: Site, first_candidate: Saved) -> None:
    site = either_site
    site.restore(first_candidate)
    told = site.ok("publish", "Churn")
    assert outcomes(told) == [("publish", "published")]
    result = told["jobs"][0]["result"]
    assert result["serving"] == "Service B answered 24 canary rows with our numbers"
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version, pointer.name) == (1, "0.1.0", "Model_Churn/Model_Churn_0.1.0.pkl")
    blobs = site.blobs()
    assert set(blobs) == {
        f"Model_Churn/Model_Churn_{end}"
        for end in (
            "0.1.0.canary.json", "0.1.0.json", "0.1.0.manifest.json", "0.1.0.parquet", "0.1.0.pkl",
            "Production.json", "Production.pkl",
        )
    }  # fmt: skip
    assert (
        blobs["Model_Churn/Model_Churn_Production.pkl"] == blobs["Model_Churn/Model_Churn_0.1.0.pkl"] == pointer.sha256
    )
    manifest = blobs["Model_Churn/Model_Churn_0.1.0.manifest.json"]
    assert (manifest["version"], manifest["model"]["sha256"]) == ("0.1.0", pointer.sha256)
    assert blobs["Model_Churn/Model_Churn_Production.json"]["baseline"] == blobs["Model_Churn/Model_Churn_0.1.0.json"]
    [row] = site.estate.tables()["model_metadata"]
    assert (row["version"], row["status"], row["model_drift_score"]) == ("0.1.0", "production", None)
    assert "'drift_score': NULL" in row["features"]
    assert [row["version"] for row in site.estate.tables()["model_baselines"]] == ["0.1.0"]
    served = site.served()
    assert served is not None
    assert (served["artifact"], served["named"]) == (pointer.sha256, True)
    features = [(one["index"], one["name"], one["type"]) for one in served["metadata"]["expected_features"]]
    assert features == [(0, "tenure", "int"), (1, "usage", "float")]
    [event] = site.events()
    assert (event["load"]["version"], event["drop"], event["generation"]) == ("0.1.0", None, 1)
    again = site.run("--json", "publish", "Churn")
    assert again.status == 2
    assert "in production already (version 0.1.0)" in json.loads(again.stderr)["error"]


def test_of_two_publishes_judged_against_one_generation_the_later_is_superseded(
    either_site: Site, second_candidate: Saved
) -> None:
    site = either_site
    site.restore(second_candidate)
    other = beside(site, second_candidate)
    died = site.run("publish", "Churn", crash_at="publish/archive/effect")
    assert died.status == -signal.SIGKILL, died
    told = other.ok("publish", "Churn")
    # 0.1.1 is reserved by the one that died.
    assert told["jobs"][0]["result"]["version"] == "0.1.2"
    before = {**site.picture(), "jobs": None}
    late = told_by(site, "jobs", "resume", status=1)
    assert outcomes(late) == [("publish", "superseded")]
    assert "0.1.2 (generation 2)" in late["jobs"][0]["result"]["in_production"]
    assert {**site.picture(), "jobs": None} == before
    assert versions(site) == [("0.1.0", "deprecated"), ("0.1.1", "staging"), ("0.1.2", "production")]


@pytest.mark.parametrize(("step", "winner"), [("swap", "0.1.2"), ("point", "0.1.1")])
def test_two_publishes_that_meet_in_the_middle_leave_one_complete_winner(
    either_site: Site, second_candidate: Saved, step: str, winner: str
) -> None:
    site = either_site
    site.restore(second_candidate)
    other = beside(site, second_candidate)
    died = site.run("publish", "Churn", crash_at=f"publish/{step}/effect")
    assert died.status == -signal.SIGKILL, died
    other.run("publish", "Churn")
    site.run("jobs", "resume")
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (2, winner)
    assert [version for version, status in versions(site) if status == "production"] == [winner]
    served = site.served()
    assert served is not None
    assert (served["metadata"]["version"], served["artifact"]) == (winner, pointer.sha256)


def test_a_number_that_a_blob_or_a_row_has_is_not_given_again(site: Site, first_candidate: Saved) -> None:
    site.restore(first_candidate)
    site.store.create(names.versioned("Model_Churn/", "Churn", "0.4.6", "pkl"), b"an upload that was given up", {})
    site.estate.sql(
        "INSERT INTO model_metadata (model_id, version, status, artifact_type) VALUES ('Churn', '0.4.7', 'deprecated', 'pkl')"
    )
    assert site.ok("publish", "Churn")["jobs"][0]["result"]["version"] == "0.4.8"


def test_a_wrong_answer_before_the_swap_rejects_and_touches_nothing_that_is_served(
    either_site: Site, second_candidate: Saved
) -> None:
    site = either_site
    site.restore(second_candidate)
    before = site.picture()
    with wrong_serving(site.estate.serving.address, lambda name: ".candidate." in name) as address:
        site.configure(MODELS, serving=address)
        told = told_by(site, "publish", "Churn", status=1)
    assert outcomes(told) == [("publish", "rejected-by-canary")]
    assert "canary row 1, expected" in told["jobs"][0]["result"]["serving"]
    after = site.picture()
    for untouched in ("served", "events", "keys"):
        assert after[untouched] == before[untouched]
    for name in ("Production.pkl", "Production.json"):
        assert after["blobs"][f"Model_Churn/Model_Churn_{name}"] == before["blobs"][f"Model_Churn/Model_Churn_{name}"]
    assert versions(site) == [("0.1.0", "production"), ("0.1.1", "staging")]


def test_a_wrong_answer_after_the_swap_is_undone_under_a_higher_generation(
    either_site: Site, second_candidate: Saved
) -> None:
    site = either_site
    site.restore(second_candidate)
    before = site.served()
    assert before is not None
    with wrong_serving(site.estate.serving.address, lambda name: name == "Churn") as address:
        site.configure(MODELS, serving=address)
        told = told_by(site, "publish", "Churn", status=1, SERVING_TIMEOUT_S="1")
    assert outcomes(told) == [("publish", "undone")]
    assert "0.1.0 is back in production as generation 3" in told["jobs"][0]["result"]["serving"]
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (3, "0.1.0")
    assert site.blobs()["Model_Churn/Model_Churn_Production.pkl"] == pointer.sha256 == before["artifact"]
    assert versions(site) == [("0.1.0", "production"), ("0.1.1", "deprecated")]
    after = site.served()
    assert after is not None
    assert after["artifact"] == before["artifact"]
    assert (after["metadata"]["version"], after["metadata"]["generation"]) == ("0.1.0", 3)
    assert [(event["generation"], event["load"]["version"]) for event in site.events()] == [(2, "0.1.1"), (3, "0.1.0")]
    site.configure(MODELS)
    assert site.ok("sync-production")["jobs"][-1]["result"]["models"] == {"Churn": "unchanged"}


def test_a_service_b_that_goes_on_answering_as_the_old_model_is_noticed_and_the_publish_undone(
    either_site: Site, second_candidate: Saved
) -> None:
    site = either_site
    site.restore(second_candidate)
    site.estate.client.set("model:Old:pkl", site.store.read("Model_Churn/Model_Churn_0.1.0.pkl")[0])
    with wrong_serving(site.estate.serving.address, instead={"Churn": "Old"}) as address:
        site.configure(MODELS, serving=address)
        told = told_by(site, "publish", "Churn", status=1, SERVING_TIMEOUT_S="1")
    assert outcomes(told) == [("publish", "undone")]
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (3, "0.1.0")


def test_a_publish_says_how_many_rows_tell_the_new_model_from_the_old_one(site: Site, second_candidate: Saved) -> None:
    site.restore(second_candidate)
    said = site.ok("publish", "Churn")["jobs"][0]["result"]["serving"]
    assert "; the version that it was judged against answers " in said
    assert "answers 0 of them" not in said


def test_an_adopted_incumbent_without_a_baseline_comes_back_too(site: Site, first_candidate: Saved) -> None:
    site.restore(first_candidate)
    incumbent(site, "Churn", b"bytes from before")
    site.ok("artifacts", "adopt", "Churn")
    with wrong_serving(site.estate.serving.address, lambda name: name == "Churn") as address:
        site.configure(MODELS, serving=address)
        told = told_by(site, "publish", "Churn", status=1, SERVING_TIMEOUT_S="1")
    assert outcomes(told) == [("publish", "undone")]
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (2, "1.4.2")
    assert site.store.read("Model_Churn/Model_Churn_Production.pkl")[0] == b"bytes from before"
    assert versions(site) == [("1.4.2", "production"), ("1.4.3", "deprecated")]


def test_sigterm_after_the_swap_waits_until_the_publish_is_undone(site: Site, second_candidate: Saved) -> None:
    site.restore(second_candidate)
    asked, answer = threading.Event(), threading.Event()

    def wrong_once_told(name: str) -> bool:
        if name != "Churn":
            return False
        asked.set()
        return answer.wait(60)

    with wrong_serving(site.estate.serving.address, wrong_once_told) as address:
        site.configure(MODELS, serving=address)
        running = site.start("--json", "publish", "Churn", SERVING_TIMEOUT_S="3")
        assert asked.wait(60)
        running.signal(signal.SIGTERM)
        answer.set()
        ended = running.wait()
    assert ended.status == 1, ended
    assert outcomes(ended.told) == [("publish", "undone")]
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (3, "0.1.0")
    assert versions(site) == [("0.1.0", "production"), ("0.1.1", "deprecated")]
    served = site.served()
    assert served is not None
    assert (served["artifact"], served["metadata"]["generation"]) == (pointer.sha256, 3)


@pytest.mark.parametrize("step", ["undo swap", "undo point", "undo switch", "undo project"])
def test_an_undo_that_dies_is_finished(site: Site, second_candidate: Saved, step: str) -> None:
    site.restore(second_candidate)
    with wrong_serving(site.estate.serving.address, lambda name: name == "Churn") as address:
        site.configure(MODELS, serving=address)
        died = site.run("publish", "Churn", crash_at=f"publish/{step}/effect", SERVING_TIMEOUT_S="1")
        assert died.status == -signal.SIGKILL, died
        assert site.pointer() is not None
        told = told_by(site, "jobs", "resume", status=1, SERVING_TIMEOUT_S="1")
    assert outcomes(told) == [("publish", "undone")]
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (3, "0.1.0")
    assert versions(site) == [("0.1.0", "production"), ("0.1.1", "deprecated")]
    served = site.served()
    assert served is not None
    assert (served["artifact"], served["metadata"]["generation"]) == (pointer.sha256, 3)


def test_a_first_model_that_serving_answers_wrongly_is_not_said_to_be_undone(
    site: Site, first_candidate: Saved
) -> None:
    site.restore(first_candidate)
    with wrong_serving(site.estate.serving.address, lambda name: name == "Churn") as address:
        site.configure(MODELS, serving=address)
        told = told_by(site, "publish", "Churn", status=1, SERVING_TIMEOUT_S="1")
    assert outcomes(told) == [("publish", "not-undone")]
    assert "needs an operator" in told["jobs"][0]["result"]["serving"]
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (1, "0.1.0")


def test_an_absent_service_b_puts_the_publish_off_and_nothing_is_swapped(site: Site, second_candidate: Saved) -> None:
    site.restore(second_candidate)
    before = site.served()
    site.configure(MODELS, serving=f"127.0.0.1:{free_port()}")
    told = told_by(site, "publish", "Churn", status=75)
    [job] = told["jobs"]
    assert (job["state"], job["error"].startswith("Service B (serving) is not available")) == ("PENDING", True)
    assert "serving.address" in job["cure"]
    pointer = site.pointer()
    assert pointer is not None
    assert pointer.generation == 1
    assert site.served() == before
    site.configure(MODELS)
    again = site.ok("publish", "Churn")
    assert again["jobs"][0]["job_id"] == job["job_id"]
    assert outcomes(again) == [("publish", "published")]


def test_a_service_b_that_goes_away_after_the_swap_is_waited_for_and_nothing_rolled_back(
    site: Site, second_candidate: Saved
) -> None:
    site.restore(second_candidate)
    died = site.run("publish", "Churn", crash_at="publish/project/effect")
    assert died.status == -signal.SIGKILL, died
    site.configure(MODELS, serving=f"127.0.0.1:{free_port()}")
    told = told_by(site, "jobs", "resume", status=75)
    assert told["jobs"][0]["state"] == "PENDING"
    pointer = site.pointer()
    assert pointer is not None
    assert pointer.generation == 2
    site.configure(MODELS)
    assert outcomes(site.ok("jobs", "resume")) == [("publish", "published")]


@pytest.mark.parametrize(("canary", "said"), [("try", "unacknowledged: Service B"), ("off", "not asked")])
def test_an_absent_service_b_can_be_done_without_if_the_configuration_says_so(
    site: Site, second_candidate: Saved, canary: str, said: str
) -> None:
    site.restore(second_candidate)
    site.configure(MODELS, serving=f"127.0.0.1:{free_port()}")
    told = site.ok("publish", "Churn", SERVING_CANARY=canary)
    assert outcomes(told) == [("publish", "published")]
    assert told["jobs"][0]["result"]["serving"].startswith(said)
    pointer = site.pointer()
    assert pointer is not None
    assert pointer.generation == 2


def test_an_incumbent_that_was_never_adopted_is_archived_under_its_registry_version(
    either_site: Site, first_candidate: Saved
) -> None:
    site = either_site
    site.restore(first_candidate)
    incumbent(site, "Churn", b"bytes from before")
    told = site.ok("publish", "Churn")
    assert (told["jobs"][0]["result"]["version"], told["jobs"][0]["result"]["replaces"]) == ("1.4.3", "1.4.2")
    assert site.store.read("Model_Churn/Model_Churn_1.4.2.pkl")[0] == b"bytes from before"
    assert versions(site) == [("1.4.2", "deprecated"), ("1.4.3", "production")]


def test_an_incumbent_that_was_replaced_while_a_publish_lay_dead_is_archived_too(
    either_site: Site, first_candidate: Saved
) -> None:
    site = either_site
    site.restore(first_candidate)
    incumbent(site, "Churn", b"bytes from before")
    died = site.run("publish", "Churn", crash_at="publish/archive/recorded")
    assert died.status == -signal.SIGKILL, died
    foreign_blob(site, "Model_Churn/Model_Churn_Production.pkl", b"put there by hand since")
    assert outcomes(site.ok("jobs", "resume")) == [("publish", "published")]
    archived = [blob.name for blob in site.store.list("Model_Churn/") if "_1.4.2" in blob.name]
    assert {site.store.read(name)[0] for name in archived} == {b"bytes from before", b"put there by hand since"}


def test_a_model_that_serving_may_not_take_is_refused_before_anything_is_uploaded(
    site: Site, second_candidate: Saved
) -> None:
    site.restore(second_candidate)
    before = {**site.picture(), "jobs": None}
    ended = site.run("--json", "publish", "Churn", SERVING_MAX_MB="0.001")
    assert ended.status == 1, ended
    assert "serving.max_mb allows 0.001" in ended.told["jobs"][0]["error"]
    assert {**site.picture(), "jobs": None} == before


def test_a_candidate_file_that_was_changed_is_never_published(site: Site, second_candidate: Saved) -> None:
    site.restore(second_candidate)
    shown = site.ok("jobs", "show", site.jobs()[-1]["id"])
    model = site.state / shown["result"]["publish"]["candidate"]["model"]["path"]
    model.write_bytes(model.read_bytes() + b"more")
    ended = site.run("--json", "publish", "Churn")
    assert ended.status == 1, ended
    assert "on record is" in ended.told["jobs"][0]["error"]
    pointer = site.pointer()
    assert pointer is not None
    assert pointer.generation == 1
    assert versions(site) == [("0.1.0", "production")]


def test_a_pointer_that_was_copied_from_another_model_stops_everything(site: Site, second_candidate: Saved) -> None:
    site.restore(second_candidate)
    root = Path(site.url.removeprefix("file://"))
    (root / "Model_Spend").mkdir()
    shutil.copy(root / "Model_Churn/Model_Churn_Production.json", root / "Model_Spend/Model_Spend_Production.json")
    ended = site.run("retrain", "Spend")
    assert ended.status == 1, ended
    assert "is the pointer of model 'Churn', not of 'Spend'" in ended.stderr
