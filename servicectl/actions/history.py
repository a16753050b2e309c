"""models history and models at: what was in production when, from which job, snapshot and gate numbers.

Told by the artifact store alone: each generation's pointer is kept beside the versions, and the manifests know the rest.
The jobs table may be lost.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from servicectl.actions.production import Truth, read_truth
from servicectl.actions.verification import manifest_behind
from servicectl.errors import IntegrityError, UsageError
from servicectl.estate.artifacts import names
from servicectl.estate.artifacts.pointer import Pointer, decode

if TYPE_CHECKING:
    from servicectl.actions.world import World


class Change(Struct, frozen=True, kw_only=True):
    """One generation of a model. `until` None: it is in production. `gate` and `snapshot` None: not on record."""

    model_id: str
    generation: int
    version: str
    kind: str
    since: datetime
    until: datetime | None
    job: str
    sha256: str
    withdrawn: bool
    snapshot: dict[str, Any] | None = None
    gate: dict[str, Any] | None = None
    problem: str | None = None


def pointers(world: World, truth: Truth, model_id: str) -> list[Pointer]:
    """Every generation's pointer that the artifact store keeps, oldest first, the present one last.

    Raises IntegrityError for one that is damaged or not signed as it must be.
    """
    found: dict[tuple[int, str], Pointer] = {}
    for blob in world.artifacts.list(truth.location):
        if not names.is_history(blob.name):
            continue
        content = world.artifacts.read(blob.name)[0]
        world.trust.verify("pointer", content, blob.name)
        pointer, _ = decode(content, blob.name)
        if pointer is None or pointer.model_id != model_id:
            raise IntegrityError(
                f"{blob.name} is not a pointer of {model_id}", cure="remove it, or restore the right one"
            )
        found[pointer.generation, pointer.job_id] = pointer
    if truth.pointer is not None:
        found[truth.pointer.generation, truth.pointer.job_id] = truth.pointer
    return sorted(found.values(), key=lambda pointer: (pointer.generation, pointer.published_at))


def of_generation(world: World, truth: Truth, model_id: str, generation: int) -> Pointer | None:
    """The pointer of one generation, also when another one has taken its place; None if it has none."""
    if truth.pointer is None or truth.pointer.generation == generation:
        return truth.pointer
    return next((one for one in pointers(world, truth, model_id) if one.generation == generation), None)


def look(world: World, model_id: str) -> list[Change]:
    """A model's generations, newest first. Raises UsageError for a model that never was in production."""
    truth = read_truth(world, model_id)
    known = pointers(world, truth, model_id)
    if not known:
        raise UsageError(
            f"nothing is on record about {model_id}", cure="servicectl models  shows what is in production"
        )
    ends: list[datetime | None] = [after.published_at for after in known[1:]]
    withdrawn = known[-1].withdrawn
    return [
        _change(world, truth.location, pointer, until, pointer.version in withdrawn)
        for pointer, until in zip(known, [*ends, None], strict=True)
    ][::-1]


def at(world: World, moment: datetime, model_ids: list[str]) -> dict[str, Change | None]:
    """For each model, what was in production at that moment; None if nothing that is on record was."""
    found: dict[str, Change | None] = {}
    for model_id in model_ids:
        try:
            changes = look(world, model_id)
        except UsageError:
            changes = []
        found[model_id] = next((one for one in changes if one.since <= moment), None)
    return found


def parse_moment(text: str) -> datetime:
    """A time in ISO 8601; without a zone it is UTC, without hours the day's beginning. Raises UsageError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a time", cure="write it like 2026-11-23T14:00, in UTC") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _change(world: World, location: str, pointer: Pointer, until: datetime | None, withdrawn: bool) -> Change:
    manifest: dict[str, Any] | None = None
    problem = None
    try:
        manifest = manifest_behind(world, location, pointer)
    except IntegrityError as error:
        problem = error.message
    told = manifest or {}
    snapshot, verdict = told.get("snapshot"), told.get("verdict")
    return Change(
        model_id=pointer.model_id,
        generation=pointer.generation,
        version=pointer.version,
        kind=pointer.kind,
        since=pointer.published_at,
        until=until,
        job=pointer.job_id,
        sha256=pointer.sha256,
        withdrawn=withdrawn,
        snapshot={key: snapshot.get(key) for key in ("sha256", "rows", "first", "last")} if snapshot else None,
        gate={
            key: verdict.get(key) for key in ("decision", "metric", "challenger", "champion", "difference", "interval")
        }
        if verdict
        else None,
        problem=problem,
    )
