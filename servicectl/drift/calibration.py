"""Per-feature cut-offs from a feature's own past: how far it moves when, by definition, nothing is wrong.

A pair of windows with the real sizes and the real gap between them is slid to random places in the feature's history
before its current window. The effects found there are what the data do by themselves: seasons, bursts of one
customer's rows, slow trends. Contiguous windows keep all of that; drawing single rows would hide it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from servicectl.drift import statistics
from servicectl.drift.comparison import FEW_VALUES
from servicectl.drift.windows_sql import CURRENT_FROM, REFERENCE_FROM, REFERENCE_UNTIL

RESAMPLES = 200

_TAIL = 0.1  # the part of the effects that the tail is fitted to
_LEAST_ROWS = 100


@dataclass(frozen=True, slots=True)
class CutOff:
    """What one feature exceeds by itself with the budgeted chance. `ks` of a number, `share_change` of a category,
    `estate_psi` over Service C's bins. `places`: how many windows side by side its history holds; with few, the
    figures rest on little. `rows`: of the history."""

    ks: float
    share_change: float
    estate_psi: float
    places: float
    rows: int


def cut_off(
    history: statistics.Numbers,
    chance: float,
    *,
    category: bool = False,
    text: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> CutOff | None:
    """Given a feature's values in order of time up to its current window (NaN for absent), and the chance per check
    that it may exceed the cut-off by itself; None if there are too few rows.

    A `category` has a share to every value, however many those are. The values of a `text` stand for its categories:
    only the shares mean anything, the other two are 0.
    The real windows are shares of all rows; the history is CURRENT_FROM of those.
    """
    rows = round(len(history) / CURRENT_FROM)
    sizes = _Sizes(
        reference=int(rows * (REFERENCE_UNTIL - REFERENCE_FROM)),
        gap=int(rows * (CURRENT_FROM - REFERENCE_UNTIL)),
        current=rows - int(rows * CURRENT_FROM),
    )
    room = len(history) - sizes.span
    if sizes.current < _LEAST_ROWS or room < 1:
        return None
    values = np.unique(history[np.isfinite(history)])
    few = values if category or text or len(values) <= FEW_VALUES else None
    random = np.random.default_rng(seed)
    effects = np.array([_effects(history, start, sizes, few) for start in random.integers(0, room, size=resamples)])
    ks, share_change, estate_psi = (beyond(column, chance) for column in effects.T)
    if text:
        ks = estate_psi = 0.0
    return CutOff(ks, share_change, estate_psi, places=len(history) / sizes.span, rows=len(history))


def beyond(effects: statistics.Numbers, chance: float) -> float:
    """Given effects of many resamples, what is exceeded with this chance.

    Within the resamples their quantile. Beyond, an exponential tail over the 90th percentile (peaks over a threshold,
    Pickands 1975, with shape 0), since a chance of 1 in 2,000 is not to be read off 200 resamples.
    """
    if chance >= _TAIL:
        return float(np.quantile(effects, 1 - chance))
    threshold = float(np.quantile(effects, 1 - _TAIL))
    excess = effects[effects > threshold] - threshold
    return threshold + (float(excess.mean()) if len(excess) else 0.0) * math.log(_TAIL / chance)


@dataclass(frozen=True, slots=True)
class _Sizes:
    reference: int
    gap: int
    current: int

    @property
    def span(self) -> int:
        return self.reference + self.gap + self.current


def _effects(
    history: statistics.Numbers, start: int, sizes: _Sizes, few: statistics.Numbers | None
) -> tuple[float, float, float]:
    first, second = history[start : start + sizes.reference], history[start + sizes.reference + sizes.gap :]
    ordered, newer = (np.sort(window[np.isfinite(window)]) for window in (first, second[: sizes.current]))
    if not len(ordered) or not len(newer):
        return 0.0, 0.0, 0.0
    edges, psi = statistics.estate_edges(ordered, newer), 0.0
    if edges is not None:
        p, q = (statistics.estate_shares(statistics.estate_counts(window, edges)) for window in (ordered, newer))
        psi = statistics.psi(p, q)
    change = 0.0
    if few is not None:
        shares = [np.diff([*np.searchsorted(window, few), len(window)]) / len(window) for window in (ordered, newer)]
        change = float(np.abs(shares[1] - shares[0]).max())
    return statistics.kolmogorov_statistic(ordered, newer), change, psi
