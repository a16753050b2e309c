"""`servicectl.toml`: found, read, checked; each fault told with file, line, key and what was expected."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from servicectl.config import Config, find, load, search_path, seconds, secret
from servicectl.errors import ConfigError, UsageError
from tests.parts import ROOT, missing


def _load(tmp_path: Path, text: str, **environment: str) -> Config:
    path = tmp_path / "servicectl.toml"
    path.write_text(text)
    return load(path, environment)


def test_an_empty_file_gives_every_default(tmp_path: Path) -> None:
    config = _load(tmp_path, "")

    assert config.redis.url == "redis://localhost:6379/0"
    assert (config.jobs.max_attempts, config.drift.min_rows, config.gate.mode) == (5, 20_000, "judge")
    assert config.models == {}
    assert config.path == str(tmp_path / "servicectl.toml")


def test_a_model_is_read_with_its_own_defaults(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        """
        [models.bank]
        label = "y"
        features = ["age", "job"]
        params = {C = 0.5}
        [models."bank.eu".source]
        kind = "wide"
        [models."bank.eu"]
        label = "y"
        features = ["age"]
        """,
    )

    assert config.model("bank").features == ("age", "job")
    assert config.model("bank").params == {"C": 0.5}
    assert config.model("bank").source.table == "features_table"
    assert config.model("bank.eu").source.kind == "wide"


def test_an_unknown_model_is_a_usage_error_that_names_the_known_ones(tmp_path: Path) -> None:
    config = _load(tmp_path, '[models.b]\nlabel="y"\nfeatures=["a"]\n[models.a]\nlabel="y"\nfeatures=["a"]\n')

    with pytest.raises(UsageError, match="has no model 'c'; it knows: a, b") as caught:
        config.model("c")

    assert caught.value.cure == "add a section [models.c]"


@pytest.mark.parametrize(
    ("text", "line", "key", "expected"),
    [
        ("[redis]\nurl = 5", 2, "redis.url", "Expected `str`, got `int`"),
        ('# a\n\n[jobs]\nmax_attempts = "5"', 4, "jobs.max_attempts", "Expected `int`, got `str`"),
        ("[jobs]\nkeep_days = 1\nmax_attempts = 0", 3, "jobs.max_attempts", "Expected `int` >= 1"),
        ("[gate]\nalpha = 1.5", 2, "gate.alpha", "Expected `float` < 1.0"),
        ('[gate]\nmode = "maybe"', 2, "gate.mode", "Invalid enum value 'maybe'"),
        ("[redis]\nulr = 'x'", 2, "redis.ulr", "unknown field `ulr`"),
        ("\n[reddis]\nurl = 'x'", 2, "reddis", "unknown field `reddis`"),
        ("redis.url = 5", 1, "redis.url", "Expected `str`, got `int`"),
        ("redis . url = 5", 1, "redis.url", "Expected `str`, got `int`"),
        ("redis = 5", 1, "redis", "Expected `object`, got `int`"),
        ("path = 'x'", 1, "path", "unknown key 'path'"),
        ("models = 5", 1, "models", "expected one section [models.NAME] per model"),
        ("a = 1\n[models.bank]\nfeatures = ['a']", 2, "models.bank", "missing required field `label`"),
        ("[models.bank]\nlabel = 'y'\nfeatures = []", 3, "models.bank.features", "Expected `array` of length >= 1"),
        ("[models.bank]\nlabel = 'y'\nfeatures = ['a', 1]", 3, "models.bank.features", "Expected `str`, got `int`"),
        (
            "[models.b]\nlabel='y'\nfeatures=['a']\n[models.b.source]\nkind='x'",
            5,
            "models.b.source.kind",
            "Invalid enum",
        ),
        ('[models.a]\nlabel="y"\nfeatures=["a"]\n[models."a.b"]\nlabel = 3', 5, "models.a.b.label", "Expected `str`"),
        ("\n[models.'bad name']\nlabel = 'y'", 2, "models.bad name", "matching regex"),
        ("[models]\nbank = 3", 2, "models.bank", "Expected `object`, got `int`"),
    ],
)
def test_a_wrong_value_is_told_with_file_line_key_and_what_was_expected(
    tmp_path: Path, text: str, line: int, key: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)

    message = caught.value.message
    assert message.startswith(f"{tmp_path / 'servicectl.toml'}:{line}: ")
    assert key in message
    assert expected in message


@pytest.mark.parametrize("lines", ["parts_drifted = 2", "parts = 1\nparts_drifted = 2", "parts_drifted = 4\nparts = 3"])
def test_more_parts_that_must_drift_than_there_are_is_an_error_and_never_ignored(tmp_path: Path, lines: str) -> None:
    with pytest.raises(ConfigError, match=r"servicectl\.toml:\d: drift\.parts_drifted: \d of \d parts can never"):
        _load(tmp_path, f"[drift]\n{lines}\n")
    assert _load(tmp_path, "[drift]\nparts = 3\nparts_drifted = 3\n").drift.parts_drifted == 3


def test_text_that_is_not_toml_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"servicectl\.toml: .*line 2, column"):
        _load(tmp_path, "[redis]\nurl = \n")


def test_a_file_that_is_not_utf8_or_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "servicectl.toml"
    path.write_bytes(b"# \xff")

    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(path, {})
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "other.toml", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, {})


def test_the_environment_overrides_one_value_of_a_section(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        "[jobs]\nmax_attempts = 2\nkeep_days = 7\n",
        SERVICECTL_JOBS_MAX_ATTEMPTS="9",
        SERVICECTL_REDIS_URL="redis://elsewhere:1/0",
        SERVICECTL_DRIFT_RETRAIN="queue",
        SERVICECTL_SERVING_LIBRARIES='["xgboost"]',
        SERVICECTL_GATE_ALPHA="0.01",
    )

    assert (config.jobs.max_attempts, config.jobs.keep_days) == (9, 7)
    assert config.redis.url == "redis://elsewhere:1/0"
    assert config.drift.retrain == "queue"
    assert config.serving.libraries == ("xgboost",)
    assert config.gate.alpha == 0.01


def test_text_from_the_environment_needs_no_quotes_also_when_it_looks_like_a_number(tmp_path: Path) -> None:
    config = _load(tmp_path, "", SERVICECTL_SERVING_SCIKIT_LEARN="1.9", SERVICECTL_STATE_FOLDER="2026-11-23")

    assert config.serving.scikit_learn == "1.9"
    assert config.state.folder == "2026-11-23"


def test_a_wrong_override_is_told_with_its_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^SERVICECTL_JOBS_MAX_ATTEMPTS: jobs\.max_attempts: Expected `int`"):
        _load(tmp_path, "[jobs]\nmax_attempts = 2", SERVICECTL_JOBS_MAX_ATTEMPTS="many")


def test_variables_that_name_no_value_change_nothing(tmp_path: Path) -> None:
    others = {
        "SERVICECTL_REDIS_PASSWORD": "hush",
        "SERVICECTL_CONFIG": "/x",
        "SERVICECTL_CRASH_AT": "a/b",
        "SERVICECTL_MODELS_BANK": "5",
        "SERVICECTL_PATH": "/x",
        "REDIS_URL": "redis://x",
    }

    assert _load(tmp_path, "", **others) == _load(tmp_path, "")


def test_the_file_that_was_named_wins_then_the_environment_then_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, by_variable, at_home = (
        tmp_path / name for name in ("named.toml", "variable.toml", "servicectl/servicectl.toml")
    )
    at_home.parent.mkdir()
    for file in (named, by_variable, at_home):
        file.touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("SERVICECTL_CONFIG", str(by_variable))

    assert find(str(named)) == named
    assert find(None) == by_variable
    monkeypatch.delenv("SERVICECTL_CONFIG")
    assert find(None) == at_home
    assert search_path({"XDG_CONFIG_HOME": "/x"}) == [
        Path("/x/servicectl/servicectl.toml"),
        Path("/etc/servicectl/servicectl.toml"),
    ]


def test_a_missing_file_is_told_with_the_command_that_writes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"there is no configuration file gone\.toml") as caught:
        find("gone.toml")

    assert "servicectl init gone.toml" in caught.value.cure
    monkeypatch.delenv("SERVICECTL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    if not search_path()[-1].exists():
        with pytest.raises(ConfigError, match=f"looked at {tmp_path}/servicectl/servicectl.toml, /etc"):
            find(None)


def test_the_state_folder_is_the_configured_one_then_systemds_then_the_home_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/servicectl:/var/lib/other")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/x/state")
    configured = _load(tmp_path, "[state]\nfolder = '/srv/state'")
    unset = _load(tmp_path, "")

    assert configured.state_folder == Path("/srv/state")
    assert unset.state_folder == Path("/var/lib/servicectl")
    monkeypatch.delenv("STATE_DIRECTORY")
    assert unset.state_folder == Path("/home/x/state/servicectl")
    assert unset.artifacts_url == "file:///home/x/state/servicectl/artifacts"
    assert unset.snapshot_folder == Path("/home/x/state/servicectl/snapshots")
    assert unset.snapshot_folder_handler == "/home/x/state/servicectl/snapshots"


def test_relative_folders_are_beside_the_file_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _load(tmp_path, "[state]\nfolder = 'state'\n[handler]\nsnapshot_folder = 'shared'")
    monkeypatch.chdir("/")

    assert config.state_folder == tmp_path / "state"
    assert config.snapshot_folder == tmp_path / "shared"


def test_a_secret_comes_from_the_environment_then_a_file_then_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("from the file\n")
    (tmp_path / "redis-password").write_text("from systemd\n")
    monkeypatch.setenv("A_SECRET", "from the environment")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))

    assert secret("A_SECRET", str(tmp_path / "file"), "redis-password") == "from the environment"
    monkeypatch.delenv("A_SECRET")
    assert secret("A_SECRET", str(tmp_path / "file"), "redis-password") == "from the file"
    assert secret("A_SECRET", None, "redis-password") == "from systemd"
    assert secret("A_SECRET", None, "another") is None
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert secret("A_SECRET", None, "redis-password") is None


def test_a_secret_file_that_is_missing_or_unreadable_is_an_error_that_never_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("A_SECRET", raising=False)
    (tmp_path / "binary").write_bytes(b"hush\xff")

    for file, why in (("gone", "does not exist"), (".", "Is a directory"), ("binary", "not UTF-8 text")):
        with pytest.raises(ConfigError, match=why) as caught:
            secret("A_SECRET", str(tmp_path / file), "redis-password")

        assert "A_SECRET" in caught.value.cure
        assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"), [("90d", 7_776_000.0), (" 1.5h", 5400.0), ("15m", 900.0), ("20 s", 20.0)]
)
def test_a_length_of_time_is_read(text: str, expected: float) -> None:
    assert seconds(text, "models.bank.window") == expected


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "1w", "1d 2h"])
def test_what_is_no_length_of_time_is_told_with_its_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^models\.bank\.window: '.*' is not a length of time"):
        seconds(text, "models.bank.window")


_AS_NOBODY = """
import os, sys
from servicectl.config import find
from servicectl.errors import ConfigError
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    find(sys.argv[1] or None)
except ConfigError as error:
    print(error)
"""


@pytest.mark.root
@pytest.mark.parametrize("named", [True, False])
def test_a_configuration_that_this_user_may_not_see_is_told(tmp_path: Path, *, named: bool) -> None:
    if os.getuid() != 0:
        missing("root", "only root can become another user")
    file = tmp_path / "servicectl" / "servicectl.toml"
    file.parent.mkdir(mode=0o700)
    file.touch()

    ran = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(file) if named else ""],
        cwd=ROOT,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "SERVICECTL_CONFIG": ""},
        capture_output=True,
        text=True,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"{file} cannot be read: Permission denied")
