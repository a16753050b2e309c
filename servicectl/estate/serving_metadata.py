"""The shape of `model_metadata:<id>` that all of its readers accept.

The Go readers refuse a whole object over an `index` of 0.0 or an empty feature list; Service C stops for all models
at a `model_id` that is a number; a NaN is an error here and there.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import Any

from servicectl.errors import BadData


def metadata_for_readers(model_id: str, version: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Given a registry row's members, return the JSON object with exactly the members and types readers know.

    A drift score that is None or not finite becomes 0.0. Raises BadData with the member that cannot be right.
    """
    features = metadata.get("expected_features")
    if not isinstance(features, list | tuple) or not features:
        raise _bad(model_id, "expected_features", features, "a list with at least one feature")
    return {
        "model_id": _name(model_id, "model_id", model_id),
        "artifact_type": _name(model_id, "artifact_type", metadata.get("artifact_type")),
        "version": _name(model_id, "version", version),
        "trained_date": _date(model_id, metadata.get("trained_date")),
        "model_drift_score": _score(metadata.get("model_drift_score")),
        "status": _text(model_id, "status", metadata.get("status")),
        "azure_location": _text(model_id, "azure_location", metadata.get("azure_location")),
        "expected_features": [_feature(model_id, feature) for feature in features],
    }


def with_scores(model_id: str, stored: Mapping[str, Any], scores: Mapping[str, float]) -> dict[str, Any]:
    """Given a stored object, return it with these drift scores (by feature name) in its features."""
    for feature, score in scores.items():
        if not math.isfinite(score):
            raise BadData(f"{model_id}: the drift score of {feature!r} is {score}", cure="store finite scores only")
    features = stored.get("expected_features")
    if not isinstance(features, list):
        return dict(stored)
    renewed = [
        {**feature, "drift_score": float(scores[feature["name"]])}
        if isinstance(feature, dict) and feature.get("name") in scores
        else feature
        for feature in features
    ]
    return {**stored, "expected_features": renewed}


def _feature(model_id: str, feature: Any) -> dict[str, Any]:
    if not isinstance(feature, Mapping):
        raise _bad(model_id, "expected_features", feature, "objects with index, name, type and drift_score")
    return {
        "index": _index(model_id, feature.get("index")),
        "name": _name(model_id, "name", feature.get("name")),
        "type": _text(model_id, "type", feature.get("type")),
        "drift_score": _score(feature.get("drift_score")),
    }


def _index(model_id: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise _bad(model_id, "index", value, "a whole number")
    return int(value)


def _name(model_id: object, member: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _bad(model_id, member, value, "a text")
    return value


def _text(model_id: object, member: str, value: Any) -> str:
    """A column that old rows may leave NULL; Go reads null as the empty text anyway."""
    return "" if value in {None, ""} else _name(model_id, member, value)


def _date(model_id: str, value: Any) -> str | None:
    """YYYY-MM-DD; the handler answers a DATE as a midnight timestamp."""
    if value is None:
        return None
    text = value.isoformat() if isinstance(value, dt.date) else value
    try:
        return dt.date.fromisoformat(text[:10]).isoformat()
    except (TypeError, ValueError):
        raise _bad(model_id, "trained_date", value, "a date YYYY-MM-DD") from None


def _score(value: Any) -> float:
    measured = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if measured else 0.0


def _bad(model_id: object, member: str, value: Any, expected: str) -> BadData:
    return BadData(
        f"the metadata of {model_id!r} has {member} = {value!r}, expected {expected}",
        cure="correct the model's row in model_metadata",
    )
