from __future__ import annotations

import hashlib
import json
import shutil
import signal
from datetime import datetime, timedelta
from typing import Any

import pytest

from servicectl.estate.artifacts.pointer import Pointer
from tests.actions.test_sync_production import Hostile, foreign_blob, incumbent
from tests.parts.estate import ALL_ROWS, MODELS, Saved, Site, outcomes
from tests.parts.wrong_serving import wrong_serving

STEPS = ("fetch", "register", "try candidate", "archive", "swap", "point", "switch", "project", "canary")
POINTS = [f"{step}/effect" for step in STEPS] + ["complete/before"]


def statuses(site: Site) -> list[tuple[str, str]]:
    return [(row["version"], row["status"]) for row in site.estate.tables()["model_metadata"]]


def pointer_of(site: Site) -> Pointer:
    found = site.pointer()
    assert found is not None
    return found


def agrees(site: Site, version: str, generation: int) -> None:
    """All three stores have this version in production."""
    pointer = pointer_of(site)
    assert (pointer.version, pointer.generation) == (version, generation)
    assert [one for one, status in statuses(site) if status == "production"] == [version]
    served = site.served()
    assert served is not None
    assert (served["artifact"], served["metadata"]["version"], served["metadata"]["generation"]) == (
        pointer.sha256, version, generation,
    )  # fmt: skip
    assert site.blobs()["Model_Churn/Model_Churn_Production.pkl"] == pointer.sha256


def twice_published(site: Site, second_candidate: Saved) -> None:
    site.restore(second_candidate)
    assert outcomes(site.ok("publish", "Churn")) == [("publish", "published")]


def test_a_rollback_goes_back_in_every_store_and_marks_what_it_took_back(
    either_site: Site, second_candidate: Saved
) -> None:
    site = either_site
    twice_published(site, second_candidate)
    newer = pointer_of(site)
    told = site.ok("rollback", "Churn")
    assert outcomes(told) == [("rollback", "rolled-back")]
    result = told["jobs"][0]["result"]
    assert (result["version"], result["replaces"], result["withdrawn"]) == ("0.1.0", "0.1.1", ["0.1.1"])
    assert result["serving"] == "Service B answered 24 canary rows with our numbers"
    agrees(site, "0.1.0", 3)
    assert pointer_of(site).withdrawn == {"0.1.1": newer.sha256}
    assert site.blobs()["Model_Churn/Model_Churn_0.1.1.pkl"] == newer.sha256
    assert [(one["generation"], one["load"]["version"]) for one in site.events()] == [(2, "0.1.1"), (3, "0.1.0")]
    assert site.ok("sync-production")["jobs"][-1]["result"]["models"] == {"Churn": "unchanged"}


def test_what_was_withdrawn_comes_back_only_by_name(site: Site, second_candidate: Saved) -> None:
    twice_published(site, second_candidate)
    site.ok("rollback", "Churn")
    for refused, said in (
        (("publish", "Churn"), "was withdrawn from production"),
        (("rollback", "Churn"), "no earlier version"),
        (("rollback", "Churn", "--to", "0.1.0"), "in production already"),
        (("rollback", "Churn", "--to", "9.9.9"), "never in production"),
    ):
        ended = site.run("--json", *refused)
        assert (ended.status, said in ended.stderr) == (2, True), ended
    told = site.ok("rollback", "Churn", "--to", "0.1.1")
    assert told["jobs"][0]["result"]["withdrawn"] == []
    agrees(site, "0.1.1", 4)
    assert pointer_of(site).withdrawn == {}


def test_the_same_model_from_another_retrain_is_not_published_after_it_was_withdrawn(
    site: Site, second_candidate: Saved
) -> None:
    twice_published(site, second_candidate)
    site.ok("rollback", "Churn")
    site.estate.rows(0, ALL_ROWS)
    told = site.run("--json", "retrain", "Churn").told
    assert outcomes(told) == [("retrain", "promoted"), ("publish", "withdrawn")]
    agrees(site, "0.1.0", 3)


@pytest.mark.parametrize("point", POINTS)
def test_a_rollback_killed_at_any_point_is_finished_once(site: Site, second_candidate: Saved, point: str) -> None:
    twice_published(site, second_candidate)
    died = site.run("rollback", "Churn", crash_at=f"rollback/{point}")
    assert died.status == -signal.SIGKILL, died
    assert pointer_of(site).generation in (2, 3)
    command = ("rollback", "Churn") if POINTS.index(point) % 2 else ("jobs", "resume")
    assert outcomes(site.ok(*command)) == [("rollback", "rolled-back")]
    agrees(site, "0.1.0", 3)
    assert len(site.events()) == 2


