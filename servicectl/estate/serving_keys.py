"""The one writer of Service B's Redis keys: a projection of the artifact store's pointer.

Readers differ in what they accept, and one bad key stops Service C for all models; so every object is checked and
rebuilt, member by member, before it is written. `generation`, `sha256` and `artifacts` are members of our own in the
metadata; no reader minds unknown members.

A change is one MULTI/EXEC under WATCH: a reader sees all of it or nothing, and a process killed anywhere leaves
either the old state or the new one. A lost answer is never repeated blindly: the next run compares and finds its
work done.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from servicectl import crash
from servicectl.errors import BadAnswer, BadData, UsageError
from servicectl.estate.optimistic import OptimisticRedis, Pipe
from servicectl.estate.serving_metadata import metadata_for_readers, with_scores
from servicectl.estate.serving_wire import (
    EVENT_FIELD,
    EVENTS,
    EVENTS_KEPT,
    PROD_MODELS,
    artifact_key,
    candidate_name,
    candidate_sha256,
    event_text,
    metadata_key,
)

__all__ = ["Current", "Projected", "Projection", "ServingKeys", "candidate_name", "candidate_sha256"]

MAX_VALUE_BYTES = 512 << 20  # proto-max-bulk-len, Redis' own limit for one value

_EXTENSION = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Projection:
    """What Redis shall say of one model.

    `generation` rises with every publish and rollback. `sha256` is the hex digest of the artifact whose extension
    is metadata["artifact_type"]; `name` is that artifact's immutable name in the store; `job_id` is the publisher.
    `metadata` holds the registry row's members; drift scores that are None or not finite become 0.0, since a NaN
    blinds readers (in Redis only: the registry keeps NULL). `artifacts` maps extension to bytes; what lies there under
    other extensions goes, unless `keep_others`: an incumbent from before servicectl is served as it was.
    """

    model_id: str
    generation: int
    version: str
    sha256: str
    name: str
    job_id: str | None
    metadata: Mapping[str, Any]
    artifacts: Mapping[str, bytes]
    keep_others: bool = False


class Projected(StrEnum):
    """What a projection came to."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"
    SUPERSEDED = "superseded"  # Redis already holds a higher generation; nothing was written


@dataclass(frozen=True)
class Current:
    """What Redis says of one model now.

    Members are None where nothing (or nothing of ours) is stored. `sha256` is what the metadata claims,
    `artifact_sha256` the digest of the bytes that are really there.
    """

    generation: int | None
    version: str | None
    sha256: str | None
    artifact_sha256: str | None


