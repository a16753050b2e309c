"""How far one column's newer values have moved from its older ones: pure functions over arrays.

Numbers are float64 arrays in any order, without NaN unless a function says otherwise. Every distance is 0 for equal
distributions. Logarithms are natural. Nothing here judges; that is `judgement`.

Population stability index: PSI = sum((q - p) ln(q / p)), the symmetric form of the Kullback-Leibler divergence
(Jeffreys, 1946), over the shares p of the reference and q of the current values.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Shares = NDArray[np.float64]
Counts = NDArray[np.int64]

DECILES = tuple(number / 10 for number in range(1, 10))
ESTATE_BINS = 10
ESTATE_EMPTY_BIN = 1e-10
"""Service C's share of an empty bin, which makes one empty bin on a small window a PSI of 17 and more."""

_EXACT_ROWS = 10_000  # up to here scipy's own choice is the exact distribution


@dataclass(frozen=True, slots=True)
class Kolmogorov:
    """The two-sample Kolmogorov-Smirnov statistic, 0..1, and its two-sided p-value."""

    statistic: float
    p_value: float


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """Pearson's test of homogeneity for two rows of counts. `cells`: the categories that had any."""

    statistic: float
    p_value: float
    cells: int


def psi(reference: Shares, current: Shares) -> float:
    """Given shares per bin, none of them 0, the population stability index."""
    return float(np.sum((current - reference) * np.log(current / reference)))


def kl_divergence(reference: Shares, current: Shares) -> float:
    """Given shares per bin, none of them 0, KL(current || reference) (Kullback and Leibler, 1951)."""
    return float(np.sum(current * np.log(current / reference)))


def shares(counts: Counts) -> Shares:
    """Given counts per bin, their shares; an empty bin counts as half a row.

    With no bin empty these are the textbook's shares exactly. Zero would make PSI infinite, and a fixed tiny number
    makes it a measure of how tiny the number is; half a row vanishes as the rows grow.
    """
    total = counts.sum()
    return np.asarray(np.where(counts > 0, counts, 0.5) / total, dtype=np.float64)


def estate_shares(counts: Counts) -> Shares:
    """Given counts per bin, shares as Service C makes them."""
    exact = counts / counts.sum()
    return np.asarray(np.where(exact > 0, exact, ESTATE_EMPTY_BIN), dtype=np.float64)


def decile_edges(ordered: Numbers) -> Numbers:
    """Given sorted reference values, the inner edges of up to ten bins of equal share.

    Ties leave fewer bins. A value on which several deciles fall gets a bin of its own: else a column that is mostly one
    value ("never contacted before") would have a single bin, and a PSI of nothing whatever happened to it.
    """
    deciles, times = np.unique(np.quantile(ordered, DECILES), return_counts=True)
    return np.unique(np.concatenate([deciles, np.nextafter(deciles[times > 1], np.inf)]))


def estate_edges(ordered_reference: Numbers, ordered_current: Numbers) -> Numbers | None:
    """Given both windows sorted, the 11 edges of Service C's equal-width bins; None where all values are one."""
    low = min(ordered_reference[0], ordered_current[0])
    high = max(ordered_reference[-1], ordered_current[-1])
    return None if low == high else np.linspace(low, high, ESTATE_BINS + 1)


def binned(ordered: Numbers, inner_edges: Numbers) -> Counts:
    """Given sorted values and inner edges, the counts of (-inf, e1), [e1, e2), ..., [ek, inf)."""
    below = np.searchsorted(ordered, inner_edges, side="left")
    return np.diff(np.concatenate([[0], below, [len(ordered)]])).astype(np.int64)


def estate_counts(ordered: Numbers, edges: Numbers) -> Counts:
    """Given sorted values and all edges, counts per bin, closed below, the last one on both sides (numpy's rule)."""
    below = np.searchsorted(ordered, edges[:-1], side="left")
    return np.diff(np.concatenate([below, [np.searchsorted(ordered, edges[-1], side="right")]])).astype(np.int64)


def kolmogorov(ordered_reference: Numbers, ordered_current: Numbers) -> Kolmogorov:
    """Given both windows sorted and not empty, the same figures as `scipy.stats.ks_2samp`.

    The two-sample test is Smirnov's (1939); p is exact up to 10,000 rows (Hodges, 1958), the one-sample distribution at
    the effective size n m / (n + m) above.

    The largest distance between the two step functions is reached at a step of the smaller sample, just after it or
    just before, so that only that sample's values are ranked in the other.
    """
    statistic = kolmogorov_statistic(ordered_reference, ordered_current)
    return Kolmogorov(statistic, _kolmogorov_p(statistic, ordered_reference, ordered_current))


