"""Everything that four stores hold, made comparable: what must differ between two runs is taken away, nothing else.

Ids of jobs become their place in the job table, so that a reference to the wrong job still shows. Of times, those of
the run itself go; the data's own stay. Etags, and digests over such times, go with them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.pointer import decode
from servicectl.estate.artifacts.protocol import NoSuchBlob
from servicectl.estate.queue import LOCK_PREFIX, RESPONSE_PREFIX
from servicectl.estate.serving_wire import EVENTS
from servicectl.jobs.rows import job_rows, step_rows
from servicectl.selftest.places import Place
from servicectl.selftest.site import TABLES, Site

Picture = Mapping[str, Any]
"""What stands where -> JSON values."""

_SECONDS = {"seconds"}  # how long something took
_DIGESTS = {"manifest_sha256"}  # over the time of making
_ETAG_STEPS = {("publish", "swap"), ("publish", "point"), ("rollback", "swap"), ("rollback", "point")}
# What a step says of its own run: the one that is run again finds its work done.
_DONE_WORDS = {"written": "there", "unchanged": "there"}
_COUNTS_OF_NEW = {("drift-check", "store alarms")}

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{32}\b")
_TIME = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?)?")
_WORK = re.compile(r"work/([^/]+)/\d+/")

_JOB_COLUMNS = (
    "kind", "scope", "state", "outcome", "exit_status", "error", "cure", "needs_operator", "cancel_requested", "spec",
    "result", "request_id", "trigger", "parent_id",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    item: str
    undisturbed: Any
    killed: Any

    def __str__(self) -> str:
        return f"{self.item}: undisturbed {_short(self.undisturbed)}, killed and resumed {_short(self.killed)}"


def differences(undisturbed: Picture, killed: Picture) -> list[Difference]:
    """One per place that holds something else, or something in only one of the two."""
    found: list[Difference] = []
    for item in [*undisturbed, *(item for item in killed if item not in undisturbed)]:
        found += _differing(item, undisturbed.get(item, _ABSENT), killed.get(item, _ABSENT))
    return found


def picture(site: Site, since: str) -> Picture:
    """What a site's artifact store, registry, Redis and job table hold. `since`: the date on which the run began."""
    jobs = _jobs(site)
    alike = Alike({job["job_id"]: f"<{job['kind']} {number}>" for number, job in enumerate(jobs, 1)}, since)
    found = {**_job_table(jobs, alike), **_alarms(site, alike)}
    return {**found, **_artifacts(site, alike), **_registry(site, alike), **_redis(site, alike)}


def broken_pointers(place: Place) -> list[str]:
    """Pointers that do not name a complete artifact of their digest; there must be none at any instant."""
    store, wrong = place.store(), []
    for blob in place.blobs():
        if not (names.is_production(blob.name) and blob.name.endswith(".json")):
            continue
        pointer, _ = decode(store.read(blob.name)[0], blob.name)
        if pointer is None:
            continue
        try:
            content = store.read(pointer.name)[0]
        except NoSuchBlob:
            wrong.append(f"{blob.name} names {pointer.name}, which is not there")
            continue
        if (hashlib.sha256(content).hexdigest(), len(content)) != (pointer.sha256, pointer.size):
            wrong.append(f"{blob.name} names {pointer.name}, whose bytes are others")
    return wrong


class Alike:
    """Takes away what must differ. `labels` replace ids of jobs."""

    def __init__(self, labels: Mapping[str, str], since: str) -> None:
        self._labels = labels
        self._since = since

    def value(self, value: Any) -> Any:
        match value:
            case Mapping() if str(value.get("path", "")).endswith("manifest.json"):
                return {"path": self.value(value["path"])}
            case Mapping():
                return {
                    self._text(str(name)): _hidden(name) or self.value(member)
                    for name, member in sorted(value.items())
                    if name not in _SECONDS
                }
            case list() | tuple():
                return [self.value(member) for member in value]
            case str():
                return self._text(value)
            case int() | float() | None:
                return value
        return self._text(str(value))

    def _text(self, text: str) -> str:
        text = _UUID.sub(lambda found: self._labels.get(found.group(), "<id>"), text)
        text = _WORK.sub(r"work/\1/-/", text)
        return _TIME.sub(lambda found: "<time>" if found.group()[:10] >= self._since else found.group(), text)


def _hidden(name: str) -> str | None:
    return "<digest>" if name in _DIGESTS else "<etag>" if name == "etag" or name.endswith("_etag") else None


