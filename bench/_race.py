"""The processes of `publish_race`: publishers that are killed, a reader that never rests, and today's way beside it.

All are forked from the benchmark itself, which opens nothing of theirs, so that a killed publisher is back in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servicectl import log
from servicectl.actions import history
from servicectl.actions.kinds import PUBLISH, SYNC_PRODUCTION, serving_scope
from servicectl.actions.production import read_truth
from servicectl.actions.retrain import publish_spec
from servicectl.actions.world import World
from servicectl.clock import SYSTEM
from servicectl.config import (
    ArtifactsConfig,
    Config,
    HandlerConfig,
    JobsConfig,
    RedisConfig,
    ServingConfig,
    StateConfig,
)
from servicectl.errors import ServicectlError, StoreError, TryAgain
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.pointer import Pointer, decode, encode
from servicectl.estate.artifacts.protocol import ArtifactStore, NoSuchBlob
from servicectl.jobs.model import NewJob, State
from servicectl.training.spec import canonical

MODEL = "Race"
FOLDER = f"Model_{MODEL}/"
_PAUSE_S = 0.006  # between two looks: a reader that spins takes a core from those it watches
_SYNC_PAUSE_S = 1.0
# A publisher that lost may have swapped after the winner; the winner, the loser or sync-production mends that, and after a
# kill whoever is first of them again.
_LOSERS_BODY_S = 15.0
_UNVERIFIED = ("digest", "sha256", "has generation", "damaged", "signed")  # in what sync-production could not serve


@dataclass(frozen=True)
class Track:
    """Where one race is run. Digests of all candidates lie in `candidates`, so that any reader knows a whole body."""

    folder: Path
    redis_url: str
    url: str
    body_kb: int = 256

    @property
    def candidates(self) -> Path:
        return self.folder / "candidates"

    def world(self, installation: str) -> World:
        """An installation of its own: nothing but the store's conditions keeps it from the others."""
        return World(
            Config(
                state=StateConfig(folder=str(self.folder / installation)),
                redis=RedisConfig(url=self.redis_url),
                # What a killed publisher holds of the registry is free after the sum of these: with the defaults, two
                # minutes, in which all that is seen is publishers that wait.
                handler=HandlerConfig(timeout_s=0.8, statement_deadline_s=0.8, clock_skew_s=0.1),
                serving=ServingConfig(canary="off", max_mb=600.0),
                artifacts=ArtifactsConfig(url=self.url),
                jobs=JobsConfig(max_attempts=1_000_000, retry_base_s=0.001, retry_cap_s=0.01),
            )
        )


def publisher(track: Track, installation: str) -> None:
    """Finish what a killed one left, then publish one candidate after the other until somebody kills us."""
    world = track.world(installation)
    while True:
        try:
            world.runner.resume()
            publish_once(track, world)
        except StoreError:
            time.sleep(1.0)  # told at the end; a publisher that spins over it takes a core from the others
        except ServicectlError:
            continue


def modules_of_a_publish(track: Track) -> list[str]:
    """What a publish imports, found by one in a child: imported before the fork, it costs no publisher its short life."""
    told = track.folder / "modules"

    def publish() -> None:
        import sys

        publish_once(track, track.world("first"))
        told.write_text("\n".join(sys.modules))

    os.waitpid(forked(publish), 0)
    return told.read_text().splitlines()


def publish_once(track: Track, world: World) -> None:
    truth = read_truth(world, MODEL, FOLDER)
    job = NewJob(PUBLISH, serving_scope(MODEL), publish_spec(MODEL, "none", truth.generation, candidate(track)))
    world.runner.run(world.runner.submit(job).job.job_id)


def candidate(track: Track) -> dict[str, Any]:
    """A new model in the form that retrain hands to publish. Its body tells a reader nothing; its digest does."""
    body = pickle.dumps({"made": uuid.uuid4().hex, "weights": random.randbytes(track.body_kb << 10)})
    model = _product(track, f"{hashlib.sha256(body).hexdigest()}.pkl", body)
    (track.candidates / model["sha256"]).touch()
    return packaged(track, model)


def packaged(track: Track, model: dict[str, Any]) -> dict[str, Any]:
    """A model's file with what retrain puts beside it."""
    digest = model["sha256"]
    baseline = _product(track, f"{digest}.json", canonical({"of": digest}))
    described = {
        "schema": 1,
        "model_id": MODEL,
        "features": [{"index": 0, "name": "x", "type": "float"}],
        "model": {"sha256": digest, "bytes": model["bytes"]},
        "baseline": {"sha256": baseline["sha256"], "bytes": baseline["bytes"]},
        "libraries": {},
        "created_at": SYSTEM.now().isoformat(),
    }
    manifest = _product(track, f"{digest}.manifest.json", canonical(described))
    return {"model": model, "baseline": baseline, "manifest": manifest, "canary": baseline}


