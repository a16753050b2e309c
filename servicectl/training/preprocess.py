"""The stock ColumnTransformer of a model, fitted in memory or made from streamed statistics, and its blocks in numpy.

Made from statistics: scikit-learn fits the transformer on a small frame that holds every category once, so that all
of its own attributes are there; then the values learnt from numbers (SimpleImputer.statistics_, StandardScaler.mean_,
var_, scale_ and n_samples_seen_) are replaced by those of all rows, as its documentation names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from servicectl.training.column_statistics import CategoricalColumn, NumericColumn
from servicectl.training.columns import MISSING, transformer
from servicectl.training.parquet import Outline, numbers
from servicectl.training.spec import TrainingSpec
from servicectl.training.survey import Survey, feature_values

_CACHED_ROWS = 4_096


@dataclass(frozen=True)
class Numbers:
    """One numeric feature: what stands for a missing value, and the scaling."""

    name: str
    fill: float
    mean: float
    variance: float
    scale: float


@dataclass(frozen=True)
class Categories:
    """One categorical feature: what stands for a missing value, and its categories in order."""

    name: str
    fill: Any
    values: list[Any]


@dataclass(frozen=True)
class Preprocessing:
    """Columns of the matrix: each number, then each category of each coded feature, then of each text feature."""

    numbers: tuple[Numbers, ...]
    coded: tuple[Categories, ...]
    text: tuple[Categories, ...]
    rows: int

    @property
    def width(self) -> int:
        return len(self.numbers) + sum(len(feature.values) for feature in (*self.coded, *self.text))

    @property
    def columns(self) -> tuple[str, ...]:
        """What the columns of the matrix are called."""
        coded = (f"{feature.name}={value}" for feature in (*self.coded, *self.text) for value in feature.values)
        return (*(feature.name for feature in self.numbers), *coded)

    def matrix(self, table: pa.Table, outline: Outline, into: NDArray[np.float32]) -> None:
        """Write the rows of a table into an array (rows, width), as the fitted transformer would."""
        columns = []
        for feature in self.numbers:
            values = numbers(table.column(feature.name))
            missing = np.isnan(values)
            columns.append(np.where(missing, feature.fill, values) if missing.any() else values)
        # A few thousand rows at a time: their part of the matrix stays in the processor's cache for all columns.
        for start in range(0, len(table), _CACHED_ROWS):
            rows = slice(start, start + _CACHED_ROWS)
            for place, (feature, values) in enumerate(zip(self.numbers, columns, strict=True)):
                centred = values[rows] - feature.mean
                centred /= feature.scale
                into[rows, place] = centred
        place = len(self.numbers)
        for category in (*self.coded, *self.text):
            position = category_positions(feature_values(table, category.name, outline), category)
            block = into[:, place : place + len(category.values)]
            block[:] = 0
            known = np.flatnonzero(position >= 0)
            block[known, position[known]] = 1
            place += len(category.values)

    def fitted(self, spec: TrainingSpec, outline: Outline) -> Any:
        """The stock transformer with these values."""
        built = transformer(spec, outline.kinds)
        built.fit(self._small_frame(spec))
        for name, branch, _ in built.transformers_:
            if name == "numeric":
                impute, scale = branch.named_steps["impute"], branch.named_steps["scale"]
                impute.statistics_ = np.array([feature.fill for feature in self.numbers])
                scale.mean_ = np.array([feature.mean for feature in self.numbers])
                scale.var_ = np.array([feature.variance for feature in self.numbers])
                scale.scale_ = np.array([feature.scale for feature in self.numbers])
                scale.n_samples_seen_ = np.int64(self.rows)
            elif name == "coded":
                branch.named_steps["impute"].statistics_ = np.array([feature.fill for feature in self.coded])
        return built

    def _small_frame(self, spec: TrainingSpec) -> pd.DataFrame:
        longest = max([2, *(len(feature.values) for feature in (*self.coded, *self.text))])
        columns: dict[str, Any] = {feature.name: np.arange(longest, dtype=np.float64) for feature in self.numbers}
        for feature in self.coded:
            columns[feature.name] = np.resize(np.array(feature.values, dtype=np.float64), longest)
        for feature in self.text:
            columns[feature.name] = np.resize(np.array(feature.values, dtype=object), longest)
        return pd.DataFrame({name: pd.Series(columns[name], dtype=columns[name].dtype) for name in spec.features})


def preprocessing(survey: Survey, spec: TrainingSpec, outline: Outline) -> Preprocessing:
    """Given a survey after both passes, what each feature becomes."""
    kinds = outline.kinds
    return Preprocessing(
        tuple(_numbers(name, survey.numeric[name], survey.seen) for name in spec.features if kinds[name] == "numeric"),
        tuple(_coded(name, survey.categorical[name]) for name in spec.categorical if kinds[name] == "coded"),
        tuple(_text(name, survey.categorical[name]) for name in spec.categorical if kinds[name] == "text"),
        survey.seen,
    )


def category_positions(values: NDArray[Any], feature: Categories) -> NDArray[np.int64]:
    """The category of each row, -1 for one that training lacks."""
    if values.dtype == object:
        place = {value: number for number, value in enumerate(feature.values)}
        missing = place.get(feature.fill, -1)
        return np.array(
            [missing if value is None else place.get(value, -1) for value in values.tolist()], dtype=np.int64
        )
    filled = np.where(np.isnan(values), feature.fill, values)
    known = np.array(feature.values, dtype=np.float64)
    position = np.clip(np.searchsorted(known, filled), 0, len(known) - 1)
    return np.where(known[position] == filled, position, -1)


def _numbers(name: str, column: NumericColumn, rows: int) -> Numbers:
    """The imputer's median, and the scaling of the column as it is after imputing."""
    if column.count == 0:
        return Numbers(name, 0.0, 0.0, 0.0, 1.0)
    fill = column.quantile(0.5)
    share = column.nulls / rows
    shift = fill - column.mean
    mean = column.mean + share * shift
    # Two groups: those present with their own spread, and `nulls` rows all at the fill.
    variance = (1 - share) * column.variance + share * (1 - share) * shift * shift
    return Numbers(name, fill, mean, variance, _scale(mean, variance, rows))


def _scale(mean: float, variance: float, rows: int) -> float:
    """As StandardScaler: 1 for a column that is constant but for rounding (Chan, Golub and LeVeque's bound)."""
    rounding = float(np.finfo(np.float64).eps)
    constant = variance <= rows * rounding * variance + (rows * mean * rounding) ** 2
    return 1.0 if constant or variance == 0 else float(np.sqrt(variance))


def _coded(name: str, column: CategoricalColumn) -> Categories:
    if not column.values:
        return Categories(name, 0.0, [0.0])
    most = min(column.values, key=lambda value: (-column.values[value], value))
    return Categories(name, most, sorted(column.values))


def _text(name: str, column: CategoricalColumn) -> Categories:
    values = set(column.values) | ({MISSING} if column.nulls else set())
    return Categories(name, MISSING, sorted(values))
