"""What must be known of the training rows before fitting in blocks: their statistics, in two streamed passes.

The first pass takes moments, categories, labels and a seeded sample of raw rows; the second refines quantiles and
histograms, some columns at a time where there are many: each column is read once more, and only those being refined
take memory. Every pass is a fold: a state that can be pickled, advanced by one piece of the snapshot.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from servicectl.errors import BadData
from servicectl.training.baseline import (
    QUANTILES,
    SCHEMA,
    categorical_facts,
    class_facts,
    numeric_facts,
    sample_positions,
)
from servicectl.training.column_statistics import CategoricalColumn, NumericColumn
from servicectl.training.frame import MOST_CATEGORIES, moment, too_many_categories
from servicectl.training.labels import CodedClasses, coded_classes
from servicectl.training.parquet import Outline, SnapshotFile, coded, numbers, texts
from servicectl.training.spec import TrainingSpec

_REFINED_AT_ONCE = 32  # some 2 MB each


@dataclass
class Survey:
    """Statistics of the training rows; `numeric` and `categorical` by feature, `target` of a regression's label."""

    numeric: dict[str, NumericColumn]
    categorical: dict[str, CategoricalColumn]
    target: NumericColumn
    labels: Counter[Any] = field(default_factory=Counter)
    sample: list[pa.Table] = field(default_factory=list)
    seen: int = 0

    @classmethod
    def empty(cls, outline: Outline) -> Survey:
        kinds = outline.kinds
        return cls(
            {name: NumericColumn() for name, kind in kinds.items() if kind == "numeric"},
            {name: CategoricalColumn() for name, kind in kinds.items() if kind != "numeric"},
            NumericColumn(),
        )

    @property
    def passes(self) -> int:
        return 1 + math.ceil(len(self._refined()) / _REFINED_AT_ONCE)

    def columns(self, spec: TrainingSpec, passed: int) -> list[str]:
        """What the first (`passed` 0) or a later pass reads."""
        if passed == 0:
            return [spec.entity_column, spec.time_column, spec.label, *spec.features]
        return [spec.label if name is None else name for name in self._part(passed)]

    def _refined(self) -> list[str | None]:
        """The numeric features, and None for a numeric label."""
        return [*self.numeric, *([None] if self.target.count else [])]

    def _part(self, passed: int) -> list[str | None]:
        return self._refined()[(passed - 1) * _REFINED_AT_ONCE : passed * _REFINED_AT_ONCE]

    def _column(self, name: str | None) -> NumericColumn:
        return self.target if name is None else self.numeric[name]

    def first(self, table: pa.Table, file: SnapshotFile, outline: Outline) -> None:
        """Moments, categories, labels and the sample. Raises BadData for a category that is an identifier."""
        spec = file.spec
        for name, column in self.numeric.items():
            column.first(numbers(table.column(name)))
        for name, categories in self.categorical.items():
            categories.first(feature_values(table, name, outline))
            if len(categories.values) > MOST_CATEGORIES:
                raise too_many_categories(spec, name)
        labels = label_values(table, file)
        if spec.task == "regression":
            self.target.first(labels)
        else:
            values, counts = np.unique(labels, return_counts=True)
            self.labels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        picked = sample_positions(outline.rows_trained, spec.seed, len(spec.features))
        inside = picked[(picked >= self.seen) & (picked < self.seen + len(table))] - self.seen
        self.sample.append(table.take(pa.array(inside)))
        self.seen += len(table)

    def prepare(self, passed: int) -> None:
        """Before a pass; the first one needs nothing."""
        if passed == 0:
            return
        for name in self._part(passed):
            self._column(name).prepare(QUANTILES)

    def later(self, table: pa.Table, spec: TrainingSpec, passed: int) -> None:
        """Quantiles and histograms of the columns whose turn it is."""
        for name in self._part(passed):
            self._column(name).second(numbers(table.column(spec.label if name is None else name)))

    def finish(self, passed: int) -> None:
        """After a later pass."""
        for name in self._part(passed):
            self._column(name).finish(QUANTILES)

    def classes(self, spec: TrainingSpec) -> CodedClasses | None:
        """The labels of a classification. Raises BadData for one class only."""
        return None if spec.task == "regression" else coded_classes(sorted(self.labels), self.seen, spec)

    def baseline(self, spec: TrainingSpec, outline: Outline, codes: dict[str, int] | None) -> dict[str, Any]:
        """The document of `baseline.baseline`, from streamed statistics."""
        facts = {name: _numeric(column) for name, column in self.numeric.items()} | {
            name: categorical_facts(column.values, column.nulls) for name, column in self.categorical.items()
        }
        return {
            "schema": SCHEMA,
            "model_id": spec.model_id,
            "task": spec.task,
            "rows": self.seen,
            "from": moment(outline.trained_from).isoformat(),
            "until": moment(outline.trained_until).isoformat(),
            "features": {name: facts[name] for name in spec.features},
            "label": _numeric(self.target) if spec.task == "regression" else class_facts(self.labels, codes),
        }


def label_values(table: pa.Table, file: SnapshotFile) -> NDArray[Any]:
    """Labels as `frame.read` gives them: float64, or text."""
    column = table.column(file.spec.label)
    if file.is_text(file.spec.label):
        encoded = column.combine_chunks().dictionary_encode()  # one object for each distinct label, not for each row
        labels = np.array(encoded.dictionary.to_pylist(), dtype=object)
        return np.asarray(labels[encoded.indices.to_numpy(zero_copy_only=False)])
    return numbers(column)


def feature_values(table: pa.Table, name: str, outline: Outline) -> NDArray[Any]:
    """One feature as `frame.read` gives it."""
    column, kind = table.column(name), outline.kinds[name]
    if kind == "numeric":
        return numbers(column)
    return coded(column) if kind == "coded" else texts(column)


def require_values(survey: Survey, spec: TrainingSpec) -> None:
    """Raises BadData where no training row has any feature at all."""
    counts = [column.count for column in survey.numeric.values()] + [c.count for c in survey.categorical.values()]
    if not any(counts):
        raise BadData(f"{spec.model_id}: no training row has any feature", cure="see why the feature store is empty")


def _numeric(column: NumericColumn) -> dict[str, Any]:
    return numeric_facts(
        count=column.count,
        nulls=column.nulls,
        mean=column.mean,
        std=float(np.sqrt(column.variance)),
        low=column.low,
        high=column.high,
        quantiles=[column.quantile(quantile) for quantile in QUANTILES] if column.count else [],
        histogram=column.histogram() if column.count else None,
    )