def test_a_rollback_that_dies_on_azure_after_the_swap_is_finished(either_site: Site, second_candidate: Saved) -> None:
    site = either_site
    twice_published(site, second_candidate)
    for step in ("swap", "point"):
        died = site.run("rollback", "Churn", crash_at=f"rollback/{step}/effect")
        assert died.status == -signal.SIGKILL, died
    assert outcomes(site.ok("jobs", "resume")) == [("rollback", "rolled-back")]
    agrees(site, "0.1.0", 3)


@pytest.mark.parametrize("step", ["archive", "swap", "point", "switch", "project"])
def test_a_publish_that_wakes_up_after_a_rollback_elsewhere_changes_nothing(
    site: Site, second_candidate: Saved, step: str
) -> None:
    """The publisher dies on one machine; another one publishes and rolls back; then the first is resumed."""
    site.restore(second_candidate)
    other = Site(site.estate, site.folder.parent / "other", site.url)
    shutil.copytree(second_candidate.folder / "state", other.state)
    died = site.run("publish", "Churn", crash_at=f"publish/{step}/effect")
    assert died.status == -signal.SIGKILL, died
    if step in ("archive", "swap"):
        other.ok("publish", "Churn")
    else:
        other.ok("sync-production")
    other.ok("rollback", "Churn")
    before = {**other.picture(), "jobs": None}
    late = site.run("--json", "jobs", "resume")
    assert outcomes(late.told) == [("publish", "superseded")]
    assert {**other.picture(), "jobs": None} == before
    agrees(other, "0.1.0", 3)


def test_a_rollback_to_an_adopted_model_brings_its_bytes_back_unopened(
    either_site: Site, first_candidate: Saved, tmp_path: Any
) -> None:
    site = either_site
    import pickle

    content = pickle.dumps(Hostile(tmp_path / "opened"))
    site.restore(first_candidate)
    incumbent(site, "Churn", content)
    site.ok("artifacts", "adopt", "Churn")
    site.ok("publish", "Churn")
    told = site.ok("rollback", "Churn", SERVING_CANARY="off")
    assert told["jobs"][0]["result"]["version"] == "1.4.2"
    agrees(site, "1.4.2", 2)
    assert site.store.read("Model_Churn/Model_Churn_Production.pkl")[0] == content
    # Service B opens what it serves, as it did before; nobody else does.
    opened = tmp_path / "opened"
    assert not opened.exists() or {"miniature.serving" in line for line in opened.read_text().splitlines()} == {True}


def test_a_version_whose_bytes_were_changed_is_not_gone_back_to(site: Site, second_candidate: Saved) -> None:
    twice_published(site, second_candidate)
    foreign_blob(site, "Model_Churn/Model_Churn_0.1.0.pkl", b"changed since")
    before = site.picture()
    ended = site.run("--json", "rollback", "Churn")
    assert ended.status == 1, ended
    assert "on record is" in ended.told["jobs"][0]["error"]
    assert {**site.picture(), "jobs": None} == {**before, "jobs": None}


@pytest.mark.parametrize("step", [None, "canary", "undo swap", "undo point"])
def test_a_rollback_that_serving_answers_wrongly_is_undone_under_a_higher_generation(
    site: Site, second_candidate: Saved, step: str | None
) -> None:
    twice_published(site, second_candidate)
    with wrong_serving(site.estate.serving.address, lambda name: name == "Churn") as address:
        site.configure(MODELS, serving=address)
        if step:
            died = site.run("rollback", "Churn", crash_at=f"rollback/{step}/effect", SERVING_TIMEOUT_S="1")
            assert died.status == -signal.SIGKILL, died
        ended = site.run("--json", "rollback", "Churn", SERVING_TIMEOUT_S="1")
    assert (ended.status, outcomes(ended.told)) == (1, [("rollback", "undone")])
    assert "0.1.1 is back in production as generation 4" in ended.told["jobs"][0]["result"]["serving"]
    agrees(site, "0.1.1", 4)
    assert set(pointer_of(site).withdrawn) == {"0.1.0"}
    assert [(one["generation"], one["load"]["version"]) for one in site.events()] == [
        (2, "0.1.1"), (3, "0.1.0"), (4, "0.1.1"),
    ]  # fmt: skip


