"""The demo as a user starts it: real processes from its first line to its exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from servicectl.cli import demo_compare, demo_crash, demo_plain
from servicectl.miniature import data
from tests.parts import ROOT, program

PATIENCE_S = 300.0


@contextmanager
def demo(folder: Path, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`servicectl demo OPTIONS --folder FOLDER` under way; whatever of it is left at the end is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "servicectl", "demo", *options, "--folder", str(folder)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        for pid in users_of(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def told(folder: Path, *options: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, the one JSON object on stdout, and stderr."""
    with demo(folder, "--json", *options, **environment) as process:
        output, story = process.communicate(timeout=PATIENCE_S)
        assert users_of(folder) == [], "a process of the estate outlived the demo"
    return process.returncode, json.loads(output), story


def users_of(folder: Path) -> list[int]:
    """Processes that have a file below the folder open; each part of an estate has its log."""
    found = []
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            targets = []
            for descriptor in descriptors.iterdir():
                with suppress(OSError):
                    targets.append(str(descriptor.readlink()))
            if any(Path(target).is_relative_to(folder) for target in targets):
                found.append(int(descriptors.parent.name))
    return found


def configured(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "servicectl.toml").read_text())


def addresses(folder: Path) -> list[tuple[str, int]]:
    """Where the estate's parts listened."""
    config = configured(folder)
    texts = [urlsplit(config["redis"]["url"]).netloc, config["analytics"]["address"], config["serving"]["address"]]
    return [(text.rpartition(":")[0], int(text.rpartition(":")[2])) for text in texts]


