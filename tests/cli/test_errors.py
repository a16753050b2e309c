"""What a command says, and ends in, when it is told something wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import ROOT
from tests.parts.estate import Saved, Site, env_without_servicectl


def program(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program as it is installed, in a home folder without a configuration."""
    return subprocess.run(
        [sys.executable, "-m", "servicectl", *arguments],
        cwd=ROOT,
        env={**env_without_servicectl(), "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), **environment},
        capture_output=True,
        text=True,
    )


def test_without_a_configuration_it_says_where_it_looked_and_what_to_type(tmp_path: Path) -> None:
    ended = program("jobs", "list", home=tmp_path)
    assert ended.returncode == 78
    assert str(tmp_path / "config/servicectl/servicectl.toml") in ended.stderr
    assert "servicectl init" in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[redis]\nurl = 6379\n", ":2: redis.url: "),
        ("[drift]\n\nmin_row = 5\n", ":3: drift.min_row: "),
        ('[models.X]\nlabel = "y"\n', ":1: models.X"),
        ('[models.X]\nlabel = "y"\nfeatures = []\n', ":3: models.X.features: "),
        ("[gate]\nalpha = 2.0\n", ":2: gate.alpha: "),
        ("[serving]\ncanary = 'perhaps'\n", ":2: serving.canary: "),
        ("[redis\n", "line 1"),
    ],
)
def test_a_wrong_configuration_is_told_by_file_line_and_key(site: Site, text: str, said: str) -> None:
    site.config.write_text(text)
    for arguments in (("models",), ("jobs", "list"), ("jobs", "resume"), ("listen",)):
        ended = site.run(*arguments)
        assert ended.status == 78, ended
        assert f"{site.config}" in ended.stderr
        assert said in ended.stderr
        assert ended.stdout == ""
    assert not site.state.exists()


def test_a_named_configuration_that_is_not_there_is_told(site: Site) -> None:
    site.config.unlink()
    ended = site.run("--json", "doctor")
    assert ended.status == 78
    told = json.loads(ended.stderr)
    assert str(site.config) in told["error"]
    assert "servicectl init" in told["cure"]
    assert told["exit_status"] == 78


def test_a_wrong_value_from_the_environment_is_told_by_its_variable(site: Site) -> None:
    ended = site.run("models", DRIFT_MIN_ROWS="many")
    assert ended.status == 78
    assert "SERVICECTL_DRIFT_MIN_ROWS" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("publish", "Nobody"), 2, "Nobody"),
        (("publish", "Churn"), 2, "no promoted challenger"),
        (("retrain", "Nobody"), 2, "Nobody"),
        (("retrain", "Churn", "--window", "soon"), 78, "soon"),
        (("jobs", "show", "ffffffff"), 2, "ffffffff"),
        (("jobs", "watch", "ffffffff"), 2, "ffffffff"),
        (("jobs", "resume", "ffffffff"), 2, "ffffffff"),
        (("jobs", "cancel", "ffffffff"), 2, "ffffffff"),
        (("jobs", "retry", "ffffffff"), 2, "ffffffff"),
        (("listen", "--address", "0.0.0.0:50054"), 78, "0.0.0.0:50054"),
        (("init", "/proc/nowhere/servicectl.toml"), 2, "/proc/nowhere"),
    ],
)
def test_with_json_an_error_is_one_object_on_stderr(
    site: Site, arguments: tuple[str, ...], status: int, said: str
) -> None:
    ended = site.run(*arguments, "--json")
    assert ended.status == status, ended
    assert ended.stdout == ""
    told = json.loads(ended.stderr)
    assert set(told) == {"error", "cure", "exit_status"}
    assert said in told["error"]
    assert told["exit_status"] == status
    for_eyes = site.run(*arguments)
    assert for_eyes.status == status
    assert for_eyes.stderr.splitlines()[0].startswith("servicectl: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("jobs", "shw"), "shw"),
        (("retrain", "--sooner"), "--sooner"),
        (("jobs", "show"), "JOB"),
        (("jobs", "list", "--limit", "few"), "few"),
        (("jobs",), "Usage: servicectl jobs"),
    ],
)
def test_with_json_a_command_that_cannot_be_parsed_is_one_object_too(
    site: Site, arguments: tuple[str, ...], said: str
) -> None:
    ended = site.run(*arguments, "--json")
    assert (ended.status, ended.stdout) == (2, "")
    told = json.loads(ended.stderr)
    assert said in told["error"]
    assert told["cure"].endswith(" --help")
    assert told["exit_status"] == 2
    assert "Usage: servicectl" in site.run(*arguments).stderr


def test_with_json_every_result_is_one_object_on_stdout_with_the_status(site: Site, published: Saved) -> None:
    site.restore(published)
    job = site.jobs()[0]["id"]
    commands = [
        ("sync-production",), ("drift-check",), ("models",), ("doctor",), ("jobs", "list"), ("jobs", "show", job),
        ("jobs", "resume"), ("jobs", "watch", job), ("jobs", "prune", "--dry-run"), ("artifacts", "adopt", "Churn"),
        ("init", str(site.folder / "new.toml")),
    ]  # fmt: skip
    for arguments in commands:
        ended = site.run(*arguments, "--json")
        assert ended.status == 0, (arguments, ended)
        assert len(ended.stdout.splitlines()) == 1
        assert ended.told["exit_status"] == 0


def test_the_program_itself_runs_and_tells_its_version(tmp_path: Path) -> None:
    ended = program("--version", home=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("servicectl ")


def test_quiet_says_nothing_but_errors_and_verbose_says_every_step(site: Site, published: Saved) -> None:
    site.restore(published)
    site.estate.client.sadd("prod_models", "Stranger")
    assert "Stranger" in site.run("sync-production").stderr
    assert site.run("sync-production", "-q").stderr == ""
    assert "project Churn" in site.run("-v", "sync-production").stderr
    assert site.run("jobs", "show", "ffffffff", "-q").stderr != ""
