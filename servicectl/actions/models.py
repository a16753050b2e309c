"""models: what is in production, since when, from which job."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from servicectl.actions.production import read_truth, strays

if TYPE_CHECKING:
    from servicectl.actions.world import World
    from servicectl.estate.registry import ModelRow


class ModelState(Struct, frozen=True):
    """One model as the three stores see it; `agree` is whether they say the same.

    `strays`: blobs beside the production ones that the estate's loaders may take for the model in production.
    """

    model_id: str
    version: str | None
    generation: int | None
    since: datetime | None
    job: str | None
    sha256: str | None
    registry_version: str | None
    serving_version: str | None
    max_drift_score: float | None
    agree: bool
    strays: list[str] = []


def look(world: World) -> list[ModelState]:
    """Every model that is configured, registered as production or served, by name."""
    rows = {row.model_id: row for row in world.registry.production()}
    return [_state(world, model_id, rows) for model_id in known_models(world)]


def known_models(world: World) -> list[str]:
    """Configured, registered as production or served."""
    registered = {row.model_id for row in world.registry.production()}
    return sorted(registered | world.keys.names() | world.config.models.keys())


def _state(world: World, model_id: str, rows: Mapping[str, ModelRow]) -> ModelState:
    row = rows.get(model_id)
    truth = read_truth(world, model_id, row.azure_location if row else None)
    current = world.keys.read(model_id)
    pointer = truth.pointer
    scores = [f.drift_score for f in row.expected_features if f.drift_score is not None] if row else []
    versions = {
        pointer.version if pointer else None,
        row.version if row else None,
        current.version if current else None,
    }
    return ModelState(
        model_id=model_id,
        version=pointer.version if pointer else None,
        generation=pointer.generation if pointer else None,
        since=pointer.published_at if pointer else None,
        job=pointer.job_id if pointer else None,
        sha256=pointer.sha256 if pointer else None,
        registry_version=row.version if row else None,
        serving_version=current.version if current else None,
        max_drift_score=max(scores) if scores else None,
        agree=len(versions - ({None} if pointer is None else set())) <= 1,
        strays=[blob.name for blob in strays(world, model_id, truth.location)],
    )
