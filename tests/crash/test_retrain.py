"""A retrain killed after each of its steps in turn trains the very model of an undisturbed one."""

from __future__ import annotations

import signal

from tests.parts.estate import Saved, Site, outcomes

STEPS = ("plan", "snapshot", "train", "champion", "judge", "check", "package")


def test_a_retrain_killed_after_each_step_in_turn_ends_with_the_digest_of_an_undisturbed_one(
    site: Site, first_candidate: Saved
) -> None:
    undisturbed = Site(site.estate, site.folder.parent / "undisturbed", site.url)
    undisturbed.restore(first_candidate)
    expected = undisturbed.ok("jobs", "show", undisturbed.jobs()[0]["id"])["result"]
    command: tuple[str, ...] = ("retrain", "Churn", "--no-publish")
    for step in STEPS:
        died = site.run(*command, crash_at=f"retrain/{step}/effect")
        assert died.status == -signal.SIGKILL, (step, died)
        [job] = site.jobs()
        assert job["state"] == "INTERRUPTED"
        command = ("jobs", "resume")
    assert outcomes(site.ok(*command)) == [("retrain", "promoted")]
    shown = site.ok("jobs", "show", job["id"])
    assert shown["result"]["model_sha256"] == expected["model_sha256"]
    assert shown["result"]["verdict"] == expected["verdict"]
    assert [(step["name"], step["state"], step["attempts"]) for step in shown["steps"]] == [
        (name, "COMPLETED", 2) for name in STEPS
    ]
    assert [event["edge"] for event in shown["events"]] == ["submit", "claim", *["take_over"] * len(STEPS), "complete"]


def test_a_retrain_killed_before_its_publish_began_is_published_by_resume(site: Site, first_candidate: Saved) -> None:
    site.restore(first_candidate)
    died = site.run("publish", "Churn", crash_at="publish/claimed")
    assert died.status == -signal.SIGKILL, died
    assert outcomes(site.ok("jobs", "resume")) == [("publish", "published")]
    pointer = site.pointer()
    assert pointer is not None
    assert pointer.version == "0.1.0"
