from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.parts.commands import Running
from tests.parts.estate import Estate, Site, deadline, outcomes


def interrupted(site: Site) -> str:
    """A sync that died: its job's short id."""
    died = site.run("sync-production", crash_at="sync-production/remove/effect")
    assert died.status == -signal.SIGKILL, died
    return str(site.jobs()[-1]["id"])


def state(site: Site, job: str) -> str:
    return str(site.ok("jobs", "show", job)["state"])


@contextmanager
def frozen_handler(estate: Estate) -> Iterator[None]:
    estate.handler.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        estate.handler.process.send_signal(signal.SIGCONT)


def started_check(site: Site) -> tuple[Running, str]:
    """A drift check that waits for the frozen handler, and its job."""
    running = site.start("drift-check")
    check = deadline()
    while not (jobs := site.jobs()) or jobs[-1]["state"] != "RUNNING":
        check("a running job")
    return running, jobs[-1]["id"]


def test_list_shows_newest_first_and_what_died_as_interrupted(site: Site) -> None:
    assert site.ok("jobs", "list")["jobs"] == []
    assert site.run("jobs", "list").stdout == "no jobs yet\n"
    job = interrupted(site)
    site.ok("drift-check")
    listed = site.ok("jobs", "list")["jobs"]
    assert [(one["kind"], one["state"]) for one in listed] == [
        ("drift-check", "COMPLETED"),
        ("sync-production", "INTERRUPTED"),
    ]
    assert [one["id"] for one in site.ok("jobs", "list", "--unfinished")["jobs"]] == [job]
    assert len(site.ok("jobs", "list", "--limit", "1")["jobs"]) == 1
    header, *lines = site.run("jobs", "list").stdout.splitlines()
    assert header.split()[:4] == ["job", "kind", "of", "state"]
    assert [line.split()[0] for line in lines] == [one["id"] for one in listed]


def test_show_tells_steps_events_and_what_to_type(site: Site) -> None:
    job = interrupted(site)
    shown = site.ok("jobs", "show", job)
    assert [(step["name"], step["state"]) for step in shown["steps"]] == [("remove", "RUNNING")]
    assert [event["edge"] for event in shown["events"]] == ["submit", "claim"]
    assert shown["cure"] == f"servicectl jobs resume {job}"
    for_eyes = site.run("jobs", "show", job).stdout
    assert "INTERRUPTED" in for_eyes
    assert f"next: servicectl jobs resume {job}" in for_eyes


def test_resume_carries_on_what_died_and_is_silent_when_nothing_is_due(site: Site) -> None:
    job = interrupted(site)
    assert outcomes(site.ok("jobs", "resume")) == [("sync-production", "no-production-models")]
    assert state(site, job) == "COMPLETED"
    again = site.run("jobs", "resume")
    assert (again.status, again.stdout, again.stderr) == (0, "", "")
    assert site.ok("jobs", "resume")["jobs"] == []


def test_resume_of_one_job_leaves_the_others(site: Site) -> None:
    job = interrupted(site)
    died = site.run("drift-check", crash_at="drift-check/complete/before")
    assert died.status == -signal.SIGKILL
    site.ok("jobs", "resume", job)
    assert [one["state"] for one in site.jobs()] == ["COMPLETED", "INTERRUPTED"]


def test_a_waiting_job_is_cancelled_at_once_and_can_be_taken_up_again(site: Site) -> None:
    job = interrupted(site)
    assert site.ok("jobs", "cancel", job)["state"] == "CANCELLED"
    assert site.run("jobs", "cancel", job).status == 2
    assert site.ok("jobs", "resume")["jobs"] == []
    assert site.ok("jobs", "retry", job, "--queue-only")["state"] == "PENDING"
    assert state(site, job) == "PENDING"
    site.ok("jobs", "cancel", job)
    assert outcomes(site.ok("jobs", "retry", job)) == [("sync-production", "no-production-models")]
    assert site.run("jobs", "retry", job).status == 2


def test_a_running_job_is_asked_to_stop_and_its_command_ends(site: Site) -> None:
    with frozen_handler(site.estate):
        running, job = started_check(site)
        assert "asked to stop" in site.ok("jobs", "cancel", job)["says"]
        ended = running.wait()
    assert ended.status == 1, ended
    assert "was cancelled" in ended.stderr
    assert state(site, job) == "CANCELLED"


def test_sigterm_gives_a_running_job_back_and_its_attempt_with_it(site: Site) -> None:
    with frozen_handler(site.estate):
        running, job = started_check(site)
        running.signal(signal.SIGTERM)
        assert running.wait().status == 75
    shown = site.ok("jobs", "show", job)
    assert (shown["state"], shown["attempts"]) == ("PENDING", 0)
    assert outcomes(site.ok("jobs", "resume")) == [("drift-check", "no-production-models")]


def test_a_scope_that_is_busy_is_named_and_ends_in_75(site: Site) -> None:
    with frozen_handler(site.estate):
        running, job = started_check(site)
        busy = site.run("drift-check")
        running.signal(signal.SIGTERM)
        running.wait()
    assert busy.status == 75, busy
    assert "drift-check is being worked on" in busy.stderr
    assert [one["id"] for one in site.jobs()] == [job]


def test_watch_follows_a_job_to_its_end_and_ends_in_its_status(site: Site) -> None:
    with frozen_handler(site.estate):
        running, job = started_check(site)
        watching = site.start("jobs", "watch", job)
        check = deadline()
        while "claim" not in watching.stdout:
            check("the watcher's first line")
    assert running.wait().status == 0
    ended = watching.wait()
    assert ended.status == 0, ended
    assert [line.split()[2] for line in ended.stdout.splitlines()] == ["submit", "claim", "complete"]


def test_watch_of_a_job_whose_process_died_ends_in_75(site: Site) -> None:
    assert site.run("jobs", "watch", interrupted(site)).status == 75


def test_prune_deletes_ended_jobs_with_their_files_and_says_so_first_on_request(site: Site) -> None:
    site.ok("drift-check")
    job = interrupted(site)
    ended, unfinished = (one["job_id"] for one in site.jobs())
    (site.state / "work" / ended).mkdir(parents=True, exist_ok=True)
    assert site.ok("jobs", "prune", "--days", "0", "--dry-run")["pruned"] == [ended]
    assert len(site.jobs()) == 2
    assert site.ok("jobs", "prune")["pruned"] == []
    assert site.ok("jobs", "prune", "--days", "0")["pruned"] == [ended]
    assert [one["job_id"] for one in site.jobs()] == [unfinished]
    assert not (site.state / "work" / ended).exists()
    assert state(site, job) == "INTERRUPTED"


@pytest.mark.parametrize("verb", ["show", "resume", "cancel", "retry", "watch"])
@pytest.mark.parametrize("job", ["ffffffff", "nonsense", ""])
def test_an_unknown_job_is_a_usage_error(site: Site, verb: str, job: str) -> None:
    ended = site.run("jobs", verb, job)
    assert ended.status == 2, ended
    assert "there is no job" in ended.stderr
    assert "jobs list" in ended.stderr


def test_a_job_is_found_by_the_end_and_the_beginning_of_its_id(site: Site) -> None:
    interrupted(site)
    [job] = site.jobs()
    for text in (job["job_id"], job["id"], job["job_id"][:13], job["id"].upper()):
        assert site.ok("jobs", "show", text)["job_id"] == job["job_id"]