class ServingKeys:
    """One connection to the estate's Redis; use as a context manager, or close().

    Every method raises PartyUnavailable when Redis does not answer or refuses, BadAnswer when a key is of a foreign
    type, and Busy when somebody else keeps changing the same keys.
    """

    def __init__(self, redis_url: str, password: str | None = None, *, timeout_s: float = 30.0) -> None:
        self._redis = OptimisticRedis(redis_url, password, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._redis.close()

    def ping(self) -> None:
        """Return if Redis answers."""
        with self._redis.told():
            self._redis.client.ping()

    def is_empty(self) -> bool:
        """True if Redis knows no production model at all, as after a restart without persistence."""
        with self._redis.told():
            return not self._redis.client.exists(PROD_MODELS)

    def names(self) -> frozenset[str]:
        """The ids in prod_models."""
        with self._redis.told():
            return frozenset(_text(name) for name in self._redis.client.smembers(PROD_MODELS))

    def generation(self, model_id: str) -> int | None:
        """The generation that Redis was given of a model; None where nothing of ours is stored."""
        with self._redis.told():
            stored: Any = self._redis.client.get(metadata_key(model_id))
        return _generation(_object(stored))

    def read(self, model_id: str) -> Current | None:
        """What one moment's Redis says of a model; None if it holds neither metadata nor the artifact."""

        def look(pipe: Pipe) -> Current | None:
            pipe.watch(metadata_key(model_id))
            stored = pipe.get(metadata_key(model_id))
            metadata = _object(stored)
            pipe.multi()
            pipe.get(artifact_key(model_id, _artifact_type(metadata)))
            [content] = pipe.execute()
            if stored is None and content is None:
                return None
            return Current(
                generation=_generation(metadata),
                version=_member(metadata, "version"),
                sha256=_member(metadata, "sha256"),
                artifact_sha256=None if content is None else _sha256(content),
            )

        return self._redis.transaction(model_id, look)

    def project(self, projection: Projection) -> Projected:
        """Make Redis say this of the model, and send one event if what is served changed.

        Repeating it changes nothing and sends nothing. Raises BadData for metadata that a reader would refuse, for
        an artifact that does not have the digest, or one that is too large for Redis.
        """
        _check_artifacts(projection)
        wanted = metadata_for_readers(projection.model_id, projection.version, projection.metadata)
        wanted |= {
            "generation": projection.generation,
            "sha256": projection.sha256,
            "artifacts": {extension: _sha256(content) for extension, content in projection.artifacts.items()},
        }
        return self._redis.transaction(projection.model_id, lambda pipe: self._project(pipe, projection, wanted))

    def _project(self, pipe: Pipe, projection: Projection, wanted: dict[str, Any]) -> Projected:
        model_id = projection.model_id
        pipe.watch(metadata_key(model_id))
        raw = pipe.get(metadata_key(model_id))
        stored = _object(raw)
        generation = _generation(stored)
        if generation is not None and generation > projection.generation:
            return Projected.SUPERSEDED

        extensions = self._extensions(pipe, model_id, stored)
        if projection.keep_others:
            # On record beside ours, so that whoever replaces the incumbent finds them.
            wanted = {**wanted, "artifacts": dict.fromkeys(sorted(extensions)) | wanted["artifacts"]}
        text = json.dumps(wanted, allow_nan=False)
        pipe.watch(*(artifact_key(model_id, extension) for extension in extensions | projection.artifacts.keys()))
        changed = {
            extension: content
            for extension, content in projection.artifacts.items()
            if not _holds(pipe, artifact_key(model_id, extension), content)
        }
        stale = [] if projection.keep_others else sorted(extensions - projection.artifacts.keys())
        before = _served(pipe, model_id, stored)
        load = {"version": projection.version, "sha256": projection.sha256}
        listed = pipe.sismember(PROD_MODELS, model_id)
        announced = bool(changed or stale or before != load or not listed)
        if not announced and raw == text.encode():
            return Projected.UNCHANGED

        _check_types(pipe)
        pipe.multi()
        pipe.sadd(PROD_MODELS, model_id)
        pipe.set(metadata_key(model_id), text)
        for extension, content in changed.items():
            pipe.set(artifact_key(model_id, extension), content)
        if stale:
            pipe.delete(*(artifact_key(model_id, extension) for extension in stale))
        if announced:
            told = {**load, "name": projection.name}
            drop = None if before == load else before
            event = event_text(model_id, projection.generation, load=told, drop=drop, job_id=projection.job_id)
            _announce(pipe, event)
        pipe.execute()
        crash.point("serving/projected")
        return Projected.WRITTEN

    def update_drift_scores(self, model_id: str, generation: int | None, scores: Mapping[str, float]) -> bool:
        """Given PSI by feature name, store them in the metadata if it still is of that generation.

        False: another generation (or none) is there, nothing was written. Features the metadata does not list are
        left out. `generation` None means metadata that servicectl has not written yet. Raises BadData for a score
        that is not finite.
        """

        def update(pipe: Pipe) -> bool:
            pipe.watch(metadata_key(model_id))
            stored = _object(pipe.get(metadata_key(model_id)))
            if stored is None or _generation(stored) != generation:
                return False
            wanted = with_scores(model_id, stored, scores)
            if wanted != stored:
                pipe.multi()
                pipe.set(metadata_key(model_id), json.dumps(wanted, allow_nan=False))
                pipe.execute()
                crash.point("serving/scored")
            return True

        return self._redis.transaction(model_id, update)

    def withdraw(self, model_ids: Iterable[str]) -> None:
        """Take models out of production in one transaction: names, metadata, artifacts.

        Each one that was there is announced with `load` null, so that a worker holding it in memory lets go.
        """
        gone = sorted(set(model_ids))
        if not gone:
            return

        def remove(pipe: Pipe) -> None:
            pipe.watch(*(metadata_key(model_id) for model_id in gone))
            doomed: list[str] = []
            events: list[str] = []
            for model_id in gone:
                stored = _object(pipe.get(metadata_key(model_id)))
                doomed += [metadata_key(model_id)]
                doomed += [artifact_key(model_id, extension) for extension in self._scan(pipe, model_id)]
                if before := _served(pipe, model_id, stored):
                    events.append(event_text(model_id, _generation(stored), load=None, drop=before, job_id=None))
            _check_types(pipe)
            pipe.multi()
            pipe.srem(PROD_MODELS, *gone)
            pipe.delete(*doomed)
            for event in events:
                _announce(pipe, event)
            pipe.execute()
            crash.point("serving/withdrawn")

        self._redis.transaction(", ".join(gone), remove)

    def put_candidate(self, name: str, model_bytes: bytes, ttl_s: float) -> None:
        """Let Service B load a model under a temporary name for `ttl_s` seconds.

        Raises BadData if the bytes do not have the digest in the name, or are too large for Redis.
        """
        _check_size(name, model_bytes)
        if candidate_sha256(name) != _sha256(model_bytes):
            raise BadData(f"{name!r} is not the candidate name of these bytes", cure="build it with candidate_name()")
        with self._redis.told():
            self._redis.client.set(artifact_key(name, "pkl"), model_bytes, px=max(1, round(ttl_s * 1000)))
        crash.point("serving/candidate-put")

    def drop_candidate(self, name: str) -> None:
        """Remove a candidate. Raises UsageError for any other name, so that production cannot be hit."""
        if candidate_sha256(name) is None:
            raise UsageError(f"{name!r} is not a candidate's name", cure="withdraw() removes production models")
        with self._redis.told():
            self._redis.client.delete(artifact_key(name, "pkl"))

    def _extensions(self, pipe: Pipe, model_id: str, stored: Mapping[str, Any] | None) -> frozenset[str]:
        """The extensions under which artifacts of this model lie in Redis."""
        artifacts = stored.get("artifacts") if stored else None
        if isinstance(artifacts, dict):
            return frozenset(artifacts)
        return self._scan(pipe, model_id)  # written by somebody else: the key space is the only witness

    def _scan(self, pipe: Pipe, model_id: str) -> frozenset[str]:
        prefix = artifact_key(model_id, "")
        pattern = re.sub(r"([\[\]*?^\\-])", r"\\\1", prefix) + "*"
        found = (_text(key).removeprefix(prefix) for key in pipe.scan_iter(match=pattern, count=1000))
        return frozenset(extension for extension in found if ":" not in extension)  # "a:b" is another model's id


def _announce(pipe: Pipe, text: str) -> None:
    pipe.xadd(EVENTS, {EVENT_FIELD: text}, maxlen=EVENTS_KEPT, approximate=True)
    pipe.publish(EVENTS, text)


def _check_types(pipe: Pipe) -> None:
    # EXEC does not roll back: a command that fails on a key's type would leave the others done.
    if pipe.type(EVENTS) not in {b"stream", b"none"} or pipe.type(PROD_MODELS) not in {b"set", b"none"}:
        cure = f"look with `redis-cli type {PROD_MODELS}` and `type {EVENTS}`; remove what is not ours"
        raise BadAnswer("a Redis key of the serving contract is of a foreign type", cure=cure)


def _check_artifacts(projection: Projection) -> None:
    extension = projection.metadata.get("artifact_type")
    if not isinstance(extension, str) or extension not in projection.artifacts:
        raise BadData(f"{projection.model_id}: no artifact of its artifact_type {extension!r} is given")
    if candidate_sha256(projection.model_id):
        raise BadData(f"{projection.model_id!r} has the form of a candidate's name", cure="rename the model")
    for other, content in projection.artifacts.items():
        if not _EXTENSION.fullmatch(other):
            raise BadData(f"{projection.model_id}: {other!r} cannot be an artifact's extension")
        _check_size(artifact_key(projection.model_id, other), content)
    if _sha256(projection.artifacts[extension]) != projection.sha256:
        raise BadData(f"{projection.model_id}: the {extension} artifact does not have the digest {projection.sha256}")


def _check_size(name: str, content: bytes) -> None:
    if len(content) >= MAX_VALUE_BYTES:
        size = f"{len(content) / (1 << 20):.0f} MB"
        raise BadData(f"{name} has {size}; Redis holds less than 512 MB in one value", cure="train a smaller model")


def _holds(pipe: Pipe, key: str, content: bytes) -> bool:
    return bool(pipe.strlen(key) == len(content) and pipe.get(key) == content)


def _served(pipe: Pipe, model_id: str, stored: Mapping[str, Any] | None) -> dict[str, str | None] | None:
    """{version, sha256} of what readers get now; None if they get nothing."""
    key = artifact_key(model_id, _artifact_type(stored))
    if not pipe.exists(key):
        return None
    return {"version": _member(stored, "version"), "sha256": _member(stored, "sha256") or _sha256(pipe.get(key))}


def _object(raw: bytes | None) -> dict[str, Any] | None:
    """The stored metadata; None for anything that is not a JSON object, which is replaced as if it were missing."""
    try:
        value = json.loads(raw, parse_constant=lambda _: 0.0) if raw is not None else None  # others did write NaN
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _generation(metadata: Mapping[str, Any] | None) -> int | None:
    value = metadata.get("generation") if metadata else None
    return value if type(value) is int else None


def _artifact_type(metadata: Mapping[str, Any] | None) -> str:
    return _member(metadata, "artifact_type") or "pkl"


def _member(metadata: Mapping[str, Any] | None, name: str) -> str | None:
    value = metadata.get(name) if metadata else None
    return value if isinstance(value, str) else None


def _text(name: Any) -> str:
    return name.decode(errors="surrogateescape") if isinstance(name, bytes) else str(name)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
