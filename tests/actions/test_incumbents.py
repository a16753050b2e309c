"""Incumbents from before servicectl, in every form that the estate leaves: nothing of them is lost, and there is a way back."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath

import pytest

from servicectl.estate.artifacts import names
from tests.actions.test_publish import told_by, versions
from tests.actions.test_rollback import agrees, pointer_of
from tests.actions.test_sync_production import foreign_blob, incumbent, registered, synced
from tests.actions.test_trust import sign_with
from tests.parts.estate import MODELS, Saved, Site, outcomes
from tests.parts.wrong_serving import wrong_serving

FOLDER = "Model_Churn/Model_Churn_"
LEGACY = b'{"tenure":   {"mean": 4.5}}'
FOREIGN = {
    "Production.pkl": b"bytes from before",
    "Production.joblib": b"as joblib writes it",
    "old_Production.pkl": b"somebody's second one",
    "Production.json": LEGACY,
    "483920.pkl": b"an archive with a random number",
}


def digests(site: Site) -> dict[str, list[str]]:
    """Every content in the model's folder with the names it lies under."""
    found: dict[str, list[str]] = {}
    for blob in site.store.list("Model_Churn/"):
        digest = hashlib.sha256(site.store.read(blob.name)[0]).hexdigest()
        found.setdefault(digest, []).append(blob.name.removeprefix(FOLDER))
    return found


def put_all(site: Site) -> None:
    registered(site, "Churn", "1.4.2")
    for end, content in FOREIGN.items():
        foreign_blob(site, FOLDER + end, content)


def lies_under(site: Site, content: bytes) -> list[str]:
    return digests(site).get(hashlib.sha256(content).hexdigest(), [])


def production_names(site: Site) -> list[str]:
    return [blob.name for blob in site.store.list("Model_Churn/") if names.is_production(blob.name)]


@pytest.mark.parametrize("command", ["publish", "adopt"])
def test_odd_extensions_several_production_blobs_and_random_archives_all_survive(
    either_site: Site, first_candidate: Saved, command: str
) -> None:
    site = either_site
    site.restore(first_candidate)
    put_all(site)
    listed = {
        name for one in site.ok("models")["models"] if one["model_id"] == "Churn" for name in one["strays"]
    }  # fmt: skip
    assert listed == {f"{FOLDER}Production.joblib", f"{FOLDER}old_Production.pkl"}
    [check] = [one for one in site.run("--json", "doctor").told["checks"] if one["party"] == "production blobs"]
    assert (check["health"], all(name in check["says"] for name in listed)) == ("warning", True)
    site.ok(*(("publish", "Churn") if command == "publish" else ("artifacts", "adopt", "Churn")))
    assert all(lies_under(site, content) for content in FOREIGN.values())
    assert lies_under(site, FOREIGN["Production.joblib"]) == ["1.4.2.joblib"]
    assert lies_under(site, LEGACY) == ["1.4.2.json"]
    assert production_names(site) == [f"{FOLDER}Production.json", f"{FOLDER}Production.pkl"]
    assert site.ok("models")["models"][0]["strays"] == []
    assert synced(site.ok("sync-production"))["models"] == {"Churn": "unchanged" if command == "publish" else "written"}


def test_what_another_program_puts_beside_a_published_model_is_kept_and_taken_away_on_the_operators_word(
    either_site: Site, published: Saved
) -> None:
    site = either_site
    site.restore(published)
    foreign_blob(site, f"{FOLDER}Production.joblib", FOREIGN["Production.joblib"])
    site.ok("sync-production")
    assert f"{FOLDER}Production.joblib" in production_names(site)
    assert outcomes(site.ok("artifacts", "adopt", "Churn")) == [("adopt", "already-adopted")]
    assert lies_under(site, FOREIGN["Production.joblib"]) == ["0.1.0.joblib"]
    agrees(site, "0.1.0", 1)


def test_a_json_from_before_whose_name_is_taken_is_kept_under_a_suffix(site: Site, first_candidate: Saved) -> None:
    site.restore(first_candidate)
    put_all(site)
    foreign_blob(site, f"{FOLDER}1.4.2.json", b'{"of": "somebody else"}')
    site.ok("publish", "Churn")
    [kept] = lies_under(site, LEGACY)
    assert kept == f"1.4.2-{hashlib.sha256(LEGACY).hexdigest()[:12]}.json"
    assert lies_under(site, b'{"of": "somebody else"}') == ["1.4.2.json"]


@pytest.mark.parametrize("step", ["archive/recorded", "swap/effect", "point/effect", "project/effect"])
def test_a_json_that_was_put_there_while_a_publish_lay_dead_is_kept_too(
    site: Site, first_candidate: Saved, step: str
) -> None:
    site.restore(first_candidate)
    put_all(site)
    site.run("publish", "Churn", crash_at=f"publish/{step}")
    later = b'{"put there": "since"}'
    if not step.startswith(("point", "project")):
        foreign_blob(site, f"{FOLDER}Production.json", later)
    assert outcomes(site.ok("jobs", "resume")) == [("publish", "published")]
    assert lies_under(site, LEGACY)
    assert bool(lies_under(site, later)) == (not step.startswith(("point", "project")))
    assert production_names(site) == [f"{FOLDER}Production.json", f"{FOLDER}Production.pkl"]


