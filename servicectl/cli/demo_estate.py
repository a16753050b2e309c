"""One estate of the demo, and what a user does to it: type commands, store calls, ask for predictions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from servicectl.cli.demo_story import StageFailed
from servicectl.errors import ExitStatus
from servicectl.estate.alarms import Alarm, Alarms
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.pointer import Pointer, decode
from servicectl.estate.queue import HandlerQueue
from servicectl.estate.registry import Registry
from servicectl.estate.serving import ServingClient
from servicectl.files import write_atomically
from servicectl.miniature import data
from servicectl.miniature.estate import MiniatureEstate, RedisKind
from servicectl.store import Store

MODEL = "Bank_Calls"
CREATE_VIEW = "CREATE VIEW features AS SELECT * FROM features_table"

_PATIENCE_S = 300.0  # for one command
_STOP_S = 20.0
_FOREIGN = ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "JOURNAL_STREAM", "INVOCATION_ID")


@dataclass(frozen=True)
class Said:
    """How one command ended: `told` is its JSON, `story` what it wrote to stderr."""

    words: tuple[str, ...]
    status: int
    seconds: float
    told: dict[str, Any]
    story: str

    @property
    def line(self) -> str:
        return " ".join(("servicectl", *self.words))

    def job(self, kind: str) -> dict[str, Any]:
        """The job of that kind that the command ran. Raises LookupError if it ran none."""
        found = [job for job in self.told.get("jobs", ()) if job["kind"] == kind]
        if not found:
            raise LookupError(f"`{self.line}` ran no {kind} job")
        return dict(found[0])


@dataclass
class DemoEstate:
    """A miniature estate with its configuration; its processes end on exit, its folder stays."""

    folder: Path
    redis: RedisKind
    analytics_source: str = "service-c"
    estate: MiniatureEstate = field(init=False)
    _running: ExitStack = field(init=False, default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.estate = MiniatureEstate(self.folder, self.redis)

    def __enter__(self) -> Self:
        self._running.enter_context(self.estate)
        write_atomically(self.config, self.estate.config_text(model_section(), self.analytics_source).encode())
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def config(self) -> Path:
        return self.folder / "servicectl.toml"

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    @property
    def command_log(self) -> Path:
        return self.logs / "commands.log"

    @cached_property
    def queue(self) -> HandlerQueue:
        return self._running.enter_context(HandlerQueue(self.estate.redis_url))

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.queue)

    @cached_property
    def _serving(self) -> ServingClient:
        return self._running.enter_context(ServingClient(self.estate.serving_address, 30.0))

    def command(self, *words: str, crash_at: str | None = None) -> Said:
        """Type `servicectl WORDS` in a process of its own. `crash_at` lets that process be killed at a named point."""
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "servicectl", "--config", str(self.config), "--json", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(crash_at),
            start_new_session=True,  # Ctrl-C ends the demo, which then ends its command in order
            text=True,
        )
        try:
            output, story = process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise StageFailed(
                f"`servicectl {' '.join(words)}` did not end within {_PATIENCE_S:g} s", self.command_log
            ) from None
        finally:
            _end(process)
        said = Said(words, process.returncode, time.monotonic() - started, _told(output, story), story)
        with self.command_log.open("a") as log:
            log.write(f"$ {said.line}\n{story}{output}(status {said.status}, {said.seconds:.1f} s)\n\n")
        return said

    def done(self, *words: str) -> Said:
        """`command`, which must end with status 0. Raises StageFailed with the command's own words."""
        said = self.command(*words)
        if said.status != ExitStatus.OK:
            errors = [said.told.get("error"), *(job.get("error") for job in said.told.get("jobs", ()))]
            why = next((error for error in errors if error), "it did not say why")
            raise StageFailed(f"`{said.line}` ended with status {said.status}: {why}", self.command_log)
        return said

    def insert(self, start: int, stop: int) -> int:
        """Let the handler store the calls [start, stop); returns how many values that were."""
        return self.queue.run(data.insert_statement(start, stop)) or 0

    def push(self, entries: Sequence[Mapping[str, Any]]) -> int:
        """Put rows of features_table on the write queue; returns how many."""
        return self.queue.push_rows("features_table", [entry["data"] for entry in entries])

    def wait_for_values(self, entities: Sequence[str], wanted: int, patience_s: float = 60.0) -> None:
        """Ask the handler until it shows `wanted` values of these calls. Raises StageFailed when it never does."""
        from servicectl.sql import literals

        limit = time.monotonic() + patience_s
        sql = f"SELECT count(*) AS found FROM features_table WHERE entity_id IN {literals(entities)}"
        while (found := self.queue.read(sql)[0]["found"]) < wanted:
            if time.monotonic() > limit:
                raise StageFailed(f"{found} of {wanted} values came out of the write queue", self.logs / "handler.log")
            time.sleep(0.1)

    def answers(self, calls: Sequence[Mapping[str, float]]) -> list[int]:
        """What Service B predicts for each call, over gRPC."""
        features = [{name: call[name] for name in data.FEATURES} for call in calls]
        return [round(self._serving.predict(MODEL, one)) for one in features]

    def served_sha256(self) -> str:
        """The digest of the model that Service B loaded last for MODEL, by its own log. Raises LookupError."""
        loaded = ""
        for line in (self.logs / "serving.log").read_text(errors="replace").splitlines():
            if line.startswith("{"):
                event = json.loads(line)
                if event["event"] == "loaded" and event["model"] == MODEL:
                    loaded = event["sha256"]
        if not loaded:
            raise LookupError(f"Service B never loaded {MODEL}")
        return loaded

    def pointer(self) -> Pointer:
        """What the artifact store names as production. Raises LookupError if it names nothing."""
        pointer, _ = decode((self.artifacts / names.production(names.location(MODEL), MODEL, "json")).read_bytes())
        if pointer is None:
            raise LookupError("the production json holds no pointer")
        return pointer

    def alarms(self) -> list[Alarm]:
        return Alarms(Store(self.folder / "state")).newest()

    def jobs(self) -> list[dict[str, Any]]:
        """`servicectl jobs list`, oldest first."""
        return list(reversed(self.done("jobs", "list", "--all").told["jobs"]))


def model_section() -> str:
    """The model's part of the configuration. Names only: every threshold, seed and metric is the default."""
    return f'[models.{MODEL}]\nlabel = "{data.LABEL}"\nfeatures = {json.dumps(list(data.FEATURES))}\n'


def call(row: int) -> dict[str, float]:
    """One real call by its row, as value by feature name, the label among them."""
    return {entry["data"]["feature_name"]: entry["data"]["value"] for entry in data.rows_as_entries(row, row + 1)}


def _environment(crash_at: str | None) -> dict[str, str]:
    """Ours, less what would lead the commands to another estate than the demo's."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SERVICECTL_", "AZURE_")) and name not in _FOREIGN
    }
    return {**kept, "SERVICECTL_CRASH_AT": crash_at} if crash_at else kept


def _end(process: subprocess.Popen[str]) -> None:
    """Nothing of the command stays: asked first, then killed with whatever it started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _told(output: str, story: str) -> dict[str, Any]:
    """A result is one JSON object on stdout; an error before any result is one on stderr's last line."""
    for text in (output, story.strip().rpartition("\n")[2]):
        try:
            told = json.loads(text)
        except ValueError:
            continue
        if isinstance(told, dict):
            return told
    return {}
