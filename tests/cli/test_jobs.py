from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.parts import ROOT
from tests.parts.commands import Running
from tests.parts.disk import fill, small_disk
from tests.parts.estate import MODELS, Estate, Saved, Site, deadline, env_without_servicectl, outcomes
from tests.parts.wrong_serving import wrong_serving


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
    assert [(step["name"], step["state"]) for step in shown["steps"]] == [
        ("leaving", "COMPLETED"),
        ("remove", "RUNNING"),
    ]
    assert [event["edge"] for event in shown["events"]] == ["submit", "claim"]
    assert shown["cure"] == f"servicectl jobs resume {job}"
    for_eyes = site.run("jobs", "show", job).stdout
    assert for_eyes.count("INTERRUPTED") == 2  # the job and the step it was in
    assert "so far" not in for_eyes
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


def test_a_running_job_is_asked_and_then_told_to_stop_and_its_command_ends(site: Site) -> None:
    with frozen_handler(site.estate):
        running, job = started_check(site)
        cancelled = site.run("jobs", "cancel", job, "--grace", "0")
        ended = running.wait()
    assert cancelled.status in (0, 75), cancelled  # its only look may have come before the end
    assert f"job {job} was asked to stop at its next step" in cancelled.stderr
    assert ended.status == 1, ended
    assert "was cancelled" in ended.stderr
    assert state(site, job) == "CANCELLED"


def test_a_job_that_does_not_stop_stays_asked_until_it_is_killed(site: Site) -> None:
    with frozen_handler(site.estate):
        running, job = started_check(site)
        running.signal(signal.SIGSTOP)
        patient = site.run("--json", "jobs", "cancel", job, "--grace", "0")
        assert (patient.status, patient.told["state"]) == (75, "RUNNING"), patient
        assert f"servicectl jobs cancel {job} --kill" in patient.told["says"]
        assert site.ok("jobs", "show", job)["cancel_requested"] is True
        told = site.ok("jobs", "cancel", job, "--grace", "0", "--kill")
        assert running.wait().status == -signal.SIGKILL
    assert told["state"] == "CANCELLED"
    assert "its process was killed" in told["says"]
    assert site.ok("jobs", "show", job)["runs"][-1]["ended"] == "died"


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


def test_retry_from_a_step_does_it_and_all_later_ones_again(site: Site) -> None:
    site.configure(MODELS.replace('label = "spend"', 'label = "never_seen"'))
    assert site.run("retrain", "Spend", "--no-publish").status == 1
    [job] = site.jobs()
    wrong = site.run("jobs", "retry", job["id"], "--from", "tarin")
    assert wrong.status == 2, wrong
    assert "has begun no step 'tarin'; its steps: plan, snapshot" in wrong.stderr
    assert state(site, job["id"]) == "FAILED"
    site.configure(MODELS)
    assert site.run("jobs", "retry", job["id"]).status == 1
    # What was planned is remembered, with the wrong label in it; only redoing the plan reads the configuration again.
    ended = site.run("--json", "jobs", "retry", job["id"], "--from", "plan")
    assert ended.told["jobs"][0]["state"] == "COMPLETED", ended
    shown = site.ok("jobs", "show", job["id"])
    assert [(step["name"], step["attempts"]) for step in shown["steps"]][:3] == [
        ("plan", 2),
        ("snapshot", 3),
        ("train", 1),
    ]
    assert [event["detail"] for event in shown["events"] if event["edge"] == "retry"] == [
        "by the operator",
        "by the operator, from step plan",
    ]


def test_a_completed_job_is_not_done_again_and_the_reason_is_told(site: Site) -> None:
    site.ok("drift-check")
    [job] = site.jobs()
    refused = site.run("jobs", "retry", job["id"], "--from", "models")
    assert refused.status == 2, refused
    assert "is COMPLETED" in refused.stderr
    assert "run its command again" in refused.stderr


def test_show_tells_who_ran_it_what_it_wrote_and_how_long_it_took(site: Site) -> None:
    died = site.run("retrain", "Churn", "--no-publish", crash_at="retrain/train/before", TRIGGER="timer")
    assert died.status == -signal.SIGKILL, died
    site.ok("jobs", "resume")
    job = site.jobs()[-1]["id"]
    shown = site.ok("jobs", "show", job)
    host, boot = os.uname().nodename, Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    owner = shown["owner"]
    assert (owner["host"], owner["boot_id"], owner["trigger"]) == (host, boot, "operator")
    assert {"pid", "user", "started"} <= owner.keys()
    assert [(run["epoch"], run["ended"]) for run in shown["runs"]] == [(1, "died"), (2, "complete")]
    for run, by in zip(shown["runs"], ("timer", "operator"), strict=True):
        assert re.fullmatch(rf"\w+ on {re.escape(host)}, pid \d+, boot {boot[:8]}, by {by}", run["by"])
    steps = {step["name"]: step for step in shown["steps"]}
    assert (steps["plan"]["epoch"], steps["train"]["epoch"], steps["train"]["attempts"]) == (1, 2, 2)
    assert all(step["seconds"] >= 0 for step in steps.values())
    [snapshot] = steps["snapshot"]["wrote"]
    assert (site.state / snapshot["path"]).stat().st_size == snapshot["bytes"]
    for_eyes = site.run("jobs", "show", job).stdout
    assert f"snapshot wrote {snapshot['path']}" in for_eyes
    assert f"boot {boot[:8]}, by timer" in for_eyes


