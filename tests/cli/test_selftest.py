"""`selftest crash` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.parts import ROOT, program
from tests.parts.azurite import azurite

PATIENCE_S = 300.0


def typed(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    foreign = ("SERVICECTL_", "AZURE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return subprocess.run(
        [sys.executable, "-m", "servicectl", "selftest", "crash", *words],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


@pytest.mark.parts
def test_one_kill_that_a_report_named_is_done_again_and_told_as_json(tmp_path: Path) -> None:
    program("redis-server")
    # Settings for the user's own estate must not lead the selftest's commands there.
    variables = {"SERVICECTL_REDIS_URL": "redis://127.0.0.1:1/0", "SERVICECTL_STATE_FOLDER": str(tmp_path / "mine")}
    ended = typed(
        tmp_path, "--action", "artifacts adopt", "--at", "adopt/point/effect", "--workers", "1", "--json", **variables
    )
    assert ended.returncode == 0, ended
    told: dict[str, Any] = json.loads(ended.stdout)
    assert {name: told[name] for name in ("kills", "boundaries", "differences", "not_reached", "exit_status")} == {
        "kills": 1,
        "boundaries": 1,
        "differences": 0,
        "not_reached": [],
        "exit_status": 0,
    }
    [row] = told["actions"]
    assert (row["action"], row["kinds"], row["boundaries_killed_at"], row["most_resumes"]) == (
        "artifacts adopt",
        ["adopt"],
        1,
        1,
    )
    assert row["boundaries"] > 10
    assert told["first_difference"] is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parts
def test_kills_at_random_and_at_boundaries_are_told_as_a_table(tmp_path: Path) -> None:
    program("redis-server")
    ended = typed(tmp_path, "--action", "artifacts adopt", "--action", "deliver-alarms", "--kills", "8")
    assert ended.returncode == 0, ended
    lines = ended.stdout.splitlines()
    assert lines[0].split("  ")[0] == "action"
    rows = [line.split() for line in lines if line.startswith(("artifacts adopt", "deliver-alarms"))]
    assert [row[-2] for row in rows] == ["0", "0"]
    assert "8 kills in" in lines[-1]
    assert lines[-1].endswith("0 differences")
    assert ended.stderr == ""


@pytest.mark.parts
def test_it_runs_in_containers_of_its_own_and_removes_them(tmp_path: Path) -> None:
    program("redis-server")
    name = f"selftest-{uuid.uuid4().hex[:8]}"
    with azurite() as server:
        secret = {"AZURE_STORAGE_CONNECTION_STRING": server.connection_string}
        words = ("--action", "artifacts adopt", "--kills", "6", "--workers", "1", "--artifacts", f"azure://{name}")
        ended = typed(tmp_path, *words, "--json", **secret)
        told = json.loads(ended.stdout or ended.stderr)
        assert ended.returncode == 0, (told, ended.stderr)
        assert (told["kills"], told["differences"]) == (6, 0)
        with server.service() as service:
            assert [one["name"] for one in service.list_containers(name_starts_with=name)] == []
            service.create_container(f"{name}-1")
        taken = typed(tmp_path, *words, **secret)
        assert taken.returncode == 2
        assert f"{name}-1 exists already" in taken.stderr
        with server.service() as service:
            assert [one["name"] for one in service.list_containers(name_starts_with=name)] == [f"{name}-1"]


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("--action", "make coffee"), 2, "'make coffee' is none of"),
        (("--at", "sometime"), 2, "neither a crash point nor an instant"),
        (("--artifacts", "file:///tmp"), 2, "not an Azure container"),
        (("--artifacts", "azure://mine"), 78, "no credentials"),
    ],
)
@pytest.mark.parts
def test_what_cannot_be_asked_is_told_with_what_to_type(
    tmp_path: Path, words: tuple[str, ...], status: int, told: str
) -> None:
    program("redis-server")
    ended = typed(tmp_path, *words)
    assert ended.returncode == status, ended
    assert told in ended.stderr
    assert ended.stdout == ""


def test_without_a_redis_server_it_says_so(tmp_path: Path) -> None:
    ended = typed(tmp_path, PATH=str(tmp_path))
    assert ended.returncode == 78, ended
    assert "no redis-server on PATH" in ended.stderr


@pytest.mark.parts
def test_sigterm_ends_it_soon_with_everything_that_it_started(tmp_path: Path) -> None:
    program("redis-server")
    mark = f"SELFTEST_OF={tmp_path}"
    process = subprocess.Popen(
        [sys.executable, "-m", "servicectl", "selftest", "crash", "--action", "artifacts adopt", "--workers", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SELFTEST_OF": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # Once it has artifacts, commands run.
        limit = time.monotonic() + 60
        while not (folders := [folder for folder in scratch_folders(mark) if (folder / "artifacts").is_dir()]):
            assert time.monotonic() < limit
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.terminate()
        output, story = process.communicate(timeout=60)
        assert (process.returncode, output, story) == (143, "", "")
        assert marked(mark) == []
        assert not any(folder.exists() for folder in folders)
    finally:
        process.kill()
        process.communicate()


def marked(mark: str) -> list[int]:
    """Processes with this text in their environment."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
    return found


def scratch_folders(mark: str) -> list[Path]:
    """Where the workers of a marked selftest work, by their handlers' command lines."""
    found = []
    for pid in marked(mark):
        with suppress(OSError, ValueError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            found.append(Path(words[words.index("--database") + 1]).parents[1])
    return found
