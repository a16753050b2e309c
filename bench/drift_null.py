"""How often the drift check cries wolf when nothing has drifted, and how surely it finds what has, by either source.

Looks of 20 features, four each of uniform, normal, lognormal, Student's t with 3 degrees of freedom and discrete
values, with n rows in the newest window and 4 n in the older one (the estate's shares), judged by the defaults of the
builtin statistics, and on the same rows by Service C's rule: PSI over ten equal-width bins of the 20,000 oldest rows of
each window, CRITICAL above 0.25.

`false_critical_rate` is of feature-windows, by the builtin statistics; the budget is `false_alarms` per look, so that a
feature-window has a twentieth of it. `budget_upper` is the upper end of what chance makes of that rate in 95 of 100 runs,
and `false_critical_of_it` the rate in parts of it. `power` is the least over the distributions of `power_shift` (half a
standard deviation) and `power_share` (10 points of a category's share), each in one feature of the 20, at n = 1,000.
`service_c_...` are the same by Service C's own word; `service_c_weighed_rate` counts what servicectl makes CRITICAL of it.

`broken_retrains` counts retrains that six kinds of damage asked for, `broken_quarantined` is the share told as damage.
`dependent_...` are feature-windows of rows that remember each other, which the budget does not cover: an autoregression of
order 1 at 0.9, before and after `--calibrate`. Tables by n and by distribution are on stderr.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from servicectl.drift import policy, statistics
from servicectl.drift.comparison import Column, Evidence, compare
from servicectl.drift.judgement import Rules, judge
from servicectl.drift.policy import Verdict
from servicectl.drift.values import Asked, FeatureRows, Measured, Settings
from servicectl.drift.windows_sql import CURRENT_FROM, REFERENCE_FROM, REFERENCE_UNTIL

Values = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Values]

LIMITS = {"false_critical_of_it": 1.0, "broken_retrains": 0.0}
MINIMUM = {"windows": 10_000.0, "power": 0.9, "broken_quarantined": 1.0}

_FEATURES = 20
_LOOKS = {200: 260, 1_000: 160, 5_000: 80, 20_000: 20, 100_000: 6}  # rows in the newest window -> looks
_QUICK = {200: 40, 1_000: 10, 5_000: 2}
_ALL_ROWS = 20  # of a feature, to one in its newest window
_SHARES = np.array([0.3, 0.3, 0.2, 0.15, 0.05])
_SHIFTED = np.array([0.4, 0.2, 0.2, 0.15, 0.05])
_POWER_ROWS = 1_000
_MEMORY = 0.9
_DEPENDENT = {1_000: 20, 5_000: 8}
_START = datetime(2026, 1, 1)  # noqa: DTZ001 -- naive UTC, as the feature store holds it

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
SOURCES = ("builtin", "Service C", "weighed")
"""The builtin statistics; Service C's own word; and what servicectl makes of that word."""


def run(quick: bool) -> dict[str, float]:
    random = np.random.default_rng(20_261_123)
    null = _null(random, _QUICK if quick else _LOOKS)
    found = {name: _found(random, name, 12 if quick else 200) for name in DISTRIBUTIONS}
    _print_power(found)
    windows = sum(total for _, total in null["builtin"])
    rate, word, weighed = (_rate(null[source]) for source in SOURCES)
    budget = Rules().false_alarms / _FEATURES
    upper = float(stats.binom.ppf(0.975, windows, budget)) / windows
    shift, share = min(found[name]["builtin"] for name in _DEVIATIONS), found["discrete"]["builtin"]
    broken = _broken(random, 5 if quick else 50)
    before, after = _dependent(random, {1_000: 1} if quick else _DEPENDENT)
    return {
        "windows": windows,
        "false_critical_rate": round(rate, 6),
        "budget": budget,
        "budget_upper": round(upper, 6),
        "false_critical_of_it": round(rate / upper, 3),
        "power": round(min(shift, share), 4),
        "power_shift": round(shift, 4),
        "power_share": round(share, 4),
        "service_c_false_critical_rate": round(word, 6),
        "service_c_weighed_rate": round(weighed, 6),
        "service_c_power": round(min(one["Service C"] for one in found.values()), 4),
        "broken_retrains": broken["retrains"],
        "broken_quarantined": round(broken["QUARANTINE"] / broken["looks"], 4),
        "dependent_false_critical_rate": round(before, 4),
        "dependent_calibrated_rate": round(after, 4),
    }


# -- when nothing has drifted --------------------------------------------------------------------------------------------