def test_a_plan_over_an_incumbent_from_before_names_each_copy_and_removal(
    either_site: Site, first_candidate: Saved
) -> None:
    site = either_site
    site.restore(first_candidate)
    put_all(site)
    before = {blob.name for blob in site.store.list("Model_Churn/")}
    plan = site.folder / "plan.json"
    told = site.ok("publish", "Churn", "--plan")
    plan.write_text(json.dumps(told))
    site.ok("publish", "Churn", "--apply", str(plan))
    after = {blob.name for blob in site.store.list("Model_Churn/")}
    planned = [one["operation"].split(" ") for one in told["operations"] if one["store"] == "artifact store"]
    made = {words[-1] for words in planned if words[0] in ("create", "copy")}
    # Two .pkl want one name: the second gets a suffix that no plan can know.
    suffixed = {name for name in after - before if "-" in PurePosixPath(name).stem}
    assert (after - before - suffixed, len(suffixed)) == (made, 1)
    assert before - after == {words[-1] for words in planned if words[0] == "delete"}


def test_an_incumbent_that_only_joblib_can_read_is_not_adopted_and_not_lost(
    either_site: Site, first_candidate: Saved
) -> None:
    site = either_site
    site.restore(first_candidate)
    registered(site, "Churn", "1.4.2")
    foreign_blob(site, f"{FOLDER}Production.joblib", FOREIGN["Production.joblib"])
    ended = site.run("--json", "artifacts", "adopt", "Churn")
    assert ended.status == 2, ended
    assert f"{FOLDER}Production.joblib is nothing that Service B reads" in ended.told["jobs"][0]["error"]
    ended = site.run("--json", "sync-production")
    assert "Production.joblib was not touched" in synced(ended.told)["failed"]["Churn"]
    assert production_names(site) == [f"{FOLDER}Production.joblib"]
    site.ok("publish", "Churn")
    assert lies_under(site, FOREIGN["Production.joblib"]) == ["1.4.2.joblib"]
    assert production_names(site) == [f"{FOLDER}Production.json", f"{FOLDER}Production.pkl"]


def test_what_redis_holds_of_an_incumbent_in_other_forms_stays_until_it_is_replaced(
    site: Site, first_candidate: Saved
) -> None:
    site.restore(first_candidate)
    incumbent(site, "Churn", FOREIGN["Production.pkl"])
    site.estate.client.set("model:Churn:joblib", b"as the estate loaded it")
    for _ in range(2):
        site.ok("sync-production")
        assert site.estate.client.get("model:Churn:joblib") == b"as the estate loaded it"
    site.ok("publish", "Churn")
    assert site.estate.client.get("model:Churn:joblib") is None


def test_a_first_publish_that_serving_answers_wrongly_gives_way_to_the_incumbent_again(
    either_site: Site, first_candidate: Saved
) -> None:
    site = either_site
    site.restore(first_candidate)
    put_all(site)
    with wrong_serving(site.estate.serving.address, lambda name: name == "Churn") as address:
        site.configure(MODELS, serving=address)
        told = told_by(site, "publish", "Churn", status=1, SERVING_TIMEOUT_S="1")
    assert outcomes(told) == [("publish", "undone")]
    agrees(site, "1.4.2", 2)
    assert site.store.read(f"{FOLDER}Production.pkl")[0] == FOREIGN["Production.pkl"]
    assert json.loads(site.store.read(f"{FOLDER}Production.json")[0])["baseline"] == json.loads(LEGACY)
    assert versions(site) == [("1.4.2", "production"), ("1.4.3", "deprecated")]


@pytest.mark.parametrize("step", ["archive/effect", "swap/effect", "point/effect", "undo swap/effect"])
def test_a_first_publish_that_dies_still_knows_its_way_back(site: Site, first_candidate: Saved, step: str) -> None:
    site.restore(first_candidate)
    put_all(site)
    with wrong_serving(site.estate.serving.address, lambda name: name == "Churn") as address:
        site.configure(MODELS, serving=address)
        site.run("publish", "Churn", crash_at=f"publish/{step}", SERVING_TIMEOUT_S="1")
        told = told_by(site, "jobs", "resume", status=1, SERVING_TIMEOUT_S="1")
    assert outcomes(told) == [("publish", "undone")]
    agrees(site, "1.4.2", 2)


def test_an_incumbent_that_was_never_adopted_can_be_gone_back_to(either_site: Site, first_candidate: Saved) -> None:
    site = either_site
    site.restore(first_candidate)
    put_all(site)
    site.ok("publish", "Churn")
    history = site.ok("models", "history", "Churn")["history"]
    assert [(one["generation"], one["version"], one["kind"]) for one in history] == [
        (1, "1.4.3", "publish"), (0, "1.4.2", "incumbent"),
    ]  # fmt: skip
    # Service B cannot open what these bytes are; the estate that they come from could.
    told = site.ok("rollback", "Churn", SERVING_CANARY="off")
    assert outcomes(told) == [("rollback", "rolled-back")]
    agrees(site, "1.4.2", 2)
    assert set(pointer_of(site).withdrawn) == {"1.4.3"}


def test_where_signatures_are_required_an_incumbent_must_be_adopted_first(
    either_site: Site, first_candidate: Saved
) -> None:
    site = either_site
    site.restore(first_candidate)
    put_all(site)
    section = sign_with(site)
    before = {**site.picture(), "jobs": None}
    planned = site.run("--json", "publish", "Churn", "--plan")
    assert (planned.status, "no way back" in planned.stderr) == (1, True), planned
    ended = site.run("--json", "publish", "Churn")
    assert ended.status == 1, ended
    assert "artifacts adopt Churn" in ended.told["jobs"][0]["cure"]
    assert {**site.picture(), "jobs": None} == before
    # What was kept before signatures were asked for is not believed.
    site.configure(f"{MODELS}{section}require_signature = false\n")
    site.ok("publish", "Churn")
    site.configure(MODELS + section)
    ended = site.run("--json", "rollback", "Churn", SERVING_CANARY="off")
    assert (ended.status, "no earlier version" in ended.stderr) == (2, True), ended
