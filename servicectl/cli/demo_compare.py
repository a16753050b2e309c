"""Two estates held against each other: everything that their stores hold, with ids, times and attempts taken away."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from servicectl.cli.demo_estate import MODEL, DemoEstate

Picture = Mapping[tuple[str, str], Any]
"""(part, item) -> what it holds, as JSON values."""

# Ids and times, wherever they stand as a member. manifest_sha256 is a digest over both.
_TAKEN_AWAY = frozenset({
    "job", "job_id", "run_id", "alarm_id", "created_at", "checked_at", "published_at", "raised_at", "trained_date", "manifest_sha256",
})  # fmt: skip
_COUNTED = ("features_table", "model_metadata", "drift_results", "model_baselines", "model_logs")
_SHOWN = 12


def picture(at: DemoEstate) -> Picture:
    """What an estate's artifact store, registry, Redis and job store hold, while it runs."""
    return {**_artifacts(at), **_registry(at), **_redis(at), **_jobs(at)}


def compared(undisturbed: Picture, interrupted: Picture) -> list[dict[str, Any]]:
    """One row per item of either picture: {part, item, undisturbed, interrupted, equal}, values in short."""
    items = [*undisturbed, *(item for item in interrupted if item not in undisturbed)]
    return [
        {
            "part": part,
            "item": item,
            "undisturbed": _short(undisturbed, (part, item)),
            "interrupted": _short(interrupted, (part, item)),
            "equal": (part, item) in undisturbed
            and (part, item) in interrupted
            and undisturbed[part, item] == interrupted[part, item],
        }
        for part, item in items
    ]


def without_ids_and_times(value: Any) -> Any:
    """JSON values with the members of _TAKEN_AWAY removed at every depth."""
    if isinstance(value, Mapping):
        return {key: without_ids_and_times(member) for key, member in value.items() if key not in _TAKEN_AWAY}
    if isinstance(value, list | tuple):
        return [without_ids_and_times(member) for member in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _artifacts(at: DemoEstate) -> dict[tuple[str, str], Any]:
    """Every file that a reader of the store can see: json by its content, the others by their bytes."""
    found: dict[tuple[str, str], Any] = {}
    for path in sorted(at.artifacts.rglob("*")):
        if path.is_dir() or ".servicectl" in path.parts:
            continue
        content = path.read_bytes()
        item = path.name.removeprefix(f"Model_{MODEL}_")
        if path.suffix == ".json":
            found["artifact", item] = without_ids_and_times(json.loads(content))
        else:
            found["artifact", item] = f"sha256 {hashlib.sha256(content).hexdigest()}"
    return found


def _registry(at: DemoEstate) -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    for row in at.registry.rows(MODEL):
        found["registry", f"{row.version} ({row.status})"] = without_ids_and_times(asdict(row))
        found["registry", f"{row.version} baseline"] = json.loads(at.registry.baseline(MODEL, row.version) or "null")
    results = [without_ids_and_times(asdict(result)) for result in at.registry.drift_results(MODEL, limit=10_000)]
    found["registry", "drift results"] = sorted(results, key=_canonical)
    # Readers take rows of one key as one, so repeats would only show in the counts.
    for table in _COUNTED:
        found["registry", f"rows of {table}"] = at.queue.read(f"SELECT count(*) AS held FROM {table}")[0]["held"]
    return found


def _redis(at: DemoEstate) -> dict[tuple[str, str], Any]:
    import redis

    found: dict[tuple[str, str], Any] = {}
    with redis.Redis.from_url(at.estate.redis_url) as client:
        for raw in sorted(client.scan_iter(count=1000)):
            key = raw.decode()
            match client.type(raw):
                case b"set":
                    value: Any = sorted(member.decode() for member in client.smembers(raw))
                case b"stream":
                    entries = client.xrange(raw)
                    value = [
                        {name.decode(): _json_or_digest(text) for name, text in fields.items()} for _, fields in entries
                    ]
                case b"string":
                    value = _json_or_digest(client.get(raw))
                case other:
                    value = other.decode()
            found["Redis", key] = without_ids_and_times(value)
    return found


def _jobs(at: DemoEstate) -> dict[tuple[str, str], Any]:
    alarms = [without_ids_and_times(asdict(alarm)) for alarm in at.alarms()]
    found: dict[tuple[str, str], Any] = {
        ("job", f"{number} {job['kind']}"): f"{job['state']} {job['outcome']}"
        for number, job in enumerate(at.jobs(), 1)
    }
    found["job", "alarms"] = sorted(alarms, key=_canonical)
    return found


def _json_or_digest(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return f"sha256 {hashlib.sha256(content).hexdigest()}"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _short(picture: Picture, item: tuple[str, str]) -> str:
    """Numbers and short words as they are, everything else by the digest of its canonical JSON."""
    if item not in picture:
        return "absent"
    value = picture[item]
    if isinstance(value, str) and value.startswith("sha256 "):
        return value[7 : 7 + _SHOWN]
    if isinstance(value, str | int) and len(str(value)) <= 40:
        return str(value)
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:_SHOWN]
