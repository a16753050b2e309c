"""Baseline statistics: what the training rows looked like, to hold later rows against.

The JSON beside each model, `schema` 1 (documented for readers in docs/baseline.md):

    {"schema": 1, "model_id": ..., "task": ..., "rows": n, "from": time, "until": time,
     "features": {name: NUMERIC | CATEGORICAL}, "label": NUMERIC | CLASSES}
    NUMERIC      {"kind": "numeric", "count", "nulls", "mean", "std", "min", "max",
                  "quantiles": {"0.01": ..., ..., "0.99": ...}, "histogram": {"edges": [11], "counts": [10]}}
    CATEGORICAL  {"kind": "categorical", "count", "nulls", "distinct", "values": {text: rows}, "other": rows}
    CLASSES      {"kind": "classes", "count", "shares": {label: share}, "codes": {label: served number}}

`count` is of present values; mean to histogram are null where there is none. `std` is the population's. Quantiles
interpolate linearly. Histogram bins are ten of equal width from min to max, closed below (the last on both sides):
the form that the analytics service's PSI uses.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servicectl.training.frame import Rows, absent, label_text, moment
from servicectl.training.spec import TrainingSpec

SCHEMA = 1
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_BINS = 10
_LISTED_VALUES = 50


def baseline(rows: Rows, spec: TrainingSpec, label_codes: dict[str, int] | None) -> dict[str, Any]:
    """Given the training rows, the baseline as JSON-able data, finite numbers only."""
    return {
        "schema": SCHEMA,
        "model_id": spec.model_id,
        "task": spec.task,
        "rows": len(rows),
        "from": moment(rows.times[0]).isoformat(),
        "until": moment(rows.times[-1]).isoformat(),
        "features": {
            name: _categorical(column) if name in spec.categorical else _numeric(column)
            for name, column in rows.features.items()
        },
        "label": _numeric(rows.labels) if spec.task == "regression" else _classes(rows.labels, label_codes),
    }


def _numeric(column: NDArray[Any]) -> dict[str, Any]:
    present = column[~np.isnan(column)]
    facts: dict[str, Any] = {"kind": "numeric", "count": len(present), "nulls": len(column) - len(present)}
    if len(present) == 0:
        empty = dict.fromkeys(("mean", "std", "min", "max", "quantiles", "histogram"))
        return facts | empty
    low, high = float(present.min()), float(present.max())
    with np.errstate(over="ignore", invalid="ignore"):  # sums of numbers near 1e308; reported as null
        mean, std = float(present.mean()), float(present.std())
        quantiles = np.quantile(present, QUANTILES)
    histogram = None
    if math.isfinite(high - low):
        counts, edges = np.histogram(present, bins=_BINS, range=(low, high))
        histogram = {"edges": edges.tolist(), "counts": counts.tolist()}
    return facts | {
        "mean": _finite(mean),
        "std": _finite(std),
        "min": low,
        "max": high,
        "quantiles": {f"{q:g}": _finite(float(value)) for q, value in zip(QUANTILES, quantiles, strict=True)},
        "histogram": histogram,
    }


def _categorical(column: NDArray[Any]) -> dict[str, Any]:
    missing = absent(column)
    values, counts = np.unique(column[~missing], return_counts=True)
    ordered = sorted(zip(values.tolist(), counts.tolist(), strict=True), key=lambda pair: (-pair[1], str(pair[0])))
    listed = ordered[:_LISTED_VALUES]
    return {
        "kind": "categorical",
        "count": int(counts.sum()),
        "nulls": int(missing.sum()),
        "distinct": len(ordered),
        "values": {label_text(value): count for value, count in listed},
        "other": sum(count for _, count in ordered[_LISTED_VALUES:]),
    }


def _classes(labels: NDArray[Any], codes: dict[str, int] | None) -> dict[str, Any]:
    values, counts = np.unique(labels, return_counts=True)
    names = [label_text(value) for value in values.tolist()]
    return {
        "kind": "classes",
        "count": len(labels),
        "shares": {name: int(count) / len(labels) for name, count in zip(names, counts, strict=True)},
        "codes": codes if codes is not None else {name: int(value) for name, value in zip(names, values, strict=True)},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
