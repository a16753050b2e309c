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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servicectl.training.column_statistics import HISTOGRAM_BINS, histogram_edges
from servicectl.training.frame import Rows, absent, label_text, moment
from servicectl.training.spec import TrainingSpec

SCHEMA = 1
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_LISTED_VALUES = 50
SAMPLE_ROWS = 20_000
_FEWEST_SAMPLE_ROWS = 1000
_SAMPLE_BYTES = 64 << 20


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
    if len(present) == 0:
        return numeric_facts(count=0, nulls=len(column))
    low, high = float(present.min()), float(present.max())
    with np.errstate(over="ignore", invalid="ignore"):  # sums of numbers near 1e308; reported as null
        mean, std = float(present.mean()), float(present.std())
        quantiles = np.quantile(present, QUANTILES)
    histogram = None
    if histogram_edges(low, high) is not None:
        counts, edges = np.histogram(present, bins=HISTOGRAM_BINS, range=(low, high))
        histogram = edges.tolist(), counts.tolist()
    return numeric_facts(
        count=len(present),
        nulls=len(column) - len(present),
        mean=mean,
        std=std,
        low=low,
        high=high,
        quantiles=quantiles.tolist(),
        histogram=histogram,
    )


def numeric_facts(
    *,
    count: int,
    nulls: int,
    mean: float = 0.0,
    std: float = 0.0,
    low: float = 0.0,
    high: float = 0.0,
    quantiles: Sequence[float] = (),
    histogram: tuple[list[float], list[int]] | None = None,
) -> dict[str, Any]:
    """NUMERIC of one column. `quantiles` are at QUANTILES; `histogram`: edges and counts."""
    facts: dict[str, Any] = {"kind": "numeric", "count": count, "nulls": nulls}
    if count == 0:
        return facts | dict.fromkeys(("mean", "std", "min", "max", "quantiles", "histogram"))
    return facts | {
        "mean": _finite(mean),
        "std": _finite(std),
        "min": low,
        "max": high,
        "quantiles": {f"{q:g}": _finite(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        "histogram": None if histogram is None else {"edges": histogram[0], "counts": histogram[1]},
    }


def _categorical(column: NDArray[Any]) -> dict[str, Any]:
    missing = absent(column)
    values, counts = np.unique(column[~missing], return_counts=True)
    return categorical_facts(dict(zip(values.tolist(), counts.tolist(), strict=True)), int(missing.sum()))


def categorical_facts(rows_of: Mapping[Any, int], nulls: int) -> dict[str, Any]:
    """CATEGORICAL of one column, from its rows per value."""
    ordered = sorted(rows_of.items(), key=lambda pair: (-pair[1], str(pair[0])))
    listed = ordered[:_LISTED_VALUES]
    return {
        "kind": "categorical",
        "count": sum(rows_of.values()),
        "nulls": nulls,
        "distinct": len(ordered),
        "values": {label_text(value): count for value, count in listed},
        "other": sum(count for _, count in ordered[_LISTED_VALUES:]),
    }


def _classes(labels: NDArray[Any], codes: dict[str, int] | None) -> dict[str, Any]:
    values, counts = np.unique(labels, return_counts=True)
    return class_facts(dict(zip(values.tolist(), counts.tolist(), strict=True)), codes)


def class_facts(rows_of: Mapping[Any, int], codes: dict[str, int] | None) -> dict[str, Any]:
    """CLASSES, from the rows per label."""
    total = sum(rows_of.values())
    ordered = sorted(rows_of.items())
    return {
        "kind": "classes",
        "count": total,
        "shares": {label_text(value): count / total for value, count in ordered},
        "codes": codes if codes is not None else {label_text(value): int(value) for value, _ in ordered},
    }


def sample_positions(rows: int, seed: int, columns: int = 1) -> NDArray[np.int64]:
    """Which training rows are kept raw: a seeded sample without replacement, in order; all, where they are few.

    Of wide tables fewer: 64 MiB of 8-byte values.
    """
    most = max(_FEWEST_SAMPLE_ROWS, min(SAMPLE_ROWS, _SAMPLE_BYTES // (8 * columns)))
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng([seed, 20_000]).choice(rows, most, replace=False, shuffle=False))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