def _jobs(site: Site) -> list[dict[str, Any]]:
    """Every job, oldest first, with its steps."""
    with site.store.reading() as connection:
        if connection is None:
            return []
        found = job_rows(connection, "true", [], "ORDER BY created_at, job_id")
        return [vars(job) | {"steps": step_rows(connection, job.job_id)} for job in found]


def _job_table(jobs: list[dict[str, Any]], alike: Alike) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for job in jobs:
        label = alike.value(job["job_id"])
        found[f"job {label}"] = alike.value({column: job[column] for column in _JOB_COLUMNS})
        if job["kind"] == "sync-production":
            found[f"job {label}"] = _done(found[f"job {label}"])
        for step in job["steps"]:
            place = (job["kind"], step.name)
            output = alike.value(step.output)
            if place in _ETAG_STEPS:
                output = "<etag>"
            elif place in _COUNTS_OF_NEW:
                output = "<count of what was new>"
            found[f"step {label} {step.seq} {step.name}"] = [step.state, _done(output), step.error]
    return found


def _done(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _done(member) for name, member in value.items()}
    return _DONE_WORDS.get(value, value) if isinstance(value, str) else value


def _alarms(site: Site, alike: Alike) -> dict[str, Any]:
    with site.store.reading() as connection:
        if connection is None:
            return {}
        alarms = connection.execute(
            "SELECT model_id, feature, change, verdict, text, job_id::VARCHAR, sink, delivered_at IS NOT NULL, error"
            " FROM alarms LEFT JOIN deliveries USING (alarm_id)"
        ).fetchall()
    return {"alarms": sorted((alike.value(row) for row in alarms), key=str)}


def _artifacts(site: Site, alike: Alike) -> dict[str, Any]:
    found = {}
    for blob in site.place.blobs():
        content = site.artifacts.read(blob.name)[0]
        shown = alike.value(json.loads(content)) if blob.name.endswith(".json") else hashlib.sha256(content).hexdigest()
        found[f"artifact {blob.name}"] = {"content": shown, "metadata": alike.value(blob.metadata)}
    return found


def _registry(site: Site, alike: Alike) -> dict[str, Any]:
    there = site.queue.read("SELECT table_name AS name FROM information_schema.tables")
    found: dict[str, Any] = {}
    for table in sorted({row["name"] for row in there} & set(TABLES)):
        told = site.queue.read(f"SELECT CAST(to_json(t) AS VARCHAR) AS shown FROM {table} AS t")
        shown = [alike.value(json.loads(row["shown"])) for row in told]
        found[f"rows of {table}"] = sorted(shown, key=str)
    return found


def _redis(site: Site, alike: Alike) -> dict[str, Any]:
    found: dict[str, Any] = {}
    client = site.redis
    for raw in sorted(client.scan_iter(count=1000)):
        key = raw.decode()
        if key.startswith((RESPONSE_PREFIX, LOCK_PREFIX)) and client.ttl(raw) > 0:
            continue  # an answer to one who is dead, or a lock of his; both expire by themselves
        match client.type(raw):
            case b"set":
                value: Any = sorted(member.decode() for member in client.smembers(raw))
            case b"list":
                value = [_content(member) for member in client.lrange(raw, 0, -1)]
            case b"stream":
                entries = [_content(field) for _, fields in client.xrange(raw) for field in fields.values()]
                # Those without a generation are the selftest's own.
                value = [entry for entry in entries if key != EVENTS or "generation" in entry]
            case b"string":
                value = _content(client.get(raw))
            case other:
                value = other.decode()
        found[f"Redis {alike.value(key)}"] = {"value": alike.value(value), "expires": client.ttl(raw) > 0}
    return found


def _content(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return f"sha256 {hashlib.sha256(content).hexdigest()}"


_ABSENT = "absent"


def _differing(item: str, undisturbed: Any, killed: Any) -> list[Difference]:
    if undisturbed == killed:
        return []
    if isinstance(undisturbed, Mapping) and isinstance(killed, Mapping):
        members = [*undisturbed, *(name for name in killed if name not in undisturbed)]
        return [
            one
            for name in members
            for one in _differing(f"{item}.{name}", undisturbed.get(name, _ABSENT), killed.get(name, _ABSENT))
        ]
    return [Difference(item, undisturbed, killed)]


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 300 else f"{text[:300]}… ({len(text)} characters)"
