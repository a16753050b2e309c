from __future__ import annotations

import json

from tests.actions.test_sync_production import foreign_blob
from tests.parts.estate import Saved, Site, outcomes


def test_a_plan_names_every_operation_with_its_condition_and_touches_nothing(
    either_site: Site, second_candidate: Saved
) -> None:
    site = either_site
    site.restore(second_candidate)
    before = site.picture()
    plan = site.ok("publish", "Churn", "--plan")
    assert site.picture() == before
    assert (plan["version"], plan["generation"], plan["in_production"]) == ("0.1.1", 2, "0.1.0")
    conditions = {one["operation"]: one["condition"] for one in plan["operations"]}
    name = "Model_Churn/Model_Churn_Production"
    for extension, etag in (("pkl", "incumbent_etag"), ("json", "pointer_etag")):
        stat = site.store.stat(f"{name}.{extension}")
        assert stat is not None
        assert conditions[f"replace {name}.{extension}"] == f"If-Match: {stat.etag}" == f"If-Match: {plan[etag]}"
    (site.folder / "plan.json").write_text(json.dumps(plan))
    told = site.ok("publish", "Churn", "--apply", str(site.folder / "plan.json"))
    assert outcomes(told) == [("publish", "published")]
    after = set(site.blobs()) - set(before["blobs"])
    assert after == {one.split(" ")[-1] for one in conditions if one.startswith(("create", "copy"))}


def test_a_stale_plan_is_refused(either_site: Site, second_candidate: Saved) -> None:
    site = either_site
    site.restore(second_candidate)
    plan = site.folder / "plan.json"
    plan.write_text(json.dumps(site.ok("publish", "Churn", "--plan")))
    content = site.store.read("Model_Churn/Model_Churn_Production.pkl")[0]
    foreign_blob(site, "Model_Churn/Model_Churn_Production.pkl", content)
    before = site.picture()
    ended = site.run("--json", "publish", "Churn", "--apply", str(plan))
    assert ended.status == 1, ended
    assert "the plan is stale: incumbent_etag is" in ended.stderr
    assert site.picture() == before
    plan.write_text("{}")
    assert site.run("publish", "Churn", "--apply", str(plan)).status == 2


def test_a_held_publish_waits_for_a_human(site: Site, second_candidate: Saved) -> None:
    site.restore(second_candidate)
    before = site.picture()
    [held] = site.ok("publish", "Churn", "--hold")["jobs"]
    assert held["outcome"] == "held"
    site.ok("jobs", "resume")
    assert {**site.picture(), "jobs": None} == {**before, "jobs": None}
    told = site.ok("approve", held["job_id"][-8:])
    assert outcomes(told) == [("publish", "published")]
    assert site.ok("jobs", "show", told["jobs"][0]["job_id"])["spec"]["approved"]["job"] == held["job_id"]
    again = site.ok("approve", held["job_id"])
    assert again["jobs"][0]["job_id"] == told["jobs"][0]["job_id"]
    assert site.run("approve", told["jobs"][0]["job_id"]).status == 2


def test_a_held_retrain_ends_before_it_publishes(site: Site) -> None:
    told = site.ok("retrain", "Churn", "--hold")
    assert outcomes(told) == [("retrain", "promoted"), ("publish", "held")]
    assert site.pointer() is None
    assert outcomes(site.ok("approve", told["jobs"][1]["job_id"])) == [("publish", "published")]


def test_an_approval_that_comes_too_late_changes_nothing(site: Site, second_candidate: Saved) -> None:
    site.restore(second_candidate)
    [held] = site.ok("publish", "Churn", "--hold")["jobs"]
    site.ok("publish", "Churn")
    ended = site.run("--json", "approve", held["job_id"])
    assert (ended.status, outcomes(ended.told)) == (1, [("publish", "superseded")])
