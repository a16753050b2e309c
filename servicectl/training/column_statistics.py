"""Statistics of a column that is never held whole: moments in one pass, exact-to-the-bit ranks in a second.

Moments are merged by group (Chan, Golub and LeVeque 1983). For quantiles, the bits of a float are read as an integer
of the same order; its first 16 bits are counted in the first pass, and in the second pass the next 14 of those values
that a wanted rank falls on. So a float64 quantile is right to 2^-18 of itself, whole numbers below 262,144 exactly,
whatever the distribution. Of the first count only the bins that occur are kept (some hundred of 65,536), and what the
second one took goes as soon as its quantiles are known, so that thousands of columns fit. Rejected: bins of equal width, which one far outlier makes useless; P2 and t-digest, whose
error depends on the order of rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

HISTOGRAM_BINS = 10
_FINE = 14


@dataclass
class NumericColumn:
    """One numeric column; `first` on every group of rows, then `second` on every group again."""

    count: int = 0
    nulls: int = 0
    mean: float = 0.0
    squares: float = 0.0  # the sum of squared distances from the mean
    low: float = np.inf
    high: float = -np.inf
    coarse: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # bins that occur, ordered
    counts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # and how often
    quantiles: dict[float, float] = field(default_factory=dict)
    # Of the second pass: which coarse bins are refined, and below each edge how many values there are.
    bins: NDArray[np.int64] | None = None
    fine: NDArray[np.int64] | None = None
    edges: NDArray[np.float64] | None = None
    below: NDArray[np.int64] | None = None

    def first(self, values: NDArray[np.float64]) -> None:
        present = _present(values)
        self.nulls += len(values) - len(present)
        if len(present) == 0:
            return
        with np.errstate(over="ignore", invalid="ignore"):  # numbers near 1e308; told as null
            mean = float(present.mean())
            away = present - mean
            squares = float(np.dot(away, away))
            total = self.count + len(present)
            shift = mean - self.mean
            self.squares += squares + shift * shift * self.count * len(present) / total
            self.mean += shift * len(present) / total
        self.count = total
        self.low = min(self.low, float(present.min()))
        self.high = max(self.high, float(present.max()))
        found = np.bincount((_ordered(present) >> np.uint64(48)).view(np.int64))
        bins = np.flatnonzero(found)
        everything = np.union1d(self.coarse, bins)
        counts = np.zeros(len(everything), dtype=np.int64)
        counts[np.searchsorted(everything, self.coarse)] = self.counts
        counts[np.searchsorted(everything, bins)] += found[bins]
        self.coarse, self.counts = everything, counts

    def prepare(self, quantiles: tuple[float, ...]) -> None:
        """Between the passes: choose what is refined."""
        if self.count == 0:
            return
        ranks = {rank for quantile in quantiles for rank in _ranks(self.count, quantile)}
        self.bins = self.coarse[np.unique(np.searchsorted(np.cumsum(self.counts), sorted(ranks), side="right"))]
        self.fine = np.zeros(len(self.bins) << _FINE, dtype=np.int64)
        self.edges = histogram_edges(self.low, self.high)
        if self.edges is not None:
            self.below = np.zeros(HISTOGRAM_BINS - 1, dtype=np.int64)

    def second(self, values: NDArray[np.float64]) -> None:
        if self.bins is None or self.fine is None:
            return
        present = _present(values)
        if self.edges is not None and self.below is not None:
            self.below += [np.count_nonzero(present < edge) for edge in self.edges[1:-1]]
        keys = _ordered(present)
        slots = np.full(1 << 16, -1, dtype=np.int8)
        slots[self.bins] = np.arange(len(self.bins))
        slot = slots[(keys >> np.uint64(48)).view(np.int64)]
        chosen = slot >= 0
        within = (keys[chosen] >> np.uint64(48 - _FINE)).view(np.int64) & ((1 << _FINE) - 1)
        self.fine += np.bincount((slot[chosen].astype(np.int64) << _FINE) | within, minlength=len(self.fine))

    def finish(self, quantiles: tuple[float, ...]) -> None:
        """After the second pass: keep the quantiles that were prepared for, let go of what they came from."""
        if self.count:
            self.quantiles = {quantile: self._quantile(quantile) for quantile in quantiles}
        self.bins = self.fine = None

    def quantile(self, quantile: float) -> float:
        """One of those given to `finish`, of a column with values."""
        return self.quantiles[quantile]

    def _quantile(self, quantile: float) -> float:
        """With linear interpolation, as numpy's."""
        lower, upper = _ranks(self.count, quantile)
        low = self._at(lower)
        share = quantile * (self.count - 1) - lower
        if share == 0:
            return low
        with np.errstate(over="ignore", invalid="ignore"):
            return low + (self._at(upper) - low) * share

    def histogram(self) -> tuple[list[float], list[int]] | None:
        """Edges and counts of equal-width bins, as numpy.histogram's; None where the range is not a finite number."""
        if self.edges is None or self.below is None:
            return None
        return self.edges.tolist(), np.diff([0, *self.below.tolist(), self.count]).tolist()

    @property
    def variance(self) -> float:
        """The population's."""
        return self.squares / self.count if self.count else 0.0

    def _at(self, rank: int) -> float:
        assert self.bins is not None
        assert self.fine is not None
        if rank == 0:
            return self.low
        if rank == self.count - 1:
            return self.high
        place = int(np.searchsorted(np.cumsum(self.counts), rank, side="right"))
        coarse = int(self.coarse[place])
        slot = int(np.searchsorted(self.bins, coarse))
        before = int(self.counts[:place].sum())
        part = self.fine[slot << _FINE : (slot + 1) << _FINE]
        fine = int(np.searchsorted(np.cumsum(part), rank - before, side="right"))
        value = _float((coarse << 48) | (fine << (48 - _FINE)))
        return min(max(value, self.low), self.high)


@dataclass
class CategoricalColumn:
    """One categorical column: rows of each value."""

    nulls: int = 0
    values: Counter[Any] = field(default_factory=Counter)

    def first(self, values: NDArray[Any]) -> None:
        missing = np.array([value is None for value in values.tolist()]) if values.dtype == object else np.isnan(values)
        self.nulls += int(missing.sum())
        found, counts = np.unique(values[~missing], return_counts=True)
        self.values.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    @property
    def count(self) -> int:
        return self.values.total()


def histogram_edges(low: float, high: float) -> NDArray[np.float64] | None:
    """Edges of equal-width bins, as numpy.histogram's; None where no such bins exist between these numbers."""
    if not np.isfinite(high - low):
        return None
    try:
        return np.histogram_bin_edges(np.empty(0), HISTOGRAM_BINS, (low, high))
    except ValueError:  # too large for their distance
        return None


def _present(values: NDArray[np.float64]) -> NDArray[np.float64]:
    missing = np.isnan(values)
    # Adding zero makes one zero of the two.
    return (values[~missing] if missing.any() else values) + 0.0


def _ordered(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Floats as unsigned integers of the same order."""
    bits = np.ascontiguousarray(values).view(np.int64)
    return (bits ^ ((bits >> 63) | np.int64(-(1 << 63)))).view(np.uint64)


def _float(key: int) -> float:
    bits = key ^ (1 << 63) if key >> 63 else key ^ ((1 << 64) - 1)
    return float(np.array([bits], dtype=np.uint64).view(np.float64)[0])


def _ranks(count: int, quantile: float) -> tuple[int, int]:
    lower = int(quantile * (count - 1))
    return lower, min(lower + 1, count - 1)