def listens(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


def wait_until(what: str, holds: Any, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit, f"waited for {what}"
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def jobs_command(folder: Path, *words: str) -> dict[str, Any]:
    finished = subprocess.run(
        [sys.executable, "-m", "servicectl", "--config", str(folder / "servicectl.toml"), "--json", "jobs", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    answer: dict[str, Any] = json.loads(finished.stdout)
    return answer


@pytest.mark.parts
@pytest.mark.parametrize("redis", ["server", "python"])
def test_every_stage_of_the_loop_happens_and_the_folder_can_be_looked_at_afterwards(tmp_path: Path, redis: str) -> None:
    if redis == "server":
        program("redis-server")
    folder = tmp_path / "the demo's folder"
    # Settings for the user's own estate must not lead the demo's commands there.
    status, answer, story = told(
        folder, "--redis", redis, SERVICECTL_REDIS_URL="redis://127.0.0.1:1/0", SERVICECTL_REDIS_PASSWORD="not for you"
    )

    assert status == 0, (answer, story)
    assert answer["happened"] is True
    assert [stage["name"] for stage in answer["stages"]] == [name for name, _ in demo_plain.PLAN]
    stages = {stage["name"]: stage for stage in answer["stages"]}
    assert all(stage["happened"] and stage["seconds"] >= 0 for stage in answer["stages"])
    assert ("redis-server" in stages["estate"]["redis"].split()[0]) == (redis == "server")

    before, now = stages["first-predictions"], stages["second-predictions"]
    assert before["version"] == "0.1.0"
    assert now["version"] == "0.1.1"
    assert now["calls"] == before["calls"]
    pointer = json.loads((folder / "artifacts/Model_Bank_Calls/Model_Bank_Calls_Production.json").read_text())
    assert now["sha256"] == pointer["servicectl"]["sha256"] != before["sha256"]

    assert (stages["check-before"]["found"], stages["check-before"]["queued"]) == (0, 0)
    verdicts = {one["feature"]: one["verdict"] for one in stages["drift-found"]["features"]}
    assert set(verdicts) == set(data.FEATURES)
    critical = sorted(feature for feature, verdict in verdicts.items() if verdict == "CRITICAL")
    assert len(critical) >= 5
    assert stages["alarm"]["features"] == critical == sorted(stages["drift-found"]["retrain_queued_for"])
    retrained = stages["retrained"]
    assert retrained["challenger"]["f1_macro"] > retrained["champion"]["f1_macro"]
    assert {row["version"]: row["status"] for row in stages["stores"]["registry"]} == {
        "0.1.0": "deprecated",
        "0.1.1": "production",
    }

    assert [address for address in addresses(folder) if listens(address)] == []
    listed = jobs_command(folder, "list")["jobs"]
    assert {job["state"] for job in listed} == {"COMPLETED"}
    assert jobs_command(folder, "show", stages["drift-found"]["job"])["kind"] == "drift-check"


def test_the_demo_sets_no_threshold_seed_or_metric() -> None:
    from servicectl.cli.demo_estate import MODEL, model_section

    section = tomllib.loads(model_section())

    assert section == {"models": {MODEL: {"label": data.LABEL, "features": list(data.FEATURES)}}}


@pytest.mark.parts
def test_an_estate_killed_twice_and_resumed_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    program("redis-server")
    status, answer, story = told(tmp_path / "demo", "--crash", "--redis", "server")

    assert status == 0, (answer, story)
    assert [stage["name"] for stage in answer["stages"]] == [name for name, _ in demo_crash.PLAN]
    stages = {stage["name"]: stage for stage in answer["stages"]}
    assert all(stage["happened"] for stage in answer["stages"])
    killed = [stages[name]["status"] for name in ("retrain-killed", "publish-killed")]
    assert killed == [-signal.SIGKILL, -signal.SIGKILL]
    for name, kind in (("retrain-interrupted", "retrain"), ("publish-interrupted", "publish")):
        interrupted = [job["kind"] for job in stages[name]["jobs"] if job["state"] == "INTERRUPTED"]
        assert interrupted == [kind]
    rows = stages["compared"]["rows"]
    assert all(row["equal"] and row["undisturbed"] == row["interrupted"] for row in rows)
    compared = {(row["part"], row["item"]) for row in rows}
    assert {
        ("artifact", "0.1.1.pkl"),
        ("artifact", "Production.json"),
        ("registry", "0.1.1 (production)"),
        ("Redis", "model_events"),
        ("Redis", "model_metadata:Bank_Calls"),
        ("job", "5 publish"),
    } <= compared


def test_ids_times_and_attempts_make_no_difference_between_two_estates_and_everything_else_does() -> None:
    one = {"version": "0.1.1", "job_id": "a", "load": {"sha256": "5e", "published_at": "now"}}
    same = {"version": "0.1.1", "job_id": "b", "load": {"sha256": "5e", "published_at": "then"}}
    other = {"version": "0.1.1", "job_id": "a", "load": {"sha256": "5f", "published_at": "now"}}

    def picture(value: Any) -> demo_compare.Picture:
        return {("part", "item"): demo_compare.without_ids_and_times(value)}

    def equal(first: demo_compare.Picture, second: demo_compare.Picture) -> list[bool]:
        return [row["equal"] for row in demo_compare.compared(first, second)]

    assert equal(picture(one), picture(same)) == [True]
    assert equal(picture(one), picture(other)) == [False]
    assert equal(picture(one), {}) == [False]
    assert equal({}, picture(one)) == [False]
    assert equal({("part", "item"): None}, {}) == [False]


@pytest.mark.parts
def test_a_part_that_dies_makes_its_stage_fail_and_the_demo_says_which_and_where_to_look(tmp_path: Path) -> None:
    program("redis-server")
    folder = tmp_path / "demo"
    with demo(folder, "--json") as process:
        wait_until("the estate", (folder / "servicectl.toml").is_file, process)
        _, analytics, _ = addresses(folder)
        (pid,) = [
            pid
            for pid in users_of(folder)
            if {b"servicectl.miniature.analytics", str(analytics[1]).encode()}
            <= set(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
        ]
        os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert users_of(folder) == []

    answer = json.loads(output)
    assert process.returncode == 1
    assert answer["happened"] is False
    states = [(stage["name"], stage["happened"]) for stage in answer["stages"]]
    names = [name for name, _ in demo_plain.PLAN]
    failed = names.index("check-before")
    assert states == [(name, number < failed) for number, name in enumerate(names)]
    stage = answer["stages"][failed]
    assert "Service C" in stage["seen"]
    assert Path(stage["log"]).is_file()
    assert answer["stages"][failed + 1]["seen"] == "not reached"


@pytest.mark.parts
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_ended_by_a_signal_stops_its_estate(tmp_path: Path, end: signal.Signals) -> None:
    program("redis-server")
    folder = tmp_path / "demo"
    with demo(folder) as process:
        wait_until("the estate", (folder / "servicectl.toml").is_file, process)
        wait_until("a command", (folder / "state/servicectl.duckdb").exists, process)
        process.send_signal(end)
        process.communicate(timeout=60)

        assert process.returncode == 128 + end
        assert users_of(folder) == []
        assert [address for address in addresses(folder) if listens(address)] == []


def test_a_folder_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")

    with demo(tmp_path) as process:
        _, story = process.communicate(timeout=60)

    assert process.returncode == 2
    assert "is not empty" in story
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_told_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with demo(tmp_path / "file/folder") as process:
        _, story = process.communicate(timeout=60)

    assert process.returncode == 2
    assert "Not a directory" in story
    assert "--folder" in story


def test_a_redis_that_is_not_there_is_the_first_stage_that_does_not_happen(tmp_path: Path) -> None:
    status, answer, _ = told(tmp_path / "demo", "--redis", "server", PATH=str(tmp_path))

    assert status == 1
    assert answer["stages"][0]["happened"] is False
    assert "--redis python" in answer["stages"][0]["seen"]