def _null(random: np.random.Generator, looks: Mapping[int, int]) -> dict[str, list[tuple[int, int]]]:
    """Source -> (CRITICAL, feature-windows) per n and distribution; the table of them on stderr."""
    counted: dict[str, list[tuple[int, int]]] = {source: [] for source in SOURCES}
    print(f"{'CRITICAL when nothing drifted':<32}" + "".join(f"{name:>11}" for name in DISTRIBUTIONS), file=sys.stderr)
    for rows, times in looks.items():
        critical: Counter[tuple[str, str]] = Counter()
        for _ in range(times):
            for feature, verdicts in _look(random, rows).items():
                kind = feature.split()[0]
                critical.update((source, kind) for source in SOURCES if verdicts[source] is Verdict.CRITICAL)
        of_each = times * _FEATURES // len(DISTRIBUTIONS)
        for source in SOURCES:
            counted[source] += [(critical[source, kind], of_each) for kind in DISTRIBUTIONS]
            cells = "".join(f"{critical[source, kind] / of_each:>11.2%}" for kind in DISTRIBUTIONS)
            print(f"{f'n = {rows:,}, {source} ({of_each} each)':<32}{cells}", file=sys.stderr)
    return counted


def _rate(counted: Iterable[tuple[int, int]]) -> float:
    told = list(counted)
    return sum(critical for critical, _ in told) / sum(windows for _, windows in told)


