"""One feature's two windows held against each other: the figures, before anybody judges them.

A feature is compared as a *category* if it is declared one or takes few different values: there Kolmogorov-Smirnov's
p-value is too large, and a chi-square test is right. It is compared as a *number* otherwise. Either way an absent
value (NULL, NaN, an infinity) is counted, and left out of the distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from servicectl.drift import quality, statistics

FEW_VALUES = 20
"""A numeric feature with at most so many different values is compared like a category."""

_FEW_OF_ROWS = 0.1
_SHOWN_CATEGORIES = 12


@dataclass(frozen=True, slots=True)
class Column:
    """One window of one feature, in order of time. `values`: float64 with NaN for absent, or text without gaps.

    `absent_text` counts the absent values of a text column. `first` and `last` are event times, None if unknown.
    """

    values: NDArray[np.generic]
    first: datetime | None = None
    last: datetime | None = None
    absent_text: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """One of several disjoint pieces of the current window, in order of time, against the whole reference."""

    rows: int
    ks: float
    share_change: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Rows per bin of both windows. `labels` name the bins: ranges of numbers, or categories."""

    labels: tuple[str, ...]
    reference: tuple[int, ...]
    current: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about one feature; the figures are None where a window has no value to compare.

    `rows` count absent values too. `psi`, `kl` are over the reference's deciles or the categories, `estate_psi` and
    `estate_kl` over Service C's ten equal-width bins (None for text). `ks` is None for text. `p_value` is that of
    the Kolmogorov-Smirnov or the chi-square test, by `kind`. `share_change` is the largest change of one category's
    share. `wasserstein` is in standard deviations of the reference. `out_of_range` and `new_values` are shares of
    the current values; `out_of_range_p_value` is the chance of as many outside the reference's range, or more. `broken`: why the current window is damaged data rather than drift; "" if it is not.
    """

    feature: str
    kind: Literal["number", "category"]
    reference_rows: int
    reference_absent: int
    current_rows: int
    current_absent: int
    absent_p_value: float
    psi: float | None = None
    kl: float | None = None
    estate_psi: float | None = None
    estate_kl: float | None = None
    ks: float | None = None
    p_value: float | None = None
    share_change: float = 0.0
    wasserstein: float | None = None
    out_of_range: float = 0.0
    out_of_range_p_value: float = 1.0
    new_values: float = 0.0
    parts: tuple[Part, ...] = ()
    histogram: Histogram | None = None
    broken: str = ""
    reference_first: datetime | None = None
    reference_last: datetime | None = None
    current_first: datetime | None = None
    current_last: datetime | None = None

    @property
    def absent_change(self) -> float:
        """By how much the share of absent values rose."""
        before = self.reference_absent / self.reference_rows if self.reference_rows else 0.0
        after = self.current_absent / self.current_rows if self.current_rows else 0.0
        return after - before


def compare(
    feature: str,
    reference: Column,
    current: Column,
    *,
    declared_category: bool = False,
    parts: int = 1,
    limits: quality.Limits = quality.DEFAULT,
) -> Evidence:
    """Given two windows of one feature, all there is to say about them. `parts`: pieces of the current window."""
    before, after = _present(reference), _present(current)
    absent = (len(reference.values) + reference.absent_text - len(before), _rows(current) - len(after))
    counts = np.array([[absent[0], len(before)], [absent[1], len(after)]], dtype=np.int64)
    evidence = Evidence(
        feature=feature,
        kind="category" if declared_category or before.dtype.kind not in "fiu" else "number",
        reference_rows=_rows(reference),
        reference_absent=absent[0],
        current_rows=_rows(current),
        current_absent=absent[1],
        absent_p_value=statistics.chi_square(counts[0], counts[1]).p_value if counts.sum(1).all() else 1.0,
        reference_first=reference.first,
        reference_last=reference.last,
        current_first=current.first,
        current_last=current.last,
    )
    broken = quality.unordered(reference.last, current.first, current.last) or quality.emptied(
        evidence.reference_rows, absent[0], evidence.current_rows, absent[1], limits
    )
    if broken or not len(before) or not len(after):
        return replace(evidence, broken=broken)
    if before.dtype.kind not in "fiu":
        return _text(evidence, before, after, parts, limits)
    return _numbers(evidence, before.astype(np.float64), after.astype(np.float64), declared_category, parts, limits)


def _rows(column: Column) -> int:
    return len(column.values) + column.absent_text


def _present(column: Column) -> NDArray[np.generic]:
    if column.values.dtype.kind != "f":
        return column.values
    values = column.values.astype(np.float64, copy=False)
    finite = np.isfinite(values)
    return values if finite.all() else values[finite]


def _numbers(
    evidence: Evidence,
    before: statistics.Numbers,
    after: statistics.Numbers,
    declared: bool,
    parts: int,
    limits: quality.Limits,
) -> Evidence:
    ordered, newer = np.sort(before), np.sort(after)
    few = declared or _has_few_values(ordered, newer)
    found = statistics.kolmogorov_statistic(ordered, newer)
    edges = statistics.estate_edges(ordered, newer)
    if edges is None:
        estate_psi = estate_kl = 0.0
    else:
        p, q = (statistics.estate_shares(statistics.estate_counts(column, edges)) for column in (ordered, newer))
        estate_psi, estate_kl = statistics.psi(p, q), statistics.kl_divergence(p, q)
    deviation = float(ordered.std())
    outside = np.searchsorted(newer, ordered[0], side="left") + len(newer)
    outside -= np.searchsorted(newer, ordered[-1], side="right")
    evidence = replace(
        evidence,
        kind="category" if few else "number",
        ks=found,
        estate_psi=estate_psi,
        estate_kl=estate_kl,
        wasserstein=statistics.wasserstein(ordered, newer) / deviation if deviation else None,
        out_of_range=float(outside / len(newer)),
        out_of_range_p_value=statistics.outside_p_value(len(ordered), len(newer), int(outside)),
        broken=quality.constant(ordered, newer) or quality.rescaled(ordered, newer, found),
    )
    if few:
        evidence = _categories(evidence, before, after, parts, limits, declared=declared)
    else:
        inner = statistics.decile_edges(ordered)
        counted = statistics.binned(ordered, inner), statistics.binned(newer, inner)
        p, q = statistics.shares(counted[0]), statistics.shares(counted[1])
        evidence = replace(
            evidence,
            psi=statistics.psi(p, q),
            kl=statistics.kl_divergence(p, q),
            p_value=statistics.kolmogorov(ordered, newer).p_value,
            histogram=_ranges(ordered, newer),
        )
    if parts > 1:
        shares = [part.share_change for part in evidence.parts] or [0.0] * parts
        pieces = [np.sort(piece) for piece in np.array_split(after, parts)]
        evidence = replace(
            evidence,
            parts=tuple(
                Part(len(piece), statistics.kolmogorov_statistic(ordered, piece) if len(piece) else 0.0, share)
                for piece, share in zip(pieces, shares, strict=True)
            ),
        )
    return evidence


def _has_few_values(ordered: statistics.Numbers, newer: statistics.Numbers) -> bool:
    rows = len(ordered) + len(newer)
    steps = 2 + int((np.diff(ordered) > 0).sum()) + int((np.diff(newer) > 0).sum())
    if steps > 2 * FEW_VALUES:
        return False
    distinct = len(np.union1d(ordered, newer))
    return distinct <= FEW_VALUES and distinct <= rows * _FEW_OF_ROWS


def _text(
    evidence: Evidence,
    before: NDArray[np.generic],
    after: NDArray[np.generic],
    parts: int,
    limits: quality.Limits,
) -> Evidence:
    if len(set(after.tolist())) == 1:  # before a sort, which is slow for text
        evidence = replace(evidence, broken=quality.constant(np.sort(before), after))
    return _categories(evidence, before, after, parts, limits, declared=True)


def _categories(
    evidence: Evidence,
    before: NDArray[np.generic],
    after: NDArray[np.generic],
    parts: int,
    limits: quality.Limits,
    *,
    declared: bool,
) -> Evidence:
    values, first, second = statistics.category_counts(before, after)
    p, q = statistics.shares(first), statistics.shares(second)
    new_values = float(second[first == 0].sum() / second.sum())
    pieces: tuple[Part, ...] = ()
    if parts > 1:
        pieces = tuple(_part(before, piece) for piece in np.array_split(after, parts))
    return replace(
        evidence,
        kind="category",
        psi=statistics.psi(p, q),
        kl=statistics.kl_divergence(p, q),
        p_value=statistics.chi_square(first, second).p_value,
        share_change=_largest_change(first, second),
        new_values=new_values,
        parts=pieces,
        histogram=_shown(values, first, second),
        # Codes of a number may rightly go where they never were; a category that was never met has no code at all.
        broken=evidence.broken or (quality.flooded(new_values, limits) if declared else ""),
    )


def _part(before: NDArray[np.generic], piece: NDArray[np.generic]) -> Part:
    if not len(piece):
        return Part(0, 0.0, 0.0)
    _, first, second = statistics.category_counts(before, piece)
    return Part(len(piece), 0.0, _largest_change(first, second))


def _largest_change(first: statistics.Counts, second: statistics.Counts) -> float:
    return float(np.abs(second / second.sum() - first / first.sum()).max())


def _ranges(ordered: statistics.Numbers, newer: statistics.Numbers) -> Histogram:
    """Ten bins over what lies between the 1st and the 99th percentile of both windows; the outer two are open."""
    low = min(np.quantile(ordered, 0.01), np.quantile(newer, 0.01))
    high = max(np.quantile(ordered, 0.99), np.quantile(newer, 0.99))
    inner = np.unique(np.linspace(low, high, 9)) if low < high else np.array([low])
    labels = [
        f"< {inner[0]:.4g}",
        *(f"{a:.4g} .. {b:.4g}" for a, b in zip(inner[:-1], inner[1:], strict=True)),  # noqa: RUF007 -- arrays
        f">= {inner[-1]:.4g}",
    ]
    return Histogram(
        tuple(labels),
        tuple(statistics.binned(ordered, inner).tolist()),
        tuple(statistics.binned(newer, inner).tolist()),
    )


def _shown(values: Sequence[object], first: statistics.Counts, second: statistics.Counts) -> Histogram:
    """The categories with most rows, in their own order, and all others as one."""
    share = first / first.sum() + second / second.sum()
    kept = sorted(np.argsort(-share, kind="stable")[:_SHOWN_CATEGORIES].tolist())
    labels = [f"{value:g}" if isinstance(value, float) else str(value) for value in (values[index] for index in kept)]
    before, after = [int(first[index]) for index in kept], [int(second[index]) for index in kept]
    if len(kept) < len(values):
        labels.append("(others)")
        before.append(int(first.sum()) - sum(before))
        after.append(int(second.sum()) - sum(after))
    return Histogram(tuple(labels), tuple(before), tuple(after))
