"""One worker's installation of servicectl on an estate of its own: commands, kills, and the way back to a beginning.

A `World` is everything that an installation and its estate hold at one moment: state folder, artifacts, registry rows,
Redis keys and which rows the feature store has. Every run begins from one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from servicectl.errors import ServicectlError
from servicectl.estate.artifacts.protocol import ArtifactStore
from servicectl.estate.queue import HandlerQueue
from servicectl.estate.serving_wire import EVENT_FIELD, EVENTS
from servicectl.jobs.locks import Locks
from servicectl.miniature.estate import MiniatureEstate
from servicectl.selftest import rows
from servicectl.selftest.forkserver import Ended, ForkServer, Kill, fork_server
from servicectl.selftest.places import Place
from servicectl.sql import literal
from servicectl.store import Store

TABLES = ("model_metadata", "model_baselines", "drift_results")
MODELS = ("Churn", "Blocks", "Legacy", "Gone")

# Short, because a command that is killed inside a change of the registry leaves a lock that outlives these.
_CONFIG = """
[state]
folder = {state}
[redis]
url = {redis}
[handler]
snapshot_folder = {snapshots}
timeout_s = 2.0
statement_deadline_s = 3.0
clock_skew_s = 0.1
[analytics]
address = {analytics}
[serving]
address = {serving}
[artifacts]
url = {artifacts}
{secret}
[jobs]
max_attempts = 20
retry_base_s = 0.001
[drift]
min_rows = 1000
stale_after = "never"
[alarms]
command = ["test", "-e", {sink}]
[models.Churn]
label = "churned"
features = ["tenure", "usage"]
feature_types = {{ tenure = "int" }}
[models.Blocks]
label = "churned"
features = ["tenure", "usage"]
training = "streaming"
estimator = "sklearn.linear_model.SGDClassifier"
"""


@dataclass(frozen=True)
class World:
    """`folder` holds the state folder, the artifacts and the tables; `keys` are Redis' keys, as its own dumps."""

    folder: Path
    keys: Mapping[bytes, bytes]
    tables: Mapping[str, str]  # name -> the statement that makes it
    rows: tuple[int, int]
    job_ids: tuple[str, ...]