def _look(
    random: np.random.Generator, rows: int, changed: Mapping[str, Values] | None = None
) -> dict[str, dict[str, Verdict]]:
    """One look at 20 features, the verdict of each source on each; `changed` replaces the newest window of some, named
    like "normal 0"."""
    evidence, words = [], {}
    for name, draw in DISTRIBUTIONS.items():
        for number in range(_FEATURES // len(DISTRIBUTIONS)):
            feature = f"{name} {number}"
            older, newest = draw(random, 4 * rows), (changed or {}).get(feature)
            current = draw(random, rows) if newest is None else newest
            evidence.append(compare(feature, Column(older), Column(current)))
            words[feature] = _service_c(older, current)
    judged = judge(evidence, Rules())
    weighed = _decided(words, rows)
    return {
        feature: {
            "builtin": one.judged.verdict if one.judged is not None else Verdict.NOT_MEASURED,
            "Service C": Verdict(words[feature].status),
            "weighed": weighed[feature],
        }
        for feature, one in judged.items()
    }


def _service_c(older: Values, newest: Values) -> Measured:
    """What Service C answers, by the arithmetic that is held against the real one's."""
    from servicectl.miniature.analytics import WINDOW_ROWS, status

    a, b = (np.sort(window[:WINDOW_ROWS]) for window in (older, newest))
    edges = statistics.estate_edges(a, b)
    assert edges is not None
    p, q = (statistics.estate_shares(statistics.estate_counts(window, edges)) for window in (a, b))
    psi, ks = statistics.psi(p, q), statistics.kolmogorov_statistic(a, b)
    # The limit of the p-value, which takes no time: only WARNING depends on it.
    p_value = float(stats.kstwobign.sf(ks * np.sqrt(len(a) * len(b) / (len(a) + len(b)))))
    return Measured(psi, ks, p_value, statistics.kl_divergence(p, q), status(psi, ks, p_value))


def _decided(measured: Mapping[str, Measured], rows: int) -> dict[str, Verdict]:
    asked = [Asked("M", "1", tuple(measured), None)]
    counted = dict.fromkeys(measured, FeatureRows(_ALL_ROWS * rows, 0, _START))
    findings = policy.decide(asked, {"M": measured}, counted, Settings())
    return {one.feature: one.verdict for one in findings.decisions}


# -- when one feature has ------------------------------------------------------------------------------------------------


def _found(random: np.random.Generator, name: str, looks: int) -> dict[str, float]:
    """Source -> how often one shifted feature among the 20 is CRITICAL."""
    found: Counter[str] = Counter()
    for _ in range(looks):
        if name == "discrete":
            newest = random.choice(5, size=_POWER_ROWS, p=_SHIFTED).astype(np.float64)
        else:
            newest = DISTRIBUTIONS[name](random, _POWER_ROWS) + 0.5 * _DEVIATIONS[name]
        verdicts = _look(random, _POWER_ROWS, {f"{name} 0": newest})[f"{name} 0"]
        found.update(source for source in SOURCES if verdicts[source] is Verdict.CRITICAL)
    return {source: found[source] / looks for source in SOURCES}


def _print_power(found: Mapping[str, Mapping[str, float]]) -> None:
    print(f"{f'found at n = {_POWER_ROWS:,}':<32}" + "".join(f"{name:>11}" for name in DISTRIBUTIONS), file=sys.stderr)
    for source in SOURCES:
        cells = "".join(f"{found[name][source]:>11.1%}" for name in DISTRIBUTIONS)
        print(f"{source:<32}{cells}", file=sys.stderr)


# -- when the data is broken ---------------------------------------------------------------------------------------------


def damaged(random: np.random.Generator) -> dict[str, tuple[Column, Column]]:
    """Six kinds of damage, each the older and the newest window of a feature that was sound."""

    def older(values: Values) -> Column:
        return Column(values, _START, _START + timedelta(days=10))

    def newest(values: Values, day: int = 20) -> Column:
        return Column(values, _START + timedelta(days=day), _START + timedelta(days=day + 1))

    before = older(random.normal(40, 10, 4 * _POWER_ROWS))
    sound = random.normal(40, 10, _POWER_ROWS)
    holed = sound.copy()
    holed[random.random(_POWER_ROWS) < 0.6] = np.nan
    codes = random.choice(5, size=5 * _POWER_ROWS, p=_SHARES).astype(str)
    unknown = np.where(random.random(_POWER_ROWS) < 0.5, "never met", codes[4 * _POWER_ROWS :])
    # The rows of this one stopped long ago, while the others' went on; by its values it has drifted.
    stopped = Column(before.values, _START - timedelta(days=30), _START - timedelta(days=21))
    return {
        "empty window": (before, newest(np.array([]))),
        "flood of NULLs": (before, newest(holed)),
        "stands still": (before, newest(np.full(_POWER_ROWS, 55.0))),
        "another unit": (before, newest(sound * 1000)),
        "flood of new categories": (
            Column(codes[: 4 * _POWER_ROWS], before.first, before.last),
            Column(unknown, _START + timedelta(days=20), _START + timedelta(days=21)),
        ),
        "stale timestamps": (stopped, newest(sound + 20, day=-10)),
    }


def broken_look(random: np.random.Generator) -> tuple[dict[str, Verdict], tuple[str, ...]]:
    """One look at a model whose features are broken in six ways: the verdicts, and the features it is retrained for."""
    evidence = [_compared(name, *columns) for name, columns in damaged(random).items()]
    # As the check counts them: rows that have a time, also where the newest window has none.
    counted = {one.feature: FeatureRows(_ALL_ROWS * _POWER_ROWS, 0, one.current_last or _START) for one in evidence}
    features = tuple(counted)
    findings = policy.decide([Asked("M", "1", features, None)], {"M": judge(evidence, Rules())}, counted, Settings())
    retrained = policy.affected(findings, {"M": features}).get("M", ())
    return {one.feature: one.verdict for one in findings.decisions}, retrained


def _compared(name: str, older: Column, newest: Column) -> Evidence:
    return compare(name, older, newest, declared_category=older.values.dtype.kind == "U")


def _broken(random: np.random.Generator, times: int) -> Counter[str]:
    counted: Counter[str] = Counter()
    for _ in range(times):
        verdicts, retrained = broken_look(random)
        counted.update(verdicts.values())
        counted["looks"] += len(verdicts)
        counted["retrains"] += len(retrained)
    return counted


# -- when rows remember each other ---------------------------------------------------------------------------------------


def _dependent(random: np.random.Generator, looks: Mapping[int, int]) -> tuple[float, float]:
    """The CRITICAL share of feature-windows of an autoregression that has not drifted, before and after calibration."""
    told = []
    for rows, times in looks.items():
        before, after = np.mean([_dependent_look(random, rows) for _ in range(times)], axis=0)
        told.append((before, after))
        print(f"rows that remember (n = {rows:,}): {before:.1%}, calibrated {after:.1%}", file=sys.stderr)
    before, after = np.average(told, axis=0, weights=list(looks.values()))
    return float(before), float(after)


def _dependent_look(random: np.random.Generator, rows: int) -> tuple[float, float]:
    from servicectl.drift.calibration import cut_off

    rules, evidence, cut_offs = Rules(), [], {}
    for number in range(_FEATURES):
        feature, values = f"f{number}", _autoregression(random, _ALL_ROWS * rows)
        start, end, newest = (int(share * len(values)) for share in (REFERENCE_FROM, REFERENCE_UNTIL, CURRENT_FROM))
        evidence.append(compare(feature, Column(values[start:end]), Column(values[newest:])))
        told = cut_off(values[:newest], rules.false_alarms / _FEATURES, seed=number)
        assert told is not None
        cut_offs[feature] = told.ks / rules.effect_floor_ks
    return _critical(evidence, rules), _critical(evidence, Rules(cut_offs=cut_offs))


def _critical(evidence: list[Evidence], rules: Rules) -> float:
    judged = judge(evidence, rules).values()
    return sum(one.judged is not None and one.judged.verdict is Verdict.CRITICAL for one in judged) / len(evidence)


def _autoregression(random: np.random.Generator, rows: int) -> Values:
    """x[t] = _MEMORY x[t - 1] + noise, with variance 1 from the first row on."""
    from scipy.signal import lfilter

    noise = random.normal(size=rows) * np.sqrt(1 - _MEMORY**2)
    noise[0] = random.normal()
    return np.asarray(lfilter([1.0], [1.0, -_MEMORY], noise), dtype=np.float64)
