"""A whole running estate for tests of commands: Redis, handler, Service B and Service C started once, reset per test.

A `Site` is one installation of servicectl on that estate: its own state folder, artifact store and configuration.
A `Saved` is everything that an installation and its estate hold at one moment, to begin many tests from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from servicectl.clock import SYSTEM
from servicectl.estate.artifacts import names, open_store
from servicectl.estate.artifacts.pointer import Pointer, decode
from servicectl.estate.artifacts.protocol import ArtifactStore
from servicectl.estate.queue import HandlerQueue
from servicectl.jobs.table import JobTable
from servicectl.store import Store
from tests.parts.azurite import Azurite, azurite
from tests.parts.commands import Ended, ForkServer, Running, fork_server
from tests.parts.handler import HandlerPart, handler
from tests.parts.redis import RedisServer, redis_server
from tests.parts.workers import WorkerPart, analytics_worker, serving_worker

OLD_ROWS = 2000
ALL_ROWS = 2600

MODELS = """
[models.Churn]
label = "churned"
features = ["tenure", "usage"]
feature_types = { tenure = "int" }

[models.Spend]
task = "regression"
label = "spend"
features = ["tenure"]
"""

_TABLES = ("model_metadata", "model_baselines", "drift_results", "drift_evidence")
_BY_ANOTHER_NAME = "SELECT table_name AS name FROM information_schema.tables WHERE table_name LIKE 'saved_%'"


def rows_sql(start: int, stop: int) -> str:
    """Customers [start, stop), one an hour: from OLD_ROWS on `usage` is far higher, and churn follows another rule."""
    rows = f"""SELECT i, i % 10 AS tenure, ((i // 10) % 5) * 0.1::DOUBLE + CASE WHEN i < {OLD_ROWS} THEN 0 ELSE 10 END AS usage,
        CASE WHEN ((i % 10) >= CASE WHEN i < {OLD_ROWS} THEN 7 ELSE 2 END) <> ((i * 7919) % 13 = 3) THEN 1 ELSE 0 END AS churned,
        3 * (i % 10) + (i * 31) % 7 AS spend FROM range({start}, {stop}) AS r(i)"""
    values = " UNION ALL ".join(
        f"SELECT i, '{name}' AS feature_name, {name}::DOUBLE AS value FROM customers"
        for name in ("tenure", "usage", "churned", "spend")
    )
    return (
        "INSERT INTO features_table (entity_id, feature_name, value, event_timestamp, created_at) "
        f"WITH customers AS ({rows}), long AS ({values}) SELECT 'customer-' || i, feature_name, value, "
        "TIMESTAMP '2024-01-01' + to_hours(i::BIGINT), TIMESTAMP '2024-01-01' + to_hours(i::BIGINT) FROM long"
    )


@dataclass
class Estate:
    folder: Path
    redis: RedisServer
    handler: HandlerPart
    analytics: WorkerPart
    serving: WorkerPart
    commands: ForkServer
    parts: ExitStack
    _rows: tuple[int, int] | None = field(default=None)

    @cached_property
    def azurite(self) -> Azurite:
        return self.parts.enter_context(azurite())

    @cached_property
    def queue(self) -> HandlerQueue:
        queue = HandlerQueue(self.redis.url, timeout_s=30, statement_deadline_s=60, clock_skew_s=5, clock=SYSTEM)
        self.parts.callback(queue.close)
        return queue

    @cached_property
    def client(self) -> Any:
        """Any: redis-py's annotations mix text, bytes and None for every answer."""
        client = self.redis.client()
        self.parts.callback(client.close)
        return client

    def sql(self, statement: str) -> None:
        self.queue.run(statement)

    def rows(self, start: int, stop: int) -> None:
        """Let the feature store hold exactly these customers, and the view that Service C reads exist."""
        if self._rows != (start, stop):
            self.sql("DELETE FROM features_table")
            if stop > start:
                self.sql(rows_sql(start, stop))
            self._rows = (start, stop)
        self.sql("CREATE VIEW IF NOT EXISTS features AS SELECT * FROM features_table")

    def more_rows(self, statement: str) -> None:
        """Change the feature store by hand; the next `rows` makes it anew."""
        self._rows = None
        self.sql(statement)

    def empty(self) -> None:
        """No model anywhere: registry, our own tables, Redis, and Service B's memory."""
        self.client.flushall()
        self.sql("DELETE FROM model_logs")
        for table in _TABLES:
            # Created by the command that needs them: their absence is the ordinary beginning.
            self.sql("DELETE FROM model_metadata" if table == "model_metadata" else f"DROP TABLE IF EXISTS {table}")
        self.forget()

    def forget(self) -> None:
        """Make Service B let go of what it keeps in memory: another test's model of the same name."""
        for model_id in ("Churn", "Spend", "Upsell", "Loan"):
            self.client.xadd("model_events", {"event": json.dumps({"model": model_id})})

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Registry, baselines and drift log by their lasting columns."""
        there = {row["name"] for row in self.queue.read("SELECT table_name AS name FROM information_schema.tables")}
        queries = {
            "model_metadata": "SELECT model_id, version, status, azure_location, CAST(trained_date AS VARCHAR) AS trained, "
            "CAST(expected_features AS VARCHAR) AS features, model_drift_score FROM model_metadata "
            "ORDER BY model_id, version, status",
            "model_baselines": "SELECT model_id, version, sha256 FROM model_baselines ORDER BY model_id, version",
            "drift_results": "SELECT model_id, model_version, feature_name, verdict, count(*) AS times FROM drift_results "
            "GROUP BY ALL ORDER BY model_id, feature_name, model_version",
        }
        return {table: self.queue.read(query) if table in there else [] for table, query in queries.items()}

    def save_tables(self, tag: str) -> None:
        there = {row["name"] for row in self.queue.read("SELECT table_name AS name FROM information_schema.tables")}
        for table in _TABLES:
            if table in there:
                self.sql(f"CREATE TABLE saved_{tag}_{table} AS SELECT * FROM {table}")

    def restore_tables(self, tag: str) -> None:
        saved = {row["name"] for row in self.queue.read(_BY_ANOTHER_NAME)}
        for table in _TABLES:
            if f"saved_{tag}_{table}" not in saved:
                continue
            if table == "model_metadata":
                self.sql(f"INSERT INTO model_metadata SELECT * FROM saved_{tag}_{table}")
            else:
                self.sql(f"CREATE OR REPLACE TABLE {table} AS SELECT * FROM saved_{tag}_{table}")


@contextmanager
def started(folder: Path, *, strict: bool = False) -> Iterator[Estate]:
    """Given an empty folder, the estate in it; `strict` gives it the handler's strict face."""
    with ExitStack() as parts:
        commands = folder / "commands"
        commands.mkdir()
        (folder / "snapshots").mkdir()
        # First: its children inherit no connection of ours.
        server = parts.enter_context(fork_server(commands))
        redis = parts.enter_context(redis_server(folder))
        served = parts.enter_context(handler(redis.url, folder, strict=strict, batch_seconds=0.05))
        analytics = parts.enter_context(analytics_worker(redis.url, patience_s=10))
        serving = parts.enter_context(serving_worker(redis.url))
        yield Estate(folder, redis, served, analytics, serving, server, parts)


@dataclass(frozen=True)
class Saved:
    """`folder` holds the state and, in a local store, the artifacts; registry and Redis keys are kept beside."""

    tag: str
    folder: Path
    keys: Mapping[bytes, bytes]


@dataclass
class Site:
    """One installation: a configuration, a state folder and an artifact store on an estate."""

    estate: Estate
    folder: Path
    url: str
    extra: str = MODELS
    settings: dict[str, str] = field(default_factory=dict)  # SERVICECTL_* of every command
    connection_string: str | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.configure(self.extra)

    @property
    def config(self) -> Path:
        return self.folder / "servicectl.toml"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def configure(self, extra: str, **addresses: str) -> None:
        """Write the configuration; `addresses` replace analytics, serving or redis."""
        secret = ""
        if self.connection_string:
            (self.folder / "connection").write_text(self.connection_string)
            secret = f'connection_string_file = "{self.folder}/connection"'
        self.config.write_text(
            f"""
[state]
folder = "{self.state}"
[redis]
url = "{addresses.get("redis", self.estate.redis.url)}"
[handler]
snapshot_folder = "{self.estate.folder}/snapshots"
[analytics]
address = "{addresses.get("analytics", self.estate.analytics.address)}"
[serving]
address = "{addresses.get("serving", self.estate.serving.address)}"
[artifacts]
url = "{self.url}"
{secret}
[jobs]
max_attempts = 60
retry_base_s = 0.001
[drift]
min_rows = 1000
stale_after = "never"
{extra}"""
        )

    @property
    def store(self) -> ArtifactStore:
        return open_store(self.url, self.connection_string)

    def start(self, *arguments: str, crash_at: str = "", **settings: str) -> Running:
        """Start a command; `settings` are environment variables without their SERVICECTL_."""
        environment = {f"SERVICECTL_{name}": value for name, value in {**self.settings, **settings}.items()}
        environment |= {"SERVICECTL_CRASH_AT": crash_at} if crash_at else {}
        return self.estate.commands.start(["--config", str(self.config), *arguments], environment)

    def run(self, *arguments: str, crash_at: str = "", **settings: str) -> Ended:
        return self.start(*arguments, crash_at=crash_at, **settings).wait()

    def ok(self, *arguments: str, **settings: str) -> dict[str, Any]:
        """Run a command that must end in 0; what it told as JSON."""
        ended = self.run("--json", *arguments, **settings)
        assert ended.status == 0, ended
        return ended.told

    def jobs(self) -> list[dict[str, Any]]:
        """Every job, oldest first."""
        told: list[dict[str, Any]] = self.ok("jobs", "list", "--all")["jobs"]
        return told[::-1]

    def save(self, tag: str) -> Saved:
        self.estate.save_tables(tag)
        client = self.estate.client
        keys = {key: client.dump(key) for key in client.keys("*") if key != b"model_events"}
        shutil.copytree(self.folder, folder := self.estate.folder / f"saved-{tag}")
        return Saved(tag, folder, keys)

    def restore(self, saved: Saved) -> None:
        """Become what was saved; a local artifact store is carried over blob by blob, whatever ours is."""
        self.estate.empty()
        self.estate.restore_tables(saved.tag)
        for key, value in saved.keys.items():
            self.estate.client.restore(key, 0, value)
        shutil.rmtree(self.state, ignore_errors=True)
        shutil.copytree(saved.folder / "state", self.state)
        source, ours = open_store(f"file://{saved.folder}/artifacts", None), self.store
        for folder in sorted((saved.folder / "artifacts").glob("Model_*")):
            for blob in source.list(f"{folder.name}/"):
                ours.create(blob.name, source.read(blob.name)[0], blob.metadata)

    def pointer(self, model_id: str = "Churn") -> Pointer | None:
        """The production pointer, after its artifact was found complete."""
        return checked_pointer(self.store, model_id)

    def blobs(self, model_id: str = "Churn") -> dict[str, Any]:
        """Every blob's content, less ids and times: JSON as such, digests of all others."""
        found = {}
        for blob in self.store.list(f"Model_{model_id}/"):
            content = self.store.read(blob.name)[0]
            if blob.name.endswith(".json"):
                found[blob.name] = _without_ids(json.loads(content))
            else:
                found[blob.name] = hashlib.sha256(content).hexdigest()
        return found

    def served(self, model_id: str = "Churn") -> dict[str, Any] | None:
        """What readers of Redis get: metadata, digest of the artifact, and whether the model is named."""
        client = self.estate.client
        metadata, content = client.get(f"model_metadata:{model_id}"), client.get(f"model:{model_id}:pkl")
        if metadata is None and content is None:
            return None
        return {
            "metadata": json.loads(metadata),
            "artifact": hashlib.sha256(content).hexdigest(),
            "named": bool(client.sismember("prod_models", model_id)),
        }

    def events(self, model_id: str = "Churn") -> list[dict[str, Any]]:
        """The events of servicectl since the estate was emptied."""
        told = [json.loads(fields[b"event"]) for _, fields in self.estate.client.xrange("model_events")]
        return [event for event in told if event["model"] == model_id and "generation" in event]

    def picture(self, model_id: str = "Churn") -> dict[str, Any]:
        """Everything that a publish changes, less ids and times."""
        return {
            "blobs": self.blobs(model_id),
            "tables": self.estate.tables(),
            "served": self.served(model_id),
            "events": [
                {name: value for name, value in event.items() if name != "job"} for event in self.events(model_id)
            ],
            "keys": sorted(key.decode() for key in self.estate.client.keys("*")),
            "jobs": [(job.kind, job.scope, job.state, job.outcome) for job in JobTable(Store(self.state)).newest()],
        }


def checked_pointer(store: ArtifactStore, model_id: str) -> Pointer | None:
    """The pointer; None if there is none. Fails if it does not name a complete artifact of its digest."""
    name = names.production(f"Model_{model_id}/", model_id, "json")
    if store.stat(name) is None:
        return None
    pointer, _ = decode(store.read(name)[0])
    assert pointer is not None
    content = store.read(pointer.name)[0]
    assert hashlib.sha256(content).hexdigest() == pointer.sha256
    assert len(content) == pointer.size
    return pointer


_CHANGING = {"job_id", "published_at", "manifest_sha256", "created_at", "seconds"}


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_ids(member) for name, member in value.items() if name not in _CHANGING}
    return [_without_ids(member) for member in value] if isinstance(value, list) else value


def deadline(seconds: float = 60.0) -> Callable[[str], None]:
    """Given what is waited for, fail once the time is over; called between looks."""
    import time

    limit = time.monotonic() + seconds

    def check(what: str) -> None:
        if time.monotonic() > limit:
            raise AssertionError(f"waited {seconds:g} s for {what}")
        time.sleep(0.02)

    return check


# -- fixtures, imported by the conftest.py of each folder that uses them ---------------------------------------------------

_SHARED = pytest.StashKey[dict[str, Any]]()


def _shared(request: pytest.FixtureRequest, name: str, make: Callable[[], Any]) -> Any:
    """One value for the whole session, although each conftest.py has its own fixture of the name."""
    values = request.config.stash.setdefault(_SHARED, {})
    if name not in values:
        values[name] = make()
    return values[name]


@pytest.fixture
def estate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Estate:
    """The running estate, without any model, with the older customers in the feature store."""

    def make() -> Estate:
        running = ExitStack()
        request.config.add_cleanup(running.close)
        return running.enter_context(started(tmp_path_factory.mktemp("estate")))

    found: Estate = _shared(request, "estate", make)
    found.empty()
    found.rows(0, OLD_ROWS)
    return found


@pytest.fixture
def site(estate: Estate, tmp_path: Path) -> Site:
    """A new installation with a local artifact store."""
    return local_site(estate, tmp_path / "site")


def local_site(estate: Estate, folder: Path) -> Site:
    return Site(estate, folder, f"file://{folder}/artifacts")


def azure_site(estate: Estate, folder: Path) -> Site:
    server = estate.azurite
    return Site(estate, folder, f"azure://{server.container()}", connection_string=server.connection_string)


@pytest.fixture(params=["file", pytest.param("azure", marks=pytest.mark.parts)])
def either_site(request: pytest.FixtureRequest, estate: Estate, tmp_path: Path) -> Site:
    """A new installation, once with a local artifact store and once with Azure's."""
    return (local_site if request.param == "file" else azure_site)(estate, tmp_path / "site")


@pytest.fixture
def first_candidate(request: pytest.FixtureRequest, estate: Estate) -> Saved:
    """An installation whose first retrain of Churn is done and promoted, not published."""

    def make() -> Saved:
        site = local_site(estate, estate.folder / "first")
        told = site.ok("retrain", "Churn", "--no-publish")
        assert [job["outcome"] for job in told["jobs"]] == ["promoted"]
        return site.save("first")

    found: Saved = _shared(request, "first candidate", make)
    return found


@pytest.fixture
def published(request: pytest.FixtureRequest, estate: Estate, first_candidate: Saved) -> Saved:
    """An installation with Churn 0.1.0 in production."""

    def make() -> Saved:
        site = local_site(estate, estate.folder / "published")
        site.restore(first_candidate)
        told = site.ok("publish", "Churn")
        assert [job["outcome"] for job in told["jobs"]] == ["published"]
        return site.save("published")

    found: Saved = _shared(request, "published", make)
    return found


@pytest.fixture
def second_candidate(request: pytest.FixtureRequest, estate: Estate, published: Saved) -> Saved:
    """An installation with Churn 0.1.0 in production and a better challenger that is not published."""

    def make() -> Saved:
        site = local_site(estate, estate.folder / "second")
        site.restore(published)
        estate.rows(0, ALL_ROWS)
        told = site.ok("retrain", "Churn", "--no-publish")
        assert [job["outcome"] for job in told["jobs"]] == ["promoted"], told
        return site.save("second")

    found: Saved = _shared(request, "second candidate", make)
    return found


def env_without_servicectl() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SERVICECTL_")}


def outcomes(told: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """(kind, outcome) of each job that a command told about."""
    jobs: Sequence[Mapping[str, Any]] = told["jobs"]
    return [(job["kind"], job["outcome"]) for job in jobs]