def test_show_tells_why_it_failed_and_what_to_type(site: Site) -> None:
    site.configure(MODELS.replace('label = "spend"', 'label = "never_seen"'))
    site.run("retrain", "Spend", "--no-publish")
    [job] = site.ok("jobs", "list", "--failed")["jobs"]
    for_eyes = site.run("jobs", "show", job["id"]).stdout
    assert "error: Spend: the snapshot has no rows with the label 'never_seen'" in for_eyes
    assert "next: check models.Spend.label" in for_eyes
    assert f"to type: servicectl jobs retry {job['id']}" in for_eyes
    assert "needs operator" in for_eyes
    assert site.ok("jobs", "list", "--unfinished")["jobs"] == []
    assert site.run("jobs", "list", "--failed", "--unfinished").status == 2


def test_watch_on_a_terminal_redraws_in_place_and_ends_in_the_jobs_status(site: Site) -> None:
    with frozen_handler(site.estate):
        running, job = started_check(site)
        watching, screen = on_a_terminal(site, "jobs", "watch", job)
        drawn = read_until(screen, "RUNNING")
        while drawn.count("RUNNING") < 2:
            drawn += read_until(screen, "RUNNING")
        running.signal(signal.SIGTERM)
        assert running.wait().status == 75
        drawn += read_until(screen, "PENDING")
        site.ok("jobs", "cancel", job)
        drawn += read_until(screen, "CANCELLED")
        assert watching.wait(60) == 1
    os.close(screen)
    assert "\x1b[1A" in drawn  # the cursor goes up over what was drawn before
    assert "\x1b[2K" in drawn


def test_watch_in_a_pipe_is_one_line_for_every_transition(site: Site) -> None:
    job = interrupted(site)
    site.ok("jobs", "resume")
    ended = site.run("jobs", "watch", job)
    assert (ended.status, ended.stderr) == (0, "")
    events = site.ok("jobs", "show", job)["events"]
    assert [line.split()[2] for line in ended.stdout.splitlines()] == [event["edge"] for event in events]
    assert "\x1b" not in ended.stdout


@pytest.mark.parametrize("how", ["SIGTERM", "jobs cancel"])
def test_a_publish_that_is_stopped_after_its_swap_finishes_it(site: Site, second_candidate: Saved, how: str) -> None:
    site.restore(second_candidate)
    asked, answer = threading.Event(), threading.Event()

    def right_once_told(name: str) -> bool:
        if name == "Churn":
            asked.set()
            answer.wait(60)
        return False

    with wrong_serving(site.estate.serving.address, right_once_told) as address:
        site.configure(MODELS, serving=address)
        running = site.start("--json", "publish", "Churn", SERVING_TIMEOUT_S="30")
        assert asked.wait(60)
        if how == "SIGTERM":
            running.signal(signal.SIGTERM)
        else:
            assert site.run("jobs", "cancel", site.jobs()[-1]["id"], "--grace", "0").status == 75
        answer.set()
        ended = running.wait()
    assert ended.status == 0, ended
    assert outcomes(ended.told) == [("publish", "published")]
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (2, "0.1.1")


@pytest.mark.parametrize("step", ["reserve", "swap"])
def test_a_publish_killed_and_cancelled_half_way_can_be_done_again_from_a_step(
    site: Site, second_candidate: Saved, step: str
) -> None:
    site.restore(second_candidate)
    assert site.run("publish", "Churn", crash_at="publish/point/effect").status == -signal.SIGKILL
    job = site.jobs()[-1]["id"]
    site.ok("jobs", "cancel", job)
    again = site.run("--json", "jobs", "retry", job, "--from", step)
    assert outcomes(again.told) == [("publish", "published")], again
    pointer = site.pointer()
    assert pointer is not None
    assert (pointer.generation, pointer.version) == (2, "0.1.1")
    rows = site.estate.tables()["model_metadata"]
    assert [(row["version"], row["status"]) for row in rows] == [("0.1.0", "deprecated"), ("0.1.1", "production")]
    assert len(site.events()) == 1


@pytest.mark.root
def test_a_full_artifact_store_puts_a_publish_off_until_there_is_room(site: Site, first_candidate: Saved) -> None:
    site.restore(first_candidate)
    with small_disk(site.folder / "artifacts", "256k") as artifacts:
        big = fill(artifacts)
        put_off = site.run("--json", "publish", "Churn")
        assert put_off.status == 75, put_off
        [job] = put_off.told["jobs"]
        assert (job["state"], site.pointer()) == ("PENDING", None)
        assert "No space left" in job["error"]
        assert "make room there" in job["cure"]
        big.unlink()
        assert outcomes(site.ok("jobs", "resume", job["job_id"])) == [("publish", "published")]
        pointer = site.pointer()
    assert pointer is not None
    assert pointer.version == "0.1.0"


def on_a_terminal(site: Site, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """A command whose stdout is a terminal of 100 columns, and our end of it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "servicectl", "--config", str(site.config), *arguments],
        cwd=ROOT,
        env={**env_without_servicectl(), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    return process, ours


def read_until(screen: int, text: str) -> str:
    seen, check = "", deadline()
    while text not in seen:
        check(f"{text} on the terminal: {seen!r}")
        ready, _, _ = select.select([screen], [], [], 1.0)
        if ready:
            seen += os.read(screen, 65536).decode(errors="replace")
    return seen


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
