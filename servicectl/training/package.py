"""The manifest: everything that went into one model version, so that anybody can tell what it is and make it again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from servicectl.training.spec import SnapshotFacts, Trained, TrainingSpec, Verdict, aware, canonical

SCHEMA = 1


class Serving(Struct, frozen=True):
    """What was known of the serving side, and what the model needs of it beyond scikit-learn. None: unknown."""

    scikit_learn: str | None
    libraries: tuple[str, ...]
    needed: tuple[str, ...]


def manifest(
    spec: TrainingSpec,
    *,
    version: str,
    snapshot: SnapshotFacts,
    trained: Trained,
    verdict: Verdict,
    created_at: datetime,
    feature_types: Mapping[str, str] | None = None,
    job_id: str | None = None,
    serving: Serving | None = None,
) -> dict[str, Any]:
    """The manifest as JSON-able data.

    `feature_types` are the words told to the gateway (float, int, string); unset: float, string for categorical ones.
    `training.spec` holds every field of the spec, so that it can be read back as one and give the same bytes again.
    Paths stay out: digests say which files are meant, wherever they are.
    """
    told = feature_types or {}
    return {
        "schema": SCHEMA,
        "model_id": spec.model_id,
        "version": version,
        "task": spec.task,
        "label": spec.label,
        "label_codes": trained.label_codes,
        "features": [
            {
                "index": index,
                "name": name,
                "type": told.get(name, "string" if name in spec.categorical else "float"),
                "categorical": name in spec.categorical,
            }
            for index, name in enumerate(spec.features)
        ],
        "model": {"sha256": trained.model.sha256, "bytes": trained.model.bytes},
        "baseline": {"sha256": trained.baseline.sha256, "bytes": trained.baseline.bytes},
        "sample": None if trained.sample is None else {"sha256": trained.sample.sha256, "bytes": trained.sample.bytes},
        "snapshot": {
            "sha256": snapshot.sha256,
            "bytes": snapshot.bytes,
            "rows": snapshot.rows,
            "first": _time(snapshot.first),
            "last": _time(snapshot.last),
            "query": snapshot.query,
            "window_s": spec.window_s,
            "max_rows": spec.max_rows,
            "sample": spec.sample,
            "schema": dict(snapshot.types),
        },
        "split": {
            "heldout_fraction": spec.heldout_fraction,
            "heldout_rows": spec.heldout_rows,
            "embargo_s": spec.embargo_s,
            "rows_trained": trained.rows_trained,
            "trained_from": _time(trained.trained_from),
            "trained_until": _time(trained.trained_until),
            "heldout_from": _time(trained.heldout_from),
        },
        "verdict": msgspec.to_builtins(verdict),
        "training": {
            "mode": trained.training,
            "passes": trained.passes,
            "metric": spec.main_metric,
            "window_share": trained.window_share,
            "estimate_mb": trained.estimate_mb,
            "spec": msgspec.to_builtins(spec),
        },
        "estimator": trained.estimator,
        "params": dict(spec.params),
        "seed": spec.seed,
        "threads": spec.threads,
        "libraries": dict(trained.libraries),
        "serving": msgspec.to_builtins(serving),
        "created_at": _time(created_at),
        "job_id": job_id,
    }


def manifest_bytes(content: Mapping[str, Any]) -> bytes:
    """Canonical JSON: sorted keys, no spaces; equal manifests have equal digests."""
    return canonical(dict(content))


def _time(moment: datetime) -> str:
    return aware(moment).isoformat().replace("+00:00", "Z")
