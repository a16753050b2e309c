"""A strict handler on a real Redis, and the report of one line per trap."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from servicectl.actions.world import World
from servicectl.config import Config, HandlerConfig, RedisConfig, StateConfig
from servicectl.errors import PartyUnavailable
from servicectl.estate.queue import HandlerQueue
from servicectl.estate.registry import Registry
from tests.conformance.traps import TRAPS
from tests.parts.handler import HandlerPart, handler
from tests.parts.redis import RedisServer, redis_server, stop

_TABLES = ("model_metadata", "features_table", "model_logs")


@dataclass
class Wire:
    """The strict handler with empty tables. `client` is a bare connection; `queue` the client under test."""

    redis: RedisServer
    handler: HandlerPart
    client: Any
    queue: HandlerQueue

    @property
    def registry(self) -> Registry:
        return Registry(self.queue)

    def amount(self) -> int:
        return int(self.queue.read("SELECT amount FROM counters")[0]["amount"])

    def count_from_zero(self) -> None:
        self.queue.run("CREATE OR REPLACE TABLE counters AS SELECT 0::BIGINT AS amount")


@pytest.fixture(scope="session")
def _served(
    tmp_path_factory: pytest.TempPathFactory, true_values: Callable[[], TrueValues]
) -> Iterator[tuple[RedisServer, HandlerPart]]:
    folder = tmp_path_factory.mktemp("conformance")
    with redis_server(folder) as server, handler(server.url, folder, strict=True, batch_seconds=0.05) as part:
        yield server, part


@pytest.fixture
def wire(_served: tuple[RedisServer, HandlerPart]) -> Iterator[Wire]:
    server, part = _served
    with server.client() as client, HandlerQueue(server.url, timeout_s=10) as queue:
        client.flushall()
        for table in _TABLES:
            queue.run(f"DELETE FROM {table}")
        for table in ("drift_results", "model_baselines"):
            queue.run(f"DROP TABLE IF EXISTS {table}")
        queue.run("DROP VIEW IF EXISTS features")
        yield Wire(server, part, client, queue)


def world_on(wire: Wire, ours: Path, theirs: Path, **sections: Any) -> World:
    """An action's world on this handler; `ours` and `theirs` are the snapshot folder as we and the handler see it."""
    config = Config(
        state=StateConfig(folder=str(ours / "state")),
        redis=RedisConfig(url=wire.redis.url),
        handler=HandlerConfig(snapshot_folder=str(ours), snapshot_folder_handler=str(theirs)),
        **sections,
    )
    world = World(config)
    world.__dict__["queue"] = wire.queue  # closed by its own fixture
    return world


@pytest.fixture
def hasty(wire: Wire) -> Iterator[HandlerQueue]:
    """A client that gives up after 0.3 s; its changes may start for 0.8 s and are final after 1 s."""
    with HandlerQueue(wire.redis.url, timeout_s=0.3, statement_deadline_s=0.8, clock_skew_s=0.2) as queue:
        yield queue


@dataclass
class TrueValues:
    """What came of the true cadence and the true time-out, which take too long to be waited for in a row."""

    frozen: RedisServer | None = None
    silence: PartyUnavailable | None = None
    seen_at_once: int | None = None
    seen_later: int | None = None


@pytest.fixture(scope="session")
def true_values(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], TrueValues]]:
    """Begun with the first test that needs a handler, waited for by the one that asks."""
    told = TrueValues()
    threads = [
        threading.Thread(target=work, args=(tmp_path_factory.mktemp(work.__name__), told)) for work in (_frozen, _slow)
    ]
    for thread in threads:
        thread.start()

    def ended() -> TrueValues:
        for thread in threads:
            thread.join()
        return told

    yield ended
    if told.frozen is not None:
        stop(told.frozen)  # where nobody asked, nobody waits
    ended()


def _frozen(folder: Path, told: TrueValues) -> None:
    with (
        redis_server(folder) as server,
        handler(server.url, folder, strict=True, fault="frozen"),
        HandlerQueue(server.url) as queue,
    ):
        told.frozen = server
        try:
            queue.ping()
        except PartyUnavailable as silent:
            told.silence = silent


def _slow(folder: Path, told: TrueValues) -> None:
    def rows(queue: HandlerQueue) -> int:
        return int(queue.read("SELECT count(*) AS found FROM model_logs")[0]["found"])

    with redis_server(folder) as server, handler(server.url, folder, strict=True), HandlerQueue(server.url) as queue:
        row: dict[str, Any] = {"model_id": "m", "event_datetime": datetime.now(UTC)}
        queue.push_rows("model_logs", [row])
        limit = time.monotonic() + 20
        while rows(queue) < 1 and time.monotonic() < limit:
            time.sleep(0.05)
        # A batch has just been written; the next one is due in four seconds.
        queue.push_rows("model_logs", [row])
        told.seen_at_once = rows(queue)
        while (found := rows(queue)) < 2 and time.monotonic() < limit:
            time.sleep(0.05)
        told.seen_later = found


# -- the report -------------------------------------------------------------------------------------------------------

_OUTCOMES = pytest.StashKey[dict[int, list[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "trap(number): shows that this trap of the estate's wire is answered")
    config.stash[_OUTCOMES] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    for mark in item.iter_markers("trap"):
        if report.when == "call" or report.outcome != "passed":
            item.config.stash[_OUTCOMES].setdefault(mark.args[0], []).append(report.outcome)
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    outcomes = config.stash[_OUTCOMES]
    if len(config.option.file_or_dir or ()) != 1 or Path(config.option.file_or_dir[0]).name != "conformance":
        return  # only where this suite alone was asked for
    terminalreporter.section("traps of the estate's wire")
    for number, trap in TRAPS.items():
        seen = outcomes.get(number, [])
        told = next((word for word in ("failed", "skipped") if word in seen), "passed" if seen else "NOT RUN")
        guard = trap.guards[0].removeprefix("servicectl/")
        terminalreporter.line(f"{number:>2}  {told:<7}  {trap.what}  [{guard}]", red=told != "passed")
