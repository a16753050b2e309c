"""Damaged data told from drift: what a model should never learn. Each function says what is wrong, or ""."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from servicectl.drift import statistics

_CHANCE = 1e-6  # less likely than this by chance is damage
_LEAST_FACTOR = 5.0
_FAHRENHEIT = ((1.8, 32.0), (1 / 1.8, -32 / 1.8))  # degrees Celsius read as Fahrenheit, and back
_LEAST_DISTANCE = 0.3  # less than this needs no explanation by another unit
_SAME_SHAPE = 0.1
_MANY_ROWS = 30


@dataclass(frozen=True, slots=True)
class Limits:
    """`null_flood`: by how much the share of absent values may rise. `new_category_flood`: the share of current values
    that may be categories never met in the reference."""

    null_flood: float = 0.3
    new_category_flood: float = 0.2


DEFAULT = Limits()


def unordered(reference_last: datetime | None, current_first: datetime | None, current_last: datetime | None) -> str:
    """Windows that lie at one and the same moment: their rows carry the time they were stored at, or a stuck clock."""
    if reference_last is None or current_first is None or current_last is None or current_last > reference_last:
        return ""
    return f"its rows all carry the time {current_last:%Y-%m-%d %H:%M:%S}, the older ones too: the clock stands still"


def emptied(reference_rows: int, reference_absent: int, current_rows: int, current_absent: int, limits: Limits) -> str:
    """A window without values, or with far fewer than before."""
    if current_rows == 0:
        return "the newest window is empty"
    before = reference_absent / reference_rows if reference_rows else 0.0
    after = current_absent / current_rows
    if current_absent == current_rows and (reference_absent < reference_rows or not reference_rows):
        return f"all {current_rows:,} newest values are NULL or no number"
    if after - before > limits.null_flood:
        return f"{after:.0%} of the newest values are NULL or no number, {before:.0%} of the older ones were"
    return ""


def constant(ordered: NDArray[np.generic], newer: NDArray[np.generic]) -> str:
    """A column that stands still although it moved before: one value only, which chance would hardly bring."""
    if newer[0] != newer[-1] or ordered[0] == ordered[-1]:
        return ""
    hits = np.searchsorted(ordered, newer[0], side="right") - np.searchsorted(ordered, newer[0], side="left")
    share = (hits + 1) / (len(ordered) + 1)  # a value never met is taken for one row's worth
    if len(newer) * math.log(share) > math.log(_CHANCE):
        return ""
    return (
        f"all {len(newer):,} newest values are {newer[0]:.6g}"
        if newer.dtype.kind == "f"
        else (f"all {len(newer):,} newest values are {newer[0]}")
    )


def flooded(new_values: float, limits: Limits) -> str:
    """Categories that no model has a column for."""
    if new_values <= limits.new_category_flood:
        return ""
    return f"{new_values:.0%} of the newest values are categories that never occurred before"


def rescaled(ordered: statistics.Numbers, newer: statistics.Numbers, distance: float) -> str:
    """The same distribution in another unit.

    Given both windows sorted and their Kolmogorov-Smirnov distance. Only factors of 5 and more count, and degrees
    Celsius against Fahrenheit: the distribution of an income or a price does move by smaller factors.
    """
    if distance < _LEAST_DISTANCE or min(len(ordered), len(newer)) < _MANY_ROWS or newer[0] == newer[-1]:
        return ""
    allowed = _SAME_SHAPE + 1.36 * math.sqrt(1 / len(ordered) + 1 / len(newer))  # 1.36: KS's 95 % point
    for size in (_middle, _deviation):
        factor = size(newer) / size(ordered) if size(ordered) else 0.0
        if not factor or 1 / _LEAST_FACTOR < factor < _LEAST_FACTOR:
            continue
        if statistics.kolmogorov_statistic(ordered, newer / factor) < min(allowed, distance / 2):
            return f"its values are those of before times {factor:.3g}: another unit"
    for slope, offset in _FAHRENHEIT:
        back = (newer - offset) / slope
        if statistics.kolmogorov_statistic(ordered, back) < min(allowed - _SAME_SHAPE / 2, distance / 4):
            return f"its values are those of before times {slope:.3g} plus {offset:.3g}: another unit"
    return ""


def _middle(values: statistics.Numbers) -> float:
    return float(np.median(np.abs(values)))


def _deviation(values: statistics.Numbers) -> float:
    return float(values.std())
