from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.actions.test_sync_production import foreign_blob
from tests.parts import ROOT
from tests.parts.estate import ALL_ROWS, Saved, Site, outcomes


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


@pytest.mark.parametrize("step", ["reserve/before", "reserve/recorded", "archive/effect"])
def test_a_plan_that_lay_dead_while_production_changed_is_stale(
    either_site: Site, second_candidate: Saved, step: str
) -> None:
    site = either_site
    site.restore(second_candidate)
    plan = site.folder / "plan.json"
    plan.write_text(json.dumps(site.ok("publish", "Churn", "--plan")))
    died = site.run("publish", "Churn", "--apply", str(plan), crash_at=f"publish/{step}")
    assert died.status == -signal.SIGKILL, died
    name = "Model_Churn/Model_Churn_Production.pkl"
    foreign_blob(site, name, site.store.read(name)[0])
    ended = site.run("--json", "jobs", "resume")
    assert ended.status == 1, ended
    assert "changed after the plan was made" in ended.told["jobs"][0]["error"]
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (1, "0.1.0")


@pytest.mark.parametrize("step", ["swap/effect", "point/effect", "switch/effect"])
def test_a_plan_whose_publish_died_after_its_own_swap_is_carried_out(
    site: Site, second_candidate: Saved, step: str
) -> None:
    site.restore(second_candidate)
    plan = site.folder / "plan.json"
    plan.write_text(json.dumps(site.ok("publish", "Churn", "--plan")))
    died = site.run("publish", "Churn", "--apply", str(plan), crash_at=f"publish/{step}")
    assert died.status == -signal.SIGKILL, died
    assert outcomes(site.ok("jobs", "resume")) == [("publish", "published")]


def test_a_plan_whose_number_was_taken_since_takes_no_other(either_site: Site, second_candidate: Saved) -> None:
    site = either_site
    site.restore(second_candidate)
    plan = site.folder / "plan.json"
    plan.write_text(json.dumps(site.ok("publish", "Churn", "--plan")))
    died = site.run("publish", "Churn", "--apply", str(plan), crash_at="publish/reserve/before")
    assert died.status == -signal.SIGKILL, died
    site.store.create("Model_Churn/Model_Churn_0.1.1.manifest.json", b"{}", {})
    before = {**site.picture(), "jobs": None}
    ended = site.run("--json", "jobs", "resume")
    assert ended.status == 1, ended
    assert "0.1.1 was given to another publish" in ended.told["jobs"][0]["error"]
    assert {**site.picture(), "jobs": None} == before


def test_a_plan_for_a_challenger_that_is_no_longer_the_newest_is_stale(site: Site, second_candidate: Saved) -> None:
    site.restore(second_candidate)
    plan = site.folder / "plan.json"
    plan.write_text(json.dumps(site.ok("publish", "Churn", "--plan")))
    site.estate.rows(0, ALL_ROWS)
    assert outcomes(site.ok("retrain", "Churn", "--no-publish")) == [("retrain", "promoted")]
    ended = site.run("--json", "publish", "Churn", "--apply", str(plan))
    assert ended.status == 1, ended
    assert "the plan is stale: retrain_job is" in ended.stderr


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


def test_a_user_whom_no_passwd_entry_names_approves_by_number() -> None:
    # Imported before: such a user may not read what Python is installed in.
    program = "import os, pwd; from servicectl.actions.planning import user; os.setuid(54321); print(user())"
    environment = {name: value for name, value in os.environ.items() if name not in ("LOGNAME", "USER", "LNAME")}
    command = [sys.executable, "-c", program]
    if os.getuid() != 0:
        pytest.skip("only root can become a user that does not exist")
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.stdout == "uid 54321\n", ended.stderr