def kolmogorov_statistic(ordered_reference: Numbers, ordered_current: Numbers) -> float:
    """As `kolmogorov`, without the p-value."""
    few, many = sorted((ordered_reference, ordered_current), key=len)
    at_or_below, below = (np.searchsorted(few, few, side=side) / len(few) for side in ("right", "left"))
    after = at_or_below - np.searchsorted(many, few, side="right") / len(many)
    before = np.searchsorted(many, few, side="left") / len(many) - below
    return float(max(after.max(), before.max(), 0.0))


def _kolmogorov_p(statistic: float, reference: Numbers, current: Numbers) -> float:
    # scipy.stats takes half a second to import: only where a p-value is wanted.
    from scipy import stats

    more, fewer = sorted((len(reference), len(current)), reverse=True)
    if more <= _EXACT_ROWS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it says so when it falls back to the limit below
            return float(stats.ks_2samp(reference, current).pvalue)
    effective = more * fewer / (more + fewer)
    return float(np.clip(stats.kstwo.sf(statistic, np.round(effective)), 0.0, 1.0))


def outside_p_value(reference: int, current: int, outside: int) -> float:
    """Given the sizes of two samples of one continuous distribution, the chance that `outside` or more values of the
    current one lie beyond the least and the greatest of the reference.

    Whatever the distribution, the part of it beyond both is Beta(2, reference - 1), so that the count is beta-binomial
    (Wilks, 1941, on tolerance limits). A single row of reference has no range: 1.
    """
    if outside == 0 or reference < 2:
        return 1.0
    from scipy import stats

    return float(np.clip(stats.betabinom.sf(outside - 1, current, 2, reference - 1), 0.0, 1.0))


def wasserstein(ordered_reference: Numbers, ordered_current: Numbers) -> float:
    """Given both windows sorted and not empty, the area between their step functions, in the column's own unit.

    In one dimension that is the Wasserstein (Kantorovich) distance of order 1 (Vallender, 1974).
    """
    together = np.concatenate([ordered_reference, ordered_current])
    together.sort(kind="stable")  # two sorted runs: a merge
    places = together[:-1]
    apart = np.searchsorted(ordered_reference, places, side="right") / len(ordered_reference)
    apart -= np.searchsorted(ordered_current, places, side="right") / len(ordered_current)
    return float(np.sum(np.abs(apart) * np.diff(together)))


def category_counts(
    reference: NDArray[np.generic], current: NDArray[np.generic]
) -> tuple[list[object], Counts, Counts]:
    """Given two columns of numbers or text, the values met in either (sorted) and how often each came in both."""
    if reference.dtype.kind == current.dtype.kind == "O":  # text: to sort a million objects takes seconds
        before, after = Counter(reference.tolist()), Counter(current.tolist())
        met = sorted(before.keys() | after.keys())
        return met, np.array([before[one] for one in met], np.int64), np.array([after[one] for one in met], np.int64)
    values, places = np.unique(np.concatenate([reference, current]), return_inverse=True)
    size = len(values)
    first = np.bincount(places[: len(reference)], minlength=size)
    second = np.bincount(places[len(reference) :], minlength=size)
    return values.tolist(), first.astype(np.int64), second.astype(np.int64)


def chi_square(reference: Counts, current: Counts) -> ChiSquare:
    """Given counts per category of two windows, Pearson's test without continuity correction.

    Categories whose expected count is below 5 in either window are taken together, as the chi-square approximation
    asks (Cochran, 1954). One category left: nothing can differ, p is 1.
    """
    first, second = _pooled(reference, current)
    if len(first) < 2:
        return ChiSquare(0.0, 1.0, len(first))
    from scipy import stats

    found = stats.chi2_contingency(np.stack([first, second]), correction=False)
    return ChiSquare(float(found.statistic), float(found.pvalue), len(first))


def _pooled(reference: Counts, current: Counts) -> tuple[Counts, Counts]:
    together = reference + current
    total = together.sum()
    expected = np.minimum(reference.sum(), current.sum()) * together / total
    rare = (expected < 5) & (together > 0)
    kept = (expected >= 5) & (together > 0)
    first, second = reference[kept], current[kept]
    if rare.any():
        first, second = np.append(first, reference[rare].sum()), np.append(second, current[rare].sum())
        # A pool that is still rare goes to the smallest of the others.
        if expected[rare].sum() < 5 and len(first) > 1:
            smallest = int(np.argmin(first[:-1] + second[:-1]))
            first[smallest] += first[-1]
            second[smallest] += second[-1]
            first, second = first[:-1], second[:-1]
    return first, second


def benjamini_hochberg(p_values: Numbers) -> Numbers:
    """Given p-values in any order, adjusted ones in the same order: rejecting those <= q keeps the false discovery
    rate at q (Benjamini and Hochberg, 1995; independent or positively dependent tests)."""
    count = len(p_values)
    if count == 0:
        return p_values.astype(np.float64)
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * count / np.arange(1, count + 1)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted
