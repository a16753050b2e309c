"""Is one model better than another on time-ordered rows? A paired test that does not believe rows are independent.

Neighbouring rows share their weather, so a test that treats rows as independent promotes equal models far more often
than it says. Here whole groups are left out: the delete-one-group jackknife (Efron & Stein 1981; clustered as in
Cameron, Gelbach & Miller 2011) gives the standard error of the difference, and Student's t with groups - 1 degrees of
freedom its bounds. Rejected: a percentile bootstrap over blocks, which is too narrow at 15 to 30 blocks and needs
hundreds of evaluations of metrics that are no sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCKS = 30
FEWEST_ENTITIES = 5  # with fewer, a standard error between them says nothing
LEAST_ROWS_PER_BLOCK = 10

Statistic = Callable[[NDArray[np.bool_]], float | None]


@dataclass(frozen=True)
class Evidence:
    """`low` and `high` are one-sided bounds, each at alpha."""

    difference: float
    low: float
    high: float


def time_blocks(times: NDArray[np.datetime64], wanted: int = BLOCKS) -> NDArray[np.int64]:
    """Given ordered times, the block of each row: contiguous, about equally large, one instant never cut in two."""
    count = max(1, min(wanted, len(times) // LEAST_ROWS_PER_BLOCK))
    starts = np.searchsorted(times, times[np.arange(count) * len(times) // count], side="left")
    marks = np.zeros(len(times), dtype=np.int64)
    marks[np.unique(starts)] = 1
    return np.cumsum(marks) - 1


def entity_groups(entities: NDArray[np.int64], wanted: int = BLOCKS) -> NDArray[np.int64] | None:
    """Entities dealt into groups, each its own where they are few; None where each row is an entity of its own, or
    where there are fewer than FEWEST_ENTITIES."""
    names, position = np.unique(entities, return_inverse=True)
    if len(names) == len(entities) or len(names) < FEWEST_ENTITIES:
        return None
    return (position % min(wanted, len(names))).astype(np.int64)


def compare(
    difference: Statistic, blocks: NDArray[np.int64], entities: NDArray[np.int64] | None, alpha: float
) -> Evidence | None:
    """Bound a statistic over all rows. None where it is undefined on all rows or without one of the groups.

    The widest of these counts: time blocks; time blocks joined in twos and threes, in case one block still resembles
    the next; groups of entities, in case one entity resembles itself at other times.
    """
    value = difference(np.ones(len(blocks), dtype=np.bool_))
    if value is None:
        return None
    margins = [
        _margin(difference, groups, alpha)
        for groups in (blocks, blocks // 2, blocks // 3, entities)
        if groups is not None
    ]
    known = [margin for margin in margins if margin is not None]
    if len(known) < len(margins):
        return None
    return Evidence(value, value - max(known), value + max(known))


def more_rows(found: Evidence, least: float, rows: int) -> int | None:
    """About how many further rows like these would let the lower bound pass `least`, if the difference stays as it is.

    Bounds narrow with the square root of the rows. None: no number would, because the difference is no greater.
    """
    gain, margin = found.difference - least, found.difference - found.low
    if gain <= 0 or not np.isfinite(margin):
        return None
    return max(1, int(np.ceil(rows * ((margin / gain) ** 2 - 1))))


def spent(alpha: float, earlier: int) -> float:
    """The error rate of the next comparison with one champion, after `earlier` ones that it survived.

    alpha, then alpha / (2 k^2) for the k-th: alpha/8, alpha/18, ... (Foster and Stine 2008 call such a series alpha
    spending). By the book 1.33 alpha in all, however many equal challengers come; so the chance that any of them is
    promoted stays below 2 alpha also where neighbouring rows resemble each other so much that one test errs more often
    than it says. Rejected: 2 alpha / (k (k + 1)), by the book 2 alpha, with which ten equal ones reached 13 % there.
    """
    return alpha if earlier == 0 else alpha / (2 * (earlier + 1) ** 2)


def _margin(statistic: Statistic, groups: NDArray[np.int64], alpha: float) -> float | None:
    from scipy.stats import t

    names = np.unique(groups)
    if len(names) < 2:
        return None
    without = [statistic(groups != name) for name in names]
    values = [value for value in without if value is not None]
    if len(values) < len(without):
        return None
    left_out = np.array(values)
    count = len(left_out)
    error = np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum())
    return float(t.ppf(1 - alpha, count - 1) * error)