def test_a_version_that_service_b_no_longer_answers_alike_is_not_gone_back_to(
    either_site: Site, second_candidate: Saved
) -> None:
    site = either_site
    twice_published(site, second_candidate)
    before = {**site.picture(), "jobs": None}
    with wrong_serving(site.estate.serving.address, lambda name: ".candidate." in name) as address:
        site.configure(MODELS, serving=address)
        ended = site.run("--json", "rollback", "Churn")
    assert (ended.status, outcomes(ended.told)) == (1, [("rollback", "rejected-by-canary")])
    assert "canary row 1, expected" in ended.told["jobs"][0]["result"]["serving"]
    assert {**site.picture(), "jobs": None} == before


def test_a_machine_that_never_published_the_version_asks_service_b_all_the_same(
    site: Site, second_candidate: Saved
) -> None:
    twice_published(site, second_candidate)
    other = Site(site.estate, site.folder.parent / "other", site.url)
    told = other.ok("rollback", "Churn")
    assert told["jobs"][0]["result"]["serving"] == "Service B answered 24 canary rows with our numbers"
    agrees(other, "0.1.0", 3)


@pytest.mark.parametrize("end", ["0.1.0.json", "0.1.0.canary.json", "0.1.0.manifest.json"])
def test_a_version_whose_baseline_canary_rows_or_manifest_were_changed_is_not_gone_back_to(
    site: Site, second_candidate: Saved, end: str
) -> None:
    twice_published(site, second_candidate)
    name = f"Model_Churn/Model_Churn_{end}"
    foreign_blob(site, name, site.store.read(name)[0].replace(b"0", b"1", 1))
    before = {**site.picture(), "jobs": None}
    ended = site.run("--json", "rollback", "Churn")
    assert ended.status == 1, ended
    assert name in ended.told["jobs"][0]["error"]
    assert {**site.picture(), "jobs": None} == before


def test_the_history_tells_every_change_also_without_the_jobs_table(either_site: Site, second_candidate: Saved) -> None:
    site = either_site
    twice_published(site, second_candidate)
    site.ok("rollback", "Churn")
    told = site.ok("models", "history", "Churn")["history"]
    assert [(one["generation"], one["version"], one["kind"], one["withdrawn"]) for one in told] == [
        (3, "0.1.0", "rollback", False), (2, "0.1.1", "publish", True), (1, "0.1.0", "publish", False),
    ]  # fmt: skip
    assert [one["until"] for one in told] == [None, told[0]["since"], told[1]["since"]]
    shown = [site.ok("jobs", "show", one["job"]) for one in told]
    assert [job["kind"] for job in shown] == ["rollback", "publish", "publish"]
    challenger = shown[1]["result"]["retrain_job"]
    trained = site.ok("jobs", "show", challenger)["result"]
    assert told[1]["snapshot"]["sha256"] == trained["snapshot"]["sha256"]
    assert told[1]["gate"]["challenger"] == trained["verdict"]["challenger"]
    between = datetime.fromisoformat(told[0]["since"]) - timedelta(microseconds=1)
    site.folder.joinpath("state").rename(site.folder / "lost")
    assert site.ok("models", "history", "Churn")["history"] == told
    assert site.ok("models", "at", between.isoformat(), "Churn")["models"]["Churn"] == told[1]
    assert site.ok("models", "at", "2020-01-01")["models"] == {"Churn": None, "Spend": None}
    assert site.run("models", "at", "yesterday").status == 2
    printed = site.run("models", "history", "Churn").stdout
    assert "withdrawn" in printed
    assert site.ok("models")["models"][0]["version"] == "0.1.0"


def test_a_second_rollback_goes_one_further_back(site: Site, second_candidate: Saved) -> None:
    twice_published(site, second_candidate)
    kept = json.loads(site.store.read("Model_Churn/Model_Churn_000001.history.json")[0])
    assert kept["servicectl"]["version"] == "0.1.0"
    names = [name for name in site.blobs() if name.split(".")[0].endswith("Production")]
    assert sorted(names) == ["Model_Churn/Model_Churn_Production.json", "Model_Churn/Model_Churn_Production.pkl"]
    assert (
        hashlib.sha256(site.store.read("Model_Churn/Model_Churn_0.1.0.pkl")[0]).hexdigest()
        == kept["servicectl"]["sha256"]
    )
