"""How often the drift check cries wolf when nothing has drifted, and how surely it finds what has.

Looks of 20 features, four each of uniform, normal, lognormal, Student's t with 3 degrees of freedom and discrete
values, with n rows in the newest window and 4 n in the older one (the estate's shares), judged by the defaults.

`false_critical_rate` is of feature-windows; the budget is `false_alarms` per look, so that a feature-window has a
twentieth of it, and `budget_upper` is the upper end of what chance makes of that rate in 95 of 100 runs. `power` is
the lesser of `power_shift` (half a standard deviation) and `power_share` (10 points of a category's share), each in one
feature of the 20, at n = 1,000. `broken_retrains` counts features that six kinds of damage would have retrained.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from servicectl.drift.comparison import Column, compare
from servicectl.drift.judgement import Rules, judge
from servicectl.drift.policy import Verdict

Values = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Values]

LIMITS = {"broken_retrains": 0.0}

_FEATURES = 20
_LOOKS = {200: 260, 1_000: 160, 5_000: 80, 20_000: 20, 100_000: 6}  # rows in the newest window -> looks
_QUICK = {200: 40, 1_000: 10, 5_000: 2}
_SHARES = np.array([0.3, 0.3, 0.2, 0.15, 0.05])
_SHIFTED = np.array([0.4, 0.2, 0.2, 0.15, 0.05])
_POWER_ROWS = 1_000

DISTRIBUTIONS: dict[str, Draw] = {
    "uniform": lambda random, rows: random.random(rows),
    "normal": lambda random, rows: random.normal(size=rows),
    "lognormal": lambda random, rows: random.lognormal(size=rows),
    "t3": lambda random, rows: random.standard_t(3, size=rows),
    "discrete": lambda random, rows: random.choice(5, size=rows, p=_SHARES).astype(np.float64),
}
_DEVIATIONS = {
    "uniform": 12**-0.5,
    "normal": 1.0,
    "lognormal": ((np.e - 1) * np.e) ** 0.5,
    "t3": 3**0.5,
}


def run(quick: bool) -> dict[str, float]:
    random = np.random.default_rng(20_261_123)
    windows = critical = 0
    for rows, looks in (_QUICK if quick else _LOOKS).items():
        for _ in range(looks):
            verdicts = _look(random, rows)
            windows += len(verdicts)
            critical += sum(verdict is Verdict.CRITICAL for verdict in verdicts.values())
    budget = Rules().false_alarms / _FEATURES
    looks = 20 if quick else 200
    shift = np.mean([_finds(random, name) for name in _DEVIATIONS for _ in range(looks // 4)])
    share = np.mean([_finds(random, "discrete") for _ in range(looks)])
    return {
        "windows": windows,
        "false_critical_rate": round(critical / windows, 6),
        "budget": budget,
        "budget_upper": round(float(stats.binom.ppf(0.975, windows, budget)) / windows, 6),
        "power": round(float(min(shift, share)), 4),
        "power_shift": round(float(shift), 4),
        "power_share": round(float(share), 4),
        "broken_retrains": _broken_retrains(random, 5 if quick else 50),
    }


def _look(random: np.random.Generator, rows: int, changed: dict[str, Values] | None = None) -> dict[str, Verdict]:
    """One look at 20 features; `changed` replaces the newest window of some, named like "normal 0"."""
    evidence = []
    for name, draw in DISTRIBUTIONS.items():
        for number in range(_FEATURES // len(DISTRIBUTIONS)):
            feature = f"{name} {number}"
            newest = (changed or {}).get(feature)
            current = draw(random, rows) if newest is None else newest
            evidence.append(compare(feature, Column(draw(random, 4 * rows)), Column(current)))
    judged = judge(evidence, Rules())
    return {feature: one.judged.verdict for feature, one in judged.items() if one.judged is not None}


def _finds(random: np.random.Generator, name: str) -> bool:
    """Whether one shifted feature among the 20 is CRITICAL."""
    if name == "discrete":
        newest = random.choice(5, size=_POWER_ROWS, p=_SHIFTED).astype(np.float64)
    else:
        newest = DISTRIBUTIONS[name](random, _POWER_ROWS) + 0.5 * _DEVIATIONS[name]
    return _look(random, _POWER_ROWS, {f"{name} 0": newest})[f"{name} 0"] is Verdict.CRITICAL


def _broken_retrains(random: np.random.Generator, times: int) -> int:
    """Six kinds of damage to a normal feature: how often one was CRITICAL."""
    found = 0
    for _ in range(times):
        sound = random.normal(40, 10, _POWER_ROWS)
        holed = sound.copy()
        holed[random.random(_POWER_ROWS) < 0.6] = np.nan
        damaged = [np.array([]), np.full(_POWER_ROWS, np.nan), holed, np.zeros(_POWER_ROWS), sound * 1000]
        reference = Column(random.normal(40, 10, 4 * _POWER_ROWS))
        evidence = [compare(f"{kind}", reference, Column(values)) for kind, values in enumerate(damaged)]
        categories = Column(random.choice(5, size=4000, p=_SHARES).astype(np.float64))
        flood = Column(random.choice(5, size=1000, p=_SHARES) + 3.0)
        evidence.append(compare("flood", categories, flood, declared_category=True))
        judged = judge(evidence, Rules()).values()
        found += sum(one.judged is not None and one.judged.verdict is Verdict.CRITICAL for one in judged)
    return found
