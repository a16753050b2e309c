"""Whole commands while Redis or the handler is in trouble: the documented status, and nothing lost after the cure."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.parts.commands import Running
from tests.parts.estate import MODELS, OLD_ROWS, Estate, Saved, Site, local_site, started
from tests.parts.handler import fault
from tests.parts.redis import redis_server, start_again, stop

_HASTY = {
    "HANDLER_TIMEOUT_S": "1",
    "HANDLER_STATEMENT_DEADLINE_S": "2",
    "HANDLER_CLOCK_SKEW_S": "0.2",
    "REDIS_TIMEOUT_S": "5",
}
_COMMANDS = (("publish", "Churn"), ("sync-production",), ("drift-check",))
_RETRAIN = ("retrain", "Churn")


@dataclass
class Ground:
    """`blank`: rows and no model. `first`: a challenger waits to be published. `published`: each command has run without
    trouble; `picture` is what that left."""

    estate: Estate
    blank: Saved
    first: Saved
    published: Saved
    picture: dict[str, Any]
    stalled: dict[str, tuple[Site, Running]]

    def site(self, folder: Path, saved: Saved) -> Site:
        site = local_site(self.estate, folder)
        site.restore(saved)
        return site


def _picture(site: Site) -> dict[str, Any]:
    return {"tables": site.estate.tables(), "served": site.served(), "blobs": site.blobs()}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("troubles")
    (folder / "stalled").mkdir()
    with started(folder, strict=True) as estate, redis_server(folder / "stalled") as silent:
        estate.empty()
        estate.rows(0, OLD_ROWS)
        site = local_site(estate, folder / "site")
        site.ok("jobs", "prune")
        blank = site.save("blank")
        site.ok("retrain", "Churn", "--no-publish")
        first = site.save("first")
        # A stalled Redis is waited for as long as its socket says, so these begin now and are asked for last.
        os.kill(silent.process.pid, signal.SIGSTOP)
        stalled = {}
        for command in (*_COMMANDS, _RETRAIN):
            one = local_site(estate, folder / f"stalled-{command[0]}")
            one.restore(blank if command is _RETRAIN else first)
            one.configure(MODELS, redis=silent.url)
            stalled[command[0]] = (one, one.start(*command, **_HASTY))
        site.restore(first)
        for command in _COMMANDS:
            site.ok(*command)
        yield Ground(estate, blank, first, site.save("published"), _picture(site), stalled)
        os.kill(silent.process.pid, signal.SIGCONT)


def test_with_redis_stopped_every_command_ends_in_75_and_is_carried_on_afterwards(
    ground: Ground, tmp_path: Path
) -> None:
    site = ground.site(tmp_path / "site", ground.first)
    stop(ground.estate.redis)
    try:
        ended = [site.run(*command, **_HASTY) for command in _COMMANDS]
    finally:
        start_again(ground.estate.redis, ground.estate.folder)
    assert [one.status for one in ended] == [75, 75, 75], ended
    assert all("Redis" in one.stderr for one in ended)

    _carried_on(ground, site)


def test_a_retrain_while_the_handler_is_frozen_is_carried_on_to_the_same_model(ground: Ground, tmp_path: Path) -> None:
    site = ground.site(tmp_path / "site", ground.blank)
    with fault(ground.estate.client, "frozen"):
        ended = site.run(*_RETRAIN, **_HASTY)
    assert ended.status == 75, ended
    assert "DuckDB handler" in ended.stderr

    _made_and_carried_on(ground, site)


def test_a_retrain_while_redis_is_stopped_is_carried_on_to_the_same_model(ground: Ground, tmp_path: Path) -> None:
    site = ground.site(tmp_path / "site", ground.blank)
    stop(ground.estate.redis)
    try:
        ended = site.run(*_RETRAIN, **_HASTY)
    finally:
        start_again(ground.estate.redis, ground.estate.folder)
    assert ended.status == 75, ended
    assert "Redis" in ended.stderr

    _made_and_carried_on(ground, site)


def test_a_retrain_that_loses_redis_before_its_publish_is_carried_on_to_the_same_model(
    ground: Ground, tmp_path: Path
) -> None:
    site = ground.site(tmp_path / "site", ground.blank)
    assert site.run(*_RETRAIN, crash_at="retrain/complete/recorded").status == -signal.SIGKILL
    stop(ground.estate.redis)
    try:
        ended = site.run(*_RETRAIN, **_HASTY)
    finally:
        start_again(ground.estate.redis, ground.estate.folder)
    assert ended.status == 75, ended

    _made_and_carried_on(ground, site)


def test_with_the_handler_frozen_every_command_ends_in_75_and_is_carried_on_afterwards(
    ground: Ground, tmp_path: Path
) -> None:
    site = ground.site(tmp_path / "site", ground.first)
    with fault(ground.estate.client, "frozen"):
        ended = [site.run(*command, **_HASTY) for command in _COMMANDS]
    assert [one.status for one in ended] == [75, 75, 75], ended
    assert all("DuckDB handler" in one.stderr for one in ended)

    _carried_on(ground, site)


@pytest.mark.parametrize("name", ["conflict", "unanswered", "slow"])
def test_a_publish_through_a_handler_in_trouble_ends_as_one_without(ground: Ground, tmp_path: Path, name: str) -> None:
    site = ground.site(tmp_path / "site", ground.first)
    with fault(ground.estate.client, name, times=2, seconds=0.5, matching="^(INSERT|UPDATE)"):
        ended = site.run("publish", "Churn", **_HASTY)
    assert ended.status == 0, ended
    site.ok("drift-check")
    assert _picture(site) == ground.picture


def test_after_a_restart_of_redis_without_its_data_sync_production_restores_it(ground: Ground, tmp_path: Path) -> None:
    site = ground.site(tmp_path / "site", ground.published)
    stop(ground.estate.redis)
    start_again(ground.estate.redis, ground.estate.folder)
    assert site.served() is None

    assert site.run("drift-check").status == 3  # Service C knows no model: not measured
    site.ok("sync-production")
    assert site.served() == ground.picture["served"]


@pytest.mark.parametrize("command", [command[0] for command in (*_COMMANDS, _RETRAIN)])
def test_with_redis_stalled_a_command_ends_in_75_and_is_carried_on_afterwards(ground: Ground, command: str) -> None:
    site, running = ground.stalled[command]
    ended = running.wait()
    assert ended.status == 75, ended
    assert "Redis" in ended.stderr

    site.configure(MODELS)  # Redis is there again
    site.estate.empty()
    if command in ("publish", "retrain"):
        _made_and_carried_on(ground, site)
        return
    site.ok("publish", "Churn")
    assert site.run("jobs", "resume").status == 0
    if command == "sync-production":
        site.ok("drift-check")
    assert _picture(site) == ground.picture


def _carried_on(ground: Ground, site: Site) -> None:
    resumed = site.run("--json", "jobs", "resume")
    assert resumed.status == 0, resumed
    assert _picture(site) == ground.picture


def _made_and_carried_on(ground: Ground, site: Site) -> None:
    assert site.run("jobs", "resume").status == 0
    site.ok("drift-check")
    assert _picture(site) == ground.picture