def _product(track: Track, name: str, content: bytes) -> dict[str, Any]:
    path = track.folder / "made" / name
    path.write_bytes(content)
    return {"path": str(path), "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def reader(track: Track, report: Path) -> None:
    """Look at production without a pause; every look and every violation is a line in the report."""
    store = track.world("reader").artifacts
    newest, is_there = 0, False
    overtaken: tuple[str, int] | None = None
    since = 0.0
    with report.open("a", buffering=1) as out:
        while True:
            time.sleep(_PAUSE_S)
            violations: list[str] = []
            seen = None
            try:
                seen = _look(track, store, violations)
            except ServicectlError as error:
                # A party that is away is not a broken promise; anything else is.
                if error.retryable:
                    continue
                if is_there or not isinstance(error, NoSuchBlob):
                    violations.append(f"{type(error).__name__}: {error}")
            if seen is None and is_there and not violations:
                violations.append("no pointer")
            if seen is not None:
                if seen.generation < newest:
                    violations.append(f"generation {seen.generation} after {newest}")
                newest, is_there = max(newest, seen.generation), True
                if seen.overtaken is None:
                    overtaken = None
                elif overtaken != (seen.overtaken, seen.generation):
                    overtaken, since = (seen.overtaken, seen.generation), time.monotonic()
                elif time.monotonic() - since > _LOSERS_BODY_S:
                    violations.append(f"the body of a publish that lost stays over generation {seen.generation}")
            generation = None if seen is None else seen.generation
            line = {"generation": generation, "overtaken": overtaken is not None, "violations": violations}
            out.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class _Seen:
    """`overtaken`: the ETag of a production body that is neither the pointer's nor of a publish under way."""

    generation: int
    overtaken: str | None


def _look(track: Track, store: ArtifactStore, violations: list[str]) -> _Seen | None:
    found = _pointer(store)
    if found is None:
        return None
    if hashlib.sha256(store.read(found.name)[0]).hexdigest() != found.sha256:
        again = _pointer(store)
        if again is not None and again.generation == found.generation:
            violations.append(f"{found.name} does not have the pointer's digest")
    content, body = store.read(names.production(FOLDER, MODEL, "pkl"))
    digest = hashlib.sha256(content).hexdigest()
    if not (track.candidates / digest).exists():
        violations.append(f"the production body {digest[:12]} is no candidate's")
    if digest == found.sha256:
        return _Seen(found.generation, None)
    # The two blobs cannot be read at one moment: the pointer may have risen since.
    now = _pointer(store)
    if now is None:
        return None
    told = body.metadata.get("generation", "")
    is_pending = told.isdecimal() and int(told) > now.generation
    return _Seen(now.generation, None if digest == now.sha256 or is_pending else body.etag)


def _pointer(store: ArtifactStore) -> Pointer | None:
    try:
        return decode(store.read(names.production(FOLDER, MODEL, "json"))[0])[0]
    except NoSuchBlob:
        return None


def syncer(track: Track, report: Path) -> None:
    """sync-production on a machine of its own, again and again. What it could not verify is a violation."""
    world = track.world("sync")
    with report.open("a", buffering=1) as out:
        while True:
            time.sleep(_SYNC_PAUSE_S)
            try:
                new = NewJob(SYNC_PRODUCTION, SYNC_PRODUCTION, {"allow_remove": False})
                world.runner.resume()
                ended = world.runner.run(world.runner.submit(new).job.job_id).job
            except ServicectlError:
                continue
            told = (ended.result or {}).get("failed", {}).values()
            wrong = [f"sync-production: {text}" for text in told if any(sign in text for sign in _UNVERIFIED)]
            out.write(json.dumps({"generation": None, "overtaken": False, "violations": wrong}) + "\n")


def converged(track: Track, installations: list[str]) -> tuple[list[str], dict[str, int]]:
    """After the race: let every installation finish, then each promise that does not hold; and how often which outcome."""
    broken: list[str] = []
    outcomes: Counter[str] = Counter()
    for name in installations:
        try:
            broken += _finished(track.world(name), name, outcomes)
        except ServicectlError as error:
            broken.append(f"{name}: {type(error).__name__}: {error}")
    world = track.world("reader")
    synced = world.runner.submit(NewJob(SYNC_PRODUCTION, SYNC_PRODUCTION, {"allow_remove": False})).job.job_id
    _until(lambda: world.runner.run(synced).job.ended)
    return [*broken, *_disagreements(world)], dict(outcomes)


def _finished(world: World, name: str, outcomes: Counter[str]) -> Iterator[str]:
    """Carry on what is unfinished, then each job that ended otherwise than published or superseded."""

    def is_done() -> bool:
        world.runner.resume()
        return not world.runner.table.unfinished()

    if not _until(is_done):
        told = [f"{job.short_id} ({job.error})" for job in world.runner.table.unfinished()]
        yield f"{name} does not come to an end: {', '.join(told)}"
    for job in world.runner.table.newest(limit=100_000):
        outcomes[job.outcome or job.state.value] += 1
        if job.state is not State.COMPLETED or str(job.outcome) not in ("published", "superseded"):
            yield f"{name}: {job.kind} {job.short_id} ended {job.state} {job.outcome or ''}: {job.error}"
        for event in world.runner.table.events(job.job_id):
            if "unexpected" in (event.detail or ""):
                yield f"{name}: {job.kind} {job.short_id}: {event.detail}"


def _until(is_done: Callable[[], bool]) -> bool:
    """Look again for as long as what killed publishers held takes to be free, on a machine that is busy."""

    def look() -> bool:
        with suppress(TryAgain):
            return is_done()
        return False

    return wait_for(look, 60.0)


def _disagreements(world: World) -> Iterator[str]:
    truth = read_truth(world, MODEL, FOLDER)
    if truth.pointer is None:
        return  # killed before the first publish of all
    if truth.incumbent is None or truth.incumbent.sha256 != truth.pointer.sha256:
        yield "the production body is not the pointer's"
    past = history.pointers(world, truth, MODEL)
    if [one.generation for one in past] != list(range(1, truth.generation + 1)):
        yield f"the history has {len(past)} of {truth.generation} generations"
    if len({one.version for one in past}) != len(past):
        yield "a version number was given twice"
    for one in past:
        if hashlib.sha256(world.artifacts.read(one.name)[0]).hexdigest() != one.sha256:
            yield f"the archive of {one.version} is lost"
    rows = [row.version for row in world.registry.rows(MODEL) if row.status == "production"]
    served = world.keys.read(MODEL)
    if rows != [truth.pointer.version]:
        yield f"the registry has {rows}, the pointer {truth.pointer.version}"
    if served is None or (served.generation, served.artifact_sha256) != (truth.generation, truth.pointer.sha256):
        yield "Redis is not the pointer's"


def naive_publisher(track: Track) -> None:
    """Copy the old one away, delete it, upload the new one and its description: how the estate does it today.

    The description has the form of a pointer, so that the very reader that watches ours can watch this.
    """
    put, copy, delete = _plain(track)
    name = f"{FOLDER}Model_{MODEL}_Production"
    while True:
        body = random.randbytes(track.body_kb << 10)
        digest = hashlib.sha256(body).hexdigest()
        (track.candidates / digest).touch()
        with suppress(FileNotFoundError):
            copy(f"{name}.pkl", f"{FOLDER}Model_{MODEL}_{random.randrange(10**6)}.pkl")
            delete(f"{name}.pkl")
            delete(f"{name}.json")
        put(f"{name}.pkl", body)
        now = SYSTEM.now()
        pointer = Pointer(
            model_id=MODEL,
            generation=time.time_ns(),
            version="0.1.0",
            sha256=digest,
            name=f"{name}.pkl",
            job_id="naive",
            manifest_sha256=None,
            size=len(body),
            published_at=now,
        )
        put(f"{name}.json", encode(pointer, {}))


Put = Callable[[str, bytes], None]


def _plain(track: Track) -> tuple[Put, Callable[[str, str], None], Callable[[str], None]]:
    """Unconditional writes, as any script does them."""
    if track.url.startswith("azure://"):
        from azure.core.exceptions import ResourceNotFoundError
        from azure.storage.blob import BlobServiceClient

        service = BlobServiceClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"])
        container = service.get_container_client(track.url.removeprefix("azure://"))

        def copy(source: str, to: str) -> None:
            try:
                container.upload_blob(to, container.download_blob(source).readall(), overwrite=True)
            except ResourceNotFoundError:
                raise FileNotFoundError(source) from None

        def delete(name: str) -> None:
            with suppress(ResourceNotFoundError):
                container.delete_blob(name)

        return lambda name, body: container.upload_blob(name, body, overwrite=True), copy, delete
    root = Path(track.url.removeprefix("file://"))

    def put(name: str, body: bytes) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)

    return put, lambda source, to: put(to, (root / source).read_bytes()), lambda name: (root / name).unlink()


def forked(work: Callable[[], None]) -> int:
    """A child that does this work and nothing of ours; its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        random.seed()
        log.set_verbosity(log.Level.ALERT)
        work()
        status = 0
    except BaseException:  # noqa: BLE001 -- a child must never go on as a second benchmark
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def wait_for(ready: Callable[[], bool], seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True
