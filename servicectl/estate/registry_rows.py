"""Rows of `model_metadata` as values: as they are read through the handler, and as readers of Redis want them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from servicectl.errors import BadAnswer

STAGING, PRODUCTION, DEPRECATED = "staging", "production", "deprecated"


@dataclass(frozen=True)
class Feature:
    """One input of a model. `index` is its place, `type` is "float", "int" or "string" in the gateway's words;
    `drift_score` is its last PSI, None until it was measured."""

    index: int
    name: str
    type: str
    drift_score: float | None = None


@dataclass(frozen=True)
class ModelRow:
    """One version of one model. `trained_date` is a UTC day, `created_at` a naive UTC time."""

    model_id: str
    artifact_type: str
    version: str
    trained_date: date | None
    model_drift_score: float | None
    status: str
    azure_location: str
    expected_features: tuple[Feature, ...]
    created_at: datetime | None = None

    def described(self) -> tuple[object, ...]:
        """What never changes about a version: everything but its status, its scores and the time of its row."""
        features = tuple((feature.index, feature.name, feature.type) for feature in self.expected_features)
        return (self.model_id, self.artifact_type, self.version, self.trained_date, self.azure_location, features)


# NaN and infinities would blank the whole answer, far dates too: the first are read as NULL, the second as text.
COLUMNS = """
    model_id, artifact_type, version, status, azure_location,
    CAST(trained_date AS VARCHAR) AS trained_date,
    CASE WHEN isfinite(model_drift_score) THEN model_drift_score END AS model_drift_score,
    [{'index': f."index", 'name': f."name", 'type': f."type",
      'drift_score': CASE WHEN isfinite(f."drift_score") THEN f."drift_score" END}
     for f in expected_features] AS expected_features,
    CAST(created_at AS VARCHAR) AS created_at
"""


def model_row(told: Mapping[str, Any]) -> ModelRow:
    """Given one row selected by COLUMNS, its value. Raises BadAnswer naming the row that is out of shape.

    Tolerated: missing locations, types, dates, times and scores (they have an obvious default or are None).
    """
    model_id, version = told.get("model_id"), told.get("version")
    row = f"model_metadata row of model {model_id!r}, version {version!r}"
    if not (isinstance(model_id, str) and model_id and isinstance(version, str) and version):
        raise BadAnswer(f"{row}: it has no model_id or no version", cure="correct or delete that row")
    features = told.get("expected_features") or []
    if not isinstance(features, list):
        raise BadAnswer(f"{row}: expected_features is not a list", cure="correct that row")
    return ModelRow(
        model_id=model_id,
        artifact_type=told.get("artifact_type") or "pkl",
        version=version,
        trained_date=_day(told.get("trained_date")),
        model_drift_score=_number(told.get("model_drift_score")),
        status=told.get("status") or "",
        azure_location=told.get("azure_location") or f"Model_{model_id}/",
        expected_features=tuple(_feature(row, feature) for feature in features),
        created_at=moment(told.get("created_at")),
    )


def redis_metadata(row: ModelRow) -> dict[str, Any]:
    """The JSON object of `model_metadata:<id>`, in the types its Go and Python readers accept."""
    return {
        "model_id": row.model_id,
        "artifact_type": row.artifact_type,
        "version": row.version,
        "trained_date": None if row.trained_date is None else row.trained_date.isoformat(),
        "model_drift_score": row.model_drift_score,
        "status": row.status,
        "azure_location": row.azure_location,
        "expected_features": [
            {"index": feature.index, "name": feature.name, "type": feature.type, "drift_score": feature.drift_score}
            for feature in row.expected_features
        ],
    }


def moment(text: str | None) -> datetime | None:
    """Given a TIMESTAMP cast to VARCHAR, its naive UTC time; None for NULL and for what lies outside years 1 to 9999."""
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None


def _day(text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        return None


def _feature(row: str, told: Any) -> Feature:
    match told:
        case {"index": int(index), "name": str(name)} if name and not isinstance(index, bool):
            return Feature(index, name, told.get("type") or "float", _number(told.get("drift_score")))
    raise BadAnswer(f"{row}: its expected_features holds {told!r}, without a whole-number index or a name")


def _number(told: object) -> float | None:
    # The handler writes 3.0 as 3.
    return float(told) if isinstance(told, int | float) else None