@dataclass
class Site:
    """Started on enter, stopped on exit. Not for several threads."""

    folder: Path
    place: Place
    preload: Sequence[str] = ()
    _parts: ExitStack = field(init=False, default_factory=ExitStack)
    _rows: tuple[int, int] | None = field(init=False, default=None)
    _commands: ForkServer | None = field(init=False, default=None)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, mode=0o750)
        try:
            # First: its children inherit nothing of ours.
            self._commands = self._parts.enter_context(fork_server(self.folder, self.preload))
            self._estate = self._parts.enter_context(MiniatureEstate(self.folder / "estate", "server", 0.05))
            self.queue = self._parts.enter_context(HandlerQueue(self._estate.redis_url))
            self.redis = self._parts.enter_context(_redis(self._estate.redis_url))
            self.artifacts: ArtifactStore = self.place.store()
            self._configure()
        except BaseException:
            self._parts.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    def stop(self) -> None:
        """Kill the command that runs, and let none begin: the selftest ends. May be called from another thread."""
        if self._commands is not None:
            self._commands.stop()

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def config(self) -> Path:
        return self.folder / "servicectl.toml"

    @property
    def sink(self) -> Path:
        """Alarms are taken while this file is there."""
        return self.folder / "sink-is-up"

    @property
    def store(self) -> Store:
        return Store(self.state)

    def run(
        self,
        words: Sequence[str],
        variables: Mapping[str, str] = MappingProxyType({}),
        *,
        kill: Kill | None = None,
        busy: Sequence[str] = (),
    ) -> Ended:
        """Run a command. `variables` are without their SERVICECTL_; `busy` scopes are held, as by another process."""
        assert self._commands is not None
        locks = Locks(self.state / "locks")
        told = {f"SERVICECTL_{name}": value for name, value in variables.items()}
        with ExitStack() as held:
            for scope in busy:
                held.enter_context(locks.held(scope))
            return self._commands.run(["--config", str(self.config), "--json", *words], told, kill)

    def done(self, *words: str, **variables: str) -> dict[str, Any]:
        """`run`, which must end in 0; what it told. Raises ServicectlError with its own words."""
        ended = self.run(words, variables)
        if ended.status:
            raise ServicectlError(f"preparing the selftest: {ended}")
        told: dict[str, Any] = json.loads(ended.output)
        return told

    def sql(self, *statements: str) -> None:
        self.queue.run(";\n".join(statements))

    def feature_rows(self, start: int, stop: int) -> None:
        """Let the feature store hold exactly these customers."""
        if self._rows != (start, stop):
            view = "CREATE VIEW IF NOT EXISTS features AS SELECT * FROM features_table"
            self.sql("DELETE FROM features_table", rows.insert_statement(start, stop), view)
            self._rows = (start, stop)

    def empty(self) -> None:
        """No model anywhere, and nothing of servicectl."""
        self.sql(*_emptied())
        self.feature_rows(0, rows.OLD)
        self._restore_files(None)
        self._restore_keys({})

    def save(self, folder: Path) -> World:
        """What is there now; may be restored on any site."""
        folder.mkdir(parents=True)
        made = {
            told["name"]: told["made"]
            for told in self.queue.read("SELECT table_name AS name, sql AS made FROM duckdb_tables()")
            if told["name"] in TABLES
        }
        self.sql(*(f"COPY (SELECT * FROM {name}) TO {_file(folder, name)} (FORMAT parquet)" for name in made))
        shutil.copytree(self.state, folder / "state")
        self.place.save(folder)
        keys = {key: self.redis.dump(key) for key in self.redis.keys("*") if key != EVENTS.encode()}
        assert self._rows is not None
        return World(folder, keys, made, self._rows, self.job_ids())

    def restore(self, world: World) -> None:
        """Become what was saved."""
        wanted = []
        for name, made in world.tables.items():
            wanted += [made] if name != "model_metadata" else []
            wanted.append(f"INSERT INTO {name} SELECT * FROM read_parquet({_file(world.folder, name)})")
        self.sql(*_emptied(), *wanted)
        self.feature_rows(*world.rows)
        self._restore_files(world.folder)
        self._restore_keys(world.keys)

    def job_ids(self) -> tuple[str, ...]:
        with self.store.reading() as connection:
            if connection is None:
                return ()
            return tuple(row[0] for row in connection.execute("SELECT job_id::VARCHAR FROM jobs").fetchall())

    def unfinished(self, besides: Sequence[str]) -> list[str]:
        """The jobs that have not ended, less those of the scopes named."""
        with self.store.reading() as connection:
            if connection is None:
                return []
            found = connection.execute(
                "SELECT kind, scope, state FROM jobs WHERE state IN ('PENDING', 'RUNNING') ORDER BY created_at, job_id"
            ).fetchall()
        return [f"{kind} of {scope} is {state}" for kind, scope, state in found if scope not in besides]

    def keep(self, folder: Path) -> None:
        """Copy what somebody who looks for a difference wants to see."""
        shutil.copytree(self.state, folder / "state", dirs_exist_ok=True)
        self.place.save(folder)
        for path in (self.config, *self.folder.glob("command.*"), *(self.folder / "estate" / "log").glob("*.log")):
            shutil.copy2(path, folder / path.name)

    def _restore_files(self, source: Path | None) -> None:
        shutil.rmtree(self.state, ignore_errors=True)
        for leftover in self._estate.snapshots.glob("*.parquet"):
            leftover.unlink(missing_ok=True)
        self.sink.touch()
        if source is not None:
            shutil.copytree(source / "state", self.state)
        self.place.restore(source)

    def _restore_keys(self, keys: Mapping[bytes, bytes]) -> None:
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.flushall()
            for key, value in keys.items():
                pipe.restore(key, 0, value)
            # Service B lets go of what it keeps in memory: another run's model of the same name.
            for model_id in MODELS:
                pipe.xadd(EVENTS, {EVENT_FIELD: json.dumps({"model": model_id})})
            pipe.execute()

    def _configure(self) -> None:
        secret = self.folder / "connection-string"
        if self.place.connection_string:
            secret.touch(mode=0o600)
            secret.write_text(self.place.connection_string)
        values = {
            "state": self.state,
            "redis": self._estate.redis_url,
            "snapshots": self._estate.snapshots,
            "analytics": self._estate.analytics_address,
            "serving": self._estate.serving_address,
            "artifacts": self.place.url,
            "sink": self.sink,
        }
        quoted = {name: json.dumps(str(value), ensure_ascii=False) for name, value in values.items()}
        at = f"connection_string_file = {json.dumps(str(secret))}" if self.place.connection_string else ""
        self.config.write_text(_CONFIG.format(**quoted, secret=at))


def _file(folder: Path, table: str) -> str:
    return literal(str(folder / f"{table}.parquet"))


def _emptied() -> list[str]:
    # What a check was started by differs between a run and its resumption: dropped, and in no picture.
    return ["DELETE FROM model_metadata", *(f"DROP TABLE IF EXISTS {name}" for name in (*TABLES[1:], "drift_evidence"))]


@contextmanager
def _redis(url: str) -> Iterator[Any]:
    """Any: redis-py's annotations mix text, bytes and None for every answer."""
    import redis

    with redis.Redis.from_url(url) as client:
        yield client
